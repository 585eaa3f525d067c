"""A request's body on its way from the socket to whoever takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import classImplements

from flowstack.errors import FlowstackError, MalformedRequest, RequestTooLarge
from flowstack.http.framing import BadFraming, ChunkedBody, LengthBody

WINDOW: Final = 64 * 1024
"""Bytes of a body that are held while nobody takes them; then the socket is read no further."""


class BodyConnection(Protocol):
    """What a body asks of its connection."""

    def send_continue(self) -> None:
        """Tell the client to send the body."""

    def body_ended(self, rest: bytes) -> None:
        """All of the body has come, and these bytes behind it."""

    def body_failed(self, fault: FlowstackError) -> None:
        """The body turned out bad before anybody took it."""

    def pause_reading(self) -> None:
        """A window is full."""

    def resume_reading(self) -> None:
        """It has room again."""


class RequestBody:
    """A request's body, streamed from the socket with backpressure.

    :ivar length: bytes, or ``UNKNOWN_LENGTH`` where it is chunked.
    :ivar received: bytes of it that have come.
    :ivar limit: the most bytes that are taken.
    :ivar complete: whether its end has come.
    :ivar fault: why it cannot be had, or None.
    """

    __slots__ = ("_connection", "_consumer", "_decoder", "_done", "_gathered", "_held", "_paused", "_window",
                 "complete", "expects", "fault", "length", "limit", "received")  # fmt: skip

    def __init__(self, connection: BodyConnection, length: int | None, expects: bool) -> None:
        self._connection = connection
        self._decoder: LengthBody | ChunkedBody = ChunkedBody() if length is None else LengthBody(length)
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] | None = None
        self._gathered: Callable[[bytes, bool], None] | None = None
        self._held = bytearray()  # not the pieces: of a byte each they would be many times their size
        self._paused = False
        self._window = WINDOW
        self.length: Any = UNKNOWN_LENGTH if length is None else length
        self.limit: int | None = None
        self.received = 0
        self.complete = False
        self.fault: FlowstackError | None = None
        self.expects = expects

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection. What comes after a fault is dropped: it cannot be understood."""
        if self.fault is not None:
            return
        self.expects = False  # who sends its body does not wait for a 100
        try:
            payload, rest = self._decoder.feed(data)
        except BadFraming as bad:
            self.fail(MalformedRequest(f"The request body is not framed as HTTP/1.1 asks: {bad}."))
            return
        self.received += len(payload)
        if self.limit is not None and self.received > self.limit:
            self.fail(too_large(self.limit))
            return
        if rest is not None:
            self.complete = True
            self._connection.body_ended(rest)  # before the last piece goes on: what takes it may answer at once
        if self._consumer is not None and not self._paused:
            if payload:
                self._consumer.write(payload)
            if rest is not None:
                self._end()
        else:
            if payload:
                self._held += payload
            full = rest is None and self.held >= self._window
            if full:
                self._connection.pause_reading()
            if self._gathered is not None:
                gathered, enough = self._gathered, full or rest is not None
                if enough:
                    self._gathered = None
                gathered(payload, enough)

    def gather(self, gathered: Callable[[bytes, bool], None], window: int = WINDOW) -> None:
        """Wait until all of it is at hand, or a window full; tell a waiting client to go on.

        :param gathered: called with what has come, then with each piece that comes, and whether that is all of it or a
            window full: then for the last time. Not called again once the body turned out bad or was stopped.
        :param window: bytes.
        """
        self._window = window
        enough = self.complete or self.held >= window
        if not enough:
            self._gathered = gathered
        gathered(bytes(self._held), enough)
        if self._gathered is not None:
            self._continue()
            if self.held < window:
                self._connection.resume_reading()  # a smaller window may have been full

    @property
    def whole(self) -> bytes | None:
        """All of it, where all of it is at hand and nobody has begun to take it; otherwise None."""
        if not self.complete or self._consumer is not None:
            return None
        return bytes(self._held)

    @property
    def seen(self) -> bytes:
        """What waits here; it stays."""
        return bytes(self._held)

    def take(self) -> bytes:
        """What waits here, for whoever reads it before there is somebody to write to; it is not given again."""
        held, self._held = bytes(self._held), bytearray()
        return held

    @property
    def held(self) -> int:
        """Bytes that wait here."""
        return len(self._held)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the body to the consumer as it comes; tell a waiting client to go on.

        :return: fires when all of it has been written; fails with a :class:`~flowstack.errors.FlowstackError` where
            the body is malformed or too large. It does not fire when the client leaves: the request says so.
        """
        if self.fault is not None:
            return fail(self.fault)
        self._consumer = consumer
        self._continue()
        self._flush()
        if self.complete and not self._held:
            return succeed(None)
        self._done = Deferred()
        return self._done

    def _continue(self) -> None:
        if self.expects:
            self.expects = False
            self._connection.send_continue()

    def _flush(self) -> None:
        if self._held and not self._paused and self._consumer is not None:
            self._consumer.write(self.take())
        if not self._held and not self.complete:
            self._connection.resume_reading()

    def pauseProducing(self) -> None:
        """The consumer is full: hold, and after a window stop reading the socket."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The consumer takes more."""
        self._paused = False
        if self._consumer is not None:
            self._flush()
            if self.complete and not self._held:
                self._end()

    def stopProducing(self) -> None:
        """Nobody wants the rest."""
        self._consumer = None
        self._done = None
        self._gathered = None
        self._held = bytearray()

    def fail(self, fault: FlowstackError) -> None:
        """The body cannot be had: tell whoever takes it, or will."""
        self.fault = fault
        self._gathered = None
        done, self._done = self._done, None
        if done is not None:
            done.errback(Failure(fault))
        elif self._consumer is None:
            self._connection.body_failed(fault)

    def _end(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done.callback(None)


class WholeBody:
    """A request's body that came in the same read as its head, as most do.

    :ivar whole: its bytes, until they are no longer needed.
    """

    __slots__ = ("length", "limit", "received", "whole")

    complete = True
    expects = False
    fault = None

    def __init__(self, data: bytes) -> None:
        self.whole = data
        self.length: Any = len(data)
        self.received = self.length
        self.limit: int | None = None

    @property
    def seen(self) -> bytes:
        """See :attr:`RequestBody.seen`."""
        return self.whole

    def take(self) -> bytes:
        """See :meth:`RequestBody.take`."""
        return self.whole

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write it."""
        consumer.write(self.whole)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All of it is written already."""

    def resumeProducing(self) -> None:
        """All of it is written already."""

    def stopProducing(self) -> None:
        """Nobody wants it any more."""
        self.whole = b""


classImplements(RequestBody, IBodyProducer)
classImplements(WholeBody, IBodyProducer)


def too_large(limit: int) -> RequestTooLarge:
    """The 413 for a body over the limit."""
    return RequestTooLarge(
        f"The request body is larger than the {limit} bytes that Flowstack takes. "
        "Send less, or ask the operator to raise max_request_bytes."
    )
