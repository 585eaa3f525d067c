"""What an exchange asks for and uses: read from the bodies as they pass, and what follows from it."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest

from flowstack.config import Ledger as LedgerSettings
from flowstack.config import Upstream
from flowstack.errors import BudgetExceeded, RateLimitExceeded
from tests.harness import Transport
from tests.relay.lab import AUTH, KEY, Answer, Lab, answer, request

CHAT = b"POST /v1/chat/completions HTTP/1.1"
JSON = b"Content-Type: application/json"
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 50},
}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIPPED_HEAD = STREAM_HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer")


def chat(**more: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **more}).encode()


def ask(lab: Lab, body: bytes, line: bytes = CHAT, *fields: bytes, auth: bytes | None = AUTH) -> Transport:
    return lab.ask(line, JSON, b"Content-Length: %d" % len(body), *fields, body=body, auth=auth)


def ask_in_pieces(lab: Lab, body: bytes, line: bytes = CHAT) -> Transport:
    """As :func:`ask`, with less than all of the body in each read."""
    first = min(1000, len(body) // 2)
    client = lab.ask(line, JSON, b"Content-Length: %d" % len(body), body=body[:first])
    for start in range(first, len(body), 50_000):
        client.send(body[start : start + 50_000])
    return client


def reply(document: Any, status: bytes = b"200 OK") -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def completion(**more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-2024-08-06",
        "choices": [],
        "usage": USAGE,
        "service_tier": "default",
        **more,
    }


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def tokens(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens", "usage_source")
    return tuple(row[name] for name in names)


NOTHING = (None, None, None, None, None, "none")


def test_a_row_has_the_upstream_s_own_figures_and_their_cost() -> None:
    lab = Lab()
    client = ask(lab, chat())
    lab.upstreams[0].send(reply(completion()))
    assert json.loads(answer(client).body) == completion()
    row = lab.row
    assert tokens(row) == (1000, 400, 200, 50, 1200, "upstream")
    assert (row["model_requested"], row["model"], row["service_tier"]) == ("gpt-4o", "gpt-4o-2024-08-06", "default")
    assert row["cost_usd"] == pytest.approx((600 * 2.5 + 400 * 1.25 + 200 * 10) / 1e6)
    assert row["price_date"] is not None
    assert lab.observed == [(row["request_id"], "chat")]


def test_an_answer_without_usage_leaves_null_and_not_zero() -> None:
    lab = Lab()
    ask(lab, chat())
    document = completion()
    del document["usage"]
    lab.upstreams[0].send(reply(document))
    assert tokens(lab.row) == NOTHING
    assert lab.row["cost_usd"] is None


MODERATIONS: list[tuple[bytes, dict[str, Any], float | None]] = [
    (b"200 OK", {"model": "omni-moderation-2024-09-26", "results": []}, 0),
    (b"200 OK", {"model": "text-moderation-007", "results": []}, 0),
    (b"200 OK", {"model": "in-house", "results": []}, None),
    (b"200 OK", {"model": "gpt-4o", "results": []}, None),
    (b"200 OK", {"results": []}, None),
    (b"500 Internal Server Error", {"model": "omni-moderation-2024-09-26"}, None),
]


@pytest.mark.parametrize(("status", "document", "cost"), MODERATIONS)
def test_a_moderation_costs_nothing_where_the_answer_names_a_free_model(
    status: bytes, document: dict[str, Any], cost: float | None
) -> None:
    lab = Lab()
    body = json.dumps({"model": "omni-moderation-latest", "input": "hi"}).encode()
    ask(lab, body, b"POST /v1/moderations HTTP/1.1")
    lab.upstreams[0].send(reply(document, status))
    assert tokens(lab.row) == NOTHING
    assert (lab.row["cost_usd"], lab.row["unpriced"]) == (cost, None)
    assert (lab.row["price_date"] is None, lab.row["priced_by"]) == ((True, None) if cost is None else (False, "model"))


DRAWING = {"type": "image_generation"}
DRAWN = {
    "input_tokens": 60, "input_tokens_details": {"text_tokens": 60, "image_tokens": 0}, "output_tokens": 7024,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 7024}, "total_tokens": 7084,
}  # fmt: skip
BY_GPT_IMAGE_2, BY_GPT_IMAGE_1 = (60 * 5 + 7024 * 30) / 1e6, (60 * 5 + 7024 * 40) / 1e6
DRAWN_BY: list[tuple[list[dict[str, Any]], list[dict[str, Any]], float | None]] = [
    ([{**DRAWING, "model": "gpt-image-2"}], [DRAWING], BY_GPT_IMAGE_2),
    ([{"type": "web_search"}, {**DRAWING, "model": "gpt-image-2"}], [], BY_GPT_IMAGE_2),
    ([{**DRAWING, "model": "gpt-image-2"}], [{**DRAWING, "model": "gpt-image-1"}], BY_GPT_IMAGE_1),
    ([{**DRAWING, "model": "gpt-image-2"}, {**DRAWING, "model": "gpt-image-1"}], [DRAWING], None),
    ([{**DRAWING, "model": "gpt-image-2"}, DRAWING], [DRAWING], None),
    ([DRAWING], [DRAWING], None),
    ([{"type": "function", "name": "f", "model": "gpt-image-2"}], [DRAWING], None),
]


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize(("asked", "answered", "cost"), DRAWN_BY)
def test_pictures_are_priced_by_the_model_that_answer_or_request_name(
    asked: list[dict[str, Any]], answered: list[dict[str, Any]], cost: float | None, limited: bool, pieces: bool
) -> None:
    lab = Lab()
    if limited:
        lab.keys.keys.clear()
        lab.keys.add(KEY, models=("gpt-*",))
    body = json.dumps({"model": "gpt-5", "input": "hi" * 50_000 * pieces, "tools": asked}).encode()
    (ask_in_pieces if pieces else ask)(lab, body, b"POST /v1/responses HTTP/1.1")
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    document = {"id": "resp_1", "model": "gpt-5-2025-08-07", "status": "completed", "usage": usage, "tools": answered}
    lab.upstreams[0].send(reply({**document, "tool_usage": {"image_gen": DRAWN}}))
    assert lab.row["cost_usd"] == (None if cost is None else pytest.approx(cost))
    assert lab.row["unpriced"] == ("no_price_for:image_gen" if cost is None else None)


def test_an_error_of_the_upstream_s_is_charged_nothing() -> None:
    lab = Lab()
    ask(lab, chat())
    lab.upstreams[0].send(reply(completion(), b"500 Internal Server Error"))
    assert tokens(lab.row) == NOTHING


def test_a_retrieval_of_what_was_made_before_is_charged_nothing() -> None:
    lab = Lab()
    lab.ask(b"GET /v1/chat/completions/chatcmpl-1 HTTP/1.1")
    lab.upstreams[0].send(reply(completion()))
    assert tokens(lab.row) == NOTHING


def test_a_stream_is_metered_and_every_piece_passes_before_it_is() -> None:
    lab = Lab()
    client = ask(lab, chat(stream=True, stream_options={"include_usage": True}))
    first = event({"model": "gpt-4o-2024-08-06", "choices": [{"delta": {"content": "a"}}], "usage": None})
    last = event({"model": "gpt-4o-2024-08-06", "choices": [], "usage": USAGE})
    lab.upstreams[0].send(STREAM_HEAD + chunked(first))
    assert answer(client).body == chunked(first)
    lab.upstreams[0].send(chunked(last, b"data: [DONE]\n\n") + b"0\r\n\r\n")
    assert tokens(lab.row) == (1000, 400, 200, 50, 1200, "upstream")
    assert lab.row["stream"] is True


def test_the_row_is_written_before_the_last_piece_is_handed_over() -> None:
    lab = Lab()
    client = ask(lab, chat())
    seen: list[bytes] = []
    lab.ledger.watch = lambda: seen.append(bytes(client.got))
    lab.upstreams[0].send(reply(completion()))
    assert seen == [b""]
    assert client.got


def test_what_was_used_before_the_upstream_broke_off_is_in_the_row() -> None:
    lab = Lab()
    ask(lab, chat(stream=True, stream_options={"include_usage": True}))
    lab.upstreams[0].send(STREAM_HEAD + chunked(event({"model": "m", "choices": [], "usage": USAGE})))
    lab.upstreams[0].hang_up()
    assert lab.row["end"] == "upstream_lost"
    assert tokens(lab.row)[4:] == (1200, "partial")


def continuous(*counts: int, finish: bool = False) -> list[bytes]:
    """Chunks that say how much of the answer there is."""
    events = []
    for at in counts:
        reason = "stop" if finish and at == counts[-1] else None
        prompt = 1000 if at else 0
        usage = {"prompt_tokens": prompt, "completion_tokens": at, "total_tokens": prompt + at}
        choices = [{"index": 0, "delta": {"content": "a"}, "finish_reason": reason}]
        events.append(event({"model": "gpt-4o-2024-08-06", "choices": choices, "usage": usage}))
    return events


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 1, 2), (1000, None, 2, None, 1002, "partial")), ((0,), NOTHING), ((0, 0), NOTHING)],
)
@pytest.mark.parametrize("way", ["the client leaves", "the upstream breaks off"])
def test_what_had_been_used_when_a_stream_was_cut_or_left_is_no_final_figure(
    counts: tuple[int, ...], expected: tuple[Any, ...], way: str
) -> None:
    lab = Lab()
    client = ask(lab, chat(stream=True))
    lab.upstreams[0].send(STREAM_HEAD + chunked(*continuous(*counts)))
    if way == "the client leaves":
        client.hang_up()
    else:
        lab.upstreams[0].hang_up()
    assert tokens(lab.row) == expected
    partial = expected[-1] == "partial"
    assert lab.row["cost_usd"] == (pytest.approx((1000 * 2.5 + 2 * 10) / 1e6) if partial else None)


@pytest.mark.parametrize("end", [[b"data: [DONE]\n\n"], []])
def test_a_stream_with_usage_in_each_chunk_is_charged_by_its_last(end: list[bytes]) -> None:
    lab = Lab()
    ask(lab, chat(stream=True))
    lab.upstreams[0].send(STREAM_HEAD + chunked(*continuous(0, 1, 2, 3, finish=True), *end) + b"0\r\n\r\n")
    assert tokens(lab.row) == (1000, None, 3, None, 1003, "upstream")


def test_a_client_that_leaves_after_the_stream_s_own_end_has_seen_all_of_it() -> None:
    lab = Lab()
    client = ask(lab, chat(stream=True))
    lab.upstreams[0].send(STREAM_HEAD + chunked(*continuous(1, 2, finish=True), b"data: [DONE]\n\n"))
    client.hang_up()
    assert lab.row["end"] == "client_gone"
    assert tokens(lab.row) == (1000, None, 2, None, 1002, "upstream")


def test_an_object_that_breaks_off_after_its_usage_is_partial_in_the_row() -> None:
    lab = Lab()
    ask(lab, chat())
    lab.upstreams[0].send(reply({"usage": USAGE, **completion()})[:-3])
    lab.upstreams[0].hang_up()
    assert tokens(lab.row) == (1000, 400, 200, 50, 1200, "partial")


def priced(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "cost_usd", "priced_by", "unpriced"))


@pytest.mark.parametrize(
    ("asked", "said", "expected"),
    [
        ("gpt-4o-mini", "gpt-4o-2024-08-06", ("gpt-4o-2024-08-06", 0.004, "model", None)),
        ("gpt-4o", None, (None, 0.004, "model_requested", None)),
        ("gpt-4o", "new-model", ("new-model", None, None, "no_price:new-model")),
        ("new-model", None, (None, None, None, "no_price:new-model")),
    ],
)
def test_the_row_says_by_which_name_it_was_priced_or_why_it_was_not(
    asked: str, said: str | None, expected: tuple[Any, ...]
) -> None:
    lab = Lab()
    ask(lab, chat(model=asked))
    lab.upstreams[0].send(reply(completion(model=said)))
    assert priced(lab.row) == expected


def test_what_was_written_to_the_cache_and_all_details_are_in_the_row() -> None:
    lab = Lab()
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100}, "speed": "fast"}
    ask(lab, chat())
    lab.upstreams[0].send(reply(completion(usage=usage)))
    assert lab.row["cache_write_tokens"] == 100
    assert lab.row["usage_details"] == {name: usage[name] for name in usage if name[-6:] != "tokens"}


# Usage asked for in the client's place.

WITHOUT = [
    event({"model": "m", "choices": [{"delta": {"content": "a"}}]}),
    event({"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]}),
    b"data: [DONE]\n\n",
]
WITH = [
    event({"model": "m", "choices": [{"delta": {"content": "a"}}], "usage": None}),
    event({"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None}),
    event({"model": "m", "choices": [], "usage": USAGE}),
    b"data: [DONE]\n\n",
]


def dechunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        out += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return out


def injecting() -> Lab:
    return Lab(ledger=LedgerSettings(inject_usage=True))


def stream_through(lab: Lab, client: Transport) -> bytes:
    lab.upstreams[0].send(STREAM_HEAD)
    for piece in WITH:
        lab.upstreams[0].send(chunked(piece))
    lab.upstreams[0].send(b"0\r\n\r\n")
    return dechunked(answer(client).body)


def test_usage_is_asked_for_and_taken_out_again() -> None:
    lab = injecting()
    body = chat(stream=True)
    client = ask(lab, body, CHAT, b"Accept-Encoding: gzip, br")
    head, _, sent = bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")
    assert json.loads(sent) == {**json.loads(body), "stream_options": {"include_usage": True}}
    assert sent.startswith(body[:-1])
    assert b"\r\nContent-Length: %d" % len(sent) in head
    assert b"\r\nAccept-Encoding: identity" in head
    assert b"gzip" not in head
    assert stream_through(lab, client) == b"".join(WITHOUT)
    assert tokens(lab.row)[4:] == (1200, "upstream")
    assert lab.row["bytes_out"] == len(b"".join(WITHOUT))


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat(stream=False),
        chat(stream=True, stream_options={"include_usage": False}),
        chat(stream=True, stream_options={"include_usage": True}),
        b"no json",
    ],
)
def test_what_needs_no_usage_asked_for_goes_byte_for_byte(body: bytes) -> None:
    lab = injecting()
    ask(lab, body, CHAT, b"Accept-Encoding: gzip, br")
    assert bytes(lab.upstreams[0].got).endswith(
        b"Content-Length: %d\r\nAccept-Encoding: gzip, br\r\n\r\n" % len(body) + body
    )


def test_a_body_that_may_have_to_grow_is_gathered_first() -> None:
    lab = injecting()
    body = chat(stream=True)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:20])
    assert lab.upstreams == []
    client.send(body[20:])
    sent = bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")[2]
    assert json.loads(sent)["stream_options"] == {"include_usage": True}


def test_a_client_that_leaves_while_its_body_is_gathered_leaves_a_row() -> None:
    lab = injecting()
    lab.ask(CHAT, JSON, b"Content-Length: 500", body=b"{").hang_up()
    assert (lab.row["end"], lab.row["attempts"], lab.row["bytes_in"]) == ("client_gone", 0, 1)
    assert lab.upstreams == []


def test_a_body_that_stalls_while_it_is_gathered_is_a_timeout() -> None:
    lab = injecting()
    client = lab.ask(CHAT, JSON, b"Content-Length: 500", body=b"{")
    lab.turns.fires(60, lambda: client.got)
    assert answer(client).error["code"] == "malformed_request"
    assert (lab.row["end"], lab.row["status"]) == ("timeout", 400)
    assert lab.upstreams == []


def test_usage_is_asked_for_in_a_body_that_is_larger_than_what_is_held() -> None:
    lab = injecting()
    body = chat(user="u" * 200_000, stream=True)
    client = ask_in_pieces(lab, body)
    head, _, sent = bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"\r\nContent-Length: %d\r\n" % len(sent) in head
    assert json.loads(sent) == {**json.loads(body), "stream_options": {"include_usage": True}}
    assert stream_through(lab, client) == b"".join(WITHOUT)


@pytest.mark.parametrize(
    ("upstream", "key", "everywhere", "metered", "asked"),
    [
        (None, None, False, False, False), (None, None, True, False, True), (None, None, False, True, True),
        (None, False, True, True, False), (None, True, False, False, True),
        (True, None, False, False, True), (True, True, False, False, True), (True, False, True, True, False),
        (False, None, True, False, False), (False, None, False, True, False), (False, True, True, True, False),
    ],
)  # fmt: skip
def test_an_upstream_can_say_whether_it_is_asked_for_usage(
    upstream: bool | None, key: bool | None, everywhere: bool, metered: bool, asked: bool
) -> None:
    lab = Lab(
        upstreams=(Upstream(base_url="http://upstream.example/v1", inject_usage=upstream),),
        ledger=LedgerSettings(inject_usage=everywhere),
    )
    lab.limiter.metered = metered
    lab.keys.add(KEY, inject_usage=key)
    body = chat(stream=True)
    ask(lab, body)
    assert bytes(lab.upstreams[0].got).endswith(body) is not asked
    lab.upstreams[0].send(reply({"error": {"message": "unknown field: stream_options"}}, b"400 Bad Request"))
    assert lab.row["status"] == 400
    assert lab.row["usage_asked_by"] == ("flowstack" if asked else None)


def test_the_row_says_who_asked_where_the_end_of_a_long_body_does_and_where_the_answer_is_coded() -> None:
    lab = injecting()
    ask_in_pieces(lab, chat(user="u" * 200_000, stream=True))
    lab.upstreams[0].send(GZIPPED_HEAD + b"0\r\n\r\n")
    assert lab.row["usage_asked_by"] == "flowstack"


def test_a_client_that_asks_itself_is_not_said_to_have_been_helped() -> None:
    lab = injecting()
    ask(lab, chat(stream=True, stream_options={"include_usage": True}))
    lab.upstreams[0].send(STREAM_HEAD + b"0\r\n\r\n")
    assert lab.row["usage_asked_by"] is None


def test_a_key_can_say_no_to_what_is_the_default() -> None:
    lab = injecting()
    token = b"another-key-of-others-that-is-long"
    lab.keys.add(token, id="k2", inject_usage=False)
    body = chat(stream=True)
    ask(lab, body, auth=b"Flowstack-Auth: Bearer " + token)
    assert bytes(lab.upstreams[0].got).endswith(body)


# What a key may ask for.


def limited(lab: Lab, **options: Any) -> bytes:
    lab.keys.add(KEY, **options)
    return AUTH


def refused(lab: Lab, client: Transport) -> tuple[int, str]:
    got = answer(client)
    row = lab.row
    assert (row["end"], row["status"], row["error_code"]) == ("refused", got.status, got.error["code"])
    return got.status, got.error["code"]


def test_a_body_of_an_unlimited_key_passes_piece_by_piece_and_the_row_says_its_model() -> None:
    lab = Lab()
    body = chat()
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:10])
    (upstream,) = lab.upstreams
    for sent in range(10, len(body) + 1):
        assert bytes(upstream.got).endswith(b"\r\n\r\n" + body[:sent])
        client.send(body[sent : sent + 1])
    upstream.send(reply(completion()))
    assert lab.row["model_requested"] == "gpt-4o"


def test_a_model_that_is_not_allowed_never_reaches_the_upstream() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o-mini*",))
    assert refused(lab, ask(lab, chat())) == (403, "model_not_allowed")
    assert lab.upstreams == []
    assert lab.row["model_requested"] == "gpt-4o"


def test_a_large_body_s_end_is_withheld_until_its_model_is_known() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o-mini*",))
    body = json.dumps({"input": "i" * 300_000, "model": "gpt-4o"}).encode()
    client = lab.ask(b"POST /v1/embeddings HTTP/1.1", JSON, b"Content-Length: %d" % len(body), body=body[:-20])
    (upstream,) = lab.upstreams
    went = len(bytes(upstream.got).partition(b"\r\n\r\n")[2])
    assert 200_000 < went < len(body)
    client.send(body[-20:])
    assert refused(lab, client) == (403, "model_not_allowed")
    assert len(bytes(upstream.got).partition(b"\r\n\r\n")[2]) < len(body)
    assert upstream.peer_saw == "reset"


def test_a_large_body_whose_model_is_allowed_passes_byte_for_byte() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o*",))
    body = json.dumps({"input": "i" * 300_000, "model": "gpt-4o"}).encode() + b" \n"
    ask_in_pieces(lab, body, b"POST /v1/embeddings HTTP/1.1")
    assert bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"model":"gpt-4o","model":"gpt-4o"}', ()),
        (b'{"model":"gpt-4o","mod\\u0065l":"other"}', ()),
        (b'{"model":"gpt-4o"}', (b"Content-Encoding: gzip",)),
        (b'{"model":"gpt-4o"', ()),
        (b'{"messages":[]}', ()),
        (b'{"model":"gpt-4o"}', (b"Content-Type: application/json",)),
    ],
    ids=["repeated", "repeated by an escape", "coded", "cut", "no model", "two types"],
)
def test_a_body_that_two_parsers_could_read_differently_is_refused_to_a_limited_key(
    body: bytes, fields: tuple[bytes, ...]
) -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o*",))
    assert refused(lab, ask(lab, body, CHAT, *fields)) == (403, "model_not_allowed")
    assert lab.upstreams == []
    free = Lab()
    ask(free, body, CHAT, *fields)
    assert bytes(free.upstreams[0].got).endswith(body)


def test_a_model_in_the_path_is_held_against_the_key_too() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o*",))
    assert refused(lab, lab.ask(b"GET /v1/models/o1 HTTP/1.1")) == (403, "model_not_allowed")
    lab.rows.clear()
    lab.ask(b"GET /v1/models/gpt-4o HTTP/1.1")
    assert len(lab.upstreams) == 1


def test_work_that_cannot_be_seen_needs_an_endpoint_that_names_it() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o*",))
    body = b'{"input_file_id":"file-1","endpoint":"/v1/chat/completions"}'
    line = b"POST /v1/batches HTTP/1.1"
    assert refused(lab, ask(lab, body, line)) == (403, "endpoint_not_allowed")
    assert lab.upstreams == []
    named = Lab()
    limited(named, models=("gpt-4o*",), endpoints=("/v1/batches",))
    ask(named, body, line)
    assert len(named.upstreams) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"allow_ip": (ip_network("203.0.113.0/24"),)}, "address_not_allowed"),
        ({"upstreams": ("other",)}, "upstream_not_allowed"),
        ({"endpoints": ("/v1/embeddings",)}, "endpoint_not_allowed"),
    ],
)
def test_what_the_key_may_not_do_is_refused_before_the_upstream_hears_of_it(options: dict[str, Any], code: str) -> None:
    lab = Lab()
    limited(lab, **options)
    assert refused(lab, ask(lab, chat())) == (403, code)
    assert lab.upstreams == []


def test_the_client_behind_a_trusted_proxy_is_the_one_that_is_named() -> None:
    lab = Lab(trusted_proxies=("127.0.0.0/8", "10.0.0.0/8", "192.0.2.0/24"))
    limited(lab, allow_ip=(ip_network("203.0.113.0/24"),))
    ask(lab, chat(), CHAT, b"X-Forwarded-For: 198.51.100.1, 203.0.113.7")
    lab.upstreams[0].send(reply(completion()))
    assert lab.row["client_addr"] == "203.0.113.7"


# What a request may use.


def test_what_is_estimated_is_claimed_before_the_upstream_hears_of_it() -> None:
    lab = Lab()
    lab.limiter.metered = True
    lab.limiter.claim_fault = BudgetExceeded("The budget is used up.")
    client = ask_in_pieces(lab, chat(max_tokens=50))
    assert refused(lab, client) == (429, "flowstack_budget_exceeded")
    assert lab.upstreams == []
    ((claimed, cost),) = lab.limiter.given[0].claimed
    size = len(chat(max_tokens=50))
    assert claimed == -(-size // 4) + 50
    assert cost == pytest.approx((size * 2.5 + 50 * 10) / 1e6)


def test_a_body_at_hand_is_judged_before_anything_is_taken_and_then_all_is_taken_at_once() -> None:
    lab = Lab()
    lab.limiter.metered = True
    ask(lab, chat(max_tokens=50))
    assert lab.limiter.given[0].at_once
    assert len(lab.limiter.given[0].claimed) == 1
    ask_in_pieces(lab, chat(max_tokens=50))
    assert not lab.limiter.given[1].at_once
    assert lab.limiter.given[1].claimed == lab.limiter.given[0].claimed


def test_a_refusal_of_what_a_body_at_hand_may_use_says_in_the_row_what_it_asked_for() -> None:
    lab = Lab()
    lab.limiter.metered = True
    lab.limiter.fault = RateLimitExceeded("Too many tokens.")
    client = ask(lab, chat(model="gpt-4o"))
    assert refused(lab, client) == (429, "flowstack_rate_limit_exceeded")
    (row,) = lab.ledger.rows
    assert (row["model_requested"], row["upstream"], row["end"]) == ("gpt-4o", "openai", "refused")
    assert lab.limiter.settled == []


def test_no_price_is_estimated_where_no_money_is_limited() -> None:
    lab = Lab()
    lab.limiter.metered, lab.limiter.priced = True, False
    ask(lab, chat(max_tokens=50))
    ((_, cost),) = lab.limiter.given[0].claimed
    assert cost is None


def test_a_large_body_s_claim_that_is_refused_leaves_the_upstream_without_its_end() -> None:
    lab = Lab()
    lab.limiter.metered = True
    lab.limiter.claim_fault = BudgetExceeded("The budget is used up.")
    body = chat(user="u" * 200_000)
    client = ask_in_pieces(lab, body)
    assert refused(lab, client) == (429, "flowstack_budget_exceeded")
    assert not bytes(lab.upstreams[0].got).endswith(body[-1:])
    assert lab.upstreams[0].peer_saw == "reset"


def test_the_limits_are_on_every_answer() -> None:
    lab = Lab()
    lab.limiter.metered = True
    lab.limiter.figures = ((b"Flowstack-RateLimit-Remaining-Requests", b"9"),)
    client = ask(lab, chat())
    lab.upstreams[0].send(reply(completion()))
    assert answer(client)["flowstack-ratelimit-remaining-requests"] == b"9"
    lab.limiter.claim_fault = BudgetExceeded("The budget is used up.")
    assert answer(ask_in_pieces(lab, chat()))["flowstack-ratelimit-remaining-requests"] == b"9"
    assert answer(lab.ask(b"GET /elsewhere HTTP/1.1"))["flowstack-ratelimit-remaining-requests"] == b"9"


@pytest.mark.parametrize("status", [429, 402, 403, 422])
def test_a_used_up_budget_is_answered_and_noted_with_the_status_that_was_chosen(status: int) -> None:
    lab = Lab()
    figures = ((b"Flowstack-RateLimit-Remaining-Requests", b"9"), (b"x-ratelimit-remaining-requests", b"9"))
    lab.limiter.metered, lab.limiter.figures = True, figures[:1]
    lab.limiter.fault = BudgetExceeded("The budget is used up.", figures, status)
    got = answer(ask(lab, chat()))
    assert (got.status, got.error["type"], got["x-should-retry"]) == (status, "insufficient_quota", b"false")
    assert [pair for pair in got.fields if b"ratelimit" in pair[0].lower()] == [*figures], "each once"
    (row,) = lab.ledger.rows
    assert (row["status"], row["error_code"], row["end"]) == (status, "flowstack_budget_exceeded", "refused")


def test_no_request_is_taken_while_rows_cannot_be_written_and_each_needs_one() -> None:
    lab = Lab()
    lab.ledger.accepting = False
    client = ask(lab, chat())
    got = answer(client)
    assert (got.status, got.error["code"], got["retry-after"]) == (503, "ledger_unavailable", b"5")
    assert lab.upstreams == []
    assert lab.row["end"] == "refused"


# One key only.

PROVIDER = b"sk-of-the-operator"


def with_provider_key(**options: Any) -> Lab:
    lab = Lab()
    lab.relay.provider_keys = {"openai": PROVIDER}
    lab.keys.add(KEY, **options)
    return lab


@pytest.mark.parametrize(
    "fields",
    [
        (AUTH,),
        (b"Authorization: Bearer " + KEY,),
        (AUTH, b"Authorization: Bearer " + KEY),
        (AUTH, b"Authorization: Bearer sk-of-the-client", b"OpenAI-Organization: org-1", b"OpenAI-Project: proj-1"),
        (AUTH, b"api-key: sk-of-the-client"),
    ],
)
def test_the_operator_s_key_takes_the_place_of_whatever_the_client_sent(fields: tuple[bytes, ...]) -> None:
    lab = with_provider_key()
    ask(lab, chat(), CHAT, *fields, auth=None)
    got = bytes(lab.upstreams[0].got)
    assert got.count(b"Authorization: Bearer " + PROVIDER) == 1
    assert KEY not in got
    assert b"of-the-client" not in got
    assert b"org-1" not in got
    assert b"proj-1" not in got


def test_with_the_operator_s_key_only_inference_is_open() -> None:
    lab = with_provider_key()
    assert refused(lab, lab.ask(b"GET /v1/files HTTP/1.1")) == (403, "endpoint_not_allowed")
    assert lab.upstreams == []
    named = with_provider_key(endpoints=("GET:/v1/files",))
    named.ask(b"GET /v1/files HTTP/1.1")
    assert len(named.upstreams) == 1


def test_an_upstream_without_an_operator_s_key_never_gets_a_flowstack_key() -> None:
    upstreams = (
        Upstream(name="a", base_url="http://a.example/v1", hosts=("a.flowstack.example",), default=False),
        Upstream(name="b", base_url="http://b.example/v1", default=True),
    )
    lab = Lab(upstreams=upstreams)
    lab.relay.provider_keys = {"a": PROVIDER}
    client = ask(lab, chat(), CHAT, b"Authorization: Bearer " + KEY, auth=None)
    got = answer(client)
    assert (got.status, got.error["code"]) == (401, "misplaced_key")
    assert all(not provider.peers for provider in lab.providers.values())


def test_an_unknown_key_in_authorization_is_refused_and_never_passed_on() -> None:
    lab = with_provider_key()
    client = ask(lab, chat(), CHAT, b"Authorization: Bearer sk-of-the-client", auth=None)
    got: Answer = answer(client)
    assert got.status == 401
    assert lab.upstreams == []


@pytest.mark.parametrize(
    "more", [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"prompt": {"id": "p"}}]
)
def test_with_the_operator_s_key_what_others_stored_is_closed(more: dict[str, Any]) -> None:
    lab = with_provider_key()
    line = b"POST /v1/responses HTTP/1.1"
    body = json.dumps({"model": "gpt-4o", "input": "hi", **more}).encode()
    assert refused(lab, ask(lab, body, line)) == (403, "endpoint_not_allowed")
    assert lab.upstreams == []
    named = with_provider_key(endpoints=("POST:/v1/responses",))
    ask(named, body, line)
    assert len(named.upstreams) == 1


def test_what_the_upstream_has_stored_is_estimated_as_a_whole_context() -> None:
    lab = Lab()
    lab.limiter.metered = True
    body = json.dumps({"model": "gpt-4o", "input": "hi", "previous_response_id": "resp_1", "max_output_tokens": 16})
    ask(lab, body.encode(), b"POST /v1/responses HTTP/1.1")
    assert lab.limiter.given[0].claimed[0][0] == 128_000 + 16


def test_an_embedding_is_estimated_without_an_output() -> None:
    lab = Lab()
    lab.limiter.metered = True
    body = b'{"model":"text-embedding-3-small","input":"hi"}'
    ask(lab, body, b"POST /v1/embeddings HTTP/1.1")
    assert lab.limiter.given[0].claimed[0][0] == -(-len(body) // 2)


def test_what_a_model_without_a_price_used_is_charged_by_the_model_asked_for() -> None:
    lab = Lab()
    lab.limiter.metered = True
    ask(lab, chat())
    lab.upstreams[0].send(reply(completion(model="nobody-knows-me")))
    charged, row = lab.limiter.settled[0], lab.row
    assert charged["cost_usd"] == pytest.approx((1000 * 2.5 + 200 * 10) / 1e6)
    assert charged == {**row, "cost_usd": charged["cost_usd"]}


def test_a_request_behind_one_whose_body_was_refused_is_answered_in_its_turn() -> None:
    lab = Lab()
    limited(lab, models=("gpt-4o-mini*",))
    lab.limiter.metered = True
    body = chat()
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:10])
    good = json.dumps({"model": "gpt-4o-mini", "messages": []}).encode()
    client.send(body[10:] + request(CHAT, JSON, b"Content-Length: %d" % len(good), body=good))
    assert answer(client).error["code"] == "model_not_allowed"
    lab.upstreams[-1].send(reply(completion()))
    assert answer(client).status == 200
    assert [row["end"] for row in lab.rows] == ["refused", "complete"]
