"""What the tables of legal moves share."""

from __future__ import annotations

from enum import Enum


class IllegalMove(Exception):
    """Something was to go from one state to another, and its table has no such move: a bug, never a peer's doing."""

    def __init__(self, before: Enum, after: Enum) -> None:
        super().__init__(f"{type(before).__name__} cannot go from {before.name} to {after.name}")
