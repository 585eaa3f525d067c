"""The HAProxy configuration that is offered: behind it Flowstack streams as it does alone."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from flowstack.config import Settings
from tests.e2e.behind import ENVIRONMENT, HAPROXY, assert_websockets_pass, client_at, connect, haproxy
from tests.e2e.live import Body, Link, live, wire
from tests.e2e.processes import PATIENCE, StartProxy
from tests.testing.wire import Client
from tests.transport.certificates import Authority

pytestmark = [pytest.mark.e2e]

CERTIFICATE = "/etc/haproxy/llm.example.com.pem"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SERVER: dict[str, Any] = {
    "trusted_proxies": ["127.0.0.1"],
    "proxy_protocol": True,
    "admin": "tcp:0:interface=127.0.0.1",
}


async def event(upstream: Link, body: Body, text: bytes) -> float:
    """Send an event, see it come, and give the seconds that it took."""
    start = time.monotonic()
    await upstream.send(b"%x\r\n%b\r\n" % (len(text), text))
    assert await body.read(len(text)) == text
    return time.monotonic() - start


def test_haproxy_finds_no_fault_in_it(tmp_path: Path) -> None:
    pem = tmp_path / "both.pem"
    pem.write_bytes(b"".join(path.read_bytes() for path in Authority(tmp_path).issue("llm.example.com")))
    file = tmp_path / "haproxy.cfg"
    file.write_text(HAPROXY.replace(CERTIFICATE, str(pem)))
    done = subprocess.run(
        ["haproxy", "-c", "-f", file], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "Configuration file is valid\n")


def test_haproxy_waits_longer_than_flowstack_does_and_keeps_connections_for_less() -> None:
    seconds = {name: int(value) for name, value in re.findall(r"timeout (\S+) +(\d+)s\n", HAPROXY)}
    times = Settings().timeouts
    assert min(seconds["client"], seconds["server"]) > max(times.response_head, times.stream_idle)
    assert seconds["http-keep-alive"] < times.keepalive


@live
async def test_behind_haproxy_each_piece_goes_on_as_it_comes_both_ways(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path, server=SERVER) as scene:
        with haproxy(tmp_path, scene.proxy) as front, client_at("127.0.0.7") as client:
            await connect(client, front.port)
            upload = scene.request("both", "Content-Length: 10", target="/v1/a%2Fb?c=%20", body=None)
            await client.send(upload + b"hello")
            upstream = await scene.accept()
            head = await upstream.head()
            assert head.target == b"/v1/a%2Fb?c=%20", "the target is as the client wrote it"
            body = upstream.body(head)
            assert await body.read(5) == b"hello", "the upload is not gathered"
            await client.send(b"world")
            assert await body.rest() == b"world"
            await upstream.send(CHUNKED)
            answer = client.body(await client.head())
            took = [await event(upstream, answer, b"data: %d\n\n" % number) for number in range(20)]
            assert min(took) < 0.15, "by default HAProxy has the kernel hold each event back for 0.2 s"
            client.close()
            await upstream.end()  # that the client left is passed on
            row = await scene.row("both")
            assert (row["end"], row["client_addr"]) == ("client_gone", "127.0.0.7")


@live
async def test_behind_haproxy_a_client_that_leaves_before_the_answer_is_missed(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, server=SERVER) as scene:
        with haproxy(tmp_path, scene.proxy) as front, client_at("127.0.0.7") as client:
            await connect(client, front.port)
            await client.send(scene.request("gone"))
            upstream = await scene.accept()
            await upstream.message()
            client.close()
            await upstream.end()
            assert (await scene.row("gone"))["end"] == "client_gone"


@live
async def test_behind_haproxy_each_client_has_its_own_address(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path, server=SERVER) as scene:
        with haproxy(tmp_path, scene.proxy) as front:
            upstream = None
            for turn, source in enumerate(("127.0.0.7", "127.0.0.8", "127.0.0.7")):
                with client_at(source) as client:
                    await connect(client, front.port)
                    for tag in (f"{turn}, first", f"{turn}, second"):
                        await client.send(scene.request(tag, target="/v1/x"))
                        upstream = upstream or await scene.accept()
                        await upstream.message()
                        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        assert (await client.message())[1] == b"ok"
                        assert (await scene.row(tag))["client_addr"] == source


@live
async def test_behind_haproxy_a_drain_ends_no_stream_and_takes_the_server_out(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, server=SERVER, timeouts={"pre_drain": 3600}) as scene:
        with haproxy(tmp_path, scene.proxy) as front, client_at("127.0.0.7") as client:
            await connect(client, front.port)
            await client.send(scene.request("stream"))
            upstream = await scene.accept()
            await upstream.message()
            await upstream.send(CHUNKED)
            answer = client.body(await client.head())
            await event(upstream, answer, b"data: 1\n\n")
            scene.proxy.signal(signal.SIGTERM)
            by_flowstack = True
            async with asyncio.timeout(PATIENCE):
                while by_flowstack:
                    with client_at("127.0.0.7") as other:
                        await connect(other, front.port)
                        await other.send(scene.request(target="/nowhere"))
                        refusal, _ = await other.message()
                    by_flowstack = refusal.status == 404
            assert (refusal.status, refusal.get("flowstack-error")) == (503, None), "HAProxy knows no server any more"
            await event(upstream, answer, b"data: 2\n\n")
            await upstream.send(b"0\r\n\r\n")
            assert await answer.rest() == b""
            assert (await scene.row("stream"))["end"] == "complete"
            scene.proxy.signal(signal.SIGTERM)
            assert await scene.ended() == 0


def test_behind_haproxy_websockets_pass_with_all_that_they_say(start_proxy: StartProxy, tmp_path: Path) -> None:
    proxy = start_proxy(server=SERVER, timeouts={"websocket_ping": 1, "drain": 2})
    with haproxy(tmp_path, proxy) as front:
        assert_websockets_pass(proxy, Client(front.port))
