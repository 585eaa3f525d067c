"""Two Flowstacks behind one server, by the configurations that are offered: what clients see when one of them ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from attrs import define, field, frozen

from tests.e2e.behind import ASK, Front, StartFront, client_at, connect, haproxy, nginx, opened
from tests.e2e.crowd import STREAM, chunk, journal
from tests.e2e.live import Body, Cut, beside, live, soon, until
from tests.e2e.processes import PATIENCE, Proxy, StartProxy, eventually
from tests.testing.wire import Client

pytestmark = pytest.mark.e2e

ADMIN: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], "admin": "tcp:0:interface=127.0.0.1"}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@frozen
class Kind:
    """A server that stands in front.

    :ivar server: what ``[server]`` says behind it.
    :ivar pre_drain: seconds: longer than two of its checks on a busy machine, where it makes any.
    """

    start: StartFront
    server: dict[str, Any]
    pre_drain: float


@pytest.fixture(
    params=[Kind(haproxy, ADMIN | {"proxy_protocol": True}, 8), Kind(nginx, ADMIN, 0)], ids=["haproxy", "nginx"]
)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@define
class Provider:
    """An upstream that answers at once, but for ``/v1/stream``: the test writes those answers.

    :ivar streams: the connections on which they go, in the order in which they were asked for.
    """

    streams: asyncio.Queue[asyncio.StreamWriter] = field(factory=asyncio.Queue)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await until_blank(reader):
            if b"/v1/stream" in head:
                writer.write(STREAM)
                self.streams.put_nowait(writer)
            else:
                writer.write(OK)
        writer.close()


async def until_blank(reader: asyncio.StreamReader) -> bytes:
    """A request without a body; nothing at the connection's end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


@define
class Scene:
    """Two Flowstacks, what is in front of them and behind them, and the clients."""

    one: Proxy
    two: Proxy
    front: Front
    provider: Provider
    _clients: ExitStack

    def request(self, target: str) -> bytes:
        lines = (f"POST {target} HTTP/1.1", "Host: llm.example.com", f"Flowstack-Auth: Bearer {self.one.key}")
        return "\r\n".join((*lines, "Content-Length: 0", "", "")).encode()

    async def ask(self, source: str = "127.0.0.1") -> int:
        """The status of a request on a connection of its own."""
        with client_at(source) as client:
            await connect(client, self.front.port)
            await client.send(self.request("/v1/x"))
            return (await client.message())[0].status

    async def stream(self, source: str = "127.0.0.1") -> tuple[Body, asyncio.StreamWriter]:
        """Begin a stream; what its client reads, and what the provider writes."""
        client = self._clients.enter_context(client_at(source))
        await connect(client, self.front.port)
        await client.send(self.request("/v1/stream"))
        head = await client.head()
        assert head.status == 200
        return client.body(head), await soon(self.provider.streams.get(), "it is asked for at the provider")

    async def goes_on(self, body: Body, writer: asyncio.StreamWriter) -> None:
        """See that the next event arrives before there is another one."""
        writer.write(chunk(b"data: 1\n\n"))
        assert await body.read(9) == b"data: 1\n\n"


@asynccontextmanager
async def two_behind(
    kind: Kind, start_proxy: StartProxy, folder: Path, pre_drain: float = 0.0
) -> AsyncIterator[Scene]:
    """Two Flowstacks that know the same key, behind the server."""
    provider = Provider()
    async with await asyncio.start_server(provider.serve, "127.0.0.1", 0) as behind:
        upstream = f"http://127.0.0.1:{behind.sockets[0].getsockname()[1]}/v1"
        times = {"pre_drain": pre_drain}
        one = await asyncio.to_thread(start_proxy, upstream=upstream, server=kind.server, timeouts=times)
        keys = {"keys": str(one.keys_path)}
        two = await asyncio.to_thread(start_proxy, upstream=upstream, server=kind.server | keys, timeouts=times)
        with ExitStack() as stack:
            front = await asyncio.to_thread(stack.enter_context, kind.start(folder, one, two))
            scene = Scene(one, two, front, provider, stack.enter_context(ExitStack()))
            await until_answered(scene)
            yield scene


async def until_answered(scene: Scene) -> None:
    """HAProxy takes connections before its first checks have ended."""
    async with asyncio.timeout(PATIENCE):
        while await scene.ask() != 200:
            await asyncio.sleep(0.02)


def served(proxy: Proxy, path: str) -> list[tuple[str, str]]:
    """Of each request for a path its end, and where its client was."""
    return [(row["end"], row["client_addr"]) for row in journal(proxy) if row["path"] == path]


@live
async def test_streams_spread_evenly_and_rows_have_the_clients_own_addresses(
    kind: Kind, start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with two_behind(kind, start_proxy, tmp_path) as scene:
        sources = [f"127.0.0.{number}" for number in range(11, 19)]
        streams = [await scene.stream(source) for source in sources]
        for body, writer in streams:
            await scene.goes_on(body, writer)
            writer.write(b"0\r\n\r\n")
            assert await body.rest() == b""
        rows = await asyncio.to_thread(eventually, lambda: rows_of_all(scene, 8), "each has its row")
        assert [len(found) for found in rows] == [4, 4]
        assert sorted(rows[0] + rows[1]) == [("complete", source) for source in sources]


def rows_of_all(scene: Scene, count: int) -> list[list[tuple[str, str]]] | None:
    found = [served(proxy, "/v1/stream") for proxy in (scene.one, scene.two)]
    return found if sum(map(len, found)) == count else None


@live
async def test_a_restart_of_one_fails_no_request_and_cuts_no_stream(
    kind: Kind, start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with two_behind(kind, start_proxy, tmp_path, kind.pre_drain) as scene:
        streams = [await scene.stream(), await scene.stream()]  # one at each
        statuses: list[int] = []

        async def load() -> None:
            while True:
                statuses.append(await scene.ask())

        async with beside(load()) as first, beside(load()) as second:
            await asyncio.to_thread(scene.front.leave_out, scene.one)
            scene.one.signal(signal.SIGTERM)
            await refused(scene.one.port)
            ended_at = len(statuses)
            for body, writer in streams:
                await scene.goes_on(body, writer)
            await until(lambda: len(statuses) > ended_at + 20, "the other one serves")
            for body, writer in streams:
                await scene.goes_on(body, writer)
                writer.write(b"0\r\n\r\n")
                assert await body.rest() == b""
            assert await asyncio.to_thread(scene.one.wait, PATIENCE) == 0
            assert not first.done()
            assert not second.done()
        assert set(statuses) == {200}
        assert [served(proxy, "/v1/stream") for proxy in (scene.one, scene.two)] == [[("complete", "127.0.0.1")]] * 2


async def refused(port: int) -> None:
    """Wait until a port takes no connection any more."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.05)


@live
async def test_after_a_crash_of_one_the_other_serves_at_once_and_cut_streams_look_cut(
    kind: Kind, start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with two_behind(kind, start_proxy, tmp_path) as scene:
        streams = [await scene.stream(), await scene.stream()]
        for body, writer in streams:
            await scene.goes_on(body, writer)
        scene.one.kill()
        assert {await scene.ask() for _ in range(20)} == {200}
        ends = []
        for body, writer in streams:
            writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
            ends.append(await ending(body))
        assert sorted(ends) == ["cut", "data: 2\n\n"]


async def ending(body: Body) -> str:
    """What is still to come of a body, or that it was cut."""
    try:
        return (await body.rest()).decode()
    except Cut:
        return "cut"


class Streamed:
    """A chat whose answer takes seconds; ``data`` is what has come of it."""

    def __init__(self, client: Client, token: str) -> None:
        self.data = b""
        self.sock = client.connect()
        body = b'{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
        fields = (f"Flowstack-Auth: Bearer {token}", "Stand-In: chunks=40; gap=0.1", "Content-Type: application/json")
        self.sock.sendall(client.request("POST", "/v1/chat/completions", *fields, body=body))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def more(self) -> None:
        """Read once."""
        piece = self.sock.recv(65536)
        assert piece, self.data
        self.data += piece


def test_websockets_and_streams_pass_at_the_same_time(kind: Kind, start_proxy: StartProxy, tmp_path: Path) -> None:
    one = start_proxy(server=kind.server)
    two = start_proxy(server=kind.server | {"keys": str(one.keys_path)})
    with kind.start(tmp_path, one, two) as front, ExitStack() as stack:
        client = Client(front.port)
        eventually(lambda: client.ask("GET", "/v1/models", f"Flowstack-Auth: Bearer {one.key}").status == 200, "it is")
        sockets = [stack.enter_context(opened(one, client)) for _ in range(2)]
        streams = [stack.enter_context(Streamed(client, one.key)) for _ in range(2)]
        for stream in streams:
            stream.more()
        for socket in sockets:
            socket.send(**ASK)
            assert socket.until("response.completed")[-1]["response"]["usage"]["total_tokens"] > 0
        for stream in streams:
            assert b"[DONE]" not in stream.data, "its events came while the WebSockets spoke"
            while not stream.data.endswith(b"0\r\n\r\n"):
                stream.more()
            assert b"data: [DONE]" in stream.data
        for proxy in (one, two):
            eventually(lambda at=proxy: served(at, "/v1/chat/completions") == [("complete", "127.0.0.1")], "its row")
        for socket in sockets:
            socket.close()
        for proxy in (one, two):
            eventually(lambda at=proxy: ("complete", "127.0.0.1") in served(at, "/v1/responses"), "its row")
