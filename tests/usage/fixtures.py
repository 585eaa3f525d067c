"""Answers in the shapes of the OpenAI and Anthropic references, and what each of them says was used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from flowstack.usage.figures import count_message, usage_of
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Late, Outcome, Usage, Used
from flowstack.usage.operations import Operation, operation_of
from flowstack.usage.turns import InTurns

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"

Event = tuple[str | None, Any]
"""Type, or None where the upstream names none, and data: text, or what is to be JSON."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    :ivar body: the whole body, or the events of a stream.
    :ivar outcome: what a meter finds in it.
    """

    name: str
    request: str
    body: Any
    outcome: Outcome
    status: int = 200
    content_type: bytes = JSON

    @property
    def operation(self) -> Operation:
        method, path = self.request.split()
        return operation_of(method.encode(), path.encode())

    @property
    def bytes(self) -> bytes:
        if self.content_type == EVENTS:
            return framed(self.body)
        return orjson.dumps(self.body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def text(event: Event) -> str:
    data = event[1]
    return data if isinstance(data, str) else orjson.dumps(data).decode()


def framed(events: Iterable[Event], end: str = "\n") -> bytes:
    """As OpenAI frames events, with a line end of choice."""
    lines = []
    for event in events:
        if event[0] is not None:
            lines.append(f"event: {event[0]}")
        lines += [f"data: {text(event)}", ""]
    return "".join(line + end for line in lines).encode()


def with_comments(events: Iterable[Event]) -> bytes:
    return b"".join(b": still here\n\n:\nid: 7\nretry: 100\n" + framed([event]) + b":\n\n" for event in events)


def with_many_lines(events: Iterable[Event]) -> bytes:
    """JSON over several lines, so that each is a data line of its own; no space after some colons."""
    out = []
    for name, data in events:
        whole = data if isinstance(data, str) else orjson.dumps(data, option=orjson.OPT_INDENT_2).decode()
        lines = [f"data:{' ' if number % 2 else ''}{line}\n" for number, line in enumerate(whole.split("\n"))]
        out.append((f"event:{name}\n" if name else "") + "".join(lines) + "\n")
    return "".join(out).encode()


def with_mixed_ends(events: Iterable[Event]) -> bytes:
    return b"".join(framed([event], "\r\n" if number % 2 else "\r") for number, event in enumerate(events))


FRAMINGS: dict[str, Callable[[Iterable[Event]], bytes]] = {
    "LF": framed,
    "CRLF": lambda events: framed(events, "\r\n"),
    "CR": lambda events: framed(events, "\r"),
    "CR and CRLF": with_mixed_ends,
    "comments, ids and retries": with_comments,
    "several data lines": with_many_lines,
    "a byte order mark": lambda events: b"\xef\xbb\xbf" + framed(events),
    "no blank line at the end": lambda events: framed(events)[:-1],
    "no line end at the end": lambda events: framed(events)[:-2],
    "empty events between": lambda events: b"\n\n".join(framed([event]) for event in events),
}


# Chat and completions.

CHAT_USAGE = {
    "prompt_tokens": 1117,
    "completion_tokens": 46,
    "total_tokens": 1163,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 20,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
CHAT_FIGURES = Usage(
    1117,
    1024,
    46,
    20,
    1163,
    {name: CHAT_USAGE[name] for name in ("prompt_tokens_details", "completion_tokens_details")},
)
CHAT = {
    "id": "chatcmpl-B9MBs8",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": 'Say "usage": {"prompt_tokens": 9} – naïve \\ 😀',
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": CHAT_USAGE,
    "service_tier": "default",
}
CHAT_OUTCOME = Outcome("gpt-4o-2024-08-06", "default", CHAT_FIGURES)


def chunk(content: str | None, **further: Any) -> Event:
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}, "finish_reason": None}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1741569952, "model": "gpt-4o-2024-08-06"}
    return None, head | {"service_tier": "default", "choices": choices} | further


DONE: Event = (None, "[DONE]")
CHAT_EVENTS = [
    chunk("", usage=None),
    chunk('a "usage":{"prompt_tokens":1} in text', usage=None),
    chunk(" wörd\n\n", usage=None),
    chunk(None, usage=CHAT_USAGE),
    DONE,
]

COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1589478378,
    "model": "gpt-3.5-turbo-instruct",
    "choices": [{"text": "\n\nThis is a test", "index": 0, "logprobs": None, "finish_reason": "length"}],
}
COMPLETION_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}

# Responses.

RESPONSE_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
RESPONSE_FIGURES = Usage(
    36,
    0,
    87,
    64,
    123,
    {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 64}},
)


def response(status: str, usage: Any = None, **further: Any) -> dict[str, Any]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": 'He said "usage".'}]}]
    return {
        "id": "resp_67ccd2",
        "object": "response",
        "created_at": 1741476542,
        "status": status,
        "background": False,
        "instructions": None,
        "model": "gpt-5-2025-08-07",
        "output": output if usage else [],
        "service_tier": "flex",
        "usage": usage,
        "metadata": {},
    } | further


def response_events(end: str, usage: Any = RESPONSE_USAGE, **further: Any) -> list[Event]:
    started = response("in_progress", **further)
    return [
        ("response.created", {"type": "response.created", "sequence_number": 0, "response": started}),
        ("response.output_text.delta", {"type": "response.output_text.delta", "delta": "the word usage"}),
        (f"response.{end}", {"type": f"response.{end}", "response": response(end, usage, **further)}),
    ]


RESPONSE_OUTCOME = Outcome("gpt-5-2025-08-07", "flex", RESPONSE_FIGURES)
NO_USAGE = replace(RESPONSE_OUTCOME, usage=None)
UNDER_WAY = replace(NO_USAGE, late=(Late("response", "resp_67ccd2"),))
FINISHED_LATE = replace(
    NO_USAGE, late=(Late("response", "resp_67ccd2", True, (Used(RESPONSE_FIGURES, "gpt-5-2025-08-07", "flex"),)),)
)

# The rest.

BATCH_USAGE = RESPONSE_USAGE | {"input_tokens": 3600, "total_tokens": 3687}
BATCH_FIGURES = replace(RESPONSE_FIGURES, prompt_tokens=3600, total_tokens=3687)


def batch_outcome(finished: bool, *used: Usage) -> Outcome:
    model = "gpt-5-2025-08-07"
    return Outcome(model, late=(Late("batch", "batch_abc", finished, tuple(Used(one, model) for one in used)),))


def batch(status: str, usage: Any) -> dict[str, Any]:
    return {"id": "batch_abc", "object": "batch", "status": status, "model": "gpt-5-2025-08-07", "usage": usage}


def message_batch(status: str, succeeded: int) -> dict[str, Any]:
    counts = {"processing": 0, "succeeded": succeeded, "errored": 1, "canceled": 0, "expired": 0}
    return {"id": "batch_abc", "type": "message_batch", "processing_status": status, "request_counts": counts}


IMAGE_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 272,
    "total_tokens": 322,
}
IMAGE_FIGURES = Usage(50, None, 272, None, 322, {"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}})
AUDIO_USAGE = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 45,
    "total_tokens": 59,
}
AUDIO_FIGURES = Usage(
    14, None, 45, None, 59, {"type": "tokens", "input_token_details": {"text_tokens": 0, "audio_tokens": 14}}
)
MESSAGE_USAGE = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 2000,
    "output_tokens": 1,
    "service_tier": "standard",
}
MESSAGE_DETAILS = {"cache_creation_input_tokens": 100, "cache_read_input_tokens": 2000, "service_tier": "standard"}
MESSAGE_OUTCOME = Outcome("claude-opus-4-1", "standard", Usage(2125, 2000, 15, None, None, MESSAGE_DETAILS, 100))
NOTHING = Outcome()


def image(kind: str, **further: Any) -> Event:
    return kind, {"type": kind, "b64_json": "aVZCT1J3MEtHZ28=", "size": "1024x1024"} | further


def message_event(kind: str, **further: Any) -> Event:
    return kind, {"type": kind} | further


MESSAGE = {"id": "msg_1", "type": "message", "model": "claude-opus-4-1", "content": [{"type": "text", "text": "Hi"}]}
MESSAGE_EVENTS = [
    message_event("message_start", message=MESSAGE | {"content": [], "usage": MESSAGE_USAGE}),
    message_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
    message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15}),
    message_event("message_stop"),
]

ANSWERS = [
    Answer("chat", "POST chat/completions", CHAT, CHAT_OUTCOME),
    Answer("chat at Azure", "POST deployments/d/chat/completions", CHAT, CHAT_OUTCOME),
    Answer("chat without usage", "POST chat/completions", CHAT | {"usage": None}, replace(CHAT_OUTCOME, usage=None)),
    Answer("a stored chat", "GET chat/completions/chatcmpl-B9MBs8", CHAT, NOTHING),
    Answer("stored chats", "GET chat/completions", {"object": "list", "data": [CHAT], "usage": CHAT_USAGE}, NOTHING),
    Answer("an updated chat", "POST chat/completions/chatcmpl-B9MBs8", CHAT, NOTHING),
    Answer("a failed chat", "POST chat/completions", CHAT, NOTHING, status=429),
    Answer(
        "explicit zeros",
        "POST chat/completions",
        {"model": "m", "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}},
        Outcome("m", None, Usage(0, None, 0, None, 0)),
    ),
    Answer("completion", "POST completions", COMPLETION | {"usage": COMPLETION_USAGE},
           Outcome("gpt-3.5-turbo-instruct", None, Usage(5, None, 7, None, 12))),
    Answer("embeddings", "POST embeddings",
           {"object": "list", "data": [{"object": "embedding", "embedding": [0.0023, -0.0093, 1e-05], "index": 0}],
            "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8}},
           Outcome("text-embedding-3-small", None, Usage(8, None, None, None, 8))),
    Answer("embeddings, usage first", "POST embeddings",
           {"model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}, "data": [{"model": "n", "embedding": [1]}]},
           Outcome("m", None, Usage(8, None, None, None, 8))),
    Answer("a response", "POST responses", response("completed", RESPONSE_USAGE), RESPONSE_OUTCOME),
    Answer("an incomplete response", "POST responses", response("incomplete", RESPONSE_USAGE), RESPONSE_OUTCOME),
    Answer("a response in the background", "POST responses", response("queued", background=True), UNDER_WAY),
    Answer("a response in the background, done at once", "POST responses",
           response("completed", RESPONSE_USAGE, background=True), RESPONSE_OUTCOME),
    Answer("a poll", "GET responses/resp_67ccd2",
           response("in_progress", RESPONSE_USAGE, background=True), UNDER_WAY),
    Answer("a poll that sees the end", "GET responses/resp_67ccd2",
           response("completed", RESPONSE_USAGE, background=True), FINISHED_LATE),
    Answer("a poll that sees the failure", "GET responses/resp_67ccd2",
           response("failed", RESPONSE_USAGE, background=True), FINISHED_LATE),
    Answer("a stored response", "GET responses/resp_67ccd2", response("completed", RESPONSE_USAGE), NO_USAGE),
    Answer("a cancelled response", "POST responses/resp_67ccd2/cancel",
           response("cancelled", RESPONSE_USAGE, background=True), FINISHED_LATE),
    Answer("a compaction", "POST responses/compact",
           {"id": "resp_c", "object": "response.compaction", "output": [], "usage": RESPONSE_USAGE},
           Outcome(None, None, RESPONSE_FIGURES)),
    Answer("a token count", "POST responses/input_tokens",
           {"object": "response.input_tokens", "input_tokens": 11, "usage": RESPONSE_USAGE}, NOTHING),
    Answer("a batch under way", "GET batches/batch_abc", batch("in_progress", BATCH_USAGE),
           batch_outcome(False)),
    Answer("a batch that is done", "GET batches/batch_abc", batch("completed", BATCH_USAGE),
           batch_outcome(True, BATCH_FIGURES)),
    Answer("an old batch", "GET batches/batch_abc", batch("completed", None), batch_outcome(True)),
    Answer("a cancelled batch", "POST batches/batch_abc/cancel", batch("cancelled", BATCH_USAGE),
           batch_outcome(True, BATCH_FIGURES)),
    Answer("all batches", "GET batches", {"object": "list", "has_more": False, "data": [
               batch("in_progress", BATCH_USAGE) | {"metadata": {"data": '[{"}]'}},
               batch("completed", BATCH_USAGE) | {"metadata": {"a": '"}]\\', "b": [{"id": "batch_no"}]}},
           ]}, replace(batch_outcome(True, BATCH_FIGURES), model=None)),
    Answer("no batches", "GET batches", {"object": "list", "data": []}, NOTHING),
    Answer("a message batch", "POST messages/batches", message_batch("in_progress", 0),
           Outcome(late=(Late("message_batch", "batch_abc"),))),
    Answer("a message batch that has ended", "GET messages/batches/batch_abc", message_batch("ended", 3),
           Outcome(late=(Late("message_batch", "batch_abc", True),))),
    Answer("a message batch of which nothing succeeded", "POST messages/batches/batch_abc/cancel",
           message_batch("ended", 0),
           Outcome(late=(Late("message_batch", "batch_abc", True, (Used(Usage(0, None, 0, None, 0)),)),))),
    Answer("results of a message batch, one line of them", "GET messages/batches/batch_abc/results",
           {"custom_id": '"}{', "result": {"type": "succeeded", "message": {
               "id": "msg_1", "content": [{"type": "text", "text": "usage: {]\\"}], "model": "claude-opus-4-5",
               "usage": {"input_tokens": 3, "output_tokens": 5, "service_tier": "batch"}}}},
           Outcome(late=(Late("message_batch", None, True, (
               Used(Usage(3, None, 5, details={"service_tier": "batch"}, longest=3), "claude-opus-4-5", "batch"),)),)),
           content_type=b"application/x-jsonl"),
    Answer("images", "POST images/generations",
           {"created": 1713833628, "data": [{"b64_json": "aVZCT1J3MEtHZ28="}], "usage": IMAGE_USAGE},
           Outcome(None, None, IMAGE_FIGURES)),
    Answer("a transcription", "POST audio/transcriptions", {"text": "Hello", "usage": AUDIO_USAGE},
           Outcome(None, None, AUDIO_FIGURES)),
    Answer("a transcription by the second", "POST audio/transcriptions",
           {"task": "transcribe", "duration": 8.47, "text": "Hi", "usage": {"type": "duration", "seconds": 9}},
           Outcome(None, None, Usage(details={"type": "duration", "seconds": 9}))),
    Answer("a translation", "POST audio/translations", {"text": "Hello"}, NOTHING),
    Answer("a moderation", "POST moderations", {"id": "modr-1", "model": "omni-moderation-latest", "results": []},
           Outcome("omni-moderation-latest")),
    Answer("a decision", "POST decisions", {"model": "m", "answers": [], "usage": RESPONSE_USAGE},
           Outcome("m", None, RESPONSE_FIGURES)),
    Answer("a message", "POST messages", MESSAGE | {"usage": MESSAGE_USAGE | {"output_tokens": 15}}, MESSAGE_OUTCOME),
]  # fmt: skip

STREAMS = [
    replace(answer, content_type=EVENTS)
    for answer in [
        Answer("chat", "POST chat/completions", CHAT_EVENTS, CHAT_OUTCOME),
        Answer("chat that was not asked for usage", "POST chat/completions",
               [chunk("a"), chunk("b"), DONE], replace(CHAT_OUTCOME, usage=None)),
        Answer("chat with usage after [DONE]", "POST chat/completions",
               [chunk("a"), DONE, chunk(None, usage=CHAT_USAGE)], CHAT_OUTCOME),
        Answer("chat with usage so far in each chunk", "POST chat/completions",
               [chunk("a", usage=COMPLETION_USAGE), chunk("b", usage=COMPLETION_USAGE), chunk("c", usage=CHAT_USAGE),
                DONE], CHAT_OUTCOME),
        Answer("chat at Azure, whose first chunk names no model", "POST deployments/d/chat/completions",
               [(None, {"choices": [], "model": "", "prompt_filter_results": []}), *CHAT_EVENTS], CHAT_OUTCOME),
        Answer("chat at Azure that was not asked for usage", "POST deployments/d/chat/completions",
               [(None, {"choices": [], "model": "", "prompt_filter_results": []}), chunk("a"), DONE],
               replace(CHAT_OUTCOME, usage=None)),
        Answer("chat whose tier and model change", "POST chat/completions",
               [chunk("a", service_tier="auto", model="gpt-4o"), chunk("b"), chunk(None, usage=CHAT_USAGE)],
               CHAT_OUTCOME),
        Answer("a completion", "POST completions",
               [(None, COMPLETION), (None, COMPLETION | {"choices": [], "usage": COMPLETION_USAGE}), DONE],
               Outcome("gpt-3.5-turbo-instruct", None, Usage(5, None, 7, None, 12))),
        Answer("a response", "POST responses", response_events("completed"), RESPONSE_OUTCOME),
        Answer("an incomplete response", "POST responses", response_events("incomplete"), RESPONSE_OUTCOME),
        Answer("a failed response", "POST responses", response_events("failed"), RESPONSE_OUTCOME),
        Answer("a failed response without usage", "POST responses", response_events("failed", None), NO_USAGE),
        Answer("a response under way", "POST responses", response_events("in_progress"),
               replace(RESPONSE_OUTCOME, partial=True)),
        Answer("a background response", "POST responses", response_events("completed", background=True),
               RESPONSE_OUTCOME),
        Answer("a background response taken up again", "GET responses/resp_67ccd2",
               response_events("completed", background=True), FINISHED_LATE),
        Answer("a stored response", "GET responses/resp_67ccd2", response_events("completed"), NO_USAGE),
        Answer("a transcription", "POST audio/transcriptions",
               [("transcript.text.delta", {"type": "transcript.text.delta", "delta": "Hel"}),
                ("transcript.text.done", {"type": "transcript.text.done", "text": "Hello", "usage": AUDIO_USAGE})],
               Outcome(None, None, AUDIO_FIGURES)),
        Answer("speech", "POST audio/speech",
               [(None, {"type": "speech.audio.delta", "audio": "AAAA"}),
                (None, {"type": "speech.audio.done", "usage": COMPLETION_USAGE})],
               Outcome(None, None, Usage(5, None, 7, None, 12))),
        Answer("an image", "POST images/generations",
               [image("image_generation.partial_image"), image("image_generation.completed", usage=IMAGE_USAGE)],
               Outcome(None, None, IMAGE_FIGURES)),
        Answer("an edited image", "POST images/edits", [image("image_edit.completed", usage=IMAGE_USAGE)],
               Outcome(None, None, IMAGE_FIGURES)),
        Answer("a message", "POST messages", MESSAGE_EVENTS, MESSAGE_OUTCOME),
        Answer("a message cut short", "POST messages", MESSAGE_EVENTS[:2],
               replace(MESSAGE_OUTCOME, usage=Usage(2125, 2000, 1, None, None, MESSAGE_DETAILS, 100), partial=True)),
    ]
]  # fmt: skip
"""``outcome`` is that of the whole stream, in any framing."""


def metered(answer: Answer, pieces: Iterable[bytes], coding: bytes | None = None, ended: bool = True) -> Outcome:
    """What the answer's meter finds when these pieces of a body come.

    :param ended: whether the body ended with them, as HTTP frames it.
    """
    headers = {b"content-type": answer.content_type}
    if coding is not None:
        headers[b"content-encoding"] = coding
    meter = meter_for(answer.operation, answer.status, headers)
    if meter is None:
        return Outcome()
    return outcome_of(meter, pieces, ended)


def outcome_of(meter: InTurns, pieces: Iterable[bytes], ended: bool = True) -> Outcome:
    """What a meter finds in these pieces, however many turns it takes."""
    for piece in pieces:
        more = meter.feed(piece)
        while more:
            more = meter.work()
    return meter.finish(ended)


def message_usage_of(value: Any) -> Usage | None:
    """What a whole usage object of Anthropic's says; None where that is nothing."""
    usage = usage_of(value)
    if usage is not None:
        count_message(usage)
    return usage
