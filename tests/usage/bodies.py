"""Bodies for the readers: JSON written in every way that it may be, and how to cut anything in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from hypothesis import strategies as st

WANTED = ("model", "stream", "n", "prompt")

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [*WANTED, '"model":"x"', "\\", '\\"', "}", "{", "],", "\\u006d", "é", "😀", "x" * 100]
)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**63) | st.floats(-1e300, 1e300) | _TEXT
VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(_TEXT, inner), max_size=4).map(dict)
)
NAMES = st.sampled_from([*WANTED, *WANTED, "Model", "N", "\u017ftream"]) | _TEXT
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
"""An object's members; a name may come twice."""


@st.composite
def written(draw: Any, pairs: st.SearchStrategy[list[tuple[str, Any]]] = PAIRS) -> bytes:
    """An object as some client writes it: any white space, any escape."""
    # How it is spelled comes from one seed: a draw for each blank takes longer than all that reads the body.
    spelling = draw(st.randoms(use_true_random=True))
    return _space(spelling) + _object(spelling, draw(pairs)) + _space(spelling)


def _space(spelling: Random) -> bytes:
    return spelling.choice([b"", b"", b"", b" ", b"\n", b"\t \r\n"])


def _object(spelling: Random, pairs: Iterable[tuple[str, Any]]) -> bytes:
    members = [
        _spaced(spelling, _string(spelling, name)) + b":" + _spaced(spelling, _value(spelling, value))
        for name, value in pairs
    ]
    return b"{" + (b",".join(members) or _space(spelling)) + b"}"


def _value(spelling: Random, value: Any) -> bytes:
    if isinstance(value, str):
        return _string(spelling, value)
    if isinstance(value, dict):
        return _object(spelling, value.items())
    if isinstance(value, list):
        return b"[" + b",".join(_spaced(spelling, _value(spelling, item)) for item in value) + b"]"
    return json.dumps(value).encode()


def _spaced(spelling: Random, text: bytes) -> bytes:
    return _space(spelling) + text + _space(spelling)


def _string(spelling: Random, text: str) -> bytes:
    way = spelling.choice(["plain", "ascii", "escaped"])
    if way == "escaped":
        units = text.encode("utf-16-be")
        return b'"' + b"".join(b"\\u%02x%02X" % (units[i], units[i + 1]) for i in range(0, len(units), 2)) + b'"'
    return json.dumps(text, ensure_ascii=way == "ascii").encode()


@st.composite
def pieces_of(draw: Any, body: bytes) -> list[bytes]:
    """The body in up to six pieces, some of them perhaps empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=5)))
    return [body[i:j] for i, j in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def splits(body: bytes) -> Iterator[list[bytes]]:
    """Whole, cut in two at every byte, and byte by byte."""
    yield [body]
    for at in range(1, len(body)):
        yield [body[:at], body[at:]]
    yield [body[i : i + 1] for i in range(len(body))]
