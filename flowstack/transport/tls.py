"""Certificates, contexts and the words for their faults, for both libraries that Flowstack does TLS with.

On uvloop that is the standard library's :mod:`ssl`, elsewhere pyOpenSSL by way of Twisted. Both follow the same rules:
TLS 1.2 at least (RFC 8996 retired the older ones), ``http/1.1`` by ALPN (RFC 7301), a server's name or address verified
against its certificate (RFC 9525), and the same words for the same failure.
"""

from __future__ import annotations

import re
import ssl
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL, crypto
from OpenSSL._util import lib
from twisted.internet import ssl as twisted_ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError
from twisted.python.filepath import FilePath

from flowstack.files import read_regular

ALPN = "http/1.1"

MAX_BYTES = 8 * 1024 * 1024
"""Of a file with certificates or a key."""

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

# The codes of X509_STORE_CTX_get_error(3) that a person meets; the standard library has these words built in.
_VERIFY_WORDS = {
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
    62: "Hostname mismatch, certificate is not valid for {host!r}",
    64: "IP address mismatch, certificate is not valid for {host!r}",
    66: "EE certificate key too weak",
}

# X509_check_host(3): names are looked for among the alternative names alone, and a wildcard is a whole label.
_NO_PARTIAL_WILDCARDS, _NEVER_CHECK_SUBJECT = 0x4, 0x20

_HANDSHAKE_WORDS = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "the server does not speak TLS on this port",
    "HTTP_REQUEST": "the server does not speak TLS on this port",
    "UNSUPPORTED_PROTOCOL": "the server offers no TLS 1.2 or later",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server offers no TLS 1.2 or later",
    "UNEXPECTED_EOF_WHILE_READING": "the server closed the connection during the handshake",
}


class ConnectFailed(ConnectError):
    """No connection came about that can be used.

    :ivar reason: why, in words that fit after a colon, such as ``certificate has expired``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(string=reason)  # type: ignore[no-untyped-call]
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class TlsError(ConnectFailed):
    """No TLS connection came about.

    :ivar host: the name that was to be verified.
    """

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(reason)
        self.host = host

    def __str__(self) -> str:
        return f"TLS with {self.host} failed: {self.reason}"


class CertificateFault(ValueError):
    """A certificate or key that cannot be used; the message names the file and says why."""


@frozen(slots=True)
class Identity:
    """Where a certificate and its key are, a server's or a client's.

    :ivar certificate: PEM; the certificate first, then what chains it to a root.
    :ivar key: PEM, not encrypted.
    :ivar chain: PEM; further certificates of the chain.
    :ivar dh: PEM; parameters for DHE ciphers.
    :ivar only_1_2: whether TLS 1.3 is left out.
    """

    certificate: Path
    key: Path
    chain: Path | None = None
    dh: Path | None = None
    only_1_2: bool = False

    def context(self) -> ssl.SSLContext:
        """Read the files into a context of the standard library.

        :raises CertificateFault: when one of them cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.only_1_2:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        self.put_into(context)
        return context

    def put_into(self, context: ssl.SSLContext) -> None:
        """Have connections of a context show it.

        :raises CertificateFault: when one of the files cannot be used.
        """
        certificates, _ = self._read()
        try:
            # OpenSSL takes a chain from one file only; certificates are public, the key stays where it is.
            with tempfile.NamedTemporaryFile() as chain:
                chain.write(b"\n".join(certificates) + b"\n")
                chain.flush()
                context.load_cert_chain(chain.name, self.key)
            if self.dh is not None:
                context.load_dh_params(str(self.dh))
        except (OSError, ssl.SSLError) as fault:
            raise CertificateFault(f"{self._named()}: {_said(fault)}") from None

    def options(self) -> twisted_ssl.CertificateOptions:
        """Read the files into Twisted's options for pyOpenSSL.

        :raises CertificateFault: when one of them cannot be used.
        """
        shown = self.shown()
        try:
            options = twisted_ssl.CertificateOptions(
                **shown,
                dhParameters=twisted_ssl.DiffieHellmanParameters.fromFile(FilePath(str(self.dh))) if self.dh else None,
                acceptableProtocols=[ALPN.encode("ascii")],
                raiseMinimumTo=twisted_ssl.TLSVersion.TLSv1_2,
                lowerMaximumSecurityTo=twisted_ssl.TLSVersion.TLSv1_2 if self.only_1_2 else None,
            )
            options.getContext()
        except (OSError, ValueError, SSL.Error, crypto.Error) as fault:
            raise CertificateFault(f"{self._named()}: {_said(fault)}") from None
        return options

    def shown(self) -> dict[str, Any]:
        """What of Twisted's options for pyOpenSSL has connections show it.

        :raises CertificateFault: when one of the files cannot be used.
        """
        certificates, key = self._read()
        kept: list[Any] = [twisted_ssl.Certificate.loadPEM(pem).original for pem in certificates]
        return {
            "privateKey": twisted_ssl.KeyPair.load(key, crypto.FILETYPE_PEM).original,
            "certificate": kept[0],
            "extraCertChain": kept[1:] or None,
        }

    def _read(self) -> tuple[list[bytes], bytes]:
        certificates = _read_certificates(self.certificate)
        if self.chain is not None:
            certificates += _read_certificates(self.chain)
        if self.dh is not None:
            _read(self.dh)  # OpenSSL opens it again, and would wait for a FIFO
        key = _read(self.key)
        try:
            public = load_pem_private_key(key, None).public_key()
        except TypeError:
            raise CertificateFault(f"{self.key}: the private key is encrypted; a plain one is needed") from None
        except ValueError:
            raise CertificateFault(f"{self.key}: no private key in PEM form was found") from None
        der = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if x509.load_pem_x509_certificate(certificates[0]).public_key().public_bytes(*der) != public.public_bytes(*der):
            raise CertificateFault(f"{self.key}: this is not the private key of the certificate in {self.certificate}")
        return certificates, key

    def _named(self) -> str:
        return str(self.certificate) if self.certificate == self.key else f"{self.certificate} with {self.key}"


def client_context(ca_file: Path | None, identity: Identity | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers, by the standard library.

    :param ca_file: PEM file of the only authorities trusted; None means the system's.
    :param identity: what is shown to a server that asks for a certificate.
    :raises CertificateFault: when a file cannot be used.
    """
    trusted = None if ca_file is None else b"\n".join(_read_certificates(ca_file)).decode("ascii", "ignore")
    context = ssl.create_default_context(cadata=trusted)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525 §6.3: the common name is no identity
    context.set_alpn_protocols([ALPN])
    if identity is not None:
        identity.put_into(context)
    return context


def client_options(ca_file: Path | None, identity: Identity | None = None) -> twisted_ssl.CertificateOptions:
    """Return options that verify servers, by pyOpenSSL; the like of :func:`client_context`.

    :raises CertificateFault: when a file cannot be used.
    """
    trust: Any = twisted_ssl.platformTrust()
    if ca_file is not None:
        trust = twisted_ssl.trustRootFromCertificates(
            [twisted_ssl.Certificate.loadPEM(pem) for pem in _read_certificates(ca_file)]
        )
    return twisted_ssl.CertificateOptions(
        **({} if identity is None else identity.shown()),
        trustRoot=trust,
        acceptableProtocols=[ALPN.encode("ascii")],
        raiseMinimumTo=twisted_ssl.TLSVersion.TLSv1_2,
    )


def is_address(host: str) -> bool:
    """Whether the host is an IP address; such a one is verified as an address and not sent by SNI (RFC 6066 §3)."""
    return isIPAddress(host) or isIPv6Address(host)


def expect_host(connection: SSL.Connection, host: str) -> None:
    """Have OpenSSL hold the server's certificate against a name or address, as the standard library has it do."""
    param = lib.SSL_get0_param(connection._ssl)
    lib.X509_VERIFY_PARAM_set_hostflags(param, _NO_PARTIAL_WILDCARDS | _NEVER_CHECK_SUBJECT)
    if is_address(host):
        packed = ip_address(host).packed
        taken = lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed))
    else:
        name = host.encode("idna")
        taken = lib.X509_VERIFY_PARAM_set1_host(param, name, len(name))
    if taken != 1:  # without it every certificate of a trusted authority would do
        raise ValueError(f"OpenSSL cannot verify the name {host!r}")


def verify_words(code: int, host: str) -> str:
    """Return what OpenSSL's verification error means."""
    words = _VERIFY_WORDS.get(code)
    return words.format(host=host) if words else f"certificate verify failed (OpenSSL's code {code})"


def handshake_words(fault: BaseException) -> str:
    """Return why a handshake failed, whichever library and layer it failed in."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return fault.verify_message.rstrip(".")
    if isinstance(fault, ssl.SSLError):
        return _openssl_words(fault.reason or str(fault))
    if isinstance(fault, SSL.Error):
        queue = fault.args[0] if fault.args else ()
        return _openssl_words(queue[-1][2] if isinstance(queue, list) and queue else str(fault))
    if isinstance(fault, ConnectionAbortedError | TimeoutError | DeferredTimeout):
        return "the handshake took too long"
    return "the server closed the connection during the handshake"


def _openssl_words(reason: str) -> str:
    return _HANDSHAKE_WORDS.get(reason.upper().replace(" ", "_"), reason.lower().replace("_", " "))


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)[0]
    except OSError as fault:
        raise CertificateFault(f"{path}: {_said(fault)}") from None


def _read_certificates(path: Path) -> list[bytes]:
    found = _PEM_CERTIFICATE.findall(_read(path))
    if not found:
        raise CertificateFault(f"{path}: no certificate in PEM form was found")
    for pem in found:
        try:
            x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise CertificateFault(f"{path}: a certificate in it cannot be read") from None
    return found


def _said(fault: BaseException) -> str:
    if isinstance(fault, ssl.SSLError | SSL.Error):
        return handshake_words(fault)
    return (isinstance(fault, OSError) and fault.strerror) or str(fault)
