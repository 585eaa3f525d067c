"""Meters: they are shown an answer as it passes, and say in the end what it used.

A meter never raises and never changes a byte; what it cannot read it does not know. It holds no more than
:data:`MOST_HELD` bytes of an answer, however large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from flowstack.memo import Memo
from flowstack.policy.operations import Operation
from flowstack.policy.usage.answers import MEMBERS, take_answer, take_message
from flowstack.policy.usage.codings import Decoder, codings_of
from flowstack.policy.usage.members import Members, Names
from flowstack.policy.usage.model import Outcome
from flowstack.policy.usage.streams import EventMeter, MessageEvents, ResponseEvents

MOST_HELD: Final = 64 * 1024
"""Bytes; a larger body is read as it comes."""

_MOST_PIECES: Final = 64
"""An object for every two bytes would be many times their size."""

EDGE: Final = 4096
"""Bytes held of either end of a large embeddings answer."""

_NAMES: Final = Names.of(MEMBERS)


class Meter(Protocol):
    """Reads one answer."""

    def feed(self, piece: bytes) -> None:
        """Look at a piece of the body, as it came from the upstream. Never raises."""

    def finish(self) -> Outcome:
        """What was used, once no piece comes any more, be the answer whole or broken off. Never raises. Call once."""


class _Reader(Protocol):
    """Of a body that is too large to hold."""

    values: dict[str, Any]

    def feed(self, piece: bytes) -> None: ...

    def finish(self) -> None: ...


class JsonMeter:
    """Of an answer that is one JSON object."""

    __slots__ = ("_large", "_operation", "_pieces")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._pieces: list[bytes] = []
        self._large: _Reader | None = None

    def feed(self, piece: bytes) -> None:
        """Look at a piece. Most answers have only one."""
        pieces = self._pieces
        if not pieces and self._large is None and len(piece) <= MOST_HELD:
            pieces.append(piece)
        else:
            self._feed_further(piece)

    def _feed_further(self, piece: bytes) -> None:
        pieces, large = self._pieces, self._large
        if large is not None:
            large.feed(piece)
            return
        pieces.append(piece)
        if sum(map(len, pieces)) > MOST_HELD:
            self._large = large = self._reader()
            for held in pieces:
                large.feed(held)
            pieces.clear()
        elif len(pieces) > _MOST_PIECES:
            pieces[:] = [b"".join(pieces)]

    def finish(self) -> Outcome:
        """What the answer says."""
        outcome = Outcome()
        try:
            if self._large is not None:
                self._large.finish()
                values = self._large.values
            else:
                pieces = self._pieces
                values = self._load(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if type(values) is dict:
                self._take(values, outcome)
        except Exception:  # a meter never raises, whatever an upstream thinks of
            return Outcome()
        return outcome

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        take_answer(self._operation, values, outcome)

    def _reader(self) -> _Reader:
        return Members(_NAMES)

    def _load(self, body: bytes) -> Any:
        try:
            return orjson.loads(body)
        except ValueError:  # broken off: what was seen so far
            members = Members(_NAMES)
            members.feed(body)
            return members.values


class VectorsMeter(JsonMeter):
    """Of embeddings: to read all their numbers would cost more than to relay them."""

    __slots__ = ()

    def _reader(self) -> _Reader:
        return Edges()

    def _load(self, body: bytes) -> Any:
        members = last_members(body, b'"model"')
        return members if members is not None and "usage" in members else super()._load(body)


class MessageMeter(JsonMeter):
    """Of an Anthropic message."""

    __slots__ = ()

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        take_message(values, outcome)


def last_members(body: bytes, name: bytes) -> dict[str, Any] | None:
    """The members of a JSON object from the last place on where a name stands in its bytes, if that is one of its own.

    Only the end of the object is looked at. A quote that no backslash precedes begins or ends a string, and it ends
    none here, for then a bare word would follow. So it begins a string; and if all that comes after it, to the end,
    closes exactly one object when it is read as JSON behind an opening brace, then that is the outermost one, and the
    string is one of its names.

    :param body: at least the last bytes of a JSON object.
    :param name: with its quotes.
    :return: None where it is not so.
    """
    at = body.rfind(name)
    if at <= 0 or body[at - 1] == 0x5C:
        return None
    try:
        members: dict[str, Any] = orjson.loads(b"{" + body[at:])
    except ValueError:
        return None
    return members


class Edges:
    """The members that stand before and after the vectors of a large answer; the latter count where both do."""

    __slots__ = ("_head", "_tail", "values")

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self.values: dict[str, Any] = {}

    def feed(self, piece: bytes) -> None:
        """Take a piece."""
        if len(self._head) < EDGE:
            self._head += piece[: EDGE - len(self._head)]
        self._tail = piece[-EDGE:] if len(piece) >= EDGE else (self._tail + piece)[-EDGE:]

    def finish(self) -> None:
        """The end has come."""
        before = Members(_NAMES)
        before.feed(self._head)
        self.values = before.values
        for name in (b'"usage"', b'"model"'):
            self.values |= last_members(self._tail, name) or {}


class CodedMeter:
    """Shows a meter what an answer's content codings hide."""

    __slots__ = ("_decoder", "_meter")

    def __init__(self, meter: Meter, codings: tuple[bytes, ...]) -> None:
        self._meter = meter
        self._decoder = Decoder(codings, meter.feed)

    def feed(self, piece: bytes) -> None:
        """Look at a piece."""
        self._decoder.feed(piece)

    def finish(self) -> Outcome:
        """What the answer says."""
        return self._meter.finish()


_Make = Callable[[Operation], Meter]

_STREAMS: Final[dict[str, _Make]] = {"responses": ResponseEvents, "messages": MessageEvents}
_OBJECTS: Final[dict[str, _Make]] = {"embeddings": VectorsMeter, "messages": MessageMeter}

_Answer = tuple[Operation, bytes | None, bytes | None]
"""Of what kind an answer is: to which operation, its Content-Type, its Content-Encoding."""


def meter_for(operation: Operation, status: int, headers_by_name: Mapping[bytes, bytes]) -> Meter | None:
    """The meter for an answer, or None where it can hold no usage that is charged to this call.

    :param headers_by_name: the answer's fields by lower-case name.
    """
    if not 200 <= status < 300 or not (operation.generates or operation.once):
        return None
    key = operation, headers_by_name.get(b"content-type"), headers_by_name.get(b"content-encoding")
    plan = _plans[key]
    if plan is None:
        return None
    make, codings = plan
    return CodedMeter(make(operation), codings) if codings else make(operation)


def _plan(answer: _Answer) -> tuple[_Make, tuple[bytes, ...]] | None:
    """Which meter, and what to take off first; None for an answer that is neither JSON nor events."""
    operation, content_type, content_encoding = answer
    codings = codings_of(content_encoding)
    if codings is None:
        return None
    kind = (content_type or b"application/json").partition(b";")[0].strip().lower()
    if kind == b"text/event-stream":
        return _STREAMS.get(operation.family, EventMeter), codings
    if kind.endswith((b"/json", b"+json")):
        return _OBJECTS.get(operation.family, JsonMeter), codings
    return None


def _size(answer: _Answer) -> int:
    return len(answer[1] or b"") + len(answer[2] or b"")


_plans: Final = Memo(_plan, size=_size)
