"""Keeps the ledger's index up to date, and removes old files; in one process of a service."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any

import orjson
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from flowstack.config import Ledger
from flowstack.files import read_regular
from flowstack.keys.client_secrets import prune_secrets, secrets_path
from flowstack.ledger.files import journal_path, lag_path, prepare, prune
from flowstack.ledger.open_work import open_path, prune_open
from flowstack.process.spawn import child_environ
from flowstack.process.supervisor import ChildSpec, Supervisor, backoff

log = Logger()

PRUNE_SECONDS = 3600.0

MAX_LAG_BYTES = 4096
"""The longest file in which the indexer reports its lag."""


INDEXER = (sys.executable, "-m", "flowstack.process.indexer")

KILL_TIME = 5.0
"""Seconds in which the indexer may end; killed it does no harm."""


class Upkeep(MultiService):
    """Runs the indexer and the removal of what the operator does not keep.

    :param state: with the ledger.
    :param settings: whether there is an index, and what is kept.
    :raises SystemExit: the ledger's directory cannot be made; the text says why.
    """

    def __init__(self, reactor: Any, state: Path, settings: Ledger, command: Sequence[str] = INDEXER) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        directory = journal_path(state)
        try:
            prepare(directory)
        except OSError as error:
            sys.exit(f"[server] state: the ledger's directory {directory} cannot be made: {error.strerror}.")
        self._reactor = reactor
        self._state = state
        self._settings = settings
        if settings.index:
            indexer = ChildSpec(
                name="the indexer",
                command=[*command, str(state)],
                environ=child_environ(os.environ),
                backoff=backoff(1.0, 60.0),
                steady=60.0,
            )
            Supervisor(reactor, [indexer], KILL_TIME).setServiceParent(self)  # type: ignore[no-untyped-call]
        prune_hourly = TimerService(PRUNE_SECONDS, self._in_thread)
        prune_hourly.clock = reactor
        prune_hourly.setServiceParent(self)

    def lag(self) -> float:
        """Bytes of the journal that are not in the index yet; NaN where there is no index, or it does not say."""
        try:
            return float(orjson.loads(read_regular(lag_path(self._state), MAX_LAG_BYTES)[0])["lag_bytes"])
        except (OSError, ValueError, TypeError, KeyError):
            return nan

    def _in_thread(self) -> Deferred[None]:
        done = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._remove, datetime.now(UTC))
        return done.addErrback(lambda failure: log.failure("old files could not be removed", failure))

    def _remove(self, now: datetime) -> None:
        prune(journal_path(self._state), now.date(), self._settings.retention_days)
        prune_open(open_path(self._state), now.timestamp())
        prune_secrets(secrets_path(self._state), now.timestamp())
        shutil.rmtree(self._state / "charged", ignore_errors=True)  # of versions that charged who looked first
