"""Which process is meant by a number: numbers are used again, so the time of its start goes with it."""

from __future__ import annotations

_START_TIME = 19
"""The field after the command's name and the state's: proc(5), /proc/pid/stat, field 22."""


def started_at(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot, or None where none of that number is seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may hold anything.
            return int(file.read().rpartition(b")")[2].split()[_START_TIME])
    except (OSError, IndexError, ValueError):
        return None


def users_of(pid: int) -> frozenset[int] | None:
    """Return the users that a process runs as (real, effective, saved, of files), or None where there is none."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return frozenset(map(int, line.split()[1:]))
    except (OSError, ValueError):
        pass
    return None
