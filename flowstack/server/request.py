"""One request on a client's connection, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IPushProducer

from flowstack.errors import FlowstackError
from flowstack.http.framing import LAST_CHUNK
from flowstack.http.headers import lines_of
from flowstack.http.heads import RequestHead
from flowstack.http.replies import REASONS, Reply
from flowstack.server.request_body import BodyConnection, RequestBody, WholeBody
from flowstack.server.site import Served

_LARGE: Final = 16 * 1024
"""From this many bytes on a piece is not copied to be framed."""


_OK_LINE: Final = b"HTTP/1.1 200 OK"


class Connection(BodyConnection, Protocol):
    """What a request asks of its connection."""

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

    def take_over(self, successor: Served) -> tuple[Any, bytes]:
        """Give up the transport, and the bytes that came and were not read."""

    def give_up(self, successor: Served) -> None:
        """What took the transport over has ended."""


class Request:
    """A request, from the end of its head to the end of its answer.

    :ivar uri: the target as it came.
    :ivar requestHeaders: a :class:`flowstack.http.headers.RawHeaders`.
    :ivar body: its body, or None where it has none.
    :ivar gone: called once, with ``client_gone``, ``timeout`` or ``drain``, if the connection goes before the answer's
        end.
    :ivar broken: called in place of a plain refusal if the body turns out bad before anybody takes it; answers.
    :ivar producer: where the answer comes from; paused while the client takes no more.
    :ivar sent: bytes of the answer's body handed to the transport.
    :ivar known: whether it showed a valid key.
    """

    __slots__ = ("_chunked", "_head", "body", "broken", "channel", "finished", "gone", "keep_alive", "known", "method",
                 "minor", "producer", "requestHeaders", "sent", "started", "uri")  # fmt: skip

    def __init__(self, channel: Connection, head: RequestHead, body: RequestBody | WholeBody | None) -> None:
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

    def write_head(self, status: int, reason: bytes, lines: bytes, length: int | None) -> None:
        """Begin the answer. The bytes go out with the first piece, or by :meth:`write` of nothing.

        :param lines: the end-to-end fields, see :func:`flowstack.http.headers.lines_of`; the connection's own are
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
        self._head = b"".join((line, lines, tail))  # which costs less than to add twice

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
        self.sent += size
        if size >= _LARGE:
            self._write_large(data, size)
        else:
            framed = b"%x\r\n%b\r\n" % (size, data) if self._chunked and size else data
            if self._head is not None:
                framed = self._head + framed
                self._head = None
            if framed:
                self.channel.transport.write(framed)

    def _write_large(self, data: bytes, size: int) -> None:
        pieces = [b"%x\r\n" % size, data, b"\r\n"] if self._chunked else [data]
        if self._head is not None:
            pieces.insert(0, self._head)
            self._head = None
        self.channel.transport.writeSequence(pieces)

    def end(self, data: bytes = b"") -> None:
        """Hand over the last piece and the body's end in one write; the connection goes on to the next request."""
        if self.finished:
            return
        size = len(data)
        self.sent += size
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, data) if size else LAST_CHUNK
        if self._head is not None:
            data = self._head + data
            self._head = None
        if data:
            self.channel.transport.write(data)
        self.finished = True
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
        """The connection says that the client is gone, or that its time ran out."""
        self.finished = True
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(end)

    def isSecure(self) -> bool:
        """Whether the client came by TLS."""
        return self.channel.secure

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let a push producer make the answer's body, paused while the client takes no more."""
        self.producer = producer
        if self.channel.output_full:
            producer.pauseProducing()
