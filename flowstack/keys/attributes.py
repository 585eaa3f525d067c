"""The attributes that a key's or a group's line may carry: one table, from which the file's reader and writer and the
command line take what each is called, how it is read, and how it is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from attrs import frozen

from flowstack.errors import ParseError
from flowstack.keys.key import DAY, EPOCH_DAY, expires_text
from flowstack.notation import BUDGET, NETWORK, Budget, Network, is_model_pattern, read_budget, read_network

_NUMBER = re.compile(r"[1-9][0-9]{0,14}").fullmatch
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
# RFC 3339 §5.6; leap seconds are refused, as Unix time has none.
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
).fullmatch
_ENDPOINT = re.compile(
    r"(?:(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS):)?/[A-Za-z0-9_.~%:@!$&'()*+;=/-]{0,255}"
).fullmatch
_UPSTREAM = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_GROUP = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_HASH = re.compile(r"sha256:[0-9a-fA-F]{64}").fullmatch
_END_OF_TIME = (date.max.toordinal() - EPOCH_DAY + 1) * DAY
_JOINERS = "\u200c\u200d"

MAX_PARALLEL = 1_000_000
"""No machine holds more requests at once; a larger ``max_parallel`` is a slip of the hand."""


@frozen(slots=True)
class Attribute:
    """One kind of attribute.

    :ivar name: as in the file; on the command line with ``-`` for ``_``.
    :ivar field: the field of :class:`~flowstack.keys.key.Key` that holds it.
    :ivar read: text to value; a ParseError says what was found, what was expected, and what to do.
    :ivar write: value to text, such that ``read(write(value)) == value``.
    :ivar example: a value, for messages and help.
    :ivar help: what it does, in a few words.
    :ivar by_rotation: whether ``flowstack keys rotate`` alone writes it.
    """

    name: str
    field: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    example: str
    help: str
    by_rotation: bool = False


def shown(value: str) -> str:
    """Quote what was found, unless it may be a secret or is too long for a message."""
    if len(value) > 40 or "sk-" in value:
        return f"a value of {len(value)} characters (not shown)"
    return repr(value) if value else "nothing"


def unfit_character(text: str) -> int:
    """Return the place of the first character that cannot be seen for what it is, or -1.

    Controls, line separators, surrogates, spaces other than the plain one, and format characters (text direction
    marks among them), except for the two joiners that some scripts write words with.
    """
    if text.isprintable():
        return -1
    for place, character in enumerate(text):
        if character in " " + _JOINERS:
            continue
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}:
            return place
    return -1


def character_name(character: str) -> str:
    """Name a character for a message, without printing it."""
    return f"U+{ord(character):04X} {unicodedata.name(character, '(a control character)')}"


def _text(most: int) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not value:
            raise ParseError("found nothing, expected text; leave the attribute out if there is none to give")
        if len(value) > most:
            raise ParseError(f"found {len(value)} characters, expected at most {most}; shorten it")
        place = unfit_character(value)
        if place >= 0:
            raise ParseError(f"found {character_name(value[place])}, expected printable text; remove it")
        return value

    return read


def _number(unit: str, most: int = 10**15 - 1) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not _NUMBER(value):
            zero = " (0 would let nothing pass: use disabled for that)" if value.strip("0") == "" and value else ""
            raise ParseError(
                f"found {shown(value)}, expected a whole number of {unit}, from 1{zero}; write the digits alone, "
                "without a unit, a sign or a separator"
            )
        number = int(value)
        if number > most:
            raise ParseError(
                f"found {value}, expected at most {most} {unit}; leave the attribute out if there is to be no limit"
            )
        return number

    return read


def _items(what: str, fits: Callable[[str], Any]) -> Callable[[str], tuple[str, ...]]:
    def read(value: str) -> tuple[str, ...]:
        items = tuple(value.split(","))
        for item in items:
            if not fits(item):
                raise ParseError(f"found {shown(item)}, expected {what}; several are joined by commas, without spaces")
        return items

    return read


def _read_expires(value: str) -> float:
    try:
        if _DATE(value):
            expires_at = (date.fromisoformat(value).toordinal() - EPOCH_DAY + 1) * DAY
        elif _INSTANT(value):
            expires_at = datetime.fromisoformat(value.upper()).timestamp()
        else:
            raise ValueError
    except (ValueError, OverflowError):
        raise ParseError(
            f"found {shown(value)}, expected a day such as 2027-06-30, valid through its end in UTC, or an instant "
            "such as 2027-06-30T12:00:00Z or 2027-06-30T12:00:00+02:00"
        ) from None
    if not 0 < expires_at <= _END_OF_TIME:
        raise ParseError(f"found {shown(value)}, expected a time from 1970 to 9999; correct the year")
    return expires_at


def _read_budget(value: str) -> Budget:
    budget = read_budget(value)
    if budget is None:
        raise ParseError.found(shown(value), BUDGET)
    return budget


def read_group_name(value: str) -> str:
    """Read the name of a group.

    :raises ParseError: it is none.
    """
    if not _GROUP(value):
        at = " without the @" if value.startswith("@") else ""
        raise ParseError(
            f"found {shown(value)}, expected the name of a group{at}: 1 to 64 of A-Z a-z 0-9 _ . -; "
            "`flowstack groups list` shows the names"
        )
    return value


def _read_networks(value: str) -> tuple[Network, ...]:
    expected = f"{NETWORK}; several are joined by commas, without spaces"
    return tuple(read_network(item, shown(item), expected) for item in value.split(","))


def _write_items(items: tuple[object, ...]) -> str:
    return ",".join(map(str, items))


def _read_switch(value: str) -> bool:
    if value not in {"on", "off"}:
        raise ParseError(f"found {shown(value)}, expected on or off; leave the attribute out for the default")
    return value == "on"


def _read_hash(value: str) -> bytes:
    if not _HASH(value):
        raise ParseError(
            f"found {len(value)} characters (not shown), expected sha256:<64 hex>; `flowstack keys rotate` writes it"
        )
    return bytes.fromhex(value[7:])


def _write_hash(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"


ATTRIBUTES: dict[str, Attribute] = {
    attribute.name: attribute
    for attribute in (
        Attribute("owner", "owner", _text(256), str, "alice@example.com", "Who uses the key; kept with each request."),
        Attribute(
            "expires",
            "expires_at",
            _read_expires,
            expires_text,
            "2027-06-30",
            "Last valid day (UTC), or an instant such as 2027-06-30T12:00:00Z.",
        ),
        Attribute(
            "models",
            "models",
            _items("a model's name, or a pattern such as gpt-4o*", is_model_pattern),
            _write_items,
            "gpt-4o*,text-embedding-3-*",
            "Models that it may use, joined by commas; * stands for any characters.",
        ),
        Attribute(
            "endpoints",
            "endpoints",
            _items("a path such as /v1/chat/completions, /v1/files* or GET:/v1/models", _ENDPOINT),
            _write_items,
            "POST:/v1/chat/completions,/v1/models*",
            "Paths that it may call, joined by commas, each with METHOD: before it or not.",
        ),
        Attribute(
            "upstreams",
            "upstreams",
            _items("the name of an upstream in the configuration, such as openai", _UPSTREAM),
            _write_items,
            "openai",
            "Upstreams that it may reach, joined by commas.",
        ),
        Attribute("rpm", "rpm", _number("requests a minute"), str, "600", "Maximum requests a minute."),
        Attribute("tpm", "tpm", _number("tokens a minute"), str, "200000", "Maximum tokens a minute."),
        Attribute(
            "max_parallel",
            "max_parallel",
            _number("requests at once", MAX_PARALLEL),
            str,
            "20",
            "Maximum requests in flight.",
        ),
        Attribute(
            "budget", "budget", _read_budget, str, "50.00usd/month", "Maximum spend: usd by day, month or total."
        ),
        Attribute("group", "group", read_group_name, str, "search", "Group whose limits it shares with others."),
        Attribute(
            "allow_ip",
            "allow_ip",
            _read_networks,
            _write_items,
            "10.0.0.0/8,2001:db8::/32",
            "Addresses and networks from which it may be used, joined by commas.",
        ),
        Attribute("note", "note", _text(1024), str, "for the nightly batch", "A remark for whoever keeps the file."),
        Attribute(
            "inject_usage",
            "inject_usage",
            _read_switch,
            lambda on: "on" if on else "off",
            "off",
            "Whether Flowstack asks for the usage of streams: on or off.",
        ),
        Attribute(
            "previous",
            "previous",
            _read_hash,
            _write_hash,
            f"sha256:{'0123456789abcdef' * 4}",
            "Hash of the secret that a rotation replaced.",
            by_rotation=True,
        ),
        Attribute(
            "previous_until",
            "previous_until",
            _read_expires,
            expires_text,
            "2027-06-30T12:00:00Z",
            "Until when that secret is valid too.",
            by_rotation=True,
        ),
    )
}
"""Each attribute that takes a value, by name, in the order in which a line is written. ``disabled`` is a bare word."""

GROUP_ATTRIBUTES: dict[str, Attribute] = {
    name: ATTRIBUTES[name] for name in ("rpm", "tpm", "max_parallel", "budget", "note")
}
"""Those of a group."""
