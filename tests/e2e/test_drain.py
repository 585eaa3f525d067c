"""SIGTERM: what is under way ends well, what is new is sent elsewhere, and the process ends with status 0."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest

from tests.e2e.live import Cut, Wire, error_of, live, read_rows, until, wire
from tests.e2e.processes import PATIENCE, StandIn, StartProxy

pytestmark = pytest.mark.e2e

ADMIN: dict[str, Any] = {"server": {"admin": "tcp:0:interface=127.0.0.1"}}
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def admin(scene: Wire, path: str) -> tuple[int, bytes]:
    """Ask the admin listener, on a connection of its own."""
    found = await until(
        lambda: re.search(r"admin listening on http://127\.0\.0\.1:(\d+)", scene.proxy.log_text()),
        "the admin listener says where it is",
    )
    client = await scene.dial(port=int(found[1]))
    await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, body = await client.message()
    client.close()
    return head.status, body


async def unready(scene: Wire) -> None:
    """Wait until the proxy says that it drains."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await admin(scene, "/readyz"))[0] == 200:
            await asyncio.sleep(0.02)
    assert (answer[0], answer[1].partition(b"\n")[0]) == (503, b"draining")


@live
async def test_streams_in_flight_finish_and_new_requests_are_told_to_go_elsewhere(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **ADMIN) as scene:
        status, said = await admin(scene, "/readyz")
        assert (status, said[:3]) == (200, b"ok\n")
        kept, upstream, _ = await scene.ask("kept")
        await upstream.send(OK)
        assert (await kept.message())[1] == b"ok"
        await kept.send(scene.request("stream"))
        await upstream.message()
        await upstream.send(CHUNKED)
        body = kept.body(await kept.head())
        idle, other, _ = await scene.ask("idle")
        await other.send(OK)
        assert (await idle.message())[1] == b"ok"
        uploading = await scene.dial()
        await uploading.send(scene.request("upload", "Content-Length: 4", body=None) + b"up")
        receiving = other.body(await other.head())
        assert await receiving.read(2) == b"up"

        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        assert (await admin(scene, "/healthz"))[0] == 200
        await scene.refuses()

        await idle.send(scene.request("late"))
        head, answer = await idle.message()
        assert (head.status, head.get("flowstack-error")) == (503, "draining")
        assert int(head.get("retry-after") or 0) >= 1
        assert head.get("connection") == "close"
        assert error_of(answer)["code"] == "draining"
        assert await idle.end() == "fin"

        for number in range(5):
            await upstream.send(b"8\r\ndata: %d\n\r\n" % number)
            assert await body.read(8) == b"data: %d\n" % number
        await uploading.send(b"ld")
        assert await receiving.rest() == b"ld"
        await other.send(OK)
        head, answer = await uploading.message()
        assert (head.status, answer, head.get("connection")) == (200, b"ok", "close")
        with pytest.raises(TimeoutExpired):
            scene.proxy.wait(0)  # a stream is still under way
        await upstream.send(b"0\r\n\r\n")
        assert await body.rest() == b""
        assert await scene.ended() == 0
        assert await kept.end() == "fin"
        ends = {row["attributes"]["tag"]: (row["end"], row["status"]) for row in scene.rows()}
        assert ends == {
            "kept": ("complete", 200),
            "stream": ("complete", 200),
            "idle": ("complete", 200),
            "upload": ("complete", 200),
            "late": ("refused", 503),
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@live
async def test_a_process_with_nothing_under_way_ends_at_once(
    number: signal.Signals, start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path) as scene:
        client, upstream, _ = await scene.ask("done")
        await upstream.send(OK)
        await client.message()
        scene.proxy.signal(number)
        assert await scene.ended() == 0
        assert await client.end() == "fin", "an unused connection is closed in order"
        assert [row["end"] for row in scene.rows()] == ["complete"]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@live
async def test_a_second_sigterm_cuts_what_is_under_way_and_ends_with_status_0(
    version: str, start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **ADMIN) as scene:
        client, upstream, _ = await scene.ask("cut", version=version)
        await upstream.send(CHUNKED)
        body = client.body(await client.head())
        waiting, silent, _ = await scene.ask("headless")
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        scene.proxy.signal(signal.SIGTERM)
        assert await scene.ended() == 0
        with pytest.raises(Cut):
            await body.rest()
            pytest.fail("it looked finished")
        with pytest.raises(Cut):
            await waiting.head()
        await upstream.end()
        await silent.end()
        rows = {row["attributes"]["tag"]: (row["end"], row["status"]) for row in scene.rows()}
        assert rows == {"cut": ("drain", 200), "headless": ("drain", None)}


@pytest.mark.parametrize("workers", [1, 2])
@live
async def test_before_the_drain_new_clients_are_served_while_it_is_not_ready(
    workers: int, start_proxy: StartProxy, tmp_path: Path
) -> None:
    server = ADMIN["server"] | {"workers": workers}
    async with wire(start_proxy, tmp_path, timeouts={"pre_drain": 3600}, server=server) as scene:
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        client, upstream, _ = await scene.ask("new")
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"
        await client.send(scene.request("cut"))
        await upstream.message()
        scene.proxy.signal(signal.SIGTERM)
        assert await scene.ended() == 0
        await upstream.end()
        ends = {row["attributes"]["tag"]: row["end"] for row in scene.rows()}
        assert ends == {"new": "complete", "cut": "drain"}


@pytest.mark.parametrize("workers", [1, 2])
@live
async def test_the_drain_begins_by_itself_after_the_time_before_it(
    workers: int, start_proxy: StartProxy, tmp_path: Path
) -> None:
    server = ADMIN["server"] | {"workers": workers}
    async with wire(start_proxy, tmp_path, timeouts={"pre_drain": 0.5}, server=server) as scene:
        client, upstream, _ = await scene.ask("in flight")
        start = time.monotonic()
        scene.proxy.signal(signal.SIGTERM)
        await scene.refuses()
        assert time.monotonic() - start >= 0.5 - 0.002
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"
        assert await scene.ended() == 0
        assert [row["end"] for row in scene.rows()] == ["complete"]


@live
async def test_what_is_still_under_way_after_the_time_to_drain_is_cut(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path, timeouts={"drain": 3}, **ADMIN) as scene:
        client, upstream, _ = await scene.ask("cut")
        await upstream.send(CHUNKED)
        body = client.body(await client.head())
        start = time.monotonic()
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        await upstream.send(b"6\r\ndata:\n\r\n")
        assert await body.read(6) == b"data:\n"
        assert await scene.ended() == 0
        assert time.monotonic() - start >= 3 - 0.002
        with pytest.raises(Cut):
            await body.rest()
            pytest.fail("it looked finished")
        await upstream.end()
        assert [(row["end"], row["status"]) for row in scene.rows()] == [("drain", 200)]


@live
async def test_a_request_that_waits_for_a_connection_is_served_while_draining(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**ADMIN, "upstreams": {"openai": {"max_connections": 1}}, "timeouts": {"queue": 60}}
    async with wire(start_proxy, tmp_path, **settings) as scene:
        first, upstream, _ = await scene.ask("first")
        queued = await scene.dial()
        await queued.send(scene.request("queued"))
        await scene.heard()
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        for client in (first, queued):
            await upstream.send(OK)
            head, answer = await client.message()
            assert (head.status, answer, head.get("connection")) == (200, b"ok", "close")
            if client is first:
                await upstream.message()
        assert await scene.ended() == 0


@live
async def test_the_last_bytes_of_an_answer_reach_a_slow_client_before_the_process_ends(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    # More than the kernel holds for a client that does not read; the rest waits in the proxy.
    piece, count = bytes(65536), 512
    async with wire(start_proxy, tmp_path, **ADMIN) as scene:
        client = await scene.dial(buffer=65536)
        await client.send(scene.request("slow"))
        upstream = await scene.accept()
        await upstream.message()
        await upstream.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (len(piece) * count)
        )
        body = client.body(await client.head())

        async def pour() -> str:
            for _ in range(count):
                await upstream.send(piece, 60)
            return await upstream.end(60)

        pouring = asyncio.create_task(pour())
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        read = 0
        while not pouring.done():
            read += len(await body.read(16384))
            await asyncio.sleep(0.002)
        # The proxy has it all and is rid of the upstream; it still waits for the client to take what is left.
        assert read < len(piece) * count - 65536
        await asyncio.sleep(0.5)
        assert len(await body.rest()) + read == len(piece) * count
        assert await scene.ended() == 0


@live
async def test_clients_that_come_and_go_do_not_keep_the_process_from_ending(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **ADMIN) as scene:
        client, upstream, _ = await scene.ask("leaver")
        await upstream.send(CHUNKED)
        await client.head()
        half = await scene.dial()
        await half.send(b"POST /v1/half HTTP/1.1\r\n")
        scene.proxy.signal(signal.SIGTERM)
        await unready(scene)
        client.reset()
        assert await scene.ended() == 0
        assert [row["end"] for row in scene.rows()] == ["client_gone"]


@live
async def test_under_load_every_answer_that_began_comes_to_its_end(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async def ask(scene: Wire, number: int) -> list[int]:
        client, statuses = await scene.dial(), list[int]()
        while True:
            tag = f"{number}-{len(statuses)}"
            body = b'{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
            fields = ("Content-Type: application/json", "Stand-In: chunks=10; gap=0.02")
            try:
                await client.send(scene.request(tag, *fields, body=body))
                head = await client.head()
            except (Cut, ConnectionError):
                return statuses  # closed before an answer began, after one that said so
            answer = await client.body(head).rest()
            statuses.append(head.status)
            if head.status == 200:
                assert answer.endswith(b"data: [DONE]\n\n")
            else:
                assert (head.status, head.get("flowstack-error")) == (503, "draining")
            if head.get("connection") == "close":
                return statuses

    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        clients = [asyncio.create_task(ask(scene, number)) for number in range(16)]
        await until(lambda: len(scene.rows()) >= 16, "the clients are at work")
        scene.proxy.signal(signal.SIGTERM)
        statuses = [status for found in await asyncio.gather(*clients) for status in found]
        assert await scene.ended() == 0
        rows = read_rows(scene.rows_path)
        assert sorted(row["status"] for row in rows) == sorted(statuses)
        assert {row["end"] for row in rows if row["status"] == 200} == {"complete"}
