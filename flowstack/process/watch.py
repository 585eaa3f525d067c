"""Sees that the keystore file is another one, where nobody can send a signal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

log = Logger()

EVERY = 1.0
"""Seconds between two looks."""

Stamp = tuple[int, ...] | None
"""What tells one state of a file from another; None where there is none."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of what a path leads to, over links: of a mounted secret they change, and no file does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Watch(TimerService):
    """Has the service reload when a file is not what it was, and two looks in turn have found it the same: while it is
    being written it is left alone.

    :param path: the file's.
    :param reload: reloads; fires when that is over. It calls :meth:`taken`.
    :param in_thread: calls a function where it may block, since a file may be on another machine.
    :param clock: the reactor.
    """

    def __init__(
        self,
        path: Path,
        reload: Callable[[], Deferred[Any]],
        in_thread: Callable[[Callable[[], Stamp]], Deferred[Stamp]],
        clock: Any,
    ) -> None:
        super().__init__(EVERY, self._look)  # type: ignore[no-untyped-call]
        self.clock = clock
        self._path = path
        self._reload = reload
        self._in_thread = in_thread
        self._taken = self._last = stamp_of(path)

    def taken(self) -> None:
        """The file is about to be read, for whatever reason."""
        self._taken = stamp_of(self._path)

    def _look(self) -> Deferred[Any]:
        return self._in_thread(lambda: stamp_of(self._path)).addCallback(self._found)

    def _found(self, now: Stamp) -> Deferred[Any] | None:
        settled, self._last = now == self._last, now
        if not settled or now == self._taken:
            return None
        log.info("the keystore file has changed: reloading (watch_keys)")
        return self._reload()
