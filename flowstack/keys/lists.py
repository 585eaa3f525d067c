"""Lists of keys from elsewhere, to be added to a keystore: lines of another one, or the keys themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flowstack.errors import FlowstackError, ParseError
from flowstack.keys.key import Key
from flowstack.keys.line import is_blank, parse_line
from flowstack.tokens import (
    ID_LENGTH,
    PREFIX,
    checksum_ok,
    digest,
    parse_flowstack_auth,
    unknown_key,
)

MIN_CHARACTERS = 16
"""Characters of a key that is not Flowstack's: a SHA-256 protects only what cannot be guessed."""

Numbered = tuple[int, Key]
"""The number of a line, and its key."""


def parse_list(text: bytes, name: str, fields: Mapping[str, Any]) -> tuple[list[Numbered], list[ParseError]]:
    """Read a list of keys, one a line.

    :param name: what faults call it.
    :param fields: what :class:`Key` gets where the line is the key itself.
    :return: the keys of the faultless lines, and what is wrong with the others; nothing of a line is repeated.
    """
    found: list[Numbered] = []
    faults: list[ParseError] = []
    ids: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for number, raw in enumerate(text.split(b"\n"), 1):
        key = None
        try:
            key = _read(raw.removesuffix(b"\r"), fields)
        except ParseError as error:
            faults += [ParseError(one.message, file=name, line=number, column=one.column) for one in error]
        if key is None:
            continue
        found.append((number, key))
        for what, first in (("id", ids.setdefault(key.id, number)), *_firsts(key, digests, number)):
            if first != number:
                message = f"found the same {what} as in line {first}, expected each once; remove one of the two"
                faults.append(ParseError(message, file=name, line=number))
    return found, faults


def repeats(found: Iterable[Numbered], old: Iterable[Key], name: str, keystore: str) -> list[ParseError]:
    """Name the keys of a list that a keystore has already, by their id or their hash."""
    ids: set[str] = set()
    digests: set[bytes] = set()
    for key in old:
        ids.add(key.id)
        digests.update(_digests(key))
    faults = []
    for number, key in found:
        what = "id" if key.id in ids else "hash" if not digests.isdisjoint(_digests(key)) else None
        if what:
            message = f"found the {what} of a key that is in {keystore} already; remove the line, or that key"
            faults.append(ParseError(message, file=name, line=number))
    return faults


def _read(raw: bytes, fields: Mapping[str, Any]) -> Key | None:
    words = raw.split(None, 1)
    if not words or words[0].startswith(b"#"):
        return None
    if words[0].startswith(b"@"):
        raise ParseError("found a group's line, expected a key's; add the group by `flowstack groups add` before")
    if len(words) == 1 and b"=" not in raw and not words[0].startswith(b"sha256:"):
        return _read_token(words[0], fields)
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        raise ParseError("found a byte that is not UTF-8, expected UTF-8 text", column=error.start + 1) from None
    key, wrong = (None, []) if is_blank(line) else parse_line(line)
    if wrong:
        raise ParseError.several(wrong)
    return key


def _read_token(token: bytes, fields: Mapping[str, Any]) -> Key:
    try:
        parse_flowstack_auth([b"Bearer " + token])
    except FlowstackError as error:
        raise ParseError(f"this is no key that a client could send: {error.message}") from None
    hashed = digest(token)
    if token.startswith(PREFIX.encode()):
        if not checksum_ok(token):
            raise ParseError(unknown_key(token).message)
        return Key(token[len(PREFIX) : len(PREFIX) + ID_LENGTH].decode(), hashed, **fields)
    if len(token) < MIN_CHARACTERS:
        found = f"found a key of {len(token)} characters (not shown), expected at least {MIN_CHARACTERS}"
        raise ParseError(f"{found}: a short one can be guessed from its hash; make one by `flowstack keys add`")
    return Key(hashed.hex()[:ID_LENGTH], hashed, **fields)


def _digests(key: Key) -> tuple[bytes, ...]:
    return (key.digest,) if key.previous is None else (key.digest, key.previous)


def _firsts(key: Key, digests: dict[bytes, int], number: int) -> Iterable[tuple[str, int]]:
    return [("hash", digests.setdefault(one, number)) for one in _digests(key)]
