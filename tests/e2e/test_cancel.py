"""When the client leaves, in whatever way and at whatever moment, the upstream is rid of the request at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.e2e.live import Link, Wire, Wires, live

pytestmark = pytest.mark.e2e

LIMIT = 20.0
"""Seconds in which the upstream must see its connection closed. It takes a few milliseconds on an idle machine, and the
shortest timeout that could do it too, that of an unused connection, is 30 seconds."""

ONE: dict[str, Any] = {"upstreams": {"openai": {"max_connections": 1}}}
"""A pool with one place: a request after the cancelled one is relayed only if that place is free again."""

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"

LEAVING: dict[str, Callable[[Link], None]] = {"fin": Link.fin, "reset": Link.reset, "close": Link.close}
"""A half-closed connection counts as leaving, as it does in nginx."""


async def before_the_head(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream, _ = await scene.ask(tag)
    return client, upstream


async def between_the_head_and_the_first_chunk(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream, _ = await scene.ask(tag)
    await upstream.send(CHUNKED)
    await client.head()
    return client, upstream


async def amid_the_stream(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream, _ = await scene.ask(tag)
    await upstream.send(CHUNKED + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
    body = client.body(await client.head())
    assert await body.read(len(EVENT)) == EVENT
    return client, upstream


async def amid_the_stream_with_a_piece_unread(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream = await amid_the_stream(scene, tag)
    await upstream.send(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
    return client, upstream


async def amid_an_answer_with_a_length(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream, _ = await scene.ask(tag)
    await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert await client.body(await client.head()).read(1) == b"{"
    return client, upstream


async def amid_an_upload(scene: Wire, tag: str) -> tuple[Link, Link]:
    client = await scene.dial()
    await client.send(scene.request(tag, "Content-Length: 1000", body=None) + b"half")
    upstream = await scene.accept()
    assert await upstream.body(await upstream.head()).read(4) == b"half"
    return client, upstream


async def amid_a_chunked_upload(scene: Wire, tag: str) -> tuple[Link, Link]:
    client = await scene.dial()
    await client.send(scene.request(tag, "Transfer-Encoding: chunked", body=None) + b"4\r\nhalf\r\n")
    upstream = await scene.accept()
    assert await upstream.body(await upstream.head()).read(4) == b"half"
    return client, upstream


async def with_another_request_behind_it(scene: Wire, tag: str) -> tuple[Link, Link]:
    client, upstream, _ = await scene.ask(tag)
    await client.send(scene.request(f"{tag}-behind"))
    await scene.heard()
    return client, upstream


MOMENTS: dict[Callable[[Wire, str], Awaitable[tuple[Link, Link]]], tuple[int | None, int, int]] = {
    before_the_head: (None, 2, 0),
    between_the_head_and_the_first_chunk: (200, 2, 0),
    amid_the_stream: (200, 2, len(EVENT)),
    amid_the_stream_with_a_piece_unread: (200, 2, -1),
    amid_an_answer_with_a_length: (200, 2, 1),
    amid_an_upload: (None, 4, 0),
    amid_a_chunked_upload: (None, 4, 0),
    with_another_request_behind_it: (None, 2, 0),
}
"""Where the client leaves, and the row's status, ``bytes_in`` and ``bytes_out`` (negative where it may vary)."""


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
@live
async def test_the_upstream_connection_is_closed_and_its_place_is_free_when_the_client_leaves(
    moment: Callable[[Wire, str], Awaitable[tuple[Link, Link]]], wires: Wires
) -> None:
    async with wires(**ONE) as scene:
        for way, leave in LEAVING.items():
            client, upstream = await moment(scene, way)
            leave(client)
            await upstream.end(LIMIT)
            await scene.works()
        status, bytes_in, bytes_out = MOMENTS[moment]
        for way in LEAVING:
            row = await scene.row(way)
            assert (row["end"], row["status"], row["attempts"]) == ("client_gone", status, 1), way
            assert row["bytes_in"] == bytes_in, way
            assert bytes_out < 0 or row["bytes_out"] == bytes_out, way
            assert row["error_code"] is None, way


@live
async def test_a_client_that_leaves_while_it_waits_for_a_connection_never_reaches_the_upstream(wires: Wires) -> None:
    async with wires(timeouts={"queue": 60}, **ONE) as scene:
        for way, leave in LEAVING.items():
            first, upstream, _ = await scene.ask(f"{way}-first")
            waiting = await scene.dial()
            await waiting.send(scene.request(way, target="/v1/never"))
            behind = await scene.dial()
            await behind.send(scene.request(f"{way}-behind", target="/v1/behind"))
            await scene.heard()
            leave(waiting)
            row = await scene.row(way)
            assert (row["end"], row["status"], row["attempts"]) == ("client_gone", None, 0), way
            await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert (await first.head()).status == 200
            # The one behind it gets the connection, and nothing of the one that left goes before it.
            head, _ = await upstream.message()
            assert head.target == b"/v1/behind"
            await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            assert (await behind.head()).status == 200
            await upstream.end()
            await scene.works()


@live
async def test_an_attempt_to_connect_ends_when_its_client_leaves(wires: Wires) -> None:
    # The kernel takes the connection, and nobody answers the TLS handshake on it.
    timeouts = {"connect": 60, "queue": 60}
    async with wires(upstream="https://127.0.0.1:{port}/v1", timeouts=timeouts, **ONE) as scene:
        for way, leave in LEAVING.items():
            client = await scene.dial()
            await client.send(scene.request(way))
            upstream = await scene.accept()
            assert await upstream.receive() != b"", "a TLS hello"
            leave(client)
            await upstream.end(LIMIT)
            row = await scene.row(way)
            assert (row["end"], row["status"], row["attempts"]) == ("client_gone", None, 0), way


@live
async def test_a_request_that_waits_behind_an_attempt_to_connect_is_served_when_that_ones_client_leaves(
    wires: Wires,
) -> None:
    timeouts = {"connect": 60, "queue": 60}
    async with wires(upstream="https://127.0.0.1:{port}/v1", timeouts=timeouts, **ONE) as scene:
        first = await scene.dial()
        await first.send(scene.request("first"))
        upstream = await scene.accept()
        assert await upstream.receive() != b"", "a TLS hello"
        waiting = await scene.dial()
        await waiting.send(scene.request("waiting"))
        await scene.heard()
        first.close()
        assert (await scene.row("first"))["end"] == "client_gone"
        # No connection comes of that attempt; the waiting one is then tried on its own, and not failed for another's.
        upstream.reset()
        upstream = await scene.accept()
        assert await upstream.receive() != b"", "a TLS hello"
        upstream.reset()
        head, _ = await waiting.message()
        assert head.status == 502
        row = await scene.row("waiting")
        assert (row["end"], row["error_code"]) == ("upstream_lost", "upstream_unreachable")


@live
async def test_a_hundred_clients_that_leave_at_once_free_every_place(wires: Wires) -> None:
    count = 100
    pool: dict[str, Any] = {"upstreams": {"openai": {"max_connections": count}}}
    async with wires(**pool) as scene:
        for turn in range(2):
            asked = [await scene.ask(f"c{turn}-{number}") for number in range(count)]
            for number, (client, _, _) in enumerate(asked):
                LEAVING[("fin", "reset", "close")[number % 3]](client)
            for _, upstream, _ in asked:
                await upstream.end(LIMIT)
        rows = await scene.all_rows(2 * count)
        assert {row["end"] for row in rows} == {"client_gone"}


@live
async def test_a_post_whose_client_left_is_not_sent_again(wires: Wires) -> None:
    pool: dict[str, Any] = {"upstreams": {"openai": {"max_connections": 1, "retry_post": True}}}
    async with wires(**pool) as scene:
        client, upstream, _ = await scene.ask("first")
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await client.message()
        await client.send(scene.request("second"))
        await upstream.message()
        client.reset()
        await upstream.end(LIMIT)
        row = await scene.row("second")
        assert (row["end"], row["attempts"]) == ("client_gone", 1)
        assert scene.nothing_came()
