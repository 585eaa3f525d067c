"""One request's life, from its valid key to its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Final, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.errors import (
    FlowstackError,
    LimitExceeded,
    MalformedRequest,
    RequestStalled,
    UpstreamClosed,
    UpstreamMalformed,
    UpstreamTimeout,
)
from flowstack.http.handshake import answer_lines, check_answer, onward_lines, subprotocols
from flowstack.http.headers import Pair, ReceivedHeaders, attributes, lines_of, pairs_of, response_pairs, with_length
from flowstack.http.replies import Reply, error_reply
from flowstack.interfaces import Limiter, Reservation, UpstreamResponse
from flowstack.ledger.late import Begun
from flowstack.ledger.row import End, Row, SocketFacts
from flowstack.relay.admission import Admission
from flowstack.relay.attempt import Attempt
from flowstack.relay.behind import Behind
from flowstack.relay.failover import Failover
from flowstack.relay.gate import Reading
from flowstack.relay.leaving import Leaving
from flowstack.relay.row import Facts, event_streams, row_of
from flowstack.relay.services import Services
from flowstack.server.request import Request
from flowstack.states import IllegalMove
from flowstack.upstream.connection import StreamIdle
from flowstack.usage.chunks import UsageChunkFilter
from flowstack.usage.inject import wants_usage
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Late, Outcome
from flowstack.usage.operations import CALLS, work_of_path
from flowstack.usage.request_facts import BodyReader, RequestFacts
from flowstack.usage.turns import InTurns

log = Logger()


class State(Enum):
    """Where an exchange is."""

    STARTED = "takes its steps; waits for nothing"
    RESERVING = "waits for the limiter"
    GATHERING = "waits for the request's body, before it is known where it goes, or what it may use"
    UPLOADING = "sends the body, which may still be refused for what it asks for"
    ASKED = "waits for the response's head"
    ANSWERING = "passes the response's body on"
    BEHIND = "the same, but the upstream is paused until the meter has seen what came"
    ENDING = "the response has ended; its end waits for the meter"
    TUNNELLING = "has switched to WebSocket, whose frames pass"
    CLOSED = "has its row"

    next: tuple[State, ...]
    """The states that may follow: see MOVES."""


STARTED, RESERVING, GATHERING, UPLOADING, ASKED, ANSWERING, BEHIND, ENDING, TUNNELLING, CLOSED = State

MOVES: Final[dict[State, tuple[State, ...]]] = {
    STARTED: (RESERVING, GATHERING, UPLOADING, ASKED, CLOSED),
    RESERVING: (GATHERING, UPLOADING, ASKED, CLOSED),
    GATHERING: (RESERVING, UPLOADING, ASKED, CLOSED),
    UPLOADING: (ASKED, ANSWERING, CLOSED),
    ASKED: (ANSWERING, TUNNELLING, CLOSED),
    ANSWERING: (BEHIND, ENDING, CLOSED),
    BEHIND: (ANSWERING, ENDING, CLOSED),
    ENDING: (CLOSED,),
    TUNNELLING: (CLOSED,),
    CLOSED: (),
}
"""What may follow what. Which ``end`` a row has is up to the event: a success before the request was judged, say, is
``upstream_lost``."""

for _state, _next in MOVES.items():
    _state.next = _next  # a look-up by a state would hash it, in Python


NO_FACTS: Final = RequestFacts()
"""As long as a body has not been read; nobody changes it."""

_OF_SOCKET: Final = frozenset((b"content-type", b"x-request-id"))
"""Fields of a 101 that its row tells of."""

_NOTHING_SEEN: Final = Outcome()
_NOTHING_OWED: Final = None, None


class Exchange(Facts):
    """One request with a valid key, and what the upstream's response is delivered to.

    Its steps (:mod:`flowstack.relay.steps`) take it as far as the upstream. All ends come through :meth:`close`.

    :ivar started: when it came, on the monotonic clock; ``first_byte``: when its answer began.
    :ivar wall_started: the same in Unix seconds.
    :ivar asked: what its body asks for, as far as that was read; ``model`` too, where the path does not say it.
    :ivar demand: what it may use: tokens, US dollars, and dollars at least; None as long as nobody asked.
    :ivar attempt: the last of its attempts, or the one whose answer the client gets.
    :ivar failover: makes the attempts, where there may be several; else None.
    :ivar left: where its answer goes though its client has left; else None.
    :ivar body: what goes to the upstream as its body.
    :ivar grows: whether that is longer than what the client sends, since usage may be asked for in it.
    :ivar usage_asked: whether it was.
    :ivar headers: the response's, by lower-case name, or None.
    :ivar status: which the client got, or None; with it the code of an error of Flowstack's own.
    :ivar row: once it is closed.
    """

    __slots__ = ("_behind", "_claiming", "_filter", "_meter", "_owed", "admission", "asked", "attempt", "attempts",
                 "body", "demand", "error_code", "failover", "first_byte", "grows", "headers", "left", "model",
                 "request", "request_id", "reservation", "row", "services", "started", "state", "status",
                 "usage_asked", "wall_started")  # fmt: skip

    transport: ClassVar[str] = "websocket"
    """What carries the responses that it has other than its answer, if it has."""

    _behind: Behind
    row: Row

    def __init__(
        self, services: Services, request: Request, request_id: bytes, admission: Admission, started: float
    ) -> None:
        self.state = STARTED
        self.services = services
        self.request = request
        request.known = True
        request.gone = self._client_gone
        request.broken = self._body_broken
        self.request_id = request_id
        self.admission = admission
        self.started = started
        self.wall_started = services.wall_clock()
        self.model = admission.model
        self.asked = NO_FACTS
        self.demand: tuple[int | None, float | None, float | None] | None = None
        self.reservation: Reservation | None = None
        self._claiming: Deferred[None] | None = None
        self.body: Any = request.body
        self.grows = self.usage_asked = False
        self.attempt: Attempt | None = None
        self.attempts: list[Attempt] = []
        self.failover: Failover | None = None
        self.left: Leaving | None = None
        self.headers: Mapping[bytes, bytes] | None = None
        self._meter: InTurns | None = None
        self._filter: UsageChunkFilter | None = None
        self._owed: tuple[int | None, float | None] = _NOTHING_OWED
        self.first_byte: float | None = None
        self.status: int | None = None
        self.error_code: str | None = None

    def to(self, state: State) -> None:
        """Change the state.

        :raises IllegalMove: it cannot follow.
        """
        if state not in self.state.next:
            raise IllegalMove(self.state, state)
        self.state = state

    # The request.

    def check(self, reading: Reading | BodyReader) -> None:
        """More has come of a body that is yet to be judged.

        :raises FlowstackError: it may not pass, whatever follows.
        """
        asked = reading.so_far()
        admission = self.admission
        if not admission.operation.model_in_path:
            self.model = asked.model
        admission.terms.check(asked, self.model, self.request.requestHeaders, False)

    def judge(self, reading: Reading) -> bool | Deferred[bool]:
        """A body has ended that is sent on as it comes: tell whether usage is to be asked for in its end.

        :raises FlowstackError: it may not pass.
        """
        claiming = None
        try:
            wanted = self.permit(reading.finish())
            claiming = self.claim()
        finally:
            if claiming is None:
                self._judged()
        if claiming is None:
            return self._asks_for_usage(reading, wanted)
        return claiming.addBoth(self._judged).addCallback(lambda _: self._asks_for_usage(reading, wanted))

    def _judged(self, outcome: Any = None) -> Any:
        """It is known whether the request may pass; until then a success would be too early."""
        if self.state is UPLOADING:
            self.to(ASKED)
        return outcome

    def _asks_for_usage(self, reading: Reading, wanted: bool) -> bool:
        wanted = wanted and self.first_byte is None
        inject = wanted and reading.injectable
        if inject or (wanted and reading.asks):
            self.usage_asked = True
        return inject

    def permit(self, asked: RequestFacts) -> bool:
        """Let what is asked for pass; tell whether usage is to be asked for too.

        :raises FlowstackError: it may not pass.
        """
        request, admission = self.request, self.admission
        terms = admission.terms
        self.asked = asked
        if not admission.operation.model_in_path:
            self.model = asked.model
        size = 0 if request.body is None else request.body.received
        self.demand = terms.judge(asked, size, self.model, request.requestHeaders, self.wall_started)
        return terms.injects and wants_usage(asked, terms.overrules)

    def claim(self) -> Deferred[None] | None:
        """Take what the request may use, where its reservation was made before that was known.

        :raises FlowstackError: there is too little left.
        """
        if self.reservation is None or self.demand is None:
            return None
        tokens, cost_usd, least_usd = self.demand
        if tokens is None:
            return None
        self._claiming = self.reservation.claim(tokens, cost_usd, least_usd)
        return self._claiming

    def reserved(self, reservation: Reservation) -> None:
        """The limiter has answered, perhaps too late: then all is given back, since nothing was sent."""
        if self.state is CLOSED:
            self.services.limiter.settle(reservation, self.row)
        else:
            self.reservation = reservation

    def _body_broken(self, error: FlowstackError) -> None:
        """The request's body is bad, and no upstream has begun to take it."""
        self.refuse(error, "timeout" if isinstance(error, RequestStalled) else "refused")
        self._cancel()

    def _cancel(self) -> None:
        """Close the upstream connection."""
        if self.failover is not None:
            self.failover.cancel()
        if self.attempt is not None:
            self.attempt.call.cancel()

    @property
    def closed(self) -> bool:
        """Whether it has its row."""
        return self.state is CLOSED

    @property
    def may_wait(self) -> bool:
        """Whether the response's head can wait: all of the request was sent, and nothing of an answer has begun."""
        return self.state is ASKED

    # The response.

    def answered(self, response: UpstreamResponse) -> None:
        """The response's head has come. Never raises."""
        try:  # an errback on the call, which would do the same, takes 8,000 instructions of each request
            self._answer(response)
        except Exception:
            self.failed(Failure())

    def _answer(self, response: UpstreamResponse) -> None:
        request, services, attempt = self.request, self.services, self.attempt
        assert attempt is not None
        attempt.response = response
        if self.state is UPLOADING and not self._may_answer_early(attempt, response):
            return
        if response.code == 101:
            self._switch(attempt, response)
            return
        self.to(ANSWERING)
        self.first_byte = now = services.monotonic()
        self.status = status = response.code
        headers = response.headers
        if headers.located:
            headers = self._relocated(attempt, headers)
        self.headers = by_name = headers.by_name
        self._meter = meter_for(self.admission.operation, status, by_name)
        length = response.length
        streams = event_streams[by_name.get(b"content-type", b"")]
        if streams:
            services.streams.add(self)
        if self.usage_asked and streams and b"content-encoding" not in by_name:
            self._filter = UsageChunkFilter()
            lines, length = lines_of(with_length(response_pairs(headers), None)), UNKNOWN_LENGTH
        else:
            lines = headers.onward()
        if b"date" not in by_name:
            lines += b"\r\nDate: " + services.date()
        added = b"" if self.reservation is None else self.reservation.lines
        if self.failover is not None:
            added += self.failover.told
        if services.server_timing:
            added = b"\r\nServer-Timing: " + self._timing(attempt, now) + added
        if services.cors.origins:
            cors = services.cors.fields(request.requestHeaders, b"access-control-allow-origin" in by_name)
            added = lines_of(cors) + added
        lines = b"".join((lines, b"\r\nFlowstack-Request-Id: ", self.request_id, added))
        request.write_head(status, response.phrase, lines, None if length is UNKNOWN_LENGTH else length)
        if response.connection is not None:
            request.registerProducer(response.connection, True)
        response.deliver(self if self.left is None else self.left)

    def _switch(self, attempt: Attempt, response: UpstreamResponse) -> None:
        """The upstream speaks WebSocket from here on (RFC 9110 §7.8)."""
        request, services, headers = self.request, self.services, response.headers
        sent = request.requestHeaders
        try:
            chosen = check_answer(headers, sent.by_name[b"sec-websocket-key"], subprotocols(attempt.headers))
        except UpstreamMalformed as error:
            response.connection.stopProducing()
            self.refuse(error, "upstream_lost")
            return
        self.first_byte = services.monotonic()
        self.status = 101
        added = b"" if self.reservation is None else self.reservation.lines
        if self.failover is not None:
            added += self.failover.told
        lines = onward_lines(headers)
        if b"date" not in headers.by_name:
            lines += b"\r\nDate: " + services.date()
        lines = b"".join((lines, b"\r\nFlowstack-Request-Id: ", self.request_id, added))
        head, connection = answer_lines(lines, chosen), response.connection
        # It may last for hours: what is asked for no more is held no longer.
        self.headers = {name: value for name, value in headers.by_name.items() if name in _OF_SOCKET}
        response.headers = ReceivedHeaders([])
        self.to(TUNNELLING)
        response.connection = request.gone = request.broken = None
        services.sockets.open(self, connection, head, services.calls.heard_apart(self))

    def _may_answer_early(self, attempt: Attempt, response: UpstreamResponse) -> bool:
        """Whether an answer may pass that came before its request was judged.

        An error may, and ends the upload: nothing that is not judged follows it. What looks like work done may not.
        """
        if response.code >= 400:
            self._owed = self._attempted()
            self.body.stopProducing()
            return True
        if response.connection is not None:
            response.connection.stopProducing()
        error = UpstreamMalformed(
            f"The upstream {attempt.route.origin.name!r} answered with status {response.code} before it had the whole "
            "request. That answer was dropped, as the request could not be held to what its key may do. It may have "
            "been carried out; sending it again can bill twice.",
            ((b"x-should-retry", b"false"),),
        )
        self.refuse(error, "upstream_lost")
        return False

    def not_answered(self, failure: Failure) -> None:
        """There is no response."""
        if self.state is CLOSED or failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, FlowstackError):
            log.failure("unexpected error of the upstream's client", failure)
            error = UpstreamClosed("The upstream did not answer.")
        end: End = "refused"
        if isinstance(error, (UpstreamTimeout, RequestStalled)):
            end = "timeout"
        elif error.status == 502:
            end = "upstream_lost"
        self.refuse(error, end)

    def failed(self, failure: Failure) -> None:
        """What was to become of a response was not done, by a fault of Flowstack's own: nobody waits for it."""
        log.failure("an upstream's answer could not be passed on", failure)
        if self.state is CLOSED:
            if not self.request.finished:
                self.request.break_off()
            return
        error = FlowstackError("Flowstack failed at the upstream's answer; its log says why.")
        response = None if self.attempt is None else self.attempt.response
        connection = None if response is None else response.connection
        if self.request.started:
            self.error_code = error.code
            self._cut("upstream_lost")
        else:
            self.refuse(error)
        if connection is None:
            self._cancel()
        else:
            connection.stopProducing()

    def data(self, piece: bytes) -> None:
        """A piece that is not the last: on its way first, whatever else is done with it."""
        self.request.write(piece if self._filter is None else self._filter.feed(piece))
        if self._meter is not None and self._meter.feed(piece) and self.state is ANSWERING:
            self._fall_behind(self._meter)
            self.to(BEHIND)

    def last(self, piece: bytes) -> None:
        """The last piece: first the row, then the bytes, so that an end which a client saw has its row."""
        behind, meter = self.state is BEHIND, self._meter
        if meter is not None and meter.feed(piece) and not behind:
            self.request.producer = None  # the pool has it back
            self._fall_behind(meter)
            behind = True
        if self._filter is not None:
            piece = self._filter.feed(piece) + self._filter.finish()
        if behind:
            self._end_behind(partial(self._complete, piece))
        elif self.state is ANSWERING:
            request = self.request
            self.close("complete", request.sent + len(piece))
            request.end(piece)

    def lost(self, reason: BaseException) -> None:
        """The body broke off."""
        if self.state is CLOSED:
            return
        if isinstance(reason, PotentialDataLoss):
            self.last(b"")
            return
        if self._filter is not None:
            self.request.write(self._filter.finish())
        end: End = "timeout" if isinstance(reason, StreamIdle) else "upstream_lost"
        if self.state is BEHIND:
            self._end_behind(partial(self._cut, end))
        else:
            self._cut(end)

    def _fall_behind(self, meter: InTurns) -> None:
        """The meter has more to do than this turn of the reactor allows: what comes next waits for it."""
        self._behind = Behind(self.request, meter, self._caught_up)
        assert self.attempt is not None
        self.services.backlog.add(self._behind, self.attempt.route.origin.name)

    def _end_behind(self, then: Callable[[], None]) -> None:
        self.to(ENDING)
        self._behind.end(then)

    def _caught_up(self) -> None:
        if self.state is BEHIND:
            self.to(ANSWERING)

    # Its ends.

    def refuse(self, error: FlowstackError, end: End = "refused") -> None:
        """Answer with an error of Flowstack's own, unless it is over."""
        if self.state is not CLOSED:
            self.error_code = error.code
            self._reply(error_reply(error, self._own_fields(error), self.services.docs_url), end)

    def fail(self, error: Exception) -> None:
        """A step has raised."""
        if self.admission.attributes is None:
            with suppress(MalformedRequest):
                self.admission.attributes = attributes(self.request.requestHeaders.pairs)
        if not isinstance(error, FlowstackError):
            log.failure("a request failed before it was sent", Failure(error))
            error = FlowstackError("Flowstack failed at this request; its log says why.")
        self.refuse(error)

    def give(self, reply: Reply) -> None:
        """Answer in Flowstack's own name with what is no error; nothing was asked of an upstream."""
        reply.pairs.extend(self._own_fields(None))
        self._reply(reply, "complete")

    def _reply(self, reply: Reply, end: End) -> None:
        request = self.request
        self.status = reply.status
        self.first_byte = self.services.monotonic()
        self.close(end, 0 if request.method == b"HEAD" else len(reply.body))
        request.reply(reply)

    def _complete(self, piece: bytes) -> None:
        if self.state is not CLOSED:
            request = self.request
            self.close("complete", request.sent + len(piece))
            request.end(piece)

    def _cut(self, end: End) -> None:
        if self.state is not CLOSED:
            self.close(end, self.request.sent)
            if self.left is None:
                self.request.break_off()

    def _client_gone(self, end: str) -> None:
        """The client left, took nothing for too long, or Flowstack ends: close the upstream connection now."""
        if end != "client_gone" or not self._reads_on():
            self._stop(cast(End, end))

    def _reads_on(self) -> bool:
        """Whether the answer is read on for its usage, though the client left; then all is set for that."""
        attempt = self.attempt
        if self.services.on_client_gone is None or attempt is None or self.state not in (ASKED, ANSWERING, BEHIND):
            return False
        if self.admission.operation.socket:  # it may be about to switch, and nobody is there to speak it
            return False
        settings = self.services.on_client_gone.get(attempt.route.origin.name)
        waits = self.failover is not None and self.failover.waits
        if settings is None or waits or (self.state is not ASKED and self._meter is None):
            return False
        stop = partial(self._stop, "client_gone")
        self.left = left = Leaving(
            self, stop, self.services.ticker, settings.drain_seconds, settings.drain_bytes, self.services.leaving
        )
        if attempt.response is not None and self.state is not ASKED:
            attempt.response.redirect(left)
            if self.request.producer is not None:
                self.request.producer.resumeProducing()  # it may have been paused for the client
        return True

    def _stop(self, end: End) -> None:
        producer = self.request.producer  # the close lets go of it
        self.close(end, self.request.sent)
        if producer is not None:
            producer.stopProducing()
        else:
            self._cancel()

    def close(self, end: End, sent: int, socket: SocketFacts | None = None, received: int = 0) -> None:
        """Settle, and give the row to all who observe. Once.

        :param sent: bytes of the answer's body.
        :param socket: what is known of a WebSocket besides, with the bytes of the client's messages.
        """
        services, request, reservation = self.services, self.request, self.reservation
        if self.state is UPLOADING:
            self._owed = self._attempted()
        self.to(CLOSED)
        ended = end == "complete"
        if self.left is not None:
            self.left.end()
            end, sent = "client_gone", request.sent
        request.gone = request.broken = request.producer = None  # no call comes any more, and no cycle is left
        now = services.monotonic()
        outcome = _NOTHING_SEEN if self._meter is None else self._meter.finish(ended)
        self.row = row = row_of(self, outcome, end, sent, now, services.prices)
        if socket is not None:
            row["bytes_in"] = received
            cast(dict[str, Any], row).update(socket)
        if outcome.late:
            self._show(outcome.late, row, ended)
        if outcome.secret is not None and self.attempt is not None:
            upstream = self.attempt.route.origin.name
            services.secrets.remember(outcome.secret[0], self.admission.key.digest, upstream, outcome.secret[1])
        heard = False
        if (self.status == 201 or self.admission.operation.name == CALLS) and services.calls.begins(self):
            cast(dict[str, Any], row)["transport"] = "webrtc"
            heard = services.calls.hears(self)
            if heard:
                reservation = None  # it is held until the call ends
        if reservation is not None:
            charged = row
            if outcome.usage is not None and (row["cost_usd"] is None or row["service_tier"] is None):
                charged = self.admission.terms.assumed(row, self.asked, self.wall_started)
            if self._claiming is None:
                services.limiter.settle(reservation, charged, *self._owed)
            else:
                self._claiming.addBoth(_settle, services.limiter, reservation, charged, *self._owed)
        if self.failover is not None:
            self.failover.closed(row)
        services.streams.discard(self)
        self.body = None  # which knows this exchange, too
        operation = self.admission.operation.name
        try:
            for observe in services.observers:  # the ledger first, which never raises
                observe(row, operation)
        except Exception:
            log.failure("a row could not be counted")
        if heard:
            services.calls.hear(self)

    def _attempted(self) -> tuple[int | None, float | None]:
        """What a request may have used that was attempted, and ended before it could be judged.

        Of that an upstream can know no more than came of its body. Nothing is owed where not even a byte of it went
        there, unless the upstream answered all the same.
        """
        body, reading = self.request.body, self.body.reading
        if body is None or not (reading.passed or any(one.response is not None for one in self.attempts)):
            return _NOTHING_OWED
        terms = self.admission.terms
        return terms.estimate(reading.so_far(), body.received, self.model, self.wall_started)[:2]

    def _show(self, shown: Sequence[Late], row: Row, ended: bool) -> None:
        """The answer shows work whose usage is known late: wait for what this call began, settle what is finished.

        :param ended: whether the answer came to its end.
        """
        assert self.attempt is not None
        late, route = self.services.late, self.attempt.route
        upstream = route.origin.name
        # Of a body that broke off nobody knows what else it would have said; an event is whole.
        whole = ended or row["stream"]
        for work in shown:
            identity = work.id or work_of_path(route.rest)
            if identity is None:
                continue
            if self.admission.operation.begins:
                kept = None if self.reservation is None else self.reservation.kept()
                late.begin(Begun.of(row, upstream, work.kind, identity, self.wall_started, kept))
            if whole:
                assert self.status is not None
                late.seen(upstream, work, identity, self.status)

    # Fields of the answer.

    def _relocated(self, attempt: Attempt, headers: ReceivedHeaders) -> ReceivedHeaders:
        """The upstream's own address becomes Flowstack's, or clients would go there past it, their keys with them."""
        request, services = self.request, self.services
        sent: ReceivedHeaders = request.requestHeaders
        scheme, host = b"https" if request.isSecure() else b"http", sent.by_name.get(b"host")
        if services.trusted.hold(request.channel.client_address):
            proto = sent.by_name.get(b"x-forwarded-proto", b"").partition(b",")[0].strip(b" \t").lower()
            scheme = proto if proto in (b"http", b"https") else scheme
        return headers.relocated(lambda value: services.routes.location(attempt.route, value, scheme, host))

    def _timing(self, attempt: Attempt, now: float) -> bytes:
        """``Server-Timing`` (W3C Server Timing): Flowstack's own share, and the wait for the upstream's head."""
        sent_at = attempt.sent_at
        return b"flowstack;dur=%.3f, upstream;dur=%.3f" % ((sent_at - self.started) * 1000, (now - sent_at) * 1000)

    def _own_fields(self, error: FlowstackError | None) -> tuple[Pair, ...]:
        services, route = self.services, self.admission.route
        limits: tuple[Pair, ...] = ()
        if self.reservation is not None:
            limits = pairs_of(self.reservation.lines)
        elif not isinstance(error, LimitExceeded):  # which has them
            upstream = services.upstream if route is None else route.origin.name
            with suppress(FlowstackError):  # where there is no room to count in, there are no figures
                limits = services.limiter.fields(self.admission.key, upstream)
        if self.failover is not None:
            limits += pairs_of(self.failover.told)
        cors = services.cors.fields(self.request.requestHeaders)
        return ((b"Date", services.date()), (b"Flowstack-Request-Id", self.request_id), *cors, *limits)


def _settle(_: object, limiter: Limiter, *settled: Any) -> None:
    """The claim was answered, whatever it said."""
    limiter.settle(*settled)
