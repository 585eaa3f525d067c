"""The nginx configuration that is offered: behind it Flowstack streams as it does alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.behind import OnPath, assert_websockets_pass
from tests.e2e.live import Link, Wire, live, until, wire
from tests.e2e.processes import PATIENCE, ROOT, StartProxy

pytestmark = [pytest.mark.e2e]

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

MAIN = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/flowstack.conf;
}}
"""


@contextmanager
def nginx(folder: Path, flowstack: int) -> Iterator[Path]:
    """nginx by the offered configuration, on a UNIX socket and without TLS; gives the socket."""
    listening = folder / "s"
    offered = (ROOT / "etc/nginx/flowstack.conf").read_text()
    for there, here in {
        "server 127.0.0.1:8080;": f"server 127.0.0.1:{flowstack};",
        "listen 443 ssl;": f"listen unix:{listening};",
        "ssl_certificate /etc/nginx/llm.example.com.crt;": "",
        "ssl_certificate_key /etc/nginx/llm.example.com.key;": "",
    }.items():
        assert offered.count(there) == 1
        offered = offered.replace(there, here)
    (folder / "flowstack.conf").write_text(offered)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    process = subprocess.Popen(command, env={**os.environ, "PATH": path})
    try:
        yield listening
    finally:
        process.terminate()
        process.wait(PATIENCE)


async def through(scene: Wire, listening: Path) -> Link:
    """A client's connection to nginx."""
    await until(listening.exists, "nginx listens")
    return await scene.dial(unix=listening)


@live
async def test_behind_nginx_each_piece_goes_on_as_it_comes_both_ways(
    start_proxy: StartProxy, tmp_path: Path, short_path: Path
) -> None:
    server: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"]}
    async with wire(start_proxy, tmp_path, server=server) as scene:
        with nginx(short_path, scene.proxy.port) as listening:
            client = await through(scene, listening)
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


def test_behind_nginx_websockets_pass_with_all_that_they_say(start_proxy: StartProxy, short_path: Path) -> None:
    proxy = start_proxy(server={"trusted_proxies": ["127.0.0.1"]}, timeouts={"websocket_ping": 1, "drain": 2})
    with nginx(short_path, proxy.port) as listening:
        assert_websockets_pass(proxy, OnPath(listening))
