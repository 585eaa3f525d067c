"""Listeners as services: bound before privileges are dropped, closed when they are stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from flowstack.config.endpoints import kind_of
from flowstack.process.sockets import Bound, bind_sockets
from flowstack.transport import uv


class Listener(Service):
    """Listens on what an endpoint string names.

    :param handshake_timeout: seconds for a client's TLS handshake.
    :param opened: called with the port.
    :param fileno: a socket that the parent bound for this string.
    """

    def __init__(
        self,
        reactor: Any,
        description: str,
        factory: IProtocolFactory,
        handshake_timeout: float,
        opened: Callable[[Any], None],
        fileno: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._description = description
        self._factory = factory
        self._handshake_timeout = handshake_timeout
        self._opened = opened
        self._fileno = fileno
        self._bound: Bound | None = None
        self._port: Any = None

    def privilegedStartService(self) -> None:
        """Listen.

        :raises SystemExit: that cannot be done; the text says why.
        """
        fileno, results = self._fileno, list[Any]()
        try:
            if fileno is None and self._description.startswith("unix:"):
                self._bound = bind_sockets(uv.server_endpoint, self._description, 1)
                fileno = self._bound.sockets.pop().detach()
            endpoint = uv.server_endpoint(self._reactor, self._description, fileno, self._handshake_timeout)
            endpoint.listen(self._factory).addBoth(results.append)
        except Exception as error:
            results.append(error)
        if not results or not IListeningPort.providedBy(results[0]):
            self.release()
            _cannot_listen(self._description, results[0] if results else "it did not say why")
        self._port = results[0]
        self._opened(self._port)

    def stopService(self) -> None:
        """Accept no more; what was accepted lives on."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._port.stopListening()
        self.release()

    def release(self) -> None:
        """Take the names of a UNIX socket away."""
        if self._bound is not None:
            self._bound.release()

    def urls(self) -> list[str]:
        """Where it can be reached."""
        return [url_of(self._port.getHost(), self._description)]


class Sockets(Service):
    """Binds sockets for workers to listen on.

    :param count: workers.
    """

    def __init__(self, descriptions: Sequence[str], count: int) -> None:
        self._descriptions = descriptions
        self._count = count
        self._bound: list[Bound] = []

    def privilegedStartService(self) -> None:
        """Bind.

        :raises SystemExit: that cannot be done; the text says why.
        """
        for description in self._descriptions:
            try:
                self._bound.append(bind_sockets(uv.server_endpoint, description, self._count))
            except Exception as error:
                self.release()
                _cannot_listen(description, error)

    def of(self, worker: int) -> list[int]:
        """A worker's descriptors, one for each endpoint: its own socket, or one that all share."""
        return [bound.sockets[worker % len(bound.sockets)].fileno() for bound in self._bound]

    def stopService(self) -> None:
        """Close them, or connections would still be queued here, with nobody left to accept them."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.release()
        for bound in self._bound:
            for one in bound.sockets:
                one.close()

    def release(self) -> None:
        """Take the names of UNIX sockets away."""
        for bound in self._bound:
            bound.release()

    def urls(self) -> list[str]:
        """Where the workers can be reached."""
        return [url_of(one.address, text) for one, text in zip(self._bound, self._descriptions, strict=True)]


def url_of(address: Any, description: str) -> str:
    """Where a listener can be reached, as a URL or ``unix:`` and a path.

    :param address: what it is bound to.
    :param description: its endpoint string, which says whether it speaks TLS.
    """
    if isinstance(address, UNIXAddress):
        return f"unix:{(address.name or b'').decode('utf-8', 'replace')}"
    host = address.host
    scheme = "https" if kind_of(description) == "ssl" else "http"
    return f"{scheme}://[{host}]:{address.port}" if ":" in host else f"{scheme}://{host}:{address.port}"


def _cannot_listen(description: str, fault: Any) -> NoReturn:
    """End the start.

    :param fault: an exception or a failure.
    """
    why = fault.getErrorMessage() if isinstance(fault, Failure) else str(fault) or type(fault).__name__
    sys.exit(f"cannot listen on {description}: {why}")
