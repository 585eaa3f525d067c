"""The admin listener's site: what it serves, what it says, and what a client cannot hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.static import File

from flowstack.admin.health import admin_resource
from flowstack.admin.site import MAX_BODY_BYTES, MAX_CONNECTIONS, TIMEOUT
from tests.admin.lab import AdminListener
from tests.harness import HIGH_WATER

SIZE = 3_000_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = os.urandom(1000) * (SIZE // 1000)
    (tmp_path / "page.bin").write_bytes(data)
    return data


@pytest.fixture
def listener(tmp_path: Path) -> AdminListener:
    return AdminListener(admin_resource(lambda: None, {b"static": File(str(tmp_path)), b"broken": Broken()}))


class Broken(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> int:  # noqa: N802
        if request.prepath == [b"broken"] and request.postpath == [b"late"]:
            request.write(b"half")
        raise RuntimeError("a secret of the house")

    def render_POST(self, request: Any) -> bytes:  # noqa: N802
        return b"%d" % len(request.content.read())


SERVER = """
import sys
from flowstack.transport import uv
if sys.argv[1] == "uvloop":
    uv.install()
from twisted.internet import reactor
from twisted.web.static import File
from flowstack.admin.health import admin_resource
from flowstack.admin.site import AdminSite
site = AdminSite(admin_resource(lambda: None, {b"static": File(sys.argv[2])}), reactor)
listening = uv.server_endpoint(reactor, "tcp:0:interface=127.0.0.1").listen(site)
listening.addCallback(lambda port: print(port.getHost().port, flush=True))
reactor.run()
"""


@pytest.mark.parametrize("reactor", ["uvloop", "epoll"])
def test_a_file_comes_whole_over_a_real_socket(reactor: str, tmp_path: Path, content: bytes) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, reactor, str(tmp_path)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            with urlopen(f"http://127.0.0.1:{port}/static/page.bin") as answer:
                assert answer.read() == content
                assert "server" not in answer.headers
            with urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                assert answer.read() == b"ok\n"
        finally:
            server.kill()


ASK_ENDLESS = b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"


def error(answer: bytes) -> str:
    """The code in an answer that is an error of Flowstack's own."""
    head, _, body = answer.partition(b"\r\n\r\n")
    code: str = json.loads(body)["error"]["code"]
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"\r\nFlowstack-Error: " + code.encode() in head
    assert b"\r\nServer:" not in head
    return code


def test_errors_are_json_and_name_no_server(listener: AdminListener, logged: list[str]) -> None:
    assert error(listener.ask(b"/none")) == "unknown_path"
    refused = listener.ask(b"/healthz", b"POST")
    assert error(refused) == "method_not_allowed"
    assert b"\r\nAllow: GET, HEAD\r\n" in refused
    assert error(listener.ask(b"/healthz", b"BREW")) == "method_not_allowed"
    assert logged == []
    failed = listener.ask(b"/broken")
    assert failed.startswith(b"HTTP/1.1 500 ")
    assert error(failed)
    assert b"secret" not in failed
    assert logged == ["a resource of the admin listener failed"]


def test_an_answer_that_failed_half_way_does_not_look_finished(listener: AdminListener) -> None:
    client = listener.connect()
    client.send(b"GET /broken/late HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.peer_saw == "reset"
    assert b"0\r\n\r\n" not in client.take()


def test_a_body_is_bounded_and_never_in_a_file(listener: AdminListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    client = listener.connect()
    head = b"POST /broken HTTP/1.1\r\nHost: localhost\r\n"
    client.send(head + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES + bytes(MAX_BODY_BYTES))
    assert client.take().endswith(b"\r\n\r\n%d" % MAX_BODY_BYTES)
    client.send(head + b"Content-Length: 2000000\r\n\r\n")
    for _ in range(20):
        (channel,) = listener.site.channels
        assert channel.requests[0].content.tell() <= MAX_BODY_BYTES
        client.send(bytes(100_000))
    assert error(client.take()) == "request_too_large"
    client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"2710\r\n%b\r\n" % bytes(10_000) * 7 + b"0\r\n\r\n")
    assert error(client.take()) == "request_too_large"


@pytest.mark.parametrize("after", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_request_has_one_deadline_however_slowly_it_comes(
    listener: AdminListener, after: bytes, logged: list[str]
) -> None:
    client = listener.connect()
    client.send(after)
    client.send(b"GET /healthz HTTP/1.1\r\n")
    for _ in range(int(TIMEOUT) - 1):
        listener.turns.advance(1)
        assert client.peer_saw is None
        client.send(b"X-A: b\r\n")
    listener.turns.advance(2)
    assert client.peer_saw == "fin"
    assert listener.site.channels == {}
    assert logged == []


class Endless(Resource):
    """Has begun to answer, and will not end by itself."""

    isLeaf = True

    def render_GET(self, request: Any) -> int:  # noqa: N802
        self.request = request
        request.write(bytes(HIGH_WATER))
        return NOT_DONE_YET


@pytest.mark.parametrize("ended", [False, True])
def test_a_client_that_stops_reading_is_cut(ended: bool, logged: list[str]) -> None:
    endless = Endless()
    listener = AdminListener(admin_resource(lambda: None, {b"endless": endless}))
    client = listener.connect()
    client.peer_reads = False
    client.send(ASK_ENDLESS)
    if ended:
        endless.request.finish()
    listener.turns.advance(TIMEOUT - 1)
    assert client.peer_saw is None
    listener.turns.advance(20)
    assert client.peer_saw == "reset"
    assert listener.site.channels == {}
    assert logged == []


def test_a_client_that_reads_is_not_cut_however_long_the_answer_takes() -> None:
    endless = Endless()
    listener = AdminListener(admin_resource(lambda: None, {b"endless": endless}))
    client = listener.connect()
    client.peer_reads = False
    client.send(ASK_ENDLESS)
    for _ in range(3):
        listener.turns.advance(TIMEOUT - 1)
        client.read()
        listener.turns.advance(10 * TIMEOUT)
        endless.request.write(bytes(HIGH_WATER))
    client.read()
    endless.request.finish()
    client.read()
    listener.turns.advance(TIMEOUT - 1)
    assert client.peer_saw is None
    listener.turns.advance(2)
    assert client.peer_saw == "fin"


def test_one_connection_too_many_cuts_the_oldest(listener: AdminListener) -> None:
    clients = [listener.connect() for _ in range(MAX_CONNECTIONS)]
    assert listener.ask(b"/healthz").endswith(b"ok\n")
    listener.turns.settle()
    assert [client.peer_saw for client in clients] == ["reset"] + [None] * (MAX_CONNECTIONS - 1)
    clients[5].hang_up()
    assert len(listener.site.channels) == MAX_CONNECTIONS - 1
    listener.connect()
    assert clients[1].peer_saw is None


def test_at_the_end_connections_are_closed_in_order(listener: AdminListener) -> None:
    client = listener.connect()
    listener.site.close()
    listener.turns.settle()
    assert client.peer_saw == "fin"
    assert listener.site.channels == {}


def test_a_second_host_header_does_not_cover_a_foreign_one(listener: AdminListener) -> None:
    assert listener.ask(b"/healthz", b"GET", b"Host: evil.example").startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
