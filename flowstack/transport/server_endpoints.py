"""Where Flowstack listens, on whichever reactor runs.

One endpoint string gives an endpoint whose transports are uvloop's where the reactor runs on uvloop, and Twisted's own
elsewhere. Both behave the same; ``tests/transport/uv_cases.py`` is the table of what that means.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ServerEndpoint,
    serverFromString,
    wrapServerTLS,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.posixbase import PosixReactorBase
from zope.interface import implementer

from flowstack.config.endpoints import fields, kind_of
from flowstack.transport.reactor import BACKLOG, AdoptedUnixPort, LoopPort, LoopReactor, WrappedReactor, uv_reactor
from flowstack.transport.tls import CertificateFault, Identity

HANDSHAKE_TIMEOUT = 15.0


def server_endpoint(
    reactor: Any, description: str, fileno: int | None = None, handshake_timeout: float = HANDSHAKE_TIMEOUT
) -> IStreamServerEndpoint:
    """Return the endpoint that a Twisted endpoint string means.

    ``tcp:``, ``tcp6:``, ``unix:``, ``systemd:`` and plugins' strings as Twisted reads them, with a backlog of 1024
    where none is given. ``ssl:`` with Twisted's own fields gives a :class:`TlsServerEndpoint`.

    :param fileno: a socket that a parent process bound for this string; it is used, and closed after ``listen``, and
        of the string only what is not about binding counts.
    :param handshake_timeout: seconds that a client has for its TLS handshake where the protocol is built after that;
        where it is built before, the handshake is the protocol's to limit.
    :raises ValueError: when the string cannot be understood, or its certificate not be used
        (:class:`flowstack.transport.tls.CertificateFault`).
    """
    positional, named = fields(description)
    kind = kind_of(description)
    if kind == "ssl":
        return _ssl_endpoint(reactor, positional, named, fileno, handshake_timeout)
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


@implementer(IStreamServerEndpoint)
class TlsServerEndpoint(ABC):
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

    @abstractmethod
    def _load(self) -> None:
        """Read the files, and use what they hold for connections yet to come."""


_tls_listeners: WeakSet[TlsServerEndpoint] = WeakSet()
"""Those that listen: a port keeps its endpoint alive."""


class _LoopTlsServer(TlsServerEndpoint):
    def __init__(self, identity: Identity, plain: IStreamServerEndpoint, handshake_timeout: float) -> None:
        super().__init__(identity, plain)
        self._handshake_timeout = handshake_timeout
        self._context = identity.context()

    def _listening(self, port: IListeningPort) -> IListeningPort:
        cast(LoopPort, port).use(self._context, self, self._handshake_timeout)
        return super()._listening(port)

    def _load(self) -> None:
        self._context = self._identity.context()
        self._port.use(self._context, self, self._handshake_timeout)


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


class _Adopting(WrappedReactor):
    """One of Twisted's reactors that adopts UNIX sockets as what they are: somebody else's."""

    @classmethod
    def on(cls, reactor: Any) -> Any:
        """The reactor, wrapped where it needs it."""
        return cls(reactor) if isinstance(reactor, PosixReactorBase) else reactor

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


def _ssl_endpoint(
    reactor: Any, positional: list[str], named: dict[str, str], fileno: int | None, handshake_timeout: float
) -> TlsServerEndpoint:
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
    if isinstance(served, LoopReactor):
        return _LoopTlsServer(identity, plain, handshake_timeout)
    return _OpenSslServer(served, identity, plain)
