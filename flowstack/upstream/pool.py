"""The bounded pool of an upstream's connections, and the ``IAgent`` on it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IResponse
from zope.interface import classImplements

from flowstack.config import Timeouts, Upstream
from flowstack.errors import ConnectTimeout, Overloaded, UpstreamUnreachable
from flowstack.http.head_cache import ResponseHeads
from flowstack.http.headers import RawHeaders
from flowstack.interfaces import OutgoingBody
from flowstack.transport.ticker import NEVER, Ticker
from flowstack.transport.tls import ConnectFailed
from flowstack.upstream.call import Call
from flowstack.upstream.connection import CLOSED, UpstreamConnection
from flowstack.upstream.routes import Origin

log = Logger()

_GOLDEN = 0.618034
"""Multiples of it, modulo 1, lie apart, however many there are."""


class _Factory(Factory):
    def __init__(self, pool: Pool) -> None:
        self.noisy = False
        self.pool = pool

    def buildProtocol(self, addr: IAddress | None) -> UpstreamConnection:  # type: ignore[override]
        return UpstreamConnection(self.pool)


class _Attempt:
    """A connection being made, for a call or, if that one leaves, for the next."""

    __slots__ = ("call", "connecting", "deadline", "pool")

    def __init__(self, pool: Pool, call: Call) -> None:
        self.pool = pool
        self.call: Call | None = call
        self.deadline = pool.ticker.base + pool.timeouts.connect
        self.connecting: Deferred[Any] | None = None

    def expire(self) -> None:
        """It takes too long."""
        self.deadline = NEVER
        call, self.call = self.call, None
        if call is not None:
            call.fail(
                ConnectTimeout(
                    f"No connection to the upstream {self.pool.where} could be made within "
                    f"{self.pool.timeouts.connect:g} seconds."
                )
            )
        if self.connecting is not None:
            self.connecting.cancel()

    def leave(self) -> None:
        """The call's client left."""
        self.call = None
        if not self.pool.waiting and self.connecting is not None:
            self.connecting.cancel()


class _Wait:
    """A call's place in the queue."""

    __slots__ = ("call", "deadline", "pool")

    def __init__(self, pool: Pool, call: Call) -> None:
        self.pool = pool
        self.call = call
        self.deadline = pool.ticker.base + pool.timeouts.queue

    def expire(self) -> None:
        """No connection came free in time."""
        if self not in self.pool.waiting:
            return  # one did, in this tick
        self.leave()
        self.call.fail(
            Overloaded(
                f"All {self.pool.upstream.max_connections} connections to the upstream {self.pool.origin.label!r} were "
                f"in use for {self.pool.timeouts.queue:g} seconds. Try again in a moment.",
                ((b"Retry-After", b"1"),),
            )
        )

    def leave(self) -> None:
        """Give the place up, unless it was taken in the same tick."""
        self.pool.ticker.members.discard(self)
        self.pool.waiting.pop(self, None)


class Pool:
    """Connections to one upstream: the freshest idle one first, a bound on how many, a fair queue behind it.

    :ivar heads: what reads the heads of all its connections.
    :ivar idle: connections without a call, the last used at the end.
    :ivar size: connections open or being made.
    :ivar seconds: the time on a clock that neither steps nor stands still, since the upstream's does not either.
    """

    def __init__(
        self,
        origin: Origin,
        upstream: Upstream,
        endpoint: IStreamClientEndpoint,
        ticker: Ticker,
        timeouts: Timeouts,
        seconds: Callable[[], float],
    ) -> None:
        self.origin = origin
        self.upstream = upstream
        self.endpoint = endpoint
        self.ticker = ticker
        self.timeouts = timeouts
        self.seconds = seconds
        self.heads = ResponseHeads()
        self.idle: list[UpstreamConnection] = []
        self.size = 0
        self.waiting: OrderedDict[_Wait, None] = OrderedDict()  # a queue that can be left without a search
        self._open: set[UpstreamConnection] = set()
        self._made = 0
        self._factory = _Factory(self)

    @property
    def where(self) -> str:
        """Name and address of the upstream, for messages."""
        return f"{self.origin.label!r} ({self.origin.authority.decode('ascii')})"

    def submit(self, call: Call) -> None:
        """Find a connection for a call, now or when one comes free.

        One that was unused for ``idle`` is passed over, however late the tick that closes it: the upstream may be
        closing it at this moment.
        """
        idle = self.idle
        if idle:
            if self.seconds() < idle[-1].fresh_until:
                idle.pop().send(call)
                return
            # The freshest came last, but one may have come of age before it was idle for long.
            while idle:
                connection = idle[-1]
                if self.seconds() < connection.fresh_until:
                    idle.pop().send(call)
                    return
                connection.close()
        if self.size < self.upstream.max_connections:
            self._connect(call)
        else:
            wait = _Wait(self, call)
            call.cancel_wait = wait.leave
            self.waiting[wait] = None
            self.ticker.members.add(wait)

    def release(self, connection: UpstreamConnection) -> None:
        """A connection is idle again."""
        if self.waiting:
            if self.seconds() < connection.fresh_until:
                connection.send(self._next_call())
            else:
                connection.close()  # it has come of age; another one is made in its place
        else:
            self.idle.append(connection)

    def gone(self, connection: UpstreamConnection) -> None:
        """A connection is closed; its place is free. Telling it twice does no harm."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._place_free()

    def ages(self) -> float:
        """How old the next connection may become: each a little less or more, so that not all end at once."""
        self._made += 1
        age = self.upstream.connection_max_age
        return age * (1 - 0.2 * (self._made * _GOLDEN % 1)) if age else NEVER

    def close(self) -> None:
        """Close what is idle; what carries a call ends with it."""
        for connection in list(self.idle):
            connection.close()

    def _next_call(self) -> Call:
        wait, _ = self.waiting.popitem(last=False)
        self.ticker.members.discard(wait)
        wait.call.cancel_wait = None
        return wait.call

    def _place_free(self) -> None:
        self.size -= 1
        if self.waiting:
            self._connect(self._next_call())

    def _connect(self, call: Call) -> None:
        self.size += 1
        attempt = _Attempt(self, call)
        call.cancel_wait = attempt.leave
        self.ticker.members.add(attempt)
        connecting = self.endpoint.connect(self._factory)
        if not connecting.called:
            attempt.connecting = connecting
        connecting.addCallbacks(self._connected, self._failed, (attempt,), {}, (attempt,))
        connecting.addErrback(lambda failure: log.failure("a new connection could not be used", failure))

    def _connected(self, connection: UpstreamConnection, attempt: _Attempt) -> None:
        self.ticker.members.discard(attempt)
        self._open.add(connection)
        if connection.state is CLOSED:
            self.gone(connection)
        call, attempt.call = attempt.call, None
        if call is not None:
            call.cancel_wait = None
            if connection.state is CLOSED:
                call.fail(UpstreamUnreachable(f"The upstream {self.where} closed the connection at once."))
            else:
                connection.send(call)
        elif connection.state is not CLOSED:
            connection.stand_by()
            self.release(connection)

    def _failed(self, failure: Failure, attempt: _Attempt) -> None:
        self.ticker.members.discard(attempt)
        call, attempt.call = attempt.call, None
        if call is not None:
            call.cancel_wait = None
            fault = failure.value
            if isinstance(fault, CancelledError):
                why = "the attempt was given up"
            else:
                why = fault.reason if isinstance(fault, ConnectFailed) else failure.getErrorMessage()
            call.fail(UpstreamUnreachable(f"The upstream {self.where} cannot be reached: {why.rstrip('.')}."))
        self._place_free()


class UpstreamAgent:
    """Twisted's agent interface to one upstream."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._url = pool.origin.url + b"/"
        self._skip = len(self._url) - 1

    def request(  # type: ignore[override]
        self, method: bytes, uri: bytes, headers: Headers | RawHeaders | None = None,
        bodyProducer: OutgoingBody | None = None,
    ) -> Deferred[IResponse]:  # fmt: skip
        """Send a request; the target is what follows the origin in ``uri``, byte for byte.

        :param headers: a :class:`RawHeaders` goes out as it stands; any other gets the Host and Content-Length that
            it lacks.
        :param bodyProducer: an ``IBodyProducer`` with ``whole``: see :class:`flowstack.interfaces.OutgoingBody`.
        :return: fires with a :class:`flowstack.upstream.call.Response`; fails with a
            :class:`flowstack.errors.FlowstackError` that says why there is none.
        :raises ValueError: the URI is another origin's.
        """
        if not uri.startswith(self._url):
            raise ValueError(f"this agent speaks to {self.pool.origin.name!r} only")
        if not isinstance(headers, RawHeaders):
            headers = self._complete(headers, bodyProducer)
        call = Call(method, uri[self._skip :], headers.lines(), bodyProducer, headers.upgrades)
        self.pool.submit(call)
        return call  # type: ignore[return-value]

    def _complete(self, headers: Headers | None, body: OutgoingBody | None) -> RawHeaders:
        headers = headers or Headers()
        pairs = [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
        if not headers.hasHeader(b"host"):
            pairs.insert(0, (b"Host", self.pool.origin.authority))
        if body is not None and body.length is not UNKNOWN_LENGTH and not headers.hasHeader(b"content-length"):
            pairs.append((b"Content-Length", b"%d" % body.length))
        return RawHeaders(pairs)


classImplements(UpstreamAgent, IAgent)
