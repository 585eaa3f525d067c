"""A WebSocket client by wsproto that shows the handshake's answer, every frame, and how the connection ended."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode

from tests.testing.wire import KEY, PATIENCE, Answer, Client, read

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    """One connection: its handshake's answer, and then the server's messages.

    :param client: of whose stand-in.
    :param headers: further fields of the handshake.
    :param fields: in place of Upgrade, Connection, version and key.
    """

    def __init__(
        self, client: Client, target: str, *headers: str, key: str = KEY, fields: tuple[str, ...] | None = None
    ) -> None:
        self.nonce = base64.b64encode(os.urandom(16)).decode()
        usual = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        given = (*usual, f"Sec-WebSocket-Key: {self.nonce}") if fields is None else fields
        self.sock = client.connect()
        self.sent = b""
        self.head = client.request("GET", target, *given, *headers, key=key)
        self.sock.sendall(self.head)
        self.frames = FrameProtocol(client=True, extensions=[])
        self._waiting: list[Frame] = []
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.sock.recv(1)
            assert piece, f"closed within the head: {head!r}"
            head += piece
        self.answer = Answer(head, "open", 0.0)

    @property
    def accepted(self) -> bool:
        """Whether the answer proves that the server understood the handshake (RFC 6455 §4.1)."""
        wanted = base64.b64encode(hashlib.sha1(f"{self.nonce}{GUID}".encode()).digest()).decode()
        return self.answer.status == 101 and self.answer.header("sec-websocket-accept") == wanted

    def refused(self) -> Answer:
        """The answer with its body, where it was no 101."""
        body = b""
        while len(body) < int(self.answer.header("content-length") or 0):
            body += self.sock.recv(65536)
        return Answer(self.answer.raw + body, "open", 0.0)

    def write(self, data: bytes) -> None:
        self.sent += data
        self.sock.sendall(data)

    def send(self, **event: Any) -> None:
        self.write(bytes(self.frames.send_data(json.dumps(event))))

    def sha256(self) -> str:
        """Of all that was sent behind the handshake."""
        return hashlib.sha256(self.sent).hexdigest()

    def frame(self) -> Frame | None:
        """The next frame, or the next part of one; None at the connection's end."""
        while not self._waiting:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.frames.receive_bytes(data)
            self._waiting += self.frames.received_frames()
        return self._waiting.pop(0)

    def message(self) -> str:
        """The next text message, whole.

        :raises AssertionError: where something else comes.
        """
        parts = ""
        while True:
            frame = self.frame()
            assert frame is not None and frame.opcode is Opcode.TEXT, frame
            assert isinstance(frame.payload, str)
            parts += frame.payload
            if frame.message_finished:
                return parts

    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.message())
        return found

    def until(self, *types: str) -> list[dict[str, Any]]:
        """The events up to and with the first of one of these types."""
        found = [self.event()]
        while found[-1]["type"] not in types:
            found.append(self.event())
        return found

    def closed(self) -> tuple[int, str]:
        """The code and the reason of the Close that comes next."""
        frame = self.frame()
        assert frame is not None and frame.opcode is Opcode.CLOSE, frame
        assert isinstance(frame.payload, tuple)
        return int(frame.payload[0]), frame.payload[1]

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.write(bytes(self.frames.close(code, reason)))

    def ending(self) -> str:
        """How the connection ends, of which nothing more is read: ``closed``, ``reset`` or ``timeout``."""
        return read(self.sock, time.monotonic(), PATIENCE).end


@contextmanager
def websocket(client: Client, target: str, *headers: str, **more: Any) -> Iterator[WebSocket]:
    """An open WebSocket; its socket is closed on leaving the block."""
    opened = WebSocket(client, target, *headers, **more)
    try:
        assert opened.accepted, opened.answer.head
        yield opened
    finally:
        opened.sock.close()


def refused(client: Client, target: str, *headers: str, **more: Any) -> Answer:
    """The answer to a handshake that does not succeed."""
    opened = WebSocket(client, target, *headers, **more)
    try:
        assert opened.answer.status != 101
        return opened.refused()
    finally:
        opened.sock.close()
