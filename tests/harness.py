"""Both sides of the wire in memory, one turn of the reactor at a time.

What a real transport does in a later turn (closing, delivering what came while reading was paused) happens here in
:meth:`Turns.settle`; nothing happens by itself, and nothing waits.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ISSLTransport, IStreamClientEndpoint, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from zope.interface import directlyProvides, implementer, providedBy

from flowstack.config import Target, Timeouts, Upstream
from flowstack.http.replies import error_reply
from flowstack.server.connection import ServerConnection
from flowstack.server.site import Site
from flowstack.transport.ticker import Ticker
from flowstack.upstream.pool import Pool, UpstreamAgent
from flowstack.upstream.routes import Origin

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
MAX_HEAD = 16 * 1024


class Turns:
    """A clock, the ticker on it, and what happens in the next turns of the reactor."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.clock = Clock()
        self.ticker = Ticker(self.clock, Ticker.interval_for(timeouts))
        self.ticker.start()
        self._due: deque[Callable[[], Any]] = deque()

    def later(self, call: Callable[[], Any]) -> None:
        self._due.append(call)

    def settle(self) -> None:
        for _ in range(100_000):
            if not self._due:
                return
            self._due.popleft()()
        raise AssertionError("the reactor never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, no tick left out."""
        self.settle()
        while seconds > 0:
            step = min(seconds, self.ticker.interval / 4)
            self.clock.advance(step)
            self.settle()
            seconds -= step

    def fires(self, seconds: float, happened: Callable[[], Any]) -> None:
        """Assert that something happens after this many seconds: never earlier, and at most two ticks later."""
        self.advance(seconds - 0.01)
        assert not happened(), f"it came before {seconds} seconds had passed"
        self.advance(0.01 + 2 * self.ticker.interval)
        assert happened(), f"it had not come {2 * self.ticker.interval} seconds after it was due"


class Handle:
    """A socket, as far as the kernel's count of acknowledged bytes goes."""

    acknowledged = 0

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return struct.pack("<120xQ", self.acknowledged)


@implementer(ITCPTransport, IConsumer, IPushProducer)
class Transport:
    """A stream transport. What Twisted's and uvloop's do in the same call it does at once, the rest in a later turn."""

    def __init__(self, turns: Turns, protocol: Any, secure: bool = False) -> None:
        self.turns = turns
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.calls: list[str] = []
        self.unsent = bytearray()
        self.got = bytearray()  # by the peer
        self.peer_reads = True
        self.peer_saw: str | None = None  # "fin" or "reset"
        self.reading = True
        self.closed = False
        self.disconnecting = False
        self.half_closed = False
        self.producer: Any = None
        self.producer_paused = False
        self.no_delay = False
        self.waited = 0.0
        self.handle: Handle | None = None
        self._inbox: deque[bytes | Exception] = deque()
        if secure:
            directlyProvides(self, providedBy(self), ISSLTransport)

    # The protocol's side.

    def write(self, data: bytes) -> None:
        assert type(data) is bytes, f"{type(data).__name__} is no bytes"
        assert data, "an empty write is a wasted call"
        self.writes.append(data)
        if self.closed or self.half_closed or (self.disconnecting and self.producer is None):
            return
        self.unsent += data
        self._flush()
        if len(self.unsent) >= HIGH_WATER:
            self._pause_producer()

    def writeSequence(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None, "a producer is registered already"
        if self.closed:
            producer.stopProducing()
            return
        self.producer, self.producer_paused = producer, False
        if len(self.unsent) >= HIGH_WATER:
            self._pause_producer()

    def unregisterProducer(self) -> None:
        self.producer = None
        if self.disconnecting and not self.unsent:
            self._close()

    def loseConnection(self) -> None:
        self.calls.append("loseConnection")
        self.disconnecting = True
        if not self.unsent and self.producer is None:
            self._close()

    def abortConnection(self) -> None:
        self.calls.append("abortConnection")
        if not self.closed:
            self.closed = True
            self.unsent.clear()
            self.peer_saw = self.peer_saw or "reset"
            self.turns.later(lambda: self.protocol.connectionLost(Failure(ConnectionAborted())))

    def loseWriteConnection(self) -> None:
        self.calls.append("loseWriteConnection")
        self.half_closed = True
        if not self.unsent:
            self.peer_saw = self.peer_saw or "fin"

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True
        self.turns.later(self._pump)

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 4711)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 8080)

    def getHandle(self) -> Handle | None:  # noqa: N802
        return self.handle

    def heed_remains(self, heed: bool) -> None:
        """Whatever comes is delivered here before the end."""

    def unsent_bytes(self) -> int:
        return len(self.unsent)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    # The machinery.

    def _pause_producer(self) -> None:
        if self.producer is not None and not self.producer_paused:
            self.producer_paused = True
            self.producer.pauseProducing()

    def _flush(self, size: int | None = None) -> None:
        if not self.peer_reads and size is None:
            return
        size = len(self.unsent) if size is None else size
        self.got += self.unsent[:size]
        del self.unsent[:size]

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self.peer_saw = "fin"
            self.turns.later(lambda: self.protocol.connectionLost(Failure(ConnectionDone())))

    def _pump(self) -> None:
        while self._inbox and self.reading and not self.closed:
            item = self._inbox.popleft()
            if isinstance(item, bytes):
                self.protocol.dataReceived(item)
            else:
                self.closed = True
                self.protocol.connectionLost(Failure(item))

    # The peer's side.

    def send(self, data: bytes, size: int | None = None) -> None:
        """Send, in pieces of that size."""
        for start in range(0, len(data), size or len(data) or 1):
            self._inbox.append(data[start : start + (size or len(data))])
            self.turns.later(self._pump)
            self.turns.settle()

    def hang_up(self) -> None:
        self._inbox.append(ConnectionDone())
        self._pump()
        self.turns.settle()

    def fall_over(self) -> None:
        self._inbox.append(ConnectionLost())
        self._pump()
        self.turns.settle()

    def read(self, size: int | None = None) -> None:
        """Take what waits, or so many bytes of it."""
        self._flush(len(self.unsent) if size is None else size)
        if self.producer_paused and len(self.unsent) <= LOW_WATER:
            self.producer_paused = False
            if self.producer is not None:
                self.producer.resumeProducing()
        if not self.unsent and self.half_closed:
            self.peer_saw = self.peer_saw or "fin"
        if not self.unsent and self.disconnecting and self.producer is None:
            self._close()
        self.turns.settle()

    def take(self) -> bytes:
        """What the peer got since it was asked last."""
        self.turns.settle()
        data, self.got = bytes(self.got), bytearray()
        return data

    @property
    def waiting_to_be_read(self) -> int:
        return sum(len(item) for item in self._inbox if isinstance(item, bytes))


class Attempt:
    """A connection being made."""

    def __init__(self, endpoint: Endpoint, factory: Any) -> None:
        self.endpoint = endpoint
        self.factory = factory
        self.cancelled = False
        self.made: Deferred[Any] = Deferred(lambda _: setattr(self, "cancelled", True))

    def accept(self) -> None:
        if self.cancelled:
            return
        protocol = self.factory.buildProtocol(None)
        transport = Transport(self.endpoint.turns, protocol)
        self.endpoint.peers.append(transport)
        protocol.makeConnection(transport) if hasattr(protocol, "makeConnection") else None
        self.made.callback(protocol)
        self.endpoint.turns.settle()

    def refuse(self, why: Exception) -> None:
        self.made.errback(Failure(why))
        self.endpoint.turns.settle()


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An upstream's address: connections are made in the next turn, or when the test says so."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.at_once = True
        self.attempts: list[Attempt] = []
        self.peers: list[Transport] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        attempt = Attempt(self, factory)
        self.attempts.append(attempt)
        if self.at_once:
            self.turns.later(attempt.accept)
        return attempt.made


class Stage:
    """Keeps each request for the test to answer, or answers at once."""

    def __init__(self, answer: Callable[[Any], None] | None = None) -> None:
        self.requests: list[Any] = []
        self.ends: list[str] = []
        self.answer = answer

    def render(self, request: Any) -> None:
        self.requests.append(request)
        request.gone = self.ends.append
        if self.answer is not None:
            self.answer(request)


def reply(request: Any, body: bytes = b"ok") -> None:
    request.write_head(200, b"OK", b"\r\nContent-Length: %d" % len(body), len(body))
    request.end(b"" if request.method == b"HEAD" else body)


class Receiver:
    """A protocol that keeps what it gets, as of a tunnel.

    :param rest: what came before it was connected.
    """

    busy = True

    def __init__(self, rest: bytes = b"") -> None:
        self.got = bytearray(rest)
        self.transport: Any = None
        self.lost: Failure | None = None

    def close_now(self) -> None:
        """Of a site's connections."""

    def abort(self) -> None:
        """The same."""

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure) -> None:
        self.lost = reason


class Listener:
    """A site, and clients of it."""

    def __init__(self, resource: Any, timeouts: Timeouts | None = None, turns: Turns | None = None) -> None:
        self.turns = turns or Turns(timeouts or Timeouts())
        self.refused: list[Any] = []
        self.site = Site(resource, self.turns.ticker, self.turns.timeouts, self._refuse, MAX_HEAD, ServerConnection)

    def _refuse(self, error: Any) -> Any:
        self.refused.append(error)
        return error_reply(error)

    def connect(self, secure: bool = False, waited: float = 0.0) -> Transport:
        channel = self.site.buildProtocol(None)
        transport = Transport(self.turns, channel, secure)
        transport.waited = waited
        channel.makeConnection(transport)
        return transport


class Provider:
    """A pool, its agent, and the upstream at their other end."""

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        turns: Turns | None = None,
        target: Target | None = None,
        **options: Any,
    ) -> None:
        self.turns = turns or Turns(timeouts or Timeouts())
        self.endpoint = Endpoint(self.turns)
        options.setdefault("base_url", "http://upstream.example/v1")
        self.upstream = Upstream(**options)
        self.pool = Pool(
            Origin.of(self.upstream, target),
            self.upstream,
            self.endpoint,
            self.turns.ticker,
            self.turns.timeouts,
            self.turns.clock.seconds,
        )
        self.agent = UpstreamAgent(self.pool)

    @property
    def peers(self) -> list[Transport]:
        return self.endpoint.peers

    def ask(self, method: bytes = b"GET", target: bytes = b"/v1/x", body: Any = None, headers: Any = None) -> Asked:
        job = self.agent.request(method, b"http://upstream.example" + target, headers, body)
        asked = Asked(job)
        self.turns.settle()
        return asked


class Asked:
    """What became of a request: a response and its body, or a fault."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.response: Any = None
        self.fault: Any = None
        self.pieces: list[bytes] = []
        self.end: Any = None
        self.take_body = True
        job.addCallbacks(self._response, self._fault)

    def _response(self, response: Any) -> None:
        self.response = response
        if self.take_body:
            response.deliver(self)

    def _fault(self, failure: Failure) -> None:
        self.fault = failure.value

    def data(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def last(self, piece: bytes) -> None:
        if piece:
            self.pieces.append(piece)
        self.lost(ResponseDone())

    def lost(self, reason: BaseException) -> None:
        assert self.end is None, "the end came twice"
        self.end = reason

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def done(self) -> bool:
        return self.fault is not None or self.end is not None
