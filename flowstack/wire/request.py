"""One request on a server channel: thin, and an ``IRequest`` as far as an ordinary Resource needs one.

Beside Twisted's calls there are those that the relay uses: :meth:`Request.write_head` with fields in order,
:meth:`Request.end` with the last piece, :attr:`Request.body`, a producer that streams from the socket, and
:attr:`Request.gone`, told once when the client leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IRequest
from zope.interface import implementer

from flowstack.errors import FlowstackError
from flowstack.policy.headers import lines_of
from flowstack.policy.replies import REASONS, Reply
from flowstack.wire.framing import LAST_CHUNK
from flowstack.wire.heads import RequestHead
from flowstack.wire.request_body import BodyCarrier, RequestBody, WholeBody

_LARGE = 16 * 1024
"""From this many bytes on a piece is not copied to be framed."""


_OK_LINE = b"HTTP/1.1 200 OK"


class Carrier(BodyCarrier, Protocol):
    """What a request asks of its channel."""

    transport: Any
    secure: bool
    output_full: bool
    client_address: str

    def may_persist(self, request: Request) -> bool:
        """Whether the connection lives on after this answer."""

    def request_done(self, request: Request) -> None:
        """The answer's last byte was handed over."""

    def break_off(self) -> None:
        """Close when all that was written has gone out, so that it does not look finished."""


@implementer(IRequest)  # as far as is said above
class Request:  # type: ignore[misc]
    """A request, from the end of its head to the end of its answer.

    :ivar uri: the target as it came.
    :ivar requestHeaders: a :class:`flowstack.policy.headers.RawHeaders`.
    :ivar body: its body, or None where it has none.
    :ivar gone: called once, with ``client_gone`` or ``timeout``, if the client leaves before the answer's end.
    :ivar broken: called in place of a plain refusal if the body turns out bad before anybody takes it; answers.
    :ivar producer: where the answer comes from; paused while the client takes no more.
    :ivar sent: bytes of the answer's body handed to the transport.
    :ivar known: whether it showed a valid key.
    """

    __slots__ = ("_chunked", "_head", "_response_headers", "_watchers", "args", "body", "broken", "channel", "code",
                 "code_message", "finished", "gone", "keep_alive", "known", "method", "minor", "path", "postpath",
                 "prepath", "producer", "requestHeaders", "sent", "started", "uri")  # fmt: skip

    def __init__(self, channel: Carrier, head: RequestHead, body: RequestBody | WholeBody | None) -> None:
        self.channel = channel
        self.method = head.method
        self.uri = head.target
        self.minor = head.minor
        self.requestHeaders = head
        self.keep_alive = head.keep_alive
        self.body = body
        self.gone: Callable[[str], None] | None = None
        self.broken: Callable[[FlowstackError], None] | None = None
        self.producer: IPushProducer | None = None
        self.sent = 0
        self.known = False
        self.started = False
        self.finished = False
        self._head: bytes | None = None
        self._chunked = False
        self._response_headers: Headers | None = None
        self._watchers: list[Deferred[None]] | None = None

    path: bytes
    prepath: list[bytes]
    postpath: list[bytes]

    # What the relay uses.

    def write_head(self, status: int, reason: bytes, lines: bytes, length: int | None) -> None:
        """Begin the answer. The bytes go out with the first piece, or by :meth:`write` of nothing.

        :param lines: the end-to-end fields, see :func:`flowstack.policy.headers.lines_of`; the connection's own are
            added here.
        :param length: bytes of the body where they are known; the field itself is among the lines.
        """
        self.started = True
        tail = b"\r\n\r\n"
        if length is None and not (status < 200 or status == 204 or status == 304 or self.method == b"HEAD"):
            if self.minor:
                self._chunked = True
                tail = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            else:
                self.keep_alive = False  # RFC 9112 §6.3: to HTTP/1.0 the end of the connection is the end of the body
        if not self.channel.may_persist(self):
            self.keep_alive = False
            tail = b"\r\nConnection: close" + tail
        elif not self.minor:
            tail = b"\r\nConnection: keep-alive" + tail
        line = _OK_LINE if status == 200 and reason == b"OK" else b"HTTP/1.1 %d %b" % (status, reason)
        self._head = line + lines + tail

    def write(self, data: bytes) -> None:
        """Hand a piece to the transport, now; a head that waits goes before it in the same write."""
        size = len(data)
        if self._head is None and self._chunked and 0 < size < _LARGE and not self.finished:
            self.sent += size
            self.channel.transport.write(b"%x\r\n%b\r\n" % (size, data))
        else:
            self._write_any(data, size)

    def _write_any(self, data: bytes, size: int) -> None:
        if self.finished:
            return
        if not self.started:
            self._write_head_of_resource()
        self.sent += size
        if size >= _LARGE:
            self._write_large(data, size)
        else:
            self._send(b"%x\r\n%b\r\n" % (size, data) if self._chunked and size else data)

    def _send(self, framed: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            framed = head + framed
        if framed:
            self.channel.transport.write(framed)

    def _write_large(self, data: bytes, size: int) -> None:
        pieces = [b"%x\r\n" % size, data, b"\r\n"] if self._chunked else [data]
        if self._head is not None:
            pieces.insert(0, self._head)
            self._head = None
        self.channel.transport.writeSequence(pieces)

    def end(self, data: bytes = b"") -> None:
        """Hand over the last piece and the body's end in one write; the channel goes on to the next request."""
        if self.finished:
            return
        if not self.started:
            self._write_head_of_resource()
        size = len(data)
        self.sent += size
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, data) if size else LAST_CHUNK
        self._send(data)
        self.finished = True
        if self._watchers is not None:
            self._tell(None)
        self.channel.request_done(self)

    def reply(self, reply: Reply) -> None:
        """Give a whole answer."""
        self.write_head(reply.status, REASONS.get(reply.status, b""), lines_of(reply.pairs), len(reply.body))
        self.end(b"" if self.method == b"HEAD" else reply.body)

    def break_off(self) -> None:
        """Let the client have what was written, and cut its connection then, so that it does not look finished."""
        self.finished = True
        self.channel.break_off()

    def lost(self, end: str) -> None:
        """The channel says that the client is gone, or that its time ran out."""
        self.finished = True
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(end)
        if self._watchers is not None:
            self._tell(Failure(ConnectionError("the client left")))

    # Twisted's own calls, for ordinary resources.

    @property
    def clientproto(self) -> bytes:
        """The protocol's version as the client sent it."""
        return b"HTTP/1.1" if self.minor else b"HTTP/1.0"

    @property
    def responseHeaders(self) -> Headers:
        """Fields for an answer that begins with :meth:`write`."""
        if self._response_headers is None:
            self._response_headers = Headers()
        return self._response_headers

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """Set the status for an answer that begins with :meth:`write`."""
        self.code, self.code_message = code, message

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Set a field for an answer that begins with :meth:`write`."""
        self.responseHeaders.setRawHeaders(name, [value])

    def getHeader(self, key: bytes) -> bytes | None:
        """The last value of a request's field, or None."""
        value: bytes | None = self.requestHeaders.by_name.get(key.lower())
        return value

    def getAllHeaders(self) -> dict[bytes, bytes]:
        """The request's fields, the last value of each."""
        return dict(self.requestHeaders.by_name)

    def getClientAddress(self) -> IAddress:  # noqa: N802
        """The peer's address."""
        peer: IAddress = self.channel.transport.getPeer()
        return peer

    def getHost(self) -> IAddress:
        """The address that the client reached."""
        host: IAddress = self.channel.transport.getHost()
        return host

    def isSecure(self) -> bool:
        """Whether the client came by TLS."""
        return self.channel.secure

    def notifyFinish(self) -> Deferred[None]:
        """Fires at the answer's end; fails if the client leaves before."""
        watcher: Deferred[None] = Deferred()
        self._watchers = [*(self._watchers or ()), watcher]
        return watcher

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let a push producer make the answer's body, paused while the client takes no more."""
        if not streaming:
            raise ValueError("only push producers (streaming=True) are taken here")
        self.producer = producer
        if self.channel.output_full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The producer has made all of it."""
        self.producer = None

    def finish(self) -> None:
        """End the answer."""
        self.end()

    def _write_head_of_resource(self) -> None:
        headers = self._response_headers or Headers()
        lengths = headers.getRawHeaders(b"content-length")
        code: int = getattr(self, "code", 200)
        reason: bytes | None = getattr(self, "code_message", None)
        self.write_head(
            code,
            REASONS.get(code, b"") if reason is None else reason,
            lines_of((name, value) for name, values in headers.getAllRawHeaders() for value in values),
            int(lengths[0]) if lengths else None,
        )

    def _tell(self, outcome: Failure | None) -> None:
        watchers, self._watchers = self._watchers or [], None
        for watcher in watchers:
            if outcome is None:
                watcher.callback(None)
            else:
                watcher.errback(outcome)
