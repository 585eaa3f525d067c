"""A client's connection: bytes of one socket in, requests to a handler, answers back in order.

It stands where ``twisted.web.http.HTTPChannel`` would. It differs in what a proxy needs: a request is handed to the
handler when its head is complete, its body streams with backpressure, and whatever two parsers could read
differently is refused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocol, IPushProducer, ISSLTransport, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from flowstack.addresses import usual_address
from flowstack.errors import FlowstackError, MalformedRequest, RequestStalled
from flowstack.http.head_cache import RequestHeads
from flowstack.http.heads import malformed_request
from flowstack.http.replies import REASONS
from flowstack.server.request import Request
from flowstack.server.request_body import WINDOW, RequestBody, WholeBody
from flowstack.server.site import Served, Site
from flowstack.states import IllegalMove
from flowstack.transport.kernel import acknowledged_bytes, handshake_seconds, unsent_bytes
from flowstack.transport.ticker import NEVER

log = Logger()

LINGER_SECONDS = 30.0
LINGER_IDLE = 5.0
"""How long Flowstack reads on and drops after an answer that came before the request's end, in all and from one piece
to the next, so that the client reads the answer and not a reset (RFC 9112 §9.6)."""

LINGER_BYTES = 64 * 1024 * 1024
"""The most that is dropped so if the request showed no valid key. SDKs send all of a request before they read."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class State(IntEnum):
    """Where a client's connection is. From LINGERING on, what the client sends is dropped."""

    IDLE = 0  # between two requests
    HEAD = 1  # bytes of a request have come, but not yet its whole head
    BODY = 2  # a request is being answered, and its body is still coming
    ANSWERING = 3  # a request is being answered, and all of it has come
    LINGERING = 4  # the answer came before the request's end: closed when the client had time to read it
    BREAKING_OFF = 5  # cut when all that was written has gone out, so that it does not look finished
    CLOSING = 6  # closed in order when all that was written has gone out
    CLOSED = 7  # closed by the client, or cut
    TAKEN_OVER = 8  # the transport is another's


IDLE, HEAD, BODY, ANSWERING, LINGERING, BREAKING_OFF, CLOSING, CLOSED, TAKEN_OVER = State

MOVES: Final[dict[State, tuple[State, ...]]] = {
    IDLE: (HEAD, BODY, ANSWERING, LINGERING, CLOSING, CLOSED),
    HEAD: (IDLE, BODY, ANSWERING, LINGERING, CLOSING, CLOSED),  # to IDLE: an empty line
    BODY: (ANSWERING, LINGERING, BREAKING_OFF, CLOSED),
    ANSWERING: (IDLE, BREAKING_OFF, CLOSING, CLOSED, TAKEN_OVER),
    LINGERING: (CLOSING, CLOSED),
    BREAKING_OFF: (CLOSED,),
    CLOSING: (CLOSED,),
    CLOSED: (),
    TAKEN_OVER: (),
}


class ServerConnection:
    """One connection from a client.

    It is the transport's producer for as long as it lives: the transport pauses it while the client does not read,
    and it passes that on to whatever produces the answer.

    It has one deadline. Which one follows from the state, and from whether the output is full.

    :ivar site: whose it is.
    :ivar state: see :data:`MOVES`. In BODY and ANSWERING, and only there, a request is being answered.
    :ivar output_full: whether the transport holds as much as it should, since the client does not read. Apart from the
        state, since it can become so, and end, in each of them.
    """

    transport: Any

    def __init__(self, site: Site) -> None:
        self.site = site
        self.state = IDLE
        self._heads = RequestHeads(site.heads)
        self._current: Request | None = None
        self._body: RequestBody | None = None  # of the current request; what comes in BODY belongs to it
        self._held = b""  # came and was not read: part of a head, or what follows a request that is being answered
        self._scanned = 0  # how much of an incomplete head holds no empty line
        self._reading = True  # whether the socket is read: apart from the state, like output_full
        self._rendering = False  # an answer given within render must not begin the next request inside that call
        self._dropped = 0
        self._max_dropped = float(LINGER_BYTES)
        self._linger_until = NEVER
        self._unsent = 0  # when it was last looked at, while breaking off
        self._break_at = NEVER
        self._acknowledged: int | None = None
        self.output_full = False
        self.secure = False
        self.client_address = ""
        self.deadline = NEVER

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return self._current is not None

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(self.state, state)
        self.state = state

    # Twisted's side.

    def makeConnection(self, transport: Any) -> None:
        """Begin to listen."""
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        """See ``IProtocol``."""
        site, transport = self.site, self.transport
        self.secure = ISSLTransport.providedBy(transport)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        peer = transport.getPeer()
        self.client_address = usual_address(peer.host if isinstance(peer, IPv4Address | IPv6Address) else "unix")
        transport.registerProducer(self, True)
        site.connections.add(self)
        site.ticker.members.add(self)
        # A handshake counts, whether the transport connects its protocol before it, as Twisted's does, or after it.
        self.deadline = site.ticker.base + site.timeouts.request_head - handshake_seconds(transport)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        state = self.state
        if state < BODY:
            if self._held:
                data = self._held + data
                self._held = b""
            self._parse(data)
        elif state is BODY:
            assert self._body is not None
            self._body.feed(data)
            self._arm()
        elif state is ANSWERING:
            self._held += data
            if len(self._held) > WINDOW:
                self.pause_reading()
        else:
            self._drop(data)

    def connectionLost(self, reason: Failure) -> None:
        """The client, or we, closed the connection."""
        if self.state is not CLOSED:
            self._move(CLOSED)
        self._forget()
        current, self._current = self._current, None
        if current is not None:
            current.lost("client_gone")
        self.site.note_idle()

    def pauseProducing(self) -> None:
        """The transport holds as much as it should."""
        self.output_full = True
        self._await_client()
        current = self._current
        if current is not None and current.producer is not None:
            current.producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self.output_full = False
        self._arm()
        current = self._current
        if current is not None:
            if current.producer is not None:
                current.producer.resumeProducing()
        elif self.state < BODY and not self._reading:
            self._parse_held()  # which waited for the client to read

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    def _forget(self) -> None:
        self._held = b""
        self._body = None
        self.deadline = NEVER
        self.site.connections.discard(self)
        self.site.ticker.members.discard(self)

    # Requests.

    def _parse(self, data: bytes) -> None:
        """Read requests and have them answered, until one is not answered at once: what follows it is held."""
        site = self.site
        while data:
            if self.output_full:
                # The client asks, and does not read what it is told: its answers would pile up here.
                self._hold_head(data)
                self.pause_reading()
                return
            if data[0] == 13 and data[:2] == b"\r\n":
                # RFC 9112 §2.2: ignore at least one empty line before the request line. One it is, and kept until it is
                # known what follows: how the reads cut it makes no difference.
                self._scanned = 0
                if self.state is HEAD:
                    self._move(IDLE)
                    self._arm()
                if len(data) == 2:
                    self._held = data
                    return
                data = data[2:]
                if data[0] in b"\r\n":
                    self._refuse(MalformedRequest("There are empty lines before the request line. Send none."))
                    return
                continue
            cut = data.find(b"\r\n\r\n", self._scanned)
            if cut < 0 or cut + 4 > site.max_head_bytes:
                self._incomplete(data)
                return
            self._scanned = 0
            cut += 4
            try:
                head = self._heads.read(data[:cut], self.client_address, self.secure)
            except FlowstackError as error:
                self._refuse(error)
                return
            data = data[cut:]
            length, size = head.length, len(data)
            body: RequestBody | WholeBody | None = None
            if length is not None and length <= size:
                self._move(ANSWERING)
                self.deadline = NEVER  # the request is here; what is waited for is others' to limit
                if length < size:
                    self._held = data[length:]
                    data = data[:length]
                if length:
                    body = WholeBody(data)
            else:
                self._move(BODY)
                self._body = body = RequestBody(self, length, head.expects)
                if data:
                    body.feed(data)
                self._arm()
            self._current = request = Request(self, head, body)
            self._rendering = True
            try:
                site.handler.render(request)
            except Exception:
                self._render_failed(request)
            self._rendering = False
            if self.state is not IDLE:
                return
            data, self._held = self._held, b""

    def _parse_held(self) -> None:
        held, self._held = self._held, b""
        self.resume_reading()
        self._parse(held)

    def _hold_head(self, data: bytes) -> None:
        self._held = data
        if self.state is IDLE:
            self._move(HEAD)

    def _incomplete(self, data: bytes) -> None:
        """Hold the beginning of a head, unless no good one can come of it."""
        fault = malformed_request(data, self.site.max_head_bytes, self._scanned)
        if fault is not None:
            self._refuse(fault)
            return
        first = not self._scanned
        self._scanned = max(1, len(data) - 3)
        self._hold_head(data)
        if first:
            self._arm()

    def _render_failed(self, request: Request) -> None:
        log.failure("a request could not be answered")
        if request.started:
            self.abort()
        else:
            request.reply(self.site.refuse(FlowstackError("Flowstack failed at this request; its log says why.")))

    def request_done(self, request: Request) -> None:
        """The answer's last byte was handed to the transport."""
        self._current = None
        if self.state is ANSWERING:
            if request.keep_alive:
                self._move(IDLE)
                if not self.output_full:
                    self.deadline = self.site.ticker.base + self.site.timeouts.keepalive
                if self._held and not self._rendering:
                    self._parse_held()
            else:
                self._close()
        elif self.state is BODY:
            # The answer came before the request's end: what is left cannot be told from a next request.
            self._linger(request.known)
        if self.site.draining:
            self.site.note_idle()

    def may_persist(self, request: Request) -> bool:
        """Whether the connection lives on after this answer, as far as is known at its head."""
        return request.keep_alive and self.state is ANSWERING and not self.site.draining

    def take_over(self, successor: Served) -> tuple[Any, bytes]:
        """Let go of the transport in the middle of an answer, for something else than HTTP to be spoken on it.

        The caller gives the transport its next protocol in the same call (see
        :func:`flowstack.transport.kernel.connect_protocol`). It is paused for reading then and has no producer.

        :param successor: stands among the site's connections in the place of this one, until :meth:`give_up`.
        :return: the transport, and the bytes that came and were not read.
        :raises IllegalMove: no request is being answered, or its body is still coming.
        """
        self._move(TAKEN_OVER)
        held = self._held
        self._forget()
        self.site.join(successor)
        current, self._current = self._current, None
        if current is not None:
            current.finished = True
        self.transport.unregisterProducer()
        if self._reading:
            self._reading = False
            self.transport.pauseProducing()
        return self.transport, held

    def give_up(self, successor: Served) -> None:
        """What took the transport over has ended."""
        self.site.leave(successor)

    # Bodies.

    def send_continue(self) -> None:
        """Tell the client to send the body (RFC 9110 §10.1.1)."""
        self.transport.write(CONTINUE)
        self._arm()

    def body_ended(self, rest: bytes) -> None:
        """All of the body has come, and these bytes behind it. Whoever takes the body has not heard of it yet."""
        self._move(ANSWERING)
        self._held = rest
        self._body = None
        self.deadline = NEVER
        self.resume_reading()

    def body_failed(self, fault: FlowstackError) -> None:
        """The body turned out bad before anybody took it."""
        current = self._current
        if current is not None and not current.started:
            if current.broken is not None:
                current.broken(fault)
            else:
                current.reply(self.site.refuse(fault))

    def pause_reading(self) -> None:
        """A window is full: leave the rest in the socket."""
        if self._reading:
            self._reading = False
            self._arm()
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """The window has room again."""
        if not self._reading:
            self._reading = True
            self._arm()
            self.transport.resumeProducing()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self.state is LINGERING:
            self.deadline = min(self.site.ticker.base + LINGER_IDLE, self._linger_until)
        if self._dropped > self._max_dropped:
            self.abort()

    # Times.

    def _arm(self) -> None:
        """Set the deadline that fits the state; a full output keeps its own, and so do the ends."""
        state, body = self.state, self._body
        if self.output_full or state >= LINGERING:
            return
        site = self.site
        if state is IDLE:
            seconds = site.timeouts.keepalive
        elif state is HEAD:
            seconds = site.timeouts.request_head
        elif body is not None and self._reading and not body.expects:
            seconds = site.timeouts.request_idle
        else:
            seconds = NEVER
        self.deadline = site.ticker.base + seconds

    def _await_client(self) -> None:
        """Give the client ``client_idle`` seconds in which to take something of what was written."""
        self._acknowledged = acknowledged_bytes(self.transport)
        self.deadline = self.site.ticker.base + self.site.timeouts.client_idle

    def expire(self) -> None:
        """The deadline has passed; which one it was follows from the state."""
        state = self.state
        if state is BREAKING_OFF:
            self._go_on_breaking()
        elif state is LINGERING:
            self._close()
        elif state is CLOSING or self.output_full:
            before = self._acknowledged
            self._await_client()
            if self._acknowledged is None or self._acknowledged == before:
                self._tell_current("timeout")
                self.abort()
        elif state is BODY:
            self._body_stalled()
        elif state is HEAD:
            self._refuse(
                MalformedRequest(f"The request head did not come within {self.site.timeouts.request_head:g} seconds.")
            )
        else:
            self._close()

    def _body_stalled(self) -> None:
        current, body = self._current, self._body
        assert current is not None and body is not None
        if current.started:
            self._tell_current("timeout")
            self.break_off()
            return
        self.deadline = NEVER
        body.fail(
            RequestStalled(
                f"No byte of the request body came for {self.site.timeouts.request_idle:g} seconds. Send it again."
            )
        )

    def _tell_current(self, end: str) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.lost(end)

    # Ends.

    def _refuse(self, error: FlowstackError) -> None:
        """Answer what is no request, and close."""
        reply = self.site.refuse(error)
        head = b"\r\n".join([b"%b: %b" % pair for pair in reply.pairs])
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%b\r\nConnection: close\r\n\r\n%b"
            % (reply.status, REASONS[reply.status], head, reply.body)
        )
        self._linger(False)

    def _linger(self, known: bool) -> None:
        """Close, but first let the client read the answer while what it still sends is dropped.

        :param known: whether the request showed a valid key: then time alone is the limit.
        """
        self._move(LINGERING)
        self._held = b""
        self._body = None
        if known:
            self._max_dropped = float("inf")
        self._linger_until = self.site.ticker.base + LINGER_SECONDS
        self.deadline = self.site.ticker.base + LINGER_IDLE
        self.resume_reading()
        if not self.secure:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()

    def _close(self) -> None:
        """Close when all that was written has gone out."""
        self._move(CLOSING)
        self._held = b""
        self._await_client()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def break_off(self) -> None:
        """Close so that what the client has does not look finished, once it has all that was written.

        For that it gets ``client_idle`` seconds, and as many again for each piece that it takes.
        """
        self._current = None
        if self.state is not BODY and self.state is not ANSWERING:
            return  # it has ended in another way already
        self._held = b""
        self._body = None
        self._unsent = unsent_bytes(self.transport)
        if not self._unsent:
            self.abort()
            return
        self._move(BREAKING_OFF)
        self._wait_for_client()
        self.transport.unregisterProducer()
        self.resume_reading()  # or its leaving would not be seen

    def _go_on_breaking(self) -> None:
        before, self._unsent = self._unsent, unsent_bytes(self.transport)
        if self._unsent and self._unsent < before:
            self._wait_for_client()
        elif self._unsent and self.site.ticker.now < self._break_at:
            self.deadline = self.site.ticker.now
        else:
            self.abort()

    def _wait_for_client(self) -> None:
        ticker = self.site.ticker
        self._break_at = ticker.base + self.site.timeouts.client_idle
        self.deadline = ticker.now  # at each tick it is seen whether all of it went out

    def abort(self) -> None:
        """Close at once; what the client has must not look finished."""
        if self.state < CLOSED:
            self._move(CLOSED)
            self.deadline = NEVER
            self.transport.abortConnection()

    def close_now(self) -> None:
        """Close in order where no request is in flight; otherwise break off, and tell the request."""
        if self._current is not None:
            self._tell_current("drain")
            self.break_off()
        elif self.state < BREAKING_OFF:
            self._close()


classImplements(ServerConnection, IProtocol, IPushProducer)
