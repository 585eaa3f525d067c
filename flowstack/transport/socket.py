"""What a transport on uvloop tells of its socket: addresses, the handle, TCP's options."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress


def address_of(name: Any) -> IAddress:
    """Twisted's address for what :mod:`socket` calls a name."""
    if isinstance(name, tuple):
        return IPv4Address("TCP", *name) if len(name) == 2 else IPv6Address("TCP", *name)
    return UNIXAddress(name or None)


class Socket:
    """The base of a transport, which sets ``_uv`` and ``_peer`` when it is connected; at the end, ``_uv`` to None."""

    __slots__ = ("_host", "_no_delay", "_peer", "_uv")

    def __init__(self) -> None:
        self._uv: Any = None
        self._peer: IAddress | None = None
        self._host: IAddress | None = None
        self._no_delay = True

    def getPeer(self) -> Any:
        """Return the other end's address, also after the connection was lost."""
        if self._peer is None:
            raise error.ConnectError(string="not connected")
        return self._peer

    def getHost(self) -> Any:
        """Return this end's address."""
        if self._host is None:
            name = None if self._uv is None else self._uv.get_extra_info("sockname")
            if name is None:
                raise error.ConnectError(string="not connected")
            self._host = address_of(name)
        return self._host

    def getHandle(self) -> Any:  # noqa: N802
        """Return the socket, to look at."""
        return None if self._uv is None else self._uv.get_extra_info("socket")

    def getTcpNoDelay(self) -> bool:
        """Whether small segments are sent at once; uvloop sets it on each TCP connection."""
        return bool(self._get_option(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set ``TCP_NODELAY``, unless it is so already; without effect on a UNIX socket."""
        if enabled != self._no_delay:
            self._no_delay = enabled
            self._set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """Whether the kernel probes an idle peer."""
        return bool(self._get_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Set ``SO_KEEPALIVE``."""
        self._set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    def _get_option(self, level: int, option: int) -> int:
        handle = self.getHandle()
        if handle is None or handle.family == socket.AF_UNIX:
            return 0
        return cast(int, handle.getsockopt(level, option))

    def _set_option(self, level: int, option: int, enabled: bool) -> None:
        handle = self.getHandle()
        if handle is not None and handle.family != socket.AF_UNIX:
            handle.setsockopt(level, option, int(enabled))
