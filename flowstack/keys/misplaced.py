"""A Flowstack key where none belongs: in another field than ``Flowstack-Auth``, or in the URL, written as it is or not.

A field for a credential is looked at closely: nothing in it may begin like a Flowstack key or be one of the keystore's,
whatever the scheme, also percent-encoded, in quotes, among other words, beside another key in one string, or in Base64
as Basic has it. Elsewhere a whole key of Flowstack's own form is looked for, which its checksum tells.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Callable, Iterator
from itertools import islice
from urllib.parse import unquote_to_bytes

from flowstack.keys.one_string import SEPARATOR
from flowstack.tokens import (
    MAX_TOKEN_BYTES,
    PREFIX,
    TOKEN_LENGTH,
    checksum_ok,
    digest,
    looks_like_flowstack_key,
)

MAX_WORDS = 256
"""Words of one value that are looked up. No credential has as many; more than these count as a key."""

MAX_TOKENS = 16
"""Tokens of one word that are looked up where there are many words: enough for two keys, each with a separator."""

MAX_ENCODED = 4096
"""Bytes of a credential that may be percent-encoded, which takes time to undo: who has no key sends these too."""

_whole_keys = re.compile(rb"%b[0-9A-Za-z]{%d}" % (PREFIX.encode(), TOKEN_LENGTH - len(PREFIX))).finditer
_words = re.compile(rb"[^\x00-\x20\x7f,;\"'()<>\[\]{}]+").findall
_parts = re.compile(rb"[^:=&]+").findall
_base64 = re.compile(rb"[0-9A-Za-z+/_-]{8,}").findall
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_DECODED = 3
"""How often a value is decoded: clients, proxies and their libraries do so once or twice."""


def holds_whole_key(value: bytes) -> bool:
    """Whether a value, or what it is percent-decoded to, holds a whole Flowstack key."""
    if value.find(b"fsk-") < 0 and value.find(b"%") < 0:
        return False
    return any(
        reading.find(b"fsk-") >= 0 and any(checksum_ok(found[0]) for found in _whole_keys(reading))
        for reading in _readings(value)
    )


def credential_holds_key(value: bytes, is_known: Callable[[bytes], object]) -> bool:
    """Whether a credential field's value holds a Flowstack key in any of the ways above.

    :param is_known: tells of a SHA-256 whether the keystore holds it.
    """
    if len(value) > MAX_ENCODED and value.find(b"%") >= 0:
        return True
    left = MAX_WORDS
    for reading in _readings(value):
        if looks_like_flowstack_key(reading) or holds_whole_key(reading):
            return True
        for word in _words(reading):
            for part in dict.fromkeys((word, *_parts(word))):
                for token in (part,) if part.find(SEPARATOR) < 0 else _separated(part):
                    left -= 1
                    if left < 0 or _is_key(token, is_known):
                        return True
        for text in _base64(reading):
            left -= 1
            decoded = _decoded(text)
            user, _, password = decoded.partition(b":")
            if left < 0 or looks_like_flowstack_key(decoded) or holds_whole_key(decoded):
                return True
            if any(_holds_key(part, is_known) for part in (decoded, user, password)):
                return True
    return False


def url_holds_key(target: bytes, is_known: Callable[[bytes], object]) -> bool:
    """Whether a request's target holds what begins like a Flowstack key, or has a keystore's key as a parameter."""
    for reading in _readings(target):
        if looks_like_flowstack_key(reading) or holds_whole_key(reading):
            return True
        query = reading.partition(b"?")[2]
        for part in islice(re.split(rb"[&;]", query), MAX_WORDS) if query else ():
            if _holds_key(part.partition(b"=")[2] or part, is_known):
                return True
    return False


def _holds_key(word: bytes, is_known: Callable[[bytes], object]) -> bool:
    if word.find(SEPARATOR) < 0:
        return _is_key(word, is_known)
    return any(_is_key(token, is_known) for token in islice(_separated(word), MAX_TOKENS))


def _separated(word: bytes) -> Iterator[bytes]:
    """What of a word may be a key: all of it, and whatever is between, before and after its separators of two keys."""
    yield word
    start, at = 0, word.find(SEPARATOR)
    while at >= 0:
        yield word[start:at]
        if start and at <= MAX_TOKEN_BYTES:
            yield word[:at]
        start, at = at + 1, word.find(SEPARATOR, at + 1)
        if len(word) - start <= MAX_TOKEN_BYTES:
            yield word[start:]


def _is_key(token: bytes, is_known: Callable[[bytes], object]) -> bool:
    return 0 < len(token) <= MAX_TOKEN_BYTES and bool(is_known(digest(token)))


def _readings(value: bytes) -> Iterator[bytes]:
    """A value as it is, and as often as it can be percent-decoded."""
    for _ in range(_DECODED):
        yield value
        if value.find(b"%") < 0:
            return
        value = unquote_to_bytes(value)


def _decoded(text: bytes) -> bytes:
    """What a run of Base64's letters stands for, its padding left out; nothing where that cannot be."""
    size = len(text) - (len(text) % 4 == 1)
    try:
        return b64decode(text[:size].translate(_URL_SAFE) + b"==")
    except Error:
        return b""
