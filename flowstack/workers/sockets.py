"""Sockets that a parent binds and its workers listen on."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorSocket, IReactorTCP, IReactorUNIX
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

BACKLOG = 1024
"""Connections that wait while no worker accepts."""


@implementer(IReactorTCP, IReactorUNIX, IReactorSocket)
class _Binder:  # type: ignore[misc]
    """Stands for a reactor while an endpoint string is asked what it would bind; it binds, and accepts nothing."""

    def __init__(self, count: int) -> None:
        self.sockets: list[socket.socket] = []
        self.address: Any = None
        self._count = count

    def listenTCP(self, port: int, factory: Any, backlog: int = BACKLOG, interface: str = "") -> Any:
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        try:
            # Without SO_REUSEPORT this fails where somebody else listens; with it, a second Flowstack of the same
            # user would share the port without a word.
            with self._bound(family, interface, port, reuse_port=False) as probe:
                port = probe.getsockname()[1]
            for _ in range(self._count):
                self.sockets.append(self._bound(family, interface, port, reuse_port=True))
                self.sockets[-1].listen(backlog)
        except OSError as error:
            raise CannotListenError(interface or "any", port, error) from error
        return self._port(_address(family, interface or "0.0.0.0", port))

    def listenUNIX(  # noqa: N802
        self,
        address: str,
        factory: Any,
        backlog: int = BACKLOG,
        mode: int = 0o666,
        wantPID: bool = False,  # noqa: N803
    ) -> Any:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            if _stale(address):
                os.unlink(address)
            listener.bind(address)
            os.chmod(address, mode)
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise CannotListenError("unix", address, error) from error
        self.sockets = [listener]
        return self._port(UNIXAddress(address))

    def adoptStreamPort(self, fileno: int, family: int, factory: Any) -> Any:
        listener = socket.socket(fileno=os.dup(fileno))
        self.sockets = [listener]
        name = listener.getsockname()
        if family == socket.AF_UNIX:
            return self._port(UNIXAddress(name))
        return self._port(_address(family, name[0], name[1]))

    def _port(self, address: Any) -> _Unopened:
        self.address = address
        return _Unopened(address)

    @staticmethod
    def _bound(family: int, interface: str, port: int, reuse_port: bool) -> socket.socket:
        bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind((interface, port))
        except OSError:
            bound.close()
            raise
        return bound


class _Unopened:
    """Stands for a listening port: bound, not listening."""

    connected = False

    def __init__(self, address: Any) -> None:
        self._address = address

    def getHost(self) -> Any:
        return self._address


def bind_sockets(
    endpoint_of: Callable[[Any, str], Any], description: str, count: int
) -> tuple[list[socket.socket], Any]:
    """Bind what an endpoint string names.

    A TCP port gets a socket for each worker (SO_REUSEPORT: the kernel spreads connections evenly, and those that wait
    for a worker that died wait for the one that takes its place). A UNIX socket, or one that systemd handed over, is
    shared.

    :param endpoint_of: gives the endpoint of a string on a reactor.
    :param count: workers.
    :return: one or ``count`` sockets, and the address to show.
    :raises twisted.internet.error.CannotListenError: the address cannot be bound.
    :raises ValueError: the string cannot be understood.
    """
    binder = _Binder(count)
    results: list[Any] = []
    endpoint_of(binder, description).listen(Factory()).addBoth(results.append)
    if results and isinstance(results[0], Failure):
        results[0].raiseException()
    return binder.sockets, binder.address


def _address(family: int, host: str, port: int) -> IPv4Address | IPv6Address:
    return (IPv6Address if family == socket.AF_INET6 else IPv4Address)("TCP", host, port)


def _stale(path: str) -> bool:
    """Whether a socket lies at this path to which nobody listens."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
