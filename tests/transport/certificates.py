"""Certificates for tests, made when they are needed."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """A certificate authority whose files go to a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        self.certificate = self._sign(self.name, self.key, [], ca=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        stem: str,
        *names: str,
        common: str | None = None,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        expired: bool = False,
        self_signed: bool = False,
    ) -> tuple[Path, Path]:
        """Write ``stem.crt`` and ``stem.key``; return their paths.

        :param names: alternative names; an address counts as one unless ``dns:`` stands before it.
        :param common: the subject's common name; None means the stem.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(common or stem), key, list(names), expired=expired, self_signed=self_signed)
        paths = self.directory / f"{stem}.crt", self.directory / f"{stem}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
        names: list[str],
        ca: bool = False,
        expired: bool = False,
        self_signed: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        signer = key if self_signed or ca else self.key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed or ca else self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * DAY)
            .not_valid_after(now - DAY if expired else now + 10 * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            general: list[x509.GeneralName] = []
            for name in names:
                try:
                    general.append(x509.IPAddress(ipaddress.ip_address(name)))
                except ValueError:
                    general.append(x509.DNSName(name.removeprefix("dns:")))
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        if not (self_signed or ca):
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        if ca:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return builder.sign(signer, hashes.SHA256())
