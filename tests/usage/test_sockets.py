"""What the messages of a WebSocket ask for and say, in the shapes of the OpenAI reference."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.prices.table import load_prices
from flowstack.usage.members import MAX_DEPTH
from flowstack.usage.model import Outcome
from flowstack.usage.operations import operation_of
from flowstack.usage.sockets import MAX_HEARD, MAX_TEXT, ClientEvent, ClientEvents, UpstreamEvent, UpstreamEvents

RESPONSES = operation_of(b"POST", b"responses")
M = 1e-6
LONG = "long " * (MAX_HEARD // 4)

Message = dict[str, Any]


def bytes_of(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else orjson.dumps(message)


def asked(message: Message | bytes, family: str = "realtime", size: int | None = None) -> ClientEvent:
    """What a client's message asks for that comes in pieces of so many bytes."""
    reader = ClientEvents(family)
    return asked_by(reader, message, size)


def asked_by(reader: ClientEvents, message: Message | bytes, size: int | None = None) -> ClientEvent:
    text = bytes_of(message)
    for at in range(0, len(text), size or max(1, len(text))):
        reader.feed(text[at : at + (size or len(text))])
    return reader.end()


def heard(message: Message | bytes, size: int | None = None) -> UpstreamEvent | None:
    reader, text = UpstreamEvents(RESPONSES), bytes_of(message)
    for at in range(0, len(text), size or max(1, len(text))):
        reader.feed(text[at : at + (size or len(text))])
    return reader.end()


def told(message: Message | bytes, size: int | None = None) -> UpstreamEvent:
    event = heard(message, size)
    assert event is not None
    return event


def response(**members: Any) -> Message:
    return {"type": "response.create", "response": members}


def session(**members: Any) -> Message:
    return {"type": "session.update", "session": {"type": "realtime", **members}}


TRANSCRIBING = {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
OLD_TRANSCRIBING = {"input_audio_transcription": {"model": "whisper-1"}}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"model": {"const": "x"}}}}


@pytest.mark.parametrize(
    ("message", "models"),
    [
        (session(model="gpt-realtime"), {"gpt-realtime"}),
        (session(**TRANSCRIBING), {"gpt-4o-transcribe"}),
        (session(model="gpt-realtime", **OLD_TRANSCRIBING), {"gpt-realtime", "whisper-1"}),
        ({"type": "transcription_session.update", "session": OLD_TRANSCRIBING}, {"whisper-1"}),
        ({"session": TRANSCRIBING, "type": "session.update"}, {"gpt-4o-transcribe"}),
        (response(model="gpt-realtime-mini"), {"gpt-realtime-mini"}),
        ({"type": "response.create", "model": "at-the-top"}, {"at-the-top"}),
        (response(tools=[TOOL]), set()),
        (response(metadata={"model": "the client's own"}), set()),
        (session(instructions='say "model":"x"'), set()),
        ({"type": "response.create"}, set()),
        ({"type": "response.create", "response": None}, set()),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, set()),
        ({"type": "something.new", "of": {"model": "unheard-of"}}, {"unheard-of"}),
        ({"type": "conversation.item.create", "item": {"model": "in-an-item"}}, {"in-an-item"}),
    ],
)  # fmt: skip
def test_every_model_that_a_message_of_realtime_names_is_found(message: Message, models: set[str]) -> None:
    for size in (None, 1, 7):
        event = asked(message, size=size)
        assert (event.models, event.fault) == (models, None)


@pytest.mark.parametrize(
    ("message", "model", "models"),
    [
        ({"model": "gpt-5", "input": "hi"}, "gpt-5", {"gpt-5"}),
        ({"input": "hi", "model": "gpt-5", "type": "response.create"}, "gpt-5", {"gpt-5"}),
        ({"model": "gpt-5", "moderation": {"model": "omni"}}, "gpt-5", {"gpt-5", "omni"}),
        ({"response": {"model": "gpt-5", "max_output_tokens": 5}}, "gpt-5", {"gpt-5"}),
        ({"model": "gpt-5", "metadata": {"model": "own"}}, "gpt-5", {"gpt-5"}),
        ({"tools": [{"type": "image_generation", "model": "gpt-image-2"}]}, None, {"gpt-image-2"}),
    ],
)  # fmt: skip
def test_a_response_is_read_as_the_body_of_a_request_is(message: Message, model: str | None, models: set[str]) -> None:
    for size in (None, 1, 7):
        event = asked({"type": "response.create"} | message, "responses", size)
        assert event.facts is not None
        assert (event.facts.model, event.models, event.fault) == (model, models, None)


def test_a_fault_of_one_message_is_none_of_another_that_asks_for_the_same() -> None:
    same = {"model": "the-same"}
    assert asked(same | {"type": "response.create", "response": {"model": "b"}}, "responses").fault is not None
    assert asked(same | {"type": "response.create"}, "responses").fault is None


def test_what_is_said_at_the_top_and_in_the_response_is_a_fault() -> None:
    for more in ({"model": "b"}, {"service_tier": "priority"}, {"max_output_tokens": 1}, {"prompt": {"id": "p"}}):
        event = asked({"type": "response.create", "model": "a", "response": more}, "responses")
        assert event.fault == "it says what is asked for at its top and in its response"


@pytest.mark.parametrize("name", ["model", "service_tier"])
@pytest.mark.parametrize("family", ["responses", "realtime"])
def test_of_a_name_that_is_too_long_to_be_one_nothing_is_kept(name: str, family: str) -> None:
    for size in (None, 1000):
        event = asked({"type": "response.create", "response": {name: "x" * 60_000}}, family, size)
        assert event.fault is not None and "in it is longer than 256" in event.fault
        assert event.facts is None or (event.facts.model, event.facts.service_tier) == (None, None)


@pytest.mark.parametrize(
    ("members", "limits", "boundless"),
    [
        ({"max_output_tokens": 100}, {"max_output_tokens": 100}, False),
        ({"max_response_output_tokens": 100}, {"max_response_output_tokens": 100}, False),
        ({"max_output_tokens": "inf"}, None, True),
        ({"max_response_output_tokens": "inf"}, None, True),
        ({"max_output_tokens": None}, None, False),
        ({}, None, False),
    ],
)
def test_the_most_that_a_realtime_response_may_have(
    members: Message, limits: dict[str, int] | None, boundless: bool
) -> None:
    for message in (response(**members), session(**members)):
        event = asked(message)
        assert event.facts is not None
        assert (event.facts.limits, event.facts.boundless, event.fault) == (limits, boundless, None)


def test_a_most_that_is_none_and_one_that_is_contradict_each_other() -> None:
    fault = asked(response(max_output_tokens="inf", max_response_output_tokens=5)).fault
    assert fault == "it declares a maximum of tokens, and that there is none"


@pytest.mark.parametrize("conversation", [None, "auto", "none"])
def test_a_realtime_response_goes_on_from_what_was_said(conversation: str | None) -> None:
    event = asked(response(conversation=conversation))
    assert event.previous
    assert event.facts is not None
    assert not event.facts.inner.references


def test_one_out_of_the_conversation_may_refer_to_its_items_which_are_not_stored() -> None:
    items = [{"type": "item_reference", "id": "item_1"}, {"type": "message", "id": "item_2", "role": "user"}]
    event = asked(response(conversation="none", input=items))
    assert event.previous
    assert event.facts is not None
    assert not event.facts.inner.references


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}, ["conv_1"], 7])
def test_any_other_conversation_is_one_that_is_stored(conversation: Any) -> None:
    event = asked(response(conversation=conversation))
    assert event.facts is not None
    assert "conversation" in event.facts.inner.references


def test_a_stored_prompt_is_seen_in_a_session_and_in_a_response() -> None:
    for message in (session(prompt={"id": "pmpt_1"}), response(prompt={"id": "pmpt_1"})):
        event = asked(message)
        assert event.facts is not None
        assert event.facts.stored_prompt


@pytest.mark.parametrize(
    ("more", "previous"),
    [
        ({}, False), ({"previous_response_id": None}, False), ({"previous_response_id": "resp_1"}, True),
        ({"conversation": "conv_1"}, True), ({"conversation": {"id": "conv_1"}}, True),
        ({"response": {"previous_response_id": "resp_1"}}, True),
    ],
)  # fmt: skip
def test_a_response_goes_on_from_another_where_it_says_so(more: Message, previous: bool) -> None:
    event = asked({"type": "response.create", "model": "gpt-5"} | more, "responses")
    assert event.previous is previous
    assert event.facts is not None
    assert bool(event.facts.inner.references) is previous


def test_what_steers_a_response_is_judged_as_what_asks_for_one() -> None:
    file = {"role": "user", "content": [{"type": "input_file", "file_id": "file-others"}]}
    event = asked({"type": "response.steer", "previous_response_id": "resp_1", "input": [file]}, "responses")
    assert event.facts is not None
    assert event.facts.inner.references == {"file_id", "previous_response_id"}
    assert (event.previous_id, event.previous) == ("resp_1", True)
    long = asked({"type": "response.steer", "previous_response_id": "resp_1", "input": "word " * 600_000}, "responses")
    assert long.tokens > 700_000


def test_two_long_ids_that_begin_alike_are_told_apart() -> None:
    ids = ["resp_" + "A" * MAX_TEXT + end for end in ("1", "2")]
    said = [asked({"type": "response.create", "previous_response_id": each}, "responses").previous_id for each in ids]
    begun = [told({"type": "response.created", "response": {"id": each}}).response_id for each in ids]
    assert said == begun
    assert len(set(said)) == 2
    assert all(each is not None and len(each) <= MAX_TEXT for each in said)


HARMLESS = (
    "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear", "output_audio_buffer.clear",
    "conversation.item.create", "conversation.item.delete", "conversation.item.retrieve", "conversation.item.truncate",
    "response.cancel", "session.input_audio_buffer.append", "session.close",
)  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_asks_for_nothing_is_known_as_soon_as_its_type_is(kind: str) -> None:
    reader = ClientEvents("realtime")
    assert not reader.feed(b'{"event_id":"e1","type":"' + kind.encode())
    assert reader.feed(b'","audio":"')
    assert reader.feed(b"AAAA")
    assert reader.feed(b'"}')
    event = reader.end()
    assert (event.type, event.event_id, event.facts, event.fault) == (kind, "e1", None, None)


@pytest.mark.parametrize(
    "kind", ["response.create", "session.update", "transcription_session.update", "Response.Create", "something.new"]
)
@pytest.mark.parametrize("family", ["realtime", "responses"])
def test_what_must_be_judged_or_is_not_known_never_seems_harmless(kind: str, family: str) -> None:
    reader = ClientEvents(family)
    for piece in (b'{"type":"', kind.encode(), b'"', b',"x":1', b"}"):
        assert not reader.feed(piece)
    event = reader.end()
    assert event.type == kind.lower()
    assert event.facts is not None


def test_a_type_may_stand_last_after_a_megabyte_or_be_escaped() -> None:
    for name in (b'"type"', rb'"\u0074ype"', rb'"typ\u0065"'):
        text = b'{"response":{"model":"m","instructions":"' + b"a" * 2**20 + b'"},' + name + b':"response.create"}'
        event = asked(text, size=4096)
        assert (event.type, event.models, event.fault) == ("response.create", {"m"}, None)


def test_types_within_what_a_message_holds_are_none_of_its_own() -> None:
    event = asked({"item": {"type": "response.create", "content": [{"type": "session.update"}]}, "type": HARMLESS[4]})
    assert (event.type, event.facts, event.fault) == ("conversation.item.create", None, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "it is empty"),
        (b"[]", "found '[' where an object should begin"),
        (b"\x00\x01\x02", "found byte 0x00 where an object should begin"),
        (b"\xef\xbb\xbf{}", "found a byte order mark where an object should begin"),
        ('{"type":"x"}'.encode("utf-16"), "found byte 0xff where an object should begin"),
        (b"{}", "it has no type"),
        (b'{"type":7}', "it has no type"),
        (b'{"type":null}', "it has no type"),
        (b'{"type":""}', "it has no type"),
        (b'{"type":"response.cancel"', "it ends before the object is closed"),
        (b'{"type":"response.cancel"}{"type":"response.create"}', "found '{' after the object's end"),
        (b'{"type":"response.cancel","type":"response.create"}', "it says type more than once"),
        (rb'{"type":"response.cancel","\u0074ype":"response.create"}', "it says type more than once"),
        (b'{"type":"response.cancel","Type":"response.create"}', "it says type more than once"),
        (b'{"type":"response.create","response":{},"response":{}}', "it says response more than once"),
        (b'{"type":"response.create","response":{"model":"a","model":"b"}}', "it says model more than once"),
        (b'{"type":"response.create","response":{"model":"a","Model":"b"}}', "it says model more than once"),
        (b'{"type":"session.update","session":{},"Session":{}}', "it says session more than once"),
        (b'{"type":"response.create","model":"a","model":"b"}', "it says model more than once"),
        (b'{"type":"response.create","response":{"max_output_tokens":"many"}}',
         "max_output_tokens is no number from 0 to 9007199254740992, nor null"),
        (b'{"type":"response.create","response":{"max_output_tokens":1,"max_output_tokens":9}}',
         "it says max_output_tokens more than once"),
        (b'{"type":"response.cancel","x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
         "it is nested more than 1024 levels deep"),
        (b'{"type":"' + b"x" * 10_000 + b'"}', "the value of type is longer than 8192 bytes"),
        (b'{"type":"response.create","model":"' + b"x" * 10_000 + b'"}',
         "the value of model is longer than 8192 bytes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["realtime", "responses"])
def test_what_not_every_parser_reads_alike_is_a_fault(text: bytes, fault: str, family: str) -> None:
    if family == "responses" and b'"response":{"max' in text:
        fault = asked(text, "responses").fault or ""  # as its body's; what counts is that there is one
        assert fault
    for size in (None, 1, 7):
        assert asked(text, family, size).fault == fault


def test_a_fault_is_of_one_message() -> None:
    reader = ClientEvents("realtime")
    assert asked_by(reader, b"{").fault is not None
    assert asked_by(reader, b"{", 1).fault is not None
    assert asked_by(reader, response(model="m")).models == {"m"}
    assert asked_by(reader, {"type": "response.create"}).models == frozenset()


def test_a_model_that_is_no_text_is_none_and_a_text_within_it_counts() -> None:
    for family in ("realtime", "responses"):
        for model in (7, None, True, {}, []):
            event = asked({"type": "response.create", "model": model}, family)
            assert (event.models, event.fault) == (frozenset(), None)
    assert asked({"type": "response.create", "model": ["a", {"name": "b"}]}, "responses").models == {"a", "b"}


def test_half_a_surrogate_pair_in_what_nobody_reads_is_no_fault() -> None:
    text = rb'{"type":"session.update","session":{"model":"m","instructions":"cut \ud83d"}}'
    for size in (None, 1):
        assert (asked(text, size=size).fault, asked(text).models) == (None, {"m"})


def test_sound_is_counted_by_its_length_however_it_is_cut() -> None:
    """A second of 24,000 samples of two bytes is ten tokens; the JSON around each piece counts with it."""
    reader = ClientEvents("realtime")
    tokens = 0
    for _ in range(60 * 50):  # a minute, in pieces of 20 ms
        tokens += asked_by(reader, {"type": "input_audio_buffer.append", "audio": "A" * 1280}).tokens
    assert 600 <= tokens <= 630


def test_an_item_of_a_conversation_is_counted_by_what_is_in_it() -> None:
    def item(**content: Any) -> int:
        message = {"role": "user", "type": "message", "content": [content]}
        return asked({"type": "conversation.item.create", "previous_item_id": "item_1", "item": message}).tokens

    assert 100_000 <= item(type="input_text", text="and so " * 58_000) <= 103_000  # 406,000 bytes
    assert 600 <= item(type="input_audio", audio="A" * 64_000 * 60) <= 650  # a minute
    assert 1_500 <= item(type="input_image", image_url="data:image/png;base64," + "A" * 2**20) <= 1_600


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_fault(text: bytes) -> None:
    for family in ("realtime", "responses"):
        event = asked(text, family)
        assert (event.type is None) <= (event.fault is not None)
        heard(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8)
    | st.sampled_from(["response.create", "session.update", "response.cancel", "inf", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "model", "response", "session", "conversation", "max_output_tokens", "audio", "x"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {}, optional={"type": JSON, "response": JSON, "session": JSON, "model": JSON, "event_id": JSON, "error": JSON,
                  "usage": JSON, "status": JSON},
)  # fmt: skip


@given(MESSAGES, st.integers(1, 50))
def test_what_is_read_is_what_a_parser_reads_at_every_split(message: Message, size: int) -> None:
    text = orjson.dumps(message)
    kind = message.get("type")
    for family in ("realtime", "responses"):
        whole = asked(text, family)
        assert whole == asked(text, family, size)
        if type(kind) is str and kind:
            assert whole.type == kind.strip().casefold()
        if whole.fault is None and kind == "response.create" and family == "realtime":
            inner = message.get("response")
            wanted = inner.get("model") if type(inner) is dict else None
            assert whole.facts is not None
            assert whole.facts.model == (wanted if type(wanted) is str else None)
    assert heard(text) == heard(text, size)


# What an upstream says.

USAGE = {
    "total_tokens": 840, "input_tokens": 500, "output_tokens": 340,
    "input_token_details": {
        "text_tokens": 90, "audio_tokens": 400, "image_tokens": 10, "cached_tokens": 192,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 128, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 40, "audio_tokens": 300},
}  # fmt: skip
RESPONSES_USAGE = {
    "input_tokens": 1000, "input_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 0},
    "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 10}, "total_tokens": 1050,
}  # fmt: skip
BY_TOKENS = {
    "type": "tokens", "total_tokens": 120, "input_tokens": 100, "output_tokens": 20,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 90},
}  # fmt: skip
BY_SECONDS = {"type": "duration", "seconds": 90}

PRICES = load_prices()


def cost(outcome: Outcome | None, model: str) -> float:
    assert outcome is not None
    assert outcome.usage is not None
    dollars, _, why = PRICES.cost(outcome.model or model, outcome.usage, outcome.service_tier, False, 1.8e9)
    assert dollars is not None, why
    return dollars


@pytest.mark.parametrize("size", [None, 1, 100])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("status", ["completed", "cancelled", "failed", "incomplete"])
def test_a_realtime_response_that_ended_says_what_it_used(
    status: str, last: bool, long: bool, size: int | None
) -> None:
    if long and size == 1:
        size = 1000
    body: Message = {"object": "realtime.response", "id": "resp_1", "status": status, "usage": USAGE}
    output = {"output": [{"type": "message", "content": [{"type": "audio", "transcript": LONG if long else "Hi"}]}]}
    body = output | body if last else body | output
    message: Message = {"event_id": "event_1", "response": body}
    message = message | {"type": "response.done"} if last else {"type": "response.done"} | message
    event = told(message, size)
    assert (event.type, event.response_id, event.begins, event.ends) == ("response.done", "resp_1", False, True)
    # 26 of text, 272 of speech, 10 of a picture; 64 and 128 cached; 40 written, 300 spoken.
    expected = 26 * 4 * M + 272 * 32 * M + 10 * 5 * M + 192 * 0.4 * M + 40 * 16 * M + 300 * 64 * M
    assert cost(event.outcome, "gpt-realtime") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [None, 1000])
@pytest.mark.parametrize("text", ["Hi", LONG])
@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_response_of_the_responses_api_says_what_it_used_with_its_calls(
    end: str, text: str, size: int | None
) -> None:
    output = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "message", "content": [{"type": "output_text", "text": text}]},
    ]
    body = {"id": "resp_1", "model": "gpt-5", "status": end, "output": output, "service_tier": "default"}
    event = told({"type": f"response.{end}", "response": body | {"usage": RESPONSES_USAGE}, "stream_id": "s1"}, size)
    assert (event.type, event.response_id, event.stream_id, event.ends) == (f"response.{end}", "resp_1", "s1", True)
    outcome = event.outcome
    assert outcome is not None
    assert outcome.usage is not None
    assert (outcome.model, outcome.service_tier, outcome.partial) == ("gpt-5", "default", False)
    assert (outcome.usage.prompt_tokens, outcome.usage.cached_tokens, outcome.usage.completion_tokens) == (
        1000,
        200,
        50,
    )
    assert outcome.usage.reasoning_tokens == 10
    expected = 800 * 1.25 * M + 200 * 0.125 * M + 50 * 10 * M + 0.01
    assert cost(outcome, "gpt-5") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", ["Hello", LONG])
@pytest.mark.parametrize(
    ("usage", "model", "expected"),
    [
        (BY_TOKENS, "gpt-4o-transcribe", 10 * 2.5 * M + 90 * 6 * M + 20 * 10 * M),
        (BY_TOKENS, "gpt-4o-mini-transcribe", 10 * 1.25 * M + 90 * 3 * M + 20 * 5 * M),
        (BY_SECONDS, "whisper-1", 90 * 0.36 / 3600),
        (BY_SECONDS, "gpt-realtime-whisper", 90 * 1.02 / 3600),
        ({"type": "duration", "seconds": 0.5}, "whisper-1", 0.5 * 0.36 / 3600),
    ],
)
def test_speech_that_was_written_down_costs_what_its_model_does(
    usage: Message, model: str, expected: float, text: str
) -> None:
    kind = "conversation.item.input_audio_transcription.completed"
    event = told({"type": kind, "item_id": "item_1", "content_index": 0, "transcript": text, "usage": usage})
    assert (event.transcription, event.begins, event.ends) == (True, False, False)
    assert cost(event.outcome, model) == pytest.approx(expected, rel=1e-12)


def test_a_response_that_says_nothing_of_usage_has_ended_all_the_same() -> None:
    for kind in ("response.done", "response.completed", "response.incomplete", "response.failed"):
        event = told({"type": kind, "response": {"id": "resp_1", "status": "cancelled"}})
        assert event.ends
        assert event.outcome is not None
        assert event.outcome.usage is None


def test_a_response_that_begins_is_told_by_its_id_and_its_lane() -> None:
    event = told({"type": "response.created", "stream_id": "s1", "response": {"id": "resp_1", "status": "in_progress"}})
    assert (event.begins, event.ends, event.response_id, event.stream_id) == (True, False, "resp_1", "s1")


@pytest.mark.parametrize("long", ["", LONG])
@pytest.mark.parametrize("kind", ["session.created", "session.updated", "transcription_session.updated"])
def test_a_session_says_which_models_are_in_force(kind: str, long: str) -> None:
    body = {"instructions": long, "model": "gpt-realtime", "max_output_tokens": 200, **TRANSCRIBING}
    event = told({"type": kind, "session": body})
    assert (event.session_model, event.transcription_model, event.max_output_tokens) == (
        "gpt-realtime", "gpt-4o-transcribe", 200,
    )  # fmt: skip
    old = {"model": "gpt-4o-realtime-preview", "max_response_output_tokens": "inf", **OLD_TRANSCRIBING}
    event = told({"type": kind, "session": old})
    assert (event.session_model, event.transcription_model, event.max_output_tokens) == (
        "gpt-4o-realtime-preview", "whisper-1", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ({"status": 429, "error": {"type": "x", "code": "rate_limit_exceeded", "event_id": "e1"}}, 429,
         "rate_limit_exceeded"),
        ({"error": {"code": "websocket_connection_limit_reached", "event_id": "e1"}}, None,
         "websocket_connection_limit_reached"),
        ({"code": "server_error", "message": "m", "param": None, "sequence_number": 3, "error": {"event_id": "e1"}},
         None, "server_error"),
        ({"status": 200, "error": {"code": "with words and sk-secret", "event_id": "e1"}}, None, None),
        ({"status": True, "error": {"code": "x" * 65, "event_id": "e1"}}, None, None),
        ({"status": "429", "error": {"code": 7, "event_id": "e1"}}, None, None),
    ],
)  # fmt: skip
def test_an_error_says_its_status_its_code_if_that_is_a_word_and_whose_it_is(
    message: Message, status: int | None, code: str | None
) -> None:
    event = told({"type": "error"} | message)
    assert (event.ends, event.error_status, event.error_code, event.event_id) == (True, status, code, "e1")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "response.output_audio.delta", "response_id": "resp_1", "delta": "AAAA"},
        {"type": "response.output_text.delta", "response_id": "r", "delta": 'say "usage" and "response" and "error"'},
        {"type": "rate_limits.updated", "rate_limits": []},
        {"type": "response.in_progress", "response": {"id": "resp_1", "usage": None}},
        {"type": "conversation.item.input_audio_transcription.failed", "item_id": "i", "error": {"code": "x"}},
        {"type": "response.output_item.done", "item": {"usage": {"input_tokens": 1}}},
        {"type": 7, "usage": {}}, {"usage": {}}, {},
    ],
)  # fmt: skip
def test_all_else_says_nothing_that_matters(message: Message) -> None:
    assert heard(message) is None
    assert heard(message, 1) is None
    assert heard({"padding": LONG} | message) is None


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"type":"response.done","response":', b'"response"', b"\xff"])
def test_what_is_no_object_says_nothing_and_the_next_message_is_read(text: bytes) -> None:
    for padding in (b"", LONG.encode()):
        reader = UpstreamEvents(RESPONSES)
        reader.feed(padding + text)
        assert reader.end() is None
        reader.feed(orjson.dumps({"type": "response.done", "response": {"id": "resp_2", "usage": USAGE}}))
        event = reader.end()
        assert event is not None
        assert event.response_id == "resp_2"


def test_half_a_surrogate_pair_in_an_answer_hides_no_usage() -> None:
    body = rb'{"id":"resp_1","status":"completed","output":[{"text":"cut \ud83d"}],"usage":%b}'
    event = told(b'{"type":"response.done","response":' + body % orjson.dumps(USAGE) + b"}")
    assert event.outcome is not None
    assert event.outcome.usage is not None
    assert event.outcome.usage.total_tokens == 840


def test_a_message_of_many_megabytes_is_read_in_little_memory() -> None:

    reader = UpstreamEvents(RESPONSES)
    piece = orjson.dumps([{"type": "message", "text": "a" * 200}] * 64)[1:-1] + b","
    tracemalloc.start()
    reader.feed(b'{"type":"response.completed","response":{"id":"resp_1","output":[')
    for _ in range(600):  # 9 MB
        reader.feed(piece)
    reader.feed(piece[:-1] + b'],"usage":' + orjson.dumps(RESPONSES_USAGE) + b"}}")
    event = reader.end()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert event is not None
    assert event.outcome is not None
    assert event.outcome.usage is not None
    assert event.outcome.usage.total_tokens == 1050
    assert most < 2 * 1024 * 1024


def test_a_client_is_read_in_little_memory_too() -> None:

    for family in ("realtime", "responses"):
        reader = ClientEvents(family)
        piece = b"word " * 4096
        tracemalloc.start()
        reader.feed(b'{"type":"response.create","response":{"instructions":"')
        for _ in range(400):  # 8 MB
            assert not reader.feed(piece)
        reader.feed(b'","model":"m"}}')
        event = reader.end()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (event.models, event.fault) == ({"m"}, None)
        assert most < 512 * 1024
