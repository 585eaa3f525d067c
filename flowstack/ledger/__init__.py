"""Where the row of a request goes."""
