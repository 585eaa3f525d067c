"""Has the ledger's index kept up to date and its rows sent to PostgreSQL, and removes old files; in one process of a
service."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Sequence
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

from flowstack.config import Settings
from flowstack.files import read_regular
from flowstack.keys.client_secrets import prune_secrets, secrets_path
from flowstack.ledger.files import journal_path, lag_path, prepare, prune
from flowstack.ledger.open_work import open_path, prune_open
from flowstack.metrics.families import LEDGER_LAG, OVERDUE, SHIP_FAILURES, SHIPPED, SHIPPED_AT, UNSHIPPED
from flowstack.process.shipped import Shipped, read_shipped
from flowstack.process.spawn import child_environ
from flowstack.process.supervisor import ChildSpec, Supervisor, backoff

log = Logger()

PRUNE_SECONDS = 3600.0

MAX_LAG_BYTES = 4096
"""The longest file in which the indexer reports its lag."""


INDEXER = (sys.executable, "-m", "flowstack.process.indexer")
SHIPPER = (sys.executable, "-m", "flowstack.process.shipper")

KILL_TIME = 5.0
"""Seconds in which such a process may end; killed it does no harm."""


class Upkeep(MultiService):
    """Runs the indexer, the shipper, and the removal of what the operator does not keep.

    :param state: with the ledger.
    :param settings: whether there is an index, or a PostgreSQL, and what is kept.
    :raises SystemExit: the ledger's directory cannot be made; the text says why.
    """

    def __init__(self, reactor: Any, state: Path, settings: Settings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        directory = journal_path(state)
        try:
            prepare(directory)
        except OSError as error:
            sys.exit(f"[server] state: the ledger's directory {directory} cannot be made: {error.strerror}.")
        self._reactor = reactor
        self._state = state
        self._settings = settings
        self._shipped = Shipped()  # as it was said last
        self._overdue = 0
        self._looks = 0
        self._made_at = time.time()
        if settings.ledger.index:
            self._run("the indexer", [*INDEXER, str(state)])
        if settings.shared.postgres is not None:
            self._run("the shipper", SHIPPER, pickle.dumps(settings))
        prune_hourly = TimerService(PRUNE_SECONDS, self._in_thread)
        prune_hourly.clock = reactor
        prune_hourly.setServiceParent(self)

    def _run(self, name: str, command: Sequence[str], greeting: bytes = b"") -> None:
        child = ChildSpec(
            name=name,
            command=command,
            environ=child_environ(os.environ),
            greeting=lambda: greeting,
            backoff=backoff(1.0, 60.0),
            steady=60.0,
        )
        Supervisor(self._reactor, [child], KILL_TIME).setServiceParent(self)  # type: ignore[no-untyped-call]

    def watch(self, watch: Callable[..., None]) -> None:
        """Have the metrics tell how far all this is.

        :param watch: of :class:`flowstack.metrics.recorder.Recorder`.
        """
        watch(LEDGER_LAG, self.lag)
        if self._settings.shared.postgres is None:
            return
        before = read_shipped(self._state) or Shipped()
        watch(UNSHIPPED, lambda: _known(self._read_shipped().lag_bytes))
        watch(SHIPPED, lambda: self._shipped.rows - before.rows)
        watch(SHIPPED_AT, lambda: _known(self._shipped.succeeded_at))
        watch(SHIP_FAILURES, lambda: self._shipped.failures - before.failures)
        watch(OVERDUE, lambda: self._overdue)

    def _read_shipped(self) -> Shipped:
        self._shipped = read_shipped(self._state) or self._shipped
        return self._shipped

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
        self._prune(now)
        prune_open(open_path(self._state), now.timestamp())
        prune_secrets(secrets_path(self._state), now.timestamp())
        shutil.rmtree(self._state / "charged", ignore_errors=True)  # of versions that charged who looked first

    def _prune(self, now: datetime) -> None:
        """Remove old journal files, but none of which a row may not be in PostgreSQL."""
        journal, days = journal_path(self._state), self._settings.ledger.retention_days
        if self._settings.shared.postgres is None:
            prune(journal, now.date(), days)
            return
        said, first, kept = read_shipped(self._state) or Shipped(), self._looks == 0, []
        self._looks += 1
        # What an earlier shipper said may have been of another database, or of one that was restored from a copy.
        fresh = said.succeeded_at is not None and said.succeeded_at >= self._made_at
        if first and not fresh:
            return
        shipped = said.files if fresh else {}

        def may_go(path: Path) -> bool:
            try:
                goes = shipped.get(path.name) == path.stat().st_size
            except FileNotFoundError:
                goes = True
            kept.extend([] if goes else [path.name])
            return goes

        prune(journal, now.date(), days, may_go)
        self._overdue = len(kept)
        if kept:
            log.error(
                "{count} journal files are older than retention_days and stay, as it is not known that PostgreSQL has "
                "all their rows; the oldest is {oldest}", count=len(kept), oldest=kept[0],
            )  # fmt: skip


def _known(value: float | None) -> float:
    return nan if value is None else float(value)
