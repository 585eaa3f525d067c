"""The admin listener in memory, and clients of it."""

from __future__ import annotations

from typing import Any

from flowstack.admin.site import AdminSite
from tests.harness import Timeouts, Transport, Turns


class AdminListener:
    """A site on a clock that the test moves."""

    def __init__(self, resource: Any, turns: Turns | None = None) -> None:
        self.turns = turns or Turns(Timeouts())
        self.site = AdminSite(resource, self.turns.clock)

    def connect(self) -> Transport:
        channel = self.site.buildProtocol(None)
        transport = Transport(self.turns, channel)
        channel.makeConnection(transport)
        return transport

    def ask(
        self, path: bytes = b"/healthz", method: bytes = b"GET", *fields: bytes, host: bytes = b"localhost"
    ) -> bytes:
        """The answer to one request on a connection of its own."""
        client = self.connect()
        head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"Host: " + host, *fields])
        client.send(head + b"\r\n\r\n")
        return client.take()
