"""How long after the client has left the upstream's connection is closed."""

from __future__ import annotations

import http.client
import socket
import time
from typing import Any

from bench.procs import BenchError
from bench.stats import percentile
from bench.traffic import MARK

#: Seconds after which an upstream connection that is still open counts as never closed.
PATIENCE = 2.0
#: As wide as what takes its place, so that Content-Length holds.
NUMBER = "########"


def run(order: dict[str, Any]) -> dict[str, float]:
    """Leave ``trials`` times on ``port``; ``upstream`` is the upstream's own port.

    ``request`` holds :data:`NUMBER`, in place of which each request gets its own number, from ``first`` on.
    ``chunks`` of a stream are awaited before leaving; with 0, only that the upstream saw the request.
    """
    control = http.client.HTTPConnection("127.0.0.1", order["upstream"], timeout=10)
    times: list[float] = []
    never = 0
    for number in range(order["first"], order["first"] + order["trials"]):
        with socket.create_connection(("127.0.0.1", order["port"]), timeout=10) as connection:
            connection.sendall(order["request"].replace(NUMBER, f"{number:08d}").encode())
            _await_chunks(connection, order["chunks"])
            _await_time(control, number, 0)
            time.sleep(0.002)
            left = time.monotonic_ns()
        closed = _await_time(control, number, 1)
        never += closed is None
        times.append(PATIENCE * 1000 if closed is None else (closed - left) / 1e6)
    times.sort()
    return {
        "trials": len(times),
        "never": never,
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "max_ms": times[-1],
    }


def _await_chunks(connection: socket.socket, chunks: int) -> None:
    got = b""
    while got.count(MARK) < chunks:
        data = connection.recv(65536)
        if not data:
            raise BenchError("a stream was closed before its end")
        got += data
    if got and not got.startswith(b"HTTP/1.1 200"):
        raise BenchError("a stream was answered with " + repr(got[:40]))


def _await_time(control: http.client.HTTPConnection, number: int, which: int) -> int | None:
    deadline = time.monotonic() + (PATIENCE if which else 10)
    while time.monotonic() < deadline:
        control.request("GET", f"/bench/seen/{number}")
        times = control.getresponse().read().split()
        if int(times[which]):
            return int(times[which])
        time.sleep(0.003)
    if not which:
        raise BenchError("a request did not reach the upstream within 10 s")
    return None
