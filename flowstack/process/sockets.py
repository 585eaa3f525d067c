"""Sockets that a parent binds and its workers listen on, and UNIX sockets, which one process binds in the same way.

Beside a UNIX socket lies a lock: an open file that is locked (``flock``) as long as the service listens, so that it is
free when the process is gone, however it went. Under the lock a socket that nobody listens on is replaced, and one that
answers never is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attrs import define
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorSocket, IReactorTCP, IReactorUNIX
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from flowstack.files import NotRegular, lock, open_regular

BACKLOG = 1024
"""Connections that wait while no worker accepts."""


@define(slots=True)
class Bound:
    """What an endpoint string was bound to.

    :ivar sockets: one, or one for each worker.
    :ivar address: to be shown.
    """

    sockets: list[socket.socket]
    address: Any
    _path: UnixPath | None = None

    def release(self) -> None:
        """Take the names of a UNIX socket away, which then is another's to bind; who is connected stays."""
        path, self._path = self._path, None
        if path is not None:
            path.release()


class UnixPath:
    """The names of a UNIX socket that this process binds: its own, and its lock's.

    :param locked: whether there is to be a lock.
    :raises OSError: somebody else listens there, or holds the lock; the text says who, and what to do.
    """

    def __init__(self, path: str, locked: bool) -> None:
        self._path = path
        self._lock = f"{path}.lock"
        self._held = self._claim() if locked else -1
        self._bound: os.stat_result | None = None
        try:
            self._clear()
        except BaseException:
            self.release()
            raise

    def bind(self, listener: socket.socket, mode: int) -> None:
        """Bind a socket, which has this mode from its first moment on.

        :raises OSError: it cannot be bound.
        """
        mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(self._path)
            self._bound = os.lstat(self._path)
        finally:
            os.umask(mask)

    def release(self) -> None:
        """Remove what this process made, unless another put its own there; never raises."""
        with suppress(OSError):
            if self._bound is not None and os.path.samestat(os.lstat(self._path), self._bound):
                os.unlink(self._path)
        self._bound = None
        if self._held >= 0:
            with suppress(OSError):
                os.unlink(self._lock)
            os.close(self._held)
            self._held = -1

    def _claim(self) -> int:
        while True:
            try:
                held = open_regular(self._lock, os.O_RDWR | os.O_CREAT, 0o600, follow=False)
            except NotRegular:
                # As an earlier version's, which was a link with a process's number: it says nothing of who listens.
                if not os.path.islink(self._lock):
                    raise
                if _answers(self._path):
                    raise _in_use("somebody listens there; end that service") from None
                os.unlink(self._lock)
                continue
            try:
                lock(held, 0)
                if os.path.samestat(os.fstat(held), os.lstat(self._lock)):
                    return held
            except FileNotFoundError:
                pass  # who held it has just removed it
            except TimeoutError as error:
                os.close(held)
                raise _in_use(f"{self._lock}: {error.strerror}: another service listens there; end it") from None
            except BaseException:
                os.close(held)
                raise
            os.close(held)

    def _clear(self) -> None:
        """Remove a socket that nobody listens on."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            kind = NotRegular(self._path, mode).strerror if not stat.S_ISREG(mode) else "a regular file"
            raise _in_use(f"by {kind}; remove it")
        if _answers(self._path):
            raise _in_use("somebody listens there; end that service")
        os.unlink(self._path)


def _in_use(words: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"Address already in use: {words}, or choose another path")


def _answers(path: str) -> bool:
    """Whether somebody listens on a UNIX socket, as far as can be told: a doubt is a yes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


@implementer(IReactorTCP, IReactorUNIX, IReactorSocket)
class _Binder:  # type: ignore[misc]
    """Stands for a reactor while an endpoint string is asked what it would bind; it binds, and accepts nothing."""

    def __init__(self, count: int) -> None:
        self.sockets: list[socket.socket] = []
        self.address: Any = None
        self.path: UnixPath | None = None
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
        path = None
        try:
            path = UnixPath(address, bool(wantPID))
            path.bind(listener, mode)
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            if path is not None:
                path.release()
            named = f"{error.filename}: " if error.filename is not None else ""
            raise CannotListenError("unix", address, f"{named}{error.strerror or error}") from error
        self.path = path
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


def bind_sockets(endpoint_of: Callable[[Any, str], Any], description: str, count: int) -> Bound:
    """Bind what an endpoint string names.

    A TCP port gets a socket for each worker (SO_REUSEPORT: the kernel spreads connections evenly, and those that wait
    for a worker that died wait for the one that takes its place). A UNIX socket, or one that systemd handed over, is
    shared.

    :param endpoint_of: gives the endpoint of a string on a reactor.
    :param count: workers.
    :return: one or ``count`` sockets, and the address to show; to be released when the service takes no more.
    :raises twisted.internet.error.CannotListenError: the address cannot be bound.
    :raises ValueError: the string cannot be understood.
    """
    binder = _Binder(count)
    results: list[Any] = []
    endpoint_of(binder, description).listen(Factory()).addBoth(results.append)
    if results and isinstance(results[0], Failure):
        results[0].raiseException()
    return Bound(binder.sockets, binder.address, binder.path)


def _address(family: int, host: str, port: int) -> IPv4Address | IPv6Address:
    return (IPv6Address if family == socket.AF_INET6 else IPv4Address)("TCP", host, port)
