"""What the kernel does for Flowstack's connections, and what Flowstack does when the other side fails."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.e2e.processes import Proxy
from tests.e2e.raw import Client, request
from tests.e2e.raw_upstream import Upstream, upstream
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
