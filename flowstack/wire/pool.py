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
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from flowstack.config import Timeouts, Upstream
from flowstack.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable
from flowstack.policy.headers import RawHeaders
from flowstack.policy.routes import Origin
from flowstack.wire.client import Connection
from flowstack.wire.job import Job
from flowstack.wire.recurring import ResponseHeads
from flowstack.wire.ticker import NEVER, Ticker

log = Logger()


class _Factory(Factory):
    noisy = False

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self.pool)


class _Attempt:
    """A connection being made, for a job or, if that one leaves, for the next."""

    __slots__ = ("connecting", "deadline", "job", "pool")

    def __init__(self, pool: Pool, job: Job) -> None:
        self.pool = pool
        self.job: Job | None = job
        self.deadline = pool.ticker.base + pool.timeouts.connect
        self.connecting: Deferred[Any] | None = None

    def expire(self) -> None:
        """It takes too long."""
        self.deadline = NEVER
        job, self.job = self.job, None
        if job is not None:
            job.fail(
                UpstreamTimeout(
                    f"No connection to the upstream {self.pool.where} could be made within "
                    f"{self.pool.timeouts.connect:g} seconds."
                )
            )
        if self.connecting is not None:
            self.connecting.cancel()

    def leave(self) -> None:
        """The job's client left."""
        self.job = None
        if not self.pool.waiting and self.connecting is not None:
            self.connecting.cancel()


class _Wait:
    """A job's place in the queue."""

    __slots__ = ("deadline", "job", "pool")

    def __init__(self, pool: Pool, job: Job) -> None:
        self.pool = pool
        self.job = job
        self.deadline = pool.ticker.base + pool.timeouts.queue

    def expire(self) -> None:
        """No connection came free in time."""
        if self not in self.pool.waiting:
            return  # one did, in this tick
        self.leave()
        self.job.fail(
            Overloaded(
                f"All {self.pool.upstream.max_connections} connections to the upstream {self.pool.origin.name!r} were "
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
    :ivar idle: connections without a job, the last used at the end.
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
        self.idle: list[Connection] = []
        self.size = 0
        self.waiting: OrderedDict[_Wait, None] = OrderedDict()  # a queue that can be left without a search
        self._open: set[Connection] = set()
        self._factory = _Factory(self)

    @property
    def where(self) -> str:
        """Name and address of the upstream, for messages."""
        return f"{self.origin.name!r} ({self.origin.authority.decode('ascii')})"

    def submit(self, job: Job) -> None:
        """Find a connection for a job, now or when one comes free.

        One that was unused for ``idle`` is passed over, however late the tick that closes it: the upstream may be
        closing it at this moment.
        """
        idle = self.idle
        if idle:
            if self.seconds() - idle[-1].idle_since < self.upstream.idle:
                job.cancel_wait = None
                idle.pop().send(job)
                return
            for connection in list(idle):  # the freshest came last, so none of them is fresh
                connection.abandon()
        if self.size < self.upstream.max_connections:
            self._connect(job)
        else:
            wait = _Wait(self, job)
            job.cancel_wait = wait.leave
            self.waiting[wait] = None
            self.ticker.members.add(wait)

    def release(self, connection: Connection) -> None:
        """A connection is idle again."""
        if self.waiting:
            connection.send(self._next_job())
        else:
            self.idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """A connection is closed; its place is free. Telling it twice does no harm."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._place_free()

    def close(self) -> None:
        """Close what is idle; what carries a job ends with it."""
        for connection in list(self.idle):
            connection.abandon()

    def _next_job(self) -> Job:
        wait, _ = self.waiting.popitem(last=False)
        self.ticker.members.discard(wait)
        wait.job.cancel_wait = None
        return wait.job

    def _place_free(self) -> None:
        self.size -= 1
        if self.waiting:
            self._connect(self._next_job())

    def _connect(self, job: Job) -> None:
        self.size += 1
        attempt = _Attempt(self, job)
        job.cancel_wait = attempt.leave
        self.ticker.members.add(attempt)
        connecting = self.endpoint.connect(self._factory)
        if not connecting.called:
            attempt.connecting = connecting
        connecting.addCallbacks(self._connected, self._failed, (attempt,), {}, (attempt,))
        connecting.addErrback(lambda failure: log.failure("a new connection could not be used", failure))

    def _connected(self, connection: Connection, attempt: _Attempt) -> None:
        self.ticker.members.discard(attempt)
        self._open.add(connection)
        if connection.lost:
            self.gone(connection)
        job, attempt.job = attempt.job, None
        if job is not None:
            job.cancel_wait = None
            if connection.lost:
                job.fail(UpstreamUnreachable(f"The upstream {self.where} closed the connection at once."))
            else:
                connection.send(job)
        elif not connection.lost:
            connection.stand_by()
            self.release(connection)

    def _failed(self, failure: Failure, attempt: _Attempt) -> None:
        self.ticker.members.discard(attempt)
        job, attempt.job = attempt.job, None
        if job is not None:
            job.cancel_wait = None
            why = getattr(failure.value, "reason", None) or failure.getErrorMessage()
            if failure.check(CancelledError):
                why = "the attempt was given up"
            job.fail(UpstreamUnreachable(f"The upstream {self.where} cannot be reached: {str(why).rstrip('.')}."))
        self._place_free()


@implementer(IAgent)
class UpstreamAgent:
    """Twisted's agent interface to one upstream."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._url = pool.origin.url + b"/"

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """Send a request; the target is what follows the origin in ``uri``, byte for byte.

        :param headers: a :class:`RawHeaders` goes out as it stands; any other gets the Host and Content-Length that
            it lacks.
        :return: fires with a :class:`flowstack.wire.job.Response`; fails with a
            :class:`flowstack.errors.FlowstackError` that says why there is none.
        :raises ValueError: the URI is another origin's.
        """
        url = self._url
        if not uri.startswith(url):
            raise ValueError(f"this agent speaks to {self.pool.origin.name!r} only")
        if not isinstance(headers, RawHeaders):
            headers = self._complete(headers, bodyProducer)
        job = Job(method, uri[len(url) - 1 :], headers.lines(), bodyProducer)
        self.pool.submit(job)
        return job  # type: ignore[return-value]

    def _complete(self, headers: Headers | None, body: IBodyProducer | None) -> RawHeaders:
        headers = headers or Headers()
        pairs = [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
        if not headers.hasHeader(b"host"):
            pairs.insert(0, (b"Host", self.pool.origin.authority))
        if body is not None and body.length is not UNKNOWN_LENGTH and not headers.hasHeader(b"content-length"):
            pairs.append((b"Content-Length", b"%d" % body.length))
        return RawHeaders(pairs)
