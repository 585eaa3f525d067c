"""Many event streams at once, on uvloop, with as little work for each chunk as Python allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import cast

from bench.procs import BenchError
from bench.traffic import MARK, MARK_BYTES

#: Streams that are being opened at the same time.
OPENING = 100


class Meter:
    """What all streams of a run write into.

    :ivar delays: one for each chunk while ``on``: from the upstream's writing to the client's reading, in ns.
    :ivar fault: the first thing that went wrong with any stream.
    """

    def __init__(self) -> None:
        self.on = False
        self.delays: list[int] = []
        self.fault: str | None = None


class Stream(asyncio.Protocol):
    """One request whose answer is an event stream, or a WebSocket's frames.

    :ivar first: done with the ns from request to first chunk.
    """

    def __init__(self, meter: Meter, request: bytes) -> None:
        self._meter = meter
        self._request = request
        self._tail = b""
        self._number = 0
        self._asked = 0
        self._leaving = False
        self.first: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._asked = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._number == 0 and not self._begins(data, now):
            return
        meter = self._meter
        position = 0
        while True:
            at = data.find(MARK, position)
            if at < 0:
                if data.endswith(MARK[:1]):
                    self._tail = MARK[:1]
                return
            position = at + MARK_BYTES
            if position > len(data):
                self._tail = data[at:]
                return
            if int(data[at + 23 : at + 31]) != self._number:
                self._fail(f"chunk {self._number} of a stream is missing")
                return
            self._number += 1
            if meter.on:
                meter.delays.append(now - int(data[at + 2 : at + 22]))

    def _begins(self, data: bytes, now: int) -> bool:
        if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 101")):
            self._fail("a stream was answered with " + repr(data.split(b"\r\n", 1)[0][:60]))
            return False
        at = data.find(MARK)
        if at < 0 or at + MARK_BYTES > len(data):
            self._tail = data
            return False
        if not self.first.done():
            self.first.set_result(now - self._asked)
        return True

    def _fail(self, why: str) -> None:
        self._meter.fault = self._meter.fault or why
        if not self.first.done():
            self.first.set_exception(BenchError(why))
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._leaving:
            self._fail("a stream was closed before its end")

    def leave(self) -> None:
        """Close the connection in mid-stream."""
        self._leaving = True
        self._transport.abort()


async def open_streams(port: int, requests: Iterator[bytes], meter: Meter) -> tuple[list[Stream], list[int]]:
    """Open a stream for each request; returns when each has had its first chunk, with the times to it in ns.

    :raises BenchError: if one is refused, or gets no chunk within 30 s.
    """
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    first: list[int] = []

    async def opener() -> None:
        for request in requests:
            _, stream = await loop.create_connection(lambda r=request: Stream(meter, r), "127.0.0.1", port)  # type: ignore[misc]
            streams.append(stream)
            try:
                first.append(await asyncio.wait_for(stream.first, 30))
            except TimeoutError:
                raise BenchError("a stream had no chunk within 30 s") from None

    async with asyncio.TaskGroup() as openers:
        for _ in range(OPENING):
            openers.create_task(opener())
    return streams, first


def the_fault(group: BaseExceptionGroup[BaseException]) -> BenchError:
    """The one of a task group's faults that a person should read."""
    inner = group.exceptions[0]
    return inner if isinstance(inner, BenchError) else BenchError(f"{inner}" or type(inner).__name__)
