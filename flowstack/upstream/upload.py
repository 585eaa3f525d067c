"""A request's body on its way to an upstream, where it was not at hand with the head."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface import classImplements

from flowstack.http.framing import LAST_CHUNK
from flowstack.interfaces import OutgoingBody
from flowstack.transport.kernel import acknowledged_bytes


class Uploader(Protocol):
    """What an upload asks of its connection."""

    transport: Any

    def upload_turned(self) -> None:
        """The upstream has begun, or ceased, to take no more."""

    def upload_sent(self) -> None:
        """All of the body was written."""

    def upload_failed(self, fault: BaseException | None) -> None:
        """The rest of the body cannot be had."""


class Upload:
    """One body: a consumer to its producer, and to the transport the producer, whose pauses it passes on.

    :ivar full: whether the upstream takes no more for now.
    """

    __slots__ = ("_acknowledged", "_body", "_chunked", "_connection", "full")

    def __init__(self, connection: Uploader, body: OutgoingBody) -> None:
        self._connection = connection
        self._body: OutgoingBody | None = body  # until its end; body and upload must not hold each other any longer
        self._chunked = body.length is UNKNOWN_LENGTH
        self._acknowledged: int | None = None
        self.full = False

    def start(self) -> None:
        """Take the body as it comes."""
        body = self._body
        assert body is not None
        self._connection.transport.registerProducer(self, True)
        body.startProducing(self).addCallbacks(self._sent, self._failed)

    def stop(self) -> None:
        """Take no more of it."""
        body, self._body = self._body, None
        if body is not None:
            self._connection.transport.unregisterProducer()
            body.stopProducing()

    def advanced(self) -> bool:
        """Whether the upstream has acknowledged bytes since this was last asked, or since it was full."""
        before, self._acknowledged = self._acknowledged, acknowledged_bytes(self._connection.transport)
        return self._acknowledged is not None and self._acknowledged != before

    def _sent(self, _: None) -> None:
        if self._body is None:
            return
        self._body = None
        transport = self._connection.transport
        if self._chunked:
            transport.write(LAST_CHUNK)
        transport.unregisterProducer()
        self._connection.upload_sent()

    def _failed(self, failure: Failure) -> None:
        if self._body is not None:
            self._body = None
            self._connection.upload_failed(failure.value)

    # The body's side.

    def write(self, data: bytes) -> None:
        """A piece."""
        if self._body is None:
            return
        if self._chunked:
            if not data:
                return
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.transport.write(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Of ``IConsumer``; the producer is the body."""

    def unregisterProducer(self) -> None:
        """Of ``IConsumer``."""

    # The transport's side.

    def pauseProducing(self) -> None:
        """The upstream takes no more."""
        self.full = True
        self._acknowledged = acknowledged_bytes(self._connection.transport)
        self._connection.upload_turned()
        if self._body is not None:
            self._body.pauseProducing()

    def resumeProducing(self) -> None:
        """It takes more."""
        self.full = False
        self._connection.upload_turned()
        if self._body is not None:
            self._body.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is gone; its ``connectionLost`` stops the upload."""


classImplements(Upload, IConsumer, IPushProducer)
