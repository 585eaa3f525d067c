"""Texts from outside that come again and again, such as names of models and of clients' software."""

from __future__ import annotations

from collections.abc import Callable
from typing import AnyStr, Final

MOST: Final = 1024
"""Texts that are remembered. Clients and upstreams choose them, so there must be an end."""


class Texts(dict[AnyStr, str]):
    """What is made of a text, remembered: ``texts[value]``, without a call where the value is known.

    :param make: makes it.
    :param longest: how much of a value is looked at; one that is longer is made anew each time.
    """

    def __init__(self, make: Callable[[AnyStr], str], longest: int) -> None:
        super().__init__()
        self._make: Callable[[AnyStr], str] = make
        self._longest = longest

    def __missing__(self, value: AnyStr) -> str:
        made = self._make(value[: self._longest])
        if len(value) <= self._longest:
            if len(self) >= MOST:
                self.clear()
            self[value] = made
        return made
