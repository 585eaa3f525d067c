"""The responses API: JSON, its typed stream events, and what is stored (OpenAI reference: responses)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from attrs import define

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import Speech, identifier, snapshot, speak, text_of, tokens, usage_of
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import CREATED, Refused, Reply, Request, Usage, event, json_reply, stream_reply


def _input_items(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return [item for item in value if isinstance(item, dict)]


@define
class _Kept:
    """A stored response.

    :ivar status: as it is now; a background one gets on to its end by one step at each look.
    """

    status: str
    started: dict[str, Any]
    finished: dict[str, Any]
    speech: Speech
    items: list[dict[str, Any]]

    def step(self) -> None:
        """Get on."""
        self.status = {"queued": "in_progress", "in_progress": self.finished["status"]}.get(self.status, self.status)

    @property
    def view(self) -> dict[str, Any]:
        """As it is shown now."""
        if self.status == self.finished["status"]:
            return self.finished
        return self.started | {"status": self.status}


class Responses:
    """The endpoints under ``/v1/responses`` and what they keep."""

    def __init__(self) -> None:
        self._kept = Store[_Kept]("Response", count=1000)
        self._numbers = count(1)

    def create(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/responses``: the last user input comes back."""
        body = request.json
        model = snapshot(request.need("model", str))
        items = _input_items(request.need("input", (str, list)))
        said = [text_of(item.get("content")) for item in items if item.get("role") == "user"]
        speech = speak(said[-1] if said else "", directives, body.get("max_output_tokens"))
        heard = len(tokens(body.get("instructions") or "")) + sum(len(tokens(text_of(i.get("content")))) for i in items)
        usage = usage_of(heard, speech, directives)
        background = bool(body.get("background"))
        identity = identifier("resp_", request)
        if background:  # each works on by itself, however alike they are
            identity = f"{identity[:45]}{next(self._numbers):08x}"
        started = _response(identity, body, model, "in_progress")
        finished = started | _ending(speech, usage, _message(request, speech.text, "completed"))
        if body.get("store", True) or background:
            status = finished["status"] if not background else "in_progress" if body.get("stream") else "queued"
            self._kept.put(identity, _Kept(status, started, finished, speech, items))
        if body.get("stream"):
            return stream_reply(_stream(started, finished, speech), usage=usage)
        if background:
            return json_reply(self._kept.get(identity).view)
        return json_reply(finished, usage=usage)

    def retrieve(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/responses/{id}``: a background response gets on by one status each time; as a stream, to its end.

        ``starting_after`` leaves out the events up to that number.
        """
        kept = self._kept.get(identity)
        if request.query.get("stream") == "true":
            after = request.query.get("starting_after", "")
            kept.status = kept.finished["status"]
            events = _stream(kept.started, kept.finished, kept.speech)
            return stream_reply(islice(events, int(after) + 1 if after.isdecimal() else 0, None))
        kept.step()
        return json_reply(kept.view)

    def cancel(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/responses/{id}/cancel``: for background responses only; a finished one stays as it is."""
        kept = self._kept.get(identity)
        if not kept.started["background"]:
            raise Refused(400, "Cannot cancel a synchronous response.")
        if kept.status in ("queued", "in_progress"):
            kept.status = "cancelled"
        return json_reply(kept.view)

    def delete(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``DELETE /v1/responses/{id}``."""
        self._kept.remove(identity)
        return json_reply({"id": identity, "object": "response", "deleted": True})

    def inputs(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/responses/{id}/input_items``."""
        items = [{"id": f"msg_{n}", **item} for n, item in enumerate(self._kept.get(identity).items)]
        ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
        return json_reply({"object": "list", "data": items, **ends, "has_more": False})


def _response(identity: str, body: dict[str, Any], model: str, status: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": bool(body.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation", "disabled"),
        "usage": None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _ending(speech: Speech, usage: Usage, message: dict[str, Any]) -> dict[str, Any]:
    why = {"reason": "max_output_tokens"} if speech.truncated else None
    status = "incomplete" if speech.truncated else "completed"
    return {"status": status, "incomplete_details": why, "output": [message], "usage": usage.as_response()}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message(request: Request, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    return {
        "id": identifier("msg_", request),
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _stream(started: dict[str, Any], finished: dict[str, Any], speech: Speech) -> Iterator[bytes]:
    """The events of one text message, numbered; the last holds the whole response with its usage, and no [DONE]."""
    number = 0

    def typed(name: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": name, "sequence_number": number - 1, **fields}, name)

    whole = finished["output"][0]
    here = {"item_id": whole["id"], "output_index": 0, "content_index": 0}
    yield typed("response.created", response=started)
    yield typed("response.in_progress", response=started)
    yield typed("response.output_item.added", output_index=0, item=whole | {"status": "in_progress", "content": []})
    yield typed("response.content_part.added", **here, part=_part(""))
    for word in speech:
        yield typed("response.output_text.delta", **here, delta=word, logprobs=[])
    yield typed("response.output_text.done", **here, text=speech.text, logprobs=[])
    yield typed("response.content_part.done", **here, part=_part(speech.text))
    yield typed("response.output_item.done", output_index=0, item=whole)
    yield typed(f"response.{finished['status']}", response=finished)
