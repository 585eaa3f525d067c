"""The listening port."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from zope.interface import implementer

from flowstack.testing.standin.app import App
from flowstack.testing.standin.connection import Connection
from flowstack.testing.standin.exchange import exchange
from flowstack.testing.standin.journal import Journal


@implementer(IProtocolNegotiationFactory)
class _Connections(Factory):
    noisy = False

    def __init__(self, reactor: Any, app: App) -> None:
        self._reactor = reactor
        self._app = app
        self.open: set[Connection] = set()

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """By ALPN (RFC 7301), where a client asks for one."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        connection = Connection(self._reactor, self._app.journal, partial(exchange, self._app))
        self.open.add(connection)
        connection.lost.addCallback(lambda _: self.open.discard(connection))
        return connection


class StandIn:
    """A stand-in upstream on one port.

    :param reactor: what it listens and waits with.
    :param endpoint: a Twisted endpoint string, such as ``tcp:0:interface=127.0.0.1``.
    """

    def __init__(self, reactor: Any, endpoint: str) -> None:
        self.journal = Journal(reactor.seconds)
        self._reactor = reactor
        self._endpoint = endpoint
        self._factory = _Connections(reactor, App(self.journal))
        self._port: IListeningPort | None = None

    async def _start(self) -> IListeningPort:
        self._port = await serverFromString(self._reactor, self._endpoint).listen(self._factory)
        return self._port

    def start(self) -> Deferred[IListeningPort]:
        """Listen.

        :return: fires with the listening port; fails as the endpoint does, or for an endpoint string that is none.
        """
        return Deferred.fromCoroutine(self._start())

    @property
    def url(self) -> str:
        """The origin under which it is reached, such as ``http://127.0.0.1:8081``; no path, no slash.

        :raises RuntimeError: before :meth:`start`.
        """
        if self._port is None:
            raise RuntimeError("the stand-in has not been started")
        address: Any = self._port.getHost()
        if not hasattr(address, "port"):
            return f"unix:{getattr(address, 'name', address)}"
        scheme = "https" if self._endpoint.startswith(("ssl:", "tls:")) else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
        return f"{scheme}://[{host}]:{address.port}" if ":" in host else f"{scheme}://{host}:{address.port}"

    async def _stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        for connection in list(self._factory.open):
            connection.abort()
            await connection.lost

    def stop(self) -> Deferred[None]:
        """Stop listening and reset every open connection; fires when all are gone."""
        return Deferred.fromCoroutine(self._stop())
