"""What a WebSocket needs of the server in front of Flowstack, whichever that is."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

from wsproto.frame_protocol import Opcode

from tests.e2e.crowd import journal
from tests.e2e.processes import PATIENCE, Proxy, eventually
from tests.testing.sockets import WebSocket, websocket
from tests.testing.wire import KEY, Client

ASK: dict[str, Any] = {"type": "response.create", "model": "gpt-4o-mini", "input": "Hello"}


class OnPath(Client):
    """Talks to a server on a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(0)
        self._path = path

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        eventually(self._path.exists, "the server listens")
        sock.connect(str(self._path))
        return sock


def assert_websockets_pass(proxy: Proxy, front: Client) -> None:
    """Look at a whole one, at a client that leaves, and at a Flowstack that ends, in that order.

    :param proxy: pings each second, and drains within two.
    :param front: what talks to the server in front.
    """
    token = proxy.key
    browsers = f"Sec-WebSocket-Protocol: realtime, flowstack-auth.{token}"
    eventually(lambda: front.ask("GET", "/v1/models", f"Flowstack-Auth: Bearer {token}").status == 200, "it is there")
    with websocket(front, "/v1/realtime?model=gpt-realtime", browsers) as client:
        assert client.answer.header("sec-websocket-protocol") == "realtime"
        assert client.event()["type"] == "session.created"
        frame = client.frame()
        assert frame is not None and frame.opcode is Opcode.PING, "it stands still longer than the server would wait"
    eventually(lambda: ended(proxy, "/v1/realtime") == ["client_gone"], "that it left is noticed")
    with opened(proxy, front) as client:
        for size in (1, 70_000):
            client.send(**ASK | {"input": "x" * size})
            assert client.until("response.completed")[-1]["response"]["usage"]["total_tokens"] > 0
        client.close(4000, "enough")
        assert told(client) == 4000
    eventually(lambda: ended(proxy, "/v1/responses") == ["complete"], "its row is written")
    with opened(proxy, front) as client:
        proxy.signal(signal.SIGTERM)
        assert told(client) == 1012
    assert proxy.wait(PATIENCE) == 0


def opened(proxy: Proxy, front: Client) -> Any:
    return websocket(front, "/v1/responses", f"Flowstack-Auth: Bearer {proxy.key}", key=KEY)


def told(client: WebSocket) -> int:
    """The code of the Close, whatever pings come before it."""
    while (frame := client.frame()) is not None and frame.opcode is Opcode.PING:
        pass
    assert frame is not None and frame.opcode is Opcode.CLOSE, frame
    return int(frame.payload[0])


def ended(proxy: Proxy, path: str) -> list[str]:
    """How the connections at a path ended."""
    return [row["end"] for row in journal(proxy) if row["status"] == 101 and row["path"] == path]
