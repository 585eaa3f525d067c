from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_certificate(directory: Path, key_name: str, certificate_name: str, password: bytes | None = None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flowstack.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    revocations = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "revocations.pem").write_bytes(revocations.public_bytes(serialization.Encoding.PEM))
    (directory / key_name).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    (directory / key_name).chmod(0o600)
    (directory / certificate_name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``key.pem`` and its ``cert.pem``, an ``encrypted.pem``, a stranger's ``authority.pem`` …"""
    directory = tmp_path_factory.mktemp("tls")
    write_certificate(directory, "key.pem", "cert.pem")
    write_certificate(directory, "encrypted.pem", "encrypted-cert.pem", b"pass phrase")
    write_certificate(directory, "stranger.pem", "authority.pem")
    write_certificate(directory, "client-key.pem", "client.pem")
    (directory / "chain.pem").write_bytes((directory / "authority.pem").read_bytes())
    (directory / "empty.pem").write_bytes(b"")
    return directory


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """A file with a secret, which only its owner may read."""
    path = tmp_path / "secret"
    path.write_text("canary\n")
    path.chmod(0o600)
    return path
