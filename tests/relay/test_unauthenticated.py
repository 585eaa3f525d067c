"""What the log says of requests without a valid key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from flowstack.relay.unauthenticated import LOG_SECONDS, Unauthenticated


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event) or "")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_the_unauthenticated_are_logged_now_and_then_and_the_last_ones_too(logged: list[str]) -> None:
    clock, counted = Clock(), list[str]()
    unauthenticated = Unauthenticated(clock.seconds, counted.append)
    for number in range(5):
        unauthenticated.note("invalid_flowstack_key", f"192.0.2.{number}")
    clock.advance(LOG_SECONDS - 0.1)
    unauthenticated.tell()
    assert [line for line in logged if "without a valid key" in line] == [
        "refused without a valid key: invalid_flowstack_key 1, the last from 192.0.2.0"
    ]
    clock.advance(0.1)
    unauthenticated.tell()
    unauthenticated.tell()
    assert [line for line in logged if "without a valid key" in line][1:] == [
        "refused without a valid key: invalid_flowstack_key 4, the last from 192.0.2.4"
    ]
    unauthenticated.note("missing_flowstack_key", "192.0.2.9")
    unauthenticated.tell(at_once=True)
    assert "missing_flowstack_key 1, the last from 192.0.2.9" in logged[-1]
    assert counted == ["invalid_flowstack_key"] * 5 + ["missing_flowstack_key"]
