"""Signals in, systemd's notices out: real signals to this process, with a reactor that calls at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred

from flowstack.process.lifecycle import Lifecycle
from flowstack.process.systemd import Systemd


class Reactor:
    """As much of one as is needed."""

    stopped = 0

    def callFromThread(self, function: Callable[..., None]) -> None:  # noqa: N802
        function()

    def callWhenRunning(self, function: Callable[..., None]) -> None:
        function()

    def stop(self) -> None:
        self.stopped += 1

    def callLater(self, seconds: float, function: Callable[[], None]) -> None:
        self.later.append(function)

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []


class Notices:
    """Writes down what systemd would be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)


class Scene:
    """A lifecycle that takes signals, and all that it does."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.notices = Notices()
        self.reloads: list[Deferred[Any]] = []
        self.forced = 0
        self.lifecycle = Lifecycle(self.reactor, cast(Systemd, self.notices), self._reload, self._force)

    def _reload(self) -> Deferred[Any]:
        self.reloads.append(Deferred())
        return self.reloads[-1]

    def _force(self) -> None:
        self.forced += 1


@pytest.fixture
def scene() -> Iterator[Scene]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    scene = Scene()
    scene.lifecycle.start()
    yield scene
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_readiness_names_each_listener_and_is_told_to_systemd(scene: Scene, logged: list[str]) -> None:
    scene.lifecycle.ready(["http://127.0.0.1:1", "unix:/s"], ["http://127.0.0.1:2"])
    assert logged == [
        "flowstack listening on http://127.0.0.1:1",
        "flowstack listening on unix:/s",
        "flowstack admin listening on http://127.0.0.1:2",
    ]
    assert scene.notices.told == ["ready"]


def test_who_asks_for_a_reload_is_told_when_one_is_over_that_began_after_that(scene: Scene) -> None:
    told: list[str] = []
    for name in "ab":
        scene.lifecycle.reload().addCallback(lambda _, name=name: told.append(name))
    assert len(scene.reloads) == 1
    scene.reloads[0].callback(None)
    assert told == ["a"]
    assert len(scene.reloads) == 2
    scene.reloads[1].errback(RuntimeError("the file is bad"))
    assert told == ["a", "b"]
    scene.lifecycle.drain()
    scene.lifecycle.reload().addCallback(lambda _: told.append("c"))
    assert told == ["a", "b", "c"]


def test_a_sighup_reloads_and_systemd_hears_of_its_begin_and_end(scene: Scene) -> None:
    send(signal.SIGHUP)
    assert len(scene.reloads) == 1
    assert scene.notices.told == ["reloading"]
    scene.reloads[0].callback(None)
    assert scene.notices.told == ["reloading", "ready"]
    send(signal.SIGHUP)
    assert len(scene.reloads) == 2


def test_a_sighup_during_a_reload_is_not_lost(scene: Scene) -> None:
    send(signal.SIGHUP)
    send(signal.SIGHUP)
    send(signal.SIGHUP)
    assert len(scene.reloads) == 1
    scene.reloads[0].callback(None)
    assert len(scene.reloads) == 2
    scene.reloads[1].callback(None)
    assert len(scene.reloads) == 2
    assert scene.notices.told == ["reloading", "ready"] * 2


def test_a_reload_that_fails_is_logged_and_the_next_one_is_carried_out(scene: Scene, logged: list[str]) -> None:
    send(signal.SIGHUP)
    scene.reloads[0].errback(RuntimeError("a bug"))
    assert logged == ["the reload failed"]
    assert scene.notices.told == ["reloading", "ready"]
    send(signal.SIGHUP)
    assert len(scene.reloads) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_to_end_stops_the_reactor_and_the_second_forces_once(
    scene: Scene, number: signal.Signals
) -> None:
    send(number)
    assert (scene.reactor.stopped, scene.forced) == (1, 0)
    scene.lifecycle.drain()
    assert scene.notices.told == ["stopping"]
    send(number)
    assert (scene.reactor.stopped, scene.forced) == (1, 1)
    send(number)
    assert (scene.reactor.stopped, scene.forced) == (1, 1)


def test_nothing_is_reloaded_while_draining(scene: Scene) -> None:
    scene.lifecycle.drain()
    send(signal.SIGHUP)
    assert scene.reloads == []
    assert scene.notices.told == ["stopping"]


def test_systemd_does_not_hear_of_readiness_once_it_heard_of_the_end(scene: Scene, logged: list[str]) -> None:
    send(signal.SIGHUP)
    send(signal.SIGHUP)
    scene.lifecycle.drain()
    scene.lifecycle.ready(["http://127.0.0.1:1"], [])
    scene.reloads[0].callback(None)
    assert len(scene.reloads) == 1
    assert scene.notices.told == ["reloading", "stopping"]
    assert logged == []


def test_two_terms_before_the_drain_begins_stop_once_and_force_once_it_has_begun(scene: Scene) -> None:
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert (scene.reactor.stopped, scene.forced) == (1, 0)
    scene.lifecycle.drain()
    for function in scene.reactor.later:
        function()
    assert (scene.reactor.stopped, scene.forced) == (1, 1)
