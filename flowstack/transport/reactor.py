"""A reactor whose streams are uvloop's.

``twistd`` loads :mod:`flowstack.tap` before it installs a reactor, so :func:`install` can put Twisted's asyncio reactor
on a uvloop loop there. :func:`uv_reactor` then gives an object that stands for that reactor wherever an endpoint wants
one: ports and connections made through it are uvloop's (:mod:`flowstack.transport.connection`), all else is the
reactor's own. On any other reactor it changes nothing.

Binding, adopting, addresses, lock files and life cycles are Twisted's own ports and connectors; only the descriptor's
watcher is replaced.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import uvloop
from twisted.internet import asyncioreactor, error, tcp, unix
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IListeningPort,
    IProtocol,
    IReactorCore,
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
)
from twisted.logger import Logger
from twisted.python import lockfile
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from flowstack.transport.connection import Connection
from flowstack.transport.outbox import outbox_of
from flowstack.transport.tls_connection import SHUTDOWN_TIMEOUT, TlsConnection

log = Logger()

GONE = os.strerror(errno.ECONNRESET)

BACKLOG = 1024
"""Connections that wait to be accepted; the kernel caps it at ``net.core.somaxconn``."""

Make = Callable[[], Connection]
Connect = Callable[[Make], Coroutine[Any, Any, Any]]


def install() -> IReactorCore:
    """Install Twisted's asyncio reactor on a new uvloop loop, unless a reactor is installed.

    :return: the installed reactor, whoever installed it.
    """
    if "twisted.internet.reactor" not in sys.modules:
        loop = uvloop.new_event_loop()
        loop.set_exception_handler(_log_fault)
        asyncio.set_event_loop(loop)
        asyncioreactor.install(loop)
    return cast(IReactorCore, sys.modules["twisted.internet.reactor"])


def _log_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    fault = context.get("exception")
    if fault is None:
        log.error("{message}", message=context.get("message"))
    else:
        log.failure("{message}", Failure(fault), message=context.get("message"))


def uv_loop(reactor: Any) -> asyncio.AbstractEventLoop | None:
    """Return the uvloop loop that a reactor runs on, or None."""
    if isinstance(reactor, asyncioreactor.AsyncioSelectorReactor):
        loop = reactor._asyncioEventloop
        if isinstance(loop, uvloop.Loop):
            return cast(asyncio.AbstractEventLoop, loop)
    return None


def before_writes(reactor: Any) -> Callable[[Callable[[], None]], None] | None:
    """Return what has a function called once, before any of a reactor's connections writes or closes again.

    :return: None where connections write at once, so that nothing can be put off.
    """
    loop = uv_loop(reactor)
    return None if loop is None else partial(outbox_of(loop).before, loop)


def uv_reactor(reactor: Any) -> Any:
    """Return what endpoints should be given as their reactor.

    :return: a :class:`LoopReactor` where the reactor runs on uvloop, otherwise the reactor as it is.
    """
    loop = uv_loop(reactor)
    return reactor if loop is None else LoopReactor(reactor, loop)


class WrappedReactor:
    """A reactor of which a subclass has some methods of its own."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IReactorTCP, IReactorUNIX, IReactorSocket)
class LoopReactor(WrappedReactor):
    """The reactor, with uvloop's streams.

    :ivar loop: the loop beneath.
    """

    def __init__(self, reactor: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reactor)
        self.loop = loop

    def listenTCP(self, port: int, factory: Any, backlog: int = BACKLOG, interface: str = "") -> IListeningPort:
        """Listen.

        :raises twisted.internet.error.CannotListenError: when the address cannot be bound; nothing is open then.
        """
        listening: Any = LoopPort(port, factory, backlog, interface, cast(Any, self))
        listening.startListening()
        return cast(IListeningPort, listening)

    def listenUNIX(  # noqa: N802
        self,
        address: Any,
        factory: Any,
        backlog: int = BACKLOG,
        mode: int = 0o666,
        wantPID: Any = 0,  # noqa: N803
    ) -> IListeningPort:
        """Listen on a path; a stale socket is replaced if ``wantPID`` and its lock is nobody's."""
        listening: Any = LoopUnixPort(address, factory, backlog, mode, self, wantPID)
        listening.startListening()
        return cast(IListeningPort, listening)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> IListeningPort:  # noqa: N803
        """Listen on a copy of a descriptor that is bound, such as systemd's.

        :raises twisted.internet.error.UnsupportedAddressFamily: for anything but INET, INET6 and UNIX.
        """
        listening: Any
        if addressFamily == socket.AF_UNIX:
            listening = cast(Any, AdoptedLoopUnixPort)._fromListeningDescriptor(self, fileDescriptor, factory)
        elif addressFamily in (socket.AF_INET, socket.AF_INET6):
            listening = cast(Any, LoopPort)._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        else:
            raise error.UnsupportedAddressFamily(addressFamily)
        listening.startListening()
        return cast(IListeningPort, listening)

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,  # noqa: N803
    ) -> IConnector:
        """Connect; names are looked up by the loop, their addresses tried in turn."""
        connector = _TcpConnector(host, port, factory, timeout, bindAddress, cast(Any, self))
        connector.connect()
        return cast(IConnector, connector)

    def connectUNIX(  # noqa: N802
        self,
        address: Any,
        factory: Any,
        timeout: float = 30,
        checkPID: Any = 0,  # noqa: N803
    ) -> IConnector:
        """Connect to a path."""
        connector = cast(Any, _UnixConnector)(address, factory, timeout, self, checkPID)
        connector.connect()
        return cast(IConnector, connector)


class _Accepting:
    """What a port does instead of polling its socket: it lets uvloop accept on a copy of it."""

    tls: ssl.SSLContext | None = None
    tls_source: object = None
    handshake_timeout = 0.0
    _server: Any = None
    # Twisted's port has these.
    reactor: Any
    factory: Any
    socket: socket.socket
    backlog: Any

    def startReading(self) -> None:  # noqa: N802
        """Accept."""
        if self._server is not None:
            return
        loop = self.reactor.loop
        kind = Connection if self.tls is None else TlsConnection
        times: dict[str, float] = {}
        if self.tls is not None:
            times = {"ssl_handshake_timeout": self.handshake_timeout, "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT}
        self._server = _at_once(
            loop.create_server(
                partial(kind, loop, self._build),
                sock=self.socket.dup(),
                backlog=self.backlog or socket.SOMAXCONN,
                ssl=self.tls,
                **times,
            )
        )

    def stopReading(self) -> None:  # noqa: N802
        """Accept no more; what was accepted lives on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _build(self, peer: IAddress) -> IProtocol | None:
        return cast("IProtocol | None", self.factory.buildProtocol(peer))

    def use(self, context: ssl.SSLContext, source: object, handshake_timeout: float) -> None:
        """Speak TLS with this context on connections yet to come. The kernel's queue is kept, so none is refused.

        :param source: is kept alive with the port.
        :param handshake_timeout: seconds that a client has for its handshake.
        """
        self.tls, self.tls_source, self.handshake_timeout = context, source, handshake_timeout
        if self._server is not None:
            self.stopReading()
            self.startReading()


class LoopPort(_Accepting, tcp.Port):
    """A TCP port."""


class LoopUnixPort(_Accepting, unix.Port):
    """A UNIX port."""


class _Adopted:
    """What a UNIX port does not do to a socket that others made and share: set its mode, remove it, shut it down."""

    @classmethod
    def _fromListeningDescriptor(cls, reactor: Any, fd: int, factory: Any) -> Any:  # noqa: N802
        self: Any = cast(Any, super())._fromListeningDescriptor(reactor, fd, factory)
        self._bindPath = b"\0" + self._bindPath  # a name that is no path: Twisted leaves such alone
        self._shouldShutdown = False
        self.backlog = BACKLOG
        return self


class AdoptedUnixPort(_Adopted, unix.Port):  # type: ignore[misc]
    """An adopted UNIX port with Twisted's own transports."""


class AdoptedLoopUnixPort(_Adopted, LoopUnixPort):  # type: ignore[misc]
    """An adopted UNIX port."""


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has nothing to wait for: uvloop's ``create_server`` on a bound socket is one."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("create_server on a bound socket was expected to finish at once")


class Attempt:
    """One attempt to connect; to Twisted's connector it is the transport, until there is one.

    :param connector: Twisted's, or what has ``reactor``, ``transport``, ``buildProtocol``, ``connectionFailed`` and
        ``connectionLost`` as those do.
    :param connect: connects what it is given the maker of.
    """

    def __init__(self, connector: Any, connect: Connect) -> None:
        self._connector = connector
        self._over = False
        loop = connector.reactor.loop
        self._connection = Connection(loop, self._build, self._lost)
        self._task = loop.create_task(connect(lambda: self._connection))
        self._task.add_done_callback(self._ended)

    def _build(self, peer: IAddress) -> IProtocol | None:
        if self._over:  # given up while uvloop was connecting
            return None
        self._over = True
        self._connector.transport = self._connection
        return cast("IProtocol | None", self._connector.buildProtocol(peer))

    def _lost(self, reason: Failure) -> None:
        self._connector.transport = None
        self._connector.connectionLost(reason)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        # Without a fault and without a protocol: the peer was gone again before its address could be asked for.
        self.failIfNotConnected(connect_error(task.exception() or ConnectionResetError(errno.ECONNRESET, GONE)))

    def failIfNotConnected(self, why: BaseException) -> None:  # noqa: N802
        """Give up, close the socket, tell the factory; nothing once a protocol was built."""
        if self._over:
            return
        self._over = True
        self._connection._lost = None
        self._task.cancel()
        self._connector.connectionFailed(Failure(cast(Exception, why)))

    def loseConnection(self) -> None:
        """Give up."""
        self.failIfNotConnected(error.UserError())


class _TcpConnector(tcp.Connector):
    def _makeTransport(self) -> Any:
        loop = cast(Any, self.reactor).loop
        return Attempt(
            self,
            lambda make: loop.create_connection(make, self.host, self.port, local_addr=_local(self.bindAddress)),
        )


class _UnixConnector(unix.Connector):
    def _makeTransport(self) -> Any:
        loop = cast(Any, self.reactor).loop

        async def connect(make: Make) -> None:
            path = self.address if isinstance(self.address, bytes) else self.address.encode()
            if self.checkPID and not lockfile.isLocked(path + b".lock"):
                raise error.BadFileError(path)
            await loop.create_unix_connection(make, path)

        return Attempt(self, connect)


def _local(binding: Any) -> tuple[str, int] | None:
    if binding is None:
        return None
    host, port = binding if isinstance(binding, tuple) else (binding._address, binding._port)
    return host or "0.0.0.0", port or 0


def connect_error(fault: BaseException) -> BaseException:
    """Return the member of Twisted's ``ConnectError`` family that stands for what asyncio raised."""
    if isinstance(fault, error.ConnectError):
        return fault
    if isinstance(fault, socket.gaierror):
        return error.DNSLookupError(fault.strerror)
    if isinstance(fault, OSError) and fault.errno:
        return cast(BaseException, error.getConnectError((fault.errno, fault.strerror or str(fault))))
    return error.ConnectError(string=str(fault))
