"""The journal: the ledger's rows on disk, each written at once, before its client hears the end of the answer."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.config.settings import Ledger
from flowstack.ledger.files import OpenFile, open_file
from flowstack.util import Throttle

log = Logger()

TICK_SECONDS = 1.0
"""How often what waits is tried again, the file is looked after, and the policy ``second`` syncs."""

SHOUT_SECONDS = 60.0
"""How often a failure that lasts, or comes again and again, is told of."""

_DAY = 86400.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What leaves the file as good as it was; after any other error another one is opened."""


class Journal:
    """Appends lines to ``<directory>/<UTC day>.w<worker>[.<part>].jsonl`` by unbuffered writes.

    Each line is written at once; or, where the transports keep what they write until the loop's turn ends, those of
    one turn are, by one write, before any of it goes out. A write to a file of ext4 costs 15 to 20 µs where other
    things are done between one and the next.

    Nothing here raises, or waits for more than one write (and under the policy ``row`` one sync). While lines cannot
    be written they wait in order, up to ``queue_bytes``; beyond that they are lost, counted, and told of.

    Day and size of the file are looked at once a second, so that a file may get a second's lines too many.

    :param directory: as :func:`flowstack.ledger.files.prepare` made it; made again should it vanish.
    :param worker: the index of this process among the workers, from 0.
    :param wall: UTC Unix seconds; says which day it is.
    :param defer_to_thread: runs a function in a thread; for the syncs of the policy ``second``.
    :param before_writes: has a function called before anything more is written to a connection; None: no line waits.
    :ivar accepting: False while lines cannot be written and the operator wants no request without a row.
    :ivar failing: whether lines cannot be written.
    :ivar waiting: bytes of lines that wait to be written.
    :ivar lost: lines dropped because they could not be written.
    """

    def __init__(
        self,
        directory: Path,
        worker: int,
        settings: Ledger,
        clock: IReactorTime,
        wall: Callable[[], float],
        defer_to_thread: Callable[[Callable[[], None]], Deferred[Any]],
        before_writes: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._directory = directory
        self._worker = worker
        self._settings = settings
        self._sync_each = settings.fsync == "row"
        self._clock = clock
        self._wall = wall
        self._defer_to_thread = defer_to_thread
        self._before_writes = before_writes
        self._turn: list[bytes] = []  # lines of the loop's turn, which are written before it writes
        self._file: OpenFile | None = None
        self._descriptor = -1
        self._day_starts = self._day_ends = 0.0
        self._needs_empty = False  # nothing can be added to the last file, or a line in it stays without its end
        self._seen = 0  # bytes of whole lines in the file when it was last seen in its place
        self._synced = -1  # bytes in the file when it was last synced
        self._syncing = False
        self._leaving: list[int] = []  # files that are no longer written, to be synced in a thread and closed
        self._queue: deque[bytes] = deque()
        self._begun = 0  # bytes of the first line that waits which are in the file already
        self._waited = self._lost_before = 0  # of the failure that lasts: lines that had to wait; lost when it began
        self._throttle = Throttle(clock.seconds, SHOUT_SECONDS)
        self._stopped = False
        self.accepting = True
        self.failing = False
        self.waiting = 0
        self.lost = 0
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def start(self) -> None:
        """Open the day's file. Where that fails rows wait: no worker that is started again shall end for it."""
        self._guarded(self._open)
        self._loop.start(TICK_SECONDS, now=False)

    def stop(self) -> None:
        """Write what waits, sync, and close; what cannot be written is counted as lost."""
        if self._stopped:
            return
        self._write_turn()
        self._stopped = True
        if self._loop.running:
            self._loop.stop()
        if self._queue:
            self._look_after()
        if self._settings.fsync != "never":
            self._sync()
        if self._queue:
            count = len(self._queue)
            self.lost += count
            log.error(
                "the journal could not be written to its end: {count} rows that waited are lost, {lost} in all",
                count=count,
                lost=self.lost,
            )
            self._queue.clear()
            self.waiting = 0
        self._close()
        if not self._syncing:
            while self._leaving:
                os.close(self._leaving.pop())

    def record_line(self, line: bytes) -> None:
        """Append a line, which ends in its newline."""
        turn = self._turn
        turn.append(line)
        if self._before_writes is None or self._stopped:
            self._write_turn()
        elif len(turn) == 1:
            self._before_writes(self._write_turn)

    def flush(self) -> None:
        """Write the lines of this turn now. Never raises."""
        self._write_turn()

    def _write_turn(self) -> None:
        """Write the lines of this turn; what cannot be written waits. Never raises."""
        lines, self._turn = self._turn, []
        if not lines:
            return
        if self._queue or self._descriptor < 0:
            for line in lines:
                self._wait(line)
            return
        data = lines[0] if len(lines) == 1 else b"".join(lines)
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            for line in lines:
                self._wait(line)
            self._failed(error)
            return
        if written == len(data):
            if self._sync_each:
                self._sync()
            return
        for line in lines:
            if not self._queue and written >= len(line):
                written -= len(line)
            elif not self._queue and written:
                self._begun = written
                self._queue.append(line)  # whether there is room or not: a line that was begun is ended
                self.waiting += len(line)
                self._waited += 1
            else:
                self._wait(line)
        self._guarded(self._write_waiting)

    def _wait(self, line: bytes) -> None:
        if not self._stopped and self.waiting + len(line) <= self._settings.queue_bytes:
            self._queue.append(line)
            self.waiting += len(line)
            self._waited += 1
            return
        self.lost += 1
        self._tell("ROWS ARE LOST: the journal cannot be written, and the queue_bytes of [ledger] are full")

    def _write_waiting(self) -> None:
        """Write what waits, in order.

        :raises OSError: what is left of it cannot be written now.
        """
        if not self._queue:
            return
        while self._queue:
            line = self._queue[0]
            # After a short write the next one goes on, or says what is the matter.
            self._begun += os.write(self._descriptor, line[self._begun :])
            if self._begun == len(line):
                self._begun = 0
                self.waiting -= len(line)
                self._queue.popleft()
        if self._sync_each:
            self._sync()

    # Once a second.

    def _tick(self) -> None:
        self._look_after()
        if self._settings.fsync == "second" and not self._syncing:
            self._sync_in_thread()

    def _look_after(self) -> None:
        """Have the right file open, and write what waits."""
        self._write_turn()
        self._guarded(self._check)
        if self._descriptor < 0:
            self._guarded(self._open)
        elif not self._begun and self._due():
            try:
                self._open()
            except OSError as error:
                self._tell("the journal cannot begin another file, and continues in the old one", error)
        if self._descriptor >= 0:
            self._guarded(self._write_waiting)
        if self.failing and not self._queue and self._descriptor >= 0:
            self._recovered()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self._failed(error)

    def _check(self) -> None:
        """See whether the file is still where its name leads to, and leave it where it is not.

        :raises OSError: that cannot be seen.
        """
        file = self._file
        if file is None:
            return
        if file.in_place():
            self._seen = file.size() - self._begun
            return
        log.error("the journal's file was moved or removed while it was written: {path}", path=str(file.path))
        if file.removed():
            self._take_back(file)
        self._leave()

    def _take_back(self, file: OpenFile) -> None:
        """Have those lines wait again that came into a removed file after it was last seen."""
        try:
            lines = file.since(min(self._seen, file.size())).split(b"\n")[:-1]
        except OSError as error:
            log.error("the rows of the last second may be lost with it: {error}", error=str(error))
            return
        self._queue.extendleft(line + b"\n" for line in reversed(lines))
        self._waited += len(lines)
        self.waiting += sum(map(len, lines)) + len(lines)

    def _due(self) -> bool:
        """Whether another day has begun, or the file has its size."""
        if not self._day_starts <= self._wall() < self._day_ends:
            return True
        return self._file is not None and self._file.size() >= self._settings.max_file_bytes

    def _open(self) -> None:
        """Go on in the file that it is time for.

        :raises OSError: it cannot be opened; the old one, if any, stays open.
        """
        now = self._wall()
        starts = now - now % _DAY
        file = open_file(
            self._directory,
            datetime.fromtimestamp(starts, UTC).strftime("%Y-%m-%d"),
            self._worker,
            self._settings.max_file_bytes,
            empty=self._needs_empty,
            durable=self._settings.fsync != "never",
        )
        self._close()
        self._file, self._descriptor = file, file.descriptor
        self._day_starts, self._day_ends = starts, starts + _DAY
        self._seen, self._synced = file.size(), -1
        self._needs_empty = False

    def _leave(self) -> None:
        """Write no more to this file. A line that was begun in it is written whole to the next one."""
        if self._begun:
            self._begun = 0
            self._needs_empty = True
        self._close()

    def _close(self) -> None:
        file = self._file
        if file is None:
            return
        self._file, self._descriptor = None, -1
        # What a thread syncs is closed when it has ended: its number might be another's. To copy it for the thread
        # would take a descriptor when there may be none left.
        self._leaving.append(file.descriptor)
        if not self._syncing and not self._stopped:
            self._close_leaving()

    # What becomes of failures.

    def _failed(self, error: OSError) -> None:
        if error.errno not in _FULL:
            self._needs_empty = self._needs_empty or error.errno == errno.EFBIG
            self._leave()
        if not self.failing:
            self.failing = True
            self.accepting = self._settings.on_ledger_failure != "refuse"
        self._tell("the journal cannot be written, and rows wait", error)

    def _recovered(self) -> None:
        self.failing = False
        self.accepting = True
        log.warn(
            "the journal is written again: {waited} rows that waited are in it, {lost} were lost",
            waited=self._waited,
            lost=self.lost - self._lost_before,
        )
        self._waited, self._lost_before = 0, self.lost

    def _tell(self, what: str, error: OSError | None = None) -> None:
        """Log what is the matter, unless that was just done."""
        if not self._throttle.ready(what):
            return
        log.error(
            "{what} ({directory}: {error}); {waiting} bytes of rows wait, {lost} rows were lost since the start",
            what=what,
            directory=str(self._directory),
            error="no room" if error is None else error.strerror or str(error),
            waiting=self.waiting,
            lost=self.lost,
        )

    # Syncs.

    def _sync(self) -> None:
        if self._descriptor >= 0:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._sync_failed(error)

    def _sync_in_thread(self) -> None:
        """Sync what was written since the last time, while the loop goes on."""
        if self._file is None:
            return
        try:
            size = self._file.size()
        except OSError as error:
            self._sync_failed(error)
            return
        if size != self._synced:
            self._syncing, self._synced = True, size
            self._defer_to_thread(partial(os.fdatasync, self._descriptor)).addBoth(self._sync_ended)

    def _close_leaving(self) -> None:
        """Close the files that are left, one after the other."""
        descriptor = self._leaving.pop(0)
        if self._settings.fsync == "second" and not self._stopped:
            self._syncing = True
            self._defer_to_thread(partial(_sync_and_close, descriptor)).addBoth(self._sync_ended)
        else:
            os.close(descriptor)

    def _sync_ended(self, result: Any) -> None:
        self._syncing = False
        if self._leaving:
            self._close_leaving()
        if isinstance(result, Failure):
            self._synced = -1
            error = result.value
            self._sync_failed(error if isinstance(error, OSError) else OSError(str(error)))

    def _sync_failed(self, error: OSError) -> None:
        self._tell("the journal cannot be synced: rows may be lost if this machine fails", error)


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
