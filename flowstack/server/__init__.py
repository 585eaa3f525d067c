"""The client's side: its connection, its requests and their bodies."""
