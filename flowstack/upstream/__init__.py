"""The provider's side: connections, calls, the pool, and where requests go."""
