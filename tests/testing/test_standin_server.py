from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import CERT_NONE, create_default_context
from typing import Any

import pytest
import pytest_twisted
import treq
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IListeningPort

from flowstack.testing import StandIn
from flowstack.testing.standin.faults import HELP
from tests.testing.sockets import websocket
from tests.testing.wire import PATIENCE, Client, Process


@pytest_twisted.ensureDeferred
async def test_it_starts_answers_and_stops_in_a_reactor_that_is_passed_in() -> None:
    from twisted.internet import reactor

    stand_in = StandIn(reactor, "tcp:0:interface=127.0.0.1")
    port = await stand_in.start()
    assert IListeningPort.providedBy(port)
    address = ("127.0.0.1", port.getHost().port)
    assert stand_in.url == f"http://127.0.0.1:{address[1]}"
    response = await treq.get(f"{stand_in.url}/v1/models", headers={"Authorization": "Bearer sk-x"}, persistent=False)
    assert (await treq.json_content(response))["object"] == "list"
    with socket.create_connection(address) as waiting:
        # Accepted only when the reactor runs; the request makes it do so.
        await treq.get(f"{stand_in.url}/stand-in/state", persistent=False)
        await stand_in.stop()
        waiting.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
    assert stand_in.journal.requests == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with pytest.raises(RuntimeError, match="not been started"):
        _ = stand_in.url


@pytest_twisted.ensureDeferred
async def test_start_fails_for_an_endpoint_that_is_none() -> None:
    from twisted.internet import reactor

    with pytest.raises(ValueError, match="nonsense"):
        await StandIn(reactor, "nonsense:1").start()


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[str]:
    """An endpoint string for TLS with a certificate of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, today, today + timedelta(days=1))
    pem, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    yield f"ssl:0:certKey={pem}:privateKey={private}"


def test_over_tls_it_answers_streams_and_cuts(certificate: str) -> None:
    with Process("--listen", certificate) as process:
        assert process.ready[0].startswith("stand-in listening on https://127.0.0.1:")
        trusting = create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, CERT_NONE

        class Secure(Client):
            def connect(self) -> Any:
                return trusting.wrap_socket(super().connect(), suppress_ragged_eofs=False)

        client = Secure(process.port)
        assert client.chat(stream=True).body.endswith(b"data: [DONE]\n\n")
        assert len(client.ask("GET", "/v1/models", "Stand-In: size=3000000").rest) == 3_000_000
        cut = client.ask("GET", "/v1/models", "Stand-In: size=9000; cut=40")
        assert (cut.end, len(cut.rest)) == ("reset", 40)
        assert client.raw(b"nonsense\r\n\r\n").status == 400
        with websocket(client, "/v1/responses", "Stand-In: ws-flood=30; ws-bytes=100000") as ws:
            assert {len(ws.message()) for _ in range(30)} == {100_000}
            ws.send(type="response.create", model="m", input="one")
            assert ws.until("response.completed")[0]["type"] == "response.created"
            ws.close()
            assert ws.closed() == (1000, "")
        assert process.stop() == (0, "")


def test_the_command_prints_a_line_for_each_endpoint_and_ends_with_0_on_sigterm() -> None:
    with Process("--listen", "tcp:0", "--listen", "tcp:0:interface=127.0.0.1", lines=2) as process:
        ports = {int(line.removeprefix("stand-in listening on http://127.0.0.1:")) for line in process.ready}
        assert len(ports) == 2
        for port in ports:
            assert Client(port).ask("GET", "/v1/models").status == 200
        assert process.stop() == (0, "")


def test_the_command_listens_on_this_machine_only_unless_told() -> None:
    with Process("--listen", "tcp:0") as process:
        listening = Path(f"/proc/{process.popen.pid}/net/tcp").read_text()
        assert f"0100007F:{process.port:04X}" in listening
        assert f"00000000:{process.port:04X}" not in listening
        assert process.stop() == (0, "")


@pytest.mark.parametrize("endpoint", ["nonsense:1", "tcp:x", "tcp:{taken}"])
def test_the_command_says_what_it_cannot_listen_on(endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = endpoint.format(taken=taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "flowstack.testing", "--listen", endpoint],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    assert (run.returncode, run.stdout) == (1, "")
    assert f"cannot listen on '{endpoint}'" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_help_says_that_no_language_is_generated_and_names_every_directive() -> None:
    from flowstack.cli.standin import stand_in

    text = CliRunner().invoke(stand_in, ["--help"]).output
    assert "It generates no language" in text and "not for\n  production" in text and "Example:" in text
    assert all(f"  {name} " in text for name in HELP)
