"""The bench upstream: a stand-in for the provider that costs much less than any proxy under test.

``python -m bench.upstream [CERTIFICATE KEY]`` binds free ports of 127.0.0.1 and prints ``ready <plain> <tls>`` (0 where
there is no TLS). It answers what :mod:`bench.traffic` describes, takes an upload, gives a download, and says on
``GET /bench/seen/<id>`` when it saw a request and when that request's connection closed (CLOCK_MONOTONIC, ns).

It is no HTTP server: it knows the requests that the bench sends, and a byte-for-byte repeat of a complete request is
answered without being read again.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time
from typing import Final, cast

import uvloop

from bench.traffic import (
    ANSWER_BODY,
    MODE,
    SOCKET_HEAD,
    STREAM_HEAD,
    response_bytes,
    response_head,
    socket_frame,
    stream_chunk,
)

PLAIN_ANSWER: Final = response_bytes(ANSWER_BODY)
PIECE: Final = bytes(256 * 1024)
WINDOW: Final = 1024 * 1024


class Beat:
    """Gives every stream a chunk each ``interval`` milliseconds, evenly spread over the interval's milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: int) -> None:
        self._loop = loop
        self._slots: list[set[Upstream]] = [set() for _ in range(interval)]
        self._next = 0
        self._done = 0
        self._start: float | None = None

    def add(self, stream: Upstream) -> None:
        """Begin with ``stream``, in the slot after the one that was given last."""
        self._next = (self._next + 1) % len(self._slots)
        self._slots[self._next].add(stream)
        if self._start is None:
            self._start, self._done = time.monotonic(), 0
            self._loop.call_later(0.001, self._tick)

    def remove(self, stream: Upstream) -> None:
        """Stop with ``stream``."""
        for slot in self._slots:
            slot.discard(stream)

    def _tick(self) -> None:
        assert self._start is not None
        if not any(self._slots):
            self._start = None
            return
        due = int((time.monotonic() - self._start) * 1000)
        self._done = max(self._done, due - len(self._slots))  # who is that late has other work to do too
        while self._done < due:
            for stream in tuple(self._slots[self._done % len(self._slots)]):
                stream.write_chunk()
            self._done += 1
        self._loop.call_later(0.001, self._tick)


class State:
    """What the connections share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests = 0
        self.repeat = b""
        self.seen: dict[int, int] = {}
        self.closed: dict[int, int] = {}
        self._beats: dict[int, Beat] = {}

    def beat(self, interval: int) -> Beat:
        """The one beat of that interval (ms)."""
        if interval not in self._beats:
            self._beats[interval] = Beat(self.loop, interval)
        return self._beats[interval]


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._transport = cast(asyncio.Transport, None)
        self._held = b""
        self._upload = self._upload_left = 0
        self._download_left = 0
        self._paused = False
        self._beat: Beat | None = None
        self._watched: int | None = None
        self._chunks = 0
        self._made = stream_chunk

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WINDOW)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if data == state.repeat and not self._held and not self._upload_left:
            state.requests += 1
            self._transport.write(PLAIN_ANSWER)
            return
        if self._upload_left:
            self._take_upload(len(data))
            return
        if self._held:
            data = self._held + data
        self._held = b""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._held = data
            return
        head = data[:end].lower()
        if head.startswith(b"get "):
            self._get(head)
            return
        if head.startswith(b"post ") and b"/files " in head[: head.index(b"\r\n")]:
            self._upload = self._upload_left = _length(head)
            self._take_upload(len(data) - end)
            return
        if not _complete(head, data, end):
            self._held = data
            return
        self._chat(data, end)

    def _chat(self, request: bytes, end: int) -> None:
        state = self._state
        state.requests += 1
        mode = MODE.search(request, end)
        if mode is None:
            state.repeat = request
            self._transport.write(PLAIN_ANSWER)
            return
        kind, interval, number = mode.group(1), int(mode.group(2)), int(mode.group(3))
        self._watched = number
        state.seen[number] = time.monotonic_ns()
        if kind == b"hold":
            return
        self._begin(STREAM_HEAD, kind, interval)

    def _begin(self, head: bytes, kind: bytes, interval: int) -> None:
        """Begin a stream, of events or of frames."""
        self._chunks = 0
        self._transport.write(head)
        self.write_chunk()
        if kind == b"sse":
            self._beat = self._state.beat(interval)
            self._beat.add(self)

    def write_chunk(self) -> None:
        """Write the stream's next chunk, with the time it is now in it."""
        self._transport.write(self._made(time.monotonic_ns(), self._chunks))
        self._chunks += 1

    def _get(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1]
        if b"\r\nupgrade: websocket\r\n" in head and (mode := MODE.search(target)) is not None:
            self._made = socket_frame
            self._begin(SOCKET_HEAD, mode.group(1), int(mode.group(2)))
            return
        if target.startswith(b"/bench/seen/"):
            number = int(target.rsplit(b"/", 1)[1])
            times = f"{self._state.seen.get(number, 0)} {self._state.closed.get(number, 0)}"
            self._transport.write(response_bytes(times.encode(), "text/plain"))
        elif target == b"/bench/requests":
            self._transport.write(response_bytes(b"%d" % self._state.requests, "text/plain"))
        else:
            self._download_left = int(target.rsplit(b"bytes=", 1)[1])
            self._transport.write(response_head(self._download_left, "application/octet-stream"))
            self._give_download()

    def _take_upload(self, count: int) -> None:
        self._upload_left -= count
        if self._upload_left == 0:
            self._transport.write(response_bytes(b'{"received": %d}' % self._upload))

    def _give_download(self) -> None:
        while self._download_left and not self._paused:
            piece = PIECE if self._download_left >= len(PIECE) else PIECE[: self._download_left]
            self._download_left -= len(piece)
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._give_download()

    def eof_received(self) -> None:
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()
        self._download_left = 0
        if self._beat is not None:
            self._beat.remove(self)

    def _ended(self) -> None:
        if self._watched is not None:
            self._state.closed.setdefault(self._watched, time.monotonic_ns())


def _length(head: bytes) -> int:
    start = head.index(b"\r\ncontent-length:") + 17
    return int(head[start : head.index(b"\r", start)])


def _complete(head: bytes, data: bytes, end: int) -> bool:
    if b"\r\ntransfer-encoding:" in head:
        return data.endswith(b"0\r\n\r\n")
    return len(data) - end >= _length(head)


async def serve(certificate: str | None, key: str | None) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    state = State(loop)
    plain = await loop.create_server(lambda: Upstream(state), "127.0.0.1", 0, backlog=4096)
    tls_port = 0
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        tls = await loop.create_server(lambda: Upstream(state), "127.0.0.1", 0, backlog=4096, ssl=context)
        tls_port = tls.sockets[0].getsockname()[1]
    print("ready", plain.sockets[0].getsockname()[1], tls_port, flush=True)
    gc.disable()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*(sys.argv[1:3] if len(sys.argv) > 2 else (None, None))))
