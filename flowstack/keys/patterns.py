"""Patterns in which ``*`` stands for any run of characters, the empty one too, and every other character for itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

V = TypeVar("V")

MAX_MODEL = 512
"""Characters of the longest model name that anything is known of: a longer one has no price, and no pattern fits it."""


class Patterns:
    """Several of them, of which one must fit the whole text.

    A pattern's parts are looked for one after the other, so that the time is bounded by the text's length times the
    pattern's, whatever a client sends; a regular expression with several ``.*`` has no such bound.
    """

    __slots__ = ("_exact", "_parted")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._exact = frozenset(pattern for pattern in patterns if "*" not in pattern)
        self._parted = [pattern.split("*") for pattern in patterns if "*" in pattern]

    def fit(self, text: str) -> bool:
        """Whether one of them fits."""
        return text in self._exact or any(_fits(parts, text) for parts in self._parted)


def in_order(found: Iterable[tuple[str, V]]) -> tuple[tuple[Patterns, V], ...]:
    """What patterns stand for, in the order in which they are tried: names before patterns, the longest first."""
    ordered = sorted(found, key=lambda one: ("*" in one[0], -len(one[0]), one[0]))
    return tuple((Patterns((pattern,)), value) for pattern, value in ordered)


def fitting(patterns: Iterable[tuple[Patterns, V]], text: str) -> V | None:
    """What the first pattern stands for that fits, or None. A text that is longer than any model's name fits none."""
    if len(text) > MAX_MODEL:
        return None
    return next((value for pattern, value in patterns if pattern.fit(text)), None)


@lru_cache(maxsize=1024)
def compiled(patterns: tuple[str, ...]) -> Patterns:
    """The patterns, made ready once."""
    return Patterns(patterns)


def _fits(parts: list[str], text: str) -> bool:
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    place, end = len(first), len(text) - len(last)
    for part in middle:
        place = text.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True
