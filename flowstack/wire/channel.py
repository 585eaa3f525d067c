"""The server channel: bytes of one connection in, requests to a resource, answers back in order.

It stands where ``twisted.web.http.HTTPChannel`` would. It differs in what a proxy needs: a request is handed to the
resource when its head is complete, its body streams with backpressure, and whatever two parsers could read
differently is refused.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import getChildForRequest
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from flowstack.errors import FlowstackError, MalformedRequest, MethodNotAllowed, RequestStalled
from flowstack.policy.replies import REASONS
from flowstack.wire.heads import hopeless_request, parse_request
from flowstack.wire.progress import acknowledged_bytes
from flowstack.wire.request import Request
from flowstack.wire.request_body import WINDOW, RequestBody, WholeBody
from flowstack.wire.site import Site
from flowstack.wire.ticker import NEVER

log = Logger()

MAX_QUEUED = 32
"""Pipelined requests that wait behind one; at one more the connection is closed after their answers."""

LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024
"""How long, and how much, is read and dropped after an answer that came before the request's end, so that the
client reads the answer and not a reset (RFC 9112 §9.6)."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@implementer(IPushProducer)
class Channel(Protocol):
    """One connection from a client.

    It is the transport's producer for as long as it lives: the transport pauses it while the client does not read,
    and it passes that on to whatever produces the answer under way.
    """

    transport: Any

    def __init__(self, site: Site) -> None:
        self._site = site
        self._current: Request | None = None
        self._queue: deque[Request | FlowstackError] = deque()
        self._body: RequestBody | None = None  # of the newest request, while it is incomplete
        self._held = b""  # an incomplete head
        self._scanned = 0  # how much of it holds no empty line
        self._deaf = False  # what comes is dropped
        self._dropped = 0
        self._backlog = 0  # bytes of queued requests
        self._closing = False
        self._lingering = False
        self._reading = True
        self._advancing = False
        self._acknowledged: int | None = None
        self.output_full = False
        self.secure = False
        self.client_address = ""
        self.deadline = NEVER

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._current is not None

    # Twisted's side.

    def connectionMade(self) -> None:
        """Begin to listen."""
        site, transport = self._site, self.transport
        self.secure = ISSLTransport.providedBy(transport)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self.client_address = getattr(transport.getPeer(), "host", None) or "unix"
        transport.registerProducer(self, True)
        site.channels.add(self)
        site.ticker.members.add(self)
        self.deadline = site.ticker.after(site.timeouts.request_head)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._deaf:
            self._drop(data)
            return
        body = self._body
        if body is not None:
            rest = body.feed(data)
            if self._queue:
                self._queued(len(data))
            if rest is None:
                if not self._deaf:
                    self._arm()
                return
            self._body_done()
            if not rest:
                return
            data = rest
        if self._held:
            data = self._held + data
            self._held = b""
        self._parse(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:  # noqa: B008
        """The client, or we, closed the connection."""
        self._site.channels.discard(self)
        self._site.ticker.members.discard(self)
        self._deaf = True
        self._queue.clear()
        current, self._current = self._current, None
        if current is not None:
            current.lost("client_gone")
        self._note_idle()

    def pauseProducing(self) -> None:
        """The transport holds as much as it should."""
        self.output_full = True
        self._acknowledged = acknowledged_bytes(self.transport)
        self.deadline = self._site.ticker.after(self._site.timeouts.client_idle)
        current = self._current
        if current is not None and current.producer is not None:
            current.producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self.output_full = False
        self._arm()
        if self._current is None and not self._reading and not self._closing:
            self.resume_reading()
            held, self._held = self._held, b""
            self._parse(held)
            return
        current = self._current
        if current is not None and current.producer is not None:
            current.producer.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    def _arm(self) -> None:
        """Set the deadline that fits where the channel is; a full output keeps its own."""
        if self.output_full or self._closing or self._lingering:
            return
        site = self._site
        if self._current is None:
            seconds = site.timeouts.request_head if self._held or self._body is not None else site.timeouts.keepalive
        elif self._body is not None and self._reading and not self._body.expects:
            seconds = site.timeouts.request_idle
        else:
            self.deadline = NEVER
            return
        self.deadline = site.ticker.after(seconds)

    # Requests.

    def _parse(self, data: bytes) -> None:
        """Cut heads from the data, and dispatch or queue their requests."""
        site = self._site
        while data:
            if self.output_full and self._current is None:
                # The client asks, and does not read what it is told: its answers would pile up here.
                self._held = data
                self.pause_reading()
                return
            if data[:2] == b"\r\n":
                # RFC 9112 §2.2: ignore at least one empty line before the request line. One it is.
                data = data[2:]
                if data[:1] in (b"\r", b"\n"):
                    self._refuse(MalformedRequest("Empty lines stand before the request line. Send none."))
                    return
                continue
            cut = data.find(b"\r\n\r\n", self._scanned)
            if cut < 0 or cut + 4 > site.max_head_bytes:
                self._incomplete(data)
                return
            self._scanned = 0
            cut += 4
            try:
                head = parse_request(data[:cut])
            except FlowstackError as error:
                self._refuse(error)
                return
            data = data[cut:]
            length = head.length
            body: RequestBody | WholeBody | None = None
            if length is not None and len(data) >= length:
                if length:
                    body = WholeBody(data[:length])
                    data = data[length:]
            else:
                body = streamed = RequestBody(self, length, head.expects)
                rest = streamed.feed(data) if data else None
                if rest is None:
                    self._body, data = streamed, b""
                else:
                    data = rest
            request = Request(self, head, body)
            if self._current is None:
                self._dispatch(request)
                if self._deaf:
                    if data:
                        self._drop(data)
                    return
            elif len(self._queue) >= MAX_QUEUED:
                self._deaf = True
                return
            else:
                self._queue.append(request)
                self._queued(cut + (body.received if body is not None else 0))

    def _queued(self, size: int) -> None:
        """Count bytes of requests that wait; after a window read no more."""
        self._backlog += size
        if self._backlog > WINDOW:
            self.pause_reading()

    def _incomplete(self, data: bytes) -> None:
        """Hold the beginning of a head, unless no good one can come of it."""
        fault = hopeless_request(data, self._site.max_head_bytes)
        if fault is not None:
            self._refuse(fault)
        else:
            fresh = not self._scanned
            self._scanned = max(1, len(data) - 3)
            self._held = data
            if fresh:
                self._arm()

    def _dispatch(self, request: Request) -> None:
        """Hand a request to the resource."""
        self._current = request
        self._arm()
        site = self._site
        resource = site.resource
        try:
            if not resource.isLeaf:
                request.prepath, request.postpath = [], request.uri.partition(b"?")[0].split(b"/")[1:]
                request.path = request.uri.partition(b"?")[0]
                resource = getChildForRequest(resource, request)
            result = resource.render(request)
        except UnsupportedMethod as unsupported:
            allow = b", ".join(unsupported.allowedMethods)
            request.reply(site.refuse(MethodNotAllowed("This method is not served here.", ((b"Allow", allow),))))
            return
        except Exception:
            log.failure("a resource failed")
            if request.started:
                self.abort()
            else:
                request.reply(site.refuse(FlowstackError("Flowstack failed at this request; its log says why.")))
            return
        if result is not NOT_DONE_YET:
            request.setHeader(b"content-length", b"%d" % len(result))
            request.end(b"" if request.method == b"HEAD" else result)

    def request_done(self, request: Request) -> None:
        """The answer's last byte was handed to the transport."""
        self._current = None
        body = self._body
        if body is not None and body is request.body:
            # The answer came before the request's end: what is left cannot be told from a next request.
            self._body = None
            self._linger()
        elif not request.keep_alive:
            self._close()
        else:
            self._arm()
            if self._queue:
                self._advance()
            elif self._deaf:
                self._close()
        if self._site.draining:
            self._note_idle()

    def _advance(self) -> None:
        """Go on with what is queued; a loop, since a resource may answer at once."""
        if self._advancing:
            return
        self._advancing = True
        while self._queue and self._current is None and not self._closing:
            entry = self._queue.popleft()
            if isinstance(entry, Request):
                self._dispatch(entry)
            else:
                self._answer_fault(entry)
        self._advancing = False
        if not self._queue and self._backlog:
            self._backlog = 0
            self.resume_reading()
        if self._current is None and self._deaf and not self._closing:
            self._close()

    def may_persist(self, request: Request) -> bool:
        """Whether the connection lives on after this answer, as far as it is known at its head."""
        if not request.keep_alive or self._site.draining:
            return False
        if self._deaf and not self._queue:
            return False
        return self._body is None or self._body is not request.body

    def _refuse(self, error: FlowstackError) -> None:
        """Answer what is no request, after the answers that are due before it, and close."""
        self._deaf = True
        if self._current is None:
            self._answer_fault(error)
        else:
            self._queue.append(error)

    def _answer_fault(self, error: FlowstackError) -> None:
        reply = self._site.refuse(error)
        head = b"\r\n".join([b"%b: %b" % pair for pair in reply.pairs])
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%b\r\nConnection: close\r\n\r\n%b"
            % (reply.status, REASONS[reply.status], head, reply.body)
        )
        self._linger()

    # Bodies.

    def send_continue(self) -> None:
        """Tell the client to send the body (RFC 9110 §10.1.1)."""
        self.transport.write(CONTINUE)
        self._arm()

    def _body_done(self) -> None:
        self._body = None
        self._arm()
        if not self._reading and self._backlog <= WINDOW:
            self.resume_reading()

    def body_failed(self, body: RequestBody, fault: FlowstackError) -> None:
        """A body turned out bad before anybody took it."""
        current = self._current
        if current is not None and current.body is body and not current.started:
            if current.broken is not None:
                current.broken(fault)
            else:
                current.reply(self._site.refuse(fault))

    def stop_listening(self) -> None:
        """Nothing more that comes on this connection can be understood."""
        self._deaf = True

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

    # Ends.

    def expire(self) -> None:
        """The deadline has passed; which one it was follows from where the channel is."""
        if self._lingering and not self._closing:
            self._close()
        elif self._closing or self.output_full:
            acknowledged = acknowledged_bytes(self.transport)
            if acknowledged is not None and acknowledged != self._acknowledged:
                self._acknowledged = acknowledged
                self.deadline = self._site.ticker.after(self._site.timeouts.client_idle)
            else:
                self._time_out()
        elif self._current is not None:
            self._body_stalled(self._current)
        elif self._held:
            self._refuse(
                MalformedRequest(
                    f"The request head did not come within {self._site.timeouts.request_head:g} seconds."
                )
            )
        else:
            self._close()

    def _body_stalled(self, current: Request) -> None:
        body = self._body
        if body is None or body is not current.body or current.started:
            self._time_out()
            return
        self.deadline = NEVER
        body.fail(
            RequestStalled(
                f"No byte of the request body came for {self._site.timeouts.request_idle:g} seconds. Send it again."
            )
        )

    def _time_out(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.lost("timeout")
        self.abort()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES and self._current is None:
            self.abort()

    def _linger(self) -> None:
        """Close, but first let the client read the answer while what it still sends is dropped."""
        self._deaf = True
        self._lingering = True
        self._queue.clear()
        self.deadline = self._site.ticker.after(LINGER_SECONDS)
        self.resume_reading()
        if not self.secure:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()

    def _close(self) -> None:
        """Close when all that was written has gone out."""
        self._closing = True
        self._deaf = True
        self._acknowledged = acknowledged_bytes(self.transport)
        self.deadline = self._site.ticker.after(self._site.timeouts.client_idle)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once; what the client has must not look finished."""
        self._closing = True
        self._deaf = True
        self.transport.abortConnection()

    def close_now(self) -> None:
        """Close in order where nothing is under way; otherwise cut, and say so to the exchange."""
        current, self._current = self._current, None
        if current is None:
            self._close()
        else:
            current.lost("drain")
            self.abort()

    def _note_idle(self) -> None:
        if self._site.draining and self._site.when_idle is not None:
            self._site.when_idle()
