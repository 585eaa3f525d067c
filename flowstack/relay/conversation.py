"""What is asked for and answered on one WebSocket: what may pass, what is reserved, and a row for each response.

A response begins with the client's ``response.create``, or by itself, where the upstream listens to speech and tells
when a turn is over. Either way it is a request to the key's limits, and ends in one row.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, cast

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.errors import FlowstackError, LedgerUnavailable, MalformedRequest, ModelNotAllowed, Overloaded
from flowstack.http.replies import error_object
from flowstack.interfaces import Reservation
from flowstack.keys import Key, check_model, check_usable
from flowstack.ledger.row import End, Row, put_usage, usual_names
from flowstack.limits.charge import charged_tokens
from flowstack.relay.permission import Terms
from flowstack.relay.row import row_of_head
from flowstack.usage.estimate import BYTES_A_TOKEN, STORED_CONTEXT
from flowstack.usage.model import Outcome
from flowstack.usage.request_facts import RequestFacts
from flowstack.usage.sockets import ClientEvent, ClientEvents, UpstreamEvent, UpstreamEvents

log = Logger()

MAX_OPEN: Final = 256
"""Responses of one WebSocket that are asked for or under way at once."""

MAX_KNOWN: Final = 1024
"""Responses of one WebSocket that it may go on from where it may not refer to what else is stored."""

_NOTHING_ASKED: Final = RequestFacts()


class Asked:
    """A response that was asked for, or has begun by itself.

    :ivar wall_started: Unix seconds; ``came`` and ``first_at`` are on the monotonic clock.
    :ivar size: bytes of the message that asked for it.
    :ivar passed: bytes that had come from the upstream by then.
    :ivar reserving: the limiter's answer, where that takes its time; fires with None once it is known.
    """

    __slots__ = ("came", "event_id", "facts", "first_at", "model", "passed", "reservation", "reserving", "size",
                 "stream_id", "wall_started")  # fmt: skip

    def __init__(
        self,
        facts: RequestFacts,
        model: str | None,
        came: float,
        wall_started: float,
        size: int,
        event: ClientEvent | None,
    ) -> None:
        self.facts = facts
        self.model = model
        self.came = came
        self.wall_started = wall_started
        self.size = size
        self.event_id = None if event is None else event.event_id
        self.stream_id = None if event is None else event.stream_id
        self.first_at: float | None = None
        self.reservation: Reservation | None = None
        self.reserving: Deferred[None] | None = None
        self.passed = 0


class Conversation:
    """Of one WebSocket.

    :param exchange: of its handshake.
    :param next_id: makes the rows' ids.
    :param say: sends a message to the client.
    :param tell_upstream: sends one to the upstream.
    :param deny: ends the WebSocket.
    :ivar asks: reads what the client sends.
    :ivar judges: whether the client's messages wait until they are judged.
    :ivar over: whether the upstream has sent its Close frame: it answers nothing any more.
    """

    __slots__ = ("_active", "_context", "_deny", "_exchange", "_key", "_known", "_model", "_next_id", "_operation",
                 "_output", "_passed", "_pending", "_plan", "_say", "_tell_upstream", "_terms", "_told", "_transcriber",
                 "_updates", "asks", "judges", "over")  # fmt: skip

    _terms: Terms

    def __init__(
        self,
        exchange: Any,
        next_id: Callable[[], bytes],
        say: Callable[[bytes], None],
        tell_upstream: Callable[[bytes], None],
        deny: Callable[[FlowstackError], None],
    ) -> None:
        admission = exchange.admission
        self._exchange = exchange
        self._operation = admission.response
        self._next_id = next_id
        self._say = say
        self._tell_upstream = tell_upstream
        self._deny = deny
        self.asks = ClientEvents(self._operation.family)
        self._told = UpstreamEvents(self._operation)
        self._pending: list[Asked] = []  # asked for, and not begun; a deque of nothing has 700 bytes
        self._active: dict[str, Asked] = {}  # by the upstream's id
        self._known: dict[str, None] = {}  # ids of the responses that were made here
        self._model = admission.model  # in force, where an event names none
        self._transcriber: str | None = None
        self._output: int | None = None  # the most of each response, where the session says it
        self._updates = 0  # of the session that were asked for, and of which it does not tell yet
        self._context = 0  # tokens, of what was said before
        self._passed = 0
        self.over = False
        self.take_key(admission.key)

    def take_key(self, key: Key) -> None:
        """Hold what follows to the key as it is now."""
        exchange = self._exchange
        services, admission = exchange.services, exchange.admission
        route, request = exchange.attempt.route, exchange.request
        upstream = route.origin.name
        # A fallback gets the operator's key, whatever the upstream got for which the handshake was.
        operators_key = admission.outgoing.provider_key is not None or upstream != admission.route.origin.name
        try:
            plan = services.limiter.plan(key, upstream)
            if plan is not None:
                _, plan = services.limiter.parts(plan)
            self._terms = services.permission.terms(
                key, self._operation, plan, None, request.method, admission.route.path,
                operators_key, False,
            )  # fmt: skip
        except FlowstackError as error:
            self._deny(error)
            return
        self._key, self._plan = key, plan
        self.judges = self._terms.reads or plan is not None

    # What the client asks for.

    def note(self, event: ClientEvent, size: int) -> None:
        """A message went on that need not be judged."""
        if event.type == "response.create" and len(self._pending) < MAX_OPEN:
            self._pending.append(self._asked(event, size))
        elif event.tokens:
            self._context += event.tokens

    def ask(self, event: ClientEvent, size: int) -> Deferred[None] | None:
        """Let a message pass.

        :param size: bytes of it.
        :return: fires when it may, where the limiter takes its time.
        :raises FlowstackError: it may not.
        """
        services, key, terms = self._exchange.services, self._key, self._terms
        if event.fault is not None:
            if terms.reads:
                raise terms.unreadable(event.fault)
            raise MalformedRequest(f"This message cannot be held to the limits of its key: {event.fault}.")
        if key.models:
            for model in event.models:
                check_model(key, model)
        facts = event.facts
        if facts is None:
            self._context += event.tokens
            return None
        model = facts.model or self._model
        headers = self._exchange.request.requestHeaders
        if event.type != "response.create":
            terms.check(self._own(event, facts), model, headers, False)
            self._context += event.tokens
            self._updates += event.type == "session.update"
            return None
        wall = services.wall_clock()
        check_usable(key, wall)
        if not services.ledger.accepting:
            raise LedgerUnavailable(
                "Flowstack cannot record usage now, and is configured to refuse requests then. Its log says why."
            )
        if len(self._pending) + len(self._active) >= MAX_OPEN:
            raise Overloaded(f"This WebSocket has {MAX_OPEN} responses that have not ended. Wait for one of them.")
        terms.check(self._own(event, facts), model, headers, True)
        asked = self._asked(event, size)
        if self._plan is not None:
            reserving = self._reserve(asked, event.previous)
            if isinstance(reserving, Deferred):
                return reserving.addCallback(self._reserved, asked)
            asked.reservation = reserving
        self._pending.append(asked)
        return None

    def _own(self, event: ClientEvent, facts: RequestFacts) -> RequestFacts:
        """What is asked for, less what refers to a response of this very WebSocket."""
        if event.previous_id is None or event.previous_id not in self._known or not facts.inner.references:
            return facts
        own = copy(facts)
        own.inner = copy(facts.inner)
        own.inner.references = facts.inner.references - {"previous_response_id"}
        return own

    def _asked(self, event: ClientEvent | None, size: int) -> Asked:
        services = self._exchange.services
        facts = _NOTHING_ASKED if event is None or event.facts is None else event.facts
        asked = Asked(facts, facts.model or self._model, services.monotonic(), services.wall_clock(), size, event)
        asked.passed = self._passed
        return asked

    def _reserve(self, asked: Asked, previous: bool) -> Any:
        """Take what a response may use."""
        size = asked.size
        if previous:
            size += min(self._context, STORED_CONTEXT) * BYTES_A_TOKEN
        facts = asked.facts
        if self._output is not None and not (self._updates or facts.limits or facts.boundless):
            facts = copy(facts)
            facts.limits = {"max_output_tokens": self._output}
        demand = self._terms.estimate(facts, size, asked.model, asked.wall_started)
        return self._exchange.services.limiter.reserve(self._plan, *demand)

    def _reserved(self, reservation: Reservation, asked: Asked) -> None:
        asked.reservation = reservation
        if self._exchange.closed or self.over:  # nothing was sent
            end: End = "upstream_lost" if self.over else "client_gone"
            self._settle(asked, self._row(asked, Outcome(), end, None, sent=False))
        else:
            self._pending.append(asked)

    def refused(self, event: ClientEvent, error: FlowstackError, size: int) -> None:
        """A message may not pass: tell the client, and write it down if it asked for a response."""
        self._tell_client(error, event.event_id, event.stream_id)
        if event.type != "response.create":
            return
        row = self._row(self._asked(event, size), Outcome(), "refused", error.status, sent=False)
        row["error_code"] = error.code
        self._observe(row)

    def _tell_client(self, error: FlowstackError, event_id: str | None, stream_id: str | None) -> None:
        """An ``error`` event, as OpenAI has it in Realtime and on the WebSocket of responses."""
        told: dict[str, Any] = {
            "type": "error",
            "event_id": f"event_{self._next_id().decode('ascii')}",
            "status": error.status,
            "error": {**error_object(error, self._exchange.services.docs_url), "event_id": event_id},
        }
        if stream_id is not None:
            told["stream_id"] = stream_id
        self._say(orjson.dumps(told))

    # What the upstream says.

    def hear(self, payload: bytes, ends: bool, passed: int) -> None:
        """Some of a message of the upstream's is to go on. Never raises.

        :param ends: whether the message ends with it.
        :param passed: bytes that have come from it so far.
        """
        try:
            told = self._told
            told.feed(payload)
            event = told.end() if ends else None
            if event is not None:
                self._passed = passed
                self._tell(event)
        except Exception:
            log.failure("an event of a WebSocket could not be counted")

    def _tell(self, event: UpstreamEvent) -> None:
        if event.session:
            self._take_session(event)
        if event.begins and event.response_id is not None:
            self._begin(event, event.response_id)
        elif event.ends:
            self._end(event)
        elif event.transcription and event.outcome is not None:
            self._transcribed(event.outcome)

    def _take_session(self, event: UpstreamEvent) -> None:
        if self._updates and event.type == "session.updated":
            self._updates -= 1
        self._model = event.session_model or self._model
        self._transcriber = event.transcription_model or (None if event.unread else self._transcriber)
        self._output = event.max_output_tokens
        if self._key.models:
            try:
                if event.unread:
                    raise ModelNotAllowed(
                        "The upstream tells of a session with values that are too long to be looked through for models."
                    )
                for model in (event.session_model, event.transcription_model):
                    if model is not None:
                        check_model(self._key, model)
            except FlowstackError as error:
                self._deny(error)

    def _begin(self, event: UpstreamEvent, identity: str) -> None:
        if identity in self._known or identity in self._active:  # it is told a second time
            return
        asked = self._find(event)
        unasked = asked is None
        if asked is None:
            asked = self._asked(None, 0)
        asked.first_at = self._exchange.services.monotonic()
        self._know(identity)
        full = len(self._active) >= MAX_OPEN
        if not full:
            self._active[identity] = asked
        if unasked and self._plan is not None:
            self._reserve_unasked(asked, identity)
        if full:
            self._settle(asked, self._row(asked, Outcome(), "upstream_lost", 200))

    def _know(self, identity: str) -> None:
        if identity not in self._known and len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[identity] = None

    def _reserve_unasked(self, asked: Asked, identity: str) -> None:
        """Take what a response may use that began by itself. If it may not, ask for its end; what it used by then is
        charged."""
        try:
            reserving = self._reserve(asked, True)
        except FlowstackError as error:
            self._stop(error, identity)
            return
        if isinstance(reserving, Deferred):
            asked.reserving = reserving.addCallbacks(
                partial(setattr, asked, "reservation"), partial(self._stop_late, identity)
            )
        else:
            asked.reservation = reserving

    def _stop(self, error: FlowstackError, identity: str) -> None:
        self._tell_client(error, None, None)
        self._tell_upstream(orjson.dumps({"type": "response.cancel", "response_id": identity}))

    def _stop_late(self, identity: str, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, FlowstackError):
            log.failure("a response that began by itself could not be held to the limits", failure)
            error = FlowstackError("Flowstack failed at this response; its log says why.")
        if identity in self._active:
            self._stop(error, identity)

    def _find(self, event: UpstreamEvent) -> Asked | None:
        """What was asked for, has not begun, and is told of: the oldest one, of the same stream where there is one. An
        upstream may name streams in its own way, or not at all. An error is about the event or the stream that it
        names, or else about the oldest one.
        """
        if event.event_id is not None:
            found = [asked for asked in self._pending if asked.event_id == event.event_id]
        else:
            found = [asked for asked in self._pending if asked.stream_id == event.stream_id]
            if not found and (event.type != "error" or event.stream_id is None):
                found = self._pending
        if not found:
            return None
        oldest = found[0]
        self._pending.remove(oldest)
        return oldest

    def _end(self, event: UpstreamEvent) -> None:
        asked = None if event.response_id is None else self._active.pop(event.response_id, None)
        if asked is None and event.response_id in self._known:  # it has its row
            return
        if asked is None:
            asked = self._find(event)
        outcome = event.outcome or Outcome()
        if asked is None:
            if event.type == "error" or outcome.usage is None:
                return
            asked = self._asked(None, 0)
        if event.response_id is not None:
            self._know(event.response_id)
        usage = outcome.usage
        if usage is not None and usage.total_tokens is not None:
            self._context = usage.total_tokens
        status = 200 if event.error_status is None else event.error_status
        if event.type == "error" and event.error_status is None:
            status = 400
        self._settle(asked, self._row(asked, outcome, "complete", status))

    def _transcribed(self, outcome: Outcome) -> None:
        """Speech of the client's was written down, by a model of its own."""
        asked = self._asked(None, 0)
        asked.model = self._transcriber or outcome.model
        self._settle(asked, self._row(asked, outcome, "complete", 200))

    # Rows.

    def _row(self, asked: Asked, outcome: Outcome, end: End, status: int | None, sent: bool = True) -> Row:
        exchange = self._exchange
        services = exchange.services
        row: Row = (exchange.admission.row or row_of_head(exchange.admission, exchange.request)).copy()
        now = services.monotonic()
        row["request_id"] = self._next_id().decode("ascii")
        row["parent_request_id"] = exchange.request_id.decode("ascii")
        row["started_at"] = datetime.fromtimestamp(asked.wall_started, UTC)
        row["upstream"] = exchange.attempt.route.origin.name
        if asked.model is not None:
            row["model_requested"] = usual_names[asked.model]
        row["model"] = outcome.model
        row["service_tier"] = outcome.service_tier
        row["status"], row["end"], row["stream"] = status, end, True
        cast(dict[str, Any], row)["transport"] = exchange.transport
        if asked.first_at is not None:
            row["first_byte_ms"] = (asked.first_at - asked.came) * 1e6 // 1.0 / 1e3
        row["duration_ms"] = (now - asked.came) * 1e6 // 1.0 / 1e3
        row["attempts"] = 1 if sent else 0
        row["bytes_in"], row["bytes_out"] = asked.size, max(0, self._passed - asked.passed)
        if outcome.usage is not None:
            drawn_by = asked.facts.inner.drawn_by
            put_usage(row, outcome.usage, services.prices, False, asked.wall_started, outcome.partial, drawn_by)
        return row

    def _settle(self, asked: Asked, row: Row) -> None:
        if asked.reserving is None:
            self._charge(asked, row)
        else:
            asked.reserving.addCallback(lambda _: self._charge(asked, row))
        self._observe(row)

    def _charge(self, asked: Asked, row: Row) -> None:
        """Charge what was used, be it more than was left, where it began by itself."""
        reservation, limiter = asked.reservation, self._exchange.services.limiter
        used = row["usage_source"] != "none"
        charged = row
        if used and (row["cost_usd"] is None or row["service_tier"] is None):
            charged = self._terms.assumed(row, asked.facts, asked.wall_started)
        if reservation is not None:
            limiter.settle(reservation, charged)
        elif used and self._plan is not None and self._plan.metered:
            limiter.charge(self._plan, charged_tokens(charged, 0), charged["cost_usd"])

    def _observe(self, row: Row) -> None:
        """Write it down, now: what tells of it goes on after that."""
        services = self._exchange.services
        try:
            for observe in services.observers:  # the ledger first, which never raises
                observe(row, self._operation.name)
        except Exception:
            log.failure("a row could not be counted")
        services.ledger.flush()

    def end(self, end: End) -> None:
        """The WebSocket has ended: what has not ended on it keeps its estimate as the charge. Never raises."""
        try:
            for asked in (*self._active.values(), *self._pending):
                # As of a stream that was cut after its head.
                status = None if asked.first_at is None else 200
                self._settle(asked, self._row(asked, Outcome(), "upstream_lost" if end == "complete" else end, status))
        except Exception:
            log.failure("the responses of a WebSocket could not be settled: what they reserved stays charged")
        self._active.clear()
        self._pending.clear()
