"""Request bodies on their way to an upstream, the times of an exchange, and what may be sent again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from flowstack.errors import MalformedRequest, UpstreamClosed, UpstreamTimeout
from flowstack.upstream.connection import StreamIdle, UpstreamLost
from tests.harness import HIGH_WATER, Asked, Handle, Provider, Transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@implementer(IBodyProducer)
class Body:
    """A body that comes when the test says so."""

    whole: bytes | None = None

    def __init__(self, length: Any) -> None:
        self.length = length
        self.consumer: Any = None
        self.calls: list[str] = []
        self.done: Deferred[None] = Deferred()

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self.consumer = consumer
        return self.done

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Whole(Body):
    """A body that is at hand."""

    def __init__(self, whole: bytes, length: Any) -> None:
        super().__init__(length)
        self.whole = whole


def upload(body: Any, method: bytes = b"POST", **options: Any) -> tuple[Provider, Asked, Transport]:
    provider = Provider(**options)
    provider.turns.advance(0.6 * provider.turns.ticker.interval)
    asked = provider.ask(method, body=body)
    return provider, asked, provider.peers[0]


def test_a_body_at_hand_goes_out_with_its_head() -> None:
    _, _, upstream = upload(Whole(b"hello", 5))
    head = b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nContent-Length: 5\r\n\r\n"
    assert upstream.writes == [head + b"hello"]


@pytest.mark.parametrize(("whole", "wire"), [(b"hello", b"5\r\nhello\r\n0\r\n\r\n"), (b"", b"0\r\n\r\n")])
def test_a_chunked_body_at_hand_goes_out_chunked(whole: bytes, wire: bytes) -> None:
    _, _, upstream = upload(Whole(whole, UNKNOWN_LENGTH))
    head = b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert upstream.writes == [head + wire]


def test_a_body_streams_a_write_a_piece() -> None:
    body = Body(10)
    provider, asked, upstream = upload(body)
    body.consumer.write(b"hello")
    body.consumer.write(b"world")
    body.done.callback(None)
    assert upstream.writes[1:] == [b"hello", b"world"]
    upstream.send(OK)
    assert (asked.body, len(provider.pool.idle)) == (b"ok", 1)


def test_a_chunked_body_streams_a_chunk_a_piece() -> None:
    body = Body(UNKNOWN_LENGTH)
    _, _, upstream = upload(body)
    body.consumer.write(b"hello")
    body.consumer.write(b"")
    body.consumer.write(b"w" * 16)
    body.done.callback(None)
    assert upstream.writes[1:] == [b"5\r\nhello\r\n", b"10\r\n" + b"w" * 16 + b"\r\n", b"0\r\n\r\n"]


def test_a_slow_upstream_pauses_the_upload() -> None:
    body = Body(10 * HIGH_WATER)
    _, _, upstream = upload(body)
    upstream.peer_reads = False
    body.consumer.write(b"x" * HIGH_WATER)
    assert body.calls == ["pause"]
    upstream.read()
    assert body.calls == ["pause", "resume"]


def test_an_answer_before_the_bodys_end_is_given_on_and_its_connection_not_reused() -> None:
    body = Body(10)
    provider, asked, upstream = upload(body)
    body.consumer.write(b"hello")
    upstream.send(OK)
    assert (asked.body, type(asked.end), body.calls) == (b"ok", ResponseDone, ["stop"])
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)
    body.consumer.write(b"world")  # too late, and dropped
    body.done.callback(None)
    assert upstream.take().endswith(b"hello")


def test_an_upload_goes_on_while_its_answer_streams() -> None:
    body = Body(10)
    provider, asked, upstream = upload(body)
    body.consumer.write(b"hello")
    upstream.send(OK[:-1])
    body.consumer.write(b"world")
    body.done.callback(None)
    upstream.send(OK[-1:])
    assert upstream.take().endswith(b"helloworld")
    assert (asked.body, len(provider.pool.idle)) == (b"ok", 1)


def test_a_body_that_fails_fails_the_request_with_its_own_fault() -> None:
    body = Body(UNKNOWN_LENGTH)
    provider, asked, upstream = upload(body)
    body.done.errback(Failure(MalformedRequest("bad chunks")))
    assert asked.fault.code == "malformed_request"
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


def test_a_body_that_fails_after_the_answer_began_cuts_it() -> None:
    body = Body(UNKNOWN_LENGTH)
    provider, asked, upstream = upload(body)
    upstream.send(OK[:-1])
    body.done.errback(Failure(MalformedRequest("bad chunks")))
    assert isinstance(asked.end, UpstreamLost)
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


def test_an_answer_whose_framing_breaks_during_the_upload_stops_it() -> None:
    body = Body(10)
    provider, asked, upstream = upload(body)
    upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n")
    assert isinstance(asked.end, UpstreamLost)
    assert (body.calls, upstream.peer_saw, provider.pool.size) == (["stop"], "reset", 0)
    body.consumer.write(b"hello")  # too late, and dropped
    body.done.callback(None)
    assert upstream.take().endswith(b"\r\n\r\n")


def test_an_upload_that_ended_is_freed_without_the_garbage_collector() -> None:
    body = Body(5)
    _, asked, upstream = upload(body)
    body.consumer.write(b"hello")
    body.done.callback(None)
    upstream.send(OK)
    gone = weakref.ref(body)
    gc.disable()
    try:
        del body, asked
        assert gone() is None
    finally:
        gc.enable()


def test_an_upstream_that_closes_during_the_upload_stops_it() -> None:
    body = Body(10)
    _, asked, upstream = upload(body)
    upstream.hang_up()
    assert isinstance(asked.fault, UpstreamClosed)
    assert body.calls == ["stop"]


# Times.


def test_response_head_counts_from_the_requests_last_byte() -> None:
    body = Body(10)
    provider, asked, upstream = upload(body)
    provider.turns.advance(3000)  # an upload without end is the client's time
    body.consumer.write(b"helloworld")
    body.done.callback(None)
    provider.turns.fires(1200, lambda: asked.fault)
    assert isinstance(asked.fault, UpstreamTimeout)
    assert "1200 seconds" in asked.fault.message and "begin its answer" in asked.fault.message
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


def test_interim_answers_do_not_stretch_response_head() -> None:
    provider, asked, upstream = upload(None)
    for _ in range(11):
        provider.turns.advance(100)
        upstream.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    provider.turns.fires(100, lambda: isinstance(asked.fault, UpstreamTimeout))


def test_a_stalled_upload_fails_after_stream_idle_unless_the_kernel_gets_rid_of_bytes() -> None:
    body = Body(10 * HIGH_WATER)
    provider, asked, upstream = upload(body)
    upstream.handle = Handle()
    upstream.peer_reads = False
    body.consumer.write(b"x" * HIGH_WATER)
    upstream.handle.acknowledged = 1
    provider.turns.advance(610)
    assert asked.fault is None
    provider.turns.advance(610)
    assert isinstance(asked.fault, UpstreamTimeout)
    assert "take the request within 600 seconds" in asked.fault.message
    assert body.calls == ["pause", "stop"]


def test_a_silent_stream_ends_after_stream_idle_from_its_last_byte() -> None:
    provider, asked, upstream = upload(None)
    upstream.send(OK[:-2])
    provider.turns.advance(500)
    upstream.send(b"o")
    provider.turns.fires(600, lambda: asked.end)
    assert isinstance(asked.end, StreamIdle)
    assert (upstream.peer_saw, provider.pool.size) == ("reset", 0)


def test_stream_idle_stands_still_while_flowstack_pauses_the_upstream() -> None:
    provider, asked, upstream = upload(None)
    upstream.send(OK[:-1])
    asked.response.connection.pauseProducing()
    provider.turns.advance(3000)
    assert asked.end is None
    asked.response.connection.resumeProducing()
    provider.turns.fires(600, lambda: isinstance(asked.end, StreamIdle))


# What may be sent again.


def reused(method: bytes = b"GET", body: Any = None, **options: Any) -> tuple[Provider, Asked, Transport]:
    """A request on a connection that has carried one before."""
    provider = Provider(**options)
    provider.ask()
    provider.peers[0].send(OK)
    return provider, provider.ask(method, body=body), provider.peers[0]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
def test_an_idempotent_request_is_sent_again_when_its_reused_connection_died_unanswered(method: bytes) -> None:
    provider, asked, upstream = reused(method, Whole(b"x", 1))
    upstream.hang_up()
    assert len(provider.peers) == 2
    assert provider.peers[1].take() == upstream.take().split(b"\r\n\r\n", 1)[1]
    provider.peers[1].send(OK)
    assert asked.response.attempts == 2
    assert asked.job.attempts == 2


@pytest.mark.parametrize("retry_post", [False, True])
@pytest.mark.parametrize("method", [b"POST", b"PATCH"])
def test_another_request_is_sent_again_only_where_the_operator_opts_in(method: bytes, retry_post: bool) -> None:
    provider, asked, upstream = reused(method, Whole(b"x", 1), retry_post=retry_post)
    upstream.fall_over()
    assert len(provider.peers) == (2 if retry_post else 1)
    assert (asked.fault is None) is retry_post


def test_nothing_is_sent_again_after_a_byte_of_an_answer() -> None:
    provider, asked, upstream = reused()
    upstream.send(b"H")
    upstream.hang_up()
    assert isinstance(asked.fault, UpstreamClosed)
    assert len(provider.peers) == 1


def test_nothing_is_sent_again_that_died_on_a_fresh_connection() -> None:
    provider, asked, upstream = upload(None, b"GET")
    upstream.hang_up()
    assert isinstance(asked.fault, UpstreamClosed)
    assert "can bill twice" in asked.fault.message
    assert (len(provider.peers), asked.job.attempts) == (1, 1)


def test_a_body_that_streamed_is_not_sent_again() -> None:
    provider, asked, upstream = reused(b"PUT", Body(5))
    upstream.hang_up()
    assert isinstance(asked.fault, UpstreamClosed)
    assert len(provider.peers) == 1


def test_nothing_is_sent_again_after_the_client_left() -> None:
    provider, asked, upstream = reused()
    asked.job.cancel()
    provider.turns.settle()
    assert isinstance(asked.fault, CancelledError)
    assert (upstream.peer_saw, len(provider.endpoint.attempts)) == ("reset", 1)


def test_a_request_outlives_several_dead_connections() -> None:
    provider = Provider()
    asked = [provider.ask() for _ in range(3)]
    for peer in provider.peers:
        peer.send(OK)
    last = provider.ask()
    for peer in reversed(provider.peers[:3]):
        peer.hang_up()
    provider.peers[3].send(OK)
    assert (last.body, last.response.attempts, len(asked)) == (b"ok", 4, 3)
