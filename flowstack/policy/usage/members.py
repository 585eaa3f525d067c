"""Some top-level members of a JSON object (RFC 8259) that comes in pieces, without holding the object.

What is read here decides what a key may do, and an upstream reads the same bytes with a parser of its own. So whatever
two parsers might take differently is a fault or is reported: a name that comes twice, a byte order mark, white space,
quotes and comments that are not JSON's, other encodings than UTF-8. Values that nobody asked for are not validated
beyond that: outside of strings they hold nothing but the characters of JSON's numbers, literals and punctuation, and
their brackets match.

Strings are skipped by ``find``: an image of some megabytes costs microseconds. The rest costs a regular expression's
2 ns a byte, and 0.2 µs a bracket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, Final

import orjson
from attrs import define, field, frozen

MOST: Final = 64 * 1024
"""Bytes of one value that are kept, and the most that a member's name may have."""

DEEPEST: Final = 1024
"""Levels of nesting, the object itself included: orjson's own limit."""

_AFTER_SCALAR = b",} \t\n\r"
_PUNCTUATION = b"{}[]:,.;'/*-+#<&=_"
_skip_space = re.compile(rb"[ \t\n\r]*+").match
# Scalars and short strings between two brackets. Possessive: nothing is tried twice.
_skip_plain = re.compile(rb'(?:[ \t\n\r0-9+\-.,:eEtrufalsn]++|"[^"\\]{0,63}+")*+').match
_skip_escaped = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL).match
_escaped_name = re.compile(rb"\\u00(?:3[0-9]|[4-7])").search
_skip_scalar = re.compile(rb"[0-9+\-.eEtrufalsn]*+").match

_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = b'"\\,:{}[]'


SHAPES: Final = 256
"""Of how many objects the members' names are remembered, each of at most :data:`SHAPE` members with names of at most
:data:`SHAPE_SIZE` characters together."""

SHAPE, SHAPE_SIZE = 64, 1024

_NOTHING: Set[str] = frozenset()
_NO_SIZES: Mapping[str, int] = MappingProxyType({})


class _Fault(Exception):
    """Why the bytes are no JSON object."""


@frozen(slots=True)
class Names:
    """The members that are wanted. Made once, where the reader is set up.

    :ivar quoted: the names, ASCII letters, digits and ``_`` only, as they stand in JSON, where they can be written
        otherwise only by ``\\u``.
    :ivar shapes: by the names of all members of an object, the wanted ones among them, quoted too: most clients send
        the same members again and again.
    """

    quoted: Mapping[str, bytes]
    shapes: dict[tuple[str, ...], tuple[tuple[str, bytes], ...]] = field(factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """:raises ValueError: a name with other characters than ASCII letters, digits and ``_``. JSON has only one more
        way to write these, ``\\u00``, and :func:`plain_members` stands on that.
        """
        for name in names:
            if not (name.isascii() and name.isidentifier()):
                raise ValueError(f"{name!r} is no plain name")
        return cls({name: b'"' + name.encode() + b'"' for name in names})

    def wanted(self, there: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
        """The wanted ones among the names of an object's members; remembered for the next such object."""
        wanted = tuple([(name, self.quoted[name]) for name in there if name in self.quoted])
        if len(there) <= SHAPE and sum(map(len, there)) <= SHAPE_SIZE:
            if len(self.shapes) >= SHAPES:
                self.shapes.clear()
            self.shapes[there] = wanted
        return wanted


@define(slots=True)
class Found:
    """What is known of the wanted members.

    :ivar values: by name; of a repeated one the last, as most parsers take it.
    :ivar repeated: the wanted names that came more than once, compared after unescaping; those too that came in other
        case: Go's ``encoding/json`` takes ``Model`` for ``model``.
    :ivar too_large: the wanted names whose last value was longer than the limit, with the value's first byte, which
        says of what kind it is.
    :ivar fault: why this is no JSON object, or None.
    """

    values: dict[str, Any] = field(factory=dict)
    repeated: Set[str] = _NOTHING
    too_large: Mapping[str, int] = _NO_SIZES
    fault: str | None = None


class Members(Found):
    """Reads the wanted members of an object as its bytes come.

    :param names: which; :meth:`Names.of` beforehand saves the making.
    :param most: bytes of a value, or of any member's name, that are kept.
    :ivar size: bytes that came.
    :ivar closed: the offset of the object's closing brace, once it has come.
    :ivar spans: by wanted name the offsets of its name's opening quote, of its value's first byte, and of the byte
        after its value (-1 while that has not come); of a repeated one the last.
    """

    __slots__ = ("_base", "_capture", "_escaped", "_first", "_kept", "_most", "_name", "_name_at", "_quoted", "_stack",
                 "_step", "closed", "size", "spans")  # fmt: skip

    repeated: set[str]
    too_large: dict[str, int]

    def __init__(self, names: Names | Iterable[str], most: int = MOST) -> None:
        super().__init__({}, set(), {})
        self._quoted = (names if isinstance(names, Names) else Names.of(names)).quoted
        self._most = most
        self._step: _Step = Members._begin
        self._stack = bytearray()  # brackets that are open within a value
        self._escaped = False  # whether the last piece ended right after a backslash that escapes
        self._base = 0  # the offset of the piece at hand
        self._capture = -1  # where in that piece the token begins that is to be kept, or -1
        self._kept = bytearray()  # what earlier pieces had of it
        self._name: str | None = None  # of the member at hand, where it is wanted
        self._name_at = 0
        self._first = 0
        self.size = 0
        self.closed: int | None = None
        self.spans: dict[str, tuple[int, int, int]] = {}

    def feed(self, piece: bytes) -> None:
        """Read on. After a fault nothing more is read."""
        end = len(piece)
        self._base = self.size
        self.size += end
        if self.fault is not None:
            return
        at = 0
        try:
            while at < end:
                at = self._step(self, piece, at)
            if self._capture >= 0:
                if self._too_long(end):
                    self._drop()
                else:
                    self._kept += piece[self._capture :]
                    self._capture = 0
        except _Fault as fault:
            self.fault = str(fault)
            self._kept = bytearray()

    def finish(self) -> None:
        """The end has come."""
        if self.fault is None and self.closed is None:
            self.fault = "it is empty" if self._step is Members._begin else "it ends before the object is closed"

    # Each step takes the piece and an offset within it, and returns the offset at which the next step begins.

    def _begin(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            if piece[at] != _OPEN:
                what = "a byte order mark" if piece[at] == 0xEF else _shown(piece, at)
                raise _Fault(f"found {what} where an object should begin")
            self._step = Members._first_name
        return at + 1

    def _first_name(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        return self._close(at) if at < len(piece) and piece[at] == _CLOSE else self._next_name(piece, at)

    def _next_name(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            if piece[at] != _QUOTE:
                raise _Fault(f"found {_shown(piece, at)} where a member's name should begin")
            self._name = None
            self._name_at = self._base + at
            self._capture = at
            self._step = Members._in_name
        return at + 1

    def _in_name(self, piece: bytes, at: int) -> int:
        at = self._string_end(piece, at)
        if at < 0:
            return len(piece)
        name = self._token(piece, at)
        if name in self._quoted:
            self._name = name
        elif other := _folded(name, self._quoted):
            self.repeated.add(other)
        self._step = Members._colon
        return at

    def _colon(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            if piece[at] != _COLON:
                raise _Fault(f"found {_shown(piece, at)} where a colon should be")
            self._step = Members._value
        return at + 1

    def _value(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at == len(piece):
            return at
        first = piece[at]
        if self._name is not None:
            self._begun(self._name, at, first)
        if first == _QUOTE:
            self._step = Members._in_string
        elif first in (_OPEN, _OPEN_LIST):
            self._stack.append(first)
            self._step = Members._nested
        else:
            self._capture = at
            self._step = Members._scalar
            return self._scalar(piece, at)
        return at + 1

    def _in_string(self, piece: bytes, at: int) -> int:
        at = self._string_end(piece, at)
        return len(piece) if at < 0 else self._ended(piece, at)

    def _nested(self, piece: bytes, at: int) -> int:
        stack, end = self._stack, len(piece)
        while (at := _end(_skip_plain(piece, at))) < end:
            byte = piece[at]
            at += 1
            if byte == _QUOTE:
                at = self._string_end(piece, at)
                if at < 0:
                    self._step = Members._nested_string
                    break
            elif byte in (_OPEN, _OPEN_LIST):
                stack.append(byte)
                if len(stack) == DEEPEST:
                    raise _Fault(f"it is nested more than {DEEPEST} levels deep")
            elif byte in (_CLOSE, _CLOSE_LIST) and stack.pop() == byte - 2:  # in ASCII each is two after its opener
                if not stack:
                    return self._ended(piece, at)
            else:
                raise _Fault(f"found {_shown(piece, at - 1)} within a value")
        return end

    def _nested_string(self, piece: bytes, at: int) -> int:
        at = self._string_end(piece, at)
        if at < 0:
            return len(piece)
        self._step = Members._nested
        return at

    def _scalar(self, piece: bytes, at: int) -> int:
        at = _end(_skip_scalar(piece, at))
        if at == len(piece):
            return at
        if piece[at] not in _AFTER_SCALAR:
            raise _Fault(f"found {_shown(piece, at)} where a value should be")
        return self._ended(piece, at)

    def _after_value(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            if piece[at] == _CLOSE:
                return self._close(at)
            if piece[at] != _COMMA:
                raise _Fault(f"found {_shown(piece, at)} where a comma should be")
            self._step = Members._next_name
        return at + 1

    def _after_object(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            raise _Fault(f"found {_shown(piece, at)} after the object's end")
        return at

    # What the steps share.

    def _close(self, at: int) -> int:
        self.closed = self._base + at
        self._step = Members._after_object
        return at + 1

    def _string_end(self, piece: bytes, at: int) -> int:
        """The offset after the quote that closes the string, or -1 where the piece ends first."""
        if self._escaped:
            at += 1
            self._escaped = False
        quote = piece.find(b'"', at)
        last = quote if quote >= 0 else len(piece)
        if last > at and piece[last - 1] == _BACKSLASH:  # the quote, or what comes next, may be escaped
            last = _end(_skip_escaped(piece, at))
            self._escaped = last < len(piece) and piece[last] == _BACKSLASH
            quote = -1 if self._escaped or last == len(piece) else last
        return quote + 1 if quote >= 0 else -1

    def _begun(self, name: str, at: int, first: int) -> None:
        """A wanted value begins."""
        if name in self.spans:
            self.repeated.add(name)
            self.values.pop(name, None)
            self.too_large.pop(name, None)
        self.spans[name] = (self._name_at, self._base + at, -1)
        self._first = first
        self._capture = at

    def _ended(self, piece: bytes, at: int) -> int:
        """A value ended."""
        self._step = Members._after_value
        name = self._name
        if name is not None:
            name_at, value_at, _ = self.spans[name]
            self.spans[name] = (name_at, value_at, self._base + at)
        if self._capture >= 0:
            if self._too_long(at):
                self._drop()
            else:
                value = self._token(piece, at)
                if name is not None:
                    self.values[name] = value
        return at

    def _too_long(self, at: int) -> bool:
        return len(self._kept) + at - self._capture > self._most

    def _drop(self) -> None:
        """The token that is kept is too long."""
        if self._name is None or self._first not in b'"[{':
            raise _Fault(f"a name or a number in it is longer than {self._most} bytes")
        self.too_large[self._name] = self._first
        self._kept = bytearray()
        self._capture = -1

    def _token(self, piece: bytes, at: int) -> Any:
        """What the token that was kept says."""
        raw = piece[self._capture : at]
        if self._kept:
            raw = bytes(self._kept + raw)
            self._kept = bytearray()
        self._capture = -1
        if len(raw) > self._most:
            self._drop()
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as fault:
            other = "a member's name" if self._step is Members._in_name else "a value"
            what = other if self._name is None else f"the value of {self._name}"
            raise _Fault(f"{what} is no JSON: {fault.msg}") from None


def _folded(name: str, wanted: Mapping[str, bytes]) -> str | None:
    """The wanted name that a parser which folds case takes this other one for, or None."""
    folded = name.casefold()
    return folded if folded in wanted and name not in wanted else None


def hides_names(body: bytes) -> bool:
    """Whether a plain name may stand in the body in another way than letter by letter."""
    # Bytes are looked for by find: ``in`` takes them for a number first, which costs an exception.
    return _BACKSLASH in body and body.find(b"\\u00") >= 0 and _escaped_name(body) is not None


def plain_members(body: bytes, names: Names, most: int = MOST) -> dict[str, Any] | None:
    """The wanted members of a whole body, or None where it has to be read with more care, by :class:`Members`.

    Costs half a microsecond beside orjson's own time where an object with the same members came before, and 0.2 µs for
    each wanted member that is there.
    """
    if len(body) > most or (_BACKSLASH in body and hides_names(body)):
        return None
    try:
        whole = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(whole) is not dict:
        return None
    there = tuple(whole)
    wanted = names.shapes.get(there)
    if wanted is None:
        for name in there:
            if not (name.isascii() and name.islower()) and _folded(name, names.quoted):
                return None
        wanted = names.wanted(there)
    values = {}
    for name, quoted in wanted:
        # No escape in the body can stand for a letter of the name: each time, it is written just so.
        if body.count(quoted) > 1:
            return None
        values[name] = whole[name]
    return values


_Step = Callable[[Members, bytes, int], int]


def _end(found: re.Match[bytes] | None) -> int:
    assert found is not None  # these expressions match the empty string too
    return found.end()


def _after_space(piece: bytes, at: int) -> int:
    return at if at < len(piece) and piece[at] > 0x20 else _end(_skip_space(piece, at))


def _shown(piece: bytes, at: int) -> str:
    """A byte for a person: never more of a body than that."""
    byte = piece[at : at + 1]
    plain = byte in _PUNCTUATION or (byte.isascii() and byte.isalnum())
    return repr(byte.decode()) if plain else f"byte 0x{piece[at]:02x}"
