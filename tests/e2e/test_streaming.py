"""An answer reaches the client as it comes: each piece at once, each byte as it was, and a cut one never as a whole."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.e2e.live import Cut, Link, Wire, Wires, live

pytestmark = pytest.mark.e2e

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n"

EVENTS = (
    b'data: {"choices":[{"delta":{"content":"Gr\xc3\xbc\xc3\x9fe"}}]}\n\n',
    b": a comment\r\n\r\n",
    b"event: odd\rdata:no space\r\r",
    b"\n\n\n",
    b"data: \xf0\x9f",
    b"\x8c\x8a\x00\xff\n\n",
    b"id\nretry: 10\nunknown: field\n\n",
    b"x",
    b"data: " + b"y" * 20000 + b"\n\n",
    b"data: [DONE]\n\n",
)
"""What a decoder of events, of text or of lines would change or hold back."""


def chunk(data: bytes) -> bytes:
    """One piece in the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@live
async def test_each_piece_reaches_the_client_before_the_upstream_sends_the_next(framing: str, wires: Wires) -> None:
    async with wires() as scene:
        client, upstream, _ = await scene.ask("lockstep")
        length = b"Content-Length: %d\r\n\r\n" % len(b"".join(EVENTS))
        await upstream.send(
            SSE + {"chunked": b"Transfer-Encoding: chunked\r\n\r\n", "length": length}.get(framing, b"\r\n")
        )
        head = await client.head()
        assert head.status == 200
        assert (head.get("content-length") is not None) == (framing == "length")
        body = client.body(head)
        for event in EVENTS:
            await upstream.send(chunk(event) if framing == "chunked" else event)
            assert await body.read(len(event)) == event
        if framing == "chunked":
            await upstream.send(b"0\r\n\r\n")
        elif framing == "close":
            upstream.fin()
        assert await body.rest() == b""
        row = await scene.row("lockstep")
        assert (row["end"], row["stream"], row["bytes_out"]) == ("complete", True, len(b"".join(EVENTS)))


@live
async def test_a_client_of_http_1_0_gets_each_piece_at_once_and_the_end_of_the_connection_as_the_end(
    wires: Wires,
) -> None:
    async with wires() as scene:
        client, upstream, _ = await scene.ask(version="HTTP/1.0")
        await upstream.send(CHUNKED)
        head = await client.head()
        assert head.get("transfer-encoding") is None
        body = client.body(head)
        for event in EVENTS:
            await upstream.send(chunk(event))
            assert await body.read(len(event)) == event
        await upstream.send(b"0\r\n\r\n")
        assert await client.end() == "fin"


@pytest.mark.parametrize("framing", ["chunked", "length"])
@live
async def test_each_piece_of_an_upload_reaches_the_upstream_before_the_client_sends_the_next(
    framing: str, wires: Wires
) -> None:
    async with wires() as scene:
        size = len(b"".join(EVENTS))
        client = await scene.dial()
        field = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {size}"
        await client.send(scene.request("upload", field, body=None))
        upstream = await scene.accept()
        head = await upstream.head()
        assert head.get("content-length") == (str(size) if framing == "length" else None)
        body = upstream.body(head)
        for event in EVENTS:
            await client.send(chunk(event) if framing == "chunked" else event)
            assert await body.read(len(event)) == event
        if framing == "chunked":
            await client.send(b"0\r\n\r\n")
        assert await body.rest() == b""
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert (await client.head()).status == 200
        assert (await scene.row("upload"))["bytes_in"] == size


@live
async def test_an_answer_streams_while_the_upload_is_still_under_way(wires: Wires) -> None:
    async with wires() as scene:
        client = await scene.dial()
        await client.send(scene.request("", "Transfer-Encoding: chunked", body=None))
        upstream = await scene.accept()
        up = upstream.body(await upstream.head())
        await upstream.send(CHUNKED)
        down = client.body(await client.head())
        for event in EVENTS:
            await client.send(chunk(event))
            assert await up.read(len(event)) == event
            await upstream.send(chunk(event))
            assert await down.read(len(event)) == event
        await client.send(b"0\r\n\r\n")
        assert await up.rest() == b""
        await upstream.send(b"0\r\n\r\n")
        assert await down.rest() == b""


@live
async def test_the_body_is_the_same_byte_for_byte_however_chunks_and_segments_are_cut(wires: Wires) -> None:
    whole = b"".join(EVENTS[:8] + EVENTS[9:]) + bytes(range(256))
    random = Random(20260701)
    async with wires() as scene:
        client, upstream = await scene.dial(), None
        for turn in range(40):
            await client.send(scene.request())
            upstream = upstream or await scene.accept()
            await upstream.message()
            answer, at = CHUNKED, 0
            while at < len(whole):
                size = 1 if turn == 0 else random.randint(1, 60)
                framed = chunk(whole[at : at + size])
                answer += framed if turn % 2 else framed.replace(b"\r\n", b";name=value\r\n", 1)
                at += size
            answer += b"0\r\nX-Trailer: dropped\r\n\r\n" if turn % 3 else b"0\r\n\r\n"
            step = (1, 7, 50, 1000)[turn % 4]
            for start in range(0, len(answer), step):
                await upstream.send(answer[start : start + step])
                if step > 1 or start % 20 == 0:
                    await asyncio.sleep(0)
            head, body = await client.message()
            assert head.status == 200
            assert body == whole


@live
async def test_two_hundred_streams_at_once_each_carry_their_own_bytes_to_the_end(wires: Wires) -> None:
    count, rounds = 200, 20

    async def take(scene: Wire, number: int) -> None:
        client = await scene.dial()
        await client.send(scene.request(f"s{number}", target=f"/v1/streams/{number}"))
        head, body = await client.message(60)
        assert head.status == 200
        assert body == b"".join(b"data: %d of %d\n\n" % (turn, number) for turn in range(rounds))

    async def serve(scene: Wire) -> None:
        links: dict[bytes, Link] = {}
        while len(links) < count:
            link = await scene.accept(60)
            head, _ = await link.message()
            links[head.target.rpartition(b"/")[2]] = link
        # All of them are open now, and none has got a byte.
        for link in links.values():
            await link.send(CHUNKED)
        for turn in range(rounds):
            for number, link in links.items():
                await link.send(chunk(b"data: %d of %b\n\n" % (turn, number)))
        for link in links.values():
            await link.send(b"0\r\n\r\n")

    async with wires() as scene:
        await asyncio.gather(serve(scene), *(take(scene, number) for number in range(count)))
        rows = await scene.all_rows(count)
        assert {row["attributes"]["tag"] for row in rows} == {f"s{number}" for number in range(count)}
        assert {(row["end"], row["status"], row["attempts"]) for row in rows} == {("complete", 200, 1)}


CUTS = {
    "reset after a chunk": (CHUNKED + chunk(b"data: 1\n\n"), b"", "reset"),
    "fin before the last chunk": (CHUNKED + chunk(b"data: 1\n\n"), b"", "fin"),
    "fin inside a chunk": (CHUNKED + b"ff\r\ndata: 1\n\n", b"", "fin"),
    "fin inside a chunk's size": (CHUNKED + chunk(b"data: 1\n\n"), b"f", "fin"),
    "fin before the end of the trailers": (CHUNKED + chunk(b"data: 1\n\n"), b"0\r\n", "fin"),
    "no chunk's size": (CHUNKED + chunk(b"data: 1\n\n"), b"zz\r\n", None),
    "a chunk longer than its size": (CHUNKED + chunk(b"data: 1\n\n"), b"1\r\nab\r\n", None),
    "fin inside the length": (SSE + b"Content-Length: 100\r\n\r\ndata: 1\n\n", b"", "fin"),
    "reset inside the length": (SSE + b"Content-Length: 100\r\n\r\ndata: 1\n\n", b"", "reset"),
    "reset of a body without a length": (SSE + b"\r\ndata: 1\n\n", b"", "reset"),
}
"""What the upstream sends, what it adds when the client has read that, and how it leaves."""


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@live
async def test_an_answer_that_the_upstream_cuts_is_a_failed_transfer_for_the_client(version: str, wires: Wires) -> None:
    async with wires() as scene:
        for number, (name, (answer, more, end)) in enumerate(CUTS.items()):
            client, upstream, _ = await scene.ask(f"cut{number}", version=version)
            await upstream.send(answer)
            body = client.body(await client.head())
            assert await body.read(9) == b"data: 1\n\n", name
            await upstream.send(more)
            if end == "fin":
                upstream.fin()
            elif end == "reset":
                upstream.reset()
            with pytest.raises(Cut):
                await body.rest()
                pytest.fail(f"{name}: it looked finished")
        for number, name in enumerate(CUTS):
            row = await scene.row(f"cut{number}")
            assert (row["end"], row["status"]) == ("upstream_lost", 200), name
        await scene.works()
