"""Connections that a proxy makes for a client, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from flowstack.addresses import Networks
from flowstack.http.proxy_protocol import SIGNATURE
from flowstack.server.proxied import LOG_SECONDS, ProxiedConnection, Proxies
from flowstack.server.request import Request
from flowstack.server.site import Site
from tests.harness import MAX_HEAD, Listener, Transport, reply

HEADER = b"PROXY TCP4 203.0.113.7 192.0.2.9 56324 443\r\n"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
ASKING = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PEER = "192.0.2.7"
"""As the harness's transport says."""


class Where:
    """Tells the client where it is."""

    def render(self, request: Any) -> None:
        assert isinstance(request, Request)
        reply(request, request.channel.client_address.encode())


class Front(Listener):
    """A site whose connections begin with a PROXY header."""

    def __init__(self, *trusted: str) -> None:
        super().__init__(Where())
        self.proxies = Proxies(Networks(trusted), self.turns.clock.seconds)
        channel = partial(ProxiedConnection, self.proxies)
        self.site = Site(Where(), self.turns.ticker, self.turns.timeouts, self._refuse, MAX_HEAD, channel)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(f"{event['log_level'].name} {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def said(client: Transport) -> bytes:
    return client.take().rpartition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(("header", "address"), [(HEADER, b"203.0.113.7"), (LOCAL, PEER.encode())])
def test_the_header_may_be_cut_anywhere(header: bytes, address: bytes) -> None:
    whole = header + ASKING
    for cut in range(len(whole) + 1):
        client = Front(PEER).connect()
        for piece in (whole[:cut], whole[cut:]):
            if piece:
                client.send(piece)
        assert said(client) == address, cut
    client = Front(PEER).connect()
    for at in range(len(whole)):
        client.send(whole[at : at + 1])
    assert said(client) == address


def test_a_second_header_is_no_request() -> None:
    client = Front(PEER).connect()
    client.send(HEADER + HEADER + ASKING)
    assert client.take().startswith(b"HTTP/1.1 400 ")


def test_the_address_stays_for_all_requests() -> None:
    client = Front(PEER).connect()
    client.send(HEADER + ASKING)
    assert said(client) == b"203.0.113.7"
    client.send(ASKING)
    assert said(client) == b"203.0.113.7"


@pytest.mark.parametrize("data", [ASKING, b"\x16\x03\x01", b"PROXY TCP4 here there 1 2\r\n" + ASKING])
def test_what_is_no_header_is_cut_without_a_word(data: bytes) -> None:
    client = Front(PEER).connect()
    client.send(data)
    client.turns.settle()
    assert (client.peer_saw, bytes(client.got)) == ("reset", b"")


def test_a_header_that_does_not_come_to_its_end_is_waited_for_as_long_as_a_request_s_head() -> None:
    front = Front(PEER)
    client = front.connect()
    client.send(HEADER[:-1])
    front.turns.fires(front.turns.timeouts.request_head, lambda: client.closed)


def test_a_connection_from_elsewhere_is_cut_before_it_says_anything() -> None:
    for trusted in ((), ("198.51.100.0/24",)):
        front = Front(*trusted)
        client = front.connect()
        client.turns.settle()
        assert client.peer_saw == "reset"
        client.send(HEADER + ASKING)
        assert bytes(client.got) == b""
        assert front.site.connections == set()


def test_those_that_are_cut_are_logged_as_one_line_now_and_then(logged: list[str]) -> None:
    front = Front("198.51.100.0/24")
    words = f"connections, the last from {PEER}: it is not in [server] trusted_proxies"
    for _ in range(50):
        front.connect()
    front.turns.advance(LOG_SECONDS - 1)
    front.proxies.tell()
    assert [line for line in logged if "cut" in line] == [f"warn cut 1 {words}"]
    front.turns.advance(1)
    front.proxies.tell()  # nobody else needs to come
    front.proxies.tell()
    assert [line for line in logged if "cut" in line] == [f"warn cut 1 {words}", f"warn cut 49 {words}"]
    front.turns.advance(1)
    front.connect()
    front.proxies.tell(at_once=True)
    assert [line for line in logged if "cut" in line][2:] == [f"warn cut 1 {words}"]
