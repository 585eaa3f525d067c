"""The servers in front of Flowstack by the configurations that are offered, and what a WebSocket needs of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from attrs import define
from wsproto.frame_protocol import Opcode

from tests.e2e.crowd import journal
from tests.e2e.live import Link, soon
from tests.e2e.processes import PATIENCE, ROOT, Proxy, eventually
from tests.e2e.test_workers import admin_port
from tests.testing.sockets import WebSocket, websocket
from tests.testing.wire import KEY, Client

ASK: dict[str, Any] = {"type": "response.create", "model": "gpt-4o-mini", "input": "Hello"}
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}

HAPROXY = (ROOT / "etc/haproxy/flowstack.cfg").read_text()
HAPROXY_BIND = ":443 ssl crt /etc/haproxy/llm.example.com.pem alpn http/1.1"
HAPROXY_SERVERS = ("server one 10.20.30.11:8080", "server two 10.20.30.12:8080")

NGINX = (ROOT / "etc/nginx/flowstack.conf").read_text()
NGINX_SERVERS = ("server 10.20.30.11:8080;", "server 10.20.30.12:8080;")
NGINX_MAIN = """
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


@define
class Front:
    """A server in front of one Flowstack or two.

    :ivar port: where clients connect, on 127.0.0.1.
    :ivar leave_out: what an operator does before that Flowstack is ended.
    """

    port: int
    leave_out: Callable[[Proxy], None]


StartFront = Callable[..., AbstractContextManager[Front]]


def filled_in(offered: str, names: dict[str, str]) -> str:
    """An offered configuration with the names of a place, each of which it has once."""
    for there, here in names.items():
        assert offered.count(there) == 1, there
        offered = offered.replace(there, here)
    return offered


def of_two(lines: tuple[str, str], here: list[str]) -> dict[str, str]:
    """What stands for the lines of the two servers; where there is one, the second is left out."""
    return dict(zip(lines, [*here, ""], strict=False))


@contextmanager
def running(command: list[Any], listening: socket.socket, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that inherits its socket; ended by force, as its streams need not end."""
    process = subprocess.Popen(command, env=ENVIRONMENT | env, pass_fds=[listening.fileno()], start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


@contextmanager
def haproxy(folder: Path, *proxies: Proxy) -> Iterator[Front]:
    """HAProxy by the offered configuration, without TLS."""
    servers = [f"server node{n} 127.0.0.1:{proxy.port} port {admin_port(proxy)}" for n, proxy in enumerate(proxies)]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        offered = filled_in(HAPROXY, of_two(HAPROXY_SERVERS, servers) | {HAPROXY_BIND: f"fd@{listening.fileno()}"})
        file = folder / "haproxy.cfg"
        file.write_text(offered)
        with running(["haproxy", "-db", "-f", file], listening):
            yield Front(listening.getsockname()[1], leave_out=lambda _: None)


@contextmanager
def nginx(folder: Path, *proxies: Proxy) -> Iterator[Front]:
    """nginx by the offered configuration, without TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        offered = filled_in(
            NGINX,
            of_two(NGINX_SERVERS, [f"server 127.0.0.1:{proxy.port};" for proxy in proxies])
            | {
                "listen 443 ssl;": f"listen 127.0.0.1:{port};",
                "ssl_certificate /etc/nginx/llm.example.com.crt;": "",
                "ssl_certificate_key /etc/nginx/llm.example.com.key;": "",
            },
        )
        (folder / "flowstack.conf").write_text(offered)
        (folder / "nginx.conf").write_text(NGINX_MAIN.format(folder=folder))
        command = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
        # As one nginx gives its sockets to the next.
        with running(command, listening, NGINX=f"{listening.fileno()};") as process:

            def leave_out(proxy: Proxy) -> None:
                before = workers(process.pid)
                server = f"server 127.0.0.1:{proxy.port}"
                (folder / "flowstack.conf").write_text(filled_in(offered, {f"{server};": f"{server} down;"}))
                process.send_signal(signal.SIGHUP)
                eventually(lambda: workers(process.pid) - before, "nginx has begun with the new configuration")
                eventually(lambda: not any(map(serves, before)), "the old process takes no connection any more")

            eventually(lambda: workers(process.pid), "nginx has begun")
            yield Front(port, leave_out)


@contextmanager
def client_at(source: str) -> Iterator[Link]:
    """A client's connection, still to be made, from an address of its own."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.bind((source, 0))
        yield Link(sock)


async def connect(client: Link, port: int) -> None:
    """Make it."""
    await soon(asyncio.get_running_loop().sock_connect(client.sock, ("127.0.0.1", port)), "the server takes it")


def workers(master: int) -> set[int]:
    """nginx's own processes."""
    return set(map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split()))


def serves(worker: int) -> bool:
    """Whether a process of nginx's is there and is not about to end: it says so in its command line."""
    try:
        return b"shutting down" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_websockets_pass(proxy: Proxy, front: Client) -> None:
    """Look at a whole one, at a client that leaves, and at a Flowstack that ends, in that order.

    :param proxy: pings each second, and drains within two.
    :param front: what talks to the server in front.
    """
    token = proxy.key
    browsers = f"Sec-WebSocket-Protocol: realtime, flowstack-auth.{token}"
    eventually(lambda: front.ask("GET", "/v1/models", f"Flowstack-Auth: Bearer {token}").status == 200, "it is there")
    with websocket(front, "/v1/realtime?model=gpt-realtime", browsers) as client:
        assert client.answer.header("sec-websocket-protocol") == "realtime"
        assert client.event()["type"] == "session.created"
        frame = client.frame()
        assert frame is not None and frame.opcode is Opcode.PING, "it stands still longer than the server would wait"
    eventually(lambda: ended(proxy, "/v1/realtime") == ["client_gone"], "that it left is noticed")
    with opened(proxy, front) as client:
        for size in (1, 70_000):
            client.send(**ASK | {"input": "x" * size})
            assert client.until("response.completed")[-1]["response"]["usage"]["total_tokens"] > 0
        client.close(4000, "enough")
        assert told(client) == 4000
    eventually(lambda: ended(proxy, "/v1/responses") == ["complete"], "its row is written")
    with opened(proxy, front) as client:
        proxy.signal(signal.SIGTERM)
        assert told(client) == 1012
    assert proxy.wait(PATIENCE) == 0


def opened(proxy: Proxy, front: Client) -> Any:
    return websocket(front, "/v1/responses", f"Flowstack-Auth: Bearer {proxy.key}", key=KEY)


def told(client: WebSocket) -> int:
    """The code of the Close, whatever pings come before it."""
    while (frame := client.frame()) is not None and frame.opcode is Opcode.PING:
        pass
    assert frame is not None and frame.opcode is Opcode.CLOSE, frame
    return int(frame.payload[0])


def ended(proxy: Proxy, path: str) -> list[str]:
    """How the connections at a path ended."""
    return [row["end"] for row in journal(proxy) if row["status"] == 101 and row["path"] == path]
