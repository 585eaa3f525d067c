"""Processes: what a process tells systemd and hears as signals, and the parent of several workers."""
