"""``POST /v1/messages`` as Anthropic shapes it, so that a second provider can be configured (Anthropic reference)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import Speech, identifier, speak, text_of, tokens, usage_of
from flowstack.testing.standin.values import Reply, Request, Usage, event, json_reply, stream_reply


def messages(request: Request, directives: Directives) -> Reply:
    """The last user message comes back; ``max_tokens`` is required."""
    body = request.json
    model = request.need("model", str)
    limit = request.need("max_tokens", int)
    turns = [turn for turn in request.need("messages", list) if isinstance(turn, dict)]
    said = [text_of(turn.get("content")) for turn in turns if turn.get("role") == "user"]
    speech = speak(said[-1] if said else "", directives, limit)
    heard = sum(len(tokens(text_of(turn.get("content")))) for turn in turns) + len(tokens(text_of(body.get("system"))))
    usage = usage_of(heard, speech, directives)
    message = {
        "id": identifier("msg_", request),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage, usage.completion),
    }
    if body.get("stream"):
        return stream_reply(_stream(message, speech, usage), usage=usage)
    return json_reply(
        message | {"content": [{"type": "text", "text": speech.text}], "stop_reason": _stop(speech)}, usage=usage
    )


def _stop(speech: Speech) -> str:
    return "max_tokens" if speech.truncated else "end_turn"


def _usage(usage: Usage, output: int) -> dict[str, Any]:
    """Anthropic counts what it read from the cache apart from ``input_tokens``."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": output,
        "service_tier": "standard",
    }


def _stream(message: dict[str, Any], speech: Speech, usage: Usage) -> Iterator[bytes]:
    def typed(name: str, **fields: Any) -> bytes:
        return event({"type": name, **fields}, name)

    yield typed("message_start", message=message | {"usage": _usage(usage, 1)})
    yield typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield typed("ping")
    for word in speech:
        yield typed("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield typed("content_block_stop", index=0)
    end = {"stop_reason": _stop(speech), "stop_sequence": None}
    yield typed("message_delta", delta=end, usage={"output_tokens": usage.completion})
    yield typed("message_stop")
