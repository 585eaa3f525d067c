"""A call to an upstream: the request on its way, and the response that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import classImplements

from flowstack.http.framing import LAST_CHUNK, chunk
from flowstack.http.headers import ReceivedHeaders
from flowstack.http.heads import ResponseHead
from flowstack.interfaces import BodyReceiver, OutgoingBody

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
"""RFC 9110 §9.2.2, of what is relayed."""


class Connection(Protocol):
    """The connection that carries a call, as the call and its response see it: a push producer of the body."""

    def take_over(self) -> tuple[Any, bytes]:
        """Let go of the transport; with the bytes that came behind the head."""

    def deliver(self, receiver: BodyReceiver) -> None:
        """Give the body to this receiver."""

    def redirect(self, receiver: BodyReceiver) -> None:
        """Give the rest of the body to this receiver."""

    def pauseProducing(self) -> None:
        """Read no more."""

    def resumeProducing(self) -> None:
        """Read on."""

    def stopProducing(self) -> None:
        """Nobody wants the rest: close at once."""


class Call(Deferred["Response"]):
    """One request on its way to an upstream, over one connection or, after a retry, several.

    It is the Deferred that the agent returns: it fires with the :class:`Response`; cancelling it closes the connection.

    :param lines: the header fields, see :func:`flowstack.http.headers.lines_of`.
    :ivar body: a producer of the request's body, or None where there is none, or all of it is in :attr:`head`.
    :ivar head: what goes out first, in one write, and can be sent again: the head, and the body if all of it has come.
    :ivar upgrades: whether it asks for another protocol, so that a 101 may answer it.
    :ivar attempts: connections that it was tried on.
    :ivar connection: the one that carries it now.
    """

    def __init__(
        self, method: bytes, target: bytes, lines: bytes, body: OutgoingBody | None, upgrades: bool = False
    ) -> None:
        Deferred.__init__(self, _cancel)
        self.upgrades = upgrades
        self.attempts = 0
        self.cancelled = False
        self.connection: Connection | None = None
        self.cancel_wait: Callable[[], None] | None = None
        self.method = method
        tail = b"\r\n\r\n"
        whole: bytes | None = None
        if body is not None:
            whole = body.whole
            if body.length is UNKNOWN_LENGTH:
                tail = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
                if whole is not None:
                    whole = (chunk(whole) if whole else b"") + LAST_CHUNK
            if whole is not None:
                body.stopProducing()
                body = None
        self.body: OutgoingBody | None = body
        self.head = b"".join((method, b" ", target, b" HTTP/1.1", lines, tail, whole or b""))

    def may_repeat(self, retry_post: bool) -> bool:
        """Whether it may be sent again although bytes of it were written: idempotent, or allowed, and replayable."""
        return self.body is None and not self.cancelled and (self.method in _IDEMPOTENT or retry_post)

    def fail(self, fault: BaseException) -> None:
        """No response comes. Told once."""
        if not self.called:
            self.errback(Failure(fault))


def _cancel(call: Deferred[Response]) -> None:
    assert isinstance(call, Call)
    call.cancelled = True
    if call.connection is not None:
        call.connection.stopProducing()
    elif call.cancel_wait is not None:
        call.cancel_wait()


class Response:
    """A response whose head has come.

    :ivar length: bytes of the body, or ``UNKNOWN_LENGTH``.
    :ivar attempts: how many times the request was sent.
    :ivar connection: pause it to pause the upstream, stop it to close it; None where all of the body is here.
    """

    __slots__ = ("_minor", "_whole", "attempts", "code", "connection", "headers", "length", "phrase")

    request = None
    previousResponse = None  # noqa: N815

    def __init__(
        self, head: ResponseHead, connection: Connection | None, length: Any, attempts: int, whole: bytes = b""
    ) -> None:
        self.code = head.status
        self.phrase = head.reason
        self.headers: ReceivedHeaders = head
        self._minor = head.minor
        self.length = length
        self.attempts = attempts
        self.connection = connection
        self._whole = whole

    @property
    def version(self) -> tuple[bytes, int, int]:
        """The protocol's."""
        return b"HTTP", 1, self._minor

    def deliver(self, receiver: BodyReceiver) -> None:
        """See :meth:`flowstack.interfaces.UpstreamResponse.deliver`."""
        if self.connection is None:
            receiver.last(self._whole)
        else:
            self.connection.deliver(receiver)

    def redirect(self, receiver: BodyReceiver) -> None:
        """See :meth:`flowstack.interfaces.UpstreamResponse.redirect`."""
        if self.connection is not None:
            self.connection.redirect(receiver)

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to a protocol of Twisted's, as treq's own client does."""
        self.deliver(_ProtocolReceiver(protocol))

    def setPreviousResponse(self, response: IResponse) -> None:  # noqa: N802
        """Of Twisted's interface; nothing is followed here, so there is none."""


classImplements(Response, IResponse)


class _ProtocolReceiver:
    """Gives a body to a protocol of Twisted's."""

    def __init__(self, protocol: IProtocol) -> None:
        self.data = protocol.dataReceived
        self._lost = protocol.connectionLost

    def last(self, piece: bytes) -> None:
        if piece:
            self.data(piece)
        self._lost(Failure(ResponseDone()))

    def lost(self, reason: BaseException) -> None:
        self._lost(Failure(reason))
