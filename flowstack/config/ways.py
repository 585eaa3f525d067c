"""How an upstream, or a target of it, is reached: the settings that both have, and which of them go together."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from flowstack.config.values import (
    authorities,
    optional,
    private_key,
    proxy_auth_file,
    proxy_url,
    setting,
    settings_of,
    socket_path,
)
from flowstack.redact import shown


@frozen(slots=True, kw_only=True)
class Way:
    """How a place is reached, besides its ``base_url``."""

    ca_file: Path | None = setting(
        None,
        optional(authorities),
        "A PEM file with the only authorities to trust there. Empty: those of the system. SIGHUP reads it again.",
        example='"/etc/flowstack/tls/authority.pem"',
    )
    client_cert_file: Path | None = setting(
        None,
        optional(authorities),
        "A PEM file with the certificate that is shown there, and after it what chains it to an authority. SIGHUP "
        "reads it again. Empty: none is shown.",
        example='"/etc/flowstack/tls/client.pem"',
    )
    client_key_file: Path | None = setting(
        None,
        optional(private_key),
        "A PEM file with that certificate's private key, without a pass phrase. Not readable by others; SIGHUP reads "
        "it again.",
        example='"/etc/flowstack/tls/client-key.pem"',
    )
    proxy: str | None = setting(
        None,
        optional(proxy_url),
        "A forward proxy on the way there, asked by ``CONNECT``: TLS passes through it, and is the upstream's own. The "
        "environment (``HTTPS_PROXY``) is not looked at. Empty: none.",
        example='"http://proxy.example:3128"',
    )
    proxy_auth_file: Path | None = setting(
        None,
        optional(proxy_auth_file),
        "A file with ``user:password`` for that proxy (Basic). Not readable by others; SIGHUP reads it again.",
        example='"/etc/flowstack/proxy.secret"',
    )
    socket: Path | None = setting(
        None,
        optional(socket_path),
        "A UNIX socket to connect to. Of ``base_url`` the scheme, the ``Host`` and the path still count. Empty: the "
        "host and the port there.",
        example='"/run/vllm/http.sock"',
    )


_PAIR = ("client_cert_file", "client_key_file")

_TOGETHER = (("ca_file",), _PAIR, ("proxy", "proxy_auth_file", "socket"))
"""The settings that a target has all of its own, or all of its upstream's."""


def way_of(upstream: Way, target: Way | None = None) -> Way:
    """How an upstream, or a target of it, is reached. Credentials for one proxy never go to another."""
    found: dict[str, Any] = {}
    for keys in _TOGETHER:
        own = target if target is not None and any(getattr(target, key) is not None for key in keys) else upstream
        found |= {key: getattr(own, key) for key in keys}
    return Way(**found)


def misfits(raw: object, values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What in a table does not go together: the key, what was found, and what was expected.

    :param raw: the table as it stands in the file; what is no table is another's to tell.
    :param values: those of its values that could be read.
    """
    given = {key for key in settings_of(Way) if isinstance(raw, dict) and raw.get(key, "") != ""}
    if {"proxy", "socket"} <= given:
        yield "socket", "it beside proxy", "one of the two"
    if "proxy_auth_file" in given and "proxy" not in given:
        yield "proxy_auth_file", "it without proxy", "it beside the proxy that it is for"
    for key, other in (_PAIR, _PAIR[::-1]):
        if other in given and key not in given:
            yield key, f"nothing beside {other}", "a certificate and its private key, or neither"
    certificate, key_file = map(values.get, _PAIR)
    if certificate is not None and key_file is not None and not _belong_together(certificate, key_file):
        found = f"{shown(str(key_file))}, which is not that of client_cert_file"
        yield _PAIR[1], found, "the private key of the first certificate there"


def _belong_together(certificate: Path, key: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
    except (OSError, ValueError):  # SSLError is the first
        return False
    return True
