"""Several upstreams by host name, prefixes with bases of their own, and TLS on both sides."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Proxy, eventually
from tests.e2e.raw import Client, Closed, assert_own_error, request
from tests.e2e.raw_upstream import OK, Seen, Upstream, reply, upstream
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e


@contextmanager
def running(folder: Path, base_url: str, reactor: str | None = None, **settings: Any) -> Iterator[Proxy]:
    proxy = Proxy(folder, base_url, reactor=reactor, settings=settings)
    try:
        yield proxy
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
    log = proxy.log_text()
    assert "Traceback" not in log and "Unhandled" not in log, log


def url(behind: Upstream, path: str = "/v1", scheme: str = "http", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{host}:{behind.port}{path}"


# Hosts and prefixes.


class Street:
    """Three upstreams behind one proxy."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.openai, self.anthropic, self.azure = (stack.enter_context(upstream()) for _ in range(3))
        self.all = (self.openai, self.anthropic, self.azure)
        self.proxy = stack.enter_context(
            running(
                folder,
                url(self.openai),
                server={
                    "prefixes": [
                        "/v1/",
                        {"path": "/v1/beta/", "base_path": "/beta/v9/"},
                        {"path": "/openai/", "base_path": "/openai/"},
                        {"path": "/", "base_path": "/root/"},
                    ]
                },
                upstreams={
                    "openai": {"default": True, "hosts": ["openai.flowstack.example"]},
                    "anthropic": {
                        "base_url": url(self.anthropic, "/a/b"),
                        "hosts": ["anthropic.flowstack.example", "claude.flowstack.example"],
                        "default": False,
                    },
                    "azure": {"base_url": url(self.azure, ""), "hosts": ["azure.flowstack.example"], "default": False},
                },
            )
        )

    def ask(self, line: bytes, host: bytes) -> tuple[Upstream, Seen]:
        """Send a request to a host; return the one upstream that saw it, and what it saw."""
        for each in self.all:
            each.forget()
        auth = b"Flowstack-Auth: Bearer " + self.proxy.key.encode()
        with Client(self.proxy.port) as client:
            assert client.ask(b"\r\n".join([line, b"Host: " + host, auth, b"", b""])).status == 200
        (found,) = [each for each in self.all if each.requests]
        return found, found.last()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    with ExitStack() as stack:
        yield Street(tmp_path_factory.mktemp("street"), stack)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"openai.flowstack.example", "openai"),
        (b"anthropic.flowstack.example", "anthropic"),
        (b"claude.flowstack.example", "anthropic"),
        (b"Anthropic.FLOWSTACK.Example", "anthropic"),
        (b"anthropic.flowstack.example:8080", "anthropic"),
        (b"anthropic.flowstack.example:", "anthropic"),
        (b"azure.flowstack.example", "azure"),
        (b"unknown.example", "openai"),
        (b"x.anthropic.flowstack.example", "openai"),
        (b"127.0.0.1:8080", "openai"),
        (b"[::1]:8080", "openai"),
    ],
)
def test_the_host_name_selects_the_upstream_and_none_other_hears_of_the_request(
    street: Street, host: bytes, name: str
) -> None:
    found, seen = street.ask(b"GET /v1/models?a=%7E HTTP/1.1", host)
    assert found is getattr(street, name)
    base = {"openai": b"/v1/", "anthropic": b"/a/b/", "azure": b"/"}[name]
    assert seen.line == b"GET " + base + b"models?a=%7E HTTP/1.1"
    assert seen.pairs == [(b"Host", found.authority)]


def test_absolute_form_selects_the_upstream_too(street: Street) -> None:
    host = b"anthropic.flowstack.example"
    found, seen = street.ask(b"GET http://" + host + b"/v1/models HTTP/1.1", host)
    assert (found, seen.target) == (street.anthropic, b"/a/b/models")


def test_absolute_form_to_another_host_than_the_host_field_is_refused(street: Street) -> None:
    raw = request(street.proxy.key, b"GET http://anthropic.flowstack.example/v1/models HTTP/1.1")
    with Client(street.proxy.port) as client:
        assert_own_error(client.ask(raw), 400, "malformed_request")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/v1/x", b"/v1/x"),
        (b"/v1/beta/x?y", b"/beta/v9/x?y"),
        (b"/v1/beta/", b"/beta/v9/"),
        (b"/v1/beta", b"/v1/beta"),
        (b"/v1/betax/y", b"/v1/betax/y"),
        (b"/openai/deployments/gpt/chat?api-version=1", b"/openai/deployments/gpt/chat?api-version=1"),
        (b"/anything", b"/root/anything"),
        (b"/v1", b"/root/v1"),
        (b"//x", b"/root//x"),
    ],
)
def test_the_longest_prefix_counts_and_is_replaced_by_its_base(street: Street, path: bytes, target: bytes) -> None:
    found, seen = street.ask(b"GET " + path + b" HTTP/1.1", b"openai.flowstack.example")
    assert (found, seen.target) == (street.openai, target)


def test_each_upstream_has_connections_of_its_own(street: Street) -> None:
    _, first = street.ask(b"GET /v1/a HTTP/1.1", b"openai.flowstack.example")
    street.ask(b"GET /v1/a HTTP/1.1", b"anthropic.flowstack.example")
    _, again = street.ask(b"GET /v1/a HTTP/1.1", b"openai.flowstack.example")
    assert first.connection == again.connection


# What hops before this one said, where the operator lets it pass.

HOPS = [b"X-Forwarded-For: 10.0.0.1", b"Via: 1.1 other", b"X-Forwarded-Proto: https", b"Forwarded: for=10.0.0.1"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (
            "pass",
            [
                (b"X-Forwarded-For", b"10.0.0.1"),
                (b"Via", b"1.1 other"),
                (b"X-Forwarded-Proto", b"https"),
                (b"Forwarded", b"for=10.0.0.1"),
            ],
        ),
        (
            "append",
            [
                (b"Via", b"1.1 other"),
                (b"X-Forwarded-Proto", b"https"),
                (b"Forwarded", b"for=10.0.0.1"),
                (b"X-Forwarded-For", b"10.0.0.1, 127.0.0.1"),
                (b"X-Forwarded-Host", b"flowstack.example"),
            ],
        ),
    ],
)
def test_forwarding_fields_pass_where_the_operator_says_so(
    tmp_path: Path, mode: str, expected: list[tuple[bytes, bytes]]
) -> None:
    with upstream() as behind, running(tmp_path, url(behind), server={"forwarded": mode}) as proxy:
        with Client(proxy.port) as client:
            assert client.ask(request(proxy.key, b"GET /v1/x HTTP/1.1", *HOPS)).status == 200
        assert behind.last().pairs == [(b"Host", behind.authority), *expected]


# TLS to the upstream.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_an_upstream_with_tls_is_verified_and_gets_the_same_bytes(tmp_path: Path, authority: Authority) -> None:
    context = server_context(*authority.issue("good", "localhost", "127.0.0.1"))
    body = bytes(range(256)) * 1000
    with (
        upstream(context) as behind,
        running(
            tmp_path,
            url(behind, scheme="https", host="localhost"),
            upstreams={"openai": {"ca_file": str(authority.file)}},
        ) as proxy,
    ):
        behind.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        with Client(proxy.port) as client:
            for _ in range(3):
                raw = request(proxy.key, b"POST /v1/x HTTP/1.1", b"Content-Length: %d" % len(body), body=body)
                answer = client.ask(raw)
                assert (answer.status, answer.body) == (200, body)
                seen = behind.last()
                assert seen.framed == body
                assert seen.all(b"host") == [b"localhost:%d" % behind.port]
        assert {seen.connection for seen in behind.requests} == {1}, "its connections are kept too"


def test_an_upstream_that_is_not_to_be_trusted_gets_no_byte_of_the_request(
    tmp_path: Path, authority: Authority
) -> None:
    stranger = Authority(tmp_path, "stranger")
    contexts = {
        "name": server_context(*authority.issue("name", "other.example")),
        "expired": server_context(*authority.issue("expired", "localhost", expired=True)),
        "itself": server_context(*authority.issue("itself", "localhost", self_signed=True)),
        "stranger": server_context(*stranger.issue("stranger", "localhost")),
    }
    with ExitStack() as stack:
        behind = {name: stack.enter_context(upstream(context)) for name, context in contexts.items()}
        # What speaks no TLS waits for the rest of what it takes for a request line.
        plain = stack.enter_context(upstream())
        upstreams: dict[str, dict[str, Any]] = {
            name: {"base_url": url(each, scheme="https", host="localhost"), "hosts": [f"{name}.example"]}
            for name, each in [*behind.items(), ("plain", plain)]
        }
        for settings in upstreams.values():
            settings |= {"default": False, "ca_file": str(authority.file)}
        upstreams["openai"] = {"default": True}
        proxy = stack.enter_context(
            running(tmp_path / "proxy", url(plain), timeouts={"connect": 3}, upstreams=upstreams)
        )
        client = stack.enter_context(Client(proxy.port))
        raw = request(proxy.key, b"GET /v1/x HTTP/1.1", b"Authorization: Bearer sk-secret")
        for name in behind:
            answer = client.ask(raw.replace(b"flowstack.example", name.encode() + b".example"))
            assert_own_error(answer, 502, "upstream_unreachable")
            assert "certificate" in answer.error["message"], answer.error
        assert client.ask(raw.replace(b"flowstack.example", b"plain.example")).status in (502, 504)
        for each in (*behind.values(), plain):
            assert each.requests == []
            assert all(b"sk-secret" not in link.received for link in each.links)


def test_an_answer_until_close_that_lost_its_tls_end_is_cut_for_the_client(
    tmp_path: Path, authority: Authority
) -> None:
    # RFC 9112 §9.8: without close_notify such an answer may have been cut by anybody.
    def cut(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        time.sleep(0.05)
        # Beneath TLS: FIN, and no word of the end.
        with socket.socket(fileno=seen.link.sock.detach()) as beneath:
            beneath.shutdown(socket.SHUT_WR)
        seen.link.closed = True

    def whole(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        assert isinstance(seen.link.sock, ssl.SSLSocket)
        seen.link.sock.unwrap().close()
        seen.link.closed = True

    context = server_context(*authority.issue("cut", "localhost", "127.0.0.1"))
    with (
        upstream(context) as behind,
        running(
            tmp_path,
            url(behind, scheme="https", host="localhost"),
            upstreams={"openai": {"ca_file": str(authority.file)}},
        ) as proxy,
    ):
        behind.script = whole
        with Client(proxy.port) as client:
            assert client.ask(request(proxy.key)).body == b"all of it"
        behind.script = cut
        with Client(proxy.port) as client:
            client.send(request(proxy.key))
            with pytest.raises(Closed):
                pytest.fail(f"this looks finished: {client.answer()}")


# TLS from the client.


def test_a_tls_listener_serves_verifying_clients_and_takes_a_new_certificate_over_on_sighup(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("flowstack", "flowstack.example")
    first = certificate.read_bytes()
    listen = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    trusting = ssl.create_default_context(cafile=str(authority.file))

    def served(proxy: Proxy) -> bytes:
        with Client(proxy.port, secure=(trusting, "flowstack.example")) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            found = client.sock.getpeercert(binary_form=True)
            assert found is not None
            assert client.ask(request(proxy.key)).body == b"ok"
            return found

    with upstream() as behind, running(tmp_path, url(behind), server={"listen": [listen]}) as proxy:
        with Client(proxy.port, secure=(trusting, "flowstack.example")) as client:
            body = bytes(range(256)) * 2000
            behind.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            raw = request(proxy.key, b"POST /v1/x HTTP/1.1", b"Content-Length: %d" % len(body), body=body)
            for _ in range(2):
                assert client.ask(raw).body == body
                assert behind.last().framed == body
            assert_own_error(client.ask(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"), 401, "missing_flowstack_key")
            assert_own_error(client.ask(b"nonsense\r\n\r\n"), 400, "malformed_request")
            assert client.to_the_end()[0] == b""
        behind.script = reply(OK)
        assert served(proxy) == ssl.PEM_cert_to_DER_cert(first.decode())

        # Plain HTTP, silence and noise where TLS is spoken.
        for noise in (request(proxy.key), b"", b"\x16\x03\x01\xff\xff" + bytes(100)):
            client = Client(proxy.port)
            client.offer(noise)
            client.quiet(0.1)
            client.abort()

        authority.issue("flowstack", "flowstack.example")
        second = certificate.read_bytes()
        assert second != first
        proxy.reload()
        eventually(lambda: served(proxy) == ssl.PEM_cert_to_DER_cert(second.decode()), "the new certificate is served")

        certificate.write_bytes(b"no certificate")
        proxy.reload()
        assert served(proxy) == ssl.PEM_cert_to_DER_cert(second.decode())
        assert "TLS certificate was not reloaded" in proxy.log_text()


def test_a_client_that_cannot_verify_the_certificate_sends_no_request(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("unknown", "flowstack.example")
    listen = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    with upstream() as behind, running(tmp_path, url(behind), server={"listen": [listen]}) as proxy:
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(proxy.port, secure=(ssl.create_default_context(), "flowstack.example"))
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(proxy.port, secure=(ssl.create_default_context(cafile=str(authority.file)), "other.example"))
        assert behind.requests == []
