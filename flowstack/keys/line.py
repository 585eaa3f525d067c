r"""A line of the keystore file: a key or a group, or what is wrong with it and where.

::

    @search       budget=500usd/month rpm=6000
    k7Qm2xW9pLz4  sha256:<64 hex>      owner=alice@example.com expires=2027-06-30 group=search   # a remark

Most lines are plain words, many of them the same in each: these are read by :func:`usual_line`, in a few microseconds.
All others, and those with faults, are read word by word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from flowstack.errors import ParseError
from flowstack.keys.attributes import (
    ATTRIBUTES,
    GROUP_ATTRIBUTES,
    Attribute,
    character_name,
    shown,
    unfit_character,
)
from flowstack.keys.key import Group, Key

_HEAD = re.compile(r"[ \t]*([A-Za-z0-9_.-]{1,64})[ \t]+sha256:([0-9a-fA-F]{64})(?![^ \t])").match
_GROUP_HEAD = re.compile(r"[ \t]*@([A-Za-z0-9_.-]{1,64})(?![^ \t])").match
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_NOT_ID = re.compile(r"[^A-Za-z0-9_.-]").search
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})").fullmatch
_PLAIN_WORD = re.compile(r"[ \t]*([^ \t]+)").match
_WORD = re.compile(r'[ \t]*([^ \t="#][^ \t="]*)(?:(=)(?:"((?:[^"\\]|\\.)*)"|([^ \t"]*)))?(?![^ \t])').match
_USUAL_REST = re.compile(r'(?: +[^ "=]+(?:=(?:[^ "]*|"[^"\\]*"))?)* *').fullmatch
_USUAL_WORDS = re.compile(r'[^ "]+(?:"[^"]*")?').findall
_BLANK = re.compile(r"[ \t]*(?:#.*)?").fullmatch
_ESCAPE = re.compile(r"\\(.)")
_SECRET = re.compile(r"fsk-[0-9A-Za-z]{12,}").search
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]").search
_SAFE_WORD = re.compile(r"[A-Za-z_-]{1,24}").fullmatch
_HASH_MARK = len("sha256:")


def is_blank(line: str) -> bool:
    """Whether a line holds no key: nothing, or a comment."""
    return _BLANK(line) is not None


def is_group(line: str) -> bool:
    """Whether a line is a group's, sound or not."""
    return line.lstrip(" \t").startswith("@")


def head_of(line: str) -> re.Match[str] | None:
    """Match a line's id, group 1, and the digits of its hash, group 2."""
    return _HEAD(line)


def group_of(line: str) -> str | None:
    """Return the name of the group whose line it is, which may have faults elsewhere; or None."""
    head = _GROUP_HEAD(line)
    return head[1] if head else None


def line_id(line: str) -> str | None:
    """Return the key's id, or ``@`` and the group's name, on a line of a file that has no faults; None of a comment."""
    return None if _BLANK(line.rstrip("\r\n")) else line.split(None, 1)[0]


def usual_line(line: str) -> tuple[re.Match[str], dict[str, Any]] | None:
    """Read a line without escapes, comment, rotation and faults: its head, and :class:`Key`'s fields by name.

    :return: None where the line is of another kind.
    """
    head = _HEAD(line)
    if head is None or "fsk-" in line or not line.isprintable():
        return None
    rest = line[head.end() :]
    if '"' not in rest:
        words = rest.split()
    elif _USUAL_REST(rest):
        words = _USUAL_WORDS(rest)
    else:
        return None
    try:
        fields = dict(map(_usual_word, words))
    except ParseError:
        return None
    if len(fields) != len(words) or "previous" in fields or "previous_until" in fields:
        return None
    return head, fields


@lru_cache(maxsize=4096)
def _usual_word(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if name == "disabled" and not equals:
        return name, True
    attribute = ATTRIBUTES.get(name)
    if attribute is None or not equals:
        raise ParseError("not a usual word")
    return attribute.field, attribute.read(value[1:-1] if value.startswith('"') else value)


def parse_line(line: str) -> tuple[Key | None, list[ParseError]]:
    """Read a line that is not blank, without its end: its key, or all that is wrong with it."""
    usual = usual_line(line)
    if usual is not None:
        head, fields = usual
        return Key(head[1], bytes.fromhex(head[2]), **fields), []
    return _parse_words(line)


def parse_group(line: str) -> tuple[Group | None, list[ParseError]]:
    """As :func:`parse_line`, for a line that :func:`is_group`."""
    wrong = _unshown(line)
    if wrong:
        return None, wrong
    head = _GROUP_HEAD(line)
    fields = _read_words(line, head.end() if head else _explain_name(line, wrong), GROUP_ATTRIBUTES, wrong)
    return (None if wrong or head is None else Group(head[1], **fields)), wrong


def _parse_words(line: str) -> tuple[Key | None, list[ParseError]]:
    wrong = _unshown(line)
    if wrong:
        return None, wrong
    head = _HEAD(line)
    fields = _read_words(line, head.end() if head else _explain_head(line, wrong), ATTRIBUTES, wrong)
    if head is not None and not wrong:
        _check_rotation(head, fields, wrong)
    if wrong or head is None:
        return None, wrong
    return Key(head[1], bytes.fromhex(head[2]), **fields), wrong


def _unshown(line: str) -> list[ParseError]:
    """What must not be in a line at all, so that the rest of it is not read."""
    if "fsk-" in line and (secret := _SECRET(line)):
        return [_a_secret(secret.start())]
    if not line.isprintable():
        place = unfit_character(line.replace("\t", " "))
        if place >= 0:
            return [_unfit(place, line[place])]
    return []


def _read_words(line: str, place: int, known: Mapping[str, Attribute], wrong: list[ParseError]) -> dict[str, Any]:
    """Read the attributes from a place on: what they are by field, where nothing more is wrong."""
    fields: dict[str, Any] = {}
    while not _BLANK(line, place):
        word = _WORD(line, place)
        if word is None:
            wrong.append(_stray(line, place))
            break
        try:
            field, value = _attribute(word, known)
            if field in fields:
                overlap = ": one rotation ends before the next begins" if field.startswith("previous") else ""
                raise _wrong(
                    word.start(1), f"found {word[1]} a second time, expected it once{overlap}; remove one of the two"
                )
            fields[field] = value
        except ParseError as fault:
            wrong.append(fault)
        place = word.end()
    return fields


def _check_rotation(head: re.Match[str], fields: dict[str, Any], wrong: list[ParseError]) -> None:
    """A replaced secret has an end, and is another one than today's."""
    has, lacks = ("previous", "previous_until") if "previous" in fields else ("previous_until", "previous")
    if (has in fields) != (lacks in fields):
        message = f"{has}: found without {lacks}, expected both or neither; `flowstack keys rotate` writes both"
        wrong.append(_wrong(head.end(), message))
    elif fields.get("previous") == bytes.fromhex(head[2]):
        message = "previous: found the key's own hash, expected that of the secret before; remove previous and its end"
        wrong.append(_wrong(head.end(), message))


def previous_at(line: str) -> int:
    """Return where in a faultless line the 64 digits of its ``previous`` stand, or -1 if it has none."""
    word = _word_at(line, "previous") if "previous=" in line else None
    return -1 if word is None else word.start(4 if word[3] is None else 3) + _HASH_MARK


def group_at(line: str) -> int:
    """Return where in a faultless line its ``group`` stands."""
    word = _word_at(line, "group")
    return 0 if word is None else word.start(1)


def _word_at(line: str, name: str) -> re.Match[str] | None:
    head = _HEAD(line)
    place = head.end() if head else 0
    while not _BLANK(line, place):
        word = _WORD(line, place)
        if word is None or word[1] == name:
            return word
        place = word.end()
    return None


def comment_faults(line: str) -> list[ParseError]:
    """Say what is wrong with a line that is blank or a comment."""
    if "fsk-" in line and (secret := _SECRET(line)):
        return [_a_secret(secret.start())]
    if not line.isprintable() and (control := _CONTROL(line)):
        return [_unfit(control.start(), control[0])]
    return []


def format_key(key: Key) -> str:
    """Write a key as a line of the file, without a line end; :func:`parse_line` reads the same key from it."""
    return "  ".join(filter(None, (key.id, f"sha256:{key.digest.hex()}", _format_attributes(key))))


def format_group(group: Group) -> str:
    """As :func:`format_key`, to be read by :func:`parse_group`."""
    return "  ".join(filter(None, (f"@{group.name}", _format_attributes(group))))


def rewrite_line(line: str, new: Key | Group) -> str:
    """Write a changed key or group in the place of its line; what stands before the attributes, and a comment, stay.

    :param line: a faultless line, without its end.
    """
    head = _HEAD(line) if isinstance(new, Key) else _GROUP_HEAD(line)
    assert head is not None
    place = head.end()
    while not _BLANK(line, place):
        word = _WORD(line, place)
        assert word is not None
        place = word.end()
    rest = line[head.end() :]
    gap = rest[: len(rest) - len(rest.lstrip(" \t"))] if place > head.end() else "  "
    attributes = _format_attributes(new)
    comment = line[place:].rstrip(" \t")
    front = line[: head.start(2)] + new.digest.hex() if isinstance(new, Key) else line[: head.end()]
    return front + (gap + attributes if attributes else "") + comment


def _format_attributes(of: Key | Group) -> str:
    words = []
    for attribute in (ATTRIBUTES if isinstance(of, Key) else GROUP_ATTRIBUTES).values():
        value = getattr(of, attribute.field)
        if value is not None and value != ():
            words.append(f"{attribute.name}={_quoted(attribute.write(value))}")
    if isinstance(of, Key) and of.disabled:
        words.append("disabled")
    return " ".join(words)


def _attribute(word: re.Match[str], known: Mapping[str, Attribute]) -> tuple[str, Any]:
    """Return the field's name and value."""
    name, equals, quoted, bare = word.groups()
    if known is GROUP_ATTRIBUTES and name not in known and (name in _OF_KEYS or _HASH(name)):
        found = "a hash" if _HASH(name) else name
        raise _wrong(
            word.start(1),
            f"found {found}, which only keys have, expected of a group {', '.join(known)}; write it on the lines of "
            "its keys",
        )
    if name == "disabled" and known is ATTRIBUTES:
        if equals:
            message = "found disabled with a value, expected the bare word; write disabled, or leave it out"
            raise _wrong(word.start(1), message)
        return name, True
    attribute = known.get(name)
    if attribute is None:
        raise _wrong(word.start(1), _unknown(name, _OF_GROUPS if known is GROUP_ATTRIBUTES else _OF_KEYS))
    if not equals:
        raise _wrong(word.start(1), f"{name}: found no value, expected one, such as {name}={attribute.example}")
    try:
        return attribute.field, attribute.read(bare if quoted is None else _unquoted(quoted))
    except ParseError as error:
        raise _wrong(word.start(1), f"{name}: {error}") from None


def _unquoted(text: str) -> str:
    def character(escape: re.Match[str]) -> str:
        if escape[1] not in '"\\':
            raise ParseError(rf"found \{escape[1]} in quotes, expected \" or \\ only; write a backslash as \\")
        return escape[1]

    return _ESCAPE.sub(character, text) if "\\" in text else text


def _quoted(text: str) -> str:
    if " " in text or '"' in text or not text:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _explain_name(line: str, wrong: list[ParseError]) -> int:
    """Say what is wrong with a group's name, and return where the attributes begin."""
    first = _PLAIN_WORD(line)
    assert first is not None
    name = first[1][1:]
    bad = _NOT_ID(name)
    found = character_name(bad[0]) if bad else f"{len(name)} characters"
    place = first.start(1) + (1 + bad.start() if bad else 0)
    wrong.append(
        _wrong(place, f"found {found}, expected @ and a group's name, 1 to 64 of A-Z a-z 0-9 _ . -; rename it")
    )
    return first.end()


def _explain_head(line: str, wrong: list[ParseError]) -> int:
    """Say what is wrong with the id or the hash, and return where the attributes begin."""
    first = _PLAIN_WORD(line)
    assert first is not None  # A blank line does not come here.
    if "=" in first[1]:
        message = "found an attribute, expected an id first, then sha256:<64 hex>; add the two"
        wrong.append(_wrong(first.start(1), message))
        return first.start()
    if _HASH(first[1]):
        message = "found a hash, expected an id first; put a name for the key before it"
        wrong.append(_wrong(first.start(1), message))
        return first.end()
    if not _ID(first[1]):
        # The word is not repeated, nor are unknown words below: it may be a secret in the wrong place.
        bad = _NOT_ID(first[1])
        found = character_name(bad[0]) if bad else f"{len(first[1])} characters"
        place = first.start(1) + (bad.start() if bad else 0)
        wrong.append(_wrong(place, f"id: found {found}, expected 1 to 64 of A-Z a-z 0-9 _ . -; rename the key"))
    second = _PLAIN_WORD(line, first.end())
    if second is None or second[1].startswith("#") or "=" in second[1] or second[1] == "disabled":
        message = "hash: found none, expected sha256:<64 hex> after the id; `flowstack keys add` writes one"
        wrong.append(_wrong(first.end(), message))
        return first.end()
    if not _HASH(second[1]):
        message = f"hash: found {_hash_found(second[1])}, expected sha256:<64 hex>; `flowstack keys add` writes one"
        wrong.append(_wrong(second.start(1), message))
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


_OF_KEYS = (*ATTRIBUTES, "disabled")
_OF_GROUPS = tuple(GROUP_ATTRIBUTES)


@lru_cache(maxsize=256)
def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name.lower().replace("-", "_"), known, 1)
    found = shown(name) if _SAFE_WORD(name) else f"a word of {len(name)} characters (not shown, as it may be a secret)"
    advice = f"did you mean {near[0]}?" if near else "correct or remove it; a value with spaces needs double quotes"
    return f"found the unknown attribute {found}, expected one of {', '.join(known)}; {advice}"


def _stray(line: str, place: int) -> ParseError:
    quote = line.find('"', place)
    if quote >= 0:
        return _wrong(
            quote,
            'found a double quote out of place, expected a whole value in quotes, such as owner="Batch jobs", with a '
            r"space after it; close the quotes, or write a quote within them as \"",
        )
    return _wrong(line.find("=", place), "found '=' with no name before it, expected name=value; correct or remove it")


def _unfit(place: int, character: str) -> ParseError:
    advice = "end lines with LF or CRLF" if character == "\r" else "remove it, or put a plain space in its place"
    return _wrong(place, f"found {character_name(character)}, expected printable text; {advice}")


def _a_secret(place: int) -> ParseError:
    return _wrong(
        place,
        "found a whole key (fsk-..., not shown), expected its hash only: this file must not hold secrets. Take the key "
        "for leaked: remove it here and wherever the file was copied, and make another with `flowstack keys add`",
    )


def _wrong(place: int, message: str) -> ParseError:
    """Make the error for a place in the line, counted in characters from 0."""
    return ParseError(message, column=place + 1)
