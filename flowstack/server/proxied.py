"""Connections that a trusted proxy makes for a client: the PROXY protocol's header says who that is.

Twisted has a wrapper for this (``twisted.protocols.haproxy``). It is not used: it refuses ``PROXY UNKNOWN`` as load
balancers' health checks send it, and a header in pieces; it takes any word for an address; and for what is no header it
waits until the client closes, or raises.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from flowstack.addresses import Networks
from flowstack.http.proxy_protocol import BadProxyHeader, read_proxy_header
from flowstack.server.connection import CLOSED, ServerConnection
from flowstack.server.site import Site
from flowstack.util import Throttle

log = Logger()

LOG_SECONDS = 10.0
"""Cut connections are logged as one line in this many seconds at most: nobody may fill a disk from outside."""


class Proxies:
    """The proxies that may speak for clients; shared by the connections of a listener.

    :param trusted: their networks. A connection from elsewhere is cut, since its header may say anything; what comes
        by a UNIX socket was let in by the socket's mode.
    :param seconds: the time on a clock that never steps.
    """

    def __init__(self, trusted: Networks, seconds: Callable[[], float]) -> None:
        self._trusted = trusted
        self._throttle = Throttle(seconds, LOG_SECONDS)
        self._cut = 0
        self._last = "", ""

    def trust(self, peer: str) -> bool:
        """Whether a connection's other end may say for whom it speaks."""
        return peer == "unix" or self._trusted.hold(peer)

    def note(self, peer: str, why: str) -> None:
        """One connection was cut."""
        self._cut += 1
        self._last = peer, why
        self.tell()

    def tell(self, at_once: bool = False) -> None:
        """Log those that were cut, if a line is due: called now and then, so that the last ones are told of too.

        :param at_once: whether it is due in any case.
        """
        if self._cut and (at_once or self._throttle.ready()):
            count, self._cut = self._cut, 0
            peer, why = self._last
            log.warn("cut {count} connections, the last from {peer}: {why}", count=count, peer=peer, why=why)


class ProxiedConnection(ServerConnection):
    """A connection that begins with a PROXY header."""

    def __init__(self, proxies: Proxies, site: Site) -> None:
        super().__init__(site)
        self._proxies = proxies
        self._header: bytes | None = b""  # as much as has come; None once it was read

    def connectionMade(self) -> None:
        """Begin to listen, if the peer may speak for others."""
        super().connectionMade()
        if not self._proxies.trust(self.client_address):
            self._refuse_peer("it is not in [server] trusted_proxies")

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the proxy, and then from the client."""
        held = self._header
        if held is not None and self.state is not CLOSED:
            try:
                header = read_proxy_header(held + data)
            except BadProxyHeader as fault:
                self._refuse_peer(str(fault))
                return
            if header is None:
                self._header = held + data
                return
            self._header = None
            self.client_address = header.address or self.client_address
            data = data[header.size - len(held) :]
            if not data:
                return
        super().dataReceived(data)

    def _refuse_peer(self, why: str) -> None:
        self._proxies.note(self.client_address, why)
        self.abort()
