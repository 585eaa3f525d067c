"""What each worker counts: in shared memory, so that counts outlive a worker and can be summed without asking it."""
