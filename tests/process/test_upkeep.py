"""The indexer as the service runs it: the real process, killed, started again, ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from flowstack.config import Ledger, Settings
from flowstack.process.supervisor import Supervisor
from flowstack.process.upkeep import Upkeep
from tests.ledger.journals import rows
from tests.ledger.test_index import TWO, Place


@pytest_twisted.inlineCallbacks
def test_the_real_indexer_runs_is_killed_runs_again_and_stops(tmp_path: Path) -> Any:
    from twisted.internet import reactor

    place = Place(tmp_path)
    place.write(TWO, rows(20))
    upkeep = Upkeep(reactor, tmp_path, Settings())
    (supervisor,) = (child for child in upkeep if isinstance(child, Supervisor))
    (indexer,) = supervisor.children
    upkeep.startService()

    def taken(count: int) -> bool:
        try:
            return place.has(rows(20)[:count])
        except Exception:
            return False

    for _ in range(600):
        if taken(20):
            break
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]
    first = indexer.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    for _ in range(600):
        if indexer.pid not in (None, first):
            break
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]
    assert indexer.pid not in (None, first)
    for _ in range(600):
        if upkeep.lag() == 0:  # which the one that was killed may not have written
            break
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]
    yield upkeep.stopService()
    assert not indexer.running
    assert taken(20)
    assert upkeep.lag() == 0


def test_without_an_index_there_is_no_indexer(tmp_path: Path) -> None:
    from twisted.internet.task import Clock

    upkeep = Upkeep(Clock(), tmp_path, Settings(ledger=Ledger(index=False)))
    assert not [child for child in upkeep if isinstance(child, Supervisor)]
    assert upkeep.lag() != upkeep.lag()
