"""What the way to an upstream takes besides an address: files that are read anew, and a forward proxy's tunnel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from flowstack.config.credentials import proxy_authorization
from flowstack.config.ways import Way
from flowstack.errors import ParseError
from flowstack.transport.tls import CertificateFault, ConnectFailed, Identity, client_context, client_options

MAX_HEAD = 16 * 1024
"""Bytes of a proxy's answer."""

_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: [^\r\n]*)?\r?\n")

_WORDS = {
    401: "it wants credentials; see proxy_auth_file",
    403: "it does not let this through",
    405: "it is no forward proxy, or does not take CONNECT",
    407: "it wants other credentials; see proxy_auth_file",
    502: "it cannot reach the upstream",
    503: "it cannot reach the upstream",
    504: "it cannot reach the upstream",
}


class WayFiles:
    """What the files of a way hold: authorities, a certificate with its key, a proxy's credentials.

    :param tls: whether TLS is spoken with the upstream.
    :param stdlib: whether by the standard library; else by pyOpenSSL.
    :ivar tls: a context of the standard library, Twisted's options for pyOpenSSL, or None.
    :ivar authorization: what the proxy is shown (RFC 7617), or None.
    :raises CertificateFault: a file cannot be used.
    """

    def __init__(self, way: Way, tls: bool, stdlib: bool) -> None:
        self._way = way
        self._make: Callable[[Path | None, Identity | None], Any] | None = None
        if tls:
            self._make = client_context if stdlib else client_options
        self.tls: Any = None
        self.authorization: bytes | None = None
        self._load()
        _files.add(self)

    def _load(self) -> None:
        way, tls, authorization = self._way, self.tls, self.authorization
        if self._make is not None:
            certificate, key = way.client_cert_file, way.client_key_file
            shown = None if certificate is None or key is None else Identity(certificate, key)
            tls = self._make(way.ca_file, shown)
        if way.proxy_auth_file is not None:
            try:
                authorization = proxy_authorization(way.proxy_auth_file)
            except ParseError as fault:
                raise CertificateFault(str(fault)) from None
        self.tls, self.authorization = tls, authorization

    def reload(self) -> str | None:
        """Read the files again, for connections yet to come.

        :return: None, or why what was read before stays in use.
        """
        try:
            self._load()
        except CertificateFault as fault:
            return str(fault)
        return None


_files: WeakSet[WayFiles] = WeakSet()
"""Those in use: an endpoint keeps its own alive."""


def reload_ways() -> list[str]:
    """Read anew what this process's ways to upstreams take of files.

    :return: for each that stays as it was because a file is bad, the reason.
    """
    faults = {files.reload() for files in list(_files)}
    return sorted(fault for fault in faults if fault is not None)


@implementer(IStreamClientEndpoint)
class Tunnel:
    """The way through a forward proxy (RFC 9110 §9.3.6): what is connected to the proxy speaks with the upstream.

    :param proxy: the endpoint of the proxy, and its name for messages.
    :param authority: host and port of the upstream.
    :param files: whose ``authorization`` the proxy is shown.
    """

    def __init__(self, proxy: IStreamClientEndpoint, name: str, authority: str, files: WayFiles) -> None:
        self._proxy = proxy
        self._name = name
        self._authority = authority.encode("ascii")
        self._files = files

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect; the protocol is built once the proxy has let it through."""
        connecting: Deferred[Any] = self._proxy.connect(cast(IProtocolFactory, _Askings()))
        return connecting.addCallback(self._ask, protocolFactory)

    def _ask(self, asking: _Asking, factory: IProtocolFactory) -> Deferred[IProtocol]:
        transport: Any = asking.transport

        def cancel(_: Deferred[IProtocol]) -> None:
            asking.answered = None
            transport.abortConnection()

        answered: Deferred[IProtocol] = Deferred(cancel)
        asking.answered, asking.factory, asking.name = answered, factory, self._name
        authorization = self._files.authorization
        lines = [b"CONNECT %b HTTP/1.1" % self._authority, b"Host: %b" % self._authority]
        if authorization is not None:
            lines.append(b"Proxy-Authorization: " + authorization)
        transport.write(b"\r\n".join((*lines, b"", b"")))
        if asking.ended:
            asking.fail("it closed the connection")
        return answered


class _Asking(Protocol):
    """Stands at the connection's end until the proxy has answered."""

    answered: Deferred[IProtocol] | None = None
    factory: IProtocolFactory
    name: str
    ended = False

    def __init__(self) -> None:
        self._head = b""

    def dataReceived(self, data: bytes) -> None:
        """The proxy answers."""
        if self.answered is None:
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD:
                self.fail(f"its answer is longer than {MAX_HEAD} bytes")
            return
        status = _STATUS.match(self._head)
        if status is None:
            self.fail("its answer is not HTTP/1.1")
        elif not status[1].startswith(b"2"):
            number = int(status[1])
            words = _WORDS.get(number)
            self.fail(f"it answered {number}{f' ({words})' if words else ''}")
        elif len(self._head) > end + 4:
            self.fail("it sent something before it was asked")
        else:
            self._let_through()

    def _let_through(self) -> None:
        transport: Any = self.transport
        answered, self.answered = self.answered, None
        assert answered is not None
        protocol = self.factory.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.abortConnection()
            answered.errback(Failure(error.NoProtocol()))
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        answered.callback(protocol)

    def fail(self, reason: str) -> None:
        """There is no way through."""
        answered, self.answered = self.answered, None
        if self.transport is not None:
            cast(Any, self.transport).abortConnection()
        if answered is not None:
            answered.errback(Failure(ConnectFailed(f"the proxy {self.name} does not let it through: {reason}")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The proxy closed the connection."""
        self.ended = True
        self.fail("it closed the connection")


class _Askings(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> _Asking:  # type: ignore[override]
        return _Asking()
