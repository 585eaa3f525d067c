"""Answers that are made to cost much are looked at in turns; nobody else waits for them, and no row is wrong for it."""

from __future__ import annotations

import gzip
import json

import pytest

from flowstack.config import Upstream
from tests.harness import HIGH_WATER, Transport
from tests.relay.lab import Lab, answer, request
from tests.relay.test_accounting import (
    CHAT,
    JSON,
    NOTHING,
    STREAM_HEAD,
    USAGE,
    ask,
    chat,
    chunked,
    dechunked,
    event,
    tokens,
)

WORK = b'data:{"usage":1}\r\n\r\n' * 3000
"""Some turns' work."""

LAST = event({"model": "gpt-4o-2024-08-06", "choices": [], "usage": USAGE})
GZIP_HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
TWO = (
    Upstream(name="one", base_url="http://upstream.example/v1"),
    Upstream(name="two", base_url="http://two.example/v1", hosts=("two.test",), default=False),
)
FOUND = (1000, 400, 200, 50, 1200, "upstream")


def asked(lab: Lab) -> tuple[Transport, Transport]:
    """A client that waits for a stream, and the upstream that has begun it."""
    client = ask(lab, chat(stream=True, stream_options={"include_usage": True}))
    upstream = lab.upstreams[-1]
    upstream.send(STREAM_HEAD + chunked(event({"model": "gpt-4o-2024-08-06"})))
    return client, upstream


def held() -> Lab:
    lab = Lab()
    lab.held_turns = []
    return lab


def turns(lab: Lab) -> int:
    """Let all turns pass that are due; tell how many."""
    count = 0
    while lab.held_turns:
        lab.turn()
        count += 1
    return count


def test_bytes_pass_at_once_and_the_upstream_waits_until_they_are_looked_at() -> None:
    lab = held()
    client, upstream = asked(lab)
    client.take()
    upstream.send(chunked(WORK))
    assert client.take() == chunked(WORK)
    assert not upstream.reading
    assert turns(lab) > 2
    assert upstream.reading
    upstream.send(chunked(LAST) + b"0\r\n\r\n")
    assert tokens(lab.row) == FOUND


def test_the_last_bytes_wait_for_the_row_and_the_row_for_the_meter() -> None:
    lab = held()
    client, upstream = asked(lab)
    client.take()
    upstream.send(chunked(WORK + LAST) + b"0\r\n\r\n")
    assert client.take() == b""
    assert lab.rows == []
    assert turns(lab) > 2
    assert tokens(lab.row) == FOUND
    assert dechunked(client.take()) == WORK + LAST


def test_an_answer_at_hand_as_a_whole_waits_for_its_meter_too() -> None:
    lab = held()
    client = ask(lab, chat())
    words = [{"word": "a", "start": 0.1}] * 5000
    body = json.dumps({"model": "gpt-4o-2024-08-06", "words": words, "usage": USAGE}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    lab.upstreams[0].send(head % len(body) + body)
    assert client.take() == b""
    assert turns(lab) > 2
    assert tokens(lab.row) == FOUND
    assert answer(client).body == body
    assert lab.row["bytes_out"] == len(body)


def test_others_are_served_between_the_turns() -> None:
    lab = held()
    _, upstream = asked(lab)
    upstream.send(chunked(WORK))
    assert lab.held_turns is not None
    while lab.held_turns:
        other = lab.ask()
        lab.upstreams[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert answer(other).body == b"ok"
        lab.turn()


def test_many_answers_that_are_behind_share_the_turns() -> None:
    lab = held()
    streams = [asked(lab) for _ in range(10)]
    for _, upstream in streams:
        upstream.send(chunked(WORK))
    assert lab.held_turns is not None
    most = 0
    while lab.held_turns:
        most = max(most, len(lab.held_turns))
        lab.turn()
    assert most == 1
    for _, upstream in streams:
        assert upstream.reading
        upstream.send(chunked(LAST) + b"0\r\n\r\n")
    assert [tokens(row) for row in lab.rows] == [FOUND] * 10


def test_an_upstream_whose_answers_cost_much_holds_up_no_other_s() -> None:
    lab = Lab(upstreams=TWO)
    lab.held_turns = []

    def asked_of(host: bytes) -> Transport:
        body = chat(stream=True, stream_options={"include_usage": True})
        client = lab.client()
        asking = request(CHAT, JSON, b"Content-Length: %d" % len(body), body=body)
        client.send(asking.replace(b"flowstack.example", host))
        upstream = lab.providers["two" if host == b"two.test" else "one"].peers[-1]
        upstream.send(STREAM_HEAD)
        return upstream

    for _ in range(20):
        asked_of(b"one.test").send(chunked(WORK * 10))
    asked_of(b"two.test").send(chunked(WORK + LAST) + b"0\r\n\r\n")
    alone = held()
    asked(alone)[1].send(chunked(WORK + LAST) + b"0\r\n\r\n")
    for _ in range(2 * turns(alone)):
        lab.turn()
    assert tokens(lab.rows[0]) == FOUND


def test_the_upstream_s_connection_serves_others_while_the_meter_is_behind() -> None:
    lab = held()
    first, upstream = asked(lab)
    upstream.send(chunked(WORK + LAST) + b"0\r\n\r\n")
    second = lab.ask()
    assert len(lab.upstreams) == 1
    first.peer_reads = False
    turns(lab)
    assert upstream.reading
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert answer(second).body == b"ok"
    assert tokens(lab.rows[0]) == FOUND


def test_a_client_that_takes_nothing_keeps_the_upstream_waiting_when_the_meter_is_done() -> None:
    lab = held()
    client, upstream = asked(lab)
    client.peer_reads = False
    upstream.send(chunked(WORK) * (HIGH_WATER // len(WORK) + 2))
    turns(lab)
    assert not upstream.reading
    client.peer_reads = True
    client.read()
    assert upstream.reading


def test_a_client_that_reads_on_does_not_wake_the_upstream_before_the_meter_is_done() -> None:
    lab = held()
    client, upstream = asked(lab)
    client.peer_reads = False
    upstream.send(chunked(WORK) * (HIGH_WATER // len(WORK) + 2))
    client.peer_reads = True
    client.read()
    assert not upstream.reading
    turns(lab)
    assert upstream.reading


@pytest.mark.parametrize("ended", [False, True])
def test_a_client_that_leaves_meanwhile_leaves_one_row_and_no_work(ended: bool) -> None:
    lab = held()
    client, upstream = asked(lab)
    upstream.send(chunked(WORK) + (b"0\r\n\r\n" if ended else b""))
    client.hang_up()
    assert (lab.row["end"], tokens(lab.row)) == ("client_gone", NOTHING)
    assert upstream.closed is not ended
    assert turns(lab) == 1
    assert len(lab.rows) == 1


def test_an_upstream_that_breaks_off_meanwhile_is_seen_when_the_meter_is_done() -> None:
    lab = held()
    client, upstream = asked(lab)
    upstream.send(chunked(WORK + LAST))
    upstream.hang_up()
    assert lab.rows == []
    turns(lab)
    assert (lab.row["end"], tokens(lab.row)) == ("upstream_lost", (*FOUND[:-1], "partial"))
    assert client.peer_saw == "reset"


def test_a_connection_that_breaks_while_it_is_paused_ends_the_answer_after_the_meter() -> None:
    lab = held()
    client, upstream = asked(lab)
    upstream.send(chunked(WORK + LAST))
    upstream.reading = True  # some transports tell of a reset at once
    upstream.fall_over()
    assert lab.rows == []
    turns(lab)
    assert (lab.row["end"], tokens(lab.row)) == ("upstream_lost", (*FOUND[:-1], "partial"))
    assert client.peer_saw == "reset"


@pytest.mark.parametrize("flood", [b"data:\r\n", b'data:{"usage":{"prompt_tokens":1}}\r\n\r\n', b"a" * 4096])
def test_an_answer_that_swells_beyond_reason_passes_and_its_usage_is_unknown(flood: bytes) -> None:
    lab = Lab()
    client = ask(lab, chat(stream=True, stream_options={"include_usage": True}))
    body = gzip.compress(LAST + flood * (32_000_000 // len(flood)) + LAST)
    lab.upstreams[0].send(GZIP_HEAD + chunked(body) + b"0\r\n\r\n")
    assert dechunked(answer(client).body) == body
    assert (lab.row["end"], lab.row["status"], tokens(lab.row)) == ("complete", 200, NOTHING)
    assert lab.limiter.settled[0]["usage_source"] == "none"


def test_requests_that_follow_on_the_connection_wait_for_the_row_before() -> None:
    lab = held()
    client, upstream = asked(lab)
    upstream.send(chunked(WORK + LAST) + b"0\r\n\r\n")
    client.send(request())
    assert len(lab.upstreams) == 1
    assert lab.rows == []
    turns(lab)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client.take().endswith(b"ok")
    assert [row["end"] for row in lab.rows] == ["complete", "complete"]
