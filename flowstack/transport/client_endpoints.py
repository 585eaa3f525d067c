"""How Flowstack connects to an upstream, on whichever reactor runs.

The transports are uvloop's where the reactor runs on uvloop, and Twisted's own elsewhere. Both behave the same;
``tests/transport/uv_cases.py`` is the table of what that means.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from flowstack.config.ways import Way
from flowstack.transport.connection import Connection
from flowstack.transport.reactor import Attempt, LoopReactor, uv_reactor
from flowstack.transport.socket import address_of
from flowstack.transport.tls import (
    TlsError,
    expect_host,
    handshake_words,
    is_address,
    verify_words,
)
from flowstack.transport.tls_connection import SHUTDOWN_TIMEOUT, TlsConnection
from flowstack.transport.ways import Tunnel, WayFiles

DIRECT = Way()

CONNECT_TIMEOUT = 30.0
"""Seconds for each of connecting and the TLS handshake, unless the caller cancels before."""


def client_endpoint(
    reactor: Any, host: str, port: int, tls: bool, way: Way = DIRECT, timeout: float = CONNECT_TIMEOUT
) -> IStreamClientEndpoint:
    """Return the endpoint of an upstream.

    Several addresses of a name are tried as :class:`~twisted.internet.endpoints.HostnameEndpoint` does. ``connect``
    fires when the connection is usable, with TLS not before the server was verified; it fails with
    :class:`flowstack.transport.tls.TlsError` or another of Twisted's ``ConnectError`` family, or ``DNSLookupError``.
    Cancelling it closes the socket. Make one endpoint for an upstream and keep it: it holds the trusted authorities.

    :param host: a name, or an IP address without brackets.
    :param tls: whether to speak TLS.
    :param way: by which it is reached, and what TLS is spoken with.
    :param timeout: seconds for each of connecting and the handshake.
    :raises flowstack.transport.tls.CertificateFault: when a file of the way's cannot be used.
    """
    reactor = uv_reactor(reactor)
    files = WayFiles(way, tls, isinstance(reactor, LoopReactor))
    plain: Any
    if way.socket is not None:
        plain = UNIXClientEndpoint(reactor, os.fspath(way.socket), timeout)
    elif way.proxy is not None:
        proxy = urlsplit(way.proxy)
        assert proxy.hostname is not None and proxy.port is not None
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        plain = Tunnel(_tcp(reactor, proxy.hostname, proxy.port, timeout), proxy.netloc, authority, files)
    else:
        plain = _tcp(reactor, host, port, timeout)
        if isinstance(plain, _AddressEndpoint) and not tls:
            return plain
    if not tls:
        return _Endpoint(plain, lambda stage, factory: _hand_over(stage.transport, "protocol", factory))
    if isinstance(reactor, LoopReactor):
        loop = reactor.loop
        return _Endpoint(
            plain,
            lambda stage, factory: _encrypted(loop, cast(Any, stage.transport), factory, files.tls, host, timeout),
        )
    wrapped = wrapClientTLS(_Verifying(files, host), plain, reactor)
    return _Endpoint(wrapped, lambda stage, factory: _verified(reactor, stage, factory, host, timeout))


def _tcp(reactor: Any, host: str, port: int, timeout: float) -> Any:
    """Several addresses of a name are tried as RFC 8305 has it, IPv6 and IPv4 in turn."""
    if not is_address(host):
        return HostnameEndpoint(reactor, host, port, timeout)
    if isinstance(reactor, LoopReactor):
        return _AddressEndpoint(reactor, host, port, timeout)
    return (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(reactor, host, port, timeout)


@implementer(IStreamClientEndpoint)
class _AddressEndpoint:
    """Connects to an address by uvloop.

    Twisted's endpoint puts a connector, a delayed call of the reactor's and a wrapper of the protocol between: half of
    what it costs to connect.
    """

    def __init__(self, reactor: LoopReactor, host: str, port: int, timeout: float) -> None:
        self._reactor = reactor
        self._host, self._port = host, port
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._host} {self._port}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect."""
        loop, host, port = self._reactor.loop, self._host, self._port
        connecting = _Connecting(self._reactor, protocolFactory)
        attempt = Attempt(connecting, lambda make: loop.create_connection(make, host, port))

        def cancel(_: Deferred[IProtocol]) -> None:
            attempt.failIfNotConnected(error.ConnectingCancelledError(address_of((host, port))))

        connecting.timer = loop.call_later(self._timeout, attempt.failIfNotConnected, error.TimeoutError())
        connecting.done = Deferred(cancel)
        return connecting.done


class _Connecting:
    """To an :class:`Attempt` the connector, and to a connection the protocol, until it makes way for the true one."""

    transport: Any = None
    timer: asyncio.TimerHandle
    done: Deferred[IProtocol]

    def __init__(self, reactor: LoopReactor, factory: IProtocolFactory) -> None:
        self.reactor = reactor
        self._factory = factory

    def buildProtocol(self, _addr: IAddress) -> _Connecting:
        """It is connected."""
        self.timer.cancel()
        return self

    def makeConnection(self, transport: Connection) -> None:
        """Hand the connection over."""
        try:
            protocol = _hand_over(transport, "protocol", self._factory)
        except Exception:
            self.done.errback()
        else:
            self.done.callback(protocol)

    def dataReceived(self, data: bytes) -> None:
        """See ``IProtocol``."""

    def connectionFailed(self, reason: Failure) -> None:  # noqa: N802
        """It could not be connected, or was given up."""
        self.timer.cancel()
        self.done.errback(reason)

    def connectionLost(self, reason: Failure) -> None:
        """See ``IProtocol``."""


@implementer(IHandshakeListener)
class _Stage(Protocol):
    """Stands at a new connection's end until it is usable, then makes way for the protocol proper."""

    ready: Deferred[None] | None = None
    refused: str | None = None

    def handshakeCompleted(self) -> None:  # noqa: N802
        """TLS is up (pyOpenSSL only)."""
        if self.ready is not None and not self.ready.called:
            self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """TLS did not come up, or a connection was lost that nobody waits for."""
        if self.ready is not None and not self.ready.called:
            self.ready.errback(reason)


class _Stages(Factory):
    noisy = False
    protocol = _Stage


Begin = Callable[[_Stage, IProtocolFactory], Any]


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects with a :class:`_Stage`, then begins.

    Twisted's endpoints leave a wrapper between transport and protocol, a Python call for each piece of data; handing
    the transport over leaves none.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, begin: Begin) -> None:
        self._endpoint = endpoint
        self._begin = begin

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint!r}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect."""
        connecting: Deferred[Any] = self._endpoint.connect(cast(IProtocolFactory, _Stages()))
        return connecting.addCallback(self._begin, protocolFactory)


def _hand_over(transport: Any, attribute: str, factory: IProtocolFactory) -> IProtocol:
    protocol = factory.buildProtocol(transport.getPeer())
    if protocol is None:
        transport.abortConnection()
        raise error.NoProtocol()
    setattr(transport, attribute, protocol)
    protocol.makeConnection(transport)
    return protocol


def _encrypted(
    loop: asyncio.AbstractEventLoop,
    plain: Connection,
    factory: IProtocolFactory,
    context: ssl.SSLContext,
    host: str,
    timeout: float,
) -> Deferred[IProtocol]:
    """Do uvloop's handshake on a connection; only when the server is verified is the protocol built."""
    uv, lost = plain.detach()
    connection = TlsConnection(loop, factory.buildProtocol, lost)
    connection.raw = uv

    async def run() -> None:
        try:
            if plain.ended or uv.is_closing():  # in the turn before this
                raise ConnectionResetError
            encrypted = await loop.start_tls(
                uv,
                cast(Any, connection),
                context,
                server_hostname=host,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
            if connection.disconnected:
                raise ConnectionResetError
        except BaseException as fault:
            uv.abort()  # start_tls leaves the socket open when it is cancelled early
            if not done.called:
                done.errback(TlsError(host, handshake_words(fault)))
            return
        connection.connection_made(encrypted)
        if connection.protocol is None:
            done.errback(error.NoProtocol())
        else:
            done.callback(connection.protocol)

    task = loop.create_task(run())

    def cancel(_: Deferred[IProtocol]) -> None:
        task.cancel()
        uv.abort()

    done: Deferred[IProtocol] = Deferred(cancel)
    return done


@implementer(IOpenSSLClientConnectionCreator)
class _Verifying:
    """Begins TLS as a client by pyOpenSSL; keeps OpenSSL's reason for a refusal, which its exception does not say."""

    def __init__(self, files: WayFiles, host: str) -> None:
        self._files = files
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        """Begin a client's side of TLS; chain and name are verified during the handshake."""
        connection = self._files.tls.clientConnectionForTLS(tlsProtocol)
        expect_host(connection, self._host)
        if not is_address(self._host):
            connection.set_tlsext_host_name(self._host.encode("idna"))
        stage, host = tlsProtocol.wrappedProtocol, self._host

        def verify(_connection: SSL.Connection, _certificate: Any, code: int, _depth: int, good: int) -> bool:
            if not good and stage.refused is None:
                stage.refused = verify_words(code, host)
            return bool(good)

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return cast(SSL.Connection, connection)


def _verified(reactor: Any, stage: _Stage, factory: IProtocolFactory, host: str, timeout: float) -> Deferred[IProtocol]:
    """Wait for pyOpenSSL's handshake, in which the server is verified; only then is the protocol built."""
    transport: Any = stage.transport

    def refused(failure: Failure) -> Failure:
        if failure.check(defer.CancelledError):
            return failure
        return Failure(TlsError(host, stage.refused or handshake_words(cast(BaseException, failure.value))))

    stage.ready = Deferred(lambda _: transport.abortConnection())
    return stage.ready.addTimeout(timeout, reactor).addCallbacks(
        lambda _: _hand_over(transport, "wrappedProtocol", factory), refused
    )
