"""The first half of a request's life: from its valid key until it is on its way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.errors import FlowstackError
from flowstack.interfaces import Reservation, UpstreamCall, UpstreamResponse
from flowstack.policy.headers import RawHeaders, identity_coding, with_length
from flowstack.policy.keys import Key
from flowstack.policy.limits.money import NANO
from flowstack.policy.operations import OTHER
from flowstack.policy.routes import Route
from flowstack.policy.usage.asked import Asked, BodyReader, JsonReader, asked_of, model_of, reader_for
from flowstack.policy.usage.chunks import UsageChunkFilter
from flowstack.policy.usage.inject import Gate, wants_usage, with_usage
from flowstack.relay.admitted import Admitted
from flowstack.relay.gate import ReadBody, Reading, Tap
from flowstack.relay.permission import Terms
from flowstack.relay.services import Services
from flowstack.wire.request import Request
from flowstack.wire.request_body import WINDOW, RequestBody, WholeBody

log = Logger()

_NO_FIELDS = RawHeaders([])
NOTHING_ASKED: Final = Asked()
"""As long as a body has not been read; nobody changes it."""


class Asking(ABC):
    """An exchange until its answer comes; :class:`flowstack.relay.exchange.Exchange` is the rest.

    :ivar client_address: from where it comes.
    :ivar model: asked for, as far as it is known.
    :ivar route: where it goes, as far as that is known; the same holds for its ``operation`` and ``attributes``.
    """

    __slots__ = ("_asked", "_due", "_filter", "_key", "_outgoing", "_request", "_reservation", "_response",
                 "_sent_at", "_services", "_started", "_terms", "_upstream", "_usage_asked", "attributes",
                 "client_address", "model", "operation", "request_id", "route", "wall_started")  # fmt: skip

    _terms: Terms

    def __init__(self, services: Services, request: Request, request_id: bytes, key: Key, started: float) -> None:
        self._services = services
        self._request = request
        request.known = True
        self.request_id = request_id
        self._key = key
        self._started = started
        self.wall_started = services.wall()
        self.client_address = request.channel.client_address
        self.attributes: dict[str, str] | None = None
        self.model: str | None = None
        self.route: Route | None = None
        self.operation = OTHER
        self._asked = NOTHING_ASKED
        self._outgoing = _NO_FIELDS
        self._reservation: Reservation | None = None
        self._upstream: UpstreamCall | None = None
        self._sent_at: float | None = None
        self._response: Any = None
        self._due: ReadBody | None = None  # a body that is on its way, and not judged yet
        self._filter: UsageChunkFilter | None = None
        self._usage_asked = False  # for usage, in the client's place

    def start(self, admitted: Admitted, outgoing: RawHeaders) -> None:
        """Send the request to its upstream, once it is known what it asks for and that is reserved.

        :param outgoing: the fields that go there.
        :raises FlowstackError: the limiter says no, or the key may not do what the body asks for.
        """
        request, operation = self._request, self.operation
        self._terms = terms = admitted.terms
        self._outgoing = outgoing
        request.gone = self._client_gone
        request.broken = self._body_broken
        body = request.body
        if operation.body is None:
            self._reserve()
            self._send(body)
            return
        whole = b"" if body is None else body.whole
        if whole is not None and (len(whole) < WINDOW or not terms.injects):
            self._read(whole)
            return
        assert body is not None
        reader = reader_for(operation.body, request.requestHeaders.by_name)
        assert reader is not None
        short = whole is None and (body.length is UNKNOWN_LENGTH or body.length < WINDOW)
        if short and terms.injects and isinstance(reader, JsonReader):
            assert isinstance(body, RequestBody)
            self._reserve()
            body.gather(partial(self._gathered, reader))
        else:
            self._stream(body, reader)

    def _reserve(self) -> None:
        """Take what a request needs of which it is not known, or does not matter, what it asks for."""
        plan, operation = self._terms.plan, self.operation
        if plan is None or self._reservation is not None:
            return
        reserve = self._services.limiter.reserve
        if operation.work is None or operation.body is not None:
            self._reservation = _at_once(reserve(plan))
        elif operation.begins:
            # Of a batch nothing is known yet. It takes the least that there is, and is refused where nothing is left.
            self._reservation = _at_once(reserve(plan, 0, 1 / NANO))
        else:
            self._reservation = _at_once(reserve(plan, looks=not operation.hidden))

    def _gathered(self, reader: JsonReader, piece: bytes, enough: bool) -> None:
        """A piece has come of a body that may have to grow.

        How long the body is decides what becomes of it, and not in which pieces it came.

        :param enough: whether the body is at hand, or as much of it as is ever held.
        """
        body = self._request.body
        assert isinstance(body, RequestBody)
        try:
            if not enough:
                if self._terms.reads:
                    reader.feed(piece)
                    self._check(reader)
                return
            whole = body.whole
            if whole is not None and len(whole) < WINDOW:
                self._read(whole)
            else:
                self._stream(body, JsonReader())
        except FlowstackError as error:
            body.stopProducing()
            self.refuse(error)
        except Exception:
            log.failure("a request could not be begun")
            body.stopProducing()
            self.refuse(FlowstackError("Flowstack failed at this request; its log says why."))

    def _read(self, whole: bytes) -> None:
        """See what a whole body asks for, and send it."""
        request, operation = self._request, self.operation
        body: Any = request.body
        headers = request.requestHeaders.by_name
        # Pictures that a response's tool makes are priced by their own model, which the answer may not name.
        if not self._terms.watched and (operation.family != "responses" or whole.find(b'"image_generation"') < 0):
            if not operation.model_in_path:
                self.model = model_of(operation.body, headers, whole)
            self._reserve()
            self._send(body)
            return
        asked = asked_of(operation.body, headers, whole)
        if asked is not None and self._permit(asked):
            changed = with_usage(whole, asked, self._terms.overrules)
            if changed is not whole:
                grown = WholeBody(changed)
                if body.length is UNKNOWN_LENGTH:
                    grown.length = UNKNOWN_LENGTH
                body = grown
                self._change_length(body.length)
                self._ask_for_usage()
        self._send(body)

    def _stream(self, body: RequestBody | WholeBody, reader: BodyReader) -> None:
        """Send a body on as it comes; where it matters what it asks for, its end waits until that is known.

        :raises FlowstackError: it may not pass, as far as it has come.
        """
        terms = self._terms
        grows = terms.injects and isinstance(reader, JsonReader)
        reading = Gate(reader, terms.overrules) if terms.reads or grows else Tap(reader)
        stream = ReadBody(body, reading, self._check if terms.reads else None, self._judge, grows)
        if terms.reads:
            self._due = stream
        if grows:
            self._change_length(stream.length)
        stream.read_ahead()
        self._reserve()
        self._send(stream)

    def _check(self, reading: Reading | BodyReader) -> None:
        """More has come of a body that is yet to be judged.

        :raises FlowstackError: it may not pass, whatever follows.
        """
        asked = reading.so_far()
        if not self.operation.model_in_path:
            self.model = asked.model
        self._terms.check(asked, self.model, self._request.requestHeaders, False)

    def _judge(self, reading: Reading) -> bool:
        """A body has ended that was sent on as it came: tell whether usage is to be asked for in its end.

        :raises FlowstackError: it may not pass.
        """
        self._due = None
        wanted = self._permit(reading.finish()) and self._response is None
        inject = wanted and reading.injectable
        if inject or (wanted and reading.asks):
            self._ask_for_usage()
        return inject

    def _permit(self, asked: Asked) -> bool:
        """Let what is asked for pass; tell whether usage is to be asked for too.

        :raises FlowstackError: it may not pass.
        """
        request, terms = self._request, self._terms
        self._asked = asked
        if not self.operation.model_in_path:
            self.model = asked.model
        size = 0 if request.body is None else request.body.received
        tokens, cost, least = terms.judge(asked, size, self.model, request.requestHeaders, self.wall_started)
        if self._reservation is None:
            if terms.plan is not None:
                reserved = self._services.limiter.reserve(terms.plan, tokens, cost, least)
                self._reservation = _at_once(reserved)
        elif tokens is not None:
            self._reservation.claim(tokens, cost, least)
        return terms.injects and wants_usage(asked, terms.overrules)

    def _owed(self, due: ReadBody) -> tuple[int | None, float | None]:
        """What a request may have used that was attempted, and ended before it could be judged.

        Of that an upstream can know no more than came of its body. Nothing is owed where not even a byte of it went
        there, unless the upstream answered all the same.
        """
        body = self._request.body
        if body is None or not (due.reading.passed or self._response is not None):
            return None, None
        asked = due.reading.so_far()
        return self._terms.estimate(asked, body.received, self.model, self.wall_started)[:2]

    def _ask_for_usage(self) -> None:
        """The body that goes out asks for usage, of which the client is to see nothing."""
        self._filter = UsageChunkFilter()
        self._usage_asked = True

    def _change_length(self, length: Any) -> None:
        """The body grows by the wish for usage, and the answer must be readable."""
        known = None if length is UNKNOWN_LENGTH else length
        self._outgoing = RawHeaders(identity_coding(with_length(self._outgoing.pairs, known)))

    def _send(self, body: Any) -> None:
        request, services, route = self._request, self._services, self.route
        assert route is not None
        origin = route.origin
        self._sent_at = services.monotonic()
        self._upstream = upstream = services.clients[origin.name].request(
            request.method, origin.url + route.target, headers=self._outgoing, data=body
        )
        upstream.addCallbacks(self._answer, self._no_answer)

    # The rest.

    @abstractmethod
    def refuse(self, error: FlowstackError) -> None:
        """Answer with an error of Flowstack's own."""

    @abstractmethod
    def _answer(self, response: UpstreamResponse) -> None:
        """The response's head has come."""

    @abstractmethod
    def _no_answer(self, failure: Failure) -> None:
        """There is no response."""

    @abstractmethod
    def _client_gone(self, end: str) -> None:
        """See :attr:`flowstack.wire.request.Request.gone`."""

    @abstractmethod
    def _body_broken(self, error: FlowstackError) -> None:
        """See :attr:`flowstack.wire.request.Request.broken`."""


def _at_once(reserved: Reservation | Deferred[Reservation]) -> Reservation:
    assert not isinstance(reserved, Deferred)
    return reserved
