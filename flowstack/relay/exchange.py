"""One request's life, from its valid key to its row.

Every way out goes through :meth:`Exchange.close`, once.

====================  =======================================================  ==================
state                 what ends it                                             ``end`` of the row
====================  =======================================================  ==================
waiting for the head  a refusal before or by the connection pool               refused
..                    no connection, no head, a malformed head                 upstream_lost
..                    connect or response-head time ran out                    timeout
answering             the last piece                                           complete
..                    the upstream broke off                                   upstream_lost
..                    no byte for ``stream_idle``; client took none            timeout
either                the client left                                          client_gone
..                    Flowstack's own time to drain ran out                    drain
====================  =======================================================  ==================
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from flowstack.errors import FlowstackError, RequestStalled, UpstreamClosed, UpstreamTimeout
from flowstack.interfaces import ILedger, ILimiter, IRelayClient
from flowstack.policy.headers import Pair, RawHeaders, ReceivedHeaders, response_pairs
from flowstack.policy.keys import Key
from flowstack.policy.replies import Cors, error_reply
from flowstack.policy.routes import Route
from flowstack.policy.rows import End, Row, milliseconds, text
from flowstack.wire.client import StreamIdle
from flowstack.wire.request import Request

log = Logger()

_NO_HEADERS: dict[bytes, bytes] = {}


@frozen(slots=True)
class Services:
    """What every exchange needs; made once by ``flowstack.tap``.

    :ivar wall: UTC Unix seconds.
    :ivar monotonic: seconds on a clock that never steps.
    :ivar date: the ``Date`` field's value for now.
    """

    limiter: ILimiter
    ledger: ILedger
    clients: dict[str, IRelayClient]
    cors: Cors
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    date: Callable[[], bytes]
    server_timing: bool = False


@implementer(IProtocol)
class Exchange:
    """One request with a valid key. It is the protocol to which the response's body is delivered."""

    __slots__ = ("_asked", "_closed", "_error", "_first_byte", "_headers", "_key", "_request", "_reservation",
                 "_response", "_route", "_services", "_started", "_upstream", "attributes", "request_id",
                 "wall_started")  # fmt: skip

    def __init__(self, services: Services, request: Request, request_id: bytes, key: Key, started: float) -> None:
        self._services = services
        self._request = request
        self.request_id = request_id
        self._key = key
        self._started = started
        self.wall_started = services.wall()
        self.attributes: dict[str, str] | None = None
        self._route: Route | None = None
        self._reservation: Any = None
        self._upstream: Deferred[IResponse] | None = None
        self._asked = started
        self._response: Any = None
        self._headers: dict[bytes, bytes] = _NO_HEADERS  # the response's, by lower-case name
        self._error: FlowstackError | None = None
        self._first_byte: float | None = None
        self._closed = False

    def start(self, route: Route, pairs: list[Pair]) -> None:
        """Reserve, then send the request to its upstream.

        :raises FlowstackError: the limiter says no.
        """
        request, services = self._request, self._services
        self._route = route
        origin = route.origin
        self._reservation = services.limiter.reserve(self._key, origin.name)
        request.gone = self._client_gone
        request.broken = self._body_broken
        self._asked = services.monotonic()
        self._upstream = upstream = services.clients[origin.name].request(
            request.method, origin.url + route.target, headers=RawHeaders(pairs), data=request.body
        )
        upstream.addCallbacks(self._answer, self._no_answer)

    def refuse(self, error: FlowstackError, end: End = "refused") -> None:
        """Answer with an error of Flowstack's own."""
        if self._closed:
            return
        request = self._request
        reply = error_reply(error, self._own_fields())
        self._error = error
        self._first_byte = self._services.monotonic()
        self._close(end, 0 if request.method == b"HEAD" else len(reply.body))
        request.reply(reply)

    # The answer.

    def _answer(self, response: Any) -> None:
        request, services = self._request, self._services
        self._response = response
        self._first_byte = now = services.monotonic()
        headers = response.headers
        if not isinstance(headers, ReceivedHeaders):
            fields = headers.getAllRawHeaders()
            headers = ReceivedHeaders([(name, value) for name, values in fields for value in values])
        self._headers = by_name = headers.by_name
        pairs = response_pairs(headers)
        if b"date" not in by_name:
            pairs.append((b"Date", services.date()))
        pairs.append((b"Flowstack-Request-Id", self.request_id))
        if services.cors:
            pairs += services.cors.fields(request.requestHeaders, b"access-control-allow-origin" in by_name)
        if services.server_timing:
            pairs.append((b"Server-Timing", self._timing(now)))
        length = response.length
        request.write_head(response.code, response.phrase, pairs, None if length is UNKNOWN_LENGTH else length)
        connection = getattr(response, "connection", None)
        if connection is not None:
            request.registerProducer(connection, True)
        response.deliverBody(self)

    def _no_answer(self, failure: Failure) -> None:
        if self._closed or failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, FlowstackError):
            log.failure("the upstream's client failed in a way of which nobody thought", failure)
            error = UpstreamClosed("The upstream did not answer.")
        end: End = "refused"
        if isinstance(error, (UpstreamTimeout, RequestStalled)):
            end = "timeout"
        elif error.status == 502:
            end = "upstream_lost"
        self.refuse(error, end)

    def connectionMade(self) -> None:
        """Of ``IProtocol``."""

    def makeConnection(self, transport: Any) -> None:
        """Of ``IProtocol``: a response that is not of :mod:`flowstack.wire` names its producer here."""
        self._request.registerProducer(transport, True)

    def dataReceived(self, data: bytes) -> None:
        """A piece that is not the last: on its way first, whatever else is done with it."""
        self._request.write(data)

    def dataEnded(self, data: bytes) -> None:  # noqa: N802
        """The last piece: first the row, then the bytes, so that an end which a client saw has its row."""
        request = self._request
        self._close("complete", request.sent + len(data))
        request.end(data)

    def connectionLost(self, reason: Failure) -> None:
        """The body's end, good or bad."""
        if self._closed:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.dataEnded(b"")
            return
        self._close("timeout" if reason.check(StreamIdle) else "upstream_lost", self._request.sent)
        self._request.abort()

    def _client_gone(self, end: str) -> None:
        """The client left, took nothing for too long, or Flowstack ends: close the upstream connection now."""
        producer = self._request.producer  # the close lets go of it
        self._close(cast(End, end), self._request.sent)
        if producer is not None:
            producer.stopProducing()
        elif self._upstream is not None:
            self._upstream.cancel()

    def _body_broken(self, error: FlowstackError) -> None:
        """The request's body is bad, and no upstream has begun to take it."""
        self.refuse(error, "timeout" if isinstance(error, RequestStalled) else "refused")
        if self._upstream is not None:
            self._upstream.cancel()

    def _timing(self, now: float) -> bytes:
        """``Server-Timing`` (W3C Server Timing): Flowstack's own share, and the wait for the upstream's head."""
        asked = self._asked
        return b"flowstack;dur=%.3f, upstream;dur=%.3f" % ((asked - self._started) * 1000, (now - asked) * 1000)

    def _own_fields(self) -> tuple[Pair, ...]:
        services = self._services
        return (
            (b"Date", services.date()),
            (b"Flowstack-Request-Id", self.request_id),
            *services.cors.fields(self._request.requestHeaders),
        )

    def _close(self, end: End, sent: int) -> None:
        """Settle, and write the row. Once."""
        if self._closed:
            return
        self._closed = True
        services, request, key, route = self._services, self._request, self._key, self._route
        request.gone = request.broken = request.producer = None  # no call comes any more, and no cycle is left
        started, first, headers = self._started, self._first_byte, self._headers
        response, error = self._response, self._error
        row: Row = {
            "v": 1,
            "request_id": self.request_id.decode(),
            "started_at": datetime.fromtimestamp(self.wall_started, UTC),
            "key_id": key.id,
            "owner": key.owner,
            "attributes": self.attributes,
            "client_addr": request.channel.client_address,
            "user_agent": text(request.requestHeaders.by_name.get(b"user-agent")),
            "method": request.method.decode(),
            "path": text(request.uri.partition(b"?")[0] if route is None else route.path) or "",
            "status": error.status if error is not None else None if response is None else response.code,
            "error_code": None if error is None else error.code,
            "end": end,
            "stream": headers.get(b"content-type", b"")[:17].lower() == b"text/event-stream",
            "first_byte_ms": None if first is None else milliseconds(first - started),
            "duration_ms": milliseconds(services.monotonic() - started),
            "bytes_in": 0 if request.body is None else request.body.received,
            "bytes_out": sent,
            "upstream": None if route is None else route.origin.name,
            "upstream_request_id": text(headers.get(b"x-request-id")),
            "attempts": getattr(self._upstream, "attempts", 0),
        }
        if self._reservation is not None:
            services.limiter.settle(self._reservation, row)
        services.ledger.record(row)
