"""What of a body goes upstream before it is judged, what an upstream may answer by then, and what is charged."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from flowstack.config import Ledger as LedgerSettings
from flowstack.errors import BudgetExceeded
from flowstack.limits.charge import charged_nanos, charged_tokens
from flowstack.server.request_body import WINDOW
from flowstack.usage.inject import ADDED
from flowstack.usage.members import MAX_VALUE
from tests.harness import Transport
from tests.relay.lab import KEY, Answer, Lab, answer, request

CHAT = b"POST /v1/chat/completions HTTP/1.1"
SPEECH = b"POST /v1/audio/transcriptions HTTP/1.1"
JSON = b"Content-Type: application/json"
FORM = b"Content-Type: multipart/form-data; boundary=BB"
TEXT = b"Content-Type: text/plain"

GOOD = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi}"}]}'
FIELD = b'--BB\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o'
LAST = b"\r\n--BB--"

LIMITED: dict[str, Any] = {"models": ("gpt-4o*",)}


def lab_of(kind: str) -> Lab:
    """A key whose bodies must be judged, for what its line says or for whose provider key it uses."""
    lab = Lab()
    if kind == "limited":
        lab.keys.add(KEY, **LIMITED)
    else:
        lab.relay.provider_keys = {"openai": b"sk-of-the-operator"}
    return lab


KINDS = pytest.mark.parametrize("kind", ["limited", "operator's"])


def begin(lab: Lab, fields: tuple[bytes, ...], body: bytes, length: int, line: bytes = CHAT) -> Transport:
    return lab.ask(line, *fields, b"Content-Length: %d" % length, body=body)


def went(lab: Lab) -> bytes:
    """What an upstream had of the body."""
    return bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")[2] if lab.upstreams else b""


def assert_refused(lab: Lab, client: Transport, status: int = 403, code: str = "") -> Answer:
    """The client has its answer, the row says so, and no connection is left that had a part of the body."""
    code = code or ("endpoint_not_allowed" if lab.relay.provider_keys else "model_not_allowed")
    got = answer(client)
    assert (got.status, got.error["code"]) == (status, code)
    row = lab.row
    assert (row["status"], row["error_code"]) == (status, code)
    (provider,) = lab.providers.values()
    assert [upstream.peer_saw for upstream in lab.upstreams] == ["reset"] * len(lab.upstreams)
    assert (provider.pool.size, provider.pool.idle) == (0, [])
    return got


def is_complete(field: bytes, sent: bytes) -> bool:
    """Whether an upstream that waits for no more has a request in what came."""
    if field is FORM:
        return LAST in sent
    try:
        json.JSONDecoder().raw_decode(sent.decode().lstrip())
    except ValueError:
        return False
    return True


FAULTS = [
    ("text behind it", JSON, GOOD, b"xx"),
    ("another object", JSON, GOOD, b'{"model":"o1"}'),
    ("a line behind it", JSON, GOOD, b'\n{"model":"o1"}\n'),
    ("a comma", JSON, GOOD, b" ,"),
    ("a NUL", JSON, GOOD, b"\0"),
    ("too much space", JSON, GOOD, b" " * (MAX_VALUE + 1)),
    ("too many lines", JSON, GOOD, b"\r\n" * MAX_VALUE),
    ("a byte order mark", JSON, b"", b"\xef\xbb\xbf" + GOOD),
    ("a list", JSON, b"", b"[" + GOOD + b"]"),
    ("a string", JSON, b"", b'"' + GOOD + b'"'),
    ("a model twice", JSON, b'{"model":"gpt-4o",', b'"model":"gpt-4o"}'),
    ("a model in other case", JSON, b'{"model":"gpt-4o",', b'"Model":"o1"}'),
    ("a comment", JSON, b'{"model":"gpt-4o",', b'/* */"messages":[]}'),
    ("an epilogue", FORM, FIELD + LAST, b"\r\nxx"),
    ("text behind the last delimiter", FORM, FIELD + LAST, b"xx"),
    ("line ends without end", FORM, FIELD + LAST, b"\r\n" * 10),
    ("a preamble", FORM, b"", b"xx\r\n" + FIELD + LAST),
    ("a bare line feed", FORM, FIELD, b"\n--BB--"),
    ("a field twice", FORM, FIELD, b"\r\n" + FIELD + LAST),
]
"""What is wrong with it, its Content-Type, what of a body is good, and what then makes it bad."""


@KINDS
@pytest.mark.parametrize(("why", "field", "good", "bad"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_refused_when_it_has_come_and_nothing_more_goes(
    kind: str, why: str, field: bytes, good: bytes, bad: bytes
) -> None:
    line = SPEECH if field is FORM else CHAT
    first = len(good) + min(len(bad), 40)
    for at in [*range(first), len(good) + len(bad)]:
        lab = lab_of(kind)
        body = good + bad
        client = begin(lab, (field,), body[:at], 1_000_000, line)  # which is never sent to its end
        if not client.got:
            assert len(lab.upstreams) == 1
            client.send(body[at:])
        assert_refused(lab, client)
        sent = went(lab)
        assert body.startswith(sent) and len(sent) < len(body), at
        assert not is_complete(field, sent), at


@KINDS
@pytest.mark.parametrize(("why", "field", "good", "bad"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_that_comes_with_the_head_makes_no_connection(
    kind: str, why: str, field: bytes, good: bytes, bad: bytes
) -> None:
    lab = lab_of(kind)
    client = begin(lab, (field,), good + bad, 1_000_000, SPEECH if field is FORM else CHAT)
    assert_refused(lab, client)
    assert lab.upstreams == []
    assert (lab.row["attempts"], lab.limiter.reserved) == (0, 0)


@KINDS
@pytest.mark.parametrize("came", [b"", GOOD[:20]])
@pytest.mark.parametrize(
    "fields",
    [
        (JSON, b"Content-Encoding: gzip"),
        (JSON, b"Content-Encoding: identity, br"),
        (TEXT,),
        (b"Content-Type: application/json; charset=utf-16",),
        (b"Content-Type: multipart/form-data",),
        (JSON, JSON),
        (JSON, FORM),
        (JSON, b"Content-Encoding: identity", b"Content-Encoding: identity"),
        (JSON, b"Content-Encoding: gzip", b"Expect: 100-continue"),
    ],
)
@pytest.mark.parametrize("length", [b"Content-Length: 500", b"Content-Length: 500000", b"Transfer-Encoding: chunked"])
def test_what_the_head_says_is_unreadable_is_refused_before_anything_of_it_is_taken(
    kind: str, fields: tuple[bytes, ...], came: bytes, length: bytes
) -> None:
    lab = lab_of(kind)
    came = b"%x\r\n%b\r\n" % (len(came), came) if came and length.startswith(b"T") else came
    client = lab.ask(CHAT, *fields, length, body=came)
    assert b"100 Continue" not in client.got
    got = assert_refused(lab, client)
    assert got["connection"] == b"close"
    assert lab.upstreams == []
    assert lab.limiter.reserved == 0


def test_a_model_that_is_not_allowed_is_refused_as_soon_as_it_is_read() -> None:
    lab = lab_of("limited")
    client = begin(lab, (JSON,), b'{"messages":[],"mod', 1_000_000)
    assert went(lab) == b'{"messages":[],"mo'
    client.send(b'el":"o1')
    assert client.got == b""
    client.send(b'"')
    assert_refused(lab, client)
    assert lab.row["model_requested"] == "o1"
    assert went(lab) == b'{"messages":[],"model":"o'
    at_hand = lab_of("limited")
    assert_refused(at_hand, begin(at_hand, (JSON,), b'{"model":"o1",', 1_000_000))
    assert at_hand.upstreams == []


def test_what_is_stored_is_refused_as_soon_as_it_is_read_under_the_operator_s_key() -> None:
    lab = lab_of("operator's")
    line = b"POST /v1/responses HTTP/1.1"
    client = begin(lab, (JSON,), b'{"conversation":"c', 1_000_000, line)
    client.send(b'onv_1"')
    assert_refused(lab, client, 403, "endpoint_not_allowed")


@pytest.mark.parametrize(("field", "body"), [(JSON, GOOD), (FORM, FIELD + LAST + b"\r\n")])
@KINDS
def test_a_good_body_passes_byte_for_byte_and_its_end_at_its_end(kind: str, field: bytes, body: bytes) -> None:
    end = LAST + b"\r\n" if field is FORM else b"}"
    more = b"\r" if field is FORM else b"\n"  # a byte that may follow
    for at in range(len(body)):
        lab = lab_of(kind)
        client = begin(lab, (field,), body[:at], len(body) + 1, SPEECH if field is FORM else CHAT)
        client.send(body[at:])
        assert went(lab) == body[: -len(end)], at
        client.send(more)
        assert went(lab) == body + more, at
        lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert answer(client).body == b"ok"
        (provider,) = lab.providers.values()
        assert len(provider.pool.idle) == 1


@KINDS
def test_white_space_behind_an_object_may_be_as_much_as_is_held(kind: str) -> None:
    lab, body = lab_of(kind), GOOD + b" " * (MAX_VALUE - 1)
    client = begin(lab, (JSON,), GOOD, len(body))
    client.send(body[len(GOOD) :], 10_000)
    assert went(lab) == body


# Chunks, trailers, pipelining, and an upstream that reads slowly.


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"Transfer-Encoding: chunked"


@KINDS
def test_a_chunked_body_keeps_its_end_until_its_last_chunk_and_trailers_have_come(kind: str) -> None:
    lab = lab_of(kind)
    client = lab.ask(CHAT, JSON, CHUNKED, body=chunk(GOOD[:30]))
    client.send(chunk(GOOD[30:]) + b"0\r\nX-Trailer: }\r\n")
    assert went(lab).endswith(GOOD[30:-1] + b"\r\n")
    client.send(b"\r\n")
    assert went(lab).endswith(b"1\r\n}\r\n0\r\n\r\n")


@KINDS
def test_a_whole_chunked_body_at_hand_is_judged_before_an_upstream_hears_of_it(kind: str) -> None:
    lab = lab_of(kind)
    client = lab.ask(CHAT, JSON, CHUNKED, body=chunk(GOOD) + chunk(b"x") + b"0\r\n\r\n")
    got = assert_refused(lab, client)
    assert lab.upstreams == []
    assert got["connection"] is None, "the connection lives on, as all of the request came"
    client.send(request(CHAT, JSON, CHUNKED, body=chunk(GOOD) + b"0\r\n\r\n"))
    assert went(lab) == chunk(GOOD) + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", [CHUNKED, b"Content-Length: 60000"])
@pytest.mark.parametrize("wrong", [b"x", b'{"model":"o1"}', b"\n{}"])
def test_a_body_that_is_gathered_is_refused_at_its_first_fault_and_makes_no_connection(
    framing: bytes, wrong: bytes
) -> None:
    framed = chunk if framing is CHUNKED else bytes
    for first in (b"", GOOD[:20], GOOD):
        lab = Lab()
        lab.limiter.metered = True
        lab.keys.add(KEY, tpm=5, **LIMITED)
        client = lab.ask(CHAT, JSON, framing, b"Expect: 100-continue", body=framed(first) if first else b"")
        assert (b"100 Continue" in client.take()) == (not first)
        client.send(framed(GOOD[len(first) :] + b" "))
        assert (client.got, lab.upstreams) == (b"", [])
        client.send(framed(wrong))
        assert_refused(lab, client)
        assert lab.upstreams == []
    lab = Lab()
    lab.limiter.metered = True
    lab.keys.add(KEY, tpm=5, **LIMITED)
    client = lab.ask(CHAT, JSON, framing, b"Expect: 100-continue", body=framed(b'{"model":"o1",'))
    assert_refused(lab, client)


def test_a_request_behind_one_that_was_refused_midway_is_never_read_as_one() -> None:
    lab = lab_of("limited")
    client = begin(lab, (JSON,), GOOD, len(GOOD) + 400)
    client.send(b"xx" + request(CHAT, JSON, b"Content-Length: %d" % len(GOOD), body=GOOD))
    assert_refused(lab, client)
    assert client.got == b""
    assert len(lab.upstreams) == 1


def test_a_body_that_an_upstream_takes_slowly_is_judged_all_the_same() -> None:
    lab = lab_of("limited")
    begun = b'{"model":"gpt-4o","messages":"'
    client = begin(lab, (JSON,), begun, 10_000_000)
    lab.upstreams[0].peer_reads = False
    for _ in range(4):
        client.send(b"x" * 50_000)
    assert client.got == b""
    client.send(b'"}x')
    lab.upstreams[0].read()
    lab.upstreams[0].read()
    assert_refused(lab, client)


def test_a_refused_body_takes_no_connection_of_others_with_it() -> None:
    lab = lab_of("limited")
    (provider,) = lab.providers.values()
    other = begin(lab, (JSON,), GOOD, len(GOOD))
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert answer(other).body == b"ok"
    lab.rows.clear()
    client = begin(lab, (JSON,), GOOD, 1000)
    client.send(b"x")
    assert_refused(lab, client)  # on the same connection, which must not be used again
    begin(lab, (JSON,), GOOD, len(GOOD))
    assert len(lab.upstreams) == 2
    assert provider.pool.size == 1


def test_a_dead_pooled_connection_under_a_body_on_its_way_is_an_error_and_no_second_try() -> None:
    lab = lab_of("limited")
    begin(lab, (JSON,), GOOD, len(GOOD))
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    lab.rows.clear()
    client = begin(lab, (JSON,), GOOD, 1000)
    lab.upstreams[0].hang_up()
    assert (answer(client).error["code"], len(lab.upstreams)) == ("upstream_closed", 1)


# Answers before the judgement.


def early(status: int, body: bytes = b'{"usage":{"total_tokens":3}}') -> bytes:
    return b"HTTP/1.1 %d Early\r\nContent-Type: application/json\r\nX-U: 1\r\nContent-Length: %d\r\n\r\n%b" % (
        status, len(body), body,
    )  # fmt: skip


@KINDS
@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226, 299, 300, 301, 303, 307, 308, 399])
@pytest.mark.parametrize("came", [b"", GOOD[:-1], GOOD, GOOD + b"\n"])
def test_a_success_before_the_judgement_is_cut_and_none_of_it_reaches_the_client(
    kind: str, came: bytes, status: int
) -> None:
    for pieces in ([early(status)], [early(status)[:-1]], [early(status)[:20], early(status)[20:]],
                   [b"HTTP/1.1 100 Continue\r\n\r\n" + early(status)],
                   [b"HTTP/1.1 %d OK\r\nTransfer-Encoding: chunked\r\n\r\n" % status + chunk(b"secret")],
                   [b"HTTP/1.1 %d OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n" % status]):  # fmt: skip
        lab = lab_of(kind)
        client = begin(lab, (JSON,), came, 1000)
        for piece in pieces:
            lab.upstreams[0].send(piece)
        got = assert_refused(lab, client, 502, "upstream_malformed")
        assert got["x-should-retry"] == b"false" and got["x-u"] is None
        assert b"status %d before it had the whole request" % status in got.body
        assert (lab.row["end"], lab.row["total_tokens"], lab.row["stream"]) == ("upstream_lost", None, False)
        client.send(b" " * 100)
        assert client.got == b""


@KINDS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
def test_an_error_before_the_judgement_reaches_the_client_as_it_is(kind: str, status: int) -> None:
    lab = lab_of(kind)
    client = begin(lab, (JSON,), GOOD[:30], 1000)
    (upstream,) = lab.upstreams
    upstream.send(early(status)[:-5])
    before = bytes(upstream.got)
    client.send(GOOD[30:] + b"xx")
    assert bytes(upstream.got) == before, "nothing that is not judged follows"
    upstream.send(early(status)[-5:])
    got = answer(client)
    assert (got.status, got["x-u"], got["flowstack-error"]) == (status, b"1", None)
    assert got.body == early(status).partition(b"\r\n\r\n")[2]
    assert (lab.row["status"], lab.row["end"], lab.row["error_code"]) == (status, "complete", None)
    assert upstream.peer_saw == "reset"


def test_an_answer_after_the_judgement_is_served_whatever_it_is() -> None:
    for status in (200, 301, 404):
        lab = lab_of("limited")
        client = begin(lab, (JSON,), GOOD[:30], len(GOOD))
        client.send(GOOD[30:])
        lab.upstreams[0].send(early(status))
        assert answer(client).status == status


@pytest.mark.parametrize("options", [{}, {"rpm": 5}, {"inject_usage": True}])
def test_a_key_that_need_not_be_judged_may_be_answered_early_and_misread(options: dict[str, Any]) -> None:
    lab = Lab()
    lab.keys.add(KEY, **options)
    body = GOOD + b"xx"
    client = begin(lab, (JSON,), body, len(body) + WINDOW)
    client.send(b" " * (WINDOW - 1))
    assert went(lab).startswith(body)
    lab.upstreams[0].send(early(200)[:-1])
    client.send(b"\n")
    assert went(lab).startswith(body + b" " * (WINDOW - 1) + b"\n")
    lab.upstreams[0].send(early(200)[-1:])
    assert answer(client).body == early(200).partition(b"\r\n\r\n")[2]


# What is charged.


def metered() -> Lab:
    lab = Lab()
    lab.limiter.metered = True
    lab.keys.add(KEY, tpm=100_000, inject_usage=False, **LIMITED)
    return lab


def charged(lab: Lab) -> tuple[int, int]:
    """Tokens, and billionths of a dollar, that stay charged of what was not claimed."""
    (row,), ((tokens, cost),) = lab.limiter.settled, lab.limiter.owed
    assert lab.limiter.given[0].claimed == []
    return charged_tokens(row, tokens or 0), charged_nanos(row, round((cost or 0) * 1e9))


HALF = b'{"model":"gpt-4o","max_tokens":100,"messages":[{"role":"user","content":"' + b"x" * 4000
PROMPT = -(-len(HALF) // 4)
ESTIMATE = PROMPT + 100, round((len(HALF) * 2.5 + 100 * 10) * 1000)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("client leaves", ESTIMATE),
        ("client stalls", ESTIMATE),
        ("drain", ESTIMATE),
        ("too large", (ESTIMATE[0], ESTIMATE[1] + 2_500)),  # one byte more had come
        ("bad chunk", ESTIMATE),
        ("upstream closes", ESTIMATE),
        ("upstream talks nonsense", ESTIMATE),
        ("upstream takes nothing", ESTIMATE),
        ("early success", ESTIMATE),
        ("early redirect", ESTIMATE),
        ("early error", (0, 0)),
        ("fault", (0, 0)),
    ],
)
def test_what_was_attempted_and_never_claimed_is_charged_the_estimate(end: str, expected: tuple[int, int]) -> None:
    lab = metered()
    if end == "bad chunk":
        client = lab.ask(CHAT, JSON, CHUNKED, body=chunk(HALF))
    else:
        client = begin(lab, (JSON,), HALF, 1_000_000)
    (upstream,) = lab.upstreams
    if end == "client leaves":
        client.hang_up()
    elif end == "client stalls":
        lab.turns.fires(60, lambda: client.got)
    elif end == "drain":
        client.protocol.close_now()
    elif end == "too large":
        client.protocol._body.limit = len(HALF)
        client.send(b"x")
    elif end == "bad chunk":
        client.send(b"no chunk\r\n")
    elif end == "upstream closes":
        upstream.hang_up()
    elif end == "upstream talks nonsense":
        upstream.send(b"220 smtp.example\r\n\r\n")
    elif end == "upstream takes nothing":
        upstream.peer_reads = False
        client.send(b"x" * 100_000, 50_000)
        lab.turns.advance(1300)
    elif end == "early success":
        upstream.send(early(200))
    elif end == "early redirect":
        upstream.send(early(303))
    elif end == "early error":
        upstream.send(early(500, b"{}"))
    elif end == "fault":
        client.send(b'"}]}x')
    assert lab.row["attempts"] == 1
    assert lab.row["model_requested"] == "gpt-4o"
    if end == "upstream takes nothing":
        assert charged(lab)[0] > expected[0]
    else:
        assert charged(lab) == expected


def test_nothing_is_charged_of_which_no_byte_went_unless_the_upstream_answered() -> None:
    for act, expected in ((lambda client, _: client.hang_up(), 0), (lambda _, upstream: upstream.hang_up(), 0),
                          (lambda _, upstream: upstream.send(early(200)), 4096)):  # fmt: skip
        lab = metered()
        client = begin(lab, (JSON,), b"", 1000)
        act(client, lab.upstreams[0])
        assert charged(lab)[0] == expected


def test_a_late_refusal_by_a_limit_is_charged_nothing_so_that_nobody_locks_himself_out() -> None:
    lab = metered()
    lab.limiter.claim_fault = BudgetExceeded("The budget is used up.")
    client = begin(lab, (JSON,), HALF, len(HALF) + 4)
    client.send(b'"}]}')
    assert answer(client).error["code"] == "flowstack_budget_exceeded"
    (row,) = lab.limiter.settled
    assert (row["attempts"], lab.limiter.owed) == (1, [(None, None)])


def test_what_waits_for_a_connection_is_charged_nothing() -> None:
    lab = metered()
    (provider,) = lab.providers.values()
    provider.endpoint.at_once = False
    begin(lab, (JSON,), HALF, 1_000_000).hang_up()
    assert (charged(lab), lab.row["attempts"]) == ((0, 0), 0)


# Framing.


def injecting() -> Lab:
    return Lab(ledger=LedgerSettings(inject_usage=True))


def document(size: int, **members: Any) -> bytes:
    """A body of exactly this many bytes."""
    body = json.dumps({"model": "gpt-4o", "user": "", **members}).encode()
    return body.replace(b'"user": "', b'"user": "' + b"u" * (size - len(body)))


def framings(body: bytes, chunked: bool) -> list[tuple[bytes, bytes]]:
    """Head and body that go upstream, however the reads fall."""
    whole = chunk(body) + b"0\r\n\r\n" if chunked else body
    length = CHUNKED if chunked else b"Content-Length: %d" % len(body)
    found = []
    for cuts in ([], [0], [1], [100], [len(whole) - 1], [WINDOW], [WINDOW - 1, WINDOW], [40_000, 80_000]):
        lab = injecting()
        places = [0, *(min(cut, len(whole)) for cut in cuts), len(whole)]
        pieces = [whole[start:end] for start, end in pairwise(places)]
        client = lab.ask(CHAT, JSON, length, b"Accept-Encoding: gzip", body=pieces[0])
        for piece in pieces[1:]:
            if piece:
                client.send(piece)
        head, _, sent = bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")
        found.append((head, dechunked(sent) if chunked else sent))
        lab.upstreams[0].send(early(200))
        assert answer(client).status == 200
    return found


def dechunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        out += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return out


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "members", [{}, {"stream": False}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": False}},
                {"stream": True, "stream_options": {"x": 1}}, {"stream": True, "stream_options": None}],
)  # fmt: skip
@pytest.mark.parametrize("size", [200, WINDOW - 1, WINDOW, WINDOW + 1, 100_000])
def test_the_same_request_goes_the_same_way_however_its_reads_fall(
    size: int, members: dict[str, Any], chunked: bool
) -> None:
    body = document(size, **members)
    assert len(body) == size
    found = framings(body, chunked)
    assert len(set(found)) == 1
    head, sent = found[0]
    assert (b"\r\nTransfer-Encoding: chunked" in head) == chunked
    assert (b"\r\nContent-Length: %d" % len(sent) in head) == (not chunked)
    options = members.get("stream_options")
    asks = members.get("stream") is True and (
        "stream_options" not in members if size >= WINDOW else "include_usage" not in (options or {})
    )
    before = json.loads(body)
    if asks:
        assert json.loads(sent) == before | {"stream_options": {**(options or {}), "include_usage": True}}
    else:
        assert sent == body + (b" " * ADDED if size >= WINDOW and not chunked else b"")
    assert (b"\r\nAccept-Encoding: identity" in head) == (asks or size >= WINDOW)


@pytest.mark.parametrize("fields", [(FORM,), (TEXT,), (JSON, b"Content-Encoding: gzip")])
def test_what_can_not_grow_is_announced_as_it_is(fields: tuple[bytes, ...]) -> None:
    lab, body = injecting(), FIELD + b"x" * 100_000
    client = begin(lab, (*fields, b"Accept-Encoding: gzip"), body[:10], len(body))
    client.send(body[10:], 50_000)
    head, _, sent = bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")
    assert sent == body
    assert head.endswith(b"Accept-Encoding: gzip\r\nContent-Length: %d" % len(body))
