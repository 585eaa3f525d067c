"""Sockets: the reactor on uvloop, connections, TLS, listeners, resolver."""
