"""What the messages of a WebSocket ask for and say, as the OpenAI reference has them, and as others may write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.ledger.row import BLANK, Row, put_usage
from flowstack.prices.table import load_prices
from flowstack.usage.operations import socket_of
from flowstack.usage.sockets import (
    MAX_ASKED,
    MAX_HEARD,
    ClientEvent,
    ClientEvents,
    UpstreamEvent,
    UpstreamEvents,
)
from tests.usage.bodies import pieces_of, written

NOW = 1_790_000_000.0
PRICES = load_prices()
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


def asked(text: bytes, family: str = "realtime", cut: Iterable[bytes] | None = None, held: bool = True) -> ClientEvent:
    reader = ClientEvents(family)
    for piece in (text,) if cut is None else cut:
        reader.feed(piece, held)
    return reader.end()


def said(text: bytes, family: bytes = b"realtime", cut: Iterable[bytes] | None = None) -> UpstreamEvent | None:
    operation = socket_of(family)[1]
    assert operation is not None
    reader = UpstreamEvents(operation)
    for piece in (text,) if cut is None else cut:
        reader.feed(piece)
    return reader.end()


def heard(event: dict[str, Any], family: bytes = b"realtime") -> UpstreamEvent:
    found = said(orjson.dumps(event), family)
    assert found is not None
    return found


def row_of(event: UpstreamEvent, model: str) -> Row:
    assert event.outcome is not None and event.outcome.usage is not None
    row = BLANK.copy()
    row["model_requested"], row["model"], row["service_tier"] = model, event.outcome.model, event.outcome.service_tier
    put_usage(row, event.outcome.usage, PRICES, False, NOW, event.outcome.partial)
    return row


# What an upstream says.

SPOKEN = {
    "total_tokens": 460, "input_tokens": 400, "output_tokens": 60,
    "input_token_details": {"text_tokens": 100, "audio_tokens": 300, "image_tokens": 0, "cached_tokens": 240,
                            "cached_tokens_details": {"text_tokens": 40, "audio_tokens": 200, "image_tokens": 0}},
    "output_token_details": {"text_tokens": 10, "audio_tokens": 50},
}  # fmt: skip
SEEN = {
    "total_tokens": 130, "input_tokens": 110, "output_tokens": 20,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 0, "image_tokens": 100, "cached_tokens": 50,
                            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 50}},
    "output_token_details": {"text_tokens": 20, "audio_tokens": 0},
}  # fmt: skip
WRITTEN = {"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 600}, "output_tokens": 200,
           "output_tokens_details": {"reasoning_tokens": 150}, "total_tokens": 1200}  # fmt: skip
BY_TOKENS = {"type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9,
             "input_token_details": {"text_tokens": 0, "audio_tokens": 13}}  # fmt: skip
BY_TIME = {"type": "duration", "seconds": 18}


def done(usage: Any = SPOKEN, status: str = "completed", **more: Any) -> dict[str, Any]:
    response = {"object": "realtime.response", "id": "resp_1", "status": status, "output": [], "usage": usage, **more}
    return {"type": "response.done", "event_id": "event_1", "response": response}


def ended(kind: str = "completed", usage: Any = WRITTEN, **more: Any) -> dict[str, Any]:
    response = {"id": "resp_1", "status": kind, "model": "gpt-4o-2024-08-06", "service_tier": "default", "output": [],
                "background": False, "usage": usage, **more}  # fmt: skip
    return {"type": f"response.{kind}", "sequence_number": 9, "response": response}


@pytest.mark.parametrize(
    ("event", "model", "dollars"),
    [
        # By hand from prices.json, in millionths: text 4 (cached 0.4), speech 32 (0.4), pictures 5 (0.5); out 16, 64.
        (done(), "gpt-realtime", 60 * 4 + 40 * 0.4 + 100 * 32 + 200 * 0.4 + 10 * 16 + 50 * 64),
        (done(SEEN), "gpt-realtime", 10 * 4 + 50 * 5 + 50 * 0.5 + 20 * 16),
        (done(status="cancelled"), "gpt-realtime-mini",
         60 * 0.6 + 40 * 0.06 + 100 * 10 + 200 * 0.3 + 10 * 2.4 + 50 * 20),
        (ended(), "gpt-4o", 400 * 2.5 + 600 * 1.25 + 200 * 10),
        (ended("incomplete"), "gpt-4o", 400 * 2.5 + 600 * 1.25 + 200 * 10),
        ({"type": TRANSCRIBED, "transcript": "hello", "usage": BY_TOKENS}, "gpt-4o-transcribe", 13 * 6 + 9 * 10),
        ({"type": TRANSCRIBED, "transcript": "hello", "usage": BY_TIME}, "whisper-1", 0.36e6 * 18 / 3600),
    ],
    ids=["speech", "pictures", "cancelled", "responses", "incomplete", "transcription", "by seconds"],
)  # fmt: skip
def test_text_speech_pictures_and_what_was_cached_have_their_own_prices(
    event: dict[str, Any], model: str, dollars: float
) -> None:
    found = heard(event, b"responses" if "sequence_number" in event else b"realtime")
    assert row_of(found, model)["cost_usd"] == pytest.approx(dollars / 1e6, rel=1e-9)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_each_end_of_a_response_tells_who_it_was_and_what_it_used(kind: str) -> None:
    found = heard({**ended(kind), "stream_id": "lane"}, b"responses")
    assert (found.ends, found.begins, found.response_id, found.stream_id) == (True, False, "resp_1", "lane")
    assert found.outcome is not None and found.outcome.usage is not None
    assert (found.outcome.model, found.outcome.service_tier) == ("gpt-4o-2024-08-06", "default")
    usage = found.outcome.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (1000, 600)
    assert (usage.completion_tokens, usage.reasoning_tokens, usage.total_tokens) == (200, 150, 1200)


def test_the_beginning_of_a_response_and_an_error_tell_whose_they_are() -> None:
    begun = heard({"type": "response.created", "stream_id": "a", "response": {"id": "r", "status": "in_progress"}})
    assert (begun.begins, begun.response_id, begun.stream_id, begun.outcome) == (True, "r", "a", None)
    error = heard({"type": "error", "status": 429, "error": {"code": "rate_limit_exceeded", "event_id": "event_7"}})
    assert (error.ends, error.error_status, error.error_code, error.event_id) == (
        True, 429, "rate_limit_exceeded", "event_7",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("session", "found"),
    [
        ({"type": "realtime", "model": "m", "max_output_tokens": 50}, ("m", None, 50)),
        ({"model": "m", "max_output_tokens": "inf"}, ("m", None, None)),
        ({"model": "m", "audio": {"input": {"transcription": {"model": "t"}}}}, ("m", "t", None)),
        ({"model": "m", "input_audio_transcription": {"model": "t"}, "max_response_output_tokens": 9}, ("m", "t", 9)),
        ({"type": "transcription", "audio": {"input": {"transcription": {"model": "t"}}}}, (None, "t", None)),
        ({"model": ["m"], "audio": {"input": [{}]}, "max_output_tokens": True}, (None, None, None)),
        ({"model": "", "audio": 1, "max_output_tokens": -1}, (None, None, None)),
    ],
)
@pytest.mark.parametrize("kind", ["session.created", "session.updated", "transcription_session.updated"])
def test_a_session_tells_the_models_in_force_and_the_most(kind: str, session: Any, found: tuple[Any, ...]) -> None:
    event = heard({"type": kind, "session": session})
    assert event.session
    assert (event.session_model, event.transcription_model, event.max_output_tokens) == found


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_text.delta", "delta": "\"usage\" response.created session.updated \"error\""},
        {"type": "response.output_item.done", "item": {"usage": {"input_tokens": 5}}},
        {"type": "rate_limits.updated", "usage": SPOKEN},
        {"type": "response.in_progress", "response": {"usage": SPOKEN}},
        {"usage": SPOKEN}, {"type": 7, "usage": SPOKEN}, {"type": "x", "response": {"usage": SPOKEN}}, [], "usage",
    ],
)  # fmt: skip
def test_what_tells_of_no_end_counts_for_nothing(event: Any) -> None:
    assert said(orjson.dumps(event)) is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'"usage"', b'{"type":"response.done","usage"', b'\xef\xbb\xbf{"type":"error","error":{}}',
     b'{"type":"response.done","response":{"usage":NaN}}', b'{"type":"error"} {"error":1}', b'\xff"usage"',
     b'{"a":' * 2000 + b'"usage"'],
)  # fmt: skip
def test_what_is_no_json_says_nothing(text: bytes) -> None:
    assert said(text) is None
    large = text + b" " * MAX_HEARD * 2
    said(large)  # raises nothing


@pytest.mark.parametrize(
    "usage",
    [
        None, [], 7, "usage", {}, {"input_tokens": -5, "output_tokens": -1, "total_tokens": -6},
        {"input_tokens": 1 << 60, "output_tokens": 2.5, "total_tokens": True}, {"input_tokens": "12"},
        {"input_tokens": 1e300, "output_tokens": None}, {"input_token_details": [], "output_token_details": {"a": []}},
    ],
)  # fmt: skip
def test_what_can_be_no_count_is_none(usage: Any) -> None:
    event = heard(done(usage))
    assert event.ends and event.outcome is not None
    found = event.outcome.usage
    assert found is None or (found.prompt_tokens, found.completion_tokens, found.total_tokens) == (None, None, None)


EVENTS = [
    (b"realtime", done()), (b"realtime", done(SEEN, "cancelled")), (b"responses", ended()),
    (b"responses", ended("failed", error={"code": "x"})), (b"realtime", {"type": TRANSCRIBED, "usage": BY_TOKENS}),
    (b"realtime", {"type": TRANSCRIBED, "usage": BY_TIME}),
    (b"responses", {"type": "error", "status": 429, "error": {"code": "c", "event_id": "e"}}),
    (b"realtime", {"type": "session.updated", "session": {"model": "m", "max_output_tokens": 9}}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "event"), EVENTS)
def test_an_event_says_the_same_at_every_split(family: bytes, event: dict[str, Any]) -> None:
    text = orjson.dumps(event)
    whole = said(text, family)
    assert whole is not None
    for place in range(1, len(text)):
        assert said(text, family, (text[:place], text[place:])) == whole
    assert said(text, family, (text[place : place + 1] for place in range(len(text)))) == whole


@pytest.mark.parametrize("size", [4096, 100_000])
@pytest.mark.parametrize("place", ["first", "last", "first within", "last within"])
@pytest.mark.parametrize(("family", "event"), EVENTS)
def test_a_large_event_says_what_a_small_one_does(
    family: bytes, event: dict[str, Any], place: str, size: int
) -> None:
    bulk = {"bulk": [{"type": "message", "text": 'a "usage" }{ \\ é' * 9}] * 2000}
    inner = event.get("response")
    if "within" in place and inner is not None:
        inner = {**bulk, **inner} if place == "first within" else {**inner, **bulk}
        large = {**event, "response": inner}
    else:
        large = {**bulk, **event} if place.startswith("first") else {**event, **bulk}
    text = orjson.dumps(large)
    assert len(text) > 4 * MAX_HEARD
    assert said(text, family, (text[at : at + size] for at in range(0, len(text), size))) == heard(event, family)


def test_a_large_response_whose_type_comes_behind_it_has_ended_all_the_same() -> None:
    for status in ("completed", "cancelled", "incomplete", "failed"):
        event = done(status=status, output=["x" * 200_000])
        text = orjson.dumps({"response": event["response"], "type": event["type"]})
        found = said(text)
        assert found is not None and found.ends and found.outcome is not None
        assert found.outcome.usage == heard(done(status=status)).outcome.usage  # type: ignore[union-attr]


def test_a_session_too_long_to_be_read_still_says_that_its_maximum_is_unknown() -> None:
    event = heard({"type": "session.updated", "session": {"instructions": "x" * 100_000, "max_output_tokens": 5}})
    assert (event.session, event.max_output_tokens) == (True, None)


def test_nothing_is_left_of_one_event_for_the_next() -> None:
    operation = socket_of(b"realtime")[1]
    assert operation is not None
    reader = UpstreamEvents(operation)
    for bulk in (0, 200_000, 0):
        reader.feed(orjson.dumps(done(output="x" * bulk)))
        event = reader.end()
        assert event is not None and event.ends
        reader.feed(b'{"type":"response.output_audio.delta","delta":"' + b"A" * bulk + b'"}')
        assert reader.end() is None
        assert reader.end() is None


def test_of_a_large_event_little_is_held() -> None:
    operation = socket_of(b"responses")[1]
    assert operation is not None
    reader = UpstreamEvents(operation)
    reader.feed(b'{"type":"response.completed","response":{"output":"')
    for _ in range(500):
        reader.feed(b"x" * 10_000)
    assert len(reader._held) <= MAX_HEARD
    reader.feed(b'","usage":{"input_tokens":1,"output_tokens":2}}}')
    event = reader.end()
    assert event is not None and event.outcome is not None and event.outcome.usage is not None
    assert event.outcome.usage.completion_tokens == 2


# What a client asks for.


@pytest.mark.parametrize(
    ("family", "event", "models", "limits"),
    [
        ("responses", {"model": "a", "max_output_tokens": 5}, {"a"}, {"max_output_tokens": 5}),
        ("responses", {"model": "a", "tools": [{"type": "image_generation", "model": "b"}]}, {"a", "b"}, None),
        ("realtime", {"response": {"max_output_tokens": 5}}, set(), {"max_output_tokens": 5}),
        ("realtime", {"response": {"max_response_output_tokens": 5}}, set(), {"max_response_output_tokens": 5}),
        ("realtime", {"response": {"max_output_tokens": "inf"}}, set(), None),
        ("realtime", {"model": "a", "response": {"model": "b"}}, {"a", "b"}, None),
        ("realtime", {}, set(), None),
    ],
)
def test_a_response_is_asked_for_of_models_and_with_a_most(
    family: str, event: dict[str, Any], models: set[str], limits: Any
) -> None:
    found = asked(orjson.dumps({"type": "response.create", "event_id": "e", "stream_id": "s", **event}), family)
    assert found.facts is not None
    if event.get("response") != {"max_output_tokens": "inf"}:
        assert found.fault is None
    assert (found.type, found.event_id, found.stream_id) == ("response.create", "e", "s")
    assert found.models == frozenset(models)
    assert found.facts.limits == limits


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b'"response.create"', b"{}", b'{"type":7}', b'{"type":""}', b'{"type":null}', b"no",
        b'\xef\xbb\xbf{"type":"x"}', b'{"type":"x"}{}', b'{"type":"x"} x', b'{"type":"x","a":NaN}', b'{"type":"x",}',
        b'{"type":"x","type":"y"}', b'{"type":"x","Type":"y"}', b'{"type":"x","\\u0074ype":"y"}',
        b'{"type":"x","session":1,"session":2}', b"{'type':'x'}", b'{"type":"x"', b'{"type":"\\ud800"}',
        b'{"type":"response.create","response":{"model":"a","model":"b"}}',
        b'{"type":"session.update","session":{"Model":"a","model":"b"}}',
        b'{"type":"response.create","previous_response_id":"a","Previous_Response_Id":"b"}',
    ],
)
@pytest.mark.parametrize("family", ["realtime", "responses"])
def test_what_parsers_may_read_two_ways_is_a_fault_in_any_pieces(family: str, text: bytes) -> None:
    assert asked(text, family).fault is not None
    for place in range(1, len(text)):
        assert asked(text, family, (text[:place], text[place:])).fault is not None


NAMES = st.sampled_from(
    ["type", "type", "model", "response", "session", "previous_response_id", "event_id", "audio", "input",
     "transcription", "tools", "x", "max_output_tokens", "Type", "MODEL"]
)  # fmt: skip
TEXTS = st.sampled_from(["response.create", "session.update", "input_audio_buffer.append", "gpt-a", "gpt-b", "", "é"])
VALUE: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers(-5, 2**40) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = written(st.lists(st.tuples(NAMES, TEXTS | VALUE), max_size=6))


def _named(value: Any, depth: int = 5) -> set[str]:
    """What stands as ``model`` in an object, as orjson reads it."""
    found: set[str] = set()
    if depth and type(value) is dict:
        for name, inner in value.items():
            found |= {inner} if name == "model" and type(inner) is str else _named(inner, depth - 1)
    elif depth and type(value) is list:
        for inner in value:
            found |= _named(inner, depth - 1)
    return found


@given(MESSAGES, st.sampled_from(["realtime", "responses"]), st.data())
def test_what_is_no_fault_says_what_orjson_reads(text: bytes, family: str, data: st.DataObject) -> None:
    event = asked(text, family)
    assert asked(text, family, data.draw(pieces_of(text))) == event
    if event.fault is not None:
        return
    read = orjson.loads(text)
    assert event.type == read["type"]
    if event.type in ("response.create", "session.update"):
        name = "response" if event.type == "response.create" else "session"
        names = _named(read.get(name)) if type(read.get(name)) is dict else set()
        if type(read.get("model")) is str:
            names |= {read["model"]}
        assert event.models >= names - {""}
    else:
        assert event.facts is None


@given(st.binary(max_size=200) | MESSAGES, st.data())
def test_whatever_comes_raises_nothing_and_leaves_nothing_behind(text: bytes, data: st.DataObject) -> None:
    cut = data.draw(pieces_of(text))
    reader = ClientEvents("responses")
    for piece in cut:
        reader.feed(piece)
    reader.end()
    reader.feed(b'{"type":"x"}')
    assert reader.end() == ClientEvent("x")
    assert said(text, b"responses", cut) == said(text, b"responses")


def test_it_is_certain_only_where_nothing_is_to_be_judged() -> None:
    for text, certain in (
        (b'{"type":"input_audio_buffer.append","audio":"', True), (b'{"type":"response.create","x":"', False),
        (b'{"audio":"AAAA', False), (b'{"type":"session.update"', False), (b'{"type":"response.cancel",', True),
        (b'{"type":"x","type":"', False), (b'{"type":"transcription_session.update","x', False),
        (b'{"type":7,"', False),
    ):  # fmt: skip
        assert ClientEvents("realtime").feed(text) is certain


def test_of_a_long_message_that_nobody_holds_the_model_alone_is_known() -> None:
    text = orjson.dumps({"type": "response.create", "model": "a", "max_output_tokens": 5, "input": "x" * MAX_ASKED * 3})
    cut = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    alone, with_others = asked(text, "responses", cut, False), asked(text, "responses", cut)
    assert alone.facts is not None and with_others.facts is not None
    assert (alone.facts.model, alone.facts.limits) == ("a", None)
    assert (with_others.facts.model, with_others.facts.limits) == ("a", {"max_output_tokens": 5})
