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

MOST_HELD: Final = 64 * 1024
"""Bytes of one event; a larger one is read as it comes."""

_MOST_OF_A_MEMBER: Final = 16 * 1024

PATIENCE: Final = 8
"""Events that are read for the model's name; Azure's first one has none."""

_USAGE: Final = b'"usage"'
_NULLS: Final = (b":null", b": null")

_DONE: Final = b"[DONE]"

_WHOLE_EVENT: Final = re.compile(rb"(?:event: ?[^\r\n]*\r?\n)?data: ?([^\r\n]*)(?:\n\n|\r\n\r\n)").fullmatch
"""An event as all upstreams write theirs."""

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
        try:
            self._walk(piece)
        except Exception:  # a meter never raises, whatever an upstream thinks of
            self._drop()

    def finish(self) -> Outcome:
        """What the stream said."""
        try:
            self.end()
        except Exception:  # as above
            self._drop()
        return self._outcome

    def _walk(self, piece: bytes) -> None:
        """Read what may hold usage, and leave out the whole events that cannot."""
        start, size = 0, len(piece)
        while start < size:
            hit = start
            if self.between and self._patience <= 0:
                hit = _next_usage(piece, start)
                start = _after_blank(piece, start, hit)
                if start == size:
                    break
            end = _next_blank(piece, hit)
            event = piece[start:end]
            whole = _WHOLE_EVENT(event) if self.between and end - start <= MOST_HELD else None
            if whole is not None:
                self._load(whole[1])
            else:
                self.read(event)
            start = end
        self._quick = self.between and self._patience <= 0

    def data(self, fragment: bytes) -> None:
        """Of :class:`EventReader`."""
        large = self._large
        if large is not None:
            large.feed(fragment)
            return
        self._held += fragment
        if len(self._held) > MOST_HELD:
            self._large = large = _LargeEvent()
            large.feed(bytes(self._held))
            self._held.clear()

    def event(self) -> None:
        """Of :class:`EventReader`."""
        large, held = self._large, self._held
        if large is not None:
            self._large = None
            values = large.values()
        else:
            if self._patience <= 0 and _USAGE not in held:
                held.clear()
                return
            whole = bytes(held)
            held.clear()
            self._load(whole)
            return
        if values is not None:
            self._take(values)

    def _load(self, data: bytes) -> None:
        """Read the whole data of an event."""
        if data == _DONE:
            return
        try:
            values = orjson.loads(data)
        except ValueError:  # cut, or no JSON
            return
        if type(values) is dict:
            self._take(values)
            self._patience = 0 if self._outcome.model is not None else self._patience - 1

    def _take(self, values: dict[str, Any]) -> None:
        take_answer(self._operation, values, self._outcome)

    def _drop(self) -> None:
        self._held.clear()
        self._large = None


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
    """Of Anthropic's messages: the input's figures come first, the output's with the end (Anthropic, streaming)."""

    __slots__ = ("_figures",)

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self._figures: dict[str, Any] = {}

    def _take(self, values: dict[str, Any]) -> None:
        message = values.get("message")
        usage = values.get("usage")
        if type(message) is dict:
            self._outcome.model = text_of(message.get("model"))
            usage = message.get("usage")
            if type(usage) is dict:
                # How much has come out by then, which is not how much will have.
                usage.pop("output_tokens", None)
        if type(usage) is dict:
            self._figures.update(usage)
            take_message({"usage": self._figures}, self._outcome)


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


def _next_blank(piece: bytes, start: int) -> int:
    """The offset after the next blank line; the piece's end where there is none."""
    lf = piece.find(b"\n\n", start)
    crlf = piece.find(b"\r\n\r\n", start, lf if lf >= 0 else len(piece))
    if crlf >= 0:
        return crlf + 4
    return lf + 2 if lf >= 0 else len(piece)
