"""What of a value may be shown in a message: no credential, one line, bounded length."""

from __future__ import annotations

import re

MAX_SHOWN = 100
"""Characters of a text."""

_CREDENTIAL = re.compile(r"(?i)\b(?:f?sk|pk)-|\b(?:bearer|basic)\s|(?://|:)[^/\s]*@|-----BEGIN")
"""What pasted credentials look like: provider and Flowstack keys, header values, userinfo, PEM."""


def shown(value: object) -> str:
    """Show a value that was read, in TOML or JSON, in a message: on one line, cut at :data:`MAX_SHOWN`, and redacted if
    it looks like a credential."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list():
            return "an array"
        case int() if value.bit_length() > 128:  # repr() of thousands of digits raises
            return "a very large number"
        case str():
            return unless_secret(value, repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…"))
    return str(value)


def looks_secret(text: str) -> bool:
    """Whether *text* looks like a credential."""
    return _CREDENTIAL.search(text) is not None


def unless_secret(text: str, told: str) -> str:
    """What is told of *text*, unless that looks like a credential."""
    return "what may hold a credential (redacted)" if looks_secret(text) else told


def visible(text: str, keep: str = "") -> str:
    """Escape what would move the cursor, change colours, turn the text's direction or hide: for a terminal.

    :param keep: characters that stay nevertheless.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
