"""Messages and batches of them as Anthropic has them (its reference), so that a second provider can be configured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson
from attrs import define

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import Speech, identifier, speak, text_of, tokens, usage_of
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import (
    Refused,
    Reply,
    Request,
    Usage,
    bytes_reply,
    event,
    json_reply,
    stream_reply,
)

_CREATED, _EXPIRES = "2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z"
_HEAD = ((b"Content-Type", b"application/json"),)


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


@define
class _Batch:
    """A message batch: under way, until it is looked at for the second time."""

    shown: dict[str, Any]
    requests: list[dict[str, Any]]
    results: bytes = b""
    looks: int = 0


class MessageBatches:
    """The endpoints under ``/v1/messages/batches``."""

    def __init__(self) -> None:
        self._batches = Store[_Batch]("Message batch", count=1000)
        self._numbers = count(1)

    def create(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/messages/batches``: it is worked off at the second look."""
        requests = request.need("requests", list)
        for each in requests:
            if not (isinstance(each, dict) and isinstance(each.get("params"), dict) and "custom_id" in each):
                raise Refused(400, "requests: each needs custom_id and params")
        shown = {
            "id": f"msgbatch_{next(self._numbers):024d}",
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": _counts(processing=len(requests)),
            "ended_at": None,
            "created_at": _CREATED,
            "expires_at": _EXPIRES,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": None,
        }
        self._batches.put(str(shown["id"]), _Batch(shown, requests))
        return json_reply(shown)

    def list(self, request: Request, directives: Directives) -> Reply:
        """``GET /v1/messages/batches``."""
        data = [batch.shown for batch in self._batches.newest_first()]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return json_reply({"data": data, "has_more": False, **ends})

    def retrieve(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/messages/batches/{id}``."""
        batch = self._batches.get(identity)
        batch.looks += 1
        status = batch.shown["processing_status"]
        if status == "canceling" or (status == "in_progress" and batch.looks > 1):
            self._end(request, batch, status == "canceling")
        return json_reply(batch.shown)

    def cancel(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/messages/batches/{id}/cancel``."""
        batch = self._batches.get(identity)
        if batch.shown["processing_status"] == "in_progress":
            batch.shown.update(processing_status="canceling", cancel_initiated_at=_CREATED)
        return json_reply(batch.shown)

    def results(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/messages/batches/{id}/results``: a line for each request."""
        batch = self._batches.get(identity)
        if batch.shown["processing_status"] != "ended":
            raise Refused(404, "Results are not available yet.")
        return bytes_reply(batch.results, "application/x-jsonl")

    def _end(self, request: Request, batch: _Batch, canceled: bool) -> None:
        counts, lines = _counts(), []
        for each in batch.requests:
            result: dict[str, Any] = {"type": "canceled"} if canceled else _result(each["params"])
            counts[result["type"]] += 1
            lines.append(orjson.dumps({"custom_id": each["custom_id"], "result": result}) + b"\n")
        batch.results = b"".join(lines)
        batch.shown.update(
            processing_status="ended",
            request_counts=counts,
            ended_at=_CREATED,
            results_url=f"http://{request.header('host')}/v1/messages/batches/{batch.shown['id']}/results",
        )


def _counts(processing: int = 0) -> dict[str, int]:
    return {"processing": processing, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}


def _result(params: dict[str, Any]) -> dict[str, Any]:
    """One request's, as if it had come by itself."""
    try:
        reply = messages(Request("POST", "/v1/messages", _HEAD, orjson.dumps(params)), Directives())
    except Refused as refused:
        error = {"type": "invalid_request_error", "message": str(refused)}
        return {"type": "errored", "error": {"type": "error", "error": error}}
    message = orjson.loads(b"".join(reply.pieces))
    message["usage"]["service_tier"] = "batch"
    return {"type": "succeeded", "message": message}
