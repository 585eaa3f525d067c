"""One structured line a request, buffered: a logger's event would cost more than the rest of the row."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from flowstack.interfaces import ILedger
from flowstack.policy.rows import Row

log = Logger()

FLUSH_SECONDS = 0.5
FLUSH_BYTES = 64 * 1024
KEEP_BYTES = 8 * 1024 * 1024
"""The most that waits while the file cannot be written; what is more is counted and dropped."""


@implementer(ILedger)
class EventLedger:
    """Writes rows as JSON lines to a file or to standard output.

    :param target: ``-`` for standard output, ``none``, or a path, which :meth:`reopen` opens anew.
    :ivar lost: rows dropped because they could not be written.
    """

    def __init__(self, target: str, clock: IReactorTime) -> None:
        self._path = None if target in ("-", "none") else Path(target)
        self._off = target == "none"
        self._descriptor = 1
        self._lines: list[bytes] = []
        self._size = 0
        self._failing = False
        self.lost = 0
        self._loop = LoopingCall(self.flush)
        self._loop.clock = clock

    def start(self) -> None:
        """Open the file and begin to flush.

        :raises OSError: the file cannot be opened for appending.
        """
        if self._path is not None:
            self._descriptor = self._open(self._path)
        self._loop.start(FLUSH_SECONDS, now=False)

    def stop(self) -> None:
        """Flush, and close."""
        if self._loop.running:
            self._loop.stop()
        self.flush()
        if self._descriptor > 2:
            os.close(self._descriptor)
            self._descriptor = 1
            self._off = True

    def reopen(self) -> None:
        """Open the file anew, after it was renamed; the old one is kept where that fails."""
        self.flush()
        if self._path is None:
            return
        try:
            descriptor = self._open(self._path)
        except OSError as error:
            log.error("the request log cannot be reopened, the old file is used on: {error}", error=str(error))
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def record(self, row: Row) -> None:
        """See :class:`flowstack.interfaces.ILedger`."""
        if self._off:
            return
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        if self._failing and self._size > KEEP_BYTES:
            self.lost += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES and not self._failing:
            self.flush()

    def flush(self) -> None:
        """Write what waits; on failure keep it, and say so once."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            if not self._failing:
                self._failing = True
                log.error("the request log cannot be written, rows wait: {error}", error=str(error))
            return
        if self._failing:
            self._failing = False
            log.warn("the request log is written again; {lost} rows were lost", lost=self.lost)
        rest = data[written:]
        self._lines = [rest] if rest else []
        self._size = len(rest)

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
