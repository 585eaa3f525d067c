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
from flowstack.relay.speech import AHEAD, SECOND, Speech
from flowstack.usage.estimate import BYTES_A_TOKEN, STORED_CONTEXT
from flowstack.usage.inner import SPOKEN_BYTES_A_TOKEN
from flowstack.usage.model import Outcome
from flowstack.usage.request_facts import RequestFacts
from flowstack.usage.sockets import ClientEvent, ClientEvents, UpstreamEvent, UpstreamEvents

log = Logger()

MAX_OPEN: Final = 256
"""Responses of one WebSocket that are asked for or under way at once, and of which is known what was asked; as many
turns of speech that are written down; as many updates of the session that are not told of yet."""

MAX_KNOWN: Final = 1024
"""Responses of one WebSocket that it may go on from where it may not refer to what else is stored."""

_NOTHING_ASKED: Final = RequestFacts()
_TOO_MANY: Final = f"This WebSocket has {MAX_OPEN} responses that have not ended. Wait for one of them."


class Asked:
    """A response that was asked for, or has begun by itself.

    :ivar wall_started: Unix seconds; ``came`` and ``first_at`` are on the monotonic clock.
    :ivar size: bytes of the message that asked for it; of speech the tokens that are reserved.
    :ivar apart: whether it is no part of the conversation.
    :ivar passed: bytes that had come from the upstream by then.
    :ivar reserving: the limiter's answer, where that takes its time; fires with None once it is known.
    """

    __slots__ = ("apart", "came", "event_id", "facts", "first_at", "model", "passed", "reservation", "reserving",
                 "size", "stream_id", "wall_started")  # fmt: skip

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
        self.apart = event is not None and event.apart
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

    __slots__ = ("_active", "_ahead", "_beyond", "_context", "_deny", "_exchange", "_key", "_known", "_listening",
                 "_model", "_next_id", "_operation", "_output", "_passed", "_pending", "_plan", "_prompt", "_say",
                 "_speech", "_spoken", "_standing", "_tell_upstream", "_terms", "_told", "_transcriber", "_unread",
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
        self._beyond = 0  # further ones that have begun
        self._known: dict[str, None] = {}  # ids of the responses that were made here
        self._model = admission.model  # in force, where an event names none
        self._transcriber: str | None = None
        self._prompt = 0  # bytes of what it is told beforehand
        self._spoken: dict[str, Asked] = {}  # turns of speech that are written down, by the upstream's id
        self._speech = Speech()
        self._ahead = False  # whether the limiter is asked for the next turn
        self._output: int | None = None  # the most of each response, where the session says it
        self._updates: list[ClientEvent] = []  # of the session that were asked for, and of which it does not tell yet
        self._standing = 0  # bytes by estimate that the session adds to what each response is asked
        self._context = 0  # tokens, of what was said before
        self._unread = False  # whether an event was not
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
            speech = None
            if plan is not None:
                _, plan, speech = services.limiter.parts(plan)
            self._terms = services.permission.terms(
                key, self._operation, plan, None, request.method, admission.route.path,
                operators_key, False,
            )  # fmt: skip
        except FlowstackError as error:
            self._deny(error)
            return
        self._key, self._plan = key, plan
        self._listening = speech if speech is not None and speech.metered else None
        self.judges = self._terms.reads or plan is not None

    # What the client asks for.

    def note(self, event: ClientEvent, size: int) -> None:
        """A message went on that need not be judged."""
        if event.type == "response.create":
            if len(self._pending) < MAX_OPEN:
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
        if event.speaks:
            return self._listen(event.tokens)
        facts = event.facts
        if facts is None:
            self._context += event.tokens
            if event.type == "input_audio_buffer.clear":
                self._speech.forget()
            return None
        model = facts.model or self._model
        headers = self._exchange.request.requestHeaders
        if event.type != "response.create":
            terms.check(self._own(event, facts), model, headers, False)
            if event.standing is not None:
                self._update(event)
            self._context += event.tokens
            return None
        wall = services.wall_clock()
        check_usable(key, wall)
        if not services.ledger.accepting:
            raise LedgerUnavailable(
                "Flowstack cannot record usage now, and is configured to refuse requests then. Its log says why."
            )
        if len(self._pending) + len(self._active) >= MAX_OPEN:
            raise Overloaded(_TOO_MANY)
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
        size = asked.size + self._standing + sum(update.standing or 0 for update in self._updates)
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

    # What the client says in speech.

    @property
    def listens(self) -> bool:
        """Whether sound goes on only when something is reserved for it."""
        return self._listening is not None and bool(self._transcribers)

    @property
    def _transcribers(self) -> set[str]:
        """The models that may write down what comes now: the session's, and those of its updates."""
        named = (self._transcriber, *[update.transcription_model for update in self._updates])
        return {model for model in named if model is not None}

    def _update(self, update: ClientEvent) -> None:
        """The session is to be changed."""
        if len(self._updates) >= MAX_OPEN:
            raise Overloaded(
                f"This WebSocket has asked {MAX_OPEN} times to change its session and was not told that it is. Open "
                "another one."
            )
        update.facts = None  # it may be large
        self._updates.append(update)
        if update.sound_bytes is not None:
            self.asks.sound_bytes = min(self.asks.sound_bytes, update.sound_bytes)

    def _listen(self, tokens: int) -> Deferred[None] | None:
        """Let sound pass, or its end, for which enough is reserved should it be written down.

        :return: fires when it may, where the limiter takes its time.
        :raises FlowstackError: it may not.
        """
        if not self.listens:
            self._heard(tokens)
            return None
        for block in self._speech.expire(self._exchange.services.monotonic()):
            self._give_back(block)
        missing = self._speech.missing(tokens)
        if not missing:
            self._heard(tokens)
            return None
        return self._reserve_speech(missing, tokens)

    def _heard(self, tokens: int) -> None:
        self._context += tokens
        if self._listening is not None:
            self._speech.passes(tokens, self._exchange.services.monotonic())

    def _reserve_speech(self, missing: int, tokens: int) -> Deferred[None] | None:
        block = self._asked(None, missing)
        demand = self._terms.estimate_speech(self._transcribers, missing, self._prompt, block.wall_started)
        reserving = self._exchange.services.limiter.reserve(self._listening, *demand)
        if isinstance(reserving, Deferred):
            return reserving.addCallback(self._hold, block, tokens)
        self._hold(reserving, block, tokens)
        return None

    def _hold(self, reservation: Reservation, block: Asked, tokens: int) -> None:
        block.reservation = reservation
        if self._exchange.closed or self.over:
            self._give_back(block)
        else:
            self._speech.hold(block)
            self._heard(tokens)

    def _give_back(self, block: Asked) -> None:
        """What was reserved for speech is not used, or was charged by what the upstream told."""
        row = self._row(block, Outcome(), "complete", None, sent=False)
        self._exchange.services.limiter.settle(block.reservation, row)

    def _listen_ahead(self) -> None:
        """Where the sound goes another way, reserve for the next turn; if that may not be, end it all."""
        if not self.listens or self._ahead or self._exchange.transport != "webrtc":
            return
        for block in self._speech.expire(self._exchange.services.monotonic()):
            self._give_back(block)
        if self._speech:
            return
        try:
            reserving = self._reserve_speech(AHEAD, 0)
        except FlowstackError as error:
            self._deny(error)
            return
        if reserving is not None:
            self._ahead = True
            reserving.addErrback(self._deny_late).addCallback(self._reserved_ahead)

    def _reserved_ahead(self, _: None) -> None:
        self._ahead = False

    def _deny_late(self, failure: Failure) -> None:
        self._deny(self._of_ours(failure, "speech could not be held to the limits"))

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
        if event.unread and not self._unread:
            self._unread = True
            log.warn(
                "an event on the WebSocket {id} could not be read, and what it says of usage is not known: it is no "
                "JSON, or too large or too deep",
                id=self._exchange.request_id.decode("ascii"),
            )  # fmt: skip
        if event.session:
            self._take_session(event)
        if event.begins and event.response_id is not None:
            self._begin(event, event.response_id)
        elif event.ends:
            self._end(event)
        elif event.committed and event.item_id is not None:
            self._commit(event.item_id)
        elif event.transcription:
            self._transcribed(event)

    def _take_session(self, event: UpstreamEvent) -> None:
        if self._updates and event.type.endswith("session.updated"):
            del self._updates[0]
        self._model = event.session_model or self._model
        # What could not be read of a session leaves what was known.
        if event.transcription_model is not None or not event.unread:
            self._transcriber, self._prompt = event.transcription_model, event.transcription_bytes
        self._output = event.max_output_tokens
        self._standing = event.standing
        dense = [update.sound_bytes for update in self._updates if update.sound_bytes is not None]
        self.asks.sound_bytes = min(event.sound_bytes or SPOKEN_BYTES_A_TOKEN, *dense, SPOKEN_BYTES_A_TOKEN)
        self._listen_ahead()
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
        if unasked and len(self._active) >= MAX_OPEN:
            # It has its row when it ends, and is charged then. None that was asked for with limits comes here.
            self._beyond += 1
            if self._plan is not None:
                self._stop(Overloaded(_TOO_MANY), identity)
            return
        self._know(identity)
        self._active[identity] = asked
        if unasked and self._plan is not None:
            self._reserve_unasked(asked, identity)

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
        error = self._of_ours(failure, "a response that began by itself could not be held to the limits")
        if identity in self._active:
            self._stop(error, identity)

    def _of_ours(self, failure: Failure, what: str) -> FlowstackError:
        if isinstance(failure.value, FlowstackError):
            return failure.value
        log.failure(what, failure)
        return FlowstackError("Flowstack failed at this; its log says why.")

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
            if event.type == "error" or (outcome.usage is None and not self._beyond):
                return
            self._beyond = max(0, self._beyond - 1)
            asked = self._asked(None, 0)
        if event.response_id is not None:
            self._know(event.response_id)
        usage = outcome.usage
        if usage is not None and usage.total_tokens is not None and not asked.apart:
            self._context = usage.total_tokens
        status = 200 if event.error_status is None else event.error_status
        if event.type == "error" and event.error_status is None:
            status = 400
        self._settle(asked, self._row(asked, outcome, "complete", status))

    def _commit(self, identity: str) -> None:
        """A turn of speech is at its end."""
        if not self._transcribers:  # nobody writes it down
            self._speech.forget()
        elif len(self._spoken) < MAX_OPEN:
            asked = self._spoken[identity] = self._asked(None, 0)
            asked.model = self._transcriber

    def _transcribed(self, event: UpstreamEvent) -> None:
        """A turn of speech was written down, by a model of its own, or could not be."""
        asked = None if event.item_id is None else self._spoken.pop(event.item_id, None)
        outcome = event.outcome
        if outcome is None:
            return
        model = None if asked is None else asked.model
        asked = asked or self._asked(None, 0)
        asked.model, asked.passed = model or self._transcriber or outcome.model, self._passed
        self._settle(asked, self._row(asked, outcome, "complete", 200))
        for block in self._speech.written(_sound_tokens(outcome)):
            self._give_back(block)
        self._listen_ahead()

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
            cut: End = "upstream_lost" if end == "complete" else end
            beyond = [self._asked(None, 0) for _ in range(self._beyond)]
            for asked in (*self._active.values(), *self._pending, *self._spoken.values(), *beyond):
                # As of a stream that was cut after its head.
                status = None if asked.first_at is None else 200
                self._settle(asked, self._row(asked, Outcome(), cut, status))
            limiter = self._exchange.services.limiter
            for block in self._speech.end():
                # What is written down now may be billed.
                limiter.settle(block.reservation, self._row(block, Outcome(), cut, None, sent=bool(self._spoken)))
        except Exception:
            log.failure("the responses of a WebSocket could not be settled: what they reserved stays charged")
        self._active.clear()
        self._pending.clear()
        self._spoken.clear()


def _sound_tokens(outcome: Outcome) -> int:
    """Tokens of the sound that was written down."""
    usage = outcome.usage
    if usage is None:
        return 0
    details = usage.details or {}
    seconds = details.get("seconds")
    if usage.prompt_tokens is None and isinstance(seconds, int | float):
        return max(0, int(seconds * SECOND))
    parts = details.get("input_token_details")
    sound = parts.get("audio_tokens") if type(parts) is dict else None
    return sound if type(sound) is int and sound >= 0 else usage.prompt_tokens or 0
