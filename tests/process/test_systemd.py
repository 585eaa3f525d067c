"""What systemd is told, read from a real datagram socket as systemd reads it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from flowstack.process.systemd import Systemd


class Manager:
    """Systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        """The datagrams that have come since the last look."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def manager(short_path: Path) -> Iterator[Manager]:
    manager = Manager(str(short_path / "notify"))
    yield manager
    manager.socket.close()


def environment(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.socket.getsockname(), "HOME": "/root", **more}


def test_readiness_and_the_end_are_told(manager: Manager) -> None:
    systemd = Systemd(environment(manager), Clock())
    assert manager.told() == []
    systemd.ready()
    assert manager.told() == ["READY=1"]
    systemd.stopping()
    assert manager.told() == ["STOPPING=1"]


def test_a_reload_is_told_with_the_monotonic_time_in_microseconds(manager: Manager) -> None:
    # sd_notify(3): without MONOTONIC_USEC= a Type=notify-reload unit takes no notice.
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Systemd(environment(manager), Clock()).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    (notice,) = manager.told()
    first, second = notice.split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_an_abstract_socket_is_told_too() -> None:
    name = f"flowstack-test-{os.getpid()}"
    manager = Manager("\0" + name)
    Systemd({"NOTIFY_SOCKET": "@" + name}, Clock()).ready()
    assert manager.told() == ["READY=1"]
    manager.socket.close()


def test_the_watchdog_is_fed_twice_in_each_interval_while_the_process_is_healthy(manager: Manager) -> None:
    clock, healthy = Clock(), [True]
    systemd = Systemd(environment(manager, WATCHDOG_USEC="10000000", WATCHDOG_PID=str(os.getpid())), clock)
    systemd.watch(lambda: healthy[0])
    assert manager.told() == ["WATCHDOG=1"]
    clock.advance(4.9)
    assert manager.told() == []
    clock.advance(0.1)
    assert manager.told() == ["WATCHDOG=1"]
    healthy[0] = False
    clock.pump([5, 5, 5])
    assert manager.told() == []
    healthy[0] = True
    clock.advance(5)
    assert manager.told() == ["WATCHDOG=1"]
    systemd.unwatch()
    clock.pump([5, 5])
    assert manager.told() == []
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "no"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}], ids=str
)
def test_a_watchdog_that_is_not_asked_for_or_is_another_process_s_is_not_fed(
    manager: Manager, watchdog: dict[str, str]
) -> None:
    clock = Clock()
    systemd = Systemd(environment(manager, **watchdog), clock)
    systemd.watch(lambda: True)
    assert manager.told() == []
    assert clock.getDelayedCalls() == []
    systemd.unwatch()


def test_no_child_finds_in_the_environment_what_was_meant_for_this_process(manager: Manager) -> None:
    environ = environment(manager, WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getpid()))
    Systemd(environ, Clock()).ready()
    assert environ == {"HOME": "/root"}
    assert manager.told() == ["READY=1"]


def test_without_systemd_nothing_happens() -> None:
    clock = Clock()
    systemd = Systemd({"WATCHDOG_USEC": "1000000"}, clock)
    for tell in (systemd.ready, systemd.reloading, systemd.stopping, systemd.unwatch):
        tell()
    systemd.watch(lambda: True)
    assert clock.getDelayedCalls() == []


def test_a_manager_that_is_gone_does_not_end_the_process(short_path: Path) -> None:
    Systemd({"NOTIFY_SOCKET": str(short_path / "nobody")}, Clock()).ready()
