"""The admin listener's protocol: Twisted's own ``Site``, with bounds on what a client can hold."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from flowstack.admin.assets import SAFE
from flowstack.errors import FlowstackError, MethodNotAllowed, RequestTooLarge
from flowstack.http.replies import REASONS, error_reply

log = Logger()

MAX_CONNECTIONS = 128
MAX_BODY_BYTES = 64 * 1024

TIMEOUT = 60.0
"""Seconds for a whole request, counted from the connection or the last answer; and for a client to take more of one."""


def plain(request: Request, status: int, text: str) -> bytes:
    """Answer a request with plain text that is not to be stored."""
    request.setResponseCode(status, REASONS[status])
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"cache-control", b"no-store")
    return text.encode()


class Refused(Resource):
    """Answers every request with one error."""

    isLeaf = True

    def __init__(self, error: FlowstackError) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._error = error

    def render(self, request: AdminRequest) -> int:
        """The error, as JSON."""
        request.refuse(self._error)
        return NOT_DONE_YET


class AdminRequest(Request):
    """A request whose errors are JSON, and whose answer does not name the server and its version."""

    content: Any
    channel: Any
    gone = False
    """Whether the client is."""
    _too_large = False

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Set a field of the answer; ``Server``, which Twisted sets, is left out."""
        if name.lower() != b"server":
            super().setHeader(name, value)  # type: ignore[no-untyped-call]

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """Keep a piece of the body, or drop it where the whole is too long."""
        self._too_large |= self.content.tell() + len(data) > MAX_BODY_BYTES
        if not self._too_large:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        self.gone = True
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def render(self, resrc: IResource) -> None:
        """Have a resource answer."""
        for name, value in SAFE:
            self.setHeader(name, value)
        self.setHeader(b"cache-control", b"no-store")
        if self._too_large:
            self.refuse(RequestTooLarge(f"The body is longer than the {MAX_BODY_BYTES} bytes that are read here."))
            return
        try:
            body: Any = resrc.render(self)
        except UnsupportedMethod as unsupported:
            allow = b", ".join(sorted(unsupported.allowedMethods))
            self.refuse(MethodNotAllowed("This method is not served here.", ((b"Allow", allow),)))
            return
        if body == NOT_DONE_YET:
            return
        if body or self.method != b"HEAD":  # to a HEAD a resource may say the length itself, and give nothing
            self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)  # type: ignore[no-untyped-call]
        self.finish()  # type: ignore[no-untyped-call]

    def processingFailed(self, reason: Failure) -> Failure:
        """A resource raised: the log says what."""
        log.failure("a resource of the admin listener failed", reason)
        if self.startedWriting:
            self.channel.transport.abortConnection()  # or the answer would look finished
        else:
            self.refuse(FlowstackError("Flowstack failed at this request; its log says why."))
        return reason

    def refuse(self, error: FlowstackError) -> None:
        """Answer with an error of Flowstack's own."""
        reply = error_reply(error)
        self.setResponseCode(reply.status, REASONS[reply.status])
        for name, value in reply.pairs:
            self.setHeader(name, value)
        self.write(reply.body)  # type: ignore[no-untyped-call]
        self.finish()  # type: ignore[no-untyped-call]


class AdminChannel(HTTPChannel):
    """A connection that no client can hold for long without a request.

    Twisted's own starts its timer again at each byte, so a head sent slowly enough never ends; and it has none while an
    answer is sent, so a client that stops reading holds it forever.
    """

    site: AdminSite
    transport: Any

    def resetTimeout(self) -> None:
        """Do not start the timer again because of a byte."""

    def pauseProducing(self) -> None:
        """The client does not read."""
        super().pauseProducing()  # type: ignore[no-untyped-call]
        self.setTimeout(TIMEOUT)  # type: ignore[no-untyped-call]

    def resumeProducing(self) -> None:
        """The client reads."""
        super().resumeProducing()  # type: ignore[no-untyped-call]
        self.setTimeout(None if self._handlingRequest else TIMEOUT)  # type: ignore[no-untyped-call]

    def timeoutConnection(self) -> None:
        """Close; in order, if the client takes what was written."""
        # The base class does the same, and logs each: any client could fill the log.
        self.loseConnection()  # type: ignore[no-untyped-call]
        self.callLater(self.abortTimeout, self.transport.abortConnection)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone."""
        self.site.channels.pop(self, None)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class AdminSite(Site):
    """Serves a resource. One connection too many cuts the oldest, so that a health check always gets through.

    :param reactor: its clock.
    """

    noisy = False
    protocol = AdminChannel  # type: ignore[assignment]
    requestFactory = AdminRequest

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        super().__init__(resource, timeout=TIMEOUT, reactor=reactor, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]
        self.channels: dict[AdminChannel, None] = {}  # the oldest first

    def startFactory(self) -> None:
        """Begin; there is no access log, and no clock for one."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel for a new connection."""
        if len(self.channels) >= MAX_CONNECTIONS:
            oldest = next(iter(self.channels))
            del self.channels[oldest]
            oldest.transport.abortConnection()
        channel = super().buildProtocol(addr)  # type: ignore[no-untyped-call]
        self.channels[channel] = None
        return channel

    def getContentFile(self, length: int | None) -> BytesIO:  # noqa: N802
        """Where a body goes: to memory, never to a temporary file."""
        return BytesIO()

    def close(self) -> None:
        """Close every connection."""
        for channel in list(self.channels):
            channel.loseConnection()  # type: ignore[no-untyped-call]
