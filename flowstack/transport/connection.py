"""Twisted's stream transports, carried by uvloop's.

A :class:`Connection` is two things at once: the asyncio protocol that uvloop talks to, and the transport that a Twisted
protocol talks to. It adds no Python frame to the way of what is read: uvloop calls the protocol's own bound
``dataReceived``; and one to the way of what is written, which the loop's :mod:`outbox <flowstack.transport.outbox>`
keeps until the turn ends. Everything else in here is for the rare moments: opening, closing, back pressure.

What differs from Twisted's own TCP transports, all of it allowed by :class:`twisted.internet.interfaces.ITransport`:

- ``write`` goes to the socket at the end of the loop's turn, or at once where the piece is large. Each small piece is
  a system call of its own: join them.
- After ``loseConnection``, what is written is dropped, unless a producer is registered. A push producer keeps the
  connection open until it is unregistered, as the interface says (Twisted's TLS does so too, its TCP does not).
- A push producer is paused once, at 64 KiB unsent, and resumed at 16 KiB; one that is registered while more is unsent
  is paused at once.
- ``dataReceived`` is looked up when a protocol is connected. To change it later, assign :attr:`Connection.protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, cast

from twisted.internet import error, main
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flowstack.transport.kernel import remains
from flowstack.transport.outbox import outbox_of
from flowstack.transport.pull import Pulled
from flowstack.transport.socket import Socket, address_of

log = Logger()

HIGH_WATER = 64 * 1024
"""Bytes unsent at which a producer is paused."""

LOW_WATER = 16 * 1024
"""Bytes unsent at which it is resumed."""

Build = Callable[[IAddress], IProtocol | None]
Lost = Callable[[Failure], None]


def _drop(_data: object) -> None:
    """Take what is written to a closed transport, or read from one."""


@implementer(ITCPTransport, IConsumer, IPushProducer, ISystemHandle)
class Connection(Socket):
    """One plain connection, TCP or UNIX.

    :param loop: the uvloop loop.
    :param build: makes the Twisted protocol from the peer's address; None from it closes the connection.
    :param lost: told the reason after the protocol's ``connectionLost``.
    """

    __slots__ = (
        "__weakref__",
        "_build",
        "_full",
        "_heeds",
        "_held",
        "_loop",
        "_lost",
        "_outbox",
        "_paused",
        "_protocol",
        "_read_closed",
        "_why",
        "_write_closed",
        "connected",
        "data_received",
        "disconnected",
        "disconnecting",
        "producer",
        "write",
        "writeSequence",
    )

    _drain_limits: ClassVar[tuple[int, int]] = (0, 0)
    """Write-buffer limits with which uvloop tells of each time that all was sent."""

    waited = 0.0
    """Seconds from the moment when the connection was accepted to the one when the protocol was connected."""

    data_received: Callable[[bytes], None]
    write: Callable[[bytes], None]
    writeSequence: Callable[[Iterable[bytes]], None]
    producer: Any

    def __init__(self, loop: asyncio.AbstractEventLoop, build: Build, lost: Lost | None = None) -> None:
        super().__init__()
        self._loop = loop
        self._outbox = outbox_of(loop)
        self._build: Build | None = build
        self._lost = lost
        self._protocol: IProtocol | None = None
        self._why: BaseException | None = None
        self._held: list[bytes] | None = None
        self._heeds = False
        self._full = self._paused = self._read_closed = self._write_closed = False
        self.connected = self.disconnecting = self.disconnected = False
        self.producer = None
        self.write = self.writeSequence = self.data_received = _drop

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed" if self.disconnected else "not connected"
        return f"<{type(self).__name__} to {self._peer}, {state}>"

    # What uvloop calls.

    def connection_made(self, uv: Any) -> None:
        """Build the protocol and connect it; reading begins when this returns."""
        build, self._build = self._build, None
        self._uv = uv
        peer = uv.get_extra_info("peername")
        if build is None or peer is None:  # the peer was gone before it was accepted
            self.disconnected = True
            uv.abort()
            return
        uv.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self._open_writing()
        self.connected = True
        self._peer = address_of(peer)
        try:
            protocol = build(self._peer)
            if protocol is None:
                self.loseConnection()
                return
            self.protocol = protocol
            protocol.makeConnection(self)
        except Exception:
            self._fault("A protocol failed while it was connected")
        if self._paused and self.connected:
            self._hold()

    def pause_writing(self) -> None:
        """Over the high-water mark."""
        self._full = True
        if self.producer is not None:
            self.producer.pauseProducing()

    def resume_writing(self) -> None:
        """Under the low-water mark."""
        self._full = False
        if self._write_closed:
            self._tell_write_closed()
        elif self.producer is not None:
            self.producer.resumeProducing()

    def eof_received(self) -> bool:
        """FIN came: the end of the connection, except for a protocol that can be half closed."""
        if self._uv is None:  # detached, and nobody has taken uvloop's transport over yet: see ended
            self._read_closed = True
            return True
        if self._protocol is not None and IHalfCloseableProtocol.providedBy(self._protocol):
            self._read_closed = True
            try:
                self._protocol.readConnectionLost()
            except Exception:
                self._fault("A protocol failed in readConnectionLost")
            return True
        # As Twisted does: who has left will not read what is still unsent.
        self._outbox.flush()
        self._end(main.CONNECTION_DONE)
        self._uv.abort()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell producer, protocol and owner, once."""
        if self.disconnected:
            return
        if self._heeds and isinstance(exc, OSError):
            self._deliver_remains()
        was_connected = self.connected
        self.connected, self.disconnected = False, True
        reason = Failure(self._reason(exc))
        protocol, producer, lost = self._protocol, self.producer, self._lost
        self._protocol = self.producer = self._lost = self._build = self._held = None
        self.write = self.writeSequence = self.data_received = _drop
        self._uv = None
        if not was_connected:
            return
        try:
            if producer is not None:
                producer.stopProducing()
        finally:
            try:
                if protocol is not None:
                    protocol.connectionLost(reason)
            finally:
                if lost is not None:
                    lost(reason)

    # ITransport

    @property
    def protocol(self) -> IProtocol | None:
        """The Twisted protocol that gets this connection's data; assign it to hand the connection over."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: IProtocol) -> None:
        self._protocol = protocol
        self.data_received = protocol.dataReceived
        if self.connected:
            self._uv.set_protocol(self)  # uvloop looks data_received up here, once

    def loseConnection(self) -> None:
        """Stop reading, send what was written, wait for the producer if there is one, close."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        if self.producer is None:
            self._close()
        else:
            self._uv.pause_reading()

    def abortConnection(self) -> None:
        """Close now, by RST: nothing more is sent or received."""
        if not self.connected or isinstance(self._why, error.ConnectionAborted):
            return
        self._outbox.flush()
        self._why = None
        self._end(error.ConnectionAborted())
        handle = self.getHandle()  # None under TLS, once the connection beneath is lost
        if handle is not None:
            with contextlib.suppress(OSError):
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._uv.abort()

    def loseWriteConnection(self) -> None:
        """Send what was written, then FIN; reading goes on."""
        if not self.connected or self.disconnecting or self._write_closed:
            return
        self._outbox.flush()
        self._write_closed = True
        self.write = self.writeSequence = _drop
        unsent = self._uv.get_write_buffer_size()
        self._uv.write_eof()
        if unsent:
            self._uv.set_write_buffer_limits(*self._drain_limits)
        else:
            self._loop.call_soon(self._tell_write_closed)

    def heed_remains(self, heed: bool) -> None:
        """See :func:`flowstack.transport.kernel.heed_remains`."""
        self._heeds = heed

    def _deliver_remains(self) -> None:
        try:
            for data in remains(self.getHandle().fileno()):
                self.data_received(data)
        except Exception:
            self._fault("A protocol failed in dataReceived")

    def unsent_bytes(self) -> int:
        """How many bytes of what was written the kernel has not taken yet."""
        if self._uv is None:
            return 0
        self._outbox.flush()
        return cast(int, self._uv.get_write_buffer_size())

    # IPushProducer: reading

    def pauseProducing(self) -> None:
        """Read no more; while this lasts, the peer's closing goes unnoticed."""
        if self.connected:
            self._paused = True
            self._uv.pause_reading()

    def resumeProducing(self) -> None:
        """Read again."""
        if not self.connected or self.disconnecting or self._read_closed:
            return
        self._paused = False
        if self._held is None:
            self._uv.resume_reading()
        else:
            self._loop.call_soon(self._release)

    def stopProducing(self) -> None:
        """Close, as :meth:`loseConnection` does."""
        self.loseConnection()

    # IConsumer: writing

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer be paused and resumed by what is unsent.

        :raises RuntimeError: while another is registered.
        """
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} was never unregistered."
            )
        if not self.connected:
            producer.stopProducing()
        elif streaming:
            self.producer = producer
            if self._full:
                producer.pauseProducing()
        else:
            self._outbox.flush()
            Pulled(self, producer).start()

    def unregisterProducer(self) -> None:
        """Forget the producer, and close if that was what a ``loseConnection`` waited for."""
        producer, self.producer = self.producer, None
        if not self.connected:
            return
        if isinstance(producer, Pulled) and not self._write_closed:
            self._open_writing()
            self._uv.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        if self.disconnecting:
            self._close()

    def stopConsuming(self) -> None:  # noqa: N802
        """Forget the producer and close."""
        self.unregisterProducer()
        self.loseConnection()

    # Within.

    @property
    def ended(self) -> bool:
        """Whether the peer has closed since this was detached."""
        return self._read_closed

    def detach(self) -> tuple[Any, Lost | None]:
        """Give uvloop's transport away, for TLS to be put on it; this object is then closed, and tells nobody.

        :raises twisted.internet.error.ConnectionLost: when there is nothing to give.
        """
        uv, lost = self._uv, self._lost
        if not self.connected or self.disconnecting:
            raise error.ConnectionLost("closed before the TLS handshake")
        self._outbox.flush()
        self.connected, self.disconnected = False, True
        self._uv = self._lost = self._protocol = None
        self.write = self.writeSequence = self.data_received = _drop
        return uv, lost

    def _open_writing(self) -> None:
        self.write = partial(self._outbox.put, self)
        self.writeSequence = self._write_sequence

    def _write_sequence(self, pieces: Iterable[bytes]) -> None:
        self._outbox.flush()
        self._uv.writelines(pieces)

    def _close(self) -> None:
        self._outbox.flush()
        self._end(main.CONNECTION_DONE)
        self._uv.close()

    def _end(self, why: BaseException) -> None:
        self._why = self._why or why
        self.disconnecting = True
        self.write = self.writeSequence = _drop

    def _fault(self, what: str) -> None:
        log.failure("{what}; its connection is closed.", what=what)
        if self.connected:
            why = cast(BaseException, Failure().value)
            self._outbox.flush()
            self._end(why)
            self._uv.abort()

    def _reason(self, exc: BaseException | None) -> BaseException:
        if self._why is not None and (exc is None or isinstance(self._why, error.ConnectionAborted)):
            return self._why
        if exc is None or isinstance(exc, OSError):
            return error.ConnectionLost(str(exc) if exc else "closed without notice")
        return exc

    def _tell_write_closed(self) -> None:
        if self.connected and self._protocol is not None and IHalfCloseableProtocol.providedBy(self._protocol):
            try:
                self._protocol.writeConnectionLost()
            except Exception:
                self._fault("A protocol failed in writeConnectionLost")

    def _hold(self) -> None:
        """Keep a pause that was asked for in ``connectionMade``: uvloop starts reading after it all the same."""
        self._held = []
        self.data_received = self._keep
        self._uv.set_protocol(self)

    def _keep(self, data: bytes) -> None:
        assert self._held is not None
        self._held.append(data)
        self._uv.pause_reading()

    def _release(self) -> None:
        if self._paused or self._held is None or self._protocol is None:
            return
        data, self._held = b"".join(self._held), None
        self.protocol = self._protocol
        try:
            if data:
                self._protocol.dataReceived(data)
        except Exception:
            self._fault("A protocol failed in dataReceived")
        if not self._paused:
            self.resumeProducing()
