"""``python -m flowstack.process.indexer <state>``: keeps the ledger's index up to date. The service starts it.

No worker waits for it. It ends when its standard input does, or on SIGTERM. Killed at any moment it leaves nothing that
the next one does not put right.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import orjson
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver

from flowstack.files import replace
from flowstack.ledger.files import journal_path, lag_path
from flowstack.ledger.index import BATCH_ROWS, Index, Progress, index_path
from flowstack.util import Throttle, instant

log = Logger()

LOOK_SECONDS = 1.0
"""Between two looks at the journal."""

TROUBLE_SECONDS = 5.0
"""Before another try, after one that failed."""

SAY_SECONDS = 60.0
"""The same trouble is told of at most once in this time."""

SAVE_SECONDS = 10.0
"""After which ``ledger.lag.json`` is written although nothing has changed: its age shows whether somebody looks."""

NICE = 10


class Indexer:
    """Looks at the journal each second.

    :param stop: a descriptor; once it is readable and has ended, or :attr:`stopping` is set, this ends too.
    """

    def __init__(self, state: Path, stop: int) -> None:
        self._state = state
        self._stop = stop
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._index: Index | None = None
        self._throttle = Throttle(time.monotonic, SAY_SECONDS)
        self._saved: tuple[dict[str, object], float] = ({}, 0.0)
        self._last_row: int | None = None
        self.stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: end after the transaction under way."""
        self.stopping = True
        with suppress(OSError):
            os.write(self._wake, b".")

    def run(self) -> None:
        """Index until told to end. Trouble is told of, and tried again."""
        while not self.stopping:
            try:
                wait = self._look()
            except (OSError, sqlite3.Error) as error:
                self._trouble(f"the index is not kept up to date, it is tried again: {error}")
                wait = TROUBLE_SECONDS
            except Exception as error:
                self._trouble(f"the index is not kept up to date, for a fault of Flowstack's own: {error!r}")
                wait = TROUBLE_SECONDS
            self._rest(wait)
        if self._index is not None:
            self._index.close()

    def _look(self) -> float:
        if self._index is None:
            self._index = Index(index_path(self._state), journal_path(self._state))
        progress = self._index.catch_up(limit_rows=BATCH_ROWS)
        if progress.bad_lines:
            self._trouble(f"{progress.bad_lines} lines of the journal are damaged, and were skipped")
        self._save(progress)
        return 0.0 if progress.behind else LOOK_SECONDS

    def _save(self, progress: Progress) -> None:
        """Say how far the index is, in a file that is never half written."""
        self._last_row = max(filter(None, (self._last_row, progress.last_row)), default=None)
        document: dict[str, object] = {
            "lag_bytes": progress.behind,
            "torn_files": progress.torn,
            "last_row_at": None if self._last_row is None else instant(self._last_row / 1e6),
        }
        before, at = self._saved
        now = time.time()
        if document == before and 0 <= now - at < SAVE_SECONDS:
            return
        text = orjson.dumps({**document, "looked_at": instant(now)}, option=orjson.OPT_APPEND_NEWLINE)
        replace(lag_path(self._state), text, 0o640)
        self._saved = document, now

    def _trouble(self, text: str) -> None:
        if self._throttle.ready(text):
            log.error("{text}", text=text)

    def _rest(self, seconds: float) -> None:
        ready, _, _ = select.select([self._stop, self._woken], [], [], seconds)
        if self._stop in ready and not os.read(self._stop, 4096):
            self.stopping = True


def main(arguments: list[str]) -> None:
    """Keep the index of a state directory up to date.

    :param arguments: the state directory.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # from a terminal they go to the parent too, which says what to do
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    (state,) = arguments
    indexer = Indexer(Path(state), 0)
    signal.signal(signal.SIGTERM, indexer.stop)
    with suppress(OSError):
        os.nice(NICE)
    indexer.run()


if __name__ == "__main__":
    main(sys.argv[1:])
