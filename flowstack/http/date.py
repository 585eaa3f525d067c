"""The ``Date`` field's value."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate


class Date:
    """Gives the value for now (RFC 9110 §6.6.1), made once a second.

    :param wall_clock: the time in seconds since the epoch.
    """

    __slots__ = ("_second", "_text", "_wall_clock")

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._second = -1
        self._text = b""

    def __call__(self) -> bytes:
        """The value for now."""
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True).encode("ascii")
        return self._text
