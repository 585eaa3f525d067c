"""What the kernel does for Flowstack's connections, and what Flowstack does when the other side fails."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.e2e.processes import Proxy
from tests.e2e.raw import Client, Closed, assert_own_error, request
from tests.e2e.raw_upstream import OK, Script, Seen, Upstream, reply, upstream
from tests.wire.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    found = Authority(tmp_path_factory.mktemp("authority"))
    found.issue("server", "localhost", "127.0.0.1")
    return found


@define
class Between:
    """A proxy between clients and an upstream; with TLS on both sides, or on neither."""

    proxy: Proxy
    behind: Upstream
    secure: tuple[ssl.SSLContext, str] | None

    def client(self) -> Client:
        return Client(self.proxy.port, secure=self.secure)

    def request(self, line: bytes = b"GET /v1/x HTTP/1.1", *fields: bytes, body: bytes = b"") -> bytes:
        return request(self.proxy.key, line, *fields, body=body)


@contextmanager
def between(folder: Path, reactor: str | None, authority: Authority | None, **settings: Any) -> Iterator[Between]:
    """A :class:`Between`, with TLS if an authority is given; the proxy must end well, without a traceback."""
    scheme, context, secure = "http", None, None
    settings.setdefault("server", {})
    if authority is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = authority.directory / "server.crt", authority.directory / "server.key"
        context.load_cert_chain(certificate, key)
        secure = ssl.create_default_context(cafile=str(authority.file)), "localhost"
        settings["server"]["listen"] = [f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"]
        settings["upstreams"] = {"openai": {"ca_file": str(authority.file)}}
    with upstream(context) as behind:
        proxy = Proxy(folder, f"{scheme}://127.0.0.1:{behind.port}/v1", reactor=reactor, settings=settings)
        try:
            yield Between(proxy, behind, secure)
        except BaseException:
            proxy.kill()
            raise
        proxy.stop()
        log = proxy.log_text()
        assert "Traceback" not in log and "Unhandled" not in log, log


LONGER_THAN_WE_WAIT = 60.0

tls = pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "tls"])


def keep_alive_timer(local: int, remote: int) -> float | None:
    """Seconds until the kernel probes the peer of a connection between two ports, or None where it never does.

    ``/proc/net/tcp`` is proc(5)'s: field ``tr`` is 2 for the keep-alive timer, ``tm->when`` its end in clock ticks.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(address.split(":")[1], 16) for address in fields[1:3]]
        if ports == [local, remote] and fields[3] == "01":
            active, when = fields[5].split(":")
            return int(when, 16) / os.sysconf("SC_CLK_TCK") if active == "02" else None
    raise AssertionError(f"no connection from {local} to {remote}")


@tls
@pytest.mark.parametrize("seconds", [60, 7, 0])
def test_the_kernel_asks_after_silent_peers_on_both_sides(
    seconds: int, with_tls: bool, tmp_path: Path, reactor: str | None, authority: Authority
) -> None:
    timeouts = {} if seconds == 60 else {"tcp_keepalive": seconds}
    trusted = authority if with_tls else None
    with between(tmp_path, reactor, trusted, timeouts=timeouts) as middle, middle.client() as client:
        assert client.ask(middle.request()).status == 200
        upstream_side = middle.behind.links[0].sock.getpeername()[1]
        timers = [
            keep_alive_timer(middle.proxy.port, client.sock.getsockname()[1]),
            keep_alive_timer(upstream_side, middle.behind.port),
        ]
        if seconds:
            assert all(timer is not None and seconds - 5 <= timer <= seconds for timer in timers), timers
        else:
            assert timers == [None, None]


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_silent_handshake_is_held_for_request_head_and_no_longer(
    said: bytes, tmp_path: Path, reactor: str | None, authority: Authority
) -> None:
    with between(tmp_path, reactor, authority, timeouts={"request_head": 1.5}) as middle:
        with Client(middle.proxy.port, limit=LONGER_THAN_WE_WAIT) as client:
            begun = time.monotonic()
            client.offer(said)
            assert client.to_the_end()[0] == b""
            assert 1.5 <= time.monotonic() - begun < 12  # it was 15 whatever request_head said
        middle.behind.script = reply(OK)
        with middle.client() as client:
            assert client.ask(middle.request()).status == 200


@pytest.mark.parametrize("begins", [False, True], ids=["nothing", "half a record"])
def test_an_upstream_that_is_silent_in_the_handshake_is_a_504_of_connect(
    begins: bool, tmp_path: Path, reactor: str | None
) -> None:
    settings: dict[str, Any] = {"timeouts": {"connect": 1.5}}
    listening = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(tmp_path, f"https://127.0.0.1:{listening.getsockname()[1]}/v1", reactor=reactor, settings=settings)
    try:
        with Client(proxy.port, limit=LONGER_THAN_WE_WAIT) as client:
            begun = time.monotonic()
            client.send(request(proxy.key))
            silent = listening.accept()[0]
            if begins:
                silent.sendall(b"\x16\x03\x03\x00")  # a record that does not come to its end
            answer = client.answer()
            assert 1.5 <= time.monotonic() - begun < 12
            assert_own_error(answer, 504, "upstream_timeout")
            assert b"within 1.5 seconds" in answer.body
            silent.close()
    finally:
        proxy.stop()
        listening.close()
    assert "Traceback" not in proxy.log_text()


# What one side has said is not thrown away because the other has ended.

EVENT = b'data: {"error": {"message": "the model fell over"}}\n\n'


def slow(middle: Between, receive_buffer: int = 16 * 1024) -> Client:
    """A client whose window is small."""
    client = middle.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return client


def dechunked(framed: bytes) -> tuple[bytes, bool]:
    """What is in a chunked body, and whether it is whole."""
    pieces = []
    while (cut := framed.find(b"\r\n")) >= 0:
        size = int(framed[:cut], 16)
        pieces.append(framed[cut + 2 : cut + 2 + size])
        framed = framed[cut + 2 + size + 2 :]
        if not size:
            return b"".join(pieces), True
    return b"".join(pieces), False


@tls
@pytest.mark.parametrize("size", [300_000, 6_000_000])
def test_a_client_that_is_behind_gets_all_that_came_before_the_stream_broke(
    size: int, with_tls: bool, tmp_path: Path, reactor: str | None, authority: Authority
) -> None:
    chunk = b"data: " + b"x" * 992 + b"\n\n"
    events = chunk * (size // len(chunk)) + EVENT
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def script(seen: Seen) -> None:
        seen.read_body()
        seen.link.send(head, b"%x\r\n%b\r\n" % (len(events), events))
        socket.socket(fileno=seen.link.sock.detach()).close()

    with between(tmp_path, reactor, authority if with_tls else None) as middle, slow(middle) as client:
        middle.behind.script = script
        client.send(middle.request())
        time.sleep(0.6)
        client.head()
        with pytest.raises(Closed):
            while True:
                client.more()
        assert dechunked(client.received.partition(b"\r\n\r\n")[2]) == (events, False)
        middle.behind.script = reply(OK)
        with middle.client() as other:
            assert other.ask(middle.request()).status == 200


def refuse(body: bytes) -> Script:
    """Answer 413 as soon as the head is there, and close, which resets since the request lies unread."""

    def script(seen: Seen) -> None:
        seen.link.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        seen.link.close()

    return script


@tls
@pytest.mark.parametrize(("size", "answer_size"), [(16 << 20, 40), (1 << 20, 60_000)])
def test_an_answer_during_an_upload_reaches_a_client_that_still_writes(
    size: int, answer_size: int, with_tls: bool, tmp_path: Path, reactor: str | None, authority: Authority
) -> None:
    refusal = b"too large".ljust(answer_size)
    with between(tmp_path, reactor, authority if with_tls else None) as middle:
        middle.behind.script = refuse(refusal)
        got = []
        for _ in range(10):
            with middle.client() as client:
                fields = b"Content-Length: %d" % size, b"Content-Type: application/octet-stream"
                client.send(middle.request(b"POST /v1/files HTTP/1.1", *fields, body=bytes(size)))
                try:
                    answer = client.answer()
                    got.append((answer.status, answer.body == refusal))
                except Closed as end:
                    got.append((0, end.reset))
        assert got == [(413, True)] * 10


@tls
@pytest.mark.parametrize("key", ["no key", "a key"])
def test_an_upload_of_30_mb_that_flowstack_refuses_gets_its_answer(
    key: str, with_tls: bool, tmp_path: Path, reactor: str | None, authority: Authority
) -> None:
    size = 30_000_000
    with between(tmp_path, reactor, authority if with_tls else None, server={"max_request_bytes": 1000}) as middle:
        raw = middle.request(b"POST /v1/files HTTP/1.1", b"Content-Length: %d" % size, body=bytes(size))
        if key == "no key":
            raw = raw.replace(b"Flowstack-Auth", b"Another-Field")
        with middle.client() as client:
            client.send(raw)
            assert client.answer().status == (401 if key == "no key" else 413)
        assert middle.behind.requests == []
