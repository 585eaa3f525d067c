"""What meters find in answers of every API family: whole, in any pieces, in any framing and coding, and broken off."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import brotli
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.meters import MAX_HELD, last_members, meter_for
from flowstack.usage.model import Outcome, Usage
from flowstack.usage.operations import operation_of
from tests.usage.fixtures import (
    ANSWERS,
    CHAT,
    CHAT_EVENTS,
    CHAT_OUTCOME,
    DONE,
    EVENTS,
    FRAMINGS,
    JSON,
    RESPONSE_FIGURES,
    RESPONSE_OUTCOME,
    RESPONSE_USAGE,
    STREAMS,
    Answer,
    chunk,
    framed,
    metered,
    response,
    response_events,
)

EVERY = ANSWERS + STREAMS
REPRESENTATIVE = [answer for answer in STREAMS if answer.name in ("chat", "a response", "a transcription", "a message")]


def named(answer: Answer) -> str:
    return answer.name


def halves(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((body[:at], body[at:]) for at in range(len(body) + 1))


def raw_deflate(body: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(body) + deflate.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda body: brotli.compress(gzip.compress(body)),
    "br, gzip": lambda body: gzip.compress(brotli.compress(body)),
    "ZSTD , identity,Deflate": lambda body: zlib.compress(zstandard.compress(body)),
    "identity": lambda body: body,
}


@pytest.mark.parametrize("answer", EVERY, ids=named)
def test_a_whole_answer_is_read(answer: Answer) -> None:
    assert metered(answer, [answer.bytes]) == answer.outcome


@pytest.mark.parametrize("answer", EVERY, ids=named)
def test_an_answer_cut_in_two_anywhere_says_the_same(answer: Answer) -> None:
    for pieces in halves(answer.bytes):
        assert metered(answer, pieces) == answer.outcome, pieces


@pytest.mark.parametrize("answer", EVERY, ids=named)
def test_an_answer_that_comes_byte_by_byte_says_the_same(answer: Answer) -> None:
    body = answer.bytes
    assert metered(answer, (body[at : at + 1] for at in range(len(body)))) == answer.outcome


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("answer", STREAMS, ids=named)
def test_a_stream_says_the_same_in_every_framing(answer: Answer, framing: str) -> None:
    body = FRAMINGS[framing](answer.body)
    assert metered(answer, [body]) == answer.outcome
    assert metered(answer, (body[at : at + 1] for at in range(len(body)))) == answer.outcome


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("answer", REPRESENTATIVE, ids=named)
def test_a_stream_cut_in_two_anywhere_says_the_same_in_every_framing(answer: Answer, framing: str) -> None:
    for pieces in halves(FRAMINGS[framing](answer.body)):
        assert metered(answer, pieces) == answer.outcome, pieces


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("answer", EVERY, ids=named)
def test_an_answer_says_the_same_in_every_content_coding(answer: Answer, coding: str) -> None:
    body = CODERS[coding](answer.bytes)
    name = coding.strip().encode()
    assert metered(answer, [body], name) == answer.outcome
    assert metered(answer, (body[at : at + 1] for at in range(len(body))), name) == answer.outcome


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("answer", REPRESENTATIVE[:2] + ANSWERS[:1], ids=named)
def test_a_coded_answer_cut_in_two_anywhere_says_the_same(answer: Answer, coding: str) -> None:
    for pieces in halves(CODERS[coding](answer.bytes)):
        assert metered(answer, pieces, coding.strip().encode()) == answer.outcome


@given(
    st.sampled_from(EVERY), st.sampled_from(sorted(FRAMINGS)), st.sampled_from(["", *sorted(CODERS)]),
    st.lists(st.integers(1, 400), max_size=40),
)  # fmt: skip
def test_however_an_answer_is_cut_it_says_the_same(answer: Answer, framing: str, coding: str, sizes: list[int]) -> None:
    body = FRAMINGS[framing](answer.body) if answer.content_type == EVENTS else answer.bytes
    body = CODERS[coding](body) if coding else body
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    pieces.append(body[at:])
    assert metered(answer, pieces, coding.strip().encode() if coding else None) == answer.outcome


@pytest.mark.parametrize("answer", EVERY, ids=named)
def test_an_answer_that_breaks_off_says_no_more_than_it_said(answer: Answer) -> None:
    """Each figure of a part is one that the upstream gave."""
    whole = answer.outcome
    stated = orjson.dumps(answer.body).decode()
    for first, _ in halves(answer.bytes):
        part = metered(answer, [first])
        if part.usage is not None and part != whole:
            assert answer.outcome.usage is not None
            for figure in (part.usage.completion_tokens, part.usage.total_tokens):
                assert figure is None or f'_tokens":{figure}' in stated
            assert part.partial
        assert {late.id for late in part.late} <= {"resp_67ccd2", "batch_abc", None}
        assert all(late.id or not late.used or first[-2:] == b"}\n" or first[-1:] == b"}" for late in part.late)
        assert part.model is None or f'"{part.model}"' in stated


def test_usage_that_came_before_the_cut_counts_as_what_was_seen() -> None:
    body = framed(CHAT_EVENTS)
    cut = body.index(b"data: [DONE]") + 3
    assert metered(STREAMS[0], [body[:cut]], ended=False) == replace(CHAT_OUTCOME, partial=True)
    assert metered(STREAMS[0], [body[:cut]]) == CHAT_OUTCOME  # OpenAI's usage chunk comes once the answer is done
    assert metered(STREAMS[0], [body], ended=False) == CHAT_OUTCOME


def test_a_stream_cut_before_its_usage_has_none_but_a_model() -> None:
    body = framed(CHAT_EVENTS)
    cut = body.index(b'"total_tokens"')
    assert metered(STREAMS[0], [body[:cut]]) == replace(CHAT_OUTCOME, usage=None)


@pytest.mark.parametrize(
    ("content_type", "read"),
    [
        (None, True),
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/vnd.acme+json", True),
        (b"text/plain", False),
        (b"audio/mpeg", False),
        (b"application/octet-stream", False),
    ],
)
def test_json_is_read_and_other_types_are_not(content_type: bytes | None, read: bool) -> None:
    headers = {} if content_type is None else {b"content-type": content_type}
    assert (meter_for(operation_of(b"POST", b"audio/speech"), 200, headers) is not None) is read


@pytest.mark.parametrize("coding", [b"compress", b"gzip, aes128gcm", b"dcb", b"gzip,gzip,gzip,gzip"])
def test_a_coding_that_cannot_be_taken_off_leaves_the_usage_unknown(coding: bytes) -> None:
    assert metered(ANSWERS[0], [ANSWERS[0].bytes], coding) == Outcome()


@pytest.mark.parametrize("status", [199, 300, 304, 400, 401, 429, 500, 503, 599])
def test_an_answer_that_is_no_success_used_nothing_that_is_known(status: int) -> None:
    assert metered(replace(ANSWERS[0], status=status), [ANSWERS[0].bytes]) == Outcome()


@pytest.mark.parametrize("status", [200, 201, 202, 206])
def test_every_success_is_read(status: int) -> None:
    assert metered(replace(ANSWERS[0], status=status), [ANSWERS[0].bytes]) == CHAT_OUTCOME


def test_upstreams_that_invent_content_types_do_not_fill_the_memory() -> None:
    from flowstack.usage import meters

    for number in range(5000):
        assert meter_for(operation_of(b"POST", b"responses"), 200, {b"content-type": b"text/%d" % number}) is None
    assert len(meters._plans) <= 1024


# Large answers.


def slices(body: bytes, size: int = 16384) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def peak(answer: Answer, pieces: list[bytes], coding: bytes | None = None) -> tuple[Outcome, int]:
    """What the meter finds, and the most memory that it took meanwhile, in bytes."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        outcome = metered(answer, pieces, coding)
        return outcome, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


LONG = 'a "quoted" line\nthat goes on, and \\ on: {"usage": [1, 2]} ' * 10_000
IMAGE = "iVBORw0KGgo" * 300_000


def large_answers() -> Iterator[Answer]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": LONG}]}]
    yield Answer("a response", "POST responses", response("completed", RESPONSE_USAGE, output=output), RESPONSE_OUTCOME)
    stream = response_events("completed", output=output)
    yield Answer("a response's events", "POST responses", stream, RESPONSE_OUTCOME, content_type=EVENTS)
    turned = {"response": stream[2][1]["response"], "type": "response.completed"}
    turned_events = [*stream[:2], ("x", turned)]
    yield Answer("a response before its type", "POST responses", turned_events, RESPONSE_OUTCOME, 200, EVENTS)
    late = {"padding": LONG, **turned}
    yield Answer("a response after a lot", "POST responses", [*stream[:2], (None, late)], RESPONSE_OUTCOME, 200, EVENTS)
    unfinished = {"type": "response.in_progress", "response": stream[2][1]["response"]}
    so_far = replace(RESPONSE_OUTCOME, partial=True)
    yield Answer("a response under way", "POST responses", [(None, unfinished)], so_far, 200, EVENTS)
    usage = {"input_tokens": 50, "output_tokens": 272, "total_tokens": 322}
    figures = Outcome(None, None, Usage(50, None, 272, None, 322))
    yield Answer("images", "POST images/generations", {"data": [{"b64_json": IMAGE}], "usage": usage}, figures)
    partial = ("image_generation.partial_image", {"type": "image_generation.partial_image", "b64_json": IMAGE})
    done = (None, {"type": "image_generation.completed", "b64_json": IMAGE, "usage": usage})
    yield Answer("an image's events", "POST images/generations", [partial, done], figures, 200, EVENTS)
    vector = [round(number * 0.0001, 6) for number in range(1536)]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(60)]
    counts, few = {"prompt_tokens": 8, "total_tokens": 8}, Outcome("m", None, Usage(8, None, None, None, 8))
    for names in ("data model usage", "model data usage", "model usage data", "usage data model"):
        body = {name: {"data": data, "model": "m", "usage": counts}[name] for name in names.split()}
        yield Answer(f"embeddings: {names}", "POST embeddings", body, few)
    talk = CHAT | {"choices": [{"message": {"content": LONG}}]}
    yield Answer("chat", "POST chat/completions", talk, CHAT_OUTCOME)
    events = [chunk("a"), chunk(LONG), chunk(LONG, usage=CHAT["usage"]), chunk("b"), DONE]
    yield Answer("chat's events", "POST chat/completions", events, CHAT_OUTCOME, 200, EVENTS)


@pytest.mark.parametrize("answer", list(large_answers()), ids=named)
def test_a_large_answer_is_read_without_being_held(answer: Answer) -> None:
    pieces = slices(answer.bytes)
    assert len(pieces) > 10
    outcome, most = peak(answer, pieces)
    assert outcome == answer.outcome
    assert most < 96 * 1024


@pytest.mark.parametrize("answer", list(large_answers()), ids=named)
def test_a_large_answer_says_the_same_in_pieces_of_any_size(answer: Answer) -> None:
    body = answer.bytes
    chance = random.Random(answer.name)
    for _ in range(3):
        pieces, at = [], 0
        while at < len(body):
            size = chance.choice((1, 7, 1000, 16384, 200_000))
            pieces.append(body[at : at + size])
            at += size
        assert metered(answer, pieces) == answer.outcome
    assert metered(answer, [body]) == answer.outcome
    assert metered(answer, slices(gzip.compress(body, 1)), b"gzip") == answer.outcome


@pytest.mark.parametrize("content_type", [JSON, EVENTS])
def test_very_small_pieces_take_no_more_memory_than_large_ones(content_type: bytes) -> None:
    body = CHAT | {"choices": [{"message": {"content": "x" * (MAX_HELD - 2000)}}]}
    answer = Answer("", "POST chat/completions", [(None, body), DONE] if content_type == EVENTS else body, CHAT_OUTCOME)
    answer = replace(answer, content_type=content_type)
    whole, pieces = [answer.bytes], slices(answer.bytes, 2)
    outcome, most = peak(answer, pieces)
    assert outcome == CHAT_OUTCOME
    assert most < peak(answer, whole)[1] + 32 * 1024  # what reading the JSON takes for a moment is the same


@pytest.mark.parametrize(
    ("body", "members"),
    [
        (b'{"a": [{"model": 1}], "model": "m", "b": 2}', {"model": "m", "b": 2}),
        (b'cut off "x", "model": "m"}\n', {"model": "m"}),
        (b'{"model": "m", "a\\"model": "wrong"}', None),
        (b'{"model": "m", "a": {"model": "n"}}', None),
        (b'{"model": "m", "a": ["model"]}', None),
        (b'{"model": "m", "a": "model"}', None),
        (b'{"model": "m", "b": 2', None),
        (b'"model": "m"}', None),
        (b'{"b": 2}', None),
    ],
)
def test_the_last_members_are_those_of_the_object_itself_or_none(body: bytes, members: dict[str, Any] | None) -> None:
    assert last_members(body, b'"model"') == members


# Hostile answers.


@cache
def bomb(coding: str) -> bytes:
    size = 256 * 1024 * 1024
    if coding == "gzip":
        deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
        return b"".join([deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)]) + deflate.flush()
    if coding == "br":
        return brotli.compress(bytes(size), quality=1)
    return zstandard.compress(bytes(size))


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("content_type", [JSON, EVENTS])
def test_an_answer_that_swells_beyond_reason_is_not_read_to_its_end(coding: str, content_type: bytes) -> None:
    """Zlib's own window and tables, and 8 MiB of window where zstd's frame asks for them, are the library's."""
    answer = replace(ANSWERS[0], content_type=content_type)
    outcome, most = peak(answer, [bomb(coding)], coding.encode())
    assert outcome == Outcome()
    assert most < 4 * 1024 * 1024


@given(
    st.sampled_from(EVERY), st.lists(st.binary(max_size=200), max_size=6),
    st.sampled_from([None, b"gzip", b"deflate", b"br", b"zstd", b"br, gzip"]),
)  # fmt: skip
def test_garbage_says_nothing_and_raises_nothing(answer: Answer, pieces: list[bytes], coding: bytes | None) -> None:
    assert metered(answer, pieces, coding).usage is None


@given(st.data(), st.sampled_from(EVERY), st.sampled_from(["", *sorted(CODERS)]))
def test_an_answer_with_damage_raises_nothing(data: st.DataObject, answer: Answer, coding: str) -> None:
    body = bytearray(CODERS[coding](answer.bytes) if coding else answer.bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    outcome = metered(answer, [bytes(body[:100]), bytes(body[100:])], coding.strip().encode() if coding else None)
    assert outcome.usage is None or isinstance(outcome.usage, Usage)


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"null", b'"usage"', b"7", b"", b"{}", b'{"usage": 7}', b'{"usage": []}', b'{"usage": {}}',
        b'{"usage": {"prompt_tokens": null}}', b'{"usage": "prompt_tokens"}', b"[" * 5000, b'{"usage":' * 5000,
        b'{"id": 7, "status": [], "background": true, "usage": {"prompt_tokens": 1}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("request_line", ["POST responses", "GET responses/r", "GET batches/b"])
def test_an_answer_of_another_shape_says_nothing(request_line: str, body: bytes) -> None:
    answer = Answer("", request_line, None, Outcome())
    assert metered(answer, [body]) == Outcome()
    stream = replace(answer, content_type=EVENTS)
    assert metered(stream, [b"data: " + body + b"\n\n"]) == Outcome()
    assert metered(stream, [b'data: {"type": "response.completed", "response": ' + body + b"}\n\n"]) == Outcome()


def test_after_an_event_that_cannot_be_read_the_next_ones_are() -> None:
    body = b"data: {\n\ndata: [[[\n\n" + framed(CHAT_EVENTS[:2]) + b"data: {broken\n\n" + framed(CHAT_EVENTS[2:])
    for pieces in halves(body):
        assert metered(STREAMS[0], pieces) == CHAT_OUTCOME


NULL = framed([chunk("a", usage=None)])
SPOKEN = framed([chunk('"usage":null and "usage": null')])
PLAIN = framed([chunk("b")])
FIGURES = framed([chunk("c", usage=CHAT["usage"])])
ENDED = b"data: [DONE]\n\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    "events",
    [
        (FIGURES,), (NULL, FIGURES), (FIGURES, NULL), (NULL, FIGURES, NULL), (SPOKEN, FIGURES, PLAIN),
        (FIGURES, SPOKEN), (PLAIN, FIGURES), (b": c\n\n", NULL, NULL, FIGURES, PLAIN),
        (FIGURES[:-2], b',"usage":null}\n\n', FIGURES),
    ],
)  # fmt: skip
def test_usage_is_found_in_whatever_company_it_comes_in_a_piece(events: tuple[bytes, ...], end: bytes) -> None:
    warm = [NULL, PLAIN, SPOKEN]
    for pieces in ([b"".join(events)], list(events), [b"".join(events[:-1]), events[-1], NULL], [*events, PLAIN]):
        assert metered(STREAMS[0], [piece.replace(b"\n", end) for piece in (*warm, *pieces, ENDED)]) == CHAT_OUTCOME


def test_two_bytes_that_end_a_piece_and_a_name_cut_in_two_hide_no_usage() -> None:
    for cut in range(len(FIGURES)):
        assert metered(STREAMS[0], [NULL, NULL + FIGURES[:cut], FIGURES[cut:] + NULL, ENDED]) == CHAT_OUTCOME


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("member", [b"", b',"usage":null', b',"usage": null', b',"usage":null,"obfuscation":"aB3"'])
def test_an_event_without_usage_costs_no_parse(member: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[bytes] = []
    whole = orjson.loads
    monkeypatch.setattr("flowstack.usage.streams.orjson.loads", lambda data: loads.append(data) or whole(data))
    event = b'data: {"model":"gpt-4o","choices":[]' + member + b"}" + end * 2
    meter = meter_for(operation_of(b"POST", b"chat/completions"), 200, {b"content-type": EVENTS})
    assert meter is not None
    for _ in range(100):
        meter.feed(event)
        meter.feed(event * 3)
    assert len(loads) == 1


def test_the_figures_of_the_last_event_that_has_any_count_and_empty_ones_take_nothing_away() -> None:
    events = [chunk("a", usage=CHAT["usage"]), chunk("b", usage={}), chunk("c", usage=None), chunk("d", usage="x")]
    assert metered(STREAMS[0], [framed(events), ENDED]) == CHAT_OUTCOME


def test_work_is_shown_by_an_id_of_bounded_length_only_if_it_has_one() -> None:
    answer = Answer("", "GET responses/r", response("completed", RESPONSE_USAGE, background=True, id=None), Outcome())
    assert metered(answer, [answer.bytes]).late == ()
    answer = replace(answer, body=answer.body | {"id": "r" * 5000})
    (late,) = metered(answer, [answer.bytes]).late
    assert late.id == "r" * 255 + "…"
    assert [one.usage for one in late.used] == [RESPONSE_FIGURES]
