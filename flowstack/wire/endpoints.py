"""Where Flowstack listens and whom it connects to, on whichever reactor runs.

One endpoint string or one upstream gives an endpoint whose transports are uvloop's where the reactor runs on uvloop,
and Twisted's own elsewhere. Both behave the same; ``tests/wire/uv_cases.py`` is the table of what that means.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    serverFromString,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import (
    IHandshakeListener,
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from flowstack.wire.tls import (
    CertificateFault,
    Identity,
    TlsError,
    client_context,
    client_options,
    handshake_words,
    is_address,
    mismatch,
    verify_words,
)
from flowstack.wire.uv_reactor import BACKLOG, AdoptedUnixPort, LoopPort, LoopReactor, uv_reactor
from flowstack.wire.uv_tls import SHUTDOWN_TIMEOUT, TlsConnection
from flowstack.wire.uv_transport import Connection

CONNECT_TIMEOUT = 30.0
"""Seconds for each of connecting and the TLS handshake, unless the caller cancels before."""


def server_endpoint(reactor: Any, description: str, fileno: int | None = None) -> IStreamServerEndpoint:
    """Return the endpoint that a Twisted endpoint string means.

    ``tcp:``, ``tcp6:``, ``unix:``, ``systemd:`` and plugins' strings as Twisted reads them, with a backlog of 1024
    where none is given. ``ssl:`` with Twisted's own fields gives a :class:`TlsServerEndpoint`.

    :param fileno: a socket that a parent process bound for this string; it is used, and closed after ``listen``, and
        of the string only what is not about binding counts.
    :raises ValueError: when the string cannot be understood, or its certificate not be used
        (:class:`flowstack.wire.tls.CertificateFault`).
    """
    positional, named = _fields(description)
    kind = positional[0]
    if kind == "ssl":
        return _ssl_endpoint(reactor, positional, named, fileno)
    if fileno is not None:
        return _adopted(uv_reactor(reactor), fileno)
    if kind in ("tcp", "tcp6", "unix") and "backlog" not in named:
        description += f":backlog={BACKLOG}"
    served = uv_reactor(reactor)
    try:
        return cast(IStreamServerEndpoint, serverFromString(_Adopting.on(served), description))
    except TypeError as fault:  # an argument that the string's kind does not know
        raise ValueError(f"{description}: {fault}") from None
    except LookupError:
        if kind != "systemd":
            raise
        raise ValueError(
            "systemd handed over no such socket; start Flowstack by its socket unit, or listen on tcp:, ssl: or unix:"
        ) from None


def reload_certificates() -> list[str]:
    """Read the certificates of this process's TLS listeners anew; connections yet to come get the new ones.

    :return: for each listener that kept its old certificate because the new one is bad, the file and the reason.
    """
    faults = [listener.reload() for listener in list(_tls_listeners)]
    return [fault for fault in faults if fault is not None]


def client_endpoint(
    reactor: Any, host: str, port: int, tls: bool, ca_file: Path | None = None, timeout: float = CONNECT_TIMEOUT
) -> IStreamClientEndpoint:
    """Return the endpoint of an upstream.

    Several addresses of a name are tried as :class:`~twisted.internet.endpoints.HostnameEndpoint` does. ``connect``
    fires when the connection is usable, with TLS not before the server was verified; it fails with
    :class:`flowstack.wire.tls.TlsError` or another of Twisted's ``ConnectError`` family, or ``DNSLookupError``.
    Cancelling it closes the socket. Make one endpoint for an upstream and keep it: it holds the trusted authorities.

    :param host: a name, or an IP address without brackets.
    :param tls: whether to speak TLS.
    :param ca_file: PEM file of the only authorities trusted; None means the system's.
    :param timeout: seconds for each of connecting and the handshake.
    :raises flowstack.wire.tls.CertificateFault: when ``ca_file`` cannot be used.
    """
    reactor = uv_reactor(reactor)
    kind = TCP4ClientEndpoint if ":" not in host else TCP6ClientEndpoint
    plain: Any = (kind if is_address(host) else HostnameEndpoint)(reactor, host, port, timeout)
    if not tls:
        return _Endpoint(plain, lambda stage, factory: _hand_over(stage.transport, "protocol", factory))
    if isinstance(reactor, LoopReactor):
        context = client_context(ca_file)
        loop = reactor.loop
        return _Endpoint(
            plain, lambda stage, factory: _encrypted(loop, cast(Any, stage.transport), factory, context, host, timeout)
        )
    wrapped = wrapClientTLS(_Verifying(client_options(ca_file), host), plain, reactor)
    return _Endpoint(wrapped, lambda stage, factory: _verified(reactor, stage, factory, host, timeout))


@implementer(IStreamServerEndpoint)
class TlsServerEndpoint:
    """A TLS listener whose certificate can be read anew.

    :param identity: where the certificate is.
    :param endpoint: what listens.
    """

    def __init__(self, identity: Identity, endpoint: IStreamServerEndpoint) -> None:
        self._identity = identity
        self._endpoint = endpoint
        self._port: Any = None

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listen."""
        return self._endpoint.listen(protocolFactory).addCallback(self._listening)

    def reload(self) -> str | None:
        """Read certificate and key again.

        :return: None, or why the old ones are kept.
        """
        if self._port is None or not self._port.connected:
            return None
        try:
            self._load()
        except CertificateFault as fault:
            return str(fault)
        return None

    def _listening(self, port: IListeningPort) -> IListeningPort:
        self._port = port
        _tls_listeners.add(self)
        return port

    def _load(self) -> None:
        raise NotImplementedError


_tls_listeners: WeakSet[TlsServerEndpoint] = WeakSet()
"""Those that listen: a port keeps its endpoint alive."""


class _LoopTlsServer(TlsServerEndpoint):
    def __init__(self, _reactor: LoopReactor, identity: Identity, plain: IStreamServerEndpoint) -> None:
        super().__init__(identity, plain)
        self._context = identity.context()

    def _listening(self, port: IListeningPort) -> IListeningPort:
        cast(LoopPort, port).use(self._context, self)
        return super()._listening(port)

    def _load(self) -> None:
        self._context = self._identity.context()
        self._port.use(self._context, self)


@implementer(IOpenSSLServerConnectionCreator)
class _OpenSslServer(TlsServerEndpoint):
    def __init__(self, reactor: Any, identity: Identity, plain: IStreamServerEndpoint) -> None:
        super().__init__(identity, wrapServerTLS(cast(IOpenSSLServerConnectionCreator, self), plain, reactor))
        self._options = identity.options()

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        """Begin a server's side of TLS, with the certificate as of now."""
        connection = self._options.serverConnectionForTLS(tlsProtocol)
        connection.set_accept_state()
        return connection

    def _load(self) -> None:
        self._options = self._identity.options()


class _Adopting:
    """One of Twisted's reactors that adopts UNIX sockets as what they are: somebody else's."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor))

    @classmethod
    def on(cls, reactor: Any) -> Any:
        """The reactor, wrapped where it needs it."""
        return cls(reactor) if isinstance(reactor, PosixReactorBase) else reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> IListeningPort:  # noqa: N803
        if addressFamily != socket.AF_UNIX:
            return cast(IListeningPort, self._reactor.adoptStreamPort(fileDescriptor, addressFamily, factory))
        port = AdoptedUnixPort._fromListeningDescriptor(self._reactor, fileDescriptor, factory)
        port.startListening()
        return cast(IListeningPort, port)


def _adopted(reactor: Any, fileno: int) -> IStreamServerEndpoint:
    with socket.socket(fileno=os.dup(fileno)) as look:
        family = look.family
    endpoint = AdoptedStreamServerEndpoint(_Adopting.on(reactor), fileno, family)
    return cast(IStreamServerEndpoint, endpoint)


def _ssl_endpoint(reactor: Any, positional: list[str], named: dict[str, str], fileno: int | None) -> TlsServerEndpoint:
    known = ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters")
    given = dict(zip(known, positional[1:], strict=False)) | named
    unknown = sorted(given.keys() - set(known))
    if unknown or "port" not in given:
        raise ValueError(
            f"ssl: {'unknown field ' + ', '.join(unknown) if unknown else 'the port is missing'}; "
            "expected ssl:<port>:privateKey=<file>:certKey=<file> and, if wanted, " + ", ".join(known[3:])
        )
    method = given.get("sslmethod")
    if method not in (None, "TLS_METHOD", "SSLv23_METHOD", "TLSv1_2_METHOD"):
        raise ValueError(f"ssl: sslmethod={method} is not served; expected TLS_METHOD or TLSv1_2_METHOD")
    key = Path(given.get("privateKey", "server.pem"))
    identity = Identity(
        certificate=Path(given["certKey"]) if "certKey" in given else key,
        key=key,
        chain=Path(given["extraCertChain"]) if "extraCertChain" in given else None,
        dh=Path(given["dhParameters"]) if "dhParameters" in given else None,
        only_1_2=method == "TLSv1_2_METHOD",
    )
    try:
        port, backlog = int(given["port"]), int(given.get("backlog", BACKLOG))
    except ValueError:
        raise ValueError("ssl: port and backlog are numbers") from None
    served = uv_reactor(reactor)
    plain: Any = TCP4ServerEndpoint(served, port, backlog, given.get("interface", ""))
    if fileno is not None:
        plain = _adopted(served, fileno)
    return (_LoopTlsServer if isinstance(served, LoopReactor) else _OpenSslServer)(served, identity, plain)


def _fields(description: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an endpoint string: fields at ``:``, names at the first ``=``, ``\`` takes either's meaning away."""
    positional, named = [], {}
    for part in re.split(r"(?<!\\):", description):
        name, equals, value = re.match(r"((?:\\.|[^\\=])*)(=?)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if equals:
            named[name] = re.sub(r"\\(.)", r"\1", value)
        else:
            positional.append(re.sub(r"\\(.)", r"\1", name))
    return positional, named


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

    async def run() -> None:
        try:
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

    def __init__(self, options: Any, host: str) -> None:
        self._options = options
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        """Begin a client's side of TLS; the chain is verified during the handshake, the name by :func:`_verified`."""
        connection = self._options.clientConnectionForTLS(tlsProtocol)
        if not is_address(self._host):
            connection.set_tlsext_host_name(self._host.encode("idna"))
        stage = tlsProtocol.wrappedProtocol

        def verify(_connection: SSL.Connection, _certificate: Any, code: int, _depth: int, good: int) -> bool:
            if not good and stage.refused is None:
                stage.refused = verify_words(code)
            return bool(good)

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return cast(SSL.Connection, connection)


def _verified(reactor: Any, stage: _Stage, factory: IProtocolFactory, host: str, timeout: float) -> Deferred[IProtocol]:
    """Wait for pyOpenSSL's handshake, then for the right name in the certificate; only then is the protocol built."""
    transport: Any = stage.transport

    def begin(_: None) -> IProtocol:
        wrong = mismatch(transport.getHandle(), host)
        if wrong is not None:
            transport.abortConnection()
            raise TlsError(host, wrong)
        return _hand_over(transport, "wrappedProtocol", factory)

    def refused(failure: Failure) -> Failure:
        if failure.check(defer.CancelledError):
            return failure
        return Failure(TlsError(host, stage.refused or handshake_words(cast(BaseException, failure.value))))

    stage.ready = Deferred(lambda _: transport.abortConnection())
    return stage.ready.addTimeout(timeout, reactor).addCallbacks(begin, refused)
