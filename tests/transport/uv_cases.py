"""What a plain transport promises, whichever reactor it runs on.

``test_uv`` runs each case twice: in a process with Twisted's epoll reactor, whose own transports are the measure, and
in one with the reactor on uvloop.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.interfaces import IConsumer, IListeningPort, IPushProducer, ITCPTransport
from twisted.internet.task import deferLater

from flowstack.transport.reactor import Attempt
from flowstack.transport.resolver import Resolver
from flowstack.transport.uv import client_endpoint, install, server_endpoint, uv_reactor
from tests.transport.uv_parts import (
    LIMIT,
    ON_UVLOOP,
    HalfRecorder,
    Listening,
    Pulling,
    Pushing,
    Recorder,
    Recorders,
    Served,
    backlog_of,
    connected,
    descriptors,
    end_of,
    in_thread,
    reactor,
    read_all,
    reset,
    resident,
    until,
)

MB = 1 << 20


@ensureDeferred
async def test_the_session_has_the_reactor_that_was_asked_for() -> None:
    assert install() is reactor
    assert os.environ["TRANSPORTS"] == ("uvloop" if ON_UVLOOP else type(reactor).__name__)


@ensureDeferred
async def test_bytes_pass_both_ways_and_from_within_every_callback() -> None:
    def answer(protocol: Recorder, data: bytes) -> None:
        protocol.transport.write(b"<" + data + b">")

    def late(protocol: Recorder) -> None:
        protocol.transport.write(b"too late")
        protocol.transport.writeSequence([b"too", b"late"])

    async with Served(on_made=lambda p: p.transport.write(b"hello "), on_data=answer, on_lost=late) as served:
        client = await connected(served.port.getHost().port, on_made=lambda p: p.transport.writeSequence([b"a", b"b"]))
        await until(lambda: client.data == b"hello <ab>")
        client.transport.loseConnection()
        server = await served.one()
        await until(lambda: server.lost and client.lost)
        assert (server.events, client.events) == (["made", "lost ConnectionDone"],) * 2


@ensureDeferred
async def test_the_transport_provides_what_twisted_promises() -> None:
    async with Served() as served:
        client = await connected(served.port.getHost().port)
        for transport in (client.transport, (await served.one()).transport):
            for interface in (ITCPTransport, IConsumer, IPushProducer):
                assert interface.providedBy(transport)
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
            assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (True, True)
            transport.setTcpNoDelay(False)
            transport.setTcpKeepAlive(False)
            assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (False, False)
            assert (transport.connected, transport.disconnecting, transport.disconnected) == (1, 0, 0)
        client.transport.loseConnection()
        assert client.transport.disconnecting
        await until(lambda: client.lost)
        assert (client.transport.connected, client.transport.disconnected) == (0, 1)


@ensureDeferred
@pytest.mark.parametrize(("end", "reason"), [(socket.socket.close, "ConnectionDone"), (reset, "ConnectionLost")])
async def test_the_peers_fin_is_done_and_its_rst_is_lost(end: Any, reason: str) -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        end(peer)
        await until(lambda: server.lost)
        assert server.events == ["made", f"lost {reason}"]
    with Listening() as listening:
        client = await connected(listening.port)
        end(await in_thread(listening.accept))
        await until(lambda: client.lost)
        assert client.events == ["made", f"lost {reason}"]


@ensureDeferred
async def test_a_fin_ends_the_connection_at_once_although_output_waits() -> None:
    async with Served(on_made=lambda p: p.transport.write(bytes(16 * MB))) as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)
        peer.close()


@ensureDeferred
async def test_losing_a_connection_sends_all_that_was_written_first() -> None:
    def send(protocol: Recorder) -> None:
        protocol.transport.write(bytes(8 * MB))
        protocol.transport.loseConnection()

    async with Served(on_made=send) as served:
        peer = await in_thread(served.peer, 4096)
        assert await in_thread(read_all, peer, 0.0001) == 8 * MB
        server = await served.one()
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)
        peer.close()


@ensureDeferred
async def test_aborting_resets_the_peer_and_drops_what_was_written() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        server.transport.write(bytes(8 * MB))
        server.transport.abortConnection()
        server.transport.abortConnection()
        server.transport.write(b"dropped")
        assert server.lost is None, "connectionLost must not come from within abortConnection"
        await until(lambda: server.lost)
        assert server.events == ["made", "lost ConnectionAborted"]
        assert await in_thread(end_of, peer) == "RST"
        peer.close()


@ensureDeferred
async def test_aborting_after_loseconnection_does_not_wait_for_the_slow_peer() -> None:
    async with Served(on_made=lambda p: p.transport.write(bytes(8 * MB))) as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        server.transport.loseConnection()
        await deferLater(reactor, 0.05)
        assert server.lost is None
        server.transport.abortConnection()
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionAborted)
        peer.close()


@ensureDeferred
@pytest.mark.parametrize("method", ["loseConnection", "abortConnection"])
async def test_a_connection_can_be_closed_from_within_connectionmade_and_datareceived(method: str) -> None:
    async with Served(on_made=lambda p: getattr(p.transport, method)()) as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        await until(lambda: server.lost)
        peer.close()
    async with Served(on_data=lambda p, _: getattr(p.transport, method)()) as served:
        peer = await in_thread(served.peer)
        peer.sendall(b"x")
        server = await served.one()
        await until(lambda: server.lost)
        peer.close()
        assert server.lost.check(error.ConnectionDone if method == "loseConnection" else error.ConnectionAborted)


@ensureDeferred
async def test_writing_after_the_end_is_silent() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        transport = server.transport
        transport.loseConnection()
        transport.write(b"after")
        await until(lambda: server.lost)
        for call in (
            lambda: transport.write(b"x"),
            lambda: transport.writeSequence([b"x"]),
            transport.loseConnection,
            transport.abortConnection,
            transport.pauseProducing,
            transport.resumeProducing,
            transport.stopProducing,
            transport.unregisterProducer,
        ):
            call()
        assert server.events == ["made", "lost ConnectionDone"]
        assert transport.getPeer().port == peer.getsockname()[1]
        peer.close()


@ensureDeferred
async def test_a_half_closeable_protocol_goes_on_writing_after_the_peers_fin() -> None:
    async with Served(kind=HalfRecorder) as served:
        peer = await in_thread(served.peer)
        peer.sendall(b"question")
        peer.shutdown(socket.SHUT_WR)
        server = await served.one()
        await until(lambda: "read lost" in server.events)
        server.transport.resumeProducing()
        server.transport.write(bytes(MB))
        server.transport.loseConnection()
        assert await in_thread(read_all, peer) == MB
        await until(lambda: server.lost)
        assert (server.data, server.events) == (b"question", ["made", "read lost", "lost ConnectionDone"])
        peer.close()


@ensureDeferred
@pytest.mark.parametrize("unsent", [0, 8 * MB])
async def test_half_closing_sends_what_was_written_then_fin_and_reads_on(unsent: int) -> None:
    async with Served(kind=HalfRecorder) as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        server.transport.write(bytes(unsent))
        server.transport.loseWriteConnection()
        assert await in_thread(read_all, peer) == unsent
        await until(lambda: "write lost" in server.events)
        server.transport.write(b"dropped")
        peer.sendall(b"still heard")
        await until(lambda: server.data == b"still heard")
        peer.close()
        await until(lambda: "read lost" in server.events)
        server.transport.loseConnection()
        await until(lambda: server.lost)
        assert server.events == ["made", "write lost", "read lost", "lost ConnectionDone"]


@ensureDeferred
async def test_a_push_producer_of_64_mb_is_held_to_a_slow_readers_pace_in_bounded_memory() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer, 65536)
        server = await served.one()
        before = resident()
        producer = Pushing(server.transport, 64 * MB)
        producer.begin()
        assert (producer.paused, producer.pauses) == (True, 1)
        most = 0
        reading = in_thread(read_all, peer, 0.0005)
        while not reading.called:
            most = max(most, resident() - before)
            await deferLater(reactor, 0.02)
        assert await reading == 64 * MB
        assert most < 16 * MB
        assert producer.pauses == producer.resumes >= 8
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)
        peer.close()


@ensureDeferred
async def test_a_pull_producer_is_asked_for_more_when_all_was_sent() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer, 65536)
        server = await served.one()
        producer = Pulling(server.transport, 4 * MB)
        server.transport.registerProducer(producer, False)
        assert producer.asked == 1
        assert await in_thread(read_all, peer, 0.0005) == 4 * MB
        assert producer.asked == 4 * MB // len(producer.piece) + 1
        await until(lambda: server.lost)
        peer.close()


@ensureDeferred
async def test_a_pull_producer_is_not_asked_while_its_last_piece_waits() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        producer = Pulling(server.transport, 64 * MB, 8 * MB)
        server.transport.registerProducer(producer, False)
        await deferLater(reactor, 0.1)
        assert producer.asked == 1
        peer.close()
        await until(lambda: server.lost)
        assert producer.stopped


@ensureDeferred
async def test_what_a_producer_writes_after_loseconnection_still_goes_out() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        producer = Pushing(server.transport, 0)
        server.transport.registerProducer(producer, True)
        server.transport.write(b"one ")
        server.transport.loseConnection()
        server.transport.write(b"two")
        server.transport.unregisterProducer()
        assert await in_thread(peer.recv, 100, socket.MSG_WAITALL) == b"one two"
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)
        peer.close()


@ensureDeferred
async def test_a_producer_is_told_of_the_end_and_none_is_taken_after_it() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        first, second = Pushing(server.transport, 0), Pushing(server.transport, 0)
        server.transport.registerProducer(first, True)
        with pytest.raises(RuntimeError, match="was never unregistered"):
            server.transport.registerProducer(second, True)
        peer.close()
        await until(lambda: server.lost)
        assert first.stopped
        server.transport.registerProducer(second, True)
        assert second.stopped


@ensureDeferred
async def test_a_paused_transport_delivers_nothing_until_it_is_resumed() -> None:
    async with Served(on_data=lambda p, data: p.transport.pauseProducing()) as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        peer.sendall(b"one")
        await until(lambda: server.data == b"one")
        peer.sendall(b"two")
        await deferLater(reactor, 0.05)
        assert server.data == b"one"
        server.transport.resumeProducing()
        await until(lambda: server.data == b"onetwo")
        peer.close()
        await deferLater(reactor, 0.05)
        assert server.lost is None, "while reading is paused, a FIN goes unnoticed"
        server.transport.resumeProducing()
        await until(lambda: server.lost)


@ensureDeferred
async def test_a_pause_in_connectionmade_holds() -> None:
    async with Served(on_made=lambda p: p.transport.pauseProducing()) as served:
        peer = await in_thread(served.peer)
        peer.sendall(b"early ")
        server = await served.one()
        await deferLater(reactor, 0.05)
        peer.sendall(b"late")
        await deferLater(reactor, 0.05)
        assert server.data == b""
        server.transport.resumeProducing()
        await until(lambda: server.data == b"early late")
        peer.close()
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)


@ensureDeferred
async def test_a_paused_reader_holds_back_the_sender() -> None:
    async with Served(on_made=lambda p: p.transport.pauseProducing()) as served:
        client = await connected(served.port.getHost().port)
        producer = Pushing(client.transport, 32 * MB)
        producer.begin()
        server = await served.one()
        await deferLater(reactor, 0.1)
        assert producer.paused
        assert producer.left > 16 * MB
        server.transport.resumeProducing()
        await until(lambda: server.lost)
        assert len(server.data) == 32 * MB


@ensureDeferred
async def test_a_protocol_that_fails_loses_its_connection_with_that_failure() -> None:
    def fail(_protocol: Recorder, _data: bytes) -> None:
        raise LookupError("on purpose")

    async with Served(on_data=fail) as served:
        peer = await in_thread(served.peer)
        peer.sendall(b"x")
        server = await served.one()
        await until(lambda: server.lost)
        assert server.events == ["made", "lost LookupError"]
        peer.close()


@ensureDeferred
async def test_a_factory_that_builds_nothing_closes_the_connection() -> None:
    async with Served() as served:
        served.factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        peer = await in_thread(served.peer)
        assert await in_thread(end_of, peer) == "FIN"
        peer.close()


@ensureDeferred
@pytest.mark.parametrize(("host", "kind"), [("127.0.0.1", IPv4Address), ("::1", IPv6Address)])
async def test_both_ends_agree_on_their_addresses(host: str, kind: Any) -> None:
    string = "tcp6:0:interface=\\:\\:1" if ":" in host else "tcp:0:interface=127.0.0.1"
    async with Served(string) as served:
        address = served.port.getHost()
        assert isinstance(address, kind)
        client = await connected(address.port, host)
        server = await served.one()
        assert client.transport.getPeer() == server.transport.getHost() == address
        assert client.transport.getHost() == server.transport.getPeer() == served.factory.addresses[0]
        assert isinstance(server.transport.getPeer(), kind)
        client.transport.loseConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_unix_sockets_serve_and_connect(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with Served(f"unix:{path}:mode=660", on_data=lambda p, data: p.transport.write(data)) as served:
        assert served.port.getHost() == UNIXAddress(str(path))
        assert path.stat().st_mode & 0o777 == 0o660
        client = Recorder()
        await connectProtocol(clientFromString(uv_reactor(reactor), f"unix:{path}"), client)
        client.transport.write(b"x" * 100_000)
        await until(lambda: len(client.data) == 100_000)
        server = await served.one()
        assert (server.transport.getHost(), server.transport.getPeer()) == (UNIXAddress(str(path)), UNIXAddress(None))
        assert (client.transport.getPeer(), server.transport.getTcpNoDelay()) == (UNIXAddress(str(path)), False)
        server.transport.setTcpNoDelay(True)
        client.transport.loseConnection()
        await until(lambda: server.lost and client.lost)
        assert server.lost.check(error.ConnectionDone)
    assert not path.exists()
    with pytest.raises(error.ConnectError):
        await connectProtocol(clientFromString(uv_reactor(reactor), f"unix:{path}"), Recorder())


@ensureDeferred
async def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with Served(f"unix:{path}"):
        with pytest.raises(error.CannotListenError):
            await server_endpoint(reactor, f"unix:{path}").listen(Served().factory)
    socket.socket(socket.AF_UNIX).bind(str(path))
    (tmp_path / "socket.lock").symlink_to("999999999")
    async with Served(f"unix:{path}") as served:
        (await in_thread(served.peer)).close()
        await served.one()


@ensureDeferred
async def test_a_port_that_is_taken_is_refused_at_once() -> None:
    async with Served() as served:
        port = served.port.getHost().port
        failed = server_endpoint(reactor, f"tcp:{port}:interface=127.0.0.1").listen(served.factory)
        results: list[Any] = []
        failed.addBoth(results.append)
        assert results[0].check(error.CannotListenError)
        assert "in use" in results[0].getErrorMessage()


@ensureDeferred
async def test_a_stopped_port_refuses_and_its_connections_live_on() -> None:
    async with Served(on_data=lambda p, data: p.transport.write(data)) as served:
        assert IListeningPort.providedBy(served.port)
        port = served.port.getHost().port
        client = await connected(port)
        await served.one()
        await served.port.stopListening()
        with pytest.raises(error.ConnectionRefusedError):
            await connected(port)
        client.transport.write(b"still here")
        await until(lambda: client.data == b"still here")
        served.port.startListening()
        again = await connected(served.port.getHost().port)
        again.transport.loseConnection()
        client.transport.loseConnection()
        await until(lambda: client.lost and again.lost)


@ensureDeferred
async def test_the_backlog_is_1024_unless_it_is_given() -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for string, expected in (("tcp:0:interface=127.0.0.1", 1024), ("tcp:0:interface=127.0.0.1:backlog=7", 7)):
        async with Served(string) as served:
            assert backlog_of(served.port.getHost().port) == min(expected, most)


@ensureDeferred
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
async def test_a_descriptor_that_was_handed_down_is_adopted(family: socket.AddressFamily, tmp_path: Path) -> None:
    path = str(tmp_path / "handed-down")
    sock = socket.socket(family)
    sock.bind({socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: path}[family])
    sock.listen(5)
    endpoint = server_endpoint(reactor, "tcp:0", sock.detach())
    served = Served(on_data=lambda p, data: p.transport.write(data))
    served.port = await endpoint.listen(served.factory)
    peer = await in_thread(served.peer)
    peer.sendall(b"adopted")
    await served.one()
    assert await in_thread(peer.recv, 100) == b"adopted"
    peer.close()
    await served.__aexit__()


@ensureDeferred
async def test_adopting_an_unknown_family_is_refused() -> None:
    with pytest.raises(error.UnsupportedAddressFamily):
        uv_reactor(reactor).adoptStreamPort(0, 9999, None)


@ensureDeferred
async def test_systemds_socket_is_adopted_by_endpoint_string() -> None:
    async with Served("systemd:domain=INET:index=0", on_data=lambda p, data: p.transport.write(data)) as served:
        peer = await in_thread(served.peer)
        peer.sendall(b"activated")
        await served.one()
        assert await in_thread(peer.recv, 100) == b"activated"
        peer.close()


@ensureDeferred
async def test_a_refused_connection_and_an_unknown_name_fail_by_their_names() -> None:
    with Listening() as listening:
        port = listening.port
    with pytest.raises(error.ConnectionRefusedError):
        await connected(port)
    with pytest.raises(error.DNSLookupError):
        await connected(port, "no-such-host.invalid")


class _Full(Listening):
    """A listener whose queue is full: a further SYN gets no answer."""

    def __init__(self) -> None:
        super().__init__(0)
        self.filling = [socket.socket() for _ in range(4)]
        for sock in self.filling:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self.port))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for sock in self.filling:
            sock.close()


@ensureDeferred
async def test_a_connect_that_gets_no_answer_times_out() -> None:
    with _Full() as full:
        before = descriptors()
        with pytest.raises(error.TimeoutError):
            await client_endpoint(reactor, "127.0.0.1", full.port, False, timeout=0.2).connect(Served().factory)
        await until(lambda: descriptors() <= before, "the socket's closing")


@ensureDeferred
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cancelling_a_connect_closes_the_socket(host: str) -> None:
    with _Full() as full:
        reactor.nameResolver  # noqa: B018
        await in_thread(socket.getaddrinfo, host, 1)
        factory = Served().factory
        before = descriptors()
        connecting = client_endpoint(reactor, host, full.port, False).connect(factory)
        await until(lambda: descriptors() - before, "the attempt's socket")
        failures: list[Any] = []
        connecting.addErrback(failures.append)
        connecting.cancel()
        await until(lambda: failures)
        assert failures[0].check(error.ConnectingCancelledError, CancelledError)
        await until(lambda: descriptors() <= before, "the socket's closing")
        assert factory.built == []


@ensureDeferred
async def test_the_next_address_of_a_name_is_tried_when_the_first_refuses() -> None:
    class Two:
        def resolveHostName(self, receiver: Any, *_: Any, portNumber: int = 0, **__: Any) -> Any:  # noqa: N802, N803
            receiver.resolutionBegan(self)
            for host in ("127.0.0.2", "127.0.0.1"):
                receiver.addressResolved(IPv4Address("TCP", host, portNumber))
            receiver.resolutionComplete()

    async with Served() as served:
        installed = reactor.installNameResolver(Two())
        try:
            client = await connected(served.port.getHost().port, "two.example")
        finally:
            reactor.installNameResolver(installed)
        assert client.transport.getPeer().host == "127.0.0.1"
        client.transport.loseConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_each_connection_looks_the_name_up_so_that_a_change_of_its_address_is_followed() -> None:
    class Moves:
        def __init__(self) -> None:
            self.hosts = ["127.0.0.2", "127.0.0.1"]

        def resolveHostName(self, receiver: Any, *_: Any, portNumber: int = 0, **__: Any) -> Any:  # noqa: N802, N803
            receiver.resolutionBegan(self)
            receiver.addressResolved(IPv4Address("TCP", self.hosts.pop(0), portNumber))
            receiver.resolutionComplete()

    async with Served() as served:
        installed = reactor.installNameResolver(Moves())
        try:
            endpoint = client_endpoint(reactor, "moves.example", served.port.getHost().port, False)
            with pytest.raises(error.ConnectError):
                await endpoint.connect(Recorders())
            client: Any = await endpoint.connect(Recorders())
        finally:
            reactor.installNameResolver(installed)
        assert client.transport.getPeer().host == "127.0.0.1"
        client.transport.loseConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_many_slow_look_ups_of_one_name_hold_up_no_other_name() -> None:
    go = threading.Event()

    def look_up(name: str, *more: Any) -> Any:
        if name == "slow.example":
            assert go.wait(LIMIT)
            raise socket.gaierror
        return socket.getaddrinfo(name, *more)

    installed = reactor.installNameResolver(Resolver(reactor, 0.001, look_up))
    try:
        async with Served() as served:
            slow = [client_endpoint(reactor, "slow.example", 1, False).connect(Served().factory) for _ in range(25)]
            client = await connected(served.port.getHost().port, "localhost")
            assert not any(connecting.called for connecting in slow)
            client.transport.abortConnection()
            go.set()
            for connecting in slow:
                with pytest.raises(error.DNSLookupError):
                    await connecting
    finally:
        go.set()
        reactor.installNameResolver(installed)


@ensureDeferred
async def test_a_connection_through_the_client_endpoint_has_no_wrapper() -> None:
    async with Served() as served:
        client = await connected(served.port.getHost().port)
        assert client.transport.protocol is client
        client.transport.loseConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_many_connections_leave_nothing_behind() -> None:
    async with Served(on_data=lambda p, data: p.transport.write(data)) as served:
        before = descriptors()
        for _ in range(5):
            clients = [await connected(served.port.getHost().port) for _ in range(20)]
            for client in clients:
                client.transport.write(b"x")
            await until(lambda: all(c.data for c in clients))  # noqa: B023
            for index, client in enumerate(clients):
                (client.transport.abortConnection if index % 2 else client.transport.loseConnection)()
            await until(lambda: all(c.lost for c in clients))  # noqa: B023
        await until(lambda: all(s.lost for s in served.factory.built))
        await until(lambda: descriptors() <= before, "the sockets' closing")


@ensureDeferred
async def test_a_bad_endpoint_string_is_a_valueerror() -> None:
    for string in ("tcp:0:interfaze=127.0.0.1", "no-such-kind:1", "tcp:http", "ssl:0:cert=x"):
        with pytest.raises(ValueError, match=r"."):
            server_endpoint(reactor, string)


@pytest.mark.uvloop
@ensureDeferred
async def test_the_way_of_what_is_read_has_no_frame_of_ours() -> None:
    async with Served() as served:
        client = await connected(served.port.getHost().port)
        assert client.transport.data_received == client.dataReceived
        assert client.transport.getTcpNoDelay()
        assert not hasattr(client.transport, "__dict__")
        client.transport.loseConnection()
        await until(lambda: client.lost)


@ensureDeferred
@pytest.mark.parametrize("end", ["loseConnection", "loseWriteConnection"])
async def test_pieces_of_every_size_go_out_in_the_order_in_which_they_were_written(end: str) -> None:
    pieces = [bytes((number,)) * size for number, size in enumerate([1, 9, 20_000, 3, 70_000, *[5] * 40, 16_384, 2])]

    def send(protocol: Recorder) -> None:
        for piece in pieces[:-6]:
            protocol.transport.write(piece)
        protocol.transport.writeSequence(pieces[-6:-2])
        protocol.transport.write(pieces[-2])
        protocol.transport.write(pieces[-1])
        getattr(protocol.transport, end)()

    async with Served() as served:
        client = await connected(served.port.getHost().port)
        send(await served.one())
        await until(lambda: client.data == b"".join(pieces), "all pieces, in order")
        client.transport.loseConnection()
        await until(lambda: client.lost)


@pytest.mark.uvloop
@ensureDeferred
async def test_a_closed_connection_is_freed_without_the_garbage_collector() -> None:
    async with Served() as served:
        both = [await connected(served.port.getHost().port), await served.one()]
        ends = [weakref.ref(end.transport) for end in both]
        gc.collect()
        gc.disable()
        try:
            both[0].transport.loseConnection()
            await until(lambda: all(end.lost for end in both))
            both.clear()
            served.factory.built.clear()
            await until(lambda: [end() for end in ends] == [None, None], "both transports' end")
        finally:
            gc.enable()


@pytest.mark.uvloop
@ensureDeferred
async def test_a_push_producer_keeps_a_closing_connection_open_until_it_is_unregistered() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        producer = Pushing(server.transport, 0)
        server.transport.registerProducer(producer, True)
        server.transport.loseConnection()
        await deferLater(reactor, 0.05)
        assert server.lost is None
        server.transport.write(b"the rest")
        server.transport.unregisterProducer()
        assert await in_thread(peer.recv, 100, socket.MSG_WAITALL) == b"the rest"
        await until(lambda: server.lost)
        peer.close()


@pytest.mark.uvloop
@ensureDeferred
async def test_a_producer_registered_over_unsent_bytes_is_paused_at_once() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer, 4096)
        server = await served.one()
        server.transport.write(bytes(8 * MB))
        producer = Pushing(server.transport, 0)
        server.transport.registerProducer(producer, True)
        assert producer.paused
        peer.close()
        await until(lambda: server.lost)


@pytest.mark.uvloop
@ensureDeferred
async def test_a_protocol_that_fails_in_connectionmade_loses_its_connection() -> None:
    def fail(_protocol: Recorder) -> None:
        raise LookupError("on purpose")

    async with Served(on_made=fail) as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        await until(lambda: server.lost)
        assert server.events == ["made", "lost LookupError"]
        peer.close()


@pytest.mark.uvloop
@ensureDeferred
async def test_assigning_a_protocol_hands_the_connection_over() -> None:
    async with Served() as served:
        peer = await in_thread(served.peer)
        server = await served.one()
        peer.sendall(b"one")
        await until(lambda: server.data == b"one")
        heir = Recorder()
        server.transport.protocol = heir
        heir.makeConnection(server.transport)
        peer.sendall(b"two")
        await until(lambda: heir.data == b"two")
        peer.close()
        await until(lambda: heir.lost)
        assert server.data == b"one"
        server.lost = heir.lost


@pytest.mark.uvloop
@ensureDeferred
async def test_running_out_of_descriptors_does_not_close_the_port() -> None:
    import resource

    async with Served(on_data=lambda p, data: p.transport.write(data)) as served:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        peers = [socket.socket() for _ in range(30)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 36, hard))
        try:
            for peer in peers:
                peer.setblocking(False)
                peer.connect_ex(("127.0.0.1", served.port.getHost().port))
            await deferLater(reactor, 0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for peer in peers:
            peer.close()
        client = await connected(served.port.getHost().port)
        client.transport.write(b"alive")
        await until(lambda: client.data == b"alive")
        client.transport.loseConnection()
        await until(lambda: client.lost)


@pytest.mark.uvloop
@ensureDeferred
async def test_a_peer_that_has_reset_before_its_address_was_asked_for_fails_the_connecting() -> None:
    with Listening() as listening:
        mine = socket.create_connection(("127.0.0.1", listening.port))
        reset(await in_thread(listening.accept))
        await until(lambda: gone(mine))
    failed: list[Any] = []
    connector = SimpleNamespace(reactor=uv_reactor(reactor), connectionFailed=failed.append)
    Attempt(connector, lambda make: connector.reactor.loop.create_connection(make, sock=mine))
    await until(lambda: failed)
    assert failed[0].check(error.ConnectError)
    assert failed[0].value.osError == errno.ECONNRESET


def gone(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return True
    return False
