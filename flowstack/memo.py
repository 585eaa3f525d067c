"""What is made of others' words, remembered within bounds: who chooses them could choose without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

CUT = "\N{HORIZONTAL ELLIPSIS}"
"""Stands at the end of a text that was longer."""


class Memo(dict[K, V]):
    """``memo[key]`` is ``make(key)``, without a call where the key is known.

    It holds at most ``most`` keys, each of a size of at most ``longest``, and what is made of them: so its bytes are
    bounded too. One more, and it begins anew. What is made of a longer key is made each time.

    :param size: of a key: characters of a text, or bytes; of keys of several parts, that of all together.
    """

    __slots__ = ("_longest", "_make", "_most", "_size")

    def __init__(
        self, make: Callable[[K], V], most: int = 1024, longest: int = 256, size: Callable[[Any], int] = len
    ) -> None:
        super().__init__()
        self._make = make
        self._most = most
        self._longest = longest
        self._size = size

    def __missing__(self, key: K) -> V:
        made = self._make(key)
        if self._size(key) <= self._longest:
            if len(self) >= self._most:
                self.clear()
            self[key] = made
        return made


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, which shows where it was longer."""
    return text if len(text) <= most else text[: most - len(CUT)] + CUT
