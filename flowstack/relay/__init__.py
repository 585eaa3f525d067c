"""One exchange, from the request to its row."""
