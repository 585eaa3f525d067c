"""Some top-level members of a JSON object (RFC 8259) that comes in pieces, without holding the object.

What is read here decides what a key may do, and an upstream reads the same bytes with a parser of its own. So the whole
of it must be JSON, at every depth, and whatever two parsers might take differently is a fault or is reported: a name
that comes twice, a byte order mark, other encodings than UTF-8. One thing passes: half of a surrogate pair in a value
that nobody reads, since JavaScript writes such where a text was cut, and parsers that keep, replace or refuse it agree
on all else.

What an upstream answers decides nothing, and the client has read it whatever it is. It may repeat what its client made
up: schemas, numbers of any length. So there only its brackets and strings must hold; all else that is not wanted is
passed over, and a wanted value that is no JSON is not known.

A string of megabytes costs some 1 ns a byte. Lists are handed to orjson, as many whole elements at once as have come;
anything else costs some microseconds a member.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from flowstack.usage.inner import (
    BODY,
    FREE,
    MAX_NAME,
    PLAIN,
    REQUEST,
    Fault,
    Inner,
    Kind,
    Long,
    inherited,
    kind_of,
    role_of_member,
    texts_in,
    within,
)

MAX_VALUE: Final = 64 * 1024
"""Bytes of one value that are kept, and the most that a member's name may have."""

MAX_DEPTH: Final = 1024
"""Levels of nesting, the object itself included: orjson's own limit."""

MAX_DEPTH_ANSWERED: Final = MAX_DEPTH + 256
"""The same of what an upstream answers: deeper than what a client may send, in whatever it is wrapped."""

_TRIES: Final = 8  # how often orjson is asked about one piece
_WORTH: Final = 512  # bytes of a list for which it is
_SHORT: Final = 64

_ITEM_TYPES: Final = (str, list, dict)
_AFTER_SCALAR = b",]} \t\n\r"
_PUNCTUATION = b"{}[]:,.;'/*-+#<&=_"
_CONTROLS = bytes(range(0x20))
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=\\"  # PHP escapes the slash
_skip_space = re.compile(rb"[ \t\n\r]*+").match
# Possessive: nothing is tried twice.
_skip_string = re.compile(rb'(?:[\x20\x21\x23-\x5b\x5d-\x7f\x80-\xff]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+').match
_escape = re.compile(rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})').match
_escape_begun = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?").fullmatch
_escaped_name = re.compile(rb"\\u00(?:3[0-9]|[4-7])").search
_skip_scalar = re.compile(rb"[0-9+\-.eEtrufalsn]*+").match
_skip_word = re.compile(rb"[0-9+\-.A-Za-z]*+").match
# All others are left to orjson, which knows what a float holds.
_plain_scalar = re.compile(
    rb"true|false|null|-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+\-]?[0-9]{1,2})?"
).fullmatch

_SPACE = rb"[ \t\n\r]*+"
_TEXT = rb'(?:[\x20\x21\x23-\x5b\x5d-\x7f\x80-\xff]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_NUMBER = rb"-?+(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,17}+)?+(?:[eE][+\-]?+[0-9]{1,2}+)?+"
# A member with its colon, and its value if that is no list and no object, with what follows it.
_member = re.compile(
    rb'%b"([\x20\x21\x23-\x5b\x5d-\x7f\x80-\xff]{0,64}+)"%b:%b(?:(?:"(%b)"|%b|true|false|null)%b([,}])|([\[{]))'
    % (_SPACE, _SPACE, _SPACE, _TEXT, _NUMBER, _SPACE)
).match

_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = b'"\\,:{}[]'
_SCALARS = b"-0123456789tfn"
_ITEMS = b'"[{'
_ENDS = {_OPEN: b"},", _OPEN_LIST: b"],", _QUOTE: b'",'}  # of an element, by how it begins


SHAPES: Final = 256
"""Of how many objects the members' names are remembered, each of at most :data:`SHAPE` members with names of at most
:data:`SHAPE_SIZE` characters together."""

SHAPE, SHAPE_SIZE = 64, 1024

_NONE_NOTED: Final[dict[str, list[str | Long | None]]] = {}


class Shape(NamedTuple):
    """What the names of an object's members say, with the types of their values.

    :ivar wanted: the wanted ones among them, or None where one of them needs a closer look.
    :ivar texts: how many names and texts there are, those in lists and objects apart.
    :ivar within: the names of lists and objects, with what holds in them.
    """

    wanted: tuple[str, ...] | None
    texts: int
    within: tuple[tuple[str, Kind], ...]


@dataclass(frozen=True)
class Names:
    """The members that are wanted. Made once, where the reader is set up.

    :ivar all: the names.
    :ivar inner: whether it matters what stands below the top level too, as in what a client sends.
    :ivar places: those of which only the spans are wanted; their values are neither kept nor parsed.
    :ivar answered: whether an upstream says it, where no more must be JSON than is wanted.
    :ivar shapes: by the names of all members of an object, and the types of their values: most clients send the same
        members again and again.
    """

    all: Set[str]
    inner: bool = False
    places: Set[str] = frozenset()
    answered: bool = False
    shapes: dict[tuple[tuple[str, ...], tuple[type, ...]], Shape] = field(default_factory=dict)

    @classmethod
    def of(
        cls, names: Iterable[str], inner: bool = False, places: Iterable[str] = (), answered: bool = False
    ) -> Names:
        """:raises ValueError: a name with other characters than ASCII letters, digits and ``_``. JSON has only one more
        way to write these, ``\\u00``, and :func:`hides_names` stands on that.
        """
        wanted = frozenset((*names, *places))
        for name in wanted:
            if not (name.isascii() and name.isidentifier()):
                raise ValueError(f"{name!r} is no plain name")
        return cls(wanted, inner, frozenset(places), answered)

    def shape(self, there: tuple[str, ...], types: tuple[type, ...]) -> Shape:
        """What the names of an object's members say, with their values' types; remembered for the next such object."""
        wanted: tuple[str, ...] | None = tuple([name for name in there if name in self.all])
        within: list[tuple[str, Kind]] = []
        for name, its in zip(there, types, strict=True):
            if name not in self.all and (_folded(name, self.all) or not kind_of(name).harmless):
                wanted = None
            if its is list or its is dict:
                role = role_of_member(name)
                if role is None:
                    wanted = None
                else:
                    within.append((name, role))
        shape = Shape(wanted, len(there) + types.count(str), tuple(within))
        if len(there) <= SHAPE and sum(map(len, there)) <= SHAPE_SIZE:
            if len(self.shapes) >= SHAPES:
                self.shapes.clear()
            self.shapes[there, types] = shape
        return shape


@dataclass
class Found:
    """What is known of the wanted members.

    :ivar values: by name; of a repeated one the last, as most parsers take it.
    :ivar repeated: the wanted names that came more than once, compared after unescaping; those too that came in other
        case: Go's ``encoding/json`` takes ``Model`` for ``model``.
    :ivar too_large: the wanted names whose last value was longer than the limit, or is no JSON and was answered, with
        the value's first byte, which says of what kind it is.
    :ivar items: how many texts, lists and objects are elements of wanted lists, where what is within matters.
    :ivar fault: why this is no JSON object, or None.
    """

    values: dict[str, Any] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    too_large: dict[str, int] = field(default_factory=dict)
    fault: str | None = None
    items: int = 0


class Members(Found):
    """Reads the wanted members of an object as its bytes come.

    :param names: which; :meth:`Names.of` beforehand saves the making.
    :param most: bytes of a value, or of any member's name, that are kept.
    :ivar inner: what stands below the top level, where the names say that it matters.
    :ivar size: bytes that came.
    :ivar closed: the offset of the object's closing brace, once it has come.
    :ivar spans: by wanted name the offsets of its name's opening quote, of its value's first byte, and of the byte
        after its value (-1 while that has not come); of a repeated one the last.
    """

    __slots__ = (
        "_answered",
        "_base",
        "_base64",
        "_cut",
        "_cut_escape",
        "_decoder",
        "_first",
        "_kept",
        "_kind",
        "_most",
        "_name",
        "_name_at",
        "_names",
        "_noted",
        "_open",
        "_places",
        "_roles",
        "_step",
        "_text_size",
        "_token",
        "_token_at",
        "_tries",
        "_value_at",
        "closed",
        "inner",
        "size",
        "spans",
    )  # fmt: skip

    def __init__(self, names: Names | Iterable[str], most: int = MAX_VALUE) -> None:
        super().__init__({}, set(), {})
        known = names if isinstance(names, Names) else Names.of(names)
        self._names = known.all
        self._places = known.places
        self._answered = known.answered
        self._most = most
        self._step: _Step = Members._begin
        self._open = bytearray()  # the brackets that are
        self._roles: list[Kind] = []  # what holds in each of them
        self._noted: dict[int, dict[str, list[str | Long | None]]] = {}  # by depth
        self._kind = PLAIN  # of the current member, or of the list
        self._decoder = getincrementaldecoder("utf-8")()
        self._cut = False  # whether the last piece ended within a character
        self._cut_escape = b""  # the escape within which it ended
        self._base = 0  # the offset of the current piece
        self._token_at = -1  # where in that piece the name, the number or the text begins that is to be kept, or -1
        self._token = bytearray()  # what earlier pieces had of it
        self._text_size = 0  # of a text's bytes
        self._base64 = True  # whether what is not kept of it may be base64
        self._tries = 0
        self._name: str | None = None  # of the top level's current member, where it is wanted
        self._name_at = 0
        self._first = 0
        self._value_at = -1  # where in the piece its value begins, or -1
        self._kept = bytearray()  # what earlier pieces had of it
        self.inner = Inner() if known.inner else None
        self.size = 0
        self.closed: int | None = None
        self.spans: dict[str, tuple[int, int, int]] = {}

    def feed(self, piece: bytes) -> None:
        """Read on. After a fault nothing more is read."""
        self._base = self.size
        self.size += len(piece)
        if self.fault is not None:
            return
        fault = None
        if self.inner is not None and (self._cut or not piece.isascii()):
            try:
                self._decoder.decode(piece)
                self._cut = bool(self._decoder.getstate()[0])
            except UnicodeDecodeError as error:
                fault = "it is no UTF-8"
                # What stands before is read, and a byte more, as it is where the rest comes in another piece.
                piece = piece[: max(0, error.start + 1 - len(error.object) + len(piece))]
        try:
            self._read(piece)
        except Fault as found:
            fault = str(found)
        if fault is not None:
            self.fault = fault
            self._kept = bytearray()
            self._token = bytearray()

    def finish(self) -> None:
        """The end has come."""
        if self.fault is None and self.closed is None:
            self.fault = "it is empty" if self._step is Members._begin else "it ends before the object is closed"

    def _read(self, piece: bytes) -> None:
        at, end = 0, len(piece)
        self._tries = _TRIES
        while at < end:
            at = self._step(self, piece, at)
        if self._token_at >= 0:
            if self._step is Members._in_text:
                self._measure(piece[self._token_at :])
            else:
                self._keep(piece[self._token_at :])
            self._token_at = 0
        if self._value_at >= 0:
            if self._too_long(end):
                self._drop()
            else:
                self._kept += piece[self._value_at :]
                self._value_at = 0

    # Each step takes the piece and an offset within it, and returns the offset at which the next step begins.

    def _begin(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at == len(piece):
            return at
        if piece[at] != _OPEN:
            what = "a byte order mark" if piece[at] == 0xEF else _shown(piece, at)
            raise Fault(f"found {what} where an object should begin")
        return self._opened(_OPEN, at, BODY)

    def _first_name(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        return self._close(piece, at) if at < len(piece) and piece[at] == _CLOSE else self._next_name(piece, at)

    def _next_name(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at == len(piece):
            return at
        if piece[at] != _QUOTE:
            raise Fault(f"found {_shown(piece, at)} where a member's name should begin")
        if len(self._open) == 1:
            self._name = None
            self._name_at = self._base + at
        elif (after := self._members(piece, at)) != at:
            return after
        elif self.inner is None:
            self._step = Members._past_name
            return at + 1
        self._token_at = at
        self._step = Members._in_name
        return at + 1

    def _members(self, piece: bytes, at: int) -> int:
        """Read whole members of an inner object, as many as can be read at a glance.

        :return: the offset at which the next step begins: as it was, where there are none.
        """
        inner, role = self.inner, self._roles[-1]
        refers = role.models or role.refers
        while (found := _member(piece, at)) is not None:
            name, text, mark, bracket = found.groups()
            if inner is not None and role is not FREE:
                kind = kind_of(name.decode())
                if refers:
                    kind = inherited(role, kind, False)
                self._kind = kind
                if kind.adds:
                    inner.context = True
                if kind is not PLAIN and (kind.models or kind.refers is not False or kind.noted):
                    if bracket is not None:
                        self._note(None)
                    elif text is None or len(text) > MAX_NAME or _BACKSLASH in text:
                        break
                    else:
                        self._said(text.decode())
            if bracket is not None:
                first = bracket[0]
                return self._opened(first, found.end() - 1, within(role, self._kind, first == _OPEN))
            at = found.end()
            if mark == b"}":
                return self._close(piece, at - 1)
            self._step = Members._next_name
        return at

    def _in_name(self, piece: bytes, at: int) -> int:
        at = self._string_end(piece, at)
        if at < 0:
            return len(piece)
        self._step = Members._colon
        raw = self._kept_token(piece, at)
        name: str = raw[1:-1].decode() if _BACKSLASH not in raw and raw.isascii() else _parsed(raw, "a member's name")
        if len(self._open) == 1:
            if name in self._names:
                self._name = name
            elif other := _folded(name, self._names):
                self.repeated.add(other)
        if self.inner is not None:
            role = self._roles[-1]
            kind = PLAIN if role is FREE else kind_of(name)
            if kind.adds:
                self.inner.context = True
            self._kind = inherited(role, kind, False) if role.models or role.refers else kind
        return at

    def _past_name(self, piece: bytes, at: int) -> int:
        """One that does not matter."""
        at = self._string_end(piece, at)
        if at < 0:
            return len(piece)
        self._step = Members._colon
        return at

    def _colon(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            if piece[at] != _COLON:
                raise Fault(f"found {_shown(piece, at)} where a colon should be")
            self._step = Members._value
        return at + 1

    def _first_value(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        return self._close(piece, at) if at < len(piece) and piece[at] == _CLOSE_LIST else self._next_value(piece, at)

    def _next_value(self, piece: bytes, at: int) -> int:
        """An element of a list."""
        at = _after_space(piece, at)
        if len(piece) - at >= _WORTH and (after := self._elements(piece, at)):
            self._step = Members._next_value
            return after
        return self._value(piece, at)

    def _value(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at == len(piece):
            return at
        first = piece[at]
        kind = self._kind
        if self._name is not None and len(self._open) == 1:
            self._begun(self._name, at, first)
            looked_at = False
        else:
            if self._name is not None and first in _ITEMS and len(self._open) == 2:
                self.items += 1
            looked_at = kind.models or kind.refers is not False or kind.noted
        if first == _QUOTE:
            if looked_at:
                self._token_at = at + 1
                self._text_size = 0
                self._base64 = True
            self._step = Members._in_text
            return at + 1
        if first in (_OPEN, _OPEN_LIST):
            if looked_at:
                self._note(None)
            return self._opened(first, at, within(self._roles[-1], kind, first == _OPEN))
        if self._answered:
            if _end(_skip_word(piece, at)) == at:
                raise Fault(f"found {_shown(piece, at)} where a value should be")
            self._step = Members._word
            return self._word(piece, at)
        if first not in _SCALARS:
            raise Fault(f"found {_shown(piece, at)} where a value should be")
        self._token_at = at
        self._step = Members._scalar
        return self._scalar(piece, at)

    def _in_text(self, piece: bytes, at: int) -> int:
        at = self._string_end(piece, at)
        if at < 0:
            return len(piece)
        if self._token_at >= 0:
            self._measure(piece[self._token_at : at - 1])
            self._said(self._measured())
        return self._ended(piece, at)

    def _scalar(self, piece: bytes, at: int) -> int:
        at = _end(_skip_scalar(piece, at))
        if at == len(piece):
            return at
        if piece[at] not in _AFTER_SCALAR:
            raise Fault(f"found {_shown(piece, at)} where a value should be")
        raw = self._kept_token(piece, at)
        if not _plain_scalar(raw):
            _parsed(raw, "a value")
        kind = self._kind
        if kind is not PLAIN and (self._name is None or len(self._open) > 1):
            if raw[0] in b"tfn":
                self._note(None)
            elif kind.models or kind.refers is not False or kind.noted:
                self._said(raw.decode())
        return self._ended(piece, at)

    def _word(self, piece: bytes, at: int) -> int:
        """Of an answer: a number or a name, whatever it says."""
        at = _end(_skip_word(piece, at))
        return at if at == len(piece) else self._ended(piece, at)

    def _after(self, piece: bytes, at: int) -> int:
        """After a value."""
        at = _after_space(piece, at)
        if at == len(piece):
            return at
        byte, bracket = piece[at], self._open[-1]
        if byte == _COMMA:
            if bracket == _OPEN:
                self._step = Members._next_name
            else:
                self._kind = self._roles[-1]
                self._step = Members._next_value
            return at + 1
        if byte != bracket + 2:  # in ASCII each is two after its opener
            raise Fault(f"found {_shown(piece, at)} where a comma should be")
        return self._close(piece, at)

    def _after_object(self, piece: bytes, at: int) -> int:
        at = _after_space(piece, at)
        if at < len(piece):
            raise Fault(f"found {_shown(piece, at)} after the object's end")
        return at

    # What the steps share.

    def _opened(self, bracket: int, at: int, role: Kind) -> int:
        """A list or an object begins.

        :param role: what holds in it.
        """
        if len(self._open) >= MAX_DEPTH:
            most = MAX_DEPTH_ANSWERED if self._answered else MAX_DEPTH
            if len(self._open) == most:
                raise Fault(f"it is nested more than {most} levels deep")
        self._open.append(bracket)
        self._roles.append(role)
        self._kind = role
        self._step = Members._first_name if bracket == _OPEN else Members._first_value
        return at + 1

    def _close(self, piece: bytes, at: int) -> int:
        role = self._roles.pop()
        noted = self._noted.pop(len(self._open), _NONE_NOTED)
        if self.inner is not None and (noted is not _NONE_NOTED or role.name == REQUEST):
            self.inner.ended(role, noted)
        del self._open[-1]
        if self._open:
            return self._ended(piece, at + 1)
        self.closed = self._base + at
        self._step = Members._after_object
        return at + 1

    def _elements(self, piece: bytes, at: int) -> int:
        """Read whole elements of a list, as many as have come, where nothing in them needs a closer look.

        What is a list within brackets of its own is one too where it stands, and nothing of it is open at its end.

        :return: the offset after their last comma, or 0.
        """
        role, end = self._roles[-1], min(len(piece), at + MAX_VALUE)
        mark = _ENDS.get(piece[at], b",")
        depth = len(self._open)
        while self._tries and depth < MAX_DEPTH and not (role.models or role.refers or role.refers is None):
            self._tries -= 1
            end = piece.rfind(mark, at, end) + len(mark) - 1
            if end - at < _WORTH:
                break
            elements = piece[at:end]
            try:
                found = orjson.loads(b"[" + elements + b"]")
                if elements.count(b"[") + elements.count(b"{") + depth > MAX_DEPTH:
                    orjson.loads(b"[" * depth + elements + b"]" * depth)
            except orjson.JSONDecodeError:
                continue
            if self.inner is None:
                return end + 1
            if role is not FREE and 2 * texts_in(found, role, 32) != _quotes(elements):
                break
            if self._name is not None and depth == 2:
                self.items += items_of(found)
            return end + 1
        return 0

    def _string_end(self, piece: bytes, at: int) -> int:
        """The offset after the quote that closes the string, or -1 where the piece ends first.

        :raises Fault: it holds what no string may.
        """
        if self._cut_escape:
            joined = self._cut_escape + piece[at : at + 6 - len(self._cut_escape)]
            found = _escape(joined)
            if found is None:
                return self._cut_in(joined)
            at += found.end() - len(self._cut_escape)
            self._cut_escape = b""
        quote = piece.find(b'"', at)
        last = quote if quote >= 0 else len(piece)
        if last - at > _SHORT and piece.find(b"\\", at, last) < 0:
            inside = piece[at:last]
            if len(inside.translate(None, _CONTROLS)) == len(inside):
                return quote + 1 if quote >= 0 else -1
        last = _end(_skip_string(piece, at))
        if last == len(piece):
            return -1
        if piece[last] == _QUOTE:
            return last + 1
        if piece[last] != _BACKSLASH:
            raise Fault(f"found {_shown(piece, last)} within a string")
        return self._cut_in(piece[last : last + 6])

    def _cut_in(self, begun: bytes) -> int:
        """A string goes on with no whole escape.

        :param begun: up to the piece's end; six bytes of it, where there are more.
        """
        if not _escape_begun(begun):
            raise Fault("a string in it has an escape that is none")
        self._cut_escape = begun
        return -1

    def _keep(self, raw: bytes) -> None:
        """Keep what the piece has of a name or a number."""
        if len(self._token) + len(raw) > self._most:
            raise Fault(f"a name or a number in it is longer than {self._most} bytes")
        self._token += raw

    def _kept_token(self, piece: bytes, at: int) -> bytes:
        """The name or the number that ended."""
        raw = piece[self._token_at : at]
        self._token_at = -1
        if self._token or len(raw) > self._most:
            self._keep(raw)
            raw = bytes(self._token)
            self._token = bytearray()
        return raw

    def _measure(self, inside: bytes) -> None:
        """Keep the head of a text, and see what the rest may be."""
        room = MAX_NAME - len(self._token)
        self._text_size += len(inside)
        self._token += inside[:room]
        if self._base64 and len(inside) > room and inside[room:].translate(None, _BASE64):
            self._base64 = False

    def _measured(self) -> str | Long:
        """The text that ended."""
        head = bytes(self._token)
        self._token = bytearray()
        self._token_at = -1
        if self._text_size <= MAX_NAME:
            text: str = _parsed(b'"' + head + b'"', "a value")
            return text
        _, comma, rest = head.partition(b",")
        base64 = self._base64 and not (rest if comma else head).translate(None, _BASE64)
        return Long(head.decode(errors="replace").replace("\\/", "/"), self._text_size, base64)

    def _said(self, text: str | Long) -> None:
        """A text, or a number, that is looked at."""
        kind = self._kind
        assert self.inner is not None
        self.inner.said(kind, text)
        self._note(text)

    def _note(self, value: str | Long | None) -> None:
        """Keep what its object's end needs."""
        if self._kind.noted and self._open[-1] == _OPEN:
            values = self._noted.setdefault(len(self._open), {}).setdefault(self._kind.name, [])
            if len(values) < 2:
                values.append(value)

    def _begun(self, name: str, at: int, first: int) -> None:
        """A wanted value begins."""
        if name in self.spans:
            self.repeated.add(name)
            self.values.pop(name, None)
            self.too_large.pop(name, None)
        self.spans[name] = (self._name_at, self._base + at, -1)
        self._first = first
        self._value_at = -1 if name in self._places else at

    def _ended(self, piece: bytes, at: int) -> int:
        """A value ended."""
        self._step = Members._after
        name = self._name
        if name is not None and len(self._open) == 1:
            name_at, value_at, _ = self.spans[name]
            self.spans[name] = (name_at, value_at, self._base + at)
            if self._value_at >= 0:
                if self._too_long(at):
                    self._drop()
                else:
                    raw = bytes(self._kept) + piece[self._value_at : at]
                    self._kept = bytearray()
                    self._value_at = -1
                    try:
                        self.values[name] = value = _parsed(raw, f"the value of {name}")
                    except Fault:
                        if not self._answered:
                            raise
                        self.too_large[name] = self._first
                        return at
                    if self.inner is not None and type(value) is dict and 2 * texts_in(value, FREE, 32) != _quotes(raw):
                        self.repeated.add(name)  # something in it comes twice, or lies too deep to tell
        return at

    def _too_long(self, at: int) -> bool:
        return len(self._kept) + at - self._value_at > self._most

    def _drop(self) -> None:
        """The value that is kept is too long."""
        assert self._name is not None
        self.too_large[self._name] = self._first
        self._kept = bytearray()
        self._value_at = -1


class NestedMembers:
    """Reads the wanted members of an object, and of those within it on a way of names, without holding any of them.

    What follows an object on the way is not read in those around it.

    :param names: wanted of the outermost.
    :param way: the name of each further object, and what is wanted of it.
    :ivar levels: the objects that have begun to come, the outermost first.
    """

    __slots__ = ("_most", "_way", "levels")

    def __init__(self, names: Names, way: Iterable[tuple[str, Names]] = (), most: int = MAX_VALUE) -> None:
        self._most = most
        self._way = list(way)
        self.levels = [Members(names, most)]

    @property
    def complete(self) -> bool:
        """Whether the innermost object has come as a whole."""
        return not self._way and self.levels[-1].closed is not None

    def feed(self, fragment: bytes) -> None:
        """Read on."""
        members = self.levels[-1]
        if members.closed is not None:
            return
        before = members.size
        members.feed(fragment)
        if self._way and (span := members.spans.get(self._way[0][0])) is not None:
            self.levels.append(Members(self._way.pop(0)[1], self._most))
            self.feed(fragment[max(span[1] - before, 0) :])


def _parsed(raw: bytes, what: str) -> Any:
    """What a name or a value says.

    :raises Fault: it is none that all parsers read alike.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise Fault(f"{what} is no JSON: {fault.msg}") from None


def _folded(name: str, wanted: Set[str]) -> str | None:
    """The wanted name that a parser which folds case takes this other one for, or None."""
    folded = name.casefold()
    return folded if folded in wanted and name not in wanted else None


def items_of(elements: list[Any]) -> int:
    """How many texts, lists and objects are among a list's elements."""
    return sum(type(element) in _ITEM_TYPES for element in elements)


def hides_names(body: bytes) -> bool:
    """Whether a plain name may stand in the body in another way than letter by letter."""
    # Bytes are looked for by find: ``in`` takes them for a number first, which costs an exception.
    return _BACKSLASH in body and body.find(b"\\u00") >= 0 and _escaped_name(body) is not None


def plain_members(body: bytes, names: Names, most: int = MAX_VALUE) -> dict[str, Any] | None:
    """The wanted members of a whole body, or None where it has to be read with more care, by :class:`Members`.

    Takes some 2 µs more than orjson for a short chat where an object with the same members came before.
    """
    if len(body) > most:
        return None
    try:
        whole = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(whole) is not dict:
        return None
    there, types = tuple(whole), tuple(map(type, whole.values()))
    wanted, texts, within = names.shapes.get((there, types)) or names.shape(there, types)
    if wanted is None:
        return None
    for name, role in within:
        found = texts_in(whole[name], role, 32)
        if found < 0:
            return None
        texts += found
    # Of a name that comes twice orjson shows the last alone, and what the others hold is hidden.
    if 2 * texts != (_quotes(body) if _BACKSLASH in body else body.count(b'"')):
        return None
    return {name: whole[name] for name in wanted}


def _quotes(body: bytes) -> int:
    """How many quotes in JSON begin or end a string."""
    return body.count(b'"') - body.replace(b"\\\\", b"").count(b'\\"')


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
