"""What is wrong with a configuration, in words that an operator can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from flowstack.errors import ParseError

_CREDENTIAL = re.compile(r"(?i)\b(?:f?sk|pk)-|\b(?:bearer|basic)\s|(?://|:)[^/\s]*@|-----BEGIN")
"""What pasted credentials look like: provider and Flowstack keys, header values, userinfo, PEM."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 100


class ConfigError(Exception):
    """The configuration cannot be used. ``str()`` gives one line for each of its faults.

    :ivar faults: all of them, in the order of the file, flags and what concerns several keys last.
    :ivar keys: the keystore file that a start would read, so that its faults can be told too; None where that is not
        known.
    """

    def __init__(self, faults: Iterable[ParseError], keys: Path | None = None) -> None:
        self.faults = tuple(faults)
        self.keys = keys
        super().__init__("\n".join(map(str, self.faults)))


def shown(value: object) -> str:
    """A TOML value for a message: on one line, of bounded length, and hidden where it looks like a credential."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list():
            return "an array"
        case int() if value.bit_length() > 128:  # repr() of thousands of digits raises
            return "a very large number"
        case str():
            return unless_secret(value, repr(value if len(value) <= _LONGEST else value[:_LONGEST] + "…"))
    return str(value)


def looks_secret(text: str) -> bool:
    """Whether *text* looks like a credential."""
    return _CREDENTIAL.search(text) is not None


def unless_secret(text: str, told: str) -> str:
    """What is told of *text*, unless that looks like a credential."""
    return "what may hold a credential (hidden)" if looks_secret(text) else told


def key_name(key: str) -> str:
    """A table's or key's name as TOML writes it, safe to print."""
    return key if _BARE_KEY.fullmatch(key) and len(key) <= _LONGEST and not _CREDENTIAL.search(key) else shown(key)


def one_of(known: Iterable[str], typed: str = "") -> str:
    """The words to choose from, and the one that was probably meant."""
    words = list(known)
    close = get_close_matches(typed, words, n=1)
    choice = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    return f"{choice} (did you mean {close[0]}?)" if close else choice
