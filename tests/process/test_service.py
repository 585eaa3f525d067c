"""A process's parts: in which order they start and stop, and what becomes of a start that fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from flowstack.config import load
from flowstack.metrics.segment import Segment
from flowstack.process.service import Part, Process, StartFailed


class Reactor(Clock):
    """Time, and a reactor that is about to run."""

    def __init__(self) -> None:
        super().__init__()
        self.when_running: list[Any] = []

    def callWhenRunning(self, call: Any, *arguments: Any) -> None:
        self.when_running.append(call)


class House(Process):
    """A process that does nothing but start and stop."""

    fault: str | None = None
    forced = 0

    def started(self) -> None:
        if self.fault:
            raise SystemExit(self.fault)

    def segments(self) -> list[Segment]:
        return []

    def processes(self) -> Mapping[str, int]:
        return {}

    def reload(self) -> Deferred[Any]:
        return succeed(None)

    def cut(self) -> None:
        self.forced += 1

    def unready(self) -> str | None:
        return None


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    (tmp_path / "keys").touch(0o600)
    segment = Segment.create()

    def make(config: str = "") -> House:
        (tmp_path / "config").write_text(config)
        settings = load(tmp_path / "config", {"keys": str(tmp_path / "keys")})
        return House(settings, Reactor(), False, segment)

    yield make
    segment.close()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_parts_start_in_order_and_stop_in_the_opposite_one_each_after_the_one_before(make: Any) -> None:
    house = make()
    calls: list[str] = []
    held: Deferred[None] = Deferred()
    for name in ("ledger", "public", "reconciler"):

        def stop(name: str = name) -> Any:
            calls.append(f"-{name}")
            return held if name == "public" else None

        house.add(Part(lambda name=name: calls.append(f"+{name}"), stop))  # type: ignore[misc]
    house.privilegedStartService()
    house.startService()
    assert calls == ["+ledger", "+public", "+reconciler"]
    done = house.stopService()
    assert house.lifecycle.draining
    assert calls[3:] == ["-reconciler", "-public"]
    assert not done.called
    held.callback(None)
    assert calls[5:] == ["-ledger"]
    assert done.called
    assert house.reactor.getDelayedCalls() == []


def test_a_part_that_fails_to_stop_is_logged_and_the_others_stop_all_the_same(make: Any, logged: list[str]) -> None:
    house = make()
    calls: list[str] = []
    house.add(Part(stop=lambda: calls.append("first")))
    house.add(Part(stop=lambda: 1 / 0))
    house.startService()
    assert house.stopService().called
    assert calls == ["first"]
    assert "a part of the service did not stop cleanly" in logged


@pytest.mark.parametrize("forced", [False, True])
def test_before_the_drain_all_parts_go_on_until_its_time_or_a_second_signal(make: Any, forced: bool) -> None:
    house = make("[timeouts]\npre_drain = 5\n")
    calls: list[str] = []
    house.add(Part(stop=lambda: calls.append("stopped")))
    house.startService()
    done = house.stopService()
    house.reactor.advance(4.9)
    assert house.lifecycle.draining
    assert (calls, done.called) == ([], False)
    if forced:
        house.force_stop()
    else:
        house.reactor.advance(0.2)
    assert (calls, done.called, house.forced) == (["stopped"], True, int(forced))
    assert house.reactor.getDelayedCalls() == []


class Held:
    """A listener that keeps a name."""

    released = 0

    def release(self) -> None:
        self.released += 1


def test_a_start_that_fails_gives_names_up_and_ends_with_its_reason(make: Any) -> None:
    house = make()
    house.fault, held = "no worker could serve", Held()
    house.listeners.append(held)
    with pytest.raises(SystemExit, match="no worker could serve"):
        house.startService()
    assert held.released == 1


def test_a_daemon_that_cannot_start_tells_who_started_it_and_its_log(make: Any, logged: list[str]) -> None:
    house = make()
    house.fault = "no worker could serve"
    house._made_by = os.getpid() + 1  # the process in the foreground
    with pytest.raises(StartFailed, match="no worker could serve"):
        house.startService()
    assert "no worker could serve" in logged
