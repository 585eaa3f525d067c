"""A client that shows every byte and how the connection ended; blocking, for a stand-in in another process."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from ssl import SSLEOFError
from typing import Any

from attrs import frozen

PATIENCE = 40.0
KEY = "Authorization: Bearer sk-test"


@frozen
class Answer:
    """What came until the connection ended; ``end`` is ``closed``, ``reset`` or ``timeout``."""

    raw: bytes
    end: str
    seconds: float

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def rest(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [tuple(line.split(": ", 1)) for line in self.head.split("\r\n")[1:]]  # type: ignore[misc]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of a chunked body, by hand; without the last one where the body was cut."""
        found, rest = [], self.rest
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length == 0:
                assert rest == b"\r\n"
                return [*found, b""]
            found.append(rest[:length])
            rest = rest[length + 2 :]
        return found

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks) if self.header("transfer-encoding") == "chunked" else self.rest

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Talks to the stand-in on a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def request(
        self, method: str, target: str, *headers: str, body: bytes = b"", key: str = KEY, version: str = "1.1"
    ) -> bytes:
        lines = [f"{method} {target} HTTP/{version}", "Host: stand-in.example", *filter(None, [key]), *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    def raw(self, data: bytes, limit: float = PATIENCE) -> Answer:
        """Send the bytes and read until the connection ends, or for ``limit`` seconds."""
        start = time.monotonic()
        with self.connect() as sock:
            sock.sendall(data)
            return read(sock, start, limit)

    def ask(
        self, method: str, target: str, *headers: str, body: bytes = b"", limit: float = PATIENCE, **more: str
    ) -> Answer:
        return self.raw(self.request(method, target, "Connection: close", *headers, body=body, **more), limit)

    def post(self, target: str, value: Any, *headers: str, limit: float = PATIENCE) -> Answer:
        body = json.dumps(value).encode()
        return self.ask("POST", target, "Content-Type: application/json", *headers, body=body, limit=limit)

    def chat(self, *headers: str, text: str = "one two three", limit: float = PATIENCE, **more: Any) -> Answer:
        value = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", value, *headers, limit=limit)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/stand-in/state").json
        return found

    def seen(self, tag: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", f"/stand-in/seen/{tag}").json
        return found

    def reset(self) -> None:
        assert self.ask("POST", "/stand-in/reset").status == 200


def read(sock: socket.socket, start: float, limit: float) -> Answer:
    """Read until the connection ends or the time is over."""
    data, end = b"", "closed"
    try:
        while True:
            sock.settimeout(max(0.001, start + limit - time.monotonic()))
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    except (ConnectionResetError, SSLEOFError):  # the latter is OpenSSL's word for an end without close_notify
        end = "reset"
    except TimeoutError:
        end = "timeout"
    return Answer(data, end, time.monotonic() - start)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition.

    :raises AssertionError: where it does not come about.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


class Process:
    """``python -m flowstack.testing`` as a process; its ready lines are in ``ready``; killed on leaving the block."""

    def __init__(self, *arguments: str, lines: int = 1) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "flowstack.testing", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout is not None
        self.ready = [self.popen.stdout.readline() for _ in range(lines)]

    @property
    def port(self) -> int:
        return int(self.ready[0].rsplit(":", 1)[1])

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.communicate()

    def stop(self) -> tuple[int, str]:
        """End it by SIGTERM; its status, and what it wrote to standard error."""
        self.popen.terminate()
        _, errors = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, errors
