"""What the kernel does for Flowstack's connections, and what Flowstack does when the other side fails."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from attrs import define

from tests.e2e.processes import Proxy, eventually
from tests.e2e.raw import LIMIT, Client, Closed, assert_own_error, request
from tests.e2e.raw_upstream import OK, Script, Seen, Upstream, reply, upstream
from tests.transport.certificates import Authority


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
def started(folder: Path, authority: Authority | None, **settings: Any) -> Iterator[Between]:
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
        proxy = Proxy(folder, f"{scheme}://127.0.0.1:{behind.port}/v1", settings=settings)
        try:
            yield Between(proxy, behind, secure)
        except BaseException:
            proxy.kill()
            raise
        proxy.stop()
        log = proxy.log_text()
        assert "Traceback" not in log and "Unhandled" not in log, log


@pytest.fixture(scope="module")
def between(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Between]]:
    """Give what is between clients and an upstream, with TLS or without; tests with the same settings share it."""
    made: dict[str, Between] = {}
    with ExitStack() as stack:

        def get(with_tls: bool, **settings: Any) -> Between:
            name = repr((with_tls, settings))
            if name not in made:
                folder, trusted = tmp_path_factory.mktemp("between"), authority if with_tls else None
                made[name] = stack.enter_context(started(folder, trusted, **settings))
            made[name].behind.forget()
            return made[name]

        yield get


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
    seconds: int, with_tls: bool, between: Callable[..., Between]
) -> None:
    settings = {} if seconds == 60 else {"timeouts": {"tcp_keepalive": seconds}}
    middle = between(with_tls, **settings)
    with middle.client() as client:
        assert client.ask(middle.request()).status == 200
        upstream_side = middle.behind.last().link.sock.getpeername()[1]
        ends = (
            (middle.proxy.port, client.sock.getsockname()[1]),
            (upstream_side, middle.behind.port),
        )
        if seconds:
            # Until a peer has acknowledged what was sent last, the one timer that is shown is another.
            timers = [eventually(partial(keep_alive_timer, *end), f"keep-alive of {end}") for end in ends]
            assert all(seconds - 5 <= timer <= seconds for timer in timers), timers
        else:
            assert [keep_alive_timer(*end) for end in ends] == [None, None]


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_silent_handshake_is_held_for_request_head_and_no_longer(
    said: bytes, between: Callable[..., Between]
) -> None:
    middle = between(True, timeouts={"request_head": 1.5})
    with Client(middle.proxy.port, limit=LONGER_THAN_WE_WAIT) as client:
        begun = time.monotonic()
        client.offer(said)
        assert client.to_the_end()[0] == b""
        assert 1.5 <= time.monotonic() - begun < 12  # it was 15 whatever request_head said
    middle.behind.script = reply(OK)
    with middle.client() as client:
        assert client.ask(middle.request()).status == 200


def test_an_upstream_that_is_silent_in_the_handshake_is_a_504_of_connect(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"timeouts": {"connect": 1.5}}
    listening = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(tmp_path, f"https://127.0.0.1:{listening.getsockname()[1]}/v1", settings=settings)
    try:
        for said in (b"", b"\x16\x03\x03\x00"):  # nothing; a record that does not come to its end
            with Client(proxy.port, limit=LONGER_THAN_WE_WAIT) as client:
                begun = time.monotonic()
                client.send(request(proxy.key))
                silent = listening.accept()[0]
                silent.sendall(said)
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
    pieces, at = [], 0
    while (cut := framed.find(b"\r\n", at)) >= 0:
        size = int(framed[at:cut], 16)
        pieces.append(framed[cut + 2 : cut + 2 + size])
        at = cut + 2 + size + 2
        if not size:
            return b"".join(pieces), True
    return b"".join(pieces), False


@tls
@pytest.mark.parametrize("size", [300_000, 6_000_000])
def test_a_client_that_is_behind_gets_all_that_came_before_the_stream_broke(
    size: int, with_tls: bool, between: Callable[..., Between]
) -> None:
    chunk = b"data: " + b"x" * 992 + b"\n\n"
    events = chunk * (size // len(chunk)) + EVENT
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def script(seen: Seen) -> None:
        seen.read_body()
        seen.link.send(head, b"%x\r\n%b\r\n" % (len(events), events))
        socket.socket(fileno=seen.link.sock.detach()).close()

    middle = between(with_tls)
    with slow(middle) as client:
        middle.behind.script = script
        client.send(middle.request())
        time.sleep(0.6)
        # It was behind; with so small a window the rest of 6 MB of TLS records would come in 40 s, each 0.1 s late.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.head()
        with pytest.raises(Closed):
            while True:
                client.more()
        assert dechunked(bytes(client.received).partition(b"\r\n\r\n")[2]) == (events, False)
        middle.behind.script = reply(OK)
        with middle.client() as other:
            assert other.ask(middle.request()).status == 200


def refuse(body: bytes) -> Script:
    """Answer 413 as soon as the head is there, and close, which resets since the request lies unread."""

    def script(seen: Seen) -> None:
        # It says that it closes: where all of a body has left before that, the next POST would find the connection in
        # the pool, and be lost with it.
        fields = b"Connection: close\r\nContent-Length: %d" % len(body)
        seen.link.send(b"HTTP/1.1 413 Content Too Large\r\n%b\r\n\r\n%b" % (fields, body))
        seen.link.close()

    return script


@tls
@pytest.mark.parametrize(("size", "answer_size"), [(16 << 20, 40), (1 << 20, 60_000)])
def test_an_answer_during_an_upload_reaches_a_client_that_still_writes(
    size: int, answer_size: int, with_tls: bool, between: Callable[..., Between]
) -> None:
    refusal = b"too large".ljust(answer_size)
    middle = between(with_tls)
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
    key: str, with_tls: bool, between: Callable[..., Between]
) -> None:
    size = 30_000_000
    middle = between(with_tls, server={"max_request_bytes": 1000})
    raw = middle.request(b"POST /v1/files HTTP/1.1", b"Content-Length: %d" % size, body=bytes(size))
    if key == "no key":
        raw = raw.replace(b"Flowstack-Auth", b"Another-Field")
    with middle.client() as client:
        client.send(raw)
        assert client.answer().status == (401 if key == "no key" else 413)
    assert middle.behind.requests == []


# No way in which an upstream fails leaves a traceback, or makes a cut answer look finished.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
"""A fatal alert, handshake_failure (RFC 8446 §6.2)."""

ENDS = ["fin", "reset", "half"]

Fail = Callable[[socket.socket], None]


def just(data: bytes = b"", end: str = "fin") -> Fail:
    """Say this without a look at what was said, and end."""

    def fail(sock: socket.socket) -> None:
        sock.sendall(data)
        finish(sock, end)

    return fail


def heard(data: bytes = b"", end: str = "fin") -> Fail:
    """Read what comes first, say this, and end."""

    def fail(sock: socket.socket) -> None:
        sock.recv(65536)
        just(data, end)(sock)

    return fail


def finish(sock: socket.socket, end: str) -> None:
    """End a connection: in order, by force, or by half."""
    if end == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif end == "half":
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
    sock.close()


def late_reset(data: bytes) -> Fail:
    """Say this, and reset once it has been read."""

    def fail(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(data)
        time.sleep(0.3)
        finish(sock, "reset")

    return fail


PLAIN_FAILURES: dict[str, tuple[Fail, int]] = {
    "closes at once": (just(), 502),
    "resets at once": (just(end="reset"), 502),
    "closes after the request": (heard(), 502),
    "resets after the request": (heard(end="reset"), 502),
    "half closes after the request": (heard(end="half"), 502),
    "garbage": (heard(b"\x00\xff" * 500), 502),
    "a TLS alert": (heard(ALERT), 502),
    "half a head": (heard(HEAD), 502),
    "half a head, reset": (heard(HEAD, "reset"), 502),
    "half a body": (heard(HEAD + b"Content-Length: 9\r\n\r\nhal"), 0),
    "half a chunk": (heard(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhal"), 0),
    "chunks without the last": (heard(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n"), 0),
    "a body until the close": (heard(HEAD + b"\r\nwhole"), 200),
    "a body until the close, half closed": (heard(HEAD + b"\r\nwhole", "half"), 200),
    "a body until a reset": (late_reset(HEAD + b"\r\nhal"), 0),
}


def in_tls(then: Callable[[ssl.SSLSocket], None]) -> Callable[[ssl.SSLContext, socket.socket], None]:
    """Do the handshake, read the request, and go on."""

    def fail(context: ssl.SSLContext, sock: socket.socket) -> None:
        with suppress(OSError):
            secure = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            secure.recv(65536)
            then(secure)

    return fail


def without_ciphers(context: ssl.SSLContext, sock: socket.socket) -> None:
    """Offer ciphers for which there is no key."""
    before = context.maximum_version, ":".join(str(cipher["name"]) for cipher in context.get_ciphers())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES256-GCM-SHA384")
    try:
        in_tls(lambda _: None)(context, sock)
    finally:
        context.maximum_version = before[0]
        context.set_ciphers(before[1])


def bare(fail: Fail) -> Callable[[ssl.SSLContext, socket.socket], None]:
    """Fail without TLS."""
    return lambda _, sock: fail(sock)


def cut(data: bytes, end: str = "fin") -> Callable[[ssl.SSLSocket], None]:
    """Say this, and end what is below without close_notify."""

    def then(secure: ssl.SSLSocket) -> None:
        secure.sendall(data)
        time.sleep(0.2)
        finish(socket.socket(fileno=secure.detach()), end)

    return then


def noisy(data: bytes, noise: bytes) -> Callable[[ssl.SSLSocket], None]:
    """Say this, and then, below TLS, what is no record of it."""

    def then(secure: ssl.SSLSocket) -> None:
        secure.sendall(data)
        time.sleep(0.3)  # uvloop drops a good record for the sake of a bad one in the same read
        below = socket.socket(fileno=secure.detach())
        below.sendall(noise)
        below.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        below.close()

    return then


def polite(data: bytes) -> Callable[[ssl.SSLSocket], None]:
    """Say this, and end with close_notify."""

    def then(secure: ssl.SSLSocket) -> None:
        secure.sendall(data)
        secure.unwrap().close()

    return then


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n"
HUGE_RECORD = b"\x17\x03\x03\xff\xff" + bytes(70_000)

TLS_FAILURES: dict[str, tuple[Callable[[ssl.SSLContext, socket.socket], None], int]] = {
    **{f"closes at once, {turn}": (bare(just()), 502) for turn in range(10)},
    **{f"resets at once, {turn}": (bare(just(end="reset")), 502) for turn in range(10)},
    "closes after the hello": (bare(heard()), 502),
    "resets after the hello": (bare(heard(end="reset")), 502),
    "half closes after the hello": (bare(heard(end="half")), 502),
    "an alert": (bare(heard(ALERT)), 502),
    "plain HTTP": (bare(heard(HEAD + b"Content-Length: 2\r\n\r\nok")), 502),
    "garbage": (bare(heard(b"\x00\xff" * 500)), 502),
    "half a record": (bare(heard(b"\x16\x03\x03\x01\x00abc")), 502),
    "a huge record": (bare(heard(b"\x16\x03\x03\xff\xff" + bytes(70_000))), 502),
    "no cipher in common": (without_ciphers, 502),
    "closes after the handshake": (in_tls(cut(b"")), 502),
    "resets after the handshake": (in_tls(cut(b"", "reset")), 502),
    "close_notify after the handshake": (in_tls(polite(b"")), 502),
    "an alert after the handshake": (in_tls(noisy(b"", ALERT)), 502),
    "a huge record after the handshake": (in_tls(noisy(b"", HUGE_RECORD)), 502),
    "half a head": (in_tls(cut(HEAD)), 502),
    "half a body": (in_tls(polite(HEAD + b"Content-Length: 9\r\n\r\nhal")), 0),
    "chunks without the last": (in_tls(polite(CHUNKED)), 0),
    "chunks, then garbage": (in_tls(noisy(CHUNKED, b"\x00\xff" * 500)), 0),
    "chunks, then a huge record": (in_tls(noisy(CHUNKED, HUGE_RECORD)), 0),
    "a body until close_notify": (in_tls(polite(HEAD + b"\r\nwhole")), 200),
    "a body until a bare close": (in_tls(cut(HEAD + b"\r\nhal")), 0),
    "a body until a bare half close": (in_tls(cut(HEAD + b"\r\nhal", "half")), 0),
    "a body until a reset": (in_tls(cut(HEAD + b"\r\nhal", "reset")), 0),
    "a body until an alert": (in_tls(noisy(HEAD + b"\r\nhal", ALERT)), 0),
    "a body until garbage": (in_tls(noisy(HEAD + b"\r\nhal", b"\x00\xff" * 500)), 0),
}


def quietly(fail: Fail, sock: socket.socket) -> None:
    """Fail, whatever the other side makes of it."""
    with suppress(OSError):
        fail(sock)


@tls
def test_each_way_an_upstream_fails_is_one_error_and_one_row(
    with_tls: bool, tmp_path: Path, authority: Authority
) -> None:
    rows_of = {200: "complete", 502: "upstream_lost", 0: "upstream_lost"}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.directory / "server.crt", authority.directory / "server.key")
    failures: dict[str, tuple[Any, int]] = dict(TLS_FAILURES) if with_tls else dict(PLAIN_FAILURES)
    listening = socket.create_server(("127.0.0.1", 0))
    log = tmp_path / "requests.jsonl"
    settings: dict[str, Any] = {"log": {"requests": str(log)}, "upstreams": {"openai": {}}}
    if with_tls:
        settings["upstreams"]["openai"]["ca_file"] = str(authority.file)
    url = f"{'https' if with_tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}/v1"
    proxy = Proxy(tmp_path, url, settings=settings)
    try:
        wrong = {}
        for name, (fail, status) in failures.items():
            with Client(proxy.port) as client:
                client.send(request(proxy.key))
                sock = listening.accept()[0]
                sock.settimeout(LIMIT)
                run = Thread(target=quietly, args=(partial(fail, context) if with_tls else fail, sock))
                run.start()
                try:
                    got = client.answer().status
                except Closed:
                    got = 0
                run.join()
                if got != status:
                    wrong[name] = got
            sock.close()
        assert wrong == {}
        eventually(lambda: log.read_text().count("\n") == len(failures), "a row for each request")
        ends = [json.loads(line)["end"] for line in log.read_text().splitlines()]
        assert ends == [rows_of[status] for _, status in failures.values()]
    finally:
        proxy.stop()
        listening.close()
    said = proxy.log_text()
    assert "Traceback" not in said and "Unhandled" not in said and "error" not in said.lower(), said


@tls
def test_no_way_in_which_a_client_fails_leaves_a_traceback(with_tls: bool, between: Callable[..., Between]) -> None:
    middle = between(with_tls)
    whole = middle.request(b"POST /v1/x HTTP/1.1", b"Content-Length: 4", body=b"body")
    bare = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x16\x03\x01\xff\xff" + bytes(70_000), ALERT]
    for said, end in product([*bare, whole, b"\x00\xff" * 500], ENDS):
        sock = socket.create_connection(("127.0.0.1", middle.proxy.port), LIMIT)
        with suppress(OSError):
            sock.sendall(said)
            finish(sock, end)
        sock.close()
    spoken = [(b"", b""), (whole[:30], b""), (whole[:-2], b""), (whole, b""), (whole, ALERT * 3)]
    for (said, noise), end in product(spoken, ENDS):
        client = middle.client()
        client.offer(said)
        below = socket.socket(fileno=client.sock.detach())
        with suppress(OSError):
            below.sendall(noise if with_tls else b"")
            finish(below, end)
        below.close()
    with middle.client() as client:
        assert client.ask(middle.request()).status == 200
