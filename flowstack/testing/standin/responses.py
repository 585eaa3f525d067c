"""The responses API: JSON, its typed stream events, and what is stored (OpenAI reference: responses)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from attrs import define, evolve, frozen

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import Speech, identifier, snapshot, speak, text_of, tokens, usage_of
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import CREATED, Refused, Reply, Request, Usage, event, json_reply, stream_reply


def _input_items(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return [item for item in value if isinstance(item, dict)]


@frozen
class Made:
    """A response, as it begins and as it ends."""

    started: dict[str, Any]
    finished: dict[str, Any]
    speech: Speech
    items: list[dict[str, Any]]
    usage: Usage

    def events(self) -> Iterator[dict[str, Any]]:
        """What a stream of it tells, numbered; the last event holds the whole response with its usage."""
        for number, (name, fields) in enumerate(_stream(self)):
            yield {"type": name, "sequence_number": number, **fields}


@define
class _Kept:
    """A stored response.

    :ivar status: as it is now; a background one gets on to its end by one step at each look.
    """

    status: str
    made: Made

    def step(self) -> None:
        """Get on."""
        self.status = {"queued": "in_progress", "in_progress": self.made.finished["status"]}.get(
            self.status, self.status
        )

    @property
    def view(self) -> dict[str, Any]:
        """As it is shown now."""
        if self.status == self.made.finished["status"]:
            return self.made.finished
        return self.made.started | {"status": self.status}


class Responses:
    """The endpoints under ``/v1/responses`` and what they keep."""

    def __init__(self) -> None:
        self._kept = Store[_Kept]("Response", count=1000)
        self._numbers = count(1)

    def create(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/responses``: the last user input comes back."""
        made = self.make(request, directives)
        body, identity, usage = request.json, made.started["id"], made.usage
        background = made.started["background"]
        if body.get("store", True) or background:
            status = made.finished["status"] if not background else "in_progress" if body.get("stream") else "queued"
            self.keep(made, status)
        if body.get("stream"):
            return stream_reply(map(_sse, made.events()), usage=usage)
        if background:
            return json_reply(self._kept.get(identity).view)
        return json_reply(made.finished, usage=usage)

    def make(self, request: Request, directives: Directives) -> Made:
        """The response to a request's body.

        :raises Refused: where the body lacks something.
        """
        body = request.json
        model = snapshot(request.need("model", str))
        items = _input_items(request.need("input", (str, list)))
        said = [text_of(item.get("content")) for item in items if item.get("role") == "user"]
        speech = speak(said[-1] if said else "", directives, body.get("max_output_tokens"))
        if body.get("generate") is False:
            speech = Speech((), 0)
        elif directives.fail:
            speech = evolve(speech, count=(speech.count + 1) // 2)
        heard = len(tokens(body.get("instructions") or "")) + sum(len(tokens(text_of(i.get("content")))) for i in items)
        usage = usage_of(heard, speech, directives)
        identity = identifier("resp_", request)
        if body.get("background"):  # each works on by itself, however alike they are
            identity = f"{identity[:45]}{next(self._numbers):08x}"
        started = _response(identity, body, model, "in_progress")
        output = [] if body.get("generate") is False else [_message(request, speech.text, "completed")]
        finished = started | _ending(speech, usage, output, directives)
        return Made(started, finished, speech, items, usage)

    def keep(self, made: Made, status: str) -> None:
        """Store a response."""
        self._kept.put(made.started["id"], _Kept(status, made))

    def knows(self, identity: str) -> bool:
        """Whether a response is stored."""
        return identity in self._kept

    def retrieve(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/responses/{id}``: a background response gets on by one status each time; as a stream, to its end.

        ``starting_after`` leaves out the events up to that number.
        """
        kept = self._kept.get(identity)
        if request.query.get("stream") == "true":
            after = request.query.get("starting_after", "")
            kept.status = kept.made.finished["status"]
            events = map(_sse, kept.made.events())
            return stream_reply(islice(events, int(after) + 1 if after.isdecimal() else 0, None))
        kept.step()
        return json_reply(kept.view)

    def cancel(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/responses/{id}/cancel``: for background responses only; a finished one stays as it is."""
        kept = self._kept.get(identity)
        if not kept.made.started["background"]:
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
        items = [{"id": f"msg_{n}", **item} for n, item in enumerate(self._kept.get(identity).made.items)]
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


def _ending(speech: Speech, usage: Usage, output: list[dict[str, Any]], directives: Directives) -> dict[str, Any]:
    why = {"reason": "max_output_tokens"} if speech.truncated else None
    ending = {"status": "incomplete" if why else "completed", "incomplete_details": why, "output": output}
    if directives.fail:
        failed = {"code": "server_error", "message": "The model failed, as the stand-in was asked for."}
        ending = {"status": "failed", "error": failed, "output": output}
    return {**ending, "usage": usage.as_response()}


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


def _stream(made: Made) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of at most one text message; no [DONE] follows."""
    finished, text = made.finished, made.speech.text
    yield "response.created", {"response": made.started}
    yield "response.in_progress", {"response": made.started}
    for index, whole in enumerate(finished["output"]):
        here = {"item_id": whole["id"], "output_index": index, "content_index": 0}
        started = whole | {"status": "in_progress", "content": []}
        yield "response.output_item.added", {"output_index": index, "item": started}
        yield "response.content_part.added", {**here, "part": _part("")}
        for word in made.speech:
            yield "response.output_text.delta", {**here, "delta": word, "logprobs": []}
        if finished["status"] != "failed":
            yield "response.output_text.done", {**here, "text": text, "logprobs": []}
            yield "response.content_part.done", {**here, "part": _part(text)}
            yield "response.output_item.done", {"output_index": index, "item": whole}
    yield f"response.{finished['status']}", {"response": finished}


def _sse(value: dict[str, Any]) -> bytes:
    return event(value, value["type"])
