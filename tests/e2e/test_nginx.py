"""The nginx configuration that is offered: behind it Flowstack streams as it does alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.behind import assert_websockets_pass, nginx
from tests.e2e.live import live, wire
from tests.e2e.processes import StartProxy
from tests.testing.wire import Client

pytestmark = [pytest.mark.e2e]

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

@live
async def test_behind_nginx_each_piece_goes_on_as_it_comes_both_ways(start_proxy: StartProxy, tmp_path: Path) -> None:
    server: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"]}
    async with wire(start_proxy, tmp_path, server=server) as scene:
        with nginx(tmp_path, scene.proxy) as front:
            client = await scene.dial(port=front.port)
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
            for event in (b"data: 1\n\n", b"data: 2\n\n"):
                await upstream.send(b"%x\r\n%b\r\n" % (len(event), event))
                assert await answer.read(len(event)) == event, "each event has come before the next is sent"
            client.close()
            await upstream.end()  # that the client left is passed on
            assert (await scene.row("both"))["end"] == "client_gone"


def test_behind_nginx_websockets_pass_with_all_that_they_say(start_proxy: StartProxy, tmp_path: Path) -> None:
    proxy = start_proxy(server={"trusted_proxies": ["127.0.0.1"]}, timeouts={"websocket_ping": 1, "drain": 2})
    with nginx(tmp_path, proxy) as front:
        assert_websockets_pass(proxy, Client(front.port))
