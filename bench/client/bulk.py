"""One big upload, one big download; blocking sockets, so that the client costs next to nothing."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

from bench.procs import BenchError, cpu_ns, peak, reset_peak

PIECE = 1024 * 1024
PATIENCE = 120.0


def upload(order: dict[str, Any]) -> dict[str, float]:
    """Send ``head`` and ``bytes`` zero bytes to ``port``; ``pids`` are the subject's processes.

    :raises BenchError: unless the upstream says that it had each byte.
    """
    piece = memoryview(bytes(PIECE))
    with _Transfer(order) as run:
        left = order["bytes"]
        while left:
            left -= run.socket.send(piece[: min(left, PIECE)])
        answer = b""
        while (match := re.search(rb'"received": (\d+)\}', answer)) is None:
            data = run.socket.recv(65536)
            if not data:
                raise BenchError("the upload's answer was cut: " + repr(answer[:60]))
            answer += data
        run.got = int(match.group(1))
    return run.values()


def download(order: dict[str, Any]) -> dict[str, float]:
    """Send ``head`` to ``port`` and take ``bytes`` bytes; ``pids`` are the subject's processes.

    :raises BenchError: unless exactly as many come.
    """
    buffer = bytearray(PIECE)
    with _Transfer(order) as run:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += run.socket.recv(65536) or _cut()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise BenchError("the download was answered with " + repr(answer[:60]))
        if b"chunked" in answer.split(b"\r\n\r\n")[0].lower():
            raise BenchError("the download's Content-Length was lost")
        run.got = len(answer) - answer.index(b"\r\n\r\n") - 4
        while run.got < order["bytes"]:
            run.got += run.socket.recv_into(buffer) or _cut()
    return run.values()


def _cut() -> Any:
    raise BenchError("the download was cut")


class _Transfer:
    """Holds the connection open and the subject's time and memory in view while a transfer runs."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self.got = 0

    def __enter__(self) -> _Transfer:
        self.socket = socket.create_connection(("127.0.0.1", self._order["port"]), timeout=PATIENCE)
        self._cpu = cpu_ns(self._order["pids"])
        self._resident = reset_peak(self._order["pids"])
        self._began = time.monotonic()
        self.socket.sendall(self._order["head"].encode())
        return self

    def __exit__(self, *exc: object) -> None:
        self._took = time.monotonic() - self._began
        self._grown = peak(self._order["pids"]) - self._resident
        self._cpu = cpu_ns(self._order["pids"]) - self._cpu
        self.socket.close()

    def values(self) -> dict[str, float]:
        if self.got != self._order["bytes"]:
            raise BenchError(f"{self.got} of {self._order['bytes']} bytes came through")
        return {
            "mib_s": self.got / 2**20 / self._took,
            "cpu_ms_gib": self._cpu / 1e6 / (self.got / 2**30),
            "growth_mib": self._grown / 2**20,
        }
