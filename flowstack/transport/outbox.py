"""What a turn of the loop writes, written together at the turn's end.

uvloop sends a small piece at once. Then the kernel's TCP runs between one Python callback and the next, and the reader
that it wakes runs too where cores are shared; each of them finds what it needs gone from the caches. Reading and
thinking for all who are ready first, and writing for all of them after, costs a fifth to a quarter less CPU a request.

What a peer must not hear of before it is in a file goes there before them, by one write: see :meth:`Outbox.before`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

MAX_WAITING: Final = 16
"""At this many waiting pieces all go out in the middle of a turn, so that the first is not late."""

LARGE: Final = 16 * 1024
"""Bytes of a piece that goes out at once, with all before it: its producer must hear when it is too much."""


class Outbox:
    """The pieces that a loop's connections have to write, and what must be done before any of them is."""

    __slots__ = ("_first", "_waiting")

    def __init__(self) -> None:
        self._first: list[Callable[[], None]] = []
        self._waiting: deque[tuple[Any, bytes]] = deque()

    def before(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        """Have something done once, before another piece is written or a connection closed, and before the turn ends.

        :param act: must not raise.
        """
        if not self._first and not self._waiting:
            loop.call_soon(self.flush)
        self._first.append(act)

    def put(self, connection: Any, data: bytes) -> None:
        """Write a piece before the turn ends, after all that was put before it.

        :param connection: a :class:`flowstack.transport.connection.Connection`. It must :meth:`flush` before it does
            anything to its uvloop transport that must not overtake what it wrote.
        """
        waiting = self._waiting
        if not waiting and not self._first:
            connection._loop.call_soon(self.flush)
        waiting.append((connection, data))
        if len(waiting) >= MAX_WAITING or len(data) >= LARGE:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, now. May be called from within itself."""
        waiting, first = self._waiting, self._first
        while waiting or first:
            while first:
                first.pop()()
            if not waiting:
                return
            connection, data = waiting.popleft()
            uv = connection._uv
            if uv is not None:
                try:
                    uv.write(data)
                except Exception:
                    connection._fault("A piece could not be written")


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """Return the one outbox of a loop."""
    outbox = _outboxes.get(loop)
    if outbox is None:
        outbox = _outboxes[loop] = Outbox()
    return outbox
