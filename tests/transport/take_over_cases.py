"""What taking a connection over promises, over real sockets, whichever reactor they run on.

Run by ``test_uv``, as ``uv_cases`` is.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from flowstack.config import Timeouts, Upstream
from flowstack.config.ways import Way
from flowstack.http.replies import error_reply
from flowstack.server.connection import ServerConnection
from flowstack.server.request_body import WINDOW
from flowstack.server.site import Site
from flowstack.transport.kernel import connect_protocol
from flowstack.transport.ticker import Ticker
from flowstack.transport.uv import client_endpoint, server_endpoint
from flowstack.upstream.pool import Pool, UpstreamAgent
from flowstack.upstream.routes import Origin
from tests.transport.certificates import Authority
from tests.transport.uv_parts import LIMIT, Listening, Recorder, in_thread, reactor, read_all, until

GET = b"GET /v1/tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
SHORTEST = 0.2
LONGER_THAN_ALL = 1.0
MANY = bytes(range(256)) * 4096

BOTH = pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])


@pytest.fixture
def ticker() -> Iterator[Ticker]:
    """Of timeouts so short that one that was forgotten fires while a test looks."""
    ticker = Ticker(reactor, SHORTEST / 4)
    ticker.start()
    yield ticker
    ticker.stop()


def timeouts() -> Timeouts:
    names = ("response_head", "stream_idle", "request_idle", "client_idle", "keepalive")
    return Timeouts(**dict.fromkeys(names, SHORTEST))


class Tunnel(Recorder):
    """Writes down what it gets, and reads from the moment when it is connected."""

    busy = True

    def __init__(self, rest: bytes = b"") -> None:
        super().__init__()
        self.data += rest

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.resumeProducing()


class Producer:
    """Counts its pauses and its resumptions."""

    def __init__(self) -> None:
        self.pauses = self.resumes = 0

    def pauseProducing(self) -> None:
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.resumes += 1

    def stopProducing(self) -> None:
        """Nothing."""


class Front:
    """A site whose handler does with a request what the test says, and one client of it."""

    def __init__(self, ticker: Ticker, tmp_path: Path, tls: bool, render: Callable[[Any], None]) -> None:
        self.site: Any = Site(self, ticker, timeouts(), error_reply, 65536, ServerConnection)
        self._render = render
        self._tls = Authority(tmp_path) if tls else None
        self.endpoint = "tcp:0:interface=127.0.0.1"
        if self._tls is not None:
            certificate, key = self._tls.issue("server", "localhost", "127.0.0.1")
            self.endpoint = f"ssl:0:certKey={certificate}:privateKey={key}:interface=127.0.0.1"

    def render(self, request: Any) -> None:
        self._render(request)

    async def __aenter__(self) -> Front:
        self.port: Any = await server_endpoint(reactor, self.endpoint).listen(self.site)
        self.client: Any = await in_thread(self._connect)
        return self

    def _connect(self) -> Any:
        peer: Any = socket.create_connection(("127.0.0.1", self.port.getHost().port), LIMIT)
        if self._tls is not None:
            peer = ssl.create_default_context(cafile=self._tls.file).wrap_socket(peer, server_hostname="localhost")
        return peer

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        await self.port.stopListening()


@BOTH
@ensureDeferred
async def test_a_client_taken_over_loses_no_byte_and_hears_of_no_timeout(
    ticker: Ticker, tmp_path: Path, tls: bool
) -> None:
    tunnels: list[Tunnel] = []

    def take(request: Any) -> None:
        request.channel.transport.write(SWITCH)
        tunnels.append(Tunnel())
        transport, rest = request.channel.take_over(tunnels[0])
        tunnels[0].data += rest
        connect_protocol(transport, tunnels[0])

    async with Front(ticker, tmp_path, tls, take) as front:
        front.client.sendall(GET + b"behind the head, ")
        await until(lambda: tunnels)
        assert (front.site.connections, front.site.busy, ticker.members) == (set(tunnels), 1, set())
        await deferLater(reactor, LONGER_THAN_ALL)
        sending = in_thread(front.client.sendall, b"and later, " + MANY)
        (tunnel,) = tunnels
        await until(lambda: len(tunnel.data) >= len(MANY) + 28)
        await sending
        assert tunnel.data == b"behind the head, and later, " + MANY
        tunnel.transport.write(b"an answer")
        got = b""
        while len(got) < len(SWITCH) + 9:
            got += await in_thread(front.client.recv, 1000)
        assert got == SWITCH + b"an answer"
        front.client.close()
        await until(lambda: tunnel.lost)


@BOTH
@ensureDeferred
async def test_a_client_that_was_read_no_further_is_read_on(ticker: Ticker, tmp_path: Path, tls: bool) -> None:
    requests: list[Any] = []
    async with Front(ticker, tmp_path, tls, requests.append) as front:
        sending = in_thread(front.client.sendall, GET + MANY)
        await until(lambda: requests and len(requests[0].channel._held) > WINDOW)
        tunnel = Tunnel()
        transport, rest = requests[0].channel.take_over(tunnel)
        tunnel.data += rest
        connect_protocol(transport, tunnel)
        await sending
        await until(lambda: len(tunnel.data) >= len(MANY))
        assert tunnel.data == MANY
        front.client.close()
        await until(lambda: tunnel.lost)


@BOTH
@ensureDeferred
async def test_a_client_that_does_not_read_pauses_the_next_producer_as_it_did_the_last(
    ticker: Ticker, tmp_path: Path, tls: bool
) -> None:
    requests: list[Any] = []
    async with Front(ticker, tmp_path, tls, requests.append) as front:
        front.client.sendall(GET)
        await until(lambda: requests)
        connection = requests[0].channel
        written = 0
        while not connection.output_full:
            connection.transport.write(bytes(1 << 16))
            written += 1 << 16
            await deferLater(reactor, 0)
        tunnel, producer = Tunnel(), Producer()
        transport, _ = connection.take_over(tunnel)
        connect_protocol(transport, tunnel)
        transport.registerProducer(producer, True)
        while not producer.pauses:
            transport.write(bytes(1 << 16))
            written += 1 << 16
            await deferLater(reactor, 0)
        assert (producer.pauses, producer.resumes) == (1, 0)
        await deferLater(reactor, LONGER_THAN_ALL)
        assert tunnel.lost is None, "client_idle was of the connection that is no more"
        reading = in_thread(read_all, front.client)
        await until(lambda: producer.resumes)
        transport.unregisterProducer()
        transport.loseConnection()
        assert await reading == written
        front.client.close()
        await until(lambda: tunnel.lost)


def upstream_of(ticker: Ticker, tmp_path: Path, tls: bool, listening: Listening) -> tuple[Pool, Callable[[], Any]]:
    """A pool, and what takes its next connection as a blocking server."""
    scheme = "https" if tls else "http"
    settings = Upstream(base_url=f"{scheme}://localhost:{listening.port}/v1")
    accept: Callable[[], Any] = listening.accept
    ca = None
    if tls:
        authority = Authority(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("server", "localhost", "127.0.0.1"))
        ca = authority.file

        def accept() -> Any:
            return context.wrap_socket(listening.accept(), server_side=True)

    endpoint = client_endpoint(reactor, "127.0.0.1", listening.port, tls, Way(ca_file=ca))
    pool = Pool(Origin.of(settings), settings, endpoint, ticker, timeouts(), reactor.seconds)
    return pool, accept


@BOTH
@pytest.mark.parametrize("at_once", [True, False], ids=["in the answer's call", "later"])
@ensureDeferred
async def test_an_upstream_taken_over_loses_no_byte_and_its_pool_forgets_it(
    ticker: Ticker, tmp_path: Path, at_once: bool, tls: bool
) -> None:
    tunnels: list[Tunnel] = []

    def take(response: Any) -> None:
        transport, rest = response.connection.take_over()
        tunnels.append(Tunnel(rest))
        connect_protocol(transport, tunnels[0])

    with Listening() as listening:
        pool, accept = upstream_of(ticker, tmp_path, tls, listening)
        accepting = in_thread(accept)
        responses: list[Any] = []
        call: Any = UpstreamAgent(pool).request(b"GET", pool.origin.url + b"/v1/tunnel")
        call.addCallback(take if at_once else responses.append)
        peer = await accepting
        await in_thread(peer.recv, 1000)
        sending = in_thread(peer.sendall, HEAD + b"behind the head, " + MANY)
        if not at_once:
            await until(lambda: responses)
            await deferLater(reactor, LONGER_THAN_ALL)
            take(responses[0])
        await until(lambda: tunnels)
        assert (pool.size, pool.idle, ticker.members) == (0, [], set())
        (tunnel,) = tunnels
        await until(lambda: len(tunnel.data) >= 17 + len(MANY))
        await sending
        assert tunnel.data == b"behind the head, " + MANY
        await deferLater(reactor, LONGER_THAN_ALL)
        assert tunnel.lost is None
        tunnel.transport.write(b"an answer")
        assert await in_thread(peer.recv, 1000) == b"an answer"
        peer.close()
        await until(lambda: tunnel.lost)
