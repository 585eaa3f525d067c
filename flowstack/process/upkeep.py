"""What one process of a service does for the ledger beside serving: its index, and what has become old."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from flowstack.config import Ledger
from flowstack.files import read_regular
from flowstack.ledger.files import journal_path, lag_path, prepare, prune
from flowstack.ledger.open_work import open_path, prune_open
from flowstack.process.indexing import IndexerService
from flowstack.process.spawn import worker_environ

log = Logger()

PRUNE_SECONDS = 3600.0

MOST_LAG = 4096
"""Bytes of what the indexer says of its lag."""


class Upkeep:
    """Keeps the index up to date, and removes what the operator does not keep.

    :param state: with the ledger.
    :param settings: whether there is an index, and what is kept.
    :raises SystemExit: the ledger's directory cannot be made; the text says why.
    """

    def __init__(self, reactor: Any, state: Path, settings: Ledger) -> None:
        directory = journal_path(state)
        try:
            prepare(directory)
        except OSError as error:
            sys.exit(f"[server] state: the ledger's directory {directory} cannot be made: {error.strerror}.")
        self._reactor = reactor
        self._state = state
        self._settings = settings
        self.indexer = IndexerService(reactor, state, worker_environ(os.environ)) if settings.index else None
        self._prune = LoopingCall(self._in_thread)
        self._prune.clock = reactor

    def start(self) -> None:
        """Begin; to be called when the reactor runs."""
        if self.indexer is not None:
            self.indexer.start()
        self._prune.start(PRUNE_SECONDS).addErrback(lambda failure: log.failure("nothing is pruned", failure))

    def stop(self) -> Any:
        """End; fires when the indexer is gone."""
        if self._prune.running:
            self._prune.stop()
        return self.indexer.stop() if self.indexer is not None else None

    def lag(self) -> float:
        """Bytes of the journal that are not in the index yet; NaN where there is no index, or it does not say."""
        try:
            return float(orjson.loads(read_regular(lag_path(self._state), MOST_LAG)[0])["lag_bytes"])
        except (OSError, ValueError, TypeError, KeyError):
            return nan

    def _in_thread(self) -> Deferred[None]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._remove, datetime.now(UTC))

    def _remove(self, now: datetime) -> None:
        prune(journal_path(self._state), now.date(), self._settings.retention_days)
        prune_open(open_path(self._state), now.timestamp())
        shutil.rmtree(self._state / "charged", ignore_errors=True)  # of versions that charged who looked first
