"""Responses over a WebSocket (OpenAI guide: WebSocket mode): lanes by ``stream_id``, in each one after the other."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from flowstack.testing.standin import handshake, replies
from flowstack.testing.standin.faults import BadDirective, Directives, merge
from flowstack.testing.standin.responses import Responses
from flowstack.testing.standin.turns import Turns, event_of
from flowstack.testing.standin.values import Refused, Reply, Request, Said

_REMEMBERED = 256


class Lanes:
    """One WebSocket's talk.

    What is not stored (``"store": false``) can be continued on the same connection only.

    :param opened: the handshake, whose header fields hold for each response.
    """

    def __init__(self, responses: Responses, opened: Request, directives: Directives) -> None:
        self.wake = lambda: None
        self.over = False
        self._responses = responses
        self._opened = opened
        self._directives = directives
        self._turns = Turns()
        self._lanes: dict[str | None, deque[Request]] = {}
        self._own: OrderedDict[str, None] = OrderedDict()
        self._numbers = count(1)

    def hear(self, message: str | bytes) -> None:
        """Take a client's event: ``response.create``; ``response.steer`` is refused as not supported."""
        lane = None
        try:
            event = event_of(message)
            named = event.get("stream_id")
            if named is not None and not isinstance(named, str):
                raise Refused(400, "Invalid type for 'stream_id'.", param="stream_id", code="invalid_type")
            lane = named
            kind = event.get("type")
            if kind is None:
                raise Refused(
                    400, "Missing required parameter: 'type'.", param="type", code="missing_required_parameter"
                )
            if kind == "response.steer":
                self._turns.now(Said(_steered(event)))
            elif kind == "response.create":
                # The number makes equal events two responses, with ids of their own.
                body = orjson.dumps({**event, "stand-in": next(self._numbers)})
                self._queue(lane, Request("POST", "/v1/responses", self._opened.headers, body))
            else:
                raise Refused(400, f"Invalid value: '{kind}'.", param="type", code="invalid_value")
        except Refused as refused:
            self._turns.now(Said(_error(refused) | _lane(lane)))

    def say(self) -> Said | None:
        """The next event, of each lane in turn."""
        return self._turns.say()

    def _queue(self, lane: str | None, request: Request) -> None:
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = deque()
            self._turns.add(self._speak(lane, waiting))
        waiting.append(request)

    def _speak(self, lane: str | None, waiting: deque[Request]) -> Iterator[Said]:
        while waiting:
            request = waiting.popleft()
            try:
                yield from self._respond(lane, request)
            except Refused as refused:
                yield Said(_error(refused) | _lane(lane))
            except BadDirective as bad:
                yield Said(_error(Refused(400, str(bad), code="unknown_directive")) | _lane(lane))
        del self._lanes[lane]

    def _respond(self, lane: str | None, request: Request) -> Iterator[Said]:
        body = request.json
        directives = merge(self._directives, body)
        changed: Directives | None = directives if directives is not self._directives else None
        if changed is not None and changed.status is not None and changed.status >= 400:
            raise replies.error_of(changed.status)
        if body.get("background"):
            raise Refused(400, "Background is not supported over WebSocket.", param="background", code="invalid_value")
        before = body.get("previous_response_id")
        if before is not None and before not in self._own and not self._responses.knows(before):
            raise Refused(
                400,
                f"Previous response with id '{before}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        made = self._responses.make(request, directives)
        for event in made.events():
            last = event["type"] == f"response.{made.finished['status']}"
            if last:
                self._keep(made.started["id"])
                if body.get("store", True):
                    self._responses.keep(made, made.finished["status"])
            usage, asked = (made.usage, request) if last else (None, None)
            yield Said(event | _lane(lane), usage=usage, endpoint="responses", asked=asked, directives=changed)
            changed = None

    def _keep(self, identity: str) -> None:
        self._own[identity] = None
        if len(self._own) > _REMEMBERED:
            self._own.popitem(last=False)


def connect(responses: Responses, request: Request, directives: Directives) -> Reply:
    """The WebSocket at ``/v1/responses``."""
    return handshake.switching(request, directives, Lanes(responses, request, directives))


def _lane(lane: str | None) -> dict[str, Any]:
    return {} if lane is None else {"stream_id": lane}


def _error(refused: Refused) -> dict[str, Any]:
    return {"type": "error", "status": refused.status, "error": refused.error}


def _steered(event: dict[str, Any]) -> dict[str, Any]:
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "The stand-in's responses cannot be steered.",
    }
    steer = {"input": event.get("input"), "previous_response_id": event.get("previous_response_id")}
    return {"type": "response.steer.failed", "sequence_number": 0, "error": error, "steer": steer}
