"""Chat completions and the older completions, JSON and streams (OpenAI reference: chat, completions)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import Speech, identifier, snapshot, speak, text_of, tokens, usage_of
from flowstack.testing.standin.values import (
    CREATED,
    DONE,
    Refused,
    Reply,
    Request,
    Usage,
    event,
    json_reply,
    stream_reply,
)

_FINGERPRINT = "fp_57a4d1f0e5"


def _choices(body: dict[str, Any]) -> int:
    n = body.get("n") or 1
    if not isinstance(n, int) or not 1 <= n <= 128:
        raise Refused(400, f"Invalid 'n': expected 1 to 128, got {n!r}.", param="n", code="invalid_value")
    return n


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _finish(speech: Speech) -> str:
    return "length" if speech.truncated else "stop"


def chat(request: Request, directives: Directives) -> Reply:
    """``POST /v1/chat/completions``: the last user message comes back."""
    body = request.json
    model = snapshot(request.need("model", str))
    messages = [m for m in request.need("messages", list) if isinstance(m, dict)]
    if not messages:
        raise Refused(400, "Invalid 'messages': empty array.", param="messages", code="empty_array")
    said = [text_of(m.get("content")) for m in messages if m.get("role") == "user"]
    n = _choices(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    speech = speak(said[-1] if said else "", directives, limit)
    usage = usage_of(sum(len(tokens(text_of(m.get("content")))) for m in messages), speech, directives, n)
    head = {
        "id": identifier("chatcmpl-", request),
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
    }
    tail = {"service_tier": "default", "system_fingerprint": _FINGERPRINT}
    if body.get("stream"):
        counted = usage if _wants_usage(body) else None
        head["object"] = "chat.completion.chunk"
        return stream_reply(_chat_stream(head | tail, speech, n, counted), usage=counted, billed=usage)
    message: dict[str, Any] = {"role": "assistant", "content": speech.text, "refusal": None, "annotations": []}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": _finish(speech)} for i in range(n)]
    return json_reply(head | {"choices": choices, "usage": usage.as_chat()} | tail, usage=usage)


def _chat_stream(head: dict[str, Any], speech: Speech, n: int, usage: Usage | None) -> Iterator[bytes]:
    """The role first, then the words, then the reason of the end; with usage, ``usage`` is null until its own chunk."""
    nothing = {} if usage is None else {"usage": None}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(head | {"choices": [choice]} | nothing)

    for index in range(n):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    for word in speech:
        for index in range(n):
            yield chunk(index, {"content": word})
    for index in range(n):
        yield chunk(index, {}, _finish(speech))
    if usage is not None:
        yield event(head | {"choices": [], "usage": usage.as_chat()})
    yield DONE


def _prompts(value: Any) -> list[tuple[str, int]]:
    """Each prompt's text and its tokens: a string, token numbers, or a list of either."""
    if isinstance(value, str):
        return [(value, len(tokens(value)))]
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return [("", len(value))]
    if isinstance(value, list) and value:
        return [found for item in value for found in _prompts(item)]
    raise Refused(400, "Invalid 'prompt': expected text or tokens.", param="prompt", code="invalid_type")


def completions(request: Request, directives: Directives) -> Reply:
    """``POST /v1/completions``: each prompt comes back."""
    body = request.json
    model = request.need("model", str)
    prompts = _prompts(body.get("prompt") or "<|endoftext|>")
    n = _choices(body)
    speeches = [speak(text, directives, body.get("max_tokens", 16)) for text, _ in prompts for _ in range(n)]
    usage = Usage(
        prompt=sum(count for _, count in prompts),
        completion=sum(speech.count for speech in speeches) + directives.reasoning,
        cached=min(directives.cached, sum(count for _, count in prompts)),
        reasoning=directives.reasoning,
    )
    head = {"id": identifier("cmpl-", request), "object": "text_completion", "created": CREATED, "model": model}
    if body.get("stream"):
        counted = usage if _wants_usage(body) else None
        return stream_reply(_completion_stream(head, speeches, counted), usage=counted, billed=usage)
    choices = [
        {"text": speech.text, "index": index, "logprobs": None, "finish_reason": _finish(speech)}
        for index, speech in enumerate(speeches)
    ]
    return json_reply(head | {"choices": choices, "usage": usage.as_chat()}, usage=usage)


def _completion_stream(head: dict[str, Any], speeches: list[Speech], usage: Usage | None) -> Iterator[bytes]:
    nothing = {} if usage is None else {"usage": None}
    for index, speech in enumerate(speeches):
        for word in speech:
            choice = {"text": word, "index": index, "logprobs": None, "finish_reason": None}
            yield event(head | {"choices": [choice]} | nothing)
        end = {"text": "", "index": index, "logprobs": None, "finish_reason": _finish(speech)}
        yield event(head | {"choices": [end]} | nothing)
    if usage is not None:
        yield event(head | {"choices": [], "usage": usage.as_chat()})
    yield DONE
