"""Where Flowstack listens and whom it connects to, on whichever reactor runs.

One endpoint string or one upstream gives an endpoint whose transports are uvloop's where the reactor runs on uvloop,
and Twisted's own elsewhere. Both behave the same; ``tests/wire/uv_cases.py`` is the table of what that means.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    serverFromString,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

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
from flowstack.wire.uv_reactor import BACKLOG, LoopPort, LoopReactor, uv_reactor
from flowstack.wire.uv_tls import SHUTDOWN_TIMEOUT, TlsConnection
from flowstack.wire.uv_transport import Connection

CONNECT_TIMEOUT = 30.0
"""Seconds for each of connecting and the TLS handshake, unless the caller cancels before."""


def server_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that a Twisted endpoint string means.

    ``tcp:``, ``tcp6:``, ``unix:``, ``systemd:`` and plugins' strings as Twisted reads them, with a backlog of 1024
    where none is given. ``ssl:`` with Twisted's own fields gives a :class:`TlsServerEndpoint`.

    :raises ValueError: when the string cannot be understood, or its certificate not be used
        (:class:`flowstack.wire.tls.CertificateFault`).
    """
    positional, named = _fields(description)
    kind = positional[0]
    if kind == "ssl":
        return _ssl_endpoint(reactor, positional, named)
    if kind in ("tcp", "tcp6", "unix") and "backlog" not in named:
        description += f":backlog={BACKLOG}"
    try:
        return cast(IStreamServerEndpoint, serverFromString(uv_reactor(reactor), description))  # type: ignore[no-untyped-call]
    except TypeError as fault:  # an argument that the string's kind does not know
        raise ValueError(f"{description}: {fault}") from None


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
        return _Endpoint(
            plain,
            lambda stage, factory: _Handshake(
                reactor.loop, cast(Connection, stage.transport), factory, context, host, timeout
            ).done,
        )
    wrapped = wrapClientTLS(_Verifying(client_options(ca_file), host), plain, reactor)
    return _Endpoint(wrapped, lambda stage, factory: _verified(reactor, stage, factory, host, timeout))


@implementer(IStreamServerEndpoint)
class TlsServerEndpoint:
    """A TLS listener whose certificate can be read anew."""

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listen."""
        raise NotImplementedError

    def reload(self) -> str | None:
        """Read certificate and key again.

        :return: None, or why the old ones are kept.
        """
        raise NotImplementedError


_tls_listeners: WeakSet[TlsServerEndpoint] = WeakSet()
"""Those that listen: a port keeps its endpoint alive."""


class _LoopTlsServer(TlsServerEndpoint):
    def __init__(self, reactor: LoopReactor, identity: Identity, port: int, interface: str, backlog: int) -> None:
        self._reactor = reactor
        self._identity = identity
        self._where = port, interface, backlog
        self._context = identity.context()
        self._ports: WeakSet[LoopPort] = WeakSet()

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listen."""
        port, interface, backlog = self._where
        try:
            listening = self._reactor.listen_tls(port, protocolFactory, self._context, backlog, interface)
        except error.CannotListenError:
            return defer.fail()
        listening.tls_source = self
        self._ports.add(listening)
        _tls_listeners.add(self)
        return defer.succeed(cast(IListeningPort, listening))

    def reload(self) -> str | None:
        """Read certificate and key again."""
        try:
            self._context = self._identity.context()
        except CertificateFault as fault:
            return str(fault)
        for listening in self._ports:
            listening.use(self._context)
        return None


@implementer(IOpenSSLServerConnectionCreator)
class _OpenSslServer(TlsServerEndpoint):
    def __init__(self, reactor: Any, identity: Identity, port: int, interface: str, backlog: int) -> None:
        self._identity = identity
        self._options = identity.options()
        self._endpoint = wrapServerTLS(
            cast(IOpenSSLServerConnectionCreator, self), TCP4ServerEndpoint(reactor, port, backlog, interface), reactor  # type: ignore[no-untyped-call]
        )

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        """Begin a server's side of TLS, with the certificate as of now."""
        connection = self._options.serverConnectionForTLS(tlsProtocol)
        connection.set_accept_state()
        return connection

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listen."""
        _tls_listeners.add(self)
        return self._endpoint.listen(protocolFactory)

    def reload(self) -> str | None:
        """Read certificate and key again."""
        try:
            self._options = self._identity.options()
        except CertificateFault as fault:
            return str(fault)
        return None


def _ssl_endpoint(reactor: Any, positional: list[str], named: dict[str, str]) -> TlsServerEndpoint:
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
    kind = _LoopTlsServer if isinstance(served, LoopReactor) else _OpenSslServer
    return kind(served, identity, port, given.get("interface", ""), backlog)


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

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred(lambda _: cast(Any, self.transport).abortConnection())
        self.refused: str | None = None

    def handshakeCompleted(self) -> None:  # noqa: N802
        """TLS is up (pyOpenSSL only)."""
        if not self.ready.called:
            self.ready.callback(None)

    def connectionLost(self, reason: Failure = Failure(error.ConnectionDone())) -> None:  # type: ignore[no-untyped-call]  # noqa: B008
        """TLS did not come up, or a connection was lost that nobody waits for."""
        if not self.ready.called:
            self.ready.errback(reason)


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
        connecting: Deferred[Any] = self._endpoint.connect(cast(IProtocolFactory, Factory.forProtocol(_Stage)))
        return connecting.addCallback(self._begin, protocolFactory)


def _hand_over(transport: Any, attribute: str, factory: IProtocolFactory) -> IProtocol:
    protocol = factory.buildProtocol(transport.getPeer())
    if protocol is None:
        transport.abortConnection()
        raise error.NoProtocol()
    setattr(transport, attribute, protocol)
    protocol.makeConnection(transport)
    return protocol


class _Handshake:
    """One TLS handshake by uvloop, as a client.

    :ivar done: fires with the connected protocol.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plain: Connection,
        factory: IProtocolFactory,
        context: Any,
        host: str,
        timeout: float,
    ) -> None:
        self.done: Deferred[IProtocol] = Deferred(self._cancel)
        self._loop = loop
        self._uv, lost = plain.detach()
        self._protocol: IProtocol | None = None
        self._factory = factory
        self._host = host
        self._connection = TlsConnection(loop, self._build, lost)
        self._task = loop.create_task(self._run(context, timeout))

    def _build(self, peer: IAddress) -> IProtocol | None:
        self._protocol = self._factory.buildProtocol(peer)
        return self._protocol

    def _cancel(self, _done: Deferred[IProtocol]) -> None:
        self._task.cancel()
        self._uv.abort()

    async def _run(self, context: Any, timeout: float) -> None:
        try:
            encrypted = await self._loop.start_tls(
                self._uv,
                cast(Any, self._connection),
                context,
                server_hostname=self._host,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
            if self._connection.disconnected:
                raise ConnectionResetError
        except BaseException as fault:
            self._uv.abort()
            if not self.done.called:
                self.done.errback(TlsError(self._host, handshake_words(fault)))
            return
        self._connection.connection_made(encrypted)
        if self._protocol is None:
            self.done.errback(error.NoProtocol())
        else:
            self.done.callback(self._protocol)


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


def _verified(
    reactor: Any, stage: _Stage, factory: IProtocolFactory, host: str, timeout: float
) -> Deferred[IProtocol]:
    """Wait for pyOpenSSL's handshake, then for the right name in the certificate; only then is the protocol built."""
    transport: Any = stage.transport

    def begin(_: None) -> IProtocol:
        wrong = mismatch(transport.getHandle(), host)
        if wrong is not None:
            transport.abortConnection()
            raise TlsError(host, wrong)
        return _hand_over(transport, "wrappedProtocol", factory)

    def refused(failure: Failure) -> Failure:
        if failure.check(defer.CancelledError):  # type: ignore[no-untyped-call]
            return failure
        return Failure(TlsError(host, stage.refused or handshake_words(cast(BaseException, failure.value))))  # type: ignore[no-untyped-call]

    return stage.ready.addTimeout(timeout, reactor).addCallbacks(begin, refused)
