"""Meters: they are shown an answer as it passes, and say in the end what it used.

A meter never changes a byte; what it cannot read it does not know. It holds no more than :data:`MAX_HELD` bytes of an
answer, however large; :class:`flowstack.usage.turns.InTurns` shows it no more at once than takes a few
milliseconds, and lets none of its faults out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from flowstack.http.codings import Decoder, codings_of
from flowstack.memo import Memo
from flowstack.usage.answers import (
    LATE_MEMBERS,
    MEMBERS,
    break_off,
    finish_message,
    is_finished,
    take_answer,
    take_message,
)
from flowstack.usage.calls import Calls, calls_in
from flowstack.usage.figures import has_figure
from flowstack.usage.members import Members, Names
from flowstack.usage.model import Outcome
from flowstack.usage.operations import CLIENT_SECRETS, Operation
from flowstack.usage.several import ListMeter, ResultsMeter
from flowstack.usage.streams import ChunkEvents, EventMeter, MessageEvents, ResponseEvents, brackets_and_quotes
from flowstack.usage.turns import MAX_HELD, InTurns, Meter

EDGE: Final = 4096
"""Bytes held of either end of a large embeddings answer."""

_NAMES: Final = Names.of(MEMBERS, answered=True)
_LATE_NAMES: Final = Names.of(LATE_MEMBERS, answered=True)
_SECRET_NAMES: Final = Names.of(("value", "expires_at", "client_secret"), answered=True)


class _Reader(Protocol):
    """Of a body that is too large to hold, or broken off."""

    values: dict[str, Any]
    closed: int | None

    def feed(self, piece: bytes) -> None: ...

    def finish(self) -> None: ...


class JsonMeter:
    """Of an answer that is one JSON object."""

    __slots__ = ("_calls", "_held", "_large", "_operation", "steps")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._held: bytes | bytearray = b""
        self._large: _Reader | None = None
        self._calls: Calls | None = None  # in a large response
        self.steps = 0

    def feed(self, piece: bytes) -> None:
        """Look at a piece. Most answers have only one."""
        if self._held or self._large is not None or len(piece) > MAX_HELD:
            self._feed_further(piece)
        else:
            self._held = piece

    def _feed_further(self, piece: bytes) -> None:
        held, large = self._held, self._large
        if large is None:
            self.steps += 1
            if len(held) + len(piece) <= MAX_HELD:
                if isinstance(held, bytes):
                    self._held = held = bytearray(held)
                held += piece
                return
            self._large = large = self._reader()
            self._held = b""
            self._read(large, bytes(held))
        self._read(large, piece)

    def _read(self, large: _Reader, piece: bytes) -> None:
        self.steps += brackets_and_quotes(piece)
        large.feed(piece)

    def finish(self, ended: bool = True) -> Outcome:
        """What the answer says."""
        outcome = Outcome()
        large = self._large
        values: Any
        if large is not None:
            large.finish()
            values, whole = large.values, large.closed is not None
        else:
            values, whole = self._load(bytes(self._held))
        if type(values) is dict:
            self._take(values, outcome)
            if outcome.usage is not None and not has_figure(outcome.usage):
                outcome.usage = None
            if not whole:
                break_off(outcome)
        return outcome

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        take_answer(self._operation, values, outcome)

    def _reader(self) -> _Reader:
        return Members(_NAMES if self._operation.work is None else _LATE_NAMES)

    def _load(self, body: bytes) -> tuple[Any, bool]:
        """What the body holds, and whether it is whole."""
        try:
            return orjson.loads(body), True
        except ValueError:  # broken off: what was seen so far
            members = Members(_LATE_NAMES)
            members.feed(body)
            return members.values, members.closed is not None


class ResponseMeter(JsonMeter):
    """Of a response, whose output may hold calls of tools that are billed by the call."""

    __slots__ = ()

    def _read(self, large: _Reader, piece: bytes) -> None:
        if self._calls is None:
            self._calls = Calls()
        self._calls.feed(piece)
        super()._read(large, piece)

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        calls = calls_in(bytes(self._held)) if self._calls is None else self._calls.counts()
        if calls is not None:
            values["output_items"] = calls
        take_answer(self._operation, values, outcome)
        if type(status := values.get("status")) is str and not is_finished(status):
            break_off(outcome)  # its work goes on, though it does not say that this is in the background


class VectorsMeter(JsonMeter):
    """Of embeddings: to read all their numbers would cost more than to relay them."""

    __slots__ = ()

    def finish(self, ended: bool = True) -> Outcome:
        """What the answer says. Each vector's object closes as the answer's does: only HTTP tells a large one's end."""
        outcome = super().finish(ended)
        if self._large is not None and not ended:
            break_off(outcome)
        return outcome

    def _reader(self) -> _Reader:
        return Edges()

    def _read(self, large: _Reader, piece: bytes) -> None:
        self.steps += 1
        large.feed(piece)

    def _load(self, body: bytes) -> tuple[Any, bool]:
        members = last_members(body, b'"model"')
        return (members, True) if members is not None and "usage" in members else super()._load(body)


class MessageMeter(JsonMeter):
    """Of an Anthropic message."""

    __slots__ = ()

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        take_message(values, outcome)
        finish_message(outcome)


class SecretMeter(JsonMeter):
    """Of a client secret that was made: it stands at the top, or, in the beta, in ``client_secret`` (OpenAI reference,
    Realtime)."""

    __slots__ = ()

    def _take(self, values: dict[str, Any], outcome: Outcome) -> None:
        inner = values.get("client_secret")
        told = inner if type(inner) is dict else values
        secret, expires = told.get("value"), told.get("expires_at")
        if type(secret) is str and secret:
            outcome.secret = secret, float(expires) if isinstance(expires, int | float) else None

    def _reader(self) -> _Reader:
        return Members(_SECRET_NAMES)


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
    """The members that stand before and after the vectors of a large answer; the latter count where both do.

    :ivar closed: how many bytes came, if the last is one that closes an object.
    """

    __slots__ = ("_head", "_size", "_tail", "closed", "values")

    def __init__(self) -> None:
        self.closed: int | None = None
        self._size = 0
        self._head = b""
        self._tail = b""
        self.values: dict[str, Any] = {}

    def feed(self, piece: bytes) -> None:
        """Take a piece."""
        self._size += len(piece)
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
        if self._tail.rstrip().endswith(b"}"):
            self.closed = self._size


_Make = Callable[[Operation], Meter]

_STREAMS: Final[dict[str, _Make]] = {
    "chat": ChunkEvents,
    "completions": ChunkEvents,
    "responses": ResponseEvents,
    "messages": MessageEvents,
}
_OBJECTS: Final[dict[str, _Make]] = {
    "embeddings": VectorsMeter,
    "responses": ResponseMeter,
    "messages": MessageMeter,
    "batch.list": ListMeter,
    CLIENT_SECRETS: SecretMeter,
}
"""By operation, or by family."""

_Answer = tuple[Operation, bytes | None, bytes | None]
"""Of what kind an answer is: to which operation, its Content-Type, its Content-Encoding."""


def meter_for(operation: Operation, status: int, headers_by_name: Mapping[bytes, bytes]) -> InTurns | None:
    """The meter for an answer, or None where it can hold no usage that is charged to this call or to an earlier one.

    :param headers_by_name: the answer's fields by lower-case name.
    """
    if not 200 <= status < 300 or not (operation.generates or operation.work or operation.name == CLIENT_SECRETS):
        return None
    key = operation, headers_by_name.get(b"content-type"), headers_by_name.get(b"content-encoding")
    plan = _plans[key]
    if plan is None:
        return None
    make, codings = plan
    return InTurns(make(operation), Decoder(codings) if codings else None)


def _plan(answer: _Answer) -> tuple[_Make, tuple[bytes, ...]] | None:
    """Which meter, and what to take off first; None for an answer that is neither JSON nor events."""
    operation, content_type, content_encoding = answer
    codings = codings_of(content_encoding)
    if codings is None:
        return None
    if operation.name == "batch.results":  # Anthropic's own type for lines of JSON, which others name otherwise
        return ResultsMeter, codings
    kind = (content_type or b"application/json").partition(b";")[0].strip().lower()
    if kind == b"text/event-stream":
        return _STREAMS.get(operation.family, EventMeter), codings
    if kind.endswith((b"/json", b"+json")):
        return _OBJECTS.get(operation.name) or _OBJECTS.get(operation.family, JsonMeter), codings
    return None


def _size(answer: _Answer) -> int:
    return len(answer[1] or b"") + len(answer[2] or b"")


_plans: Final = Memo(_plan, size=_size)
