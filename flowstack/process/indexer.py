"""``python -m flowstack.process.indexer <state>``: keeps the ledger's index up to date. The service starts it.

No worker waits for it. It ends when its standard input does, or on SIGTERM. Killed at any moment it leaves nothing that
the next one does not put right.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import orjson

from flowstack.files import replace
from flowstack.ledger.files import journal_path, lag_path
from flowstack.ledger.index import BATCH_ROWS, Index, Progress, index_path
from flowstack.process.background import NICE, Background, run
from flowstack.util import instant

LOOK_SECONDS = 1.0
"""Between two looks at the journal."""

SAVE_SECONDS = 10.0
"""After which ``ledger.lag.json`` is written although nothing has changed: its age shows whether somebody looks."""


class Indexer(Background):
    """Looks at the journal each second."""

    what = "the index is not kept up to date"

    def __init__(self, state: Path, stop: int) -> None:
        super().__init__(stop)
        self._state = state
        self._index: Index | None = None
        self._saved: tuple[dict[str, object], float] = ({}, 0.0)
        self._last_row: int | None = None

    def close(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()

    def failed(self) -> None:
        """The index opens anew what it must."""

    def look(self) -> float:
        """Take over what is new."""
        if self._index is None:
            self._index = Index(index_path(self._state), journal_path(self._state))
        progress = self._index.catch_up(limit_rows=BATCH_ROWS)
        if progress.bad_lines:
            self.trouble(f"{progress.bad_lines} lines of the journal are damaged, and were skipped")
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


def main(arguments: list[str]) -> None:
    """Keep the index of a state directory up to date.

    :param arguments: the state directory.
    """
    (state,) = arguments
    run(lambda: Indexer(Path(state), 0), NICE)


if __name__ == "__main__":
    main(sys.argv[1:])
