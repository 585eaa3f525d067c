"""Who holds the counters of a key's limits."""
