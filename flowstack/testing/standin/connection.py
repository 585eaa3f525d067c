"""One connection: h11 on a Twisted protocol, and the ways to wait for its socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any, TypeVar

import h11
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPullProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flowstack.testing.standin.journal import Journal

log = Logger()

T = TypeVar("T")

_HEAD = 128 * 1024
_UNREAD = 256 * 1024
_LINGER = 2.0


class Gone(Exception):
    """The peer closed the connection."""


@implementer(IPullProducer)
class Connection(Protocol):
    """One client's connection; its requests are taken in turn by one coroutine, which waits here for the socket.

    Every write waits until the operating system has taken it: that is the backpressure, and it means that a reset asked
    for after ``n`` bytes comes after them.

    :param serve: takes one request; whether the connection can carry another. Its :class:`Gone` ends the connection.
    """

    transport: Any

    def __init__(self, reactor: Any, journal: Journal, serve: Callable[[Connection], Awaitable[bool]]) -> None:
        self._reactor = reactor
        self._journal = journal
        self._take = serve
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        self.lost: Deferred[None] = Deferred()
        self.is_lost = False
        self._ending = False
        self.number = 0
        self._waiting: Deferred[Any] | None = None
        self._arrived: Deferred[None] | None = None
        self._drained: Deferred[None] | None = None
        self._unread = 0
        self._discarding = False
        self._receive: Callable[[bytes], None] = self.h11.receive_data

    def connectionMade(self) -> None:
        """Twisted: begin to serve."""
        self.number = self._journal.opened()
        # Under TLS the producer belongs to the socket below: TLS would ask a pull producer for more in a busy loop.
        self._socket: Any = getattr(self.transport, "transport", self.transport)
        if ITCPTransport.providedBy(self._socket):
            self._socket.setTcpNoDelay(True)
        self._socket.registerProducer(self, False)
        Deferred.fromCoroutine(self._serve()).addErrback(self._crashed)

    def dataReceived(self, data: bytes) -> None:
        """Twisted: give h11, or who took over, what came; read no further where nobody takes it."""
        if self._discarding:
            return
        self._receive(data)
        self._unread += len(data)
        if self._arrived is not None:
            self.wake()
        elif self._unread > _UNREAD:
            self.hold()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted: whoever waits for the socket hears that it is gone."""
        self.is_lost = True
        self._journal.closed(self.number)
        if self._waiting is not None:
            self._waiting.cancel()
        self.lost.callback(None)

    def resumeProducing(self) -> None:
        """Twisted: all that was written is with the operating system."""
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)

    def stopProducing(self) -> None:
        """The socket is gone; :meth:`connectionLost` says so too."""

    async def wait(self, what: Deferred[T]) -> T:
        """Wait, but no longer than the connection lasts.

        :raises Gone: where the peer closed it.
        """
        if self.is_lost:
            raise Gone
        self._waiting = what
        try:
            return await what
        except CancelledError:
            raise Gone from None
        finally:
            self._waiting = None

    async def pause(self, seconds: float) -> None:
        """Let time pass; none at all for 0."""
        if seconds:
            await self.wait(deferLater(self._reactor, seconds))

    async def forever(self) -> None:
        """Wait until the peer leaves."""
        await self.wait(Deferred())

    async def more(self, seconds: float | None = None) -> None:
        """Wait for further bytes, but no longer than so many seconds."""
        self.taken()
        arrived: Deferred[None] = Deferred()
        self._arrived = arrived
        alarm = None if seconds is None else self._reactor.callLater(seconds, self.wake)
        try:
            await self.wait(arrived)
        finally:
            if alarm is not None and alarm.active():
                alarm.cancel()

    def taken(self) -> None:
        """All that came has been taken: read on."""
        self._unread = 0
        self.release()

    def wake(self) -> None:
        """Have :meth:`more` return, as if something had come."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.callback(None)

    def take_over(self, receive: Callable[[bytes], None]) -> bytes:
        """Let go of HTTP: from now on what comes is for ``receive``.

        :return: what has come already, behind the last request.
        """
        self._receive = receive
        return bytes(self.h11.trailing_data[0])

    async def send(self, data: bytes) -> None:
        """Write, and wait until the operating system has all of it."""
        if data:
            if self.is_lost:
                raise Gone
            self._drained = Deferred()
            self.transport.write(data)
            await self.wait(self._drained)

    def now(self) -> float:
        """Seconds since the epoch."""
        return float(self._reactor.seconds())

    def hold(self) -> None:
        """Read nothing from the socket; until :meth:`release` it also goes unnoticed that the peer has left."""
        if not self.is_lost:
            self.transport.pauseProducing()

    def read_little(self, size: int) -> None:
        """From now on take at most so many bytes at a time, and let the operating system hold few for us."""
        self._socket.bufferSize = size
        handle = self._socket.getHandle()
        if handle is not None:
            handle.setsockopt(SOL_SOCKET, SO_RCVBUF, 65536)

    def release(self) -> None:
        """Read again."""
        if not self.is_lost:
            self.transport.resumeProducing()

    def close(self) -> None:
        """End in order: FIN."""
        if not self.is_lost and not self._ending:
            self._ending = True
            self._socket.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """End at once: RST, under TLS too without a word of farewell."""
        if not self.is_lost:
            self._ending = True
            self._socket.abortConnection()

    async def linger(self) -> None:
        """End in order though the request was not read: FIN, then throw away what still comes (RFC 9112 §9.6).

        Closing at once would reset the connection, and the peer might lose the answer that it has not read yet.
        """
        self._discarding = True
        self.release()
        if self.transport is not self._socket:  # TLS cannot close one way only
            self.close()
            return
        self._socket.unregisterProducer()
        self.transport.loseWriteConnection()
        await self.pause(_LINGER)
        self.abort()

    async def _serve(self) -> None:
        try:
            while await self._take(self):
                self.h11.start_next_cycle()
        except Gone:
            return
        self.close()

    def _crashed(self, failure: Failure) -> None:
        log.failure("stand-in: a request made it fail", failure)
        self.abort()
