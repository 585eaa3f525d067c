"""What TLS promises, whichever library does it: pyOpenSSL on epoll, the standard library's on uvloop.

Run by ``test_uv``, as ``uv_cases`` is.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pytest_twisted import ensureDeferred
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from flowstack.config.ways import Way
from flowstack.transport.uv import CertificateFault, TlsError, client_endpoint, reload_certificates, server_endpoint
from tests.transport.certificates import Authority
from tests.transport.uv_parts import (
    ON_UVLOOP,
    Listening,
    Pulling,
    Pushing,
    Recorder,
    Served,
    connected,
    descriptors,
    end_of,
    in_thread,
    reactor,
    read_all,
    resident,
    until,
)

MB = 1 << 20


class Local:
    """Resolves every name to this machine."""

    def resolveHostName(self, receiver: Any, *_: Any, portNumber: int = 0, **__: Any) -> None:  # noqa: N802, N803
        receiver.resolutionBegan(self)
        receiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        receiver.resolutionComplete()


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    installed = reactor.installNameResolver(Local())
    yield
    reactor.installNameResolver(installed)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def listening_string(pair: tuple[Path, Path], more: str = "") -> str:
    return f"ssl:0:certKey={pair[0]}:privateKey={pair[1]}:interface=127.0.0.1{more}"


def tls_peer(served: Served, authority: Authority, host: str = "api.example", **settings: Any) -> ssl.SSLSocket:
    """Connect to what is served with a blocking TLS socket."""
    context = ssl.create_default_context(cafile=authority.file)
    for name, value in settings.items():
        setattr(context, name, value)
    return context.wrap_socket(served.peer(), server_hostname=host, suppress_ragged_eofs=False)


def answering(
    pair: tuple[Path, Path], listening: Listening, alpn: tuple[str, ...] = ("h2", "http/1.1"), **settings: Any
) -> ssl.SSLSocket | str:
    """Take one connection as a blocking TLS server; return it, or the error that it ended in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that the client is who judges
    context.load_cert_chain(*pair)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, value in settings.items():
            getattr(context, name)(value) if callable(getattr(context, name)) else setattr(context, name, value)
    sock = listening.accept()
    try:
        return context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
    except OSError as fault:
        sock.close()
        return str(fault)


@ensureDeferred
@pytest.mark.parametrize("host", ["api.example", "127.0.0.1"])
async def test_a_verified_server_is_spoken_to_by_name_and_by_address(host: str, authority: Authority) -> None:
    pair = authority.issue("server", "api.example", "127.0.0.1")
    async with Served(listening_string(pair), on_data=lambda p, data: p.transport.write(data)) as served:
        client = await connected(
            served.port.getHost().port, host, True, authority.file, on_made=lambda p: p.transport.write(b"first ")
        )
        assert client.events == ["made"]
        client.transport.writeSequence([b"and ", b"second"])
        await until(lambda: client.data == b"first and second")
        server = await served.one()
        assert client.transport.negotiatedProtocol == server.transport.negotiatedProtocol == b"http/1.1"
        assert client.transport.getPeer() == served.port.getHost() == server.transport.getHost()
        assert client.transport.getHost() == server.transport.getPeer() == served.factory.addresses[0]
        client.transport.loseConnection()
        await until(lambda: client.lost and server.lost)
        assert (client.events, server.events) == (["made", "lost ConnectionDone"],) * 2


@ensureDeferred
@pytest.mark.parametrize(
    ("kind", "host", "reason"),
    [
        ("right", "other.example", "Hostname mismatch, certificate is not valid for 'other.example'"),
        ("right", "127.0.0.1", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ("nameless", "api.example", "Hostname mismatch, certificate is not valid for 'api.example'"),
        ("expired", "api.example", "certificate has expired"),
        ("self-signed", "api.example", "self-signed certificate"),
        ("foreign", "api.example", "unable to get local issuer certificate"),
        ("weak", "api.example", "EE certificate key too weak"),
    ],
)
async def test_a_server_that_cannot_be_verified_fails_the_connect(
    kind: str, host: str, reason: str, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    pair = {
        "right": lambda: authority.issue("server", "api.example"),
        "nameless": lambda: authority.issue("server"),
        "weak": lambda: authority.issue("server", "api.example", key=rsa.generate_private_key(65537, 1024)),
        "expired": lambda: authority.issue("server", "api.example", expired=True),
        "self-signed": lambda: authority.issue("server", "api.example", self_signed=True),
        "foreign": lambda: Authority(tmp_path / "foreign").issue("server", "api.example"),
    }[kind]()
    with Listening() as listening:
        before = descriptors()
        answer = in_thread(answering, pair, listening)
        factory = Served().factory
        with pytest.raises(TlsError) as caught:
            await client_endpoint(reactor, host, listening.port, True, Way(ca_file=authority.file)).connect(factory)
        assert caught.value.reason == reason
        assert str(caught.value) == f"TLS with {host} failed: {reason}"
        assert isinstance(caught.value, error.ConnectError)
        assert factory.built == [], "no protocol may meet a server that was not verified"
        result = await answer
        if not isinstance(result, str):
            assert await in_thread(_bytes_or_end, result) == b""
            result.close()
        await until(lambda: descriptors() <= before)


NAMES = [
    # what is asked for, the certificate's common name, its alternative names, whether it is taken
    ("api.example", "api.example", [], False),
    ("api.example", "api.example", ["other.example"], False),
    ("api.example", "api.example", ["127.0.0.1"], False),
    ("api.example", "other.example", ["api.example"], True),
    ("api.example", "x", ["other.example", "API.Example"], True),
    ("127.0.0.1", "127.0.0.1", [], False),
    ("127.0.0.1", "x", ["dns:127.0.0.1"], False),
    ("127.0.0.1", "127.0.0.1", ["api.example"], False),
    ("127.0.0.1", "x", ["127.0.0.2", "127.0.0.1"], True),
    ("a.example.com", "x", ["*.example.com"], True),
    ("a.b.example.com", "x", ["*.example.com"], False),
    ("example.com", "x", ["*.example.com"], False),
    ("a.example.com", "*.example.com", [], False),
    ("a.example.com", "x", ["a*.example.com"], False),
    ("a.example.com", "x", ["*a.example.com"], False),
    ("a.b.example.com", "x", ["a.*.example.com"], False),
    ("a.b.example.com", "x", ["*.*.example.com"], False),
    ("a.example", "x", ["*.example"], False),
    ("a.example.com", "x", ["*.com"], False),
    ("example", "x", ["*"], False),
    ("api.example", "x", ["api.example."], False),
    ("xn--strae-oqa.example", "x", ["xn--strae-oqa.example"], True),
    ("xn--strae-oqa.example.com", "x", ["*.example.com"], True),
    ("xn--strae-oqa.example.com", "x", ["xn--*.example.com"], False),
    ("127.1", "x", ["127.0.0.1"], False),
]


@ensureDeferred
@pytest.mark.parametrize(("host", "common", "names", "taken"), NAMES)
async def test_a_certificate_is_for_its_alternative_names_alone(
    host: str, common: str, names: list[str], taken: bool, authority: Authority
) -> None:
    pair = authority.issue("server", *names, common=common)
    async with Served(listening_string(pair)) as served:
        try:
            client = await connected(served.port.getHost().port, host, True, authority.file)
        except TlsError as fault:
            kind = "IP address" if host == "127.0.0.1" else "Hostname"
            assert fault.reason == f"{kind} mismatch, certificate is not valid for '{host}'"
            assert not taken
        else:
            assert taken
            client.transport.abortConnection()
            await until(lambda: client.lost)


def _bytes_or_end(sock: ssl.SSLSocket) -> bytes:
    try:
        return sock.recv(100)
    except OSError:
        return b""


@ensureDeferred
async def test_without_a_ca_file_the_systems_authorities_are_asked(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair)) as served:
        port = served.port.getHost().port
        with pytest.raises(TlsError, match="unable to get local issuer certificate"):
            await connected(port, "api.example", True)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        client = await connected(port, "api.example", True)
        client.transport.abortConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_a_server_of_tls_1_1_is_refused(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    with Listening() as listening:
        old = {
            "minimum_version": ssl.TLSVersion.TLSv1,
            "maximum_version": ssl.TLSVersion.TLSv1_1,
            "set_ciphers": "ALL:@SECLEVEL=0",
        }
        answer = in_thread(lambda: answering(pair, listening, **old))
        with pytest.raises(TlsError) as caught:
            await connected(listening.port, "api.example", True, authority.file)
        assert caught.value.reason == "the server offers no TLS 1.2 or later"
        assert isinstance(await answer, str)


@ensureDeferred
async def test_a_client_of_tls_1_1_is_refused(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair)) as served:

        def speak(version: ssl.TLSVersion) -> str | None:
            context = ssl.create_default_context(cafile=authority.file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
            context.set_ciphers("ALL:@SECLEVEL=0")
            with context.wrap_socket(served.peer(), server_hostname="api.example") as sock:
                return sock.version()

        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(OSError, match=r"(?i)protocol.version|reset|EOF"):
                await in_thread(speak, version)
        assert await in_thread(speak, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert await in_thread(speak, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


@ensureDeferred
async def test_sslmethod_can_leave_tls_1_3_out_and_cannot_ask_for_less(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair, ":sslmethod=TLSv1_2_METHOD")) as served:
        peer = await in_thread(tls_peer, served, authority)
        assert peer.version() == "TLSv1.2"
        peer.close()
    with pytest.raises(ValueError, match="sslmethod=TLSv1_METHOD is not served"):
        server_endpoint(reactor, listening_string(pair, ":sslmethod=TLSv1_METHOD"))


@ensureDeferred
async def test_the_name_is_sent_by_sni_and_an_address_is_not(authority: Authority) -> None:
    pair = authority.issue("server", "api.example", "127.0.0.1")
    for host in ("api.example", "127.0.0.1"):
        seen: list[Any] = []
        with Listening() as listening:
            answer = in_thread(
                lambda: answering(pair, listening, sni_callback=lambda _s, name, _c: seen.append(name))  # noqa: B023
            )
            client = await connected(listening.port, host, True, authority.file)
            server = await answer
            assert seen == [host if host == "api.example" else None]
            assert server.selected_alpn_protocol() == "http/1.1"
            client.transport.abortConnection()
            await until(lambda: client.lost)  # noqa: B023
            server.close()


@ensureDeferred
async def test_a_server_without_alpn_is_spoken_to(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    with Listening() as listening:
        answer = in_thread(answering, pair, listening, ())
        client = await connected(listening.port, "api.example", True, authority.file)
        server = await answer
        assert client.transport.negotiatedProtocol is None
        client.transport.abortConnection()
        await until(lambda: client.lost)
        server.close()


@ensureDeferred
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the server does not speak TLS on this port"),
        (b"", "the server closed the connection during the handshake"),
    ],
)
async def test_a_server_that_does_not_speak_tls_fails_the_connect(
    said: bytes, reason: str, authority: Authority
) -> None:
    def speak(listening: Listening) -> None:
        with listening.accept() as sock:
            sock.recv(1 << 16)
            sock.sendall(said)

    with Listening() as listening:
        answer = in_thread(speak, listening)
        with pytest.raises(TlsError) as caught:
            await connected(listening.port, "api.example", True, authority.file)
        assert caught.value.reason == reason
        await answer


@ensureDeferred
async def test_a_handshake_that_gets_no_answer_times_out(authority: Authority) -> None:
    with Listening() as listening:
        before = descriptors()
        with pytest.raises(TlsError) as caught:
            # A second for the connecting, too, which is not to take too long on a busy machine.
            way = Way(ca_file=authority.file)
            await client_endpoint(reactor, "api.example", listening.port, True, way, 1.0).connect(Served().factory)
        assert caught.value.reason == "the handshake took too long"
        await until(lambda: descriptors() <= before)


@ensureDeferred
async def test_cancelling_in_the_handshake_closes_the_socket(authority: Authority) -> None:
    with Listening() as listening:
        before = descriptors()
        factory = Served().factory
        way = Way(ca_file=authority.file)
        connecting = client_endpoint(reactor, "api.example", listening.port, True, way).connect(factory)
        failures: list[Any] = []
        connecting.addErrback(failures.append)
        peer = await in_thread(listening.accept)
        assert (await in_thread(peer.recv, 1 << 16))[:1] == b"\x16", "a ClientHello"
        connecting.cancel()
        assert failures[0].check(CancelledError, error.ConnectingCancelledError)
        assert await in_thread(end_of, peer) in ("FIN", "RST")
        peer.close()
        await until(lambda: descriptors() <= before)
        assert factory.built == []


@ensureDeferred
async def test_cancelling_as_soon_as_tcp_stands_closes_the_socket(authority: Authority) -> None:
    with Listening() as listening:
        before = descriptors()
        connecting = client_endpoint(reactor, "api.example", listening.port, True, Way(ca_file=authority.file)).connect(
            Served().factory
        )
        failures: list[Any] = []
        connecting.addErrback(failures.append)
        accepted: list[Any] = []
        in_thread(listening.accept).addCallback(lambda sock: (accepted.append(sock), connecting.cancel()))
        await until(lambda: failures)
        assert await in_thread(end_of, accepted[0]) in ("FIN", "RST")
        accepted[0].close()
        await until(lambda: descriptors() <= before)


@ensureDeferred
@pytest.mark.parametrize(("notify", "reason"), [(True, "ConnectionDone"), (False, "ConnectionLost")])
async def test_close_notify_is_done_and_a_bare_fin_is_lost(notify: bool, reason: str, authority: Authority) -> None:
    pair = authority.issue("server", "api.example")

    def end(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"last words")
        if notify:
            sock.unwrap().close()
        else:
            socket.socket(fileno=sock.detach()).close()

    with Listening() as listening:
        answer = in_thread(answering, pair, listening)
        client = await connected(listening.port, "api.example", True, authority.file)
        await in_thread(end, await answer)
        await until(lambda: client.lost)
        assert (client.data, client.events) == (b"last words", ["made", f"lost {reason}"])


@ensureDeferred
async def test_losing_a_connection_sends_all_that_was_written_and_close_notify(authority: Authority) -> None:
    def send(protocol: Recorder) -> None:
        protocol.transport.write(bytes(8 * MB))
        protocol.transport.loseConnection()
        protocol.transport.write(b"dropped")

    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair), on_made=send) as served:
        peer = await in_thread(tls_peer, served, authority)
        assert await in_thread(read_all, peer, 0.0002) == 8 * MB
        (await in_thread(peer.unwrap)).close()
        server = await served.one()
        await until(lambda: server.lost)
        assert server.events == ["made", "lost ConnectionDone"]


@ensureDeferred
async def test_aborting_resets_the_peer(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair)) as served:
        peer = await in_thread(tls_peer, served, authority)
        server = await served.one()
        await deferLater(reactor, 0.05)
        server.transport.write(bytes(8 * MB))
        server.transport.abortConnection()
        server.transport.write(b"dropped")
        await until(lambda: server.lost)
        # pyOpenSSL's side says ConnectionLost, of which ConnectionAborted is a kind, when it is cut off amid a write.
        assert server.lost.check(error.ConnectionAborted if ON_UVLOOP else error.ConnectionLost)
        raw = socket.socket(fileno=peer.detach())
        assert await in_thread(end_of, raw) == "RST"
        raw.close()


@ensureDeferred
@pytest.mark.parametrize("kind", ["push", "pull"])
async def test_a_producer_of_64_mb_is_held_to_a_slow_readers_pace_in_bounded_memory(
    kind: str, authority: Authority
) -> None:
    pair = authority.issue("server", "api.example")
    total = (64 if kind == "push" else 8) * MB
    async with Served(listening_string(pair)) as served:
        peer = await in_thread(tls_peer, served, authority)
        server = await served.one()
        await deferLater(reactor, 0.05)
        before = resident()
        producer: Any = (Pushing if kind == "push" else Pulling)(server.transport, total)
        if kind == "push":
            producer.begin()
            assert producer.paused
        else:
            server.transport.registerProducer(producer, False)
        most = 0
        reading = in_thread(read_all, peer, 0.0002)
        while not reading.called:
            most = max(most, resident() - before)
            await deferLater(reactor, 0.02)
        assert await reading == total
        assert most < 16 * MB
        (await in_thread(peer.unwrap)).close()
        await until(lambda: server.lost)
        assert server.lost.check(error.ConnectionDone)


@ensureDeferred
async def test_a_paused_reader_loses_nothing_of_what_came_before_the_end(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    total = 4 * MB

    def slow(protocol: Recorder, _data: bytes) -> None:
        protocol.transport.pauseProducing()
        reactor.callLater(0.01, protocol.transport.resumeProducing)

    def send(sock: ssl.SSLSocket) -> None:
        sock.sendall(bytes(total))
        sock.unwrap().close()

    with Listening() as listening:
        answer = in_thread(answering, pair, listening)
        client = await connected(listening.port, "api.example", True, authority.file, on_data=slow)
        await in_thread(send, await answer)
        await until(lambda: client.lost)
        assert (len(client.data), client.events) == (total, ["made", "lost ConnectionDone"])


@ensureDeferred
@pytest.mark.parametrize("method", ["TLSv1_2_METHOD", "TLS_METHOD"])
async def test_a_pause_right_after_connecting_does_not_hold_up_the_handshake(method: str, authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    hook = {"on_made": lambda p: p.transport.pauseProducing()} if ON_UVLOOP else {}
    async with Served(listening_string(pair, f":sslmethod={method}"), **hook) as served:
        client = await connected(served.port.getHost().port, "api.example", True, authority.file)
        client.transport.pauseProducing()
        server = await served.one()
        server.transport.resumeProducing()
        server.transport.write(b"held back")
        await deferLater(reactor, 0.05)
        assert client.data == b""
        client.transport.resumeProducing()
        await until(lambda: client.data == b"held back")
        client.transport.abortConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_a_fin_behind_bytes_that_a_pause_holds_back_throws_none_of_them_away(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")

    def send(sock: ssl.SSLSocket) -> None:
        sock.sendall(bytes(100_000))
        socket.socket(fileno=sock.detach()).close()

    with Listening() as listening:
        answer = in_thread(answering, pair, listening)
        client = await connected(listening.port, "api.example", True, authority.file)
        client.transport.pauseProducing()
        await in_thread(send, await answer)
        await deferLater(reactor, 0.2)
        assert client.data == b""
        client.transport.resumeProducing()
        await until(lambda: client.lost)
        assert (len(client.data), client.events) == (100_000, ["made", "lost ConnectionLost"])


@ensureDeferred
async def test_a_pause_in_connectionmade_holds(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair), on_made=lambda p: p.transport.pauseProducing()) as served:
        peer = await in_thread(served.peer)
        context = ssl.create_default_context(cafile=authority.file)
        if ON_UVLOOP:  # elsewhere the pause comes before the handshake and holds that, too
            peer = await in_thread(lambda: context.wrap_socket(peer, server_hostname="api.example"))
            await in_thread(peer.sendall, b"early")
        server = await served.one()
        await deferLater(reactor, 0.1)
        assert server.data == b""
        server.transport.resumeProducing()
        if not ON_UVLOOP:
            peer = await in_thread(lambda: context.wrap_socket(peer, server_hostname="api.example"))
            await in_thread(peer.sendall, b"early")
        await until(lambda: server.data == b"early")
        peer.close()


@ensureDeferred
async def test_a_reloaded_certificate_is_shown_to_new_connections_and_a_bad_one_never(authority: Authority) -> None:
    pair = authority.issue("server", "old.example")
    old = pair[0].read_bytes(), pair[1].read_bytes()
    async with Served(listening_string(pair), on_data=lambda p, data: p.transport.write(data)) as served:
        port = served.port.getHost().port
        held = await connected(port, "old.example", True, authority.file)
        authority.issue("server", "new.example")
        new = pair[0].read_bytes(), pair[1].read_bytes()
        with pytest.raises(TlsError):
            await connected(port, "new.example", True, authority.file)
        assert reload_certificates() == []
        fresh = await connected(port, "new.example", True, authority.file)
        for certificate, key, words in (
            (b"nonsense", new[1], f"{pair[0]}: no certificate in PEM form was found"),
            (new[0], b"nonsense", f"{pair[1]}: no private key in PEM form was found"),
            (new[0], old[1], f"{pair[1]}: this is not the private key of the certificate in {pair[0]}"),
        ):
            pair[0].write_bytes(certificate)
            pair[1].write_bytes(key)
            assert reload_certificates() == [words]
            kept = await connected(port, "new.example", True, authority.file)
            kept.transport.loseConnection()
            await until(lambda: kept.lost)  # noqa: B023
        pair[0].unlink()
        assert reload_certificates() == [f"{pair[0]}: No such file or directory"]
        for client in (held, fresh):
            client.transport.write(b"alive")
            await until(lambda: client.data == b"alive")  # noqa: B023
            client.transport.loseConnection()
            await until(lambda: client.lost)  # noqa: B023


@ensureDeferred
async def test_a_chain_is_sent_from_the_certificates_file_and_from_extracertchain(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    below = Authority(tmp_path / "below", "intermediate")
    cross = authority._sign(below.name, below.key, [], ca=False)
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    cross = (
        x509.CertificateBuilder()
        .subject_name(below.name)
        .issuer_name(authority.name)
        .public_key(below.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(cross.not_valid_before_utc)
        .not_valid_after(cross.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    chain = tmp_path / "chain.pem"
    chain.write_bytes(cross.public_bytes(Encoding.PEM))
    pair = below.issue("server", "api.example")
    full = tmp_path / "full.pem"
    full.write_bytes(pair[0].read_bytes() + chain.read_bytes())
    for string in (listening_string(pair, f":extraCertChain={chain}"), listening_string((full, pair[1]))):
        async with Served(string) as served:
            client = await connected(served.port.getHost().port, "api.example", True, authority.file)
            client.transport.abortConnection()
            await until(lambda: client.lost)  # noqa: B023


@ensureDeferred
async def test_a_bad_certificate_or_authority_stops_the_start_with_its_reason(
    authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("server", "api.example")
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # not waited for, as a reload would stop the loop
    for make in (
        lambda: server_endpoint(reactor, listening_string((fifo, pair[1]))),
        lambda: server_endpoint(reactor, listening_string((pair[0], fifo))),
        lambda: server_endpoint(reactor, f"{listening_string(pair)}:dhParameters={fifo}"),
        lambda: client_endpoint(reactor, "api.example", 1, True, Way(ca_file=fifo)),
        lambda: server_endpoint(reactor, listening_string((missing, pair[1]))),
        lambda: server_endpoint(reactor, listening_string((empty, pair[1]))),
        lambda: client_endpoint(reactor, "api.example", 1, True, Way(ca_file=missing)),
        lambda: client_endpoint(reactor, "api.example", 1, True, Way(ca_file=empty)),
    ):
        with pytest.raises(CertificateFault, match=r"missing|empty|fifo: a FIFO, no regular file"):
            make()


@ensureDeferred
async def test_a_taken_port_is_refused_and_a_broken_handshake_harms_nobody(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair), on_data=lambda p, data: p.transport.write(data)) as served:
        port = served.port.getHost().port
        with pytest.raises(error.CannotListenError):
            await server_endpoint(reactor, listening_string(pair).replace("ssl:0", f"ssl:{port}")).listen(None)
        stranger = await in_thread(served.peer)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await in_thread(end_of, stranger)
        stranger.close()
        client = await connected(port, "api.example", True, authority.file)
        client.transport.write(b"fine")
        await until(lambda: client.data == b"fine")
        client.transport.abortConnection()
        await until(lambda: client.lost)


@ensureDeferred
async def test_tls_is_spoken_on_a_socket_that_was_handed_down(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(5)
    served = Served(on_data=lambda p, data: p.transport.write(data))
    served.port = await server_endpoint(reactor, listening_string(pair), sock.detach()).listen(served.factory)
    client = await connected(served.port.getHost().port, "api.example", True, authority.file)
    client.transport.write(b"adopted")
    await until(lambda: client.data == b"adopted")
    authority.issue("server", "new.example")
    assert reload_certificates() == []
    fresh = await connected(served.port.getHost().port, "new.example", True, authority.file)
    for one in (client, fresh):
        one.transport.loseConnection()
    await until(lambda: client.lost and fresh.lost)
    await served.__aexit__()


@pytest.mark.uvloop
@ensureDeferred
async def test_a_closed_connection_is_freed_without_the_garbage_collector(authority: Authority) -> None:
    pair = authority.issue("server", "api.example")
    async with Served(listening_string(pair)) as served:
        gc.collect()
        gc.disable()
        try:
            both = [
                await connected(served.port.getHost().port, "api.example", True, authority.file),
                await served.one(),
            ]
            ends = [weakref.ref(end.transport) for end in both]
            both[0].transport.loseConnection()
            await until(lambda: all(end.lost for end in both))
            both.clear()
            served.factory.built.clear()
            await until(lambda: [end() for end in ends] == [None, None], "both transports' end")
        finally:
            gc.enable()
