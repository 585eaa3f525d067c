"""Upstreams that are reached through a forward proxy, by a UNIX socket, or with a certificate; on both reactors."""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Proxy, eventually
from tests.e2e.raw import Answer, Client, assert_own_error, request
from tests.e2e.raw_upstream import OK, Upstream, reply, upstream
from tests.e2e.test_upstreams import running, server_context
from tests.short import short_folder
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

PASSWORD = "canary-of-the-proxy-0123456789"


class ForwardProxy:
    """A forward proxy that takes CONNECT, and whatever else a test has it do.

    :param reply: what it answers in place of the tunnel; None: it opens the tunnel.
    :param wants: the credentials that it asks for.
    """

    def __init__(self, reply: bytes | None = None, wants: str | None = None, to: int | None = None) -> None:
        self.reply, self.wants, self.to = reply, wants, to
        self.heads: list[bytes] = []
        self.carried = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = client.recv(1)
                if not piece:
                    return
                head += piece
            self.heads.append(head)
            credentials = re.search(rb"\r\nProxy-Authorization: Basic (\S+)\r\n", head)
            if self.wants is not None and (
                credentials is None or base64.b64decode(credentials[1]).decode() != self.wants
            ):
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if self.reply is not None:
                client.sendall(self.reply)
                if self.reply and not self.reply.endswith(b"-"):
                    client.close()
                return
            found = re.match(rb"CONNECT ([^:]+):([0-9]+) HTTP/1\.1\r\n", head)
            assert found is not None, head
            server = socket.create_connection(("127.0.0.1", self.to or int(found[2])))
            self._open.append(server)
            client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
            threading.Thread(target=self._carry, args=(server, client), daemon=True).start()
            self._carry(client, server)
        except OSError:
            pass

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                self.carried += data
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (one, other):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()


@contextmanager
def forward(*what: Any, **options: Any) -> Iterator[ForwardProxy]:
    proxy = ForwardProxy(*what, **options)
    try:
        yield proxy
    finally:
        proxy.stop()


@contextmanager
def through(folder: Path, base_url: str, reactor: str | None = None, **openai: Any) -> Iterator[Proxy]:
    with running(folder, base_url, upstreams={"openai": openai}, timeouts={"connect": 2.0}, reactor=reactor) as proxy:
        yield proxy


def drop(proxy: Proxy, behind: Upstream) -> None:
    """Have the upstream end the connection that the proxy keeps."""
    behind.script = lambda seen: seen.link.abort()
    assert ask(proxy).status == 502
    behind.script = reply(OK)


def ask(proxy: Proxy) -> Answer:
    with Client(proxy.port) as client:
        return client.ask(request(proxy.key))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


REACTORS = pytest.mark.parametrize("reactor", [None, "epoll"])


@REACTORS
def test_an_upstream_behind_a_forward_proxy_is_spoken_with_through_it_and_tls_is_its_own(
    tmp_path: Path, authority: Authority, reactor: str | None
) -> None:
    secret = tmp_path / "proxy.secret"
    secret.write_text(f"user:{PASSWORD}\n")
    secret.chmod(0o600)
    context = server_context(*authority.issue("api", "api.example"))
    with upstream(context) as behind, forward(wants=f"user:{PASSWORD}", to=behind.port) as way, through(
        tmp_path, f"https://api.example:{behind.port}/v1", reactor,
        ca_file=str(authority.file), proxy=way.url, proxy_auth_file=str(secret),
    ) as proxy:  # fmt: skip
        for _ in range(2):  # the tunnel is kept as any connection is
            assert ask(proxy).status == 200
        assert len(way.heads) == 1
        assert way.heads[0].startswith(b"CONNECT api.example:%d HTTP/1.1\r\nHost: api.example:" % behind.port)
        assert b"Flowstack" not in way.heads[0]
        assert b"GET " not in way.carried  # it is TLS that passes
        assert b"Proxy-Authorization" not in behind.requests[0].raw_head
        # A reload takes other credentials.
        way.wants = "user:other"
        secret.write_text("user:other")
        proxy.reload()
        drop(proxy, behind)
        assert ask(proxy).status == 200
        assert b"Basic " + base64.b64encode(b"user:other") in way.heads[-1]
        proxy.assert_no_secrets([PASSWORD, base64.b64encode(f"user:{PASSWORD}".encode()).decode()])


@REACTORS
def test_a_plain_upstream_is_tunnelled_too(tmp_path: Path, reactor: str | None) -> None:
    with ExitStack() as stack:
        behind, way = stack.enter_context(upstream()), stack.enter_context(forward())
        url = f"http://127.0.0.1:{behind.port}/v1"
        assert ask(stack.enter_context(through(tmp_path, url, reactor, proxy=way.url))).status == 200
        assert way.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % ((behind.authority,) * 2)]


REFUSALS = {
    "wrong credentials": ({"wants": "a:b"}, "it answered 407 (it wants other credentials; see proxy_auth_file)"),
    "not let through": ({"reply": b"HTTP/1.1 403 No\r\n\r\n"}, "it answered 403 (it does not let this through)"),
    "not reached": ({"reply": b"HTTP/1.0 502 No\r\n\r\n"}, "it answered 502 (it cannot reach the upstream)"),
    "another status": ({"reply": b"HTTP/1.1 418 No\r\n\r\n"}, "it answered 418"),
    "no HTTP": ({"reply": b"SSH-2.0-x\r\n\r\n"}, "its answer is not HTTP/1.1"),
    "closed": ({"reply": b""}, None),
    "too long": ({"reply": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"-"}, "its answer is longer than 16384 bytes"),
    "talks first": ({"reply": b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-"}, "it sent something before it was asked"),
}  # fmt: skip


@REACTORS
def test_a_proxy_that_does_not_let_it_through_is_named_with_the_reason(tmp_path: Path, reactor: str | None) -> None:
    with ExitStack() as stack:
        ways = {name: stack.enter_context(forward(**options)) for name, (options, _) in REFUSALS.items()}
        upstreams = {
            f"u{number}": {"base_url": "http://127.0.0.1:9/v1", "hosts": [f"u{number}.example"], "proxy": way.url,
                           "default": False}
            for number, way in enumerate(ways.values())
        }  # fmt: skip
        upstreams["openai"] = {"default": True}  # type: ignore[dict-item]
        settings = {"upstreams": upstreams, "timeouts": {"connect": 1.0}}
        proxy = stack.enter_context(running(tmp_path, "http://127.0.0.1:9/v1", reactor=reactor, **settings))
        for number, (name, (_, reason)) in enumerate(REFUSALS.items()):
            with Client(proxy.port) as client:
                sent = request(proxy.key).replace(b"Host: 127.0.0.1", b"Host: u%d.example" % number, 1)
                sent = re.sub(rb"Host: [^\r]*", b"Host: u%d.example" % number, sent, count=1)
                answer = client.ask(sent)
            if reason is None:
                assert_own_error(answer, 504, "upstream_timeout")
                continue
            assert_own_error(answer, 502, "upstream_unreachable")
            netloc = ways[name].url.removeprefix("http://")
            assert f"the proxy {netloc} does not let it through: {reason}." in answer.error["message"], name


@REACTORS
def test_an_upstream_on_a_unix_socket_gets_the_host_of_its_base_url(tmp_path: Path, reactor: str | None) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        behind = stack.enter_context(upstream())
        path = folder / "api.sock"
        stack.enter_context(unix_to(path, behind))
        proxy = stack.enter_context(
            through(tmp_path, "http://models.internal/api/v1", reactor, socket=str(path), max_connections=1)
        )
        for _ in range(2):
            assert ask(proxy).status == 200
        (first, second) = behind.requests
        assert first.line == b"GET /api/v1/models HTTP/1.1"
        assert first.all(b"host") == [b"models.internal"]
        assert first.connection == second.connection
        os.unlink(path)
        drop(proxy, behind)
        assert_own_error(ask(proxy), 502, "upstream_unreachable")


@contextmanager
def unix_to(path: Path, behind: Upstream) -> Iterator[None]:
    """A UNIX socket that leads to an upstream's TCP port."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    carrier = ForwardProxy()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", behind.port))
            threading.Thread(target=carrier._carry, args=(client, server), daemon=True).start()
            threading.Thread(target=carrier._carry, args=(server, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.close()
        carrier.stop()


@REACTORS
def test_an_upstream_that_asks_for_a_certificate_is_shown_it(
    tmp_path: Path, authority: Authority, reactor: str | None
) -> None:
    clients = Authority(tmp_path, "clients")
    context = server_context(*authority.issue("mutual", "localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(clients.file)
    certificate, key = clients.issue("client", "flowstack.internal")
    key.chmod(0o600)
    with upstream(context) as behind:
        url = f"https://localhost:{behind.port}/v1"
        shown = {"client_cert_file": str(certificate), "client_key_file": str(key)}
        with through(tmp_path / "with", url, reactor, ca_file=str(authority.file), **shown) as proxy:
            assert ask(proxy).status == 200
            # Another one after a reload.
            clients.issue("client", "flowstack-2.internal")
            key.chmod(0o600)
            proxy.reload()
            drop(proxy, behind)
            assert ask(proxy).status == 200
            last = behind.links[-1].sock
            assert isinstance(last, ssl.SSLSocket)
            assert (last.getpeercert() or {})["subjectAltName"] == (("DNS", "flowstack-2.internal"),)
        with through(tmp_path / "without", url, reactor, ca_file=str(authority.file)) as proxy:
            assert ask(proxy).status == 502


def test_a_connection_comes_of_age_between_two_requests(tmp_path: Path) -> None:
    with ExitStack() as stack:
        behind = stack.enter_context(upstream())
        url = f"http://127.0.0.1:{behind.port}/v1"
        proxy = stack.enter_context(through(tmp_path, url, connection_max_age=0.5))
        client = stack.enter_context(Client(proxy.port))
        eventually(lambda: client.ask(request(proxy.key)).status == 200 and len(behind.links) >= 3, "new connections")
        assert behind.faults == []
