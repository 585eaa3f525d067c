"""The server channel: bytes of one connection in, requests to a resource, answers back in order.

It stands where ``twisted.web.http.HTTPChannel`` would. It differs in what a proxy needs: a request is handed to the
resource when its head is complete, its body streams with backpressure, and whatever two parsers could read
differently is refused. When and how the connection ends is :mod:`flowstack.wire.ending`'s.
"""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.logger import Logger
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import getChildForRequest
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from flowstack.errors import FlowstackError, MalformedRequest, MethodNotAllowed
from flowstack.policy.keys.addresses import usual_address
from flowstack.wire.ending import Ending
from flowstack.wire.heads import hopeless_request
from flowstack.wire.recurring import RequestHeads
from flowstack.wire.request import Request
from flowstack.wire.request_body import WINDOW, RequestBody, WholeBody
from flowstack.wire.site import Site
from flowstack.wire.ticker import NEVER

log = Logger()

MAX_QUEUED = 32
"""Pipelined requests that wait behind one; at one more the connection is closed after their answers."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@implementer(IPushProducer)
class Channel(Ending):
    """One connection from a client.

    It is the transport's producer for as long as it lives: the transport pauses it while the client does not read,
    and it passes that on to whatever produces the answer under way.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._scanned = 0  # how much of an incomplete head holds no empty line
        self._backlog = 0  # bytes of queued requests
        self._advancing = False
        self._heads = RequestHeads()
        self.client_address = ""

    # Twisted's side.

    def connectionMade(self) -> None:
        """Begin to listen."""
        site, transport = self._site, self.transport
        self.secure = ISSLTransport.providedBy(transport)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self.client_address = usual_address(getattr(transport.getPeer(), "host", None) or "unix")
        transport.registerProducer(self, True)
        site.channels.add(self)
        site.ticker.members.add(self)
        # A handshake counts, whether the transport connects its protocol before it, as Twisted's does, or after it.
        waited = getattr(transport, "waited", 0.0)
        self.deadline = site.ticker.base + site.timeouts.request_head - waited

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
            if self._lingering or self._closing or self._breaking:
                self._drop(rest)
                return
            self._body_done()
            if not rest:
                return
            data = rest
        if self._held:
            data = self._held + data
            self._held = b""
        self._parse(data)

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
        if self._current is None and not self._reading and not self._deaf:
            self.resume_reading()
            held, self._held = self._held, b""
            self._parse(held)
            return
        current = self._current
        if current is not None and current.producer is not None:
            current.producer.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

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
                head = self._heads.read(data[:cut])
            except FlowstackError as error:
                self._refuse(error)
                return
            length = head.length
            body: RequestBody | WholeBody | None = None
            data = data[cut:]
            if length == len(data):
                body, data = WholeBody(data) if length else None, b""
            elif length is not None and length < len(data):
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
        fault = hopeless_request(data, self._site.max_head_bytes, self._scanned)
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
        if self._body is not None or self.output_full:
            self._arm()
        else:
            self.deadline = NEVER  # the request is here; what is waited for is others' to limit
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
        if body is not None and body is request.body and not body.complete:
            # The answer came before the request's end: what is left cannot be told from a next request.
            self._body = None
            self._linger(request.known)
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
        return self._body is None or self._body is not request.body or self._body.complete

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
