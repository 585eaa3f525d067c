"""Whether an answer came to its own end, and so whether what it said was used is all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from flowstack.usage.model import Outcome, Usage
from tests.usage.fixtures import (
    ANSWERS,
    CHAT_USAGE,
    DONE,
    EVENTS,
    JSON,
    MESSAGE,
    STREAMS,
    Answer,
    Event,
    framed,
    message_event,
    metered,
    response,
)


def figures(prompt: Any, completion: Any, total: Any = 0, **further: Any) -> dict[str, Any]:
    total = prompt + completion if total == 0 else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **further}


def part(index: int, usage: Any = None, finish: str | None = None, **further: Any) -> Event:
    """A chunk with one choice."""
    choices = [{"index": index, "delta": {"content": "a"}, "finish_reason": finish}]
    return None, {"model": "m", "choices": choices, **({} if usage is None else {"usage": usage}), **further}


def whole(usage: Any) -> Event:
    """A chunk with no choice and usage."""
    return None, {"model": "m", "choices": [], "usage": usage}


def own(index: int, usage: Any) -> Event:
    """Moonshot's last chunk of a choice."""
    return None, {"model": "m", "choices": [{"index": index, "delta": {}, "finish_reason": "stop", "usage": usage}]}


def growing(index: int, prompt: int, last: int, first: int = 1, finish: bool = True) -> list[Event]:
    """A choice whose chunks say how much of it there is."""
    return [
        part(index, figures(prompt, count), "stop" if finish and count == last else None)
        for count in range(first, last + 1)
    ]


def interleaved(*streams: list[Event]) -> list[Event]:
    longest = max(map(len, streams))
    return [stream[at] for at in range(longest) for stream in streams if at < len(stream)]


def seen(events: list[Event], ended: bool = True, request: str = "POST chat/completions") -> Outcome:
    """What the meter finds, however the stream is cut into pieces."""
    answer = Answer("", request, events, Outcome(), content_type=EVENTS)
    body = framed(events)
    outcome = metered(answer, [body], ended=ended)
    assert metered(answer, [framed([event]) for event in events], ended=ended) == outcome
    assert metered(answer, (body[at : at + 7] for at in range(0, len(body), 7)), ended=ended) == outcome
    return outcome


ZEROS = figures(0, 0, None) | {"total_tokens": 0}
GROQ = {"id": "req_1", "usage": figures(9, 4) | {"queue_time": 0.5}}

WHOLE_CHATS: list[tuple[str, list[Event], Usage]] = [
    ("OpenAI: one chunk at the end", [part(0), part(0, finish="stop"), whole(figures(9, 4)), DONE],
     Usage(9, None, 4, None, 13)),
    ("vLLM: in each chunk, and at the end", [*growing(0, 9, 4), whole(figures(9, 4)), DONE],
     Usage(9, None, 4, None, 13)),
    ("Gemini, xAI: in each chunk, of the answer so far", [*growing(0, 9, 4), DONE], Usage(9, None, 4, None, 13)),
    ("Perplexity: the same, and no [DONE]", growing(0, 9, 4), Usage(9, None, 4, None, 13)),
    ("zeros first", [part(0, ZEROS), part(0, ZEROS), part(0, figures(9, 4), "stop"), DONE],
     Usage(9, None, 4, None, 13)),
    ("zeros last", [*growing(0, 9, 4), whole(ZEROS), DONE], Usage(9, None, 4, None, 13)),
    ("zeros alone", [part(0, ZEROS), part(0, ZEROS, "stop"), DONE], Usage(0, None, 0, None, 0)),
    ("null last", [*growing(0, 9, 4), (None, {"choices": [], "usage": None}), DONE], Usage(9, None, 4, None, 13)),
    ("Mistral, DeepSeek: in the last chunk", [part(0), part(0, figures(9, 4), "stop"), DONE],
     Usage(9, None, 4, None, 13)),
    ("Groq: in x_groq", [part(0), part(0, finish="stop", x_groq=GROQ), DONE],
     Usage(9, None, 4, None, 13, {"queue_time": 0.5})),
    ("Groq: asked for, and in x_groq too", [part(0, finish="stop"), (None, whole(figures(9, 5))[1] | {"x_groq": GROQ}),
     DONE], Usage(9, None, 5, None, 14)),
    ("Moonshot: in the choice", [part(0), own(0, figures(9, 4)), DONE], Usage(9, None, 4, None, 13)),
    ("the input first, the output later",
     [part(0, {"prompt_tokens": 9}), part(0), part(0, {"completion_tokens": 4}, "stop"), DONE], Usage(9, None, 4)),
    ("details first, totals alone later",
     [part(0, figures(9, 1, prompt_tokens_details={"cached_tokens": 8})), part(0, figures(9, 4), "stop"), DONE],
     Usage(9, 8, 4, None, 13, {"prompt_tokens_details": {"cached_tokens": 8}})),
    # Several choices.
    ("two: OpenAI", [part(0), part(1), part(0, finish="stop"), part(1, finish="stop"), whole(figures(9, 8)), DONE],
     Usage(9, None, 8, None, 17)),
    ("two: vLLM, each counted by itself, and the sum last",
     [*interleaved(growing(0, 9, 3), growing(1, 9, 5)), whole(figures(9, 8)), DONE], Usage(9, None, 8, None, 17)),
    ("two: each counted by itself, side by side", [*interleaved(growing(0, 9, 3), growing(1, 9, 5)), DONE],
     Usage(9, None, 8, None, 17)),
    ("two: of the same length", [*interleaved(growing(0, 9, 5), growing(1, 9, 5)), DONE],
     Usage(9, None, 10, None, 19)),
    ("two: one after the other", [*growing(0, 9, 3), *growing(1, 9, 5), DONE], Usage(9, None, 8, None, 17)),
    ("two: of one token each", [*growing(0, 9, 1), *growing(1, 9, 1), DONE], Usage(9, None, 2, None, 11)),
    ("three: once with each",
     [*(part(index, figures(9, count), "stop") for index, count in enumerate((3, 5, 7))), DONE],
     Usage(9, None, 15, None, 24)),
    ("two: each in its choice", [part(0), part(1), own(0, figures(9, 3)), own(1, figures(9, 5)), DONE],
     Usage(9, None, 8, None, 17)),
    ("two: each by itself, zeros last", [*growing(0, 9, 3), *growing(1, 9, 5), whole(ZEROS), DONE],
     Usage(9, None, 8, None, 17)),
    ("two: of the answer so far, in turns",
     [part(0, figures(9, 1)), part(1, figures(9, 2)), part(0, figures(9, 3)), part(1, figures(9, 4)),
      part(0, figures(9, 5), "stop"), part(1, figures(9, 5), "stop"), DONE], Usage(9, None, 5, None, 14)),
    ("two: reasoning counts with the output",
     [part(0, figures(9, 3, completion_tokens_details={"reasoning_tokens": 2}), "stop"),
      part(1, figures(9, 5, completion_tokens_details={"reasoning_tokens": 4}), "stop"), DONE],
     Usage(9, None, 8, 6, 17, {"completion_tokens_details": {"reasoning_tokens": 6}})),
]  # fmt: skip


@pytest.mark.parametrize(("events", "usage"), [case[1:] for case in WHOLE_CHATS], ids=[case[0] for case in WHOLE_CHATS])
def test_a_whole_chat_says_all_that_it_used(events: list[Event], usage: Usage) -> None:
    assert seen(events) == Outcome("m", None, usage)
    assert seen(events, request="POST completions") == Outcome("m", None, usage)


@pytest.mark.parametrize("events", [case[1] for case in WHOLE_CHATS], ids=[case[0] for case in WHOLE_CHATS])
def test_what_a_chat_said_before_it_broke_off_is_partial_or_nothing(events: list[Event]) -> None:
    for count in range(len(events)):
        outcome = seen(events[:count], ended=False)
        assert outcome.partial is (outcome.usage is not None)
        if outcome.usage is not None:
            assert 0 not in (outcome.usage.prompt_tokens, outcome.usage.completion_tokens, outcome.usage.total_tokens)
    if events[-1] == DONE:
        assert seen(events, ended=False) == seen(events)  # its last byte was never waited for


CUT_CHATS: list[tuple[str, list[Event], Usage | None]] = [
    ("zeros", [part(0, ZEROS), part(0)], None),
    ("no output yet", [part(0, figures(9, 0))], Usage(9, None, None, None, 9)),
    ("so much of it", growing(0, 9, 4, finish=False), Usage(9, None, 4, None, 13)),
    ("all of one choice", growing(0, 9, 4), Usage(9, None, 4, None, 13)),
    ("some of two choices", interleaved(growing(0, 9, 3), growing(1, 9, 2)), Usage(9, None, 5, None, 14)),
    ("texts alone", [part(0, {"type": "tokens", "prompt_tokens": 0})], None),
]  # fmt: skip


@pytest.mark.parametrize(("events", "usage"), [case[1:] for case in CUT_CHATS], ids=[case[0] for case in CUT_CHATS])
def test_what_a_chat_had_used_when_it_broke_off_is_no_final_figure(events: list[Event], usage: Usage | None) -> None:
    assert seen(events, ended=False) == Outcome("m", None, usage, partial=usage is not None)


@pytest.mark.parametrize(
    ("events", "partial"),
    [
        (growing(0, 9, 4, finish=False), True),
        (growing(0, 9, 4), False),
        ([*growing(0, 9, 4, finish=False), part(0, finish="length")], False),
        ([*growing(0, 9, 4, finish=False), whole(figures(9, 4))], False),
        ([*growing(0, 9, 4, finish=False), whole(ZEROS)], True),
        ([*growing(0, 9, 4, finish=False), (None, {"error": {"message": "out of memory"}}), DONE], True),
        ([*growing(0, 9, 4, finish=False), (None, {"error": {"message": "out of memory"}})], True),
        ([(None, {"model": "m", "error": {"message": "lost"}, "usage": figures(9, 4)}), DONE], True),
    ],
)
def test_a_body_that_ends_without_a_finish_or_with_an_error_is_not_whole(events: list[Event], partial: bool) -> None:
    assert seen(events) == Outcome("m", None, Usage(9, None, 4, None, 13), partial=partial)


def test_texts_alone_are_no_usage() -> None:
    texts = {"type": "tokens", "prompt_tokens": None}
    assert seen([part(0, texts, "stop"), DONE]) == Outcome("m")
    answer = Answer("", "POST chat/completions", {"model": "m", "usage": texts}, Outcome())
    assert metered(answer, [answer.bytes]) == Outcome("m")


def test_done_in_a_text_ends_nothing() -> None:
    events = [*growing(0, 9, 4, finish=False), (None, {"choices": [{"delta": {"content": "[DONE]"}}]})]
    assert seen(events, ended=False).partial
    assert not seen([*events, DONE], ended=False).partial


# The other families.

MESSAGE_START = message_event("message_start", message=MESSAGE | {"usage": {"input_tokens": 25, "output_tokens": 1}})


@pytest.mark.parametrize(
    ("events", "ended", "partial", "completion"),
    [
        ([MESSAGE_START], True, True, 1),
        ([MESSAGE_START, message_event("message_delta", delta={}, usage={"output_tokens": 9})], True, True, 9),
        ([MESSAGE_START, message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})],
         False, True, 9),
        ([MESSAGE_START, message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})],
         True, False, 9),
        ([MESSAGE_START, message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
          message_event("message_stop")], False, False, 9),
        ([MESSAGE_START, message_event("message_delta", delta={}, usage={"output_tokens": 9}),
          message_event("error", error={"type": "overloaded_error"}), message_event("message_stop")], True, True, 9),
    ],
)  # fmt: skip
def test_a_message_ends_with_its_last_event(events: list[Event], ended: bool, partial: bool, completion: int) -> None:
    outcome = seen(events, ended, "POST messages")
    assert outcome == Outcome("claude-opus-4-1", None, Usage(25, None, completion), partial=partial)


@pytest.mark.parametrize("said", [None, {}, {"input_tokens": None, "cache_read_input_tokens": None}])
def test_null_in_a_message_s_last_event_erases_nothing(said: dict[str, Any] | None) -> None:
    first = {"input_tokens": 100, "cache_read_input_tokens": 2000, "cache_creation": {"ephemeral_5m_input_tokens": 3},
             "cache_creation_input_tokens": 3, "output_tokens": 2, "service_tier": "priority"}  # fmt: skip
    events = [
        message_event("message_start", message=MESSAGE | {"usage": first}),
        message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={**(said or {}), "output_tokens": 50}),
        message_event("message_stop"),
    ]
    details = {name: first[name] for name in first if name not in ("input_tokens", "output_tokens")}
    assert seen(events, request="POST messages") == Outcome(
        "claude-opus-4-1", "priority", Usage(2103, 2000, 50, None, None, details, 3)
    )


TERMINAL = [
    ("POST audio/transcriptions", {"type": "transcript.text.delta", "delta": "Hel"}, "transcript.text.done"),
    ("POST audio/speech", {"type": "speech.audio.delta", "audio": "AAAA"}, "speech.audio.done"),
    ("POST images/generations", {"type": "image_generation.partial_image"}, "image_generation.completed"),
    ("POST images/edits", {"type": "image_edit.partial_image"}, "image_edit.completed"),
]


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled", "in_progress", "queued", None])
@pytest.mark.parametrize("large", [False, True])
def test_a_response_whose_status_is_no_end_has_used_no_final_figure(status: str | None, large: bool) -> None:
    usage, text = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}, "x" * (20_000 if large else 1)
    body = {"model": "m", "status": status, "output": [{"type": "message", "text": text}], "usage": usage}
    answer = Answer("", "POST responses", body, Outcome())
    seen_now = metered(answer, [answer.bytes])
    assert (seen_now.usage, seen_now.partial) == (Usage(9, None, 4, None, 13), status in ("in_progress", "queued"))
    zeros = orjson.dumps(body | {"usage": dict.fromkeys(usage, 0)})
    assert (metered(answer, [zeros]).usage is None) == (status in ("in_progress", "queued"))


@pytest.mark.parametrize(("request_", "before", "last"), TERMINAL)
@pytest.mark.parametrize("ended", [True, False])
def test_the_event_that_ends_a_stream_says_all(request_: str, before: dict[str, Any], last: str, ended: bool) -> None:
    usage = {"input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
    used = Usage(14, None, 45, None, 59)
    assert seen([(None, before), (None, {"type": last, "usage": usage})], ended, request_) == Outcome(usage=used)
    assert seen([(None, before | {"usage": usage})], ended, request_) == Outcome(usage=used, partial=True)


def test_each_image_of_a_stream_says_its_own_output() -> None:
    usage = {"input_tokens": 50, "output_tokens": 272, "total_tokens": 322}
    events: list[Event] = [(None, {"type": "image_generation.completed", "usage": usage})] * 3
    request = "POST images/generations"
    assert seen(events, request=request) == Outcome(usage=Usage(50, None, 816, None, 866))


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_the_event_that_ends_a_response_says_all(kind: str) -> None:
    def event(status: str, usage: Any) -> Event:
        return None, {"type": f"response.{status}", "response": response(status, usage)}

    usage = {"input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
    used = Outcome("gpt-5-2025-08-07", "flex", Usage(14, None, 45, None, 59))
    for ended in (True, False):
        assert seen([event("created", None), event(kind, usage)], ended, "POST responses") == used
        partial = seen([event("in_progress", usage)], ended, "POST responses")
        assert partial == replace(used, partial=True)
        assert seen([event("in_progress", usage), event(kind, None)], ended, "POST responses") == partial


@pytest.mark.parametrize(
    "answer",
    [replace(answer, body={"model": "m", "usage": CHAT_USAGE, "rest": "x" * size})
     for size in (10, 20_000)
     for answer in ANSWERS
     if answer.name in ("chat", "completion", "a response", "images", "a transcription", "a decision")],
    ids=lambda answer: f"{answer.name} {len(answer.bytes)}",
)  # fmt: skip
def test_an_object_that_breaks_off_after_its_usage_is_partial(answer: Answer) -> None:
    body = orjson.dumps(answer.body)
    entire = metered(answer, [body])
    assert entire.usage is not None
    assert not entire.partial
    assert metered(answer, [body], ended=False) == entire
    for ended in (True, False):
        for cut in (1, 5, 8):
            assert metered(answer, [body[:-cut]], ended=ended) == replace(entire, partial=True)


@pytest.mark.parametrize("size", [1, 20, 4000])
@pytest.mark.parametrize("names", ["usage model data", "model data usage", "data model usage"])
def test_embeddings_that_break_off_are_partial_or_say_nothing(size: int, names: str) -> None:
    data = [{"object": "embedding", "index": index, "embedding": [0.25]} for index in range(size)]
    members = {"data": data, "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    answer = Answer("", "POST embeddings", {name: members[name] for name in names.split()}, Outcome(), 200, JSON)
    body = orjson.dumps(answer.body)
    used = Outcome("m", None, Usage(8, None, None, None, 8))
    assert metered(answer, [body]) == used
    for cut in range(1, min(len(body), 300)):
        outcome = metered(answer, [body[:-cut]], ended=False)
        assert outcome.partial is (outcome.usage is not None)
        assert outcome.usage in (None, used.usage)


def test_every_stream_that_breaks_off_before_its_end_is_partial_or_says_nothing() -> None:
    for answer in STREAMS:
        for count in range(len(answer.body)):
            outcome = metered(answer, [framed(answer.body[:count])], ended=False)
            if outcome.usage is not None and outcome.usage != answer.outcome.usage:
                assert outcome.partial, answer.name
