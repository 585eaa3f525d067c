"""Connections that a trusted proxy makes for a client: the PROXY protocol's header says who that is.

The header itself is read by ``twisted.protocols.haproxy.proxyEndpoint`` (version 1 and 2), whose transport then tells
the client's address in place of the proxy's.
"""

from __future__ import annotations

from twisted.logger import Logger

from flowstack.policy.keys.addresses import Networks
from flowstack.wire.channel import Channel
from flowstack.wire.site import Site

log = Logger()


class ProxiedChannel(Channel):
    """A connection that begins with a PROXY header.

    :param trusted: networks of the proxies. A connection from elsewhere is cut, since its header may say anything;
        what comes by a UNIX socket was let in by the socket's mode.
    """

    def __init__(self, trusted: Networks, site: Site) -> None:
        super().__init__(site)
        self._trusted = trusted

    def connectionMade(self) -> None:
        """Begin to listen, if the peer may speak for others."""
        super().connectionMade()
        peer = self.client_address
        if peer != "unix" and not self._trusted.hold(peer):
            log.warn("cut a connection from {peer}, which is none of [server] trusted_proxies", peer=peer)
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client, whose address is known by now."""
        self.client_address = getattr(self.transport.getPeer(), "host", None) or "unix"
        super().dataReceived(data)
