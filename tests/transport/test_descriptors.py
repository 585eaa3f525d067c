"""Clients that cannot be taken for want of descriptors are told of in one line now and then."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from flowstack.transport.descriptors import TELL_SECONDS, Descriptors
from tests.ledger.samples import told


class Full:
    """A process that may open so many files more, and no others."""

    def __init__(self) -> None:
        self.fault: int | None = errno.EMFILE

    def open(self) -> None:
        if self.fault is not None:
            raise OSError(self.fault, "no")


class Listening:
    """A listening socket at which clients wait, none of whom can be taken."""

    def __init__(self, *faults: int, clients: int = 0) -> None:
        self._faults = list(faults)
        self._clients = clients

    def accept(self) -> Any:
        if self._faults:
            raise OSError(self._faults.pop(0), "no")
        if self._clients:
            self._clients -= 1
            return socket.socketpair()[0], ("192.0.2.7", 1234)
        raise OSError(errno.EAGAIN, "later")

    def fileno(self) -> int:
        return -1


@pytest.fixture
def clock() -> Clock:
    return Clock()


def port_of(descriptors: Descriptors) -> Any:
    port = tcp.Port(0, Factory(), reactor=object())  # type: ignore[arg-type]
    port.numberAccepts = 100  # type: ignore[attr-defined]
    descriptors.guard(port)
    return port


def knock(port: Any, *faults: int, clients: int = 0) -> None:
    tcp._reservedFD.reserve()  # type: ignore[no-untyped-call]
    port.socket = Listening(*faults, clients=clients)
    port.numberAccepts = 100
    port.doRead()


def test_a_port_that_turns_thousands_away_has_one_line_in_ten_seconds_with_the_limit_and_the_cure(clock: Clock) -> None:
    descriptors = Descriptors(clock)
    port = port_of(descriptors)
    with told() as texts:
        for _ in range(50):
            knock(port, errno.EMFILE, clients=90)
        clock.advance(TELL_SECONDS)
        knock(port, errno.EMFILE, clients=7)
    first, second = texts
    assert first.startswith("error: CLIENTS ARE TURNED AWAY: all ")
    assert "descriptors that this process may have are open; raise LimitNOFILE= in the unit" in first
    assert f"{50 * 90:d} connections were closed since" in second
    assert not any("Traceback" in text or "192.0.2.7" in text for text in texts)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (errno.ENFILE, "error: CLIENTS ARE TURNED AWAY: the machine is short of what a connection takes"),
        (errno.ENOMEM, "error: CLIENTS ARE TURNED AWAY: the machine is short of what a connection takes"),
        (errno.ENOBUFS, "error: CLIENTS ARE TURNED AWAY: the machine is short of what a connection takes"),
        (errno.ECONNABORTED, None),
        (errno.EPERM, None),
    ],
)
def test_what_the_machine_lacks_is_told_and_what_a_client_did_is_not(clock: Clock, fault: int, words: str) -> None:
    port = port_of(Descriptors(clock))
    with told() as texts:
        for _ in range(20):
            knock(port, fault)
    assert [text[: len(words)] for text in texts] == [words] if words else texts == []


def test_a_reserve_that_cannot_be_had_again_is_no_traceback(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    port = port_of(Descriptors(clock))

    def none_left() -> Any:
        raise OSError(errno.EMFILE, "no")

    monkeypatch.setattr(tcp._reservedFD, "_fileFactory", none_left)
    with told() as texts:
        tcp._reservedFD.reserve()  # type: ignore[no-untyped-call]
        for _ in range(5):
            port.socket = Listening(errno.EMFILE, clients=2)
            port.doRead()
    assert len(texts) == 1
    assert "Traceback" not in texts[0]


def test_where_nothing_says_so_a_look_once_a_second_finds_out(clock: Clock) -> None:
    full = Full()
    descriptors = Descriptors(clock, full.open)
    descriptors.start()
    with told() as texts:
        for second in range(70):
            full.fault = errno.EMFILE if second < 35 else None
            clock.advance(1)
    assert len(texts) == 4
    descriptors.stop()
    assert not clock.getDelayedCalls()
