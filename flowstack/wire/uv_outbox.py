"""What a turn of the loop writes, written together at the turn's end.

uvloop sends a small piece at once. Then the kernel's TCP runs between one Python callback and the next, and the reader
that it wakes runs too where cores are shared; each of them finds what it needs gone from the caches. Reading and
thinking for all who are ready first, and writing for all of them after, costs a fifth to a quarter less CPU a request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

MOST = 16
"""Pieces that wait. At as many they go out in the middle of a turn, so that the first is not late."""

LARGE = 16 * 1024
"""A piece of so many bytes goes out at once, and what waits before it: its producer must hear when it is too much."""


class Outbox:
    """The pieces that a loop's connections have to write."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, bytes]] = deque()

    def put(self, connection: Any, data: bytes) -> None:
        """Write a piece before the turn ends, after all that was put before it.

        :param connection: a :class:`flowstack.wire.uv_transport.Connection`. It must :meth:`flush` before it does
            anything to its uvloop transport that must not overtake what it wrote.
        """
        waiting = self._waiting
        if not waiting:
            connection._loop.call_soon(self.flush)
        waiting.append((connection, data))
        if len(waiting) >= MOST or len(data) >= LARGE:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, now. May be called from within itself."""
        waiting = self._waiting
        while waiting:
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
