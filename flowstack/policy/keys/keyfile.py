r"""The keystore file's text: every key, or every fault.

UTF-8, a key a line, lines ended by LF or CRLF; an id, a hash and attributes, set apart by spaces or tabs::

    # id           hash                 attributes
    k7Qm2xW9pLz4  sha256:<64 hex>      owner=alice@example.com expires=2027-06-30 rpm=600   # a remark
    p3Rt8vN1cYs6  sha256:<64 hex>      owner="Batch jobs" budget=50.00usd/month disabled

A word that begins with ``#`` opens a comment up to the line's end. A value with spaces stands in double quotes, in
which ``\"`` and ``\\`` are a quote and a backslash; outside of quotes a backslash is itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from attrs import frozen

from flowstack.policy.keys.attributes import ATTRIBUTES, character_name, shown, unfit_character
from flowstack.policy.keys.model import Key

_HEAD = re.compile(r"[ \t]*([A-Za-z0-9_.-]{1,64})[ \t]+sha256:([0-9a-fA-F]{64})(?![^ \t])").match
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_NOT_ID = re.compile(r"[^A-Za-z0-9_.-]").search
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})").fullmatch
_PLAIN_WORD = re.compile(r"[ \t]*([^ \t]+)").match
_WORD = re.compile(r'[ \t]*([^ \t="#][^ \t="]*)(?:(=)(?:"((?:[^"\\]|\\.)*)"|([^ \t"]*)))?(?![^ \t])').match
_BLANK = re.compile(r"[ \t]*(?:#.*)?").fullmatch
_ESCAPE = re.compile(r"\\(.)")
_SECRET = re.compile(r"fsk-[0-9A-Za-z]{12,}").search
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]").search
_SAFE_WORD = re.compile(r"[A-Za-z_-]{1,24}").fullmatch
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@frozen(slots=True)
class Fault:
    """What is wrong with the file, and where.

    :ivar line: from 1; None where it is about the file as a whole.
    :ivar column: in characters (in bytes where the line is not UTF-8), from 1; None where it is about the whole line.
    :ivar message: what was found, what was expected, what to do; never a secret.
    """

    file: str
    line: int | None
    column: int | None
    message: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}"


class _Wrong(Exception):
    """A fault within a line, at a place counted from 0."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


def parse_keys(text: bytes, path_name: str) -> tuple[list[Key], list[Fault]]:
    """Read the whole file.

    :param path_name: what faults call the file.
    :return: the keys of the faultless lines, in their order, and all faults. With any fault the set is not to be used.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if text.startswith(mark):
            found = f"found a {encoding} byte order mark, expected UTF-8 text without one"
            return [], [Fault(path_name, 1, 1, f"{found}; save the file as plain UTF-8")]
    keys: list[Key] = []
    faults: list[Fault] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(text, path_name, faults):
        if _BLANK(line):
            wrong = _comment_faults(line)
            key = None
        else:
            key, wrong = _parse_line(line)
            if head := _HEAD(line):
                wrong.extend(_repeats(head, number, line_of))
        if wrong:
            faults.extend(Fault(path_name, number, fault.place + 1, fault.message) for fault in wrong)
        elif key is not None:
            keys.append(key)
    faults.sort(key=lambda fault: (fault.line or 0, fault.column or 0))
    return keys, faults


def format_key(key: Key) -> str:
    """Write a key as a line of the file, without a line end; :func:`parse_keys` reads the same key from it."""
    words = []
    for attribute in ATTRIBUTES.values():
        value = getattr(key, attribute.field)
        if value is not None and value != ():
            words.append(f"{attribute.name}={_quoted(attribute.write(value))}")
    if key.disabled:
        words.append("disabled")
    return "  ".join(filter(None, (key.id, f"sha256:{key.digest.hex()}", " ".join(words))))


def line_id(line: str) -> str | None:
    """Return the id on a line of a file that has no faults, or None where the line holds no key."""
    return None if _BLANK(line.rstrip("\r\n")) else line.split(None, 1)[0]


def _lines(text: bytes, path_name: str, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """Yield each line with its number and without its end; a line that is not UTF-8 becomes a fault."""
    try:
        for number, line in enumerate(text.decode().split("\n"), 1):
            yield number, line.removesuffix("\r")
    except UnicodeDecodeError:
        for number, raw in enumerate(text.split(b"\n"), 1):
            try:
                yield number, raw.decode().removesuffix("\r")
            except UnicodeDecodeError as error:
                message = f"found the byte 0x{raw[error.start]:02x}, expected UTF-8 text; save the file as UTF-8"
                faults.append(Fault(path_name, number, error.start + 1, message))


def _comment_faults(line: str) -> list[_Wrong]:
    if "fsk-" in line and (secret := _SECRET(line)):
        return [_a_secret(secret.start())]
    if not line.isprintable() and (control := _CONTROL(line)):
        return [_unfit(control.start(), control[0])]
    return []


def _parse_line(line: str) -> tuple[Key | None, list[_Wrong]]:
    if "fsk-" in line and (secret := _SECRET(line)):
        return None, [_a_secret(secret.start())]
    if not line.isprintable():
        place = unfit_character(line.replace("\t", " "))
        if place >= 0:
            return None, [_unfit(place, line[place])]
    wrong: list[_Wrong] = []
    head = _HEAD(line)
    place = head.end() if head else _explain_head(line, wrong)
    fields: dict[str, Any] = {}
    while not _BLANK(line, place):
        word = _WORD(line, place)
        if word is None:
            wrong.append(_stray(line, place))
            break
        try:
            field, value = _attribute(word)
            if field in fields:
                raise _Wrong(word.start(1), f"found {word[1]} a second time, expected it once; remove one of the two")
            fields[field] = value
        except _Wrong as fault:
            wrong.append(fault)
        place = word.end()
    if wrong or head is None:
        return None, wrong
    return Key(head[1], bytes.fromhex(head[2]), **fields), wrong


def _repeats(head: re.Match[str], number: int, line_of: dict[str, int]) -> Iterator[_Wrong]:
    """Yield a fault for an id or a hash that an earlier line has; ``line_of`` remembers where each came first."""
    for group, what, word in ((1, f"the id {head[1]}", head[1]), (2, "the same hash", f"sha256:{head[2].lower()}")):
        first = line_of.setdefault(word, number)
        if first != number:
            found = f"found {what} as in line {first}, expected each once"
            yield _Wrong(head.start(group), f"{found}; remove one of the two lines, or make another key")


def _attribute(word: re.Match[str]) -> tuple[str, Any]:
    """Return the field's name and value."""
    name, equals, quoted, bare = word.groups()
    if name == "disabled":
        if equals:
            message = "found disabled with a value, expected the bare word; write disabled, or leave it out"
            raise _Wrong(word.start(1), message)
        return name, True
    attribute = ATTRIBUTES.get(name)
    if attribute is None:
        raise _Wrong(word.start(1), _unknown(name))
    if not equals:
        raise _Wrong(word.start(1), f"{name}: found no value, expected one, such as {name}={attribute.example}")
    try:
        return attribute.field, attribute.read(bare if quoted is None else _unquoted(quoted))
    except ValueError as error:
        raise _Wrong(word.start(1), f"{name}: {error}") from None


def _unquoted(text: str) -> str:
    def character(escape: re.Match[str]) -> str:
        if escape[1] not in '"\\':
            raise ValueError(rf"found \{escape[1]} in quotes, expected \" or \\ only; write a backslash as \\")
        return escape[1]

    return _ESCAPE.sub(character, text) if "\\" in text else text


def _quoted(text: str) -> str:
    if " " in text or '"' in text or not text:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _explain_head(line: str, wrong: list[_Wrong]) -> int:
    """Say what is wrong with the id or the hash, and return where the attributes begin."""
    first = _PLAIN_WORD(line)
    assert first is not None  # A blank line does not come here.
    if "=" in first[1]:
        message = "found an attribute, expected an id first, then sha256:<64 hex>; add the two"
        wrong.append(_Wrong(first.start(1), message))
        return first.start()
    if _HASH(first[1]):
        message = "found a hash, expected an id first; put a name for the key before it"
        wrong.append(_Wrong(first.start(1), message))
        return first.end()
    if not _ID(first[1]):
        # The word is not repeated, nor are unknown words below: it may be a secret in the wrong place.
        bad = _NOT_ID(first[1])
        found = character_name(bad[0]) if bad else f"{len(first[1])} characters"
        place = first.start(1) + (bad.start() if bad else 0)
        wrong.append(_Wrong(place, f"id: found {found}, expected 1 to 64 of A-Z a-z 0-9 _ . -; rename the key"))
    second = _PLAIN_WORD(line, first.end())
    if second is None or second[1].startswith("#") or "=" in second[1] or second[1] == "disabled":
        message = "hash: found none, expected sha256:<64 hex> after the id; `flowstack keys add` writes one"
        wrong.append(_Wrong(first.end(), message))
        return first.end()
    if not _HASH(second[1]):
        message = f"hash: found {_hash_found(second[1])}, expected sha256:<64 hex>; `flowstack keys add` writes one"
        wrong.append(_Wrong(second.start(1), message))
    return second.end()


def _hash_found(word: str) -> str:
    kind, colon, rest = word.partition(":")
    if not colon:
        return f"{len(word)} characters without 'sha256:' (not shown, as they may be a secret)"
    if kind != "sha256":
        return "a hash of another kind" if _SAFE_WORD(kind.rstrip("0123456789")) else "something else (not shown)"
    if len(rest) != 64:
        return f"{len(rest)} characters after 'sha256:'"
    return "characters after 'sha256:' that are not hexadecimal"


def _unknown(name: str) -> str:
    near = get_close_matches(name.lower().replace("-", "_"), [*ATTRIBUTES, "disabled"], 1)
    found = shown(name) if _SAFE_WORD(name) else f"a word of {len(name)} characters (not shown, as it may be a secret)"
    advice = f"did you mean {near[0]}?" if near else "correct or remove it; a value with spaces needs double quotes"
    return f"found the unknown attribute {found}, expected one of {', '.join([*ATTRIBUTES, 'disabled'])}; {advice}"


def _stray(line: str, place: int) -> _Wrong:
    quote = line.find('"', place)
    if quote >= 0:
        return _Wrong(
            quote,
            'found a double quote out of place, expected a whole value in quotes, such as owner="Batch jobs", with a '
            r"space after it; close the quotes, or write a quote within them as \"",
        )
    return _Wrong(line.find("=", place), "found '=' with no name before it, expected name=value; correct or remove it")


def _unfit(place: int, character: str) -> _Wrong:
    advice = "end lines with LF or CRLF" if character == "\r" else "remove it, or put a plain space in its place"
    return _Wrong(place, f"found {character_name(character)}, expected printable text; {advice}")


def _a_secret(place: int) -> _Wrong:
    return _Wrong(
        place,
        "found a whole key (fsk-..., not shown), expected its hash only: this file must not hold secrets. Take the key "
        "for leaked: remove it here and wherever the file was copied, and make another with `flowstack keys add`",
    )
