"""Both ends of a proxy in one test: clients and an upstream on plain sockets, moved by one event loop.

Nothing is read ahead here and nothing is sent unasked, so a test can say what has reached whom at which moment.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from attrs import define, field, frozen

from tests.e2e.processes import PATIENCE, Proxy, StartProxy, stop_all

LIMIT = 20.0
"""Seconds for what should happen at once: on a busy machine it may take long, but not so long."""

PROVIDER_KEY = "sk-live-0123456789abcdef"

T = TypeVar("T")


class Cut(Exception):
    """The transfer failed: the connection ended, in whatever way, before the message's framing said so."""


def live(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test function of a coroutine function; it may take ten minutes at most, as it does where it hangs."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), 600))

    return run


async def soon(what: Awaitable[T], meaning: str, limit: float = LIMIT) -> T:
    """Await, but not for ever.

    :raises AssertionError: after ``limit`` seconds.
    """
    try:
        async with asyncio.timeout(limit):
            return await what
    except TimeoutError:
        raise AssertionError(f"not within {limit:g} s: {meaning}") from None


async def until(probe: Callable[[], T | None], meaning: str, limit: float = LIMIT) -> T:
    """Call ``probe`` until it gives something true, and return that.

    :raises AssertionError: after ``limit`` seconds.
    """
    deadline = time.monotonic() + limit
    while not (found := probe()):
        assert time.monotonic() < deadline, f"not within {limit:g} s: {meaning}"
        await asyncio.sleep(0.02)
    return found


@frozen
class Head:
    """The head of a request or an answer.

    :ivar start: its first line.
    :ivar pairs: its fields in order, as they came.
    """

    start: bytes
    pairs: list[tuple[bytes, bytes]]

    @property
    def status(self) -> int:
        """An answer's status."""
        return int(self.start.split(b" ")[1])

    @property
    def target(self) -> bytes:
        """A request's target."""
        return self.start.split(b" ")[1]

    def get(self, name: str) -> str | None:
        """A field's value, the last one where there are several, or None."""
        found = [value for key, value in self.pairs if key.lower() == name.encode()]
        return found[-1].decode("latin-1") if found else None


@define
class Link:
    """One connection, at either end."""

    sock: socket.socket = field(repr=False)
    _held: bytearray = field(factory=bytearray, repr=False)

    async def send(self, data: bytes, limit: float = LIMIT) -> None:
        """Hand all of it to the kernel."""
        await soon(asyncio.get_running_loop().sock_sendall(self.sock, data), f"{len(data)} bytes are taken", limit)

    async def receive(self, limit: float = LIMIT, size: int = 65536) -> bytes:
        """What comes next; nothing at the connection's end.

        :raises ConnectionResetError: the other side cut it.
        """
        if self._held:
            data = bytes(self._held[:size])
            del self._held[:size]
            return data
        return await soon(asyncio.get_running_loop().sock_recv(self.sock, size), "bytes come", limit)

    async def upto(self, mark: bytes, limit: float = LIMIT) -> bytes:
        """Bytes up to and with the mark.

        :raises Cut: the connection ends before.
        """
        while (at := self._held.find(mark)) < 0:
            await self._more(limit)
        data = bytes(self._held[: at + len(mark)])
        del self._held[: at + len(mark)]
        return data

    async def exactly(self, size: int, limit: float = LIMIT) -> bytes:
        """So many bytes.

        :raises Cut: the connection ends before.
        """
        while len(self._held) < size:
            await self._more(limit)
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    async def _more(self, limit: float) -> None:
        try:
            data = await soon(asyncio.get_running_loop().sock_recv(self.sock, 65536), "bytes come", limit)
        except ConnectionResetError:
            raise Cut("reset") from None
        if not data:
            raise Cut("ended")
        self._held += data

    async def head(self, limit: float = LIMIT) -> Head:
        """The next message's head."""
        lines = (await self.upto(b"\r\n\r\n", limit))[:-4].split(b"\r\n")
        pairs = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
        return Head(lines[0], pairs)

    def body(self, head: Head) -> Body:
        """The body that belongs to a head."""
        if "chunked" in (head.get("transfer-encoding") or ""):
            return Body(self, None, chunked=True)
        length = head.get("content-length")
        if length is None and not head.start.startswith(b"HTTP/"):
            length = "0"
        return Body(self, None if length is None else int(length), chunked=False)

    async def message(self, limit: float = LIMIT) -> tuple[Head, bytes]:
        """A whole message.

        :raises Cut: it does not come to its end.
        """
        head = await self.head(limit)
        return head, await self.body(head).rest(limit)

    async def end(self, limit: float = LIMIT) -> str:
        """Read and drop until the other side ends the connection; ``fin`` or ``reset``."""
        self._held.clear()
        try:
            while await self.receive(limit):
                pass
        except ConnectionResetError:
            return "reset"
        return "fin"

    def fin(self) -> None:
        """Say that no more will be sent, and stay to read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Cut the connection (RST)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close the socket, as a program does that is done with it: RST where bytes are unread, otherwise FIN."""
        self.sock.close()


@define
class Body:
    """A body as it comes, without its transfer coding.

    :ivar left: bytes that are still to come where its length is known.
    """

    link: Link
    left: int | None
    chunked: bool
    _piece: int = 0  # what is left of the chunk under way
    ended: bool = False

    async def some(self, limit: float = LIMIT, size: int = 65536) -> bytes:
        """What comes next; nothing at the body's end.

        :raises Cut: the connection ends before the body does.
        """
        if self.ended:
            return b""
        if self.chunked and not self._piece:
            self._piece = int((await self.link.upto(b"\r\n", limit)).split(b";")[0], 16)
            if not self._piece:
                while await self.link.upto(b"\r\n", limit) != b"\r\n":
                    pass
                self.ended = True
                return b""
        most = self._piece if self.chunked else size if self.left is None else self.left
        if most == 0:
            self.ended = True
            return b""
        try:
            data = await self.link.receive(limit, min(most, size))
        except ConnectionResetError:
            raise Cut("reset") from None
        if not data:
            if self.chunked or self.left is not None:
                raise Cut("ended")
            self.ended = True
        if self.left is not None:
            self.left -= len(data)
        if self.chunked:
            self._piece -= len(data)
            if not self._piece:
                assert await self.link.exactly(2, limit) == b"\r\n"
        return data

    async def read(self, size: int, limit: float = LIMIT) -> bytes:
        """So many bytes, and not one more is read.

        :raises Cut: the connection ends before.
        :raises AssertionError: the body ends before.
        """
        data = b""
        while len(data) < size:
            piece = await self.some(limit, size - len(data))
            assert piece, f"the body ended after {data!r}"
            data += piece
        return data

    async def rest(self, limit: float = LIMIT) -> bytes:
        """All that is still to come.

        :raises Cut: the connection ends before the body does.
        """
        pieces = []
        while piece := await self.some(limit):
            pieces.append(piece)
        return b"".join(pieces)


@define
class Wire:
    """A proxy of the test's own, its clients, and the upstream that it speaks to.

    :ivar proxy: the running proxy; its request log is the file ``rows_path``.
    :ivar url: of the upstream whose connections :meth:`accept` gives.
    """

    proxy: Proxy
    url: str
    rows_path: Path
    _listening: socket.socket
    _links: list[Link] = field(factory=list)
    _lasts: bool = False  # the proxy serves further tests
    _since: int = 0  # where this test's rows begin

    async def dial(self, buffer: int | None = None, port: int | None = None, unix: Path | None = None) -> Link:
        """A client's connection.

        :param buffer: bytes that the kernel may hold for a client that does not read.
        :param port: of another server than the proxy; likewise the path of a UNIX socket.
        """
        sock = socket.socket(socket.AF_INET if unix is None else socket.AF_UNIX)
        sock.setblocking(False)
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        link = self._own(sock)
        address = ("127.0.0.1", self.proxy.port if port is None else port) if unix is None else str(unix)
        await soon(asyncio.get_running_loop().sock_connect(sock, address), "a connection is made")
        if unix is None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    async def accept(self, limit: float = LIMIT) -> Link:
        """The upstream's end of the next connection that the proxy makes."""
        sock, _ = await soon(
            asyncio.get_running_loop().sock_accept(self._listening), "the proxy connects to the upstream", limit
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._own(sock)

    def nothing_came(self) -> bool:
        """Whether no connection to the upstream waits to be accepted."""
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def request(
        self,
        tag: str = "",
        *fields: str,
        method: str = "POST",
        target: str = "/v1/chat/completions",
        body: bytes | None = b"{}",
        key: str | None = None,
        version: str = "HTTP/1.1",
    ) -> bytes:
        """The bytes of a request with a valid key.

        :param tag: under which :meth:`row` finds it.
        :param fields: further fields, each a line.
        :param body: None leaves it, and its length, to the caller.
        """
        lines = [
            f"{method} {target} {version}",
            "Host: flowstack.example",
            f"Flowstack-Auth: Bearer {key or self.proxy.key}",
            f"Authorization: Bearer {PROVIDER_KEY}",
            *([f"Flowstack-Attribute-Tag: {tag}"] if tag else []),
            *([f"Content-Length: {len(body)}"] if body else []),
            *fields,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")

    async def ask(self, *args: Any, **kwargs: Any) -> tuple[Link, Link, Head]:
        """Send a request on a new connection; give both ends, and the head that the upstream got.

        The request's body is read there, too.
        """
        client = await self.dial()
        await client.send(self.request(*args, **kwargs))
        upstream = await self.accept()
        head, _ = await upstream.message()
        return client, upstream, head

    async def works(self) -> None:
        """See that a request on a new connection is relayed and answered."""
        client, upstream, _ = await self.ask()
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        head, body = await client.message()
        assert (head.status, body) == (200, b"ok")
        client.close()
        await upstream.end()

    async def heard(self) -> None:
        """See that the proxy has read whatever was sent to it before: it answers a later request by itself.

        A reset would otherwise take along what is still unread in the proxy's socket.
        """
        client = await self.dial()
        await client.send(self.request(target="/nowhere"))
        assert (await client.message())[0].status == 404
        client.close()

    async def refuses(self) -> None:
        """Wait until new connections are refused: Twisted closes a port one turn after it was told to."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ConnectionResetError):  # it waited to be accepted, and nobody will any more
                    try:
                        (await self.dial()).close()
                    except ConnectionRefusedError:
                        return
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """The proxy's exit status, once it has ended."""
        return await asyncio.to_thread(self.proxy.wait, PATIENCE)

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines of the request log so far."""
        return read_rows(self.rows_path, self._since)

    async def row(self, tag: str) -> dict[str, Any]:
        """The one row of the request with this tag, as soon as it is written."""

        def found() -> list[dict[str, Any]]:
            return [row for row in self.rows() if (row["attributes"] or {}).get("tag") == tag]

        rows = await until(found, f"a row of {tag!r} is written")
        assert len(rows) == 1, rows
        return rows[0]

    async def all_rows(self, count: int) -> list[dict[str, Any]]:
        """The rows that hold a tag or any other attribute, once there are so many, and none more."""

        def found() -> list[dict[str, Any]]:
            rows = [row for row in self.rows() if row["attributes"]]
            return rows if len(rows) >= count else []

        rows = await until(found, f"{count} requests have their rows")
        assert len(rows) == count, rows
        return rows

    def _own(self, sock: socket.socket) -> Link:
        self._links.append(Link(sock))
        return self._links[-1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            link.close()
        self._links.clear()
        if fault is None and self._lasts:
            await self._settle()
        else:
            self._listening.close()
            self._lasts = False
        if fault is None:
            if not self._lasts:
                await asyncio.to_thread(self.proxy.stop)
            ids = [row["request_id"] for row in self.rows()]
            assert len(ids) == len(set(ids)), "a request has two rows"
            assert "Traceback" not in self.proxy.log_text(), self.proxy.log_text()

    async def _settle(self) -> None:
        """Wait until the rows of all that this test asked for are written: a later request has its own."""
        client = await self.dial()
        await client.send(self.request(target="/nowhere"))
        last = (await client.message())[0].get("flowstack-request-id")
        client.close()
        self._links.clear()
        await until(lambda: any(row["request_id"] == last for row in self.rows()), "the last row is written")
        while not self.nothing_came():
            pass


@define
class Wires:
    """Wires for the tests of a module, one after the other: those with equal settings share a proxy.

    A test whose wire failed takes its proxy along.
    """

    folder: Path
    _wires: dict[str, Wire] = field(factory=dict)
    _started: list[Proxy] = field(factory=list)

    def __call__(self, *, upstream: str | None = None, **settings: Any) -> Wire:
        """See :func:`wire`; the request log is in a folder of its own."""
        name = repr((upstream, settings))
        found = self._wires.get(name)
        if found is None or not found._lasts:
            folder = self.folder / str(len(self._started))
            found = self._wires[name] = wire(self._start, folder, upstream=upstream, **settings)
            found._lasts = True
        found._since = found.rows_path.stat().st_size if found.rows_path.exists() else 0
        return found

    def _start(self, *, upstream: str, **settings: Any) -> Proxy:
        self._started.append(Proxy(self.folder / str(len(self._started)), upstream, settings=settings))
        return self._started[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._wires.values():
            each._listening.close()
        stop_all(self._started)


def wire(start_proxy: StartProxy, folder: Path, *, upstream: str | None = None, **settings: Any) -> Wire:
    """Start a proxy before an upstream that the test itself plays.

    :param folder: for the request log.
    :param upstream: another upstream's base URL; ``{port}`` in it is replaced by the port of the test's own.
    """
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setblocking(False)
    port = listening.getsockname()[1]
    rows = folder / "requests.jsonl"
    settings = {"log": {"requests": str(rows)}, **settings}
    try:
        proxy = start_proxy(upstream=(upstream or "http://127.0.0.1:{port}/v1").format(port=port), **settings)
    except BaseException:
        listening.close()
        raise
    return Wire(proxy, f"http://127.0.0.1:{port}", rows, listening)


def read_rows(path: Path, since: int = 0) -> list[dict[str, Any]]:
    """The whole lines of a request log from a byte on; none where there is no file."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[since:].split(b"\n")[:-1]]


def error_of(body: bytes) -> dict[str, Any]:
    """What an error of Flowstack's says."""
    error: dict[str, Any] = json.loads(body)["error"]
    return error


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Let something go on beside the block; it is stopped where the block ends first."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, now and at most so far."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def open_files(pid: int) -> set[str]:
    """The regular files that a process has open, those without a name included."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            path = os.readlink(entry)
            if path.startswith("/") and not path.startswith(("/dev/", "/proc/")):
                found.add(path)
    return found
