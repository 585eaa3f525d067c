"""Answers whose clients left, read on for their usage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowstack.config import Upstream
from flowstack.config.settings import Retry
from flowstack.http.framing import chunk
from tests.harness import Transport
from tests.relay.lab import Lab
from tests.relay.sockets import OPENING

CHAT = b"POST /v1/chat/completions HTTP/1.1"
JSON = b"Content-Type: application/json"
BODY = b'{"model": "gpt-4o", "stream": true, "stream_options": {"include_usage": true}}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
FIRST = chunk(b'data: {"model":"gpt-4o-2024-08-06","choices":[{"delta":{"content":"a"}}]}\n\n')
LAST = chunk(b"data: " + json.dumps({"model": "gpt-4o", "choices": [], "usage": USAGE}).encode() + b"\n\n")
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
WHOLE = json.dumps({"model": "gpt-4o", "usage": USAGE}).encode()


def drains(**options: Any) -> Lab:
    upstream = Upstream(base_url="http://upstream.example/v1", **({"on_client_gone": "drain"} | options))
    lab = Lab(upstreams=(upstream,))
    lab.limiter.metered = True
    return lab


def asks(lab: Lab) -> Transport:
    return lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY)


def begun(lab: Lab) -> Transport:
    client = asks(lab)
    lab.turns.settle()
    lab.upstreams[-1].send(HEAD + FIRST)
    return client


def test_the_rest_of_a_stream_is_read_for_its_usage_and_charged_by_it() -> None:
    lab = drains()
    client = begun(lab)
    sent = client.take()
    client.hang_up()
    assert lab.rows == []
    lab.upstreams[-1].send(LAST)
    assert lab.rows == []
    lab.upstreams[-1].send(DONE)
    assert (lab.row["end"], lab.row["usage_source"], lab.row["total_tokens"]) == ("client_gone", "upstream", 30)
    assert lab.row["bytes_out"] == len(FIRST) - len(b"4b\r\n\r\n")
    assert client.take() == b"" and sent.endswith(FIRST)
    assert lab.upstreams[-1].peer_saw is None  # the pool has the connection back
    assert lab.leaving == set()


def test_an_answer_that_has_not_begun_is_waited_for() -> None:
    lab = drains()
    client = asks(lab)
    lab.turns.settle()
    client.hang_up()
    lab.upstreams[-1].send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(WHOLE), WHOLE))  # fmt: skip
    assert (lab.row["end"], lab.row["status"], lab.row["total_tokens"]) == ("client_gone", 200, 30)
    assert lab.leaving == set()


@pytest.mark.parametrize("options", [{}, {"retry": Retry()}])
def test_a_websocket_is_not_waited_for_that_nobody_would_speak(options: dict[str, Any]) -> None:
    lab = drains(**options)
    client = lab.ask(b"GET /v1/realtime HTTP/1.1", *OPENING)
    client.hang_up()
    assert (lab.row["end"], lab.row["status"]) == ("client_gone", None)
    assert lab.upstreams[-1].peer_saw == "reset"
    assert lab.leaving == set()


def test_cancel_is_the_default_and_closes_at_once() -> None:
    lab = drains(on_client_gone="cancel")
    client = begun(lab)
    client.hang_up()
    assert lab.row["usage_source"] == "none"
    assert lab.upstreams[-1].peer_saw == "reset"


BOUNDS = {
    "time": ({"drain_seconds": 5.0}, lambda lab: lab.turns.advance(8)),
    "bytes": ({"drain_bytes": 1000}, lambda lab: lab.upstreams[-1].send(chunk(b": " + b"x" * 1000 + b"\n\n"))),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_it_is_read_within_bounds_and_keeps_its_estimate_beyond(name: str) -> None:
    options, goes_on = BOUNDS[name]
    lab = drains(**options)
    client = begun(lab)
    client.hang_up()
    assert lab.rows == []
    goes_on(lab)
    assert (lab.row["end"], lab.row["usage_source"]) == ("client_gone", "none")
    assert lab.upstreams[-1].peer_saw == "reset"
    assert lab.leaving == set()


def test_a_break_of_the_upstream_s_ends_it() -> None:
    lab = drains()
    client = begun(lab)
    client.hang_up()
    lab.upstreams[-1].fall_over()
    assert lab.row["end"] == "client_gone"
    assert lab.leaving == set()


def test_what_was_paused_for_a_slow_client_goes_on() -> None:
    lab = drains()
    client = begun(lab)
    client.peer_reads = False
    for _ in range(10):
        lab.upstreams[-1].send(chunk(b": " + b"x" * 30_000 + b"\n\n"))
    assert lab.upstreams[-1].waiting_to_be_read
    client.fall_over()
    lab.upstreams[-1].send(LAST + DONE)
    assert lab.row["total_tokens"] == 30


def test_an_answer_without_usage_to_read_is_not_read_on() -> None:
    lab = drains()
    client = lab.ask(b"GET /v1/files/file-1/content HTTP/1.1")
    lab.turns.settle()
    lab.upstreams[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
    client.hang_up()
    assert lab.row["end"] == "client_gone"
    assert lab.upstreams[-1].peer_saw == "reset"


def test_nothing_is_tried_again_for_a_client_that_left() -> None:
    lab = drains(retry=Retry(on=(503,)))
    client = asks(lab)
    lab.turns.settle()
    client.hang_up()
    lab.upstreams[-1].send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
    lab.turns.advance(5)
    assert (lab.row["end"], lab.row["status"], lab.row["attempts"]) == ("client_gone", 503, 1)


def test_the_end_of_the_process_ends_it_too() -> None:
    lab = drains()
    begun(lab).hang_up()
    (answer,) = lab.leaving
    answer.expire()
    assert lab.row["end"] == "client_gone"
