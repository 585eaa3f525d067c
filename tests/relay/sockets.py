"""WebSockets through the proxy in memory: a client on one side, an upstream on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from flowstack.http.frames import CLOSE, TEXT, FrameReader, accept_of, close_code, close_payload, frame
from tests.harness import Transport
from tests.relay.lab import AUTH, Lab

SOCKET_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
OPENING = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
           b"Sec-WebSocket-Key: " + SOCKET_KEY)  # fmt: skip
REALTIME = b"/v1/realtime?model=gpt-realtime"
RESPONSES = b"/v1/responses"
MASK = b"\x01\x02\x03\x04"


class End:
    """One end of a WebSocket: what it got, as messages."""

    def __init__(self, transport: Transport, masks: bool) -> None:
        self.transport = transport
        self.mask = MASK if masks else None
        self.reader = FrameReader(not masks, 2**31)
        self.raw = bytearray()

    def say(self, what: Any, size: int | None = None) -> bytes:
        """Send an event, or a text."""
        text = what if isinstance(what, bytes) else orjson.dumps(what)
        data = frame(TEXT, text, self.mask)
        self.transport.send(data, size)
        return data

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.transport.send(frame(CLOSE, close_payload(code, reason), self.mask))

    def take(self) -> list[tuple[int, bytes]]:
        """The messages and control frames that came since it was asked last."""
        data = self.transport.take()
        self.raw += data
        found: list[tuple[int, bytes]] = []
        for part in self.reader.feed(data):
            if part.begins:
                found.append((part.opcode, b""))
            found[-1] = part.opcode, found[-1][1] + part.payload
        assert self.reader.violation is None, self.reader.violation
        return found

    def events(self) -> list[dict[str, Any]]:
        return [orjson.loads(payload) for opcode, payload in self.take() if opcode == TEXT]

    def closed(self) -> tuple[int, str] | None:
        return next((close_code(payload) for opcode, payload in self.take() if opcode == CLOSE), None)


class Duet:
    """A WebSocket that is open, unless the handshake is refused.

    :ivar head: the answer's; ``asked`` the head that the upstream got.
    """

    def __init__(
        self,
        lab: Lab,
        target: bytes = REALTIME,
        *fields: bytes,
        auth: bytes | None = AUTH,
        more: bytes = b"",
        early: bytes = b"",
        answers: tuple[bytes, ...] = (),
        waits: Callable[[], None] | None = None,
    ) -> None:
        self.lab = lab
        lines = [b"GET " + target + b" HTTP/1.1", b"Host: flowstack.example", *OPENING, *fields]
        if auth is not None:
            lines.append(auth)
        (provider,) = lab.providers.values()
        self._provider = provider
        transport = lab.client()
        transport.send(b"\r\n".join([*lines, b"", b""]) + early)
        if waits is not None:
            waits()
            lab.turns.settle()
        self.head = self.asked = b""
        self.client = End(transport, True)
        if not provider.peers:
            self.head = transport.take()
            return
        behind = provider.peers[-1]
        self.asked = behind.take()
        self.upstream = End(behind, False)
        self.answer(more, answers)

    def answer(self, more: bytes = b"", fields: tuple[bytes, ...] = ()) -> None:
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
                 b"Sec-WebSocket-Accept: " + accept_of(SOCKET_KEY), *fields]  # fmt: skip
        self.upstream.transport.send(b"\r\n".join([*lines, b"", b""]) + more)
        self.head, _, rest = self.client.transport.take().partition(b"\r\n\r\n")
        self.client.transport.got[:0] = rest

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.lab.rows
