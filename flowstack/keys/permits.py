"""What a key may do: from where, with which upstream, at which endpoint, with which model.

Each check returns, or raises the error that the client gets. A key without the restriction passes. What was allowed
once is remembered with the key (:class:`flowstack.keys.key.Memo`), so that the next request with the same
question costs a look into a set; what was refused is not, so that nobody can fill the memory with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar
from unicodedata import normalize
from urllib.parse import unquote_to_bytes

from flowstack.addresses import parse_address, within
from flowstack.errors import AddressNotAllowed, EndpointNotAllowed, ModelNotAllowed, UpstreamNotAllowed
from flowstack.keys.key import Key
from flowstack.keys.patterns import MAX_MODEL, compiled
from flowstack.tokens import hide_keys

MAX_REMEMBERED = 32
"""Allowed addresses, endpoints and models each that are remembered with a key."""

MAX_REMEMBERED_SIZE = 96
"""Characters of what is remembered, in ASCII; the rest is checked each time. There are some thousand keys with
such a memory, which each holder can fill: it comes to 15 KB for a key."""

_Item = TypeVar("_Item")
_SHOWN_ITEMS = 12
_SHOWN_CHARACTERS = 80

# RFC 3986 §2.3: these mean the same whether they are encoded or not (§6.2.2.2).
_ENCODED_UNRESERVED = re.compile(rb"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
# An encoded slash, backslash, percent sign, semicolon, question or number sign, or control; a raw backslash, empty
# segment or parameter: some servers take them as they are, others decode, merge or cut them.
_DOUBTFUL = re.compile(rb"%(?:2[fF35]|5[cC]|3[bBfF]|[01][0-9a-fA-F]|7[fF]|(?![0-9a-fA-F]{2}))|\\|;|//")


def check_address(key: Key, address: str) -> None:
    """Let a key pass that may be used from an address.

    :param address: of the client, as :func:`flowstack.addresses.client_address` says.
    :raises AddressNotAllowed: its ``allow_ip`` does not hold it, or it is none (a Unix socket's).
    """
    if not key.allow_ip or address in key.memo.addresses:
        return
    if not within(parse_address(address), key.allow_ip):
        raise AddressNotAllowed(
            f"The Flowstack key {key.id} may not be used from {shown(address)}. Use it from where it belongs, or ask "
            "the person who gave it to you to allow this address."
        )
    if len(address) <= MAX_REMEMBERED_SIZE:
        _remember(key.memo.addresses, address)


def check_upstream(key: Key, name: str) -> None:
    """Let a key pass that may reach an upstream.

    :param name: as in the configuration.
    :raises UpstreamNotAllowed: its ``upstreams`` does not hold it.
    """
    if key.upstreams and name not in key.upstreams:
        raise UpstreamNotAllowed(
            f"The Flowstack key {key.id} may not use the upstream {name}: it may use {_listed(key.upstreams)}. Use one "
            "of their hosts in the base URL, or ask the person who gave you the key for more."
        )


def check_endpoint(key: Key, method: bytes, path: bytes) -> None:
    """Let a key pass that may call an endpoint.

    Servers read a path in several ways: as it came, percent-decoded, without slashes at its end. The key must allow
    each of them, and where they could differ in what a segment is, the path is refused.

    :param method: as it came.
    :param path: as the client sent it, without its query.
    :raises EndpointNotAllowed: its ``endpoints`` does not hold them.
    """
    if not key.endpoints or (method, path) in key.memo.endpoints:
        return
    if not names_endpoint(key, method, path):
        raise EndpointNotAllowed(
            f"The Flowstack key {key.id} may not call {shown(method.decode('latin-1'))} "
            f"{shown(path.decode('latin-1'))}: it may call {_listed(key.endpoints)}. Ask the person who gave you the "
            "key for more, if you need it."
        )
    if len(path) <= MAX_REMEMBERED_SIZE:
        _remember(key.memo.endpoints, (method, path))


def names_endpoint(key: Key, method: bytes, path: bytes) -> bool:
    """Whether a key's ``endpoints`` names an endpoint: other than by :func:`check_endpoint`, no list names nothing.

    For work whose model or cost cannot be seen, which a restricted key may start only where it says so.
    """
    if not key.endpoints or _DOUBTFUL.search(path) or not _reads_alike(path):
        return False
    patterns = compiled(key.endpoints)
    verb = method.decode("latin-1")
    return all(patterns.fit(reading) or patterns.fit(f"{verb}:{reading}") for reading in _readings(path))


def check_model(key: Key, model: str | None) -> None:
    """Let a key pass that may use a model.

    :param model: as the request names it, JSON escapes resolved; None where it names none.
    :raises ModelNotAllowed: its ``models`` does not hold it, or there is none to hold against it.
    """
    if not key.models or model in key.memo.models:
        return
    if model is None:
        raise ModelNotAllowed(
            f"This request names no model, and the Flowstack key {key.id} may use {_listed(key.models)} only. Name the "
            "model in the request."
        )
    if len(model) > MAX_MODEL or not compiled(key.models).fit(model):
        raise ModelNotAllowed(
            f"The Flowstack key {key.id} may not use the model {shown(model)}: it may use {_listed(key.models)}. Use "
            "one of these, or ask the person who gave you the key for more."
        )
    if len(model) <= MAX_REMEMBERED_SIZE and model.isascii():
        _remember(key.memo.models, model)


def _reads_alike(path: bytes) -> bool:
    """Whether a path, decoded, is UTF-8 that no server normalises: not overlong, no stop or slash of another width."""
    try:
        text = unquote_to_bytes(path).decode() if b"%" in path else ""
    except UnicodeDecodeError:
        return False
    return text.isascii() or normalize("NFKC", text) == text


def _readings(path: bytes) -> Iterable[str]:
    """The ways in which servers may read a path that is not doubtful, as text of a character a byte."""
    plain = _ENCODED_UNRESERVED.sub(lambda match: bytes((int(match[1], 16),)), path) if b"%" in path else path
    decoded = unquote_to_bytes(plain) if b"%" in plain else plain
    readings = {plain, decoded}
    if path.endswith(b"/"):
        readings |= {plain.rstrip(b"/") or b"/", decoded.rstrip(b"/") or b"/"}
    return [reading.decode("latin-1") for reading in readings]


def _remember(known: set[_Item], item: _Item) -> None:
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known.add(item)


def _listed(items: tuple[str, ...]) -> str:
    more = f" and {len(items) - _SHOWN_ITEMS} more" if len(items) > _SHOWN_ITEMS else ""
    return ", ".join(items[:_SHOWN_ITEMS]) + more


def shown(text: str) -> str:
    """A client's word, for an error's message: nothing that moves a cursor, no key, not endless."""
    start = hide_keys(text[:MAX_MODEL])[:_SHOWN_CHARACTERS]
    return "".join(c if c.isprintable() else "?" for c in start) + ("..." if len(start) == _SHOWN_CHARACTERS else "")
