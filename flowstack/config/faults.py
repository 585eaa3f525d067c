"""What is wrong with a configuration, in words that an operator can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from flowstack.errors import ParseError
from flowstack.redact import MAX_SHOWN, looks_secret, shown

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


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


def key_name(key: str) -> str:
    """A table's or key's name as TOML writes it, safe to print."""
    return key if _BARE_KEY.fullmatch(key) and len(key) <= MAX_SHOWN and not looks_secret(key) else shown(key)


def one_of(known: Iterable[str], typed: str = "") -> str:
    """The words to choose from, and the one that was probably meant."""
    words = list(known)
    close = get_close_matches(typed, words, n=1)
    choice = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    return f"{choice} (did you mean {close[0]}?)" if close else choice
