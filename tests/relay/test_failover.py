"""More than one attempt: what the upstreams get, what the client gets, and what is charged."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError

from flowstack.config import Target, Upstream
from flowstack.config.settings import Fallback, Health, Retry
from flowstack.config.values import Pairs
from flowstack.http.frames import accept_of
from flowstack.http.framing import chunk
from flowstack.relay.exchange import GATHERING, RESERVING
from tests.harness import Transport
from tests.relay.lab import AUTH, KEY, NOW, Answer, Lab, SlowLimiter, answer, request
from tests.relay.sockets import OPENING, SOCKET_KEY, End

CHAT = b"POST /v1/chat/completions HTTP/1.1"
JSON = b"Content-Type: application/json"
OWN = b"Authorization: Bearer sk-of-the-client"
BODY = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
OK = b'{"model":"gpt-4o-2024-08-06","usage":{"prompt_tokens":1000,"completion_tokens":200,"total_tokens":1200}}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
RETRY = Retry(on=("connect", "reset", "timeout", 429, 500, 503), backoff=0.25)


def http(status: int, body: bytes = b"{}", *fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d X" % status, JSON, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join((*lines, b"", body))


def error(code: str) -> bytes:
    return json.dumps({"error": {"message": "no", "type": "invalid_request_error", "code": code}}).encode()


def openai(**options: Any) -> Upstream:
    return Upstream(**({"base_url": "http://openai.example/v1"} | options))


def targets(*weights: int, **options: Any) -> Upstream:
    names = ("eu", "us", "asia")[: len(weights)]
    made = tuple(Target(name, f"http://{name}.example/v1", weight) for name, weight in zip(names, weights, strict=True))
    return openai(targets=made, base_url="http://eu.example/v1", **options)


def azure(**options: Any) -> Upstream:
    return Upstream(name="azure", base_url="http://azure.example/openai/v1", default=False, api_key_header="api-key",
                    **options)  # fmt: skip


AZURE_KEY = {"azure": (b"azure-secret",)}


def with_azure(fallback: Fallback | None = None, lab: dict[str, Any] | None = None, **options: Any) -> Lab:
    """OpenAI with the client's key, and behind it Azure with the operator's."""
    upstreams = openai(fallback=fallback or Fallback("azure"), **options), azure()
    return Lab(upstreams=upstreams, provider_keys=AZURE_KEY, **(lab or {}))


def chat(lab: Lab, body: bytes = BODY, *fields: bytes, line: bytes = CHAT, auth: bytes | None = AUTH) -> Transport:
    client = lab.ask(line, JSON, OWN, b"Content-Length: %d" % len(body), *fields, body=body, auth=auth)
    lab.turns.settle()
    return client


def peers(lab: Lab, label: str = "openai") -> list[Transport]:
    return lab.providers[label].peers


def got(lab: Lab, label: str = "openai") -> bytes:
    """What the last connection of a target got since it was looked at."""
    return peers(lab, label)[-1].take()


def gives(lab: Lab, data: bytes, label: str = "openai") -> None:
    peers(lab, label)[-1].send(data)
    lab.turns.settle()


def fields_of(sent: bytes) -> dict[bytes, bytes]:
    lines = sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}


def body_of(sent: bytes) -> bytes:
    return sent.partition(b"\r\n\r\n")[2]


def tries(lab: Lab) -> int:
    """How many attempts the one row tells of."""
    return len(lab.row["attempts_detail"] or "1")


def detail(lab: Lab) -> list[tuple[Any, ...]]:
    return [(one["target"], one["status"], one["fault"]) for one in lab.row["attempts_detail"]]


# Again at the same target.


def test_what_is_sent_again_are_the_same_bytes_and_the_client_sees_one_clean_answer() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = chat(lab)
    first = got(lab)
    gives(lab, http(503, error("busy")))
    lab.turns.advance(1)
    assert got(lab) == first
    gives(lab, http(200, OK))
    answered = answer(client)
    assert (answered.status, answered.body) == (200, OK)
    assert (answered["flowstack-upstream"], answered["flowstack-attempts"]) == (b"openai/openai", b"2")
    assert detail(lab) == [("openai", 503, None), ("openai", 200, None)]
    assert lab.row["attempts"] == 2
    assert (lab.row["prompt_tokens"], lab.row["end"], lab.row["status"]) == (1000, "complete", 200)
    assert lab.courses["openai"].rescued == 1
    assert lab.failed_attempts == [("openai", "503")]
    assert lab.room.held == 0


FAILURES = {
    "a status": (lambda lab: gives(lab, http(503)), 503),
    "a reset before the head": (lambda lab: peers(lab)[-1].fall_over(), "reset"),
    "an end before the head": (lambda lab: peers(lab)[-1].hang_up(), "reset"),
    "an end within the head": (lambda lab: (peers(lab)[-1].send(b"HTTP/1.1 200"), peers(lab)[-1].hang_up()), "reset"),
    "no HTTP": (lambda lab: gives(lab, b"HELO\r\n\r\n"), "reset"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_followed_by_another_attempt_only_where_it_is_named(name: str) -> None:
    fails, fault = FAILURES[name]
    for on in ((fault,), ("connect", "timeout", 502)):
        lab = Lab(upstreams=(openai(retry=Retry(on=on)),))
        client = chat(lab)
        fails(lab)
        lab.turns.advance(1)
        if fault in on:
            gives(lab, http(200, OK))
            assert answer(client).status == 200
        else:
            assert answer(client).status in (502, 503)
        assert tries(lab) == 1 + (fault in on)


def test_nothing_is_sent_again_where_nothing_is_configured() -> None:
    lab = Lab(upstreams=(openai(),))
    client = chat(lab)
    gives(lab, http(503, error("busy"), b"Retry-After: 0"))
    answered = answer(client)
    assert (answered.status, answered.body, answered["retry-after"]) == (503, error("busy"), b"0")
    assert answered["flowstack-upstream"] is None
    assert answered["flowstack-attempts"] is None
    assert lab.row["attempts_detail"] is None


def test_a_connection_that_cannot_be_made_is_tried_again() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(on=("connect",))),))
    endpoint = lab.providers["openai"].endpoint
    endpoint.at_once = False
    client = chat(lab)
    endpoint.attempts[0].refuse(ConnectionRefusedError())
    lab.turns.advance(1)
    endpoint.attempts[1].accept()
    gives(lab, http(200, OK))
    assert answer(client).status == 200
    assert detail(lab) == [("openai", None, "connect"), ("openai", 200, None)]
    assert lab.row["attempts"] == 1


@pytest.mark.parametrize("on", [("reset",), ("connect", 503)])
def test_a_kept_connection_that_turns_out_dead_is_a_reset(on: tuple[str | int, ...]) -> None:
    lab = Lab(upstreams=(openai(retry=Retry(on=on)),))
    chat(lab)
    gives(lab, http(200, OK))
    client = chat(lab)
    assert len(peers(lab)) == 1  # the same connection
    peers(lab)[-1].fall_over()
    lab.turns.advance(1)
    if "reset" in on:
        gives(lab, http(200, OK))
    assert answer(client).status == (200 if "reset" in on else 502)


def test_after_the_last_attempt_its_own_answer_goes_back_untouched() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(attempts=3)),))
    client = chat(lab)
    for number in range(3):
        gives(lab, http(503, error(f"busy-{number}"), b"X-Own: %d" % number))
        lab.turns.advance(5)
    answered = answer(client)
    assert (answered.status, answered.body, answered["x-own"]) == (503, error("busy-2"), b"2")
    assert answered["flowstack-attempts"] == b"3"
    assert lab.row["error_code"] is None
    assert lab.courses["openai"].rescued == 0


def test_where_the_last_attempt_gets_no_answer_the_one_before_goes_back() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(on=(429,), attempts=3)),))
    client = chat(lab)
    gives(lab, http(429, error("rate_limit_exceeded")))
    lab.turns.advance(1)
    peers(lab)[-1].fall_over()
    answered = answer(client)
    assert (answered.status, answered.body) == (429, error("rate_limit_exceeded"))
    assert detail(lab) == [("openai", 429, None), ("openai", None, "reset")]


def test_what_was_silent_is_not_asked_a_second_time() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY, first_byte=5.0),))
    client = chat(lab)
    lab.turns.advance(8)
    assert answer(client).error["code"] == "upstream_timeout"
    assert lab.row["end"] == "timeout"
    assert len(peers(lab)) == 1


WAITS = {
    "seconds": (b"Retry-After: 2", 2.0),
    "milliseconds": (b"retry-after-ms: 1500", 1.5),
    "a date": (b"Retry-After: " + formatdate(NOW + 3, usegmt=True).encode(), 3.0),
    "a date that is past": (b"Retry-After: " + formatdate(NOW - 3, usegmt=True).encode(), 0.0),
    "what cannot be read": (b"Retry-After: soon", 0.75),
    "nothing": (b"X-Other: 1", 0.75),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_upstream_says_how_long_to_wait(name: str) -> None:
    field, seconds = WAITS[name]
    lab = Lab(upstreams=(openai(retry=RETRY),))
    chat(lab)
    got(lab)
    gives(lab, http(429, b"{}", field))
    if seconds:
        lab.turns.advance(seconds - 0.01)
        assert got(lab) == b""
    lab.turns.advance(0.02)
    assert got(lab).startswith(b"POST ")


@pytest.mark.parametrize("within", [60.0, 3.0])
def test_a_longer_time_than_is_waited_for_is_the_client_s_to_wait(within: float) -> None:
    lab = Lab(upstreams=(openai(retry=Retry(within=within, retry_after_max=10 if within < 9 else 4)),))
    client = chat(lab)
    gives(lab, http(429, error("rate_limit_exceeded"), b"Retry-After: 5"))
    answered = answer(client)
    assert (answered.status, answered["retry-after"]) == (429, b"5")
    assert tries(lab) == 1


def test_waits_grow_and_are_bounded() -> None:
    retry = Retry(attempts=6, backoff=0.5, backoff_growth=3.0, backoff_max=4.0, budget_least=100)
    lab = Lab(upstreams=(openai(retry=retry),))
    chat(lab)
    for wait in (1.5, 4.0, 4.0):  # the longest that may be drawn
        got(lab)
        gives(lab, http(503))
        lab.turns.advance(wait - 0.01)
        assert got(lab) == b""
        lab.turns.advance(0.02)
        assert got(lab) != b""


def test_no_attempt_begins_after_its_time() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(within=5.0)),))
    client = chat(lab)
    lab.turns.advance(6)
    gives(lab, http(503))
    assert answer(client).status == 503
    assert tries(lab) == 1


def test_a_provider_that_is_down_is_not_asked_many_times_as_often() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(budget=0.2, budget_least=1, backoff=0)),))
    asked = 0
    for _ in range(20):
        client = chat(lab)
        for _ in range(3):
            asked += got(lab).count(b"POST /v1/")
            if answer(client).status:
                break
            gives(lab, http(503))
    assert asked == 20 + 4


def test_nothing_is_sent_for_a_client_that_left_while_it_waited() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = chat(lab)
    got(lab)
    gives(lab, http(503))
    client.hang_up()
    lab.turns.advance(5)
    assert got(lab) == b""
    assert lab.row["end"] == "client_gone"
    assert lab.room.held == 0


def test_after_a_byte_of_the_body_nothing_is_tried_again() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = chat(lab)
    gives(lab, STREAM + chunk(b"data: 1\n\n"))
    peers(lab)[-1].fall_over()
    lab.turns.advance(5)
    assert client.take().endswith(chunk(b"data: 1\n\n"))
    assert client.peer_saw is not None
    assert (lab.row["end"], tries(lab), len(peers(lab))) == ("upstream_lost", 1, 1)


def test_a_fault_of_flowstack_s_own_is_told_and_leaves_no_client_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = chat(lab)
    monkeypatch.setattr(lab.courses["openai"], "retry", 5)  # no rule
    gives(lab, http(503))
    assert answer(client).error["code"] == "internal_error"
    assert lab.row["end"] == "refused"


# The request's body.


def test_a_body_that_comes_in_pieces_is_held_and_sent_again_as_it_came() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    body = BODY.replace(b"hi", b"hi" * 100_000)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:1000])
    for start in range(1000, len(body), 30_000):
        client.send(body[start : start + 30_000])
    for status in (503, 200):
        peers(lab)[-1].read()
        assert body_of(got(lab)) == body
        gives(lab, http(status, OK))
        lab.turns.advance(1)
    assert answer(client).status == 200
    assert lab.room.held == 0


def test_a_chunked_body_is_sent_again_chunked() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = lab.ask(CHAT, JSON, b"Transfer-Encoding: chunked", body=chunk(BODY[:9]))
    client.send(chunk(BODY[9:]) + b"0\r\n\r\n")
    first = got(lab)
    gives(lab, http(503))
    lab.turns.advance(1)
    assert got(lab) == first
    assert b"Transfer-Encoding: chunked" in first


def test_a_body_that_is_too_large_to_be_held_is_sent_once_as_it_comes() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),), retry_body_bytes=1000)
    body = BODY.replace(b"hi", b"hi" * 1000)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:500])
    assert got(lab).endswith(body[:500])
    client.send(body[500:])
    assert got(lab) == body[500:]
    gives(lab, http(503))
    assert answer(client).status == 503
    assert lab.room.refused == 1
    assert tries(lab) == 1


def test_a_chunked_body_that_turns_out_too_large_goes_on_as_it_comes() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),), retry_body_bytes=1000)
    client = lab.ask(CHAT, JSON, b"Transfer-Encoding: chunked", body=chunk(b"[" + b"1," * 300))
    assert peers(lab) == []
    client.send(chunk(b"2," * 300))
    assert b"2,2," in got(lab)
    client.send(chunk(b"3]") + b"0\r\n\r\n")
    assert b"3]" in got(lab)
    gives(lab, http(503))
    assert answer(client).status == 503


def test_no_more_is_held_than_there_is_room_for() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),), retry_memory_bytes=2 * len(BODY))
    for _ in range(3):
        chat(lab)
    assert (lab.room.held, lab.room.refused) == (2 * len(BODY), 1)
    statuses = []
    for peer in list(peers(lab)):
        peer.send(http(503))
    lab.turns.advance(2)
    statuses = [row["status"] for row in lab.rows]
    assert statuses == [503]  # the others wait for a second answer


def test_a_waiting_client_is_told_to_go_on_and_the_limits_are_asked_before() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),), limiter=SlowLimiter())
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), b"Expect: 100-continue")
    assert client.take() == b""
    lab.limiter.answer()  # type: ignore[attr-defined]
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(BODY)
    assert body_of(got(lab)) == BODY


# Several targets.


def test_another_target_is_asked_at_once_by_its_own_address() -> None:
    lab = Lab(upstreams=(targets(1, 1, retry=RETRY),))
    client = chat(lab)
    (first,) = [label for label in ("openai/eu", "openai/us") if peers(lab, label)]
    (second,) = {"openai/eu", "openai/us"} - {first}
    gives(lab, http(503), first)
    sent = got(lab, second)
    assert fields_of(sent)[b"host"] == second.removeprefix("openai/").encode() + b".example"
    assert fields_of(sent)[b"authorization"] == b"Bearer sk-of-the-client"
    gives(lab, http(200, OK), second)
    assert answer(client)["flowstack-upstream"] == second.encode()
    assert (lab.row["upstream"], len(detail(lab))) == ("openai", 2)


def test_requests_are_shared_out_by_weight() -> None:
    lab = Lab(upstreams=(targets(3, 1),))
    for _ in range(40):
        chat(lab)
        for label in ("openai/eu", "openai/us"):
            if peers(lab, label) and got(lab, label):
                gives(lab, http(200, OK), label)
    assert [one.health.requests for one in lab.courses["openai"].targets] == [30, 10]


def test_the_least_busy_target_is_asked() -> None:
    lab = Lab(upstreams=(targets(1, 1),))
    for _ in range(6):
        chat(lab)
    assert [len(peers(lab, f"openai/{one}")) for one in ("eu", "us")] == [3, 3]
    for peer in peers(lab, "openai/eu"):
        peer.send(http(200, OK))
    for _ in range(3):
        chat(lab)
    assert [one.in_flight for one in lab.courses["openai"].targets] == [3, 3]


def eject(lab: Lab, label: str, failures: int = 5) -> None:
    """Have so many requests fail at a target; those that reach another are answered well."""
    failed = 0
    while failed < failures:
        chat(lab)
        for one in lab.providers:
            if peers(lab, one) and got(lab, one):
                gives(lab, http(503 if one == label else 200, OK), one)
                failed += one == label


def asked(lab: Lab) -> str:
    (label,) = [one for one in lab.providers if peers(lab, one) and got(lab, one)]
    return label


def test_a_target_that_fails_again_and_again_is_left_alone_then_tried_by_one_request() -> None:
    lab = Lab(upstreams=(targets(1, 1, health=Health(eject=1.0, eject_max=5.0)),))
    eject(lab, "openai/eu")
    for _ in range(4):
        chat(lab)
        assert asked(lab) == "openai/us"
        gives(lab, http(200, OK), "openai/us")
    lab.turns.advance(1.1)
    chat(lab)  # the probe
    assert asked(lab) == "openai/eu"
    chat(lab)
    assert asked(lab) == "openai/us"
    gives(lab, http(503), "openai/eu")
    lab.turns.advance(1.5)  # twice as long now
    chat(lab)
    assert asked(lab) == "openai/us"
    lab.turns.advance(0.6)
    chat(lab)
    assert asked(lab) == "openai/eu"
    gives(lab, http(200, OK), "openai/eu")
    assert not lab.courses["openai"].targets[0].health.down
    assert lab.courses["openai"].targets[0].ejections == 2


def test_where_too_many_are_down_all_are_asked() -> None:
    lab = Lab(upstreams=(targets(1, 1, health=Health(panic=0.5)),))
    for label in ("openai/eu", "openai/us"):
        eject(lab, label)
    asks = set()
    for _ in range(2):
        chat(lab)
        asks.add(asked(lab))
    assert asks == {"openai/eu", "openai/us"}


def test_without_a_panic_threshold_a_request_is_refused_where_all_are_down() -> None:
    lab = Lab(upstreams=(openai(retry=Retry(attempts=1), health=Health(panic=0.0)),))
    eject(lab, "openai")
    client = chat(lab)
    answered = answer(client)
    assert (answered.status, answered.error["code"], answered["retry-after"]) == (502, "upstream_unreachable", b"1")
    assert "down" in answered.error["message"]
    assert (lab.rows[-1]["attempts"], lab.rows[-1]["end"]) == (0, "upstream_lost")
    assert answered["flowstack-attempts"] is None


# The first byte.


def test_an_answer_whose_first_byte_does_not_come_is_asked_for_at_another_target() -> None:
    lab = Lab(upstreams=(targets(1, 1, retry=RETRY, first_byte=5.0),))
    client = chat(lab)
    first = asked(lab)
    gives(lab, STREAM, first)
    assert client.take() == b""
    lab.turns.advance(8)
    second = asked(lab)
    assert second != first
    assert peers(lab, first)[-1].peer_saw == "reset"
    gives(lab, STREAM + chunk(b"data: 1\n\n"), second)
    gives(lab, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n", second)
    answered = Answer(client.take())
    assert answered.body == chunk(b"data: 1\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    assert detail(lab) == [(first, 200, "timeout"), (second, 200, None)]
    assert lab.row["attempts_detail"][0]["may_be_billed"] is True


def test_a_head_that_is_held_goes_out_with_the_first_byte_in_one_write() -> None:
    for first_byte in (None, 5.0):
        lab = Lab(upstreams=(openai(first_byte=first_byte),))
        client = chat(lab)
        gives(lab, STREAM)
        gives(lab, chunk(b"data: 1\n\n"))
        gives(lab, chunk(b"data: 2\n\n"))
        gives(lab, b"0\r\n\r\n")
        assert len(client.writes) == (3 if first_byte else 4)
        assert lab.row["end"] == "complete"


def test_a_slow_upload_is_no_slow_answer() -> None:
    lab = Lab(upstreams=(openai(first_byte=5.0),), retry_body_bytes=1000)
    body = BODY.replace(b"hi", b"hi" * 1000)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:500])
    for start in range(500, len(body), 500):
        lab.turns.advance(4)
        client.send(body[start : start + 500])
    lab.turns.advance(8)
    gives(lab, http(200, OK))
    assert answer(client).status == 200


EMPTY = {
    "no byte at all": http(200, b""),
    "chunks without one": (STREAM, b"0\r\n\r\n"),
    "one at the end": (STREAM, chunk(b"x") + b"0\r\n\r\n"),
    "all at once": http(200, OK),
    "an end of the connection": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", None),
}


@pytest.mark.parametrize("name", EMPTY)
def test_whatever_ends_before_its_time_passes_as_it_is(name: str) -> None:
    told = []
    for first_byte in (None, 5.0):
        lab = Lab(upstreams=(openai(first_byte=first_byte),))
        client = chat(lab)
        pieces = EMPTY[name] if isinstance(EMPTY[name], tuple) else (EMPTY[name],)
        for piece in pieces:
            peers(lab)[-1].hang_up() if piece is None else gives(lab, piece)
        told.append(Answer(client.take()).body)
        assert lab.row["end"] == "complete"
    assert told[0] == told[1]


def test_a_body_that_breaks_off_before_its_first_byte_is_asked_for_again() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY, first_byte=5.0),))
    client = chat(lab)
    gives(lab, STREAM)
    peers(lab)[-1].fall_over()
    lab.turns.advance(1)
    gives(lab, http(200, OK))
    assert answer(client).body == OK


def test_a_client_that_leaves_before_the_first_byte_ends_the_attempt() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY, first_byte=5.0),))
    client = chat(lab)
    gives(lab, STREAM)
    client.hang_up()
    assert peers(lab)[-1].peer_saw == "reset"
    assert lab.row["end"] == "client_gone"


# Another upstream.


def test_the_fallback_gets_the_request_with_its_own_key_and_address() -> None:
    lab = with_azure()
    client = chat(lab, BODY, b"OpenAI-Organization: org-client", b"Cookie: c=client", b"X-Own: 1")
    assert fields_of(got(lab))[b"authorization"] == b"Bearer sk-of-the-client"
    gives(lab, http(503))
    sent = got(lab, "azure")
    assert sent.startswith(b"POST /openai/v1/chat/completions HTTP/1.1\r\n")
    assert body_of(sent) == BODY
    fields = fields_of(sent)
    assert (fields[b"host"], fields[b"api-key"], fields[b"x-own"]) == (b"azure.example", b"azure-secret", b"1")
    assert b"client" not in sent
    gives(lab, http(200, OK), "azure")
    answered = answer(client)
    assert (answered.status, answered["flowstack-upstream"]) == (200, b"azure/azure")
    assert answered["flowstack-attempts"] == b"2"
    assert lab.row["upstream"] == "azure"
    assert detail(lab) == [("openai", 503, None), ("azure", 200, None)]
    assert b"azure-secret" not in b"".join(peers(lab)[0].writes)


def test_only_the_model_changes_on_its_way_to_the_fallback() -> None:
    rule = Fallback("azure", Pairs([("gpt-4*", "my-own")]))
    body = b'{ "messages":[{"model":"gpt-4o"}],\t"model" : "gpt\\u002d4o" ,"x":"\\/"}'
    lab = with_azure(rule)
    chat(lab, body)
    gives(lab, http(503))
    sent = got(lab, "azure")
    assert body_of(sent) == b'{ "messages":[{"model":"gpt-4o"}],\t"model" : "my-own" ,"x":"\\/"}'
    assert fields_of(sent)[b"content-length"] == b"%d" % len(body_of(sent))
    gives(lab, http(200, b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'), "azure")
    assert (lab.row["model_requested"], lab.row["model"]) == ("gpt-4o", "my-own")


def test_a_fallback_s_own_fallback_is_asked_by_the_model_that_was_asked_for_before_it() -> None:
    second = Upstream(name="local", base_url="http://local.example/v1", default=False)
    first = azure(fallback=Fallback("local", Pairs([("my-own", "small"), ("gpt-4o", "never")])))
    rule = Fallback("azure", Pairs([("gpt-4o", "my-own")]))
    keys = AZURE_KEY | {"local": (b"local-secret",)}
    lab = Lab(upstreams=(openai(fallback=rule), first, second), provider_keys=keys)
    client = chat(lab)
    gives(lab, http(503))
    assert b'"my-own"' in got(lab, "azure")
    gives(lab, http(503), "azure")
    sent = got(lab, "local")
    assert body_of(sent) == BODY.replace(b"gpt-4o", b"small")
    assert b"azure-secret" not in sent and fields_of(sent)[b"authorization"] == b"Bearer local-secret"
    gives(lab, http(200, b"{}"), "local")
    answered = answer(client)
    assert (answered["flowstack-upstream"], answered["flowstack-attempts"]) == (b"local/local", b"3")
    assert (lab.row["upstream"], lab.row["model"]) == ("local", "small")


def test_an_error_of_flowstack_s_own_says_how_many_attempts_there_were() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = chat(lab)
    for _ in range(3):
        peers(lab)[-1].fall_over()
        lab.turns.advance(5)
    answered = answer(client)
    assert answered.error["code"] == "upstream_closed"
    assert (answered["flowstack-upstream"], answered["flowstack-attempts"]) == (b"openai/openai", b"3")


NOT_RESCUED = {
    "a content filter's 400": (http(400, error("content_filter")), Fallback("azure", context_length=True)),
    "a 400 that says it is too long": (http(400, error("context_length_exceeded")), Fallback("azure")),
    "a 404": (http(404), Fallback("azure")),
    "a status that is not named": (http(503), Fallback("azure", on=(500,))),
}


@pytest.mark.parametrize("name", NOT_RESCUED)
def test_what_is_not_for_the_fallback_goes_to_the_client_as_it_is(name: str) -> None:
    told, rule = NOT_RESCUED[name]
    lab = with_azure(rule)
    client = chat(lab)
    gives(lab, told)
    assert Answer(client.take()).body == told.partition(b"\r\n\r\n")[2]
    assert peers(lab, "azure") == []


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_is_too_long_is_rescued_where_that_is_asked_for(pieces: int) -> None:
    lab = with_azure(Fallback("azure", context_length=True))
    client = chat(lab)
    told = http(400, error("context_length_exceeded"))
    for start in range(0, len(told), len(told) // pieces + 1):
        gives(lab, told[start : start + len(told) // pieces + 1])
    gives(lab, http(200, OK), "azure")
    assert answer(client).body == OK


def test_a_content_filter_s_refusal_that_comes_in_pieces_comes_through_whole() -> None:
    lab = with_azure(Fallback("azure", context_length=True))
    client = chat(lab)
    told = http(400, error("content_filter"), b"X-Own: 1")
    for start in range(0, len(told), 70):
        gives(lab, told[start : start + 70])
    answered = answer(client)
    assert (answered.status, answered.body, answered["x-own"]) == (400, error("content_filter"), b"1")


NOT_ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the key may not reach it": ({"upstreams": ("openai",)}, {}),
    "the key may not use that model": ({"models": ("gpt-4o",)}, {"models": Pairs([("gpt-4o", "dear")])}),
}


@pytest.mark.parametrize("name", NOT_ALLOWED)
def test_the_fallback_gets_nothing_that_the_key_may_not_do_there(name: str) -> None:
    key, rule = NOT_ALLOWED[name]
    lab = with_azure(Fallback("azure", **rule))
    lab.keys.add(KEY, **key)
    client = chat(lab)
    gives(lab, http(503))
    assert answer(client).status == 503
    assert peers(lab, "azure") == []


REFERS = {
    "a stored response": (b"POST /v1/responses HTTP/1.1", b'{"model":"gpt-4o","previous_response_id":"resp_1"}'),
    "a batch": (b"POST /v1/batches HTTP/1.1", b'{"input_file_id":"file-1","endpoint":"/v1/responses"}'),
    "a file": (b"GET /v1/files/file-1 HTTP/1.1", b""),
}


@pytest.mark.parametrize("name", REFERS)
def test_what_is_stored_at_one_upstream_is_not_asked_for_at_another(name: str) -> None:
    line, body = REFERS[name]
    lab = with_azure()
    client = chat(lab, body, line=line)
    gives(lab, http(503))
    assert answer(client).status == 503
    assert peers(lab, "azure") == []


def test_on_a_websocket_that_the_fallback_opened_nobody_goes_on_from_what_others_stored_there() -> None:
    lab = with_azure()
    client = lab.ask(b"GET /v1/responses HTTP/1.1", OWN, *OPENING)
    gives(lab, http(503, b"{}"))
    assert b"\r\napi-key: azure-secret\r\n" in got(lab, "azure")
    switched = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
    peers(lab, "azure")[-1].send(switched % accept_of(SOCKET_KEY))
    assert answer(client).status == 101
    ours, theirs = End(client, True), End(peers(lab, "azure")[-1], False)
    ours.say({"type": "response.create", "model": "gpt-4o", "previous_response_id": "resp_of_others"})
    assert theirs.events() == []
    assert ours.events()[0]["error"]["code"] == "endpoint_not_allowed"
    ours.say({"type": "response.create", "model": "gpt-4o", "input": "hello"})
    assert len(theirs.events()) == 1


def test_a_lone_target_that_is_down_is_passed_by_at_once_where_there_is_a_fallback() -> None:
    lab = with_azure(health=Health(eject=1.0))
    for _ in range(5):
        chat(lab)
        gives(lab, http(503))
        gives(lab, http(200, OK), "azure")
    got(lab), got(lab, "azure")
    client = chat(lab)
    assert got(lab) == b""
    assert got(lab, "azure").startswith(b"POST ")
    gives(lab, http(200, OK), "azure")
    assert answer(client)["flowstack-attempts"] == b"1"
    lab.turns.advance(1.1)
    chat(lab)
    assert got(lab).startswith(b"POST ")
    gives(lab, http(200, OK))
    assert not lab.courses["openai"].targets[0].health.down


def test_when_all_fail_the_last_upstream_s_own_answer_goes_back() -> None:
    lab = with_azure()
    client = chat(lab)
    gives(lab, http(503, error("primary")))
    gives(lab, http(500, error("fallback"), b"X-Own: 2"), "azure")
    answered = answer(client)
    assert (answered.status, answered.body, answered["x-own"]) == (500, error("fallback"), b"2")


# Several keys of the operator.


def test_keys_are_used_in_turn_and_a_refused_one_is_set_aside() -> None:
    lab = Lab(upstreams=(openai(),), provider_keys={"openai": (b"sk-1", b"sk-2", b"sk-3")})
    used = []
    client = chat(lab)
    used.append(fields_of(got(lab))[b"authorization"])
    gives(lab, http(401, error("invalid_api_key")))
    used.append(fields_of(got(lab))[b"authorization"])
    gives(lab, http(200, OK))
    assert answer(client).status == 200
    for _ in range(3):
        chat(lab)
        used.append(fields_of(got(lab))[b"authorization"])
        gives(lab, http(200, OK))
    assert used == [b"Bearer sk-%d" % number for number in (2, 3, 1, 3, 1)]


def test_a_key_that_used_up_its_rate_rests_as_long_as_it_is_told() -> None:
    lab = Lab(upstreams=(openai(),), provider_keys={"openai": (b"sk-1", b"sk-2")})
    client = chat(lab)
    assert fields_of(got(lab))[b"authorization"] == b"Bearer sk-2"
    gives(lab, http(429, b"{}", b"Retry-After: 20"))
    for wait, key in ((0, b"sk-1"), (19, b"sk-1"), (2, b"sk-2")):
        lab.turns.advance(wait)
        if wait:
            chat(lab)
        assert fields_of(got(lab))[b"authorization"] == b"Bearer " + key
        gives(lab, http(200, OK))
    assert answer(client).status == 200


def test_each_target_has_keys_of_its_own() -> None:
    keys = {"openai/eu": (b"sk-eu",), "openai/us": (b"sk-us-1", b"sk-us-2")}
    lab = Lab(upstreams=(targets(1, 1, retry=RETRY),), provider_keys=keys)
    used = set()
    for _ in range(8):
        client = chat(lab)
        for label in keys:
            sent = got(lab, label) if peers(lab, label) else b""
            if sent:
                used.add((label, fields_of(sent)[b"authorization"]))
                assert b"sk-of-the-client" not in sent
                gives(lab, http(200, OK), label)
        assert answer(client).status == 200
    assert used == {(label, b"Bearer " + key) for label, ring in keys.items() for key in ring}


def test_where_all_keys_are_refused_the_client_gets_the_last_refusal() -> None:
    lab = Lab(upstreams=(openai(),), provider_keys={"openai": (b"sk-1", b"sk-2")})
    client = chat(lab)
    gives(lab, http(401, error("one")))
    gives(lab, http(401, error("two")))
    answered = answer(client)
    assert (answered.status, answered.body) == (401, error("two"))


# What it costs.


def test_an_attempt_that_may_be_billed_keeps_its_estimate_as_a_charge_of_its_own() -> None:
    lab = Lab(upstreams=(targets(1, 1, retry=RETRY, first_byte=5.0),))
    lab.limiter.metered = True
    chat(lab)
    first = asked(lab)
    lab.turns.advance(8)
    second = asked(lab)
    gives(lab, http(200, OK), second)
    assert [one["may_be_billed"] for one in lab.row["attempts_detail"]] == [True, False]
    assert lab.row["attempts_detail"][0]["target"] == first
    ((tokens, cost),) = lab.limiter.charged
    assert (tokens, cost) == lab.limiter.given[0].claimed[0]
    assert lab.limiter.settled[0]["prompt_tokens"] == 1000


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_attempt_that_was_refused_costs_nothing(status: int) -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    lab.limiter.metered = True
    chat(lab)
    gives(lab, http(status))
    lab.turns.advance(1)
    gives(lab, http(200, OK))
    assert lab.row["status"] == 200
    assert lab.limiter.charged == []


def test_requests_with_the_same_head_are_tried_again_each_with_its_own_body() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),))
    client = lab.client()
    for word in (b"one", b"three", b"fifteen"):
        body = BODY.replace(b"hi", word)
        client.send(request(CHAT, JSON, OWN, b"Content-Length: %d" % len(body), body=body))
        for status in (503, 200):
            sent = got(lab)
            assert (body_of(sent), fields_of(sent)[b"content-length"]) == (body, b"%d" % len(body))
            gives(lab, http(status, OK))
            lab.turns.advance(1)
        assert answer(client).status == 200


# Routes by model.


def by_model(**server: Any) -> Lab:
    local = Upstream(name="local", base_url="http://local.example/v1", default=False, models=("llama-*", "gpt-4o-mini"))
    return Lab(upstreams=(openai(hosts=("api.example",)), local), **server)


@pytest.mark.parametrize(
    ("model", "label"), [("gpt-4o", "openai"), ("gpt-4o-mini", "local"), ("llama-3", "local"), ("llama", "openai")]
)
def test_the_model_selects_the_upstream(model: str, label: str) -> None:
    lab = by_model()
    client = chat(lab, json.dumps({"messages": [], "model": model}).encode())
    assert asked(lab) == label
    gives(lab, http(200, OK), label)
    assert answer(client).status == 200
    assert lab.row["upstream"] == label


def test_a_host_that_selects_an_upstream_goes_before_the_model() -> None:
    lab = by_model()
    client = lab.client()
    body = BODY.replace(b"gpt-4o", b"llama-3")
    sent = request(CHAT, JSON, b"Content-Length: %d" % len(body), body=body)
    client.send(sent.replace(b"flowstack.example", b"api.example"))
    assert asked(lab) == "openai"


def test_each_request_of_a_connection_goes_where_its_own_model_leads() -> None:
    lab = by_model()
    client = lab.client()
    for model, label in ((b"gpt-4o", "openai"), (b"llama1", "openai"), (b"llama-", "local"), (b"gpt-4o", "openai")):
        body = BODY.replace(b"gpt-4o", model)
        client.send(request(CHAT, JSON, b"Content-Length: %d" % len(body), body=body))
        assert asked(lab) == label
        gives(lab, http(200, OK), label)


def test_a_body_that_comes_in_pieces_goes_where_its_model_leads() -> None:
    lab = by_model()
    body = BODY.replace(b"gpt-4o", b"llama-3")
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:5])
    assert [peers(lab, one) for one in lab.providers] == [[], []]
    client.send(body[5:])
    assert asked(lab) == "local"


def test_a_form_s_model_is_known_before_its_file_is() -> None:
    lab = by_model(retry_body_bytes=1000)
    part = b'--B\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    file = part % (b"file", b'; filename="a.wav"', b"\0" * 200_000)
    body = part % (b"model", b"", b"llama-3") + file + b"--B--\r\n"
    client = lab.ask(
        b"POST /v1/audio/transcriptions HTTP/1.1", b"Content-Type: multipart/form-data; boundary=B",
        b"Content-Length: %d" % len(body), body=body[:90_000],
    )  # fmt: skip
    client.send(body[90_000:])
    peers(lab, "local")[-1].read()
    assert body_of(got(lab, "local")) == body


def test_a_body_that_names_its_model_too_late_is_refused() -> None:
    lab = by_model(retry_body_bytes=1000)
    body = b'{"messages": "%b", "model": "llama-3"}' % (b"x" * 200_000)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:90_000])
    client.send(body[90_000:])
    answered = answer(client)
    assert (answered.status, answered.error["code"]) == (413, "request_too_large")
    assert "retry_body_bytes" in answered.error["message"]


def test_a_key_is_held_to_its_upstreams_where_the_model_selects_one() -> None:
    lab = by_model()
    lab.keys.add(KEY, upstreams=("openai",))
    client = chat(lab, BODY.replace(b"gpt-4o", b"llama-3"))
    assert answer(client).error["code"] == "upstream_not_allowed"


def test_a_slow_limiter_is_asked_after_a_body_was_held() -> None:
    lab = Lab(upstreams=(openai(retry=RETRY),), limiter=SlowLimiter())
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY[:5])
    client.send(BODY[5:])
    assert lab.limiter.waiting == 1  # type: ignore[attr-defined]
    lab.limiter.answer()  # type: ignore[attr-defined]
    lab.turns.settle()
    assert body_of(got(lab)) == BODY
    assert RESERVING in GATHERING.next
