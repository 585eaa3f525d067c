"""Meters of event streams. Most events hold no usage, and cost one search in their bytes."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from flowstack.policy.operations import Operation
from flowstack.policy.usage.answers import MEMBERS, is_finished, take_answer, take_message
from flowstack.policy.usage.figures import text_of
from flowstack.policy.usage.members import Members, Names
from flowstack.policy.usage.model import Outcome
from flowstack.policy.usage.sse import EventReader

MOST_HELD: Final = 8 * 1024
"""Bytes of one event; a larger one is read as it comes."""

_AT_ONCE: Final = 4 * 1024
"""Bytes of it that are read together: it may come in very small pieces."""

_MOST_OF_A_MEMBER: Final = 16 * 1024

PATIENCE: Final = 8
"""Events that are read for the model's name; Azure's first one has none."""

_USAGE: Final = b'"usage"'
_NULLS: Final = (b":null", b": null")

_DONE: Final = b"[DONE]"

_blank_line: Final = re.compile(rb"\n\r?\n").search
"""Not all that there are: what is not found is read. It begins with a byte for which C searches."""

_EVENT: Final = Names.of(("type", "response", *MEMBERS))
_ANSWER: Final = Names.of(MEMBERS)


class EventMeter(EventReader):
    """Of a stream whose events hold ``model``, ``service_tier`` and ``usage`` themselves; what is stated last counts.

    Chat and completion chunks, and the ``transcript.text.done``, ``speech.audio.done``, ``image_generation.completed``
    and ``image_edit.completed`` events (OpenAI reference, each under streaming).
    """

    __slots__ = ("_held", "_large", "_operation", "_outcome", "_patience", "_quick")

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._operation = operation
        self._outcome = Outcome()
        self._held = bytearray()
        self._large: _LargeEvent | None = None
        self._patience = PATIENCE  # events that are still read even though they hold no usage
        self._quick = False  # nothing is held, and only usage is of interest

    def feed(self, piece: bytes) -> None:
        """Look at a piece. One that holds whole events without usage, or with one that is null, is done with here.

        Of all searches in bytes :meth:`bytes.partition` costs least to call, and copies nothing if it finds nothing.
        """
        if self._quick and (piece[-2:] == b"\n\n" or piece[-4:] == b"\r\n\r\n"):
            _, usage, after = piece.partition(_USAGE)
            if usage and after[:5] == b":null":
                _, usage, _ = after.partition(_USAGE)
            if not usage:
                return
        self._walk(piece)

    def finish(self) -> Outcome:
        """What the stream said."""
        self.end()
        return self._outcome

    def _walk(self, piece: bytes) -> None:
        """Read what may hold usage, and leave out the whole events that cannot."""
        start, size = 0, len(piece)
        self.steps += size >> 6
        if self._patience > 0:
            self.read(piece)
            start = size
        while start < size:
            hit = start
            if self.between:
                hit = _next_usage(piece, start)
                start = _after_blank(piece, start, hit)
                if start == size:
                    break
            blank = _blank_line(piece, hit)
            end = size if blank is None else blank.end()
            self.read(piece[start:end])
            start = end
        self._quick = self.between and self._patience <= 0

    def data(self, fragment: bytes) -> None:
        """Of :class:`EventReader`."""
        held = self._held
        held += fragment
        if len(held) > (MOST_HELD if self._large is None else _AT_ONCE):
            self._read_large()

    def event(self) -> None:
        """Of :class:`EventReader`."""
        held = self._held
        if self._large is None:
            whole = bytes(held)
            held.clear()
            self.whole(whole)
            return
        self._read_large()
        large, self._large = self._large, None
        values = large.values()
        if values is not None:
            self._take(values)

    def whole(self, data: bytes) -> None:
        """Read the whole data of an event, where it may say something."""
        if data == _DONE or (self._patience <= 0 and data.find(_USAGE) < 0):
            return
        self.steps += 2 + (len(data) >> 6)
        try:
            values = orjson.loads(data)
        except ValueError:  # cut, or no JSON
            return
        if type(values) is dict:
            self._take(values)
            self._patience = 0 if self._outcome.model is not None else self._patience - 1

    def _read_large(self) -> None:
        """Read what is held of an event that is too large to hold."""
        large, held = self._large, self._held
        if large is None:
            self._large = large = _LargeEvent()
        self.steps += brackets_and_quotes(held)
        large.feed(bytes(held))
        held.clear()

    def _take(self, values: dict[str, Any]) -> None:
        take_answer(self._operation, values, self._outcome)


class ResponseEvents(EventMeter):
    """Of the responses API: the event that ends the response holds all of it (OpenAI reference, responses)."""

    __slots__ = ()

    def _take(self, values: dict[str, Any]) -> None:
        response = values.get("response")
        if type(response) is dict:
            kind = values.get("type")
            ended = kind.removeprefix("response.") if type(kind) is str else response.get("status")
            if not is_finished(ended):
                response.pop("usage", None)
            take_answer(self._operation, response, self._outcome)


class MessageEvents(EventMeter):
    """Of Anthropic's messages: the input's figures come first, the output's with the end (Anthropic, streaming).

    Of each, what was stated last is kept as it came, and read at the end: what is kept does not grow with the events,
    nor does what each of them costs.
    """

    __slots__ = ("_begun", "_latest")

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self._begun: dict[str, Any] = {}
        self._latest: dict[str, Any] = {}

    def finish(self) -> Outcome:
        """What the stream said."""
        self.end()
        if figures := self._begun | self._latest:
            take_message({"usage": figures}, self._outcome)
        return self._outcome

    def _take(self, values: dict[str, Any]) -> None:
        message = values.get("message")
        usage = values.get("usage")
        if type(message) is dict:
            self._outcome.model = text_of(message.get("model"))
            first = message.get("usage")
            if type(first) is dict:
                # How much has come out by then, which is not how much will have.
                first.pop("output_tokens", None)
                self._begun = first
        elif type(usage) is dict and usage:
            self._latest = usage


def brackets_and_quotes(text: bytes | bytearray) -> int:
    """How much work it is to read some JSON by :class:`Members`, in steps: what stands in strings is nearly none."""
    return 1 + text.count(b'"') - text.count(b'\\"') + text.count(b"{") + text.count(b"[")


class _LargeEvent:
    """Reads the members of an event, or of the response in it, as they come."""

    __slots__ = ("_event", "_response")

    def __init__(self) -> None:
        self._event = Members(_EVENT, _MOST_OF_A_MEMBER)
        self._response: Members | None = None

    def feed(self, fragment: bytes) -> None:
        """Read on."""
        response = self._response
        if response is None:
            event = self._event
            before = event.size
            event.feed(fragment)
            span = event.spans.get("response")
            if span is None:
                return
            self._response = response = Members(_ANSWER, _MOST_OF_A_MEMBER)
            fragment = fragment[span[1] - before :]
        if response.closed is None:
            response.feed(fragment)

    def values(self) -> dict[str, Any] | None:
        """The members, now that the event has ended; None where it is no whole JSON."""
        event, response = self._event, self._response
        if response is not None:
            return None if response.closed is None else {**event.values, "response": response.values}
        return None if event.closed is None or event.fault is not None else event.values


def _next_usage(piece: bytes, start: int) -> int:
    """Where the next usage stands that is not null; the piece's end where there is none."""
    at = piece.find(_USAGE, start)
    while at >= 0 and piece.startswith(_NULLS, at + len(_USAGE)):
        at = piece.find(_USAGE, at + len(_USAGE))
    return at if at >= 0 else len(piece)


def _after_blank(piece: bytes, start: int, end: int) -> int:
    """The offset after the last blank line that ends before ``end``; ``start`` where there is none."""
    lf = piece.rfind(b"\n\n", start, end)
    crlf = piece.rfind(b"\r\n\r\n", start, end)
    return max(start, lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)
