"""Two keys in one string, ``<Flowstack key>~<provider key>``: for clients that have one box for a key, and no headers.

It stands where the provider's key would: after ``Bearer`` in ``Authorization``, or bare in ``api-key`` or
``x-api-key``. Providers' keys may have a ``~`` of their own, so what is before one is Flowstack's part only where it
begins like a Flowstack key or is one of the keystore's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from flowstack.tokens import MAX_TOKEN_BYTES, PREFIX, PROVIDER_PREFIX, digest

SEPARATOR = b"~"

_SCHEMES = {
    b"authorization": re.compile(rb"bearer +", re.IGNORECASE).match,
    b"api-key": re.compile(b"").match,
    b"x-api-key": re.compile(b"").match,
}

FIELDS = tuple(_SCHEMES)
"""The fields that may hold both, in lower case."""

_invisible = re.compile(rb"[^!-~]").search


def two_keys(name: bytes, value: bytes, is_known: Callable[[bytes], object]) -> tuple[bytes, bytes] | None:
    """Take such a string apart; None where it is none.

    :param name: the field's, in lower case.
    :param is_known: tells of a SHA-256 whether the keystore holds it.
    :return: Flowstack's part, and the field's value without it: what the client would have sent with the provider's key
        alone, empty where there is none.
    """
    scheme = _SCHEMES.get(name)
    begins = scheme(value) if scheme is not None else None
    if begins is None:
        return None
    start = begins.end()
    if value.startswith(PROVIDER_PREFIX, start):
        return None  # no Flowstack key begins so
    first = at = value.find(SEPARATOR, start)
    while 0 <= at - start <= MAX_TOKEN_BYTES:  # a key of the operator's own making may hold the separator
        if at > start and is_known(digest(value[start:at])):
            return value[start:at], _without(value, start, at)
        at = value.find(SEPARATOR, at + 1)
    token = value[start:first] if first >= 0 else b""
    if token.startswith(PREFIX.encode()) and not _invisible(token):
        return token, _without(value, start, first)
    return None


def _without(value: bytes, start: int, at: int) -> bytes:
    rest = value[at + 1 :]
    return value[:start] + rest if rest else b""
