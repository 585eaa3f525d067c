"""Request bodies on the server channel: streamed with backpressure, refused in time, never read past their end."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.config import Timeouts
from flowstack.errors import FlowstackError, MalformedRequest, RequestTooLarge
from flowstack.http.replies import error_reply
from flowstack.server.request_body import WINDOW
from tests.harness import HIGH_WATER, Listener, Stage, Transport, reply

LAST_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Taker:
    """Takes a body, until it is full."""

    def __init__(self, request: Any) -> None:
        self.pieces: list[bytes] = []
        self.ended = False
        self.fault: Any = None
        request.body.startProducing(self).addCallbacks(self._end, self._fail)

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def _end(self, _: None) -> None:
        self.ended = True

    def _fail(self, failure: Any) -> None:
        self.fault = failure.value


def upload(fields: bytes, timeouts: Timeouts | None = None) -> tuple[Listener, Stage, Transport, Any]:
    stage = Stage()
    site = Listener(stage, timeouts)
    client = site.connect()
    client.send(b"POST /v1/x HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n")
    return site, stage, client, stage.requests[0]


def test_each_read_of_a_body_is_one_write_to_its_taker() -> None:
    _, _, client, request = upload(b"Content-Length: 10")
    taker = Taker(request)
    client.send(b"hello")
    client.send(b"world")
    assert (taker.pieces, taker.ended, request.body.received) == ([b"hello", b"world"], True, 10)
    reply(request)
    assert b"close" not in client.take()


def test_a_chunked_body_is_told_as_of_unknown_length_and_streams_as_it_comes() -> None:
    _, _, client, request = upload(b"Transfer-Encoding: chunked")
    assert request.body.length is UNKNOWN_LENGTH
    taker = Taker(request)
    client.send(b"5\r\nhe")
    client.send(b"llo\r\n5\r\nworld\r\n0\r\nX: trailer\r\n\r\n")
    assert (taker.pieces, taker.ended, request.body.received) == ([b"he", b"lloworld"], True, 10)


def test_reading_stops_when_a_window_is_full_and_goes_on_when_it_is_drained() -> None:
    size = 10 * WINDOW
    _, _, client, request = upload(b"Content-Length: %d" % size)
    client.send(b"x" * size, 10_000)
    assert not client.reading
    assert WINDOW <= request.body.held < WINDOW + 10_000
    assert client.waiting_to_be_read >= size - WINDOW - 10_000
    taker = Taker(request)
    client.turns.settle()
    assert client.reading
    assert (sum(map(len, taker.pieces)), taker.ended) == (size, True)


def test_a_full_taker_stops_the_reading_after_one_window_more() -> None:
    size = 10 * WINDOW
    _, _, client, request = upload(b"Content-Length: %d" % size)
    taker = Taker(request)
    client.send(b"x" * 5_000)
    request.body.pauseProducing()
    client.send(b"x" * (size - 5_000), 10_000)
    assert sum(map(len, taker.pieces)) == 5_000
    assert request.body.held < WINDOW + 10_000
    assert not client.reading
    request.body.resumeProducing()
    client.turns.settle()
    assert (sum(map(len, taker.pieces)), taker.ended) == (size, True)


def test_a_body_that_ended_while_its_taker_was_full_ends_when_it_was_taken() -> None:
    _, _, client, request = upload(b"Content-Length: 10")
    taker = Taker(request)
    request.body.pauseProducing()
    client.send(b"helloworld")
    assert (taker.pieces, taker.ended) == ([], False)
    request.body.resumeProducing()
    assert (taker.pieces, taker.ended) == ([b"helloworld"], True)


def test_the_next_request_is_not_read_with_the_body_before_it() -> None:
    _, stage, client, request = upload(b"Content-Length: 5")
    taker = Taker(request)
    client.send(b"helloGET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert taker.pieces == [b"hello"]
    reply(request)
    assert [made.uri for made in stage.requests] == [b"/v1/x", b"/next"]


def test_queued_bodies_are_held_to_one_window_too() -> None:
    stage = Stage()
    client = Listener(stage).connect()
    one = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000
    client.send(one * 10, 8_000)
    assert not client.reading
    assert client.waiting_to_be_read > 100_000
    for number in range(10):
        client.turns.settle()
        reply(stage.requests[number])
    assert client.take().count(b"200 OK") == 10


# Expect (RFC 9110 §10.1.1).


def test_100_is_sent_only_when_the_body_is_wanted_and_once() -> None:
    _, _, client, request = upload(b"Content-Length: 5\r\nExpect: 100-continue")
    assert client.take() == b""
    taker = Taker(request)
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    reply(request)
    assert (taker.ended, client.take()) == (True, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_a_refusal_gets_no_100_and_closes() -> None:
    _, _, client, request = upload(b"Content-Length: 5\r\nExpect: 100-continue")
    reply(request)
    assert client.take() == LAST_OK
    assert client.calls == ["loseWriteConnection"]


def test_no_100_for_who_does_not_wait_for_it() -> None:
    _, _, client, request = upload(b"Content-Length: 5\r\nExpect: 100-continue")
    client.send(b"hello")
    Taker(request)
    assert client.take() == b""
    _, _, client, request = upload(b"Content-Length: 5")
    Taker(request)
    assert client.take() == b""


def test_who_waits_for_a_100_that_was_not_sent_is_not_told_that_it_stalls() -> None:
    site, _, client, request = upload(b"Content-Length: 5\r\nExpect: 100-continue", Timeouts(request_idle=2))
    site.turns.advance(20)
    assert client.take() == b""
    taker = Taker(request)
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    site.turns.fires(2, lambda: taker.fault is not None)


# Answers before the end of the request.


def test_an_answer_before_the_body_came_closes_and_lingers() -> None:
    site, stage, client, request = upload(b"Content-Length: 500000")
    client.send(b"x" * 1000)
    reply(request)
    assert client.take() == LAST_OK
    assert (client.calls, client.reading) == (["loseWriteConnection"], True)
    client.send(b"x" * 200_000)
    client.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(stage.requests) == 1
    site.turns.fires(5, lambda: client.closed)


def test_an_early_answer_resumes_reading_so_that_the_client_can_end_its_upload() -> None:
    _, _, client, request = upload(b"Content-Length: 500000")
    client.send(b"x" * 100_000)
    assert not client.reading
    reply(request)
    assert client.reading


def test_a_body_that_is_badly_framed_is_400_for_its_taker_and_nothing_after_it_is_read() -> None:
    _, stage, client, request = upload(b"Transfer-Encoding: chunked")
    taker = Taker(request)
    client.send(b"5\r\nhelloGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert isinstance(taker.fault, MalformedRequest)
    request.reply(error_reply(taker.fault))
    assert b"\r\nConnection: close\r\n" in client.take()
    client.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(stage.requests) == 1


def test_a_body_that_turns_out_bad_before_anybody_took_it_is_answered_at_once() -> None:
    _, _, client, request = upload(b"Transfer-Encoding: chunked")
    client.send(b"zz\r\n")
    answer = client.take()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert request.finished


def test_who_wants_to_answer_for_a_bad_body_is_asked() -> None:
    _, _, client, request = upload(b"Transfer-Encoding: chunked")
    told: list[FlowstackError] = []
    request.broken = told.append
    client.send(b"zz\r\n")
    assert [fault.code for fault in told] == ["malformed_request"]
    assert client.take() == b""


@pytest.mark.parametrize("taken", [True, False])
def test_a_chunked_body_over_the_limit_is_413(taken: bool) -> None:
    site, _, client, request = upload(b"Transfer-Encoding: chunked")
    request.body.limit = 10
    taker = Taker(request) if taken else None
    client.send(b"b\r\nhelloworld!\r\n")
    if taker is not None:
        assert isinstance(taker.fault, RequestTooLarge)
        assert b"".join(taker.pieces) == b""
    else:
        assert client.take().startswith(b"HTTP/1.1 413 ")
        assert site.refused[0].code == "request_too_large"


def test_a_body_nobody_wants_any_more_is_dropped_within_one_window() -> None:
    _, _, client, request = upload(b"Content-Length: 1000000")
    taker = Taker(request)
    request.body.stopProducing()
    client.send(b"x" * 900_000, 10_000)
    assert taker.pieces == []
    assert request.body.held < WINDOW + 10_000


# A slow client pauses what produces its answer.


class Producer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


def test_a_slow_client_pauses_the_producer_and_resumes_it() -> None:
    stage = Stage()
    client = Listener(stage).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.peer_reads = False
    request, producer = stage.requests[0], Producer()
    request.write_head(200, b"OK", b"", None)
    request.registerProducer(producer, True)
    request.write(b"x" * HIGH_WATER)
    assert producer.calls == ["pause"]
    client.read(1000)
    assert producer.calls == ["pause"]
    client.read()
    assert producer.calls == ["pause", "resume"]
    assert client.reading, "a slow reader is still watched for its leaving"


def test_a_producer_that_comes_when_the_output_is_full_is_paused_at_once() -> None:
    stage = Stage()
    client = Listener(stage).connect()
    client.peer_reads = False
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    request, producer = stage.requests[0], Producer()
    request.write_head(200, b"OK", b"", None)
    request.write(b"x" * HIGH_WATER)
    request.registerProducer(producer, True)
    assert producer.calls == ["pause"]


# What comes byte by byte costs no more than its bytes.


def test_a_body_that_comes_byte_by_byte_is_held_as_its_bytes_and_taken_in_one_piece() -> None:
    _, _, client, request = upload(b"Content-Length: 100000")
    client.send(b"x" * 60_000, 1)
    assert request.body.held == 60_000
    assert sys.getsizeof(request.body._held) < 2 * 60_000, "an object for each byte would be thirty times as much"
    taker = Taker(request)
    assert [len(piece) for piece in taker.pieces] == [60_000]


def test_of_a_body_that_is_gathered_byte_by_byte_all_is_there_in_the_end() -> None:
    _, _, client, request = upload(b"Content-Length: 60000")
    gathered: list[bytes | None] = []
    request.body.gather(lambda _, enough: gathered.append(request.body.whole) if enough else None)
    client.send(bytes(range(60)) * 1000, 1)
    assert gathered == [bytes(range(60)) * 1000]


def test_what_was_held_before_a_pause_is_not_written_again_after_it() -> None:
    _, _, client, request = upload(b"Content-Length: 12")
    taker = Taker(request)
    request.body.pauseProducing()
    client.send(b"hello ", 1)
    assert taker.pieces == []
    request.body.resumeProducing()
    request.body.pauseProducing()
    client.send(b"world!", 2)
    request.body.resumeProducing()
    assert (taker.pieces, taker.ended) == ([b"hello ", b"world!"], True)
