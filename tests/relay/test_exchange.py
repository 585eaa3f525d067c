"""Every way in which an exchange can end leaves exactly one row and settles exactly once."""

from __future__ import annotations

from typing import Any

import pytest

from flowstack.config import Timeouts, Upstream
from flowstack.config.settings import Target
from flowstack.errors import Overloaded, RateLimitExceeded
from tests.harness import HIGH_WATER, Transport
from tests.relay.lab import DATE, NOW, Lab, Limiter, Reservation, answer, request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-request-id: req_1\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1"


def outcome(lab: Lab) -> tuple[Any, ...]:
    row = lab.row
    return row["end"], row["status"], row["error_code"], row["attempts"], row["bytes_in"], row["bytes_out"]


def begun(**options: Any) -> tuple[Lab, Transport, Transport]:
    lab = Lab(**options)
    client = lab.ask(POST, b"Content-Length: 5", body=b"hello")
    return lab, client, lab.upstreams[0]


def test_a_whole_exchange_byte_by_byte() -> None:
    lab = Lab()
    client = lab.client()
    client.send(request(POST, b"Authorization: Bearer sk-x", b"X-a: 1", b"Content-Length: 5", body=b"hello"), 1)
    (upstream,) = lab.upstreams
    assert upstream.take() == (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: upstream.example\r\nAuthorization: Bearer sk-x\r\nX-a: 1\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    upstream.send(OK, 1)
    assert client.take() == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-request-id: req_1\r\nDate: " + DATE
        + b"\r\nFlowstack-Request-Id: " + lab.row["request_id"].encode() + b"\r\n\r\nok"
    )  # fmt: skip
    assert outcome(lab) == ("complete", 200, None, 1, 5, 2)


def test_the_row_says_who_asked_for_what_and_what_came() -> None:
    lab = Lab()
    client = lab.ask(b"GET /v1/models?secret=x HTTP/1.1", b"User-Agent: test/1", b"Flowstack-Attribute-Team: blue")
    lab.turns.advance(1.5)
    lab.upstreams[0].send(STREAM)
    lab.turns.advance(1)
    lab.upstreams[0].send(b"3\r\nabc\r\n0\r\n\r\n")
    row = lab.row
    assert row["started_at"].timestamp() == 1_700_000_000
    assert row["started_at"].tzinfo is not None
    assert (row["key_id"], row["owner"], row["attributes"]) == ("k1", "alice@example.com", {"team": "blue"})
    assert (row["client_addr"], row["user_agent"]) == ("192.0.2.7", "test/1")
    assert (row["method"], row["path"], row["stream"]) == ("GET", "/v1/models", True)
    assert (row["first_byte_ms"], row["duration_ms"]) == (1500, 2500)
    assert (row["upstream"], row["upstream_request_id"], row["v"]) == ("openai", None, 2)
    assert client.take().endswith(b"\r\n3\r\nabc\r\n0\r\n\r\n")


def test_the_row_is_written_before_the_last_piece_and_after_every_other() -> None:
    lab, client, upstream = begun()
    seen: list[bytes] = []
    lab.ledger.watch = lambda: seen.append(bytes(client.got))
    upstream.send(STREAM + b"3\r\nabc\r\n")
    upstream.send(b"3\r\nend\r\n0\r\n\r\n")
    assert len(seen) == 1
    assert b"abc" in seen[0] and b"end" not in seen[0]
    assert client.take().endswith(b"3\r\nend\r\n0\r\n\r\n")


def test_each_piece_is_one_write_and_the_head_goes_with_the_first() -> None:
    lab, client, upstream = begun()
    upstream.send(STREAM + b"3\r\nabc\r\n")
    upstream.send(b"3\r\ndef\r\n")
    upstream.send(b"3\r\nghi\r\n0\r\n\r\n")
    first, *others = client.writes
    assert first.startswith(b"HTTP/1.1 200 ") and first.endswith(b"\r\n\r\n3\r\nabc\r\n")
    assert others == [b"3\r\ndef\r\n", b"3\r\nghi\r\n0\r\n\r\n"]
    assert outcome(lab)[-1] == 9


def test_a_head_that_comes_alone_goes_on_alone_at_once() -> None:
    _, client, upstream = begun()
    upstream.send(STREAM)
    assert client.take().endswith(b"\r\n\r\n")


# Every other end.


def test_refused_by_the_limiter() -> None:
    lab = Lab()
    lab.limiter.fault = RateLimitExceeded("slow down", ((b"retry-after", b"3"),))
    got = answer(lab.ask())
    assert (got.status, got.error["code"], got["retry-after"]) == (429, "flowstack_rate_limit_exceeded", b"3")
    assert outcome(lab) == ("refused", 429, "flowstack_rate_limit_exceeded", 0, 0, len(got.body))
    assert lab.row["request_id"].encode() == got["flowstack-request-id"]
    assert lab.upstreams == []


def test_refused_for_want_of_room_to_count_in() -> None:
    lab = Lab()
    lab.limiter.fault = lab.limiter.figures_fault = Overloaded("no room", ((b"Retry-After", b"5"),))
    got = answer(lab.ask())
    assert (got.status, got.error["code"], got["retry-after"]) == (503, "overloaded", b"5")
    assert outcome(lab) == ("refused", 503, "overloaded", 0, 0, len(got.body))
    assert lab.upstreams == []


def test_refused_by_the_full_pool() -> None:
    lab = Lab(upstreams=(Upstream(base_url="http://upstream.example/v1", max_connections=1),))
    lab.ask()
    client = lab.ask()
    lab.turns.advance(8)
    got = answer(client)
    assert (got.status, got.error["code"], got["retry-after"]) == (503, "overloaded", b"1")
    (row,) = lab.rows
    assert (row["end"], row["status"], row["error_code"], row["attempts"]) == ("refused", 503, "overloaded", 0)
    assert lab.limiter.open == {1}, "the first is still under way"


@pytest.mark.parametrize("state", ["connecting", "awaiting the head", "mid-body"])
def test_client_gone(state: str) -> None:
    lab = Lab()
    (provider,) = lab.providers.values()
    provider.endpoint.at_once = state != "connecting"
    client = lab.ask(POST, b"Content-Length: 5", body=b"hello")
    if state == "mid-body":
        lab.upstreams[0].send(STREAM + b"3\r\nabc\r\n")
    client.hang_up()
    assert outcome(lab) == (
        "client_gone", 200 if state == "mid-body" else None, None, 0 if state == "connecting" else 1, 5,
        3 if state == "mid-body" else 0,
    )  # fmt: skip
    if state == "connecting":
        assert provider.endpoint.attempts[0].cancelled
    else:
        assert lab.upstreams[0].peer_saw == "reset"
    lab.turns.advance(3000)
    assert len(lab.rows) == 1


def test_client_gone_while_uploading() -> None:
    lab = Lab()
    client = lab.ask(POST, b"Content-Length: 500", body=b"hello")
    client.hang_up()
    assert outcome(lab) == ("client_gone", None, None, 1, 5, 0)
    assert lab.upstreams[0].peer_saw == "reset"


@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 200 OK\r\nConte"])
def test_upstream_closed_before_its_head(rest: bytes) -> None:
    lab, client, upstream = begun()
    upstream.send(rest)
    upstream.hang_up()
    got = answer(client)
    assert (got.status, got.error["code"]) == (502, "upstream_closed")
    assert outcome(lab) == ("upstream_lost", 502, "upstream_closed", 1, 5, len(got.body))
    assert client.calls == []


def test_upstream_unreachable() -> None:
    lab = Lab()
    (provider,) = lab.providers.values()
    provider.endpoint.at_once = False
    client = lab.ask()
    provider.endpoint.attempts[0].refuse(ConnectionRefusedError("refused"))
    got = answer(client)
    assert (got.status, got.error["code"]) == (502, "upstream_unreachable")
    assert outcome(lab)[:4] == ("upstream_lost", 502, "upstream_unreachable", 0)


def test_upstream_malformed() -> None:
    lab, client, upstream = begun()
    upstream.send(b"SSH-2.0-x\r\n")
    assert answer(client).error["code"] == "upstream_malformed"
    assert outcome(lab)[:3] == ("upstream_lost", 502, "upstream_malformed")


@pytest.mark.parametrize("trouble", ["hang_up", "fall_over", "bad chunk"])
def test_upstream_lost_in_the_middle_cuts_the_client(trouble: str) -> None:
    lab, client, upstream = begun()
    upstream.send(STREAM + b"3\r\nabc\r\n")
    if trouble == "bad chunk":
        upstream.send(b"zz\r\n")
    else:
        getattr(upstream, trouble)()
    lab.turns.settle()
    assert client.peer_saw == "reset"
    assert not client.take().endswith(b"0\r\n\r\n")
    assert outcome(lab) == ("upstream_lost", 200, None, 1, 5, 3)


def test_timeout_before_the_head() -> None:
    lab, client, _ = begun()
    lab.turns.fires(1200, lambda: client.got)
    got = answer(client)
    assert (got.status, got.error["code"]) == (504, "upstream_timeout")
    assert outcome(lab)[:3] == ("timeout", 504, "upstream_timeout")


def test_timeout_of_a_silent_stream() -> None:
    lab, client, upstream = begun()
    upstream.send(STREAM + b"3\r\nabc\r\n")
    lab.turns.fires(600, lambda: client.peer_saw == "reset")
    assert outcome(lab) == ("timeout", 200, None, 1, 5, 3)


def test_timeout_of_a_client_that_takes_nothing() -> None:
    lab, client, upstream = begun()
    client.peer_reads = False
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * HIGH_WATER)
    assert not upstream.reading
    lab.turns.fires(60, lambda: client.peer_saw == "reset")
    assert outcome(lab) == ("timeout", 200, None, 1, 5, HIGH_WATER)
    assert upstream.peer_saw == "reset"


@pytest.mark.parametrize("answered", [False, True])
def test_drain_ran_out(answered: bool) -> None:
    lab, client, upstream = begun()
    if answered:
        upstream.send(STREAM + b"3\r\nabc\r\n")
    lab.listener.site.close()
    lab.turns.settle()
    assert outcome(lab)[:2] == ("drain", 200 if answered else None)
    assert (client.peer_saw, upstream.peer_saw) == ("reset", "reset")


@pytest.mark.parametrize(
    ("fields", "body", "status", "code"),
    [
        ((b"Transfer-Encoding: chunked",), b"zz\r\n", 400, "malformed_request"),
        ((b"Transfer-Encoding: chunked",), b"b\r\nhello world\r\n", 413, "request_too_large"),
        ((b"Content-Length: 11",), b"", 413, "request_too_large"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("connected", [False, True])
def test_a_body_that_cannot_be_relayed_is_refused_with_its_row(
    fields: tuple[bytes, ...], body: bytes, status: int, code: str, together: bool, connected: bool
) -> None:
    """However much of it came with the head, and whether or not an upstream had begun to take it."""
    lab = Lab(max_request_bytes=10)
    (provider,) = lab.providers.values()
    provider.endpoint.at_once = connected
    client = lab.client()
    if together:
        client.send(request(POST, *fields, body=body))
    else:
        client.send(request(POST, *fields))
        client.send(body)
    got = answer(client)
    assert (got.status, got.error["code"], got["connection"]) == (status, code, b"close")
    assert outcome(lab)[:3] == ("refused", status, code)
    assert lab.row["request_id"].encode() == got["flowstack-request-id"]
    assert lab.unauthenticated == []
    for upstream in lab.upstreams:
        assert upstream.peer_saw == "reset"
        assert b"hello" not in upstream.got
    lab.turns.advance(2000)
    assert len(lab.rows) == 1


@pytest.mark.parametrize("connected", [False, True])
def test_an_upload_that_stalls_is_a_timeout_with_its_row(connected: bool) -> None:
    lab = Lab(timeouts=Timeouts(connect=100))
    (provider,) = lab.providers.values()
    provider.endpoint.at_once = connected
    client = lab.ask(POST, b"Content-Length: 500", body=b"hello")
    lab.turns.fires(60, lambda: client.got)
    assert answer(client).error["code"] == "malformed_request"
    assert outcome(lab)[:5] == ("timeout", 400, "malformed_request", int(connected), 5)
    assert [upstream.peer_saw for upstream in lab.upstreams] == ["reset"] * connected
    assert provider.endpoint.attempts[0].cancelled is not connected


def test_a_fault_of_which_nobody_thought_has_its_row_too() -> None:
    lab = Lab()
    lab.limiter.fault = RuntimeError("secret")
    got = answer(lab.ask())
    assert (got.status, got.error["code"]) == (500, "internal_error")
    assert b"secret" not in got.body
    assert outcome(lab)[:3] == ("refused", 500, "internal_error")


def test_a_request_sent_again_counts_its_attempts() -> None:
    lab = Lab()
    client = lab.ask()
    lab.upstreams[0].send(OK)
    client.send(request())
    lab.upstreams[0].hang_up()
    lab.upstreams[1].send(OK)
    assert [row["attempts"] for row in lab.rows] == [1, 2]
    assert [row["end"] for row in lab.rows] == ["complete", "complete"]
    assert lab.limiter.open == set()


def test_nothing_is_sent_again_after_the_client_left() -> None:
    lab = Lab()
    client = lab.ask()
    lab.upstreams[0].send(OK)
    client.send(request())
    client.hang_up()
    assert [row["end"] for row in lab.rows] == ["complete", "client_gone"]
    assert len(lab.upstreams) == 1


@pytest.mark.parametrize("how", ["its end", "the client leaves", "the upstream is lost"])
def test_an_event_stream_is_among_the_open_ones_until_it_ends(how: str) -> None:
    lab = Lab()
    client = lab.ask(b"GET /v1/responses/x HTTP/1.1")
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert len(lab.streams) == 1
    if how == "its end":
        lab.upstreams[0].send(b"0\r\n\r\n")
    elif how == "the client leaves":
        client.hang_up()
    else:
        lab.upstreams[0].fall_over()
    lab.turns.settle()
    assert lab.streams == set()


# What nobody foresaw.


class Broken(Exception):
    """A fault of Flowstack's own, at a place where none is known."""


class FailsOnce(Reservation):
    """Raises when its fields are asked for, the first time."""

    failed = False

    @property
    def lines(self) -> bytes:
        if not self.failed:
            self.failed = True
            raise Broken
        return b""


class FailingLimiter(Limiter):
    reservation = FailsOnce


@pytest.mark.parametrize("targets", [(), (Target("one", "http://upstream.example/v1"),)], ids=["plain", "failover"])
@pytest.mark.parametrize(
    "sent",
    [
        (STREAM,),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok"),
    ],
    ids=["stream", "whole", "two pieces"],
)
def test_a_fault_of_its_own_at_an_answers_head_is_answered_and_logged(
    targets: tuple[Target, ...], sent: tuple[bytes, ...], logged: list[str]
) -> None:
    upstream = Upstream(base_url="http://upstream.example/v1", targets=targets)
    lab = Lab(limiter=FailingLimiter(), upstreams=(upstream,))
    client = lab.ask(POST, b"Content-Length: 5", body=b"hello")
    for piece in sent:
        lab.upstreams[0].send(piece)
    got = answer(client)
    assert (got.status, got.error["code"]) == (500, "internal_error")
    assert (lab.row["end"], lab.row["status"], lab.row["error_code"]) == ("refused", 500, "internal_error")
    assert logged.count("an upstream's answer could not be passed on") == 1
    assert len(lab.limiter.settled) == 1
    assert not lab.limiter.open
    client.send(request(b"GET /v1/models HTTP/1.1"))  # the connection is as good as before
    assert lab.limiter.reserved == 2


def test_a_fault_of_its_own_at_the_choice_of_another_attempt_is_answered(logged: list[str]) -> None:
    broken = False

    def wall_clock() -> float:
        if broken:
            raise Broken
        return NOW

    upstream = Upstream(base_url="http://upstream.example/v1", targets=(Target("one", "http://upstream.example/v1"),))
    lab = Lab(upstreams=(upstream,), real=lambda lab: {"wall_clock": wall_clock})
    client = lab.ask(POST, b"Content-Length: 5", body=b"hello")
    broken = True  # it is read again for Retry-After
    lab.upstreams[0].send(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")
    got = answer(client)
    assert (got.status, got.error["code"]) == (500, "internal_error")
    assert (lab.row["end"], lab.row["error_code"]) == ("refused", "internal_error")
    assert logged.count("an upstream's answer could not be passed on") == 1


def test_a_fault_of_its_own_behind_the_head_cuts_the_answer(logged: list[str]) -> None:
    class Unsettled(Limiter):
        def settle(self, *of: Any) -> None:
            raise Broken

    lab = Lab(limiter=Unsettled())
    client = lab.ask(b"GET /v1/models HTTP/1.1")
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    lab.turns.settle()
    assert client.closed
    assert b"ok" not in client.take()
    assert logged.count("an upstream's answer could not be passed on") == 1
