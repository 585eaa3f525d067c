"""Each named time limit ends what it is for, says so, and leaves alone what is merely slow."""

from __future__ import annotations

import asyncio
import time
from struct import pack
from typing import Any

import pytest

from tests.e2e.live import Cut, Wire, Wires, beside, error_of, live

pytestmark = pytest.mark.e2e

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIMIT = 1.5
STALLED: dict[str, Any] = {
    "timeouts": dict.fromkeys(("response_head", "stream_idle", "client_idle", "request_head", "request_idle"), LIMIT)
}
UNUSED: dict[str, Any] = {
    "timeouts": {"keepalive": LIMIT, "queue": LIMIT},
    "upstreams": {"openai": {"idle": LIMIT, "max_connections": 1}},
}
BIG = 24 * 1024 * 1024
"""Bytes that no socket's buffers hold."""


class Stopwatch:
    """How long something took, in seconds. It must run before what begins the time: the proxy may see that at once,
    and this process only later that it did.
    """

    def __init__(self) -> None:
        self._from = time.monotonic()

    def assert_not_before(self, seconds: float) -> None:
        """A limit never strikes early, by a clock that counts whole milliseconds, as libuv's does."""
        assert time.monotonic() - self._from >= seconds - 0.002


def block(at: int, size: int) -> bytes:
    """Bytes that tell where in a body they stand; both numbers are multiples of 32 KiB."""
    return b"".join(pack(">Q", unit) * 4096 for unit in range(at // 32768, (at + size) // 32768))


@live
async def test_connect_ends_a_tls_handshake_that_nobody_answers_with_504(wires: Wires) -> None:
    settings: dict[str, Any] = {"timeouts": {"connect": 0.5}, "upstreams": {"openai": {"max_connections": 1}}}
    async with wires(upstream="https://127.0.0.1:{port}/v1", **settings) as scene:
        for turn in range(2):
            client, watch = await scene.dial(), Stopwatch()
            await client.send(scene.request(f"connect{turn}"))
            upstream = await scene.accept()
            head, body = await client.message()
            watch.assert_not_before(0.5)
            assert (head.status, head.get("flowstack-error")) == (504, "upstream_timeout")
            assert "connect" in error_of(body)["message"]
            assert "0.5 seconds" in error_of(body)["message"]
            await upstream.end()
            row = await scene.row(f"connect{turn}")
            assert (row["end"], row["status"], row["error_code"]) == ("timeout", 504, "upstream_timeout")


@live
async def test_response_head_ends_the_wait_for_an_answer_with_504(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        watch = Stopwatch()
        client, upstream, _ = await scene.ask("silent")
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/ht")
        head, body = await client.message()
        watch.assert_not_before(LIMIT)
        assert (head.status, head.get("flowstack-error")) == (504, "upstream_timeout")
        assert "answer within 1.5 seconds" in error_of(body)["message"]
        await upstream.end()
        row = await scene.row("silent")
        assert (row["end"], row["status"], row["attempts"]) == ("timeout", 504, 1)
        # The client's connection lives on.
        await client.send(scene.request())
        upstream = await scene.accept()
        await upstream.message()
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"


@live
async def test_stream_idle_cuts_an_answer_that_stopped_and_not_one_that_is_slow(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client, upstream, _ = await scene.ask("idle")
        await upstream.send(CHUNKED)
        body = client.body(await client.head())
        for _ in range(8):
            watch = Stopwatch()
            await upstream.send(b"6\r\ndata:\n\r\n")
            await body.read(6)
            await asyncio.sleep(0.2)
        with pytest.raises(Cut):
            await body.rest()
            pytest.fail("it looked finished")
        watch.assert_not_before(LIMIT)
        await upstream.end()
        row = await scene.row("idle")
        assert (row["end"], row["status"], row["bytes_out"]) == ("timeout", 200, 48)
        await scene.works()


@live
async def test_stream_idle_cuts_an_answer_of_which_only_the_head_came(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client, upstream, _ = await scene.ask("headonly")
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        body = client.body(await client.head())
        with pytest.raises(Cut):
            await body.rest()
            pytest.fail("it looked finished")
        await upstream.end()
        assert (await scene.row("headonly"))["end"] == "timeout"


async def feed(scene: Wire, tag: str) -> None:
    """Play an upstream that answers the next request with a big body, as fast as it is taken."""
    upstream = await scene.accept()
    await upstream.message()
    await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
    for at in range(0, BIG, 65536):
        await upstream.send(block(at, 65536), 60)


@live
async def test_client_idle_cuts_a_client_that_takes_nothing(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client, watch = await scene.dial(buffer=65536), Stopwatch()
        await client.send(scene.request("stuck"))
        with pytest.raises(ConnectionError):
            await feed(scene, "stuck")
        watch.assert_not_before(LIMIT)
        row = await scene.row("stuck")
        assert (row["end"], row["status"]) == ("timeout", 200)
        assert 0 < row["bytes_out"] < BIG
        body = client.body(await client.head())
        with pytest.raises(Cut):
            await body.rest()
            pytest.fail("it looked finished")
        await scene.works()


@live
async def test_client_idle_spares_a_client_that_takes_little_but_steadily(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client, watch = await scene.dial(buffer=65536), Stopwatch()
        async with beside(feed(scene, "steady")):
            await client.send(scene.request("steady"))
            body = client.body(await client.head())
            # In pieces of some size: the kernel opens the window again, and acknowledges, in lumps of half its buffer.
            for at in range(0, 22 * 65536, 65536):
                assert await body.read(65536) == block(at, 65536)
                await asyncio.sleep(0.15)
            watch.assert_not_before(2 * LIMIT)
            for at in range(22 * 65536, BIG, 65536):
                assert await body.read(65536) == block(at, 65536)
            assert await body.rest() == b""
        row = await scene.row("steady")
        assert (row["end"], row["bytes_out"]) == ("complete", BIG)


@live
async def test_request_head_ends_a_head_that_does_not_come_to_its_end(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        watch, client = Stopwatch(), await scene.dial()

        async def drip() -> None:
            for byte in scene.request(body=None).removesuffix(b"\r\n"):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.1)

        async with beside(drip()):
            head, body = await client.message()
        watch.assert_not_before(LIMIT)
        assert (head.status, head.get("connection")) == (400, "close")
        assert "within 1.5 seconds" in error_of(body)["message"]
        client.fin()
        assert await client.end() == "fin"
        assert scene.nothing_came()


@live
async def test_request_head_closes_a_connection_on_which_nothing_ever_came(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        watch, client = Stopwatch(), await scene.dial()
        assert await client.receive() == b""
        watch.assert_not_before(0.5)


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
@live
async def test_request_idle_ends_an_upload_that_stalls_and_not_one_that_is_slow(framing: str, wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client = await scene.dial()
        await client.send(scene.request("stalled", framing, body=None))
        upstream = await scene.accept()
        body = upstream.body(await upstream.head())
        for _ in range(8):
            watch = Stopwatch()
            await client.send(b"x" if framing == "Content-Length: 10" else b"1\r\nx\r\n")
            await body.read(1)
            await asyncio.sleep(0.2)
        head, answer = await client.message()
        watch.assert_not_before(LIMIT)
        assert (head.status, head.get("connection")) == (400, "close")
        assert "1.5 seconds" in error_of(answer)["message"]
        await upstream.end()
        row = await scene.row("stalled")
        assert (row["status"], row["bytes_in"]) == (400, 8)


@live
async def test_keepalive_closes_an_unused_connection_in_order(wires: Wires) -> None:
    async with wires(**UNUSED) as scene:
        client, upstream, _ = await scene.ask()
        for _ in range(6):
            await upstream.send(OK)
            assert (await client.message())[1] == b"ok"
            await asyncio.sleep(0.2)
            await client.send(scene.request())
            await upstream.message()
        await asyncio.sleep(LIMIT + 0.6)  # an answer that takes longer is not an unused connection
        watch = Stopwatch()
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"
        assert await client.end() == "fin"
        watch.assert_not_before(LIMIT)


@live
async def test_queue_refuses_with_503_what_waits_too_long_for_a_connection(wires: Wires) -> None:
    async with wires(**UNUSED) as scene:
        first, upstream, _ = await scene.ask("first")
        client, watch = await scene.dial(), Stopwatch()
        await client.send(scene.request("queued"))
        head, body = await client.message()
        watch.assert_not_before(LIMIT)
        assert (head.status, head.get("flowstack-error")) == (503, "overloaded")
        assert int(head.get("retry-after") or 0) >= 1
        assert "1.5 seconds" in error_of(body)["message"]
        row = await scene.row("queued")
        assert (row["end"], row["status"], row["attempts"]) == ("refused", 503, 0)
        # The one that has the place is not touched, and the place serves the next.
        await upstream.send(OK)
        assert (await first.message())[1] == b"ok"
        await client.send(scene.request())
        await upstream.message()
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"


@live
async def test_an_unused_upstream_connection_is_closed_after_its_own_time(wires: Wires) -> None:
    async with wires(**UNUSED) as scene:
        client, upstream, _ = await scene.ask()
        await upstream.send(OK)
        await client.message()
        await client.send(scene.request())
        await upstream.message()  # on the same connection
        await asyncio.sleep(LIMIT + 0.6)  # one that is at work is not unused
        watch = Stopwatch()
        await upstream.send(OK)
        await client.message()
        await upstream.end()
        watch.assert_not_before(LIMIT)
        await scene.works()


@live
async def test_an_upstream_that_takes_nothing_of_an_upload_is_a_timeout(wires: Wires) -> None:
    async with wires(**STALLED) as scene:
        client, watch = await scene.dial(), Stopwatch()

        async def pour() -> None:
            await client.send(scene.request("full", f"Content-Length: {BIG}", body=None))
            for at in range(0, BIG, 65536):
                await client.send(block(at, 65536), 60)

        async with beside(pour()) as pouring:
            await scene.accept()
            head, body = await client.message(30)
            watch.assert_not_before(LIMIT)
            assert not pouring.done() or pouring.exception()
        assert (head.status, head.get("flowstack-error")) == (504, "upstream_timeout")
        assert "take the request" in error_of(body)["message"]
        row = await scene.row("full")
        assert (row["end"], row["status"]) == ("timeout", 504)
        assert row["bytes_in"] < BIG


@live
async def test_a_slow_upstream_that_takes_an_upload_steadily_is_not_a_timeout(wires: Wires) -> None:
    size = 12 * 1024 * 1024
    async with wires(**STALLED) as scene:
        client, watch = await scene.dial(), Stopwatch()

        async def pour() -> None:
            await client.send(scene.request("steady", f"Content-Length: {size}", body=None))
            for at in range(0, size, 65536):
                await client.send(block(at, 65536), 60)

        async with beside(pour()):
            upstream = await scene.accept()
            body = upstream.body(await upstream.head())
            at = 0
            while at < size:
                step = 131072 if at < 16 * 131072 else 65536
                assert await body.read(step) == block(at, step)
                at += step
                if at <= 16 * 131072:
                    await asyncio.sleep(0.23)
            watch.assert_not_before(2 * LIMIT)
            await upstream.send(OK)
            assert (await client.message())[1] == b"ok"
        assert (await scene.row("steady"))["bytes_in"] == size


@live
async def test_no_limit_is_left_over_for_the_next_request_on_a_connection(wires: Wires) -> None:
    short = {"request_head": 1, "request_idle": 1, "response_head": 1, "stream_idle": 30, "keepalive": 30}
    async with wires(timeouts=short) as scene:
        client, upstream, _ = await scene.ask("first")
        await upstream.send(CHUNKED)
        head = await client.head()
        await asyncio.sleep(1.7)
        await upstream.send(b"2\r\nok\r\n0\r\n\r\n")
        assert await client.body(head).rest() == b"ok"
        await asyncio.sleep(1.7)
        await client.send(scene.request("second"))
        await upstream.message()
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"
        rows = await scene.all_rows(2)
        assert [row["end"] for row in rows] == ["complete", "complete"]
