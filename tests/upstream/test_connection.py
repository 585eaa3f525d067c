"""A connection to an upstream: what it makes of every kind of answer."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.errors import UpstreamClosed, UpstreamMalformed
from flowstack.upstream.connection import MAX_HEAD_BYTES, UpstreamLost
from tests.harness import Asked, Provider, Transport

LENGTH = b"HTTP/1.1 200 OK\r\nX-a: b\r\nx-A: c\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nX: trailer\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
HEAD_ONLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


def begin(method: bytes = b"GET", **options: Any) -> tuple[Provider, Asked, Transport]:
    provider = Provider(**options)
    asked = provider.ask(method)
    return provider, asked, provider.peers[0]


def test_a_request_goes_out_in_one_write_as_it_stands() -> None:
    _, _, upstream = begin()
    assert upstream.writes == [b"GET /v1/x HTTP/1.1\r\nHost: upstream.example\r\n\r\n"]
    assert upstream.no_delay


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"GET", LENGTH, b"hello"),
        (b"GET", CHUNKED, b"hello"),
        (b"HEAD", HEAD_ONLY, b""),
        (b"GET", NOTHING, b""),
        (b"GET", NOT_MODIFIED, b""),
        (b"GET", INTERIM + LENGTH, b"hello"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
def test_an_answer_reads_the_same_at_every_split_and_the_connection_is_reused(
    method: bytes, answer: bytes, body: bytes
) -> None:
    for place in range(1, len(answer)):
        provider, asked, upstream = begin(method)
        upstream.send(answer[:place])
        upstream.send(answer[place:])
        assert (asked.body, type(asked.end)) == (body, ResponseDone), place
        assert len(provider.pool.idle) == 1
        again = provider.ask(method)
        upstream.send(answer, 1)
        assert (again.body, type(again.end)) == (body, ResponseDone)
        assert len(provider.peers) == 1


def test_status_reason_and_fields_come_as_they_were_sent() -> None:
    _, asked, upstream = begin()
    upstream.send(INTERIM + LENGTH)
    response = asked.response
    assert (response.code, response.phrase, response.version, response.length) == (200, b"OK", (b"HTTP", 1, 1), 5)
    assert response.headers.pairs == [(b"X-a", b"b"), (b"x-A", b"c"), (b"Content-Length", b"5")]


def test_each_read_is_one_piece_and_the_head_alone_is_told_by_a_piece_of_nothing() -> None:
    _, asked, upstream = begin()
    upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert asked.pieces == [b""]
    assert asked.response.length is UNKNOWN_LENGTH
    upstream.send(b"3\r\nhel\r\n2\r\nlo\r\n")
    upstream.send(b"3")
    upstream.send(b"\r\nend\r\n0\r\n\r\n")
    assert asked.pieces == [b"", b"hello", b"end"]
    assert type(asked.end) is ResponseDone


@pytest.mark.parametrize("cut", [len(LENGTH), len(LENGTH) - 1])
def test_the_pool_has_its_connection_back_before_the_last_piece_is_given(cut: int) -> None:
    provider = Provider()
    asked = provider.ask()
    idle: list[int] = []
    asked.last = lambda piece: idle.append(len(provider.pool.idle))  # type: ignore[method-assign]
    for piece in (LENGTH[:cut], LENGTH[cut:]):
        if piece:
            provider.peers[0].send(piece)
    assert idle == [1], "or the client could ask again before it"


@pytest.mark.parametrize("cut", [len(LENGTH), len(LENGTH) - 1])
def test_a_protocol_of_twisteds_can_take_a_body_too(cut: int) -> None:
    got: list[Any] = []

    class Taker(Protocol):
        def dataReceived(self, data: bytes) -> None:
            got.append(data)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            got.append(type(reason.value))

    provider = Provider()
    asked = provider.ask()
    asked.take_body = False
    provider.peers[0].send(LENGTH[:cut])
    asked.response.deliverBody(Taker())
    if cut < len(LENGTH):
        provider.peers[0].send(LENGTH[cut:])
    assert (b"".join(got[:-1]), got[-1]) == (b"hello", ResponseDone)


@pytest.mark.parametrize(("ending", "kind"), [("hang_up", PotentialDataLoss), ("fall_over", UpstreamLost)])
def test_a_body_that_ends_with_the_connection(ending: str, kind: type) -> None:
    provider, asked, upstream = begin()
    upstream.send(UNTIL_CLOSE, 1)
    assert asked.end is None
    getattr(upstream, ending)()
    assert (asked.body, type(asked.end), provider.pool.size) == (b"hello", kind, 0)


@pytest.mark.parametrize("ending", ["hang_up", "fall_over"])
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED])
def test_an_answer_cut_anywhere_never_looks_finished(answer: bytes, ending: str) -> None:
    head = answer.index(b"\r\n\r\n") + 4
    for place in range(1, len(answer)):
        provider, asked, upstream = begin()
        upstream.send(answer[:place])
        getattr(upstream, ending)()
        if place < head:
            assert isinstance(asked.fault, UpstreamClosed), place
        else:
            assert isinstance(asked.end, UpstreamLost), place
        assert (provider.pool.size, provider.pool.idle) == (0, [])


NOT_REUSED = {
    "it says close": (b"GET", LENGTH.replace(b"X-a: b", b"Connection: close")),
    "HTTP/1.0": (b"GET", LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0")),
    "bytes after the answer": (b"GET", LENGTH + b"x"),
    "another answer behind it": (b"GET", LENGTH + LENGTH),
    "an empty line behind it": (b"GET", LENGTH + b"\r\n"),
    "a body to HEAD": (b"HEAD", LENGTH),
    "a body with 204": (b"GET", NOTHING + b"hello"),
    "a body with 304": (b"GET", NOT_MODIFIED + b"hello"),
    "bytes after the last chunk": (b"GET", CHUNKED + b"0\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "answer"), NOT_REUSED.values(), ids=NOT_REUSED)
def test_a_connection_is_not_reused_after_an_unclean_end(method: bytes, answer: bytes) -> None:
    provider, asked, upstream = begin(method)
    upstream.send(answer)
    assert type(asked.end) is ResponseDone
    assert asked.body == (b"" if method == b"HEAD" or b"20" not in answer[9:11] or answer[9:12] == b"204" else b"hello")
    assert (upstream.peer_saw, provider.pool.size, provider.pool.idle) == ("reset", 0, [])


def test_bytes_on_an_idle_connection_close_it() -> None:
    provider, _, upstream = begin()
    upstream.send(LENGTH)
    upstream.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert (upstream.peer_saw, provider.pool.size, provider.pool.idle) == ("reset", 0, [])


MALFORMED = {
    "another protocol": b"SSH-2.0-OpenSSH\r\n",
    "HTML": b"<html>",
    "nothing but an empty line": b"\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "a bad status": b"HTTP/1.1 abc\r\n",
    "status 600": b"HTTP/1.1 600 X\r\n",
    "bare LFs": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 33,
    "a malformed head after an interim one": INTERIM + b"HTTP/1.1 200 OK\r\nX Y: z\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES,
    "a head that is too long": b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_head_is_told_at_once_however_it_comes(answer: bytes) -> None:
    for size in (1, 3, 4096, None) if len(answer) < 1000 else (4096, None):
        provider, asked, upstream = begin()
        upstream.send(answer, size)
        assert isinstance(asked.fault, UpstreamMalformed), size
        assert "openai" in asked.fault.message
        assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nhelloX", b"-1\r\n", b"5\nhello"])
def test_bad_chunks_cut_the_answer(chunks: bytes) -> None:
    provider, asked, upstream = begin()
    upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    upstream.send(chunks)
    assert isinstance(asked.end, UpstreamLost)
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


def test_a_body_waits_for_its_taker_and_holds_one_read_of_it() -> None:
    provider = Provider()
    asked = provider.ask()
    asked.take_body = False
    upstream = provider.peers[0]
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nhello")
    upstream.send(b"world")
    assert not upstream.reading
    asked.response.deliver(asked)
    provider.turns.settle()
    assert asked.pieces == [b"hello", b"world"]
    upstream.send(b"there")
    assert (asked.body, type(asked.end)) == (b"helloworldthere", ResponseDone)


@pytest.mark.parametrize(("answer", "kind"), [(LENGTH, ResponseDone), (CHUNKED, ResponseDone)])
def test_an_answer_that_ended_before_it_was_taken_is_whole(answer: bytes, kind: type) -> None:
    provider = Provider()
    asked = provider.ask()
    asked.take_body = False
    provider.peers[0].send(answer)
    asked.response.deliver(asked)
    assert (asked.body, type(asked.end)) == (b"hello", kind)


def test_a_slow_taker_pauses_the_upstream_and_a_paused_one_is_resumed_for_the_next() -> None:
    provider, asked, upstream = begin()
    upstream.send(LENGTH[:-3])
    asked.response.connection.pauseProducing()
    upstream.send(LENGTH[-3:])
    assert asked.body == b"he"
    asked.response.connection.resumeProducing()
    provider.turns.settle()
    assert asked.body == b"hello"
    assert upstream.reading
    again = provider.ask()
    upstream.send(LENGTH)
    assert again.body == b"hello"
