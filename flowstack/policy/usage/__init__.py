"""What was asked for and what was used, read from bodies as they pass."""
