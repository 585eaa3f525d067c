"""The listener's side of its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from flowstack.config import Timeouts
from flowstack.errors import FlowstackError
from flowstack.http.head_cache import KnownHeads
from flowstack.http.replies import Reply
from flowstack.transport.ticker import Ticker


class Handler(Protocol):
    """What answers requests."""

    def render(self, request: Any) -> object:
        """Answer a :class:`flowstack.server.request.Request`, now or later."""


class Served(Protocol):
    """A connection that a site serves."""

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""

    def close_now(self) -> None:
        """End it, in order where nothing is in flight."""

    def abort(self) -> None:
        """Cut it."""


class Site(Factory):
    """What the connections of a listener share.

    :param handler: answers all requests.
    :param ticker: whose ticks the timeouts hang on.
    :param refuse: turns an error found before the handler into an answer.
    :param max_head_bytes: the longest request head that is taken.
    :param connection: makes the protocol of a new connection.
    """

    def __init__(
        self,
        handler: Handler,
        ticker: Ticker,
        timeouts: Timeouts,
        refuse: Callable[[FlowstackError], Reply],
        max_head_bytes: int,
        connection: Callable[[Site], Served],
    ) -> None:
        self.noisy = False
        self._connection = connection
        self.handler = handler
        self.ticker = ticker
        self.timeouts = timeouts
        self.refuse = refuse
        self.max_head_bytes = max_head_bytes
        self.connections: set[Served] = set()
        self.heads = KnownHeads()
        self.draining = False
        self.when_idle: Callable[[], None] | None = None
        """Called whenever a connection has become idle while draining."""

    def buildProtocol(self, addr: IAddress | None) -> Served:  # type: ignore[override]
        """The protocol of a new connection."""
        return self._connection(self)

    @property
    def busy(self) -> int:
        """Connections with a request in flight."""
        return sum(connection.busy for connection in self.connections)

    def join(self, other: Served) -> None:
        """Something that follows from a request stands among the connections, until it leaves."""
        self.connections.add(other)

    def leave(self, other: Served) -> None:
        """What stood among them has ended, and has written down what is to be."""
        self.connections.discard(other)
        self.note_idle()

    def note_idle(self) -> None:
        """A connection may have become idle."""
        if self.draining and self.when_idle is not None:
            self.when_idle()

    def drain(self) -> None:
        """Let each connection end with the answer that it is at."""
        self.draining = True

    def close(self) -> None:
        """Cut every connection; one that is idle is closed in order."""
        for connection in list(self.connections):
            connection.close_now()

    def cut(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.abort()
