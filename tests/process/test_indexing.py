"""The service's side of the indexer, on a clock; and once with the real process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from flowstack.process.indexing import BACK_OFF, LAST_SECONDS, MOST_BACK_OFF, STEADY, IndexerService
from tests.ledger.journals import rows
from tests.ledger.samples import told
from tests.ledger.test_index import TWO, Place


class Transport:
    def __init__(self) -> None:
        self.signals: list[int] = []
        self.closed = False

    def closeStdin(self) -> None:  # noqa: N802
        self.closed = True

    def signalProcess(self, number: int) -> None:  # noqa: N802
        self.signals.append(number)


class Reactor(Clock):
    """A clock that notes what is spawned."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[tuple[Any, list[str], Any]] = []
        self.failing = False

    def spawnProcess(self, protocol: Any, program: str, args: list[str], env: Any, childFDs: Any) -> Any:  # noqa: N802, N803
        if self.failing:
            raise OSError("no more processes")
        assert childFDs == {0: "w", 1: "r", 2: "r"}
        self.spawned.append((protocol, args, env))
        transport = Transport()
        protocol.makeConnection(transport)
        return transport


def end(reactor: Reactor) -> None:
    reactor.spawned[-1][0].processEnded(Failure(ProcessTerminated(1)))


def service(reactor: Reactor) -> IndexerService:
    made = IndexerService(reactor, Path("/state"), {"PATH": "/bin"})
    made.start()
    return made


def test_it_starts_the_indexer_with_the_state_directory_and_the_environment() -> None:
    reactor = Reactor()
    service(reactor)
    ((_, args, env),) = reactor.spawned
    assert args[1:] == ["-m", "flowstack.process.indexer", "/state"]
    assert env == {"PATH": "/bin"}


def test_one_that_died_is_started_again_after_a_time_that_grows_to_a_most() -> None:
    reactor = Reactor()
    service(reactor)
    waited = BACK_OFF
    for count in range(1, 12):
        with told() as texts:
            end(reactor)
        assert f"is started again in {waited:.0f} s" in texts[0]
        reactor.advance(waited - 0.01)
        assert len(reactor.spawned) == count
        reactor.advance(0.02)
        assert len(reactor.spawned) == count + 1
        waited = min(MOST_BACK_OFF, waited * 2)
    reactor.advance(STEADY)
    end(reactor)
    reactor.advance(BACK_OFF + 0.01)
    assert len(reactor.spawned) == 13


def test_a_process_that_cannot_be_made_is_tried_again() -> None:
    reactor = Reactor()
    reactor.failing = True
    made = service(reactor)
    assert not made.running
    reactor.failing = False
    reactor.advance(BACK_OFF)
    assert made.running


def test_stopping_closes_its_input_signals_it_and_kills_it_in_the_end() -> None:
    reactor = Reactor()
    made = service(reactor)
    transport: Any = reactor.spawned[0][0].transport
    done: list[Any] = []
    made.stop().addCallback(done.append)
    assert (transport.closed, transport.signals, done) == (True, [signal.SIGTERM], [])
    reactor.advance(LAST_SECONDS)
    assert transport.signals == [signal.SIGTERM, signal.SIGKILL]
    reactor.spawned[0][0].processEnded(Failure(ProcessDone(0)))
    assert done == [None]
    reactor.advance(1000)
    assert len(reactor.spawned) == 1
    assert reactor.getDelayedCalls() == []


def test_stopping_while_none_runs_is_done_at_once() -> None:
    reactor = Reactor()
    made = service(reactor)
    end(reactor)
    done: list[Any] = []
    made.stop().addCallback(done.append)
    assert done == [None]
    reactor.advance(1000)
    assert len(reactor.spawned) == 1
    assert reactor.getDelayedCalls() == []


def test_what_it_says_is_logged_line_by_line() -> None:
    reactor = Reactor()
    service(reactor)
    protocol = reactor.spawned[0][0]
    with told() as texts:
        protocol.childDataReceived(1, b"one\ntw")
        protocol.childDataReceived(2, b"err")
        protocol.childDataReceived(1, b"o\n")
    assert texts == ["info: one", "info: two"]
    with told() as texts:
        end(reactor)
    assert "info: err" in texts


@pytest_twisted.inlineCallbacks
def test_the_real_indexer_runs_is_killed_runs_again_and_stops(tmp_path: Path) -> Any:
    from twisted.internet import reactor

    place = Place(tmp_path)
    place.write(TWO, rows(20))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    made = IndexerService(reactor, tmp_path, environ)
    made.start()

    def taken(count: int) -> bool:
        try:
            return place.has(rows(20)[:count])
        except Exception:
            return False

    for _ in range(600):
        if taken(20):
            break
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]
    first = made._transport.pid
    os.kill(first, signal.SIGKILL)
    for _ in range(600):
        if made.running and made._transport.pid != first:
            break
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]
    assert made._transport.pid != first
    yield made.stop()
    assert not made.running
    assert taken(20)
