"""What the tables of legal moves share."""

from __future__ import annotations

from enum import IntEnum


class IllegalMove(Exception):
    """A connection was to go from one state to another, and its table has no such move: a bug, never a peer's doing."""

    def __init__(self, before: IntEnum, after: IntEnum) -> None:
        super().__init__(f"{type(before).__name__} cannot go from {before.name} to {after.name}")
