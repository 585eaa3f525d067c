"""How many instructions a request and an SSE chunk cost: the same on a busy machine as on a quiet one."""
