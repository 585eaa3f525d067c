"""The public listeners' end: they drain, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from flowstack.process.proxy import CLOSE_SECONDS, Public
from flowstack.process.service import Part

DRAIN = 30.0


class Site:
    """Connections that the test plays."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.busy = 0
        self.connections: set[object] = set()
        self.when_idle: Callable[[], None] = lambda: None

    def drain(self) -> None:
        self.calls.append("drain")

    def close(self) -> None:
        self.calls.append("close")

    def cut(self) -> None:
        self.calls.append("cut")


class Scene:
    """One listener, one connection with a request in flight."""

    def __init__(self, busy: int = 1) -> None:
        self.clock = Clock()
        self.site = Site()
        self.site.busy = busy
        self.site.connections = {object()} if busy else set()
        self.relay = SimpleNamespace(draining=False)
        self.public = Public(self.clock, self.site, self.relay, DRAIN)  # type: ignore[arg-type]
        listener: Any = Part(stop=lambda: self.site.calls.append("listener"))
        listener.setServiceParent(self.public)
        self.public.startService()

    def idle(self, gone: bool = True) -> None:
        self.site.busy = 0
        if gone:
            self.site.connections.clear()
        self.site.when_idle()


def test_new_work_is_refused_and_listeners_close_at_once_and_what_is_in_flight_goes_on() -> None:
    scene = Scene()
    done = scene.public.stopService()
    assert scene.relay.draining
    assert scene.site.calls == ["drain", "listener"]
    scene.clock.advance(DRAIN - 1)
    assert not done.called
    scene.idle(gone=False)
    assert scene.site.calls[2:] == ["close"]
    assert not done.called
    scene.idle()
    assert done.called
    assert scene.clock.getDelayedCalls() == []


def test_with_nothing_in_flight_it_is_over_at_once() -> None:
    scene = Scene(busy=0)
    assert scene.public.stopService().called
    assert scene.clock.getDelayedCalls() == []


@pytest.mark.parametrize("by", ["time", "order"])
def test_after_its_time_or_by_order_what_streams_is_cut(by: str) -> None:
    scene = Scene()
    scene.public.cut()  # before the drain there is nothing to cut
    done = scene.public.stopService()
    scene.clock.advance(DRAIN if by == "time" else 1)
    if by == "order":
        scene.public.cut()
    assert scene.site.calls[2:] == ["close"]
    scene.clock.advance(CLOSE_SECONDS)
    assert scene.site.calls[2:] == ["close", "cut"]
    scene.idle()
    assert done.called
    assert scene.clock.getDelayedCalls() == []
