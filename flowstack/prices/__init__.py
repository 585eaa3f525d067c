"""What usage costs, by a dated table."""
