"""Meters of event streams. Most events hold no usage, and cost one search in their bytes."""

from __future__ import annotations

from typing import Any, Final

import orjson

from flowstack.http.sse import EventReader, after_blank, blank_line
from flowstack.usage.answers import (
    MEMBERS,
    add,
    break_off,
    finish_message,
    is_finished,
    take_answer,
    take_message,
)
from flowstack.usage.calls import Calls, calls_in
from flowstack.usage.figures import add_output, has_figure, is_positive, merge, usage_of
from flowstack.usage.members import Names, NestedMembers
from flowstack.usage.model import Outcome
from flowstack.usage.operations import Operation
from flowstack.usage.shares import Shares
from flowstack.usage.turns import MAX_HELD

_AT_ONCE: Final = 4 * 1024
"""Bytes of it that are read together: it may come in very small pieces."""

_MAX_MEMBER: Final = 16 * 1024

PATIENCE: Final = 8
"""Events that are read for the model's name; Azure's first one has none."""

_USAGE: Final = b'"usage"'
_NULLS: Final = (b":null", b": null")

_DONE: Final = b"[DONE]"
_DONE_EVENT: Final = b"data: [DONE]\n\n"

_LAST: Final = frozenset((
    "transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed",
))  # fmt: skip
"""Types of the events that end a stream, or one of its images."""

_ENDING: Final = (b'"finish_reason":"', b'"finish_reason": "', b'"error"')
_MERGING: Final = 16
"""Steps that it takes to put figures together."""

_EVENT: Final = Names.of(
    ("type", "response", "choices", "x_groq", "error", "delta", "message", *MEMBERS), answered=True
)
_RESPONSE: Final = (("response", Names.of(MEMBERS, answered=True)),)


class EventMeter(EventReader):
    """Of a stream whose events hold ``model``, ``service_tier`` and ``usage`` themselves, and end with one of a kind.

    The ``transcript.text.done``, ``speech.audio.done``, ``image_generation.completed`` and ``image_edit.completed``
    events (OpenAI reference, each under streaming).
    """

    __slots__ = (
        "_ended", "_failed", "_finished", "_held", "_large", "_near_end", "_operation", "_outcome", "_patience",
        "_quick",
    )  # fmt: skip

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._operation = operation
        self._outcome = Outcome()
        self._held = bytearray()
        self._large: NestedMembers | None = None
        self._patience = PATIENCE  # events that are still read even though they hold no usage
        self._quick = False  # nothing is held, and only usage is of interest
        self._near_end = False  # usage came that may be the last: so the stream's end is of interest too
        self._finished = False  # the upstream said that the answer is all there
        self._ended = False  # the stream's own end came
        self._failed = False  # an error came after usage

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

    def finish(self, ended: bool = True) -> Outcome:
        """What the stream said.

        It is all that was used if the stream's own end came. It is too if its body ended as HTTP frames it, and the
        upstream had said that the answer is all there: some send no ``[DONE]``.
        """
        self.end()
        outcome = self._outcome
        if outcome.usage is not None:
            self._complete()
            if not has_figure(outcome.usage):
                outcome.usage = None
            elif self._failed or not (self._ended or (ended and self._finished)):
                break_off(outcome)
        return outcome

    def _complete(self) -> None:
        """Put together what the events said was used."""

    def _walk(self, piece: bytes) -> None:
        """Read what may hold usage, and leave out the whole events that cannot."""
        if self._near_end and self.between and piece == _DONE_EVENT:
            self._ended = True
            return
        start, size = 0, len(piece)
        self.steps += size >> 6
        while start < size:
            if self._patience > 0 or self._near_end:
                self.read(piece[start:] if start else piece)
                break
            hit = start
            if self.between:
                hit = _next_usage(piece, start)
                start = after_blank(piece, start, hit)
                if start == size:
                    break
            blank = blank_line(piece, hit)
            end = size if blank is None else blank.end()
            self.read(piece[start:end])
            start = end
        self._quick = self.between and self._patience <= 0 and not self._near_end

    def data(self, fragment: bytes) -> None:
        """Of :class:`EventReader`."""
        held = self._held
        held += fragment
        if len(held) > (MAX_HELD if self._large is None else _AT_ONCE):
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
        self._take_large()

    def _take_large(self) -> None:
        large, self._large = self._large, None
        assert large is not None
        event, *response = large.levels
        if response and large.complete:
            self._take({**event.values, "response": response[0].values})
        elif event.closed is not None and event.fault is None:
            self._take(event.values)

    def whole(self, data: bytes) -> None:
        """Read the whole data of an event, where it may say something."""
        if data == _DONE:
            self._ended = True
            return
        if self._patience <= 0 and data.find(_USAGE) < 0 and not (self._near_end and self._may_end(data)):
            return
        self.steps += 2 + (len(data) >> 6)
        try:
            values = orjson.loads(data)
        except ValueError:  # half of a surrogate pair is enough for that
            self._large = large = NestedMembers(_EVENT, _RESPONSE, _MAX_MEMBER)
            self.steps += brackets_and_quotes(data)
            large.feed(data)
            self._take_large()
            return
        if type(values) is dict:
            self._take(values)
            self._patience = 0 if self._outcome.model is not None else self._patience - 1

    def _may_end(self, data: bytes) -> bool:
        """Whether an event without usage may say how the answer ended."""
        return any(data.find(ending) >= 0 for ending in _ENDING)

    def _read_large(self) -> None:
        """Read what is held of an event that is too large to hold."""
        large, held = self._large, self._held
        if large is None:
            self._large = large = NestedMembers(_EVENT, _RESPONSE, _MAX_MEMBER)
        self.steps += brackets_and_quotes(held)
        large.feed(bytes(held))
        held.clear()

    def _take(self, values: dict[str, Any]) -> None:
        if self._near_end:
            self.steps += _MERGING
        kind, known = values.get("type"), self._outcome.usage
        last = type(kind) is str and kind in _LAST
        if last and self._ended and known is not None and (usage := usage_of(values.get("usage"))) is not None:
            add_output(known, usage)  # a further image's
            return
        self._ended = self._ended or last
        take_answer(self._operation, values, self._outcome)
        if self._outcome.usage is not None:
            self._near_end = True
            self._failed = self._failed or bool(values.get("error"))


class ChunkEvents(EventMeter):
    """Of chat and completions: chunks, of which any may have usage, and ``[DONE]`` (OpenAI reference, streaming).

    OpenAI's last chunk has no choice and the whole answer's usage. Others say it in the chunk that finishes a choice,
    or again and again as it grows, of the whole answer or of each choice by itself; Groq without being asked in
    ``x_groq``, Moonshot in the choice.
    """

    __slots__ = ("_shares",)

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self._shares: Shares | None = None  # until usage comes with a choice

    def _complete(self) -> None:
        usage = self._outcome.usage
        if usage is not None and self._shares is not None and (together := self._shares.sum()) is not None:
            merge(usage, together)

    def _take(self, values: dict[str, Any]) -> None:
        choices, usage, outcome = values.get("choices"), values.get("usage"), self._outcome
        if usage is None and type(groq := values.get("x_groq")) is dict:
            usage = values["usage"] = groq.get("usage")
        if type(choices) is list:
            for choice in choices:
                if type(choice) is not dict:
                    continue
                self._finished = self._finished or bool(choice.get("finish_reason"))
                own = choice.get("usage") if usage is None else usage if len(choices) == 1 else None
                if type(own) is not dict:
                    continue
                if self._shares is None:
                    self._shares = Shares()
                self._shares.take(choice, own, outcome.usage, usage is None)
                if usage is None and (its := usage_of(own)) is not None:
                    add(its, outcome)
                    self._near_end = True
            if not choices and type(usage) is dict and is_positive(usage):
                self._finished = True
                self._shares = None  # the whole answer's takes the place of the choices'
        super()._take(values)


class ResponseEvents(EventMeter):
    """Of the responses API: the event that ends the response holds all of it (OpenAI reference, responses)."""

    __slots__ = ("_calls", "_data")

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self._data = b""  # of the current event
        self._calls: Calls | None = None  # in it, where it is large

    def whole(self, data: bytes) -> None:
        """Read the whole data of an event, where it may say something."""
        self._data, self._calls = data, None
        super().whole(data)

    def _read_large(self) -> None:
        if self._large is None or self._calls is None:
            self._calls = Calls()
        self._calls.feed(bytes(self._held))
        super()._read_large()

    def _take(self, values: dict[str, Any]) -> None:
        response = values.get("response")
        if type(response) is dict:
            kind = values.get("type")
            ended = kind.removeprefix("response.") if type(kind) is str else response.get("status")
            if is_finished(ended):
                self._ended = response.get("usage") is not None
                calls = calls_in(self._data) if self._calls is None else self._calls.counts()
                if calls is not None:
                    response["output_items"] = calls
            take_answer(self._operation, response, self._outcome)


class MessageEvents(EventMeter):
    """Of Anthropic's messages: the input's figures come first, the output's with the end (Anthropic, streaming)."""

    __slots__ = ()

    def _complete(self) -> None:
        finish_message(self._outcome)

    def _may_end(self, data: bytes) -> bool:
        return True

    def _take(self, values: dict[str, Any]) -> None:
        message, delta, kind = values.get("message"), values.get("delta"), values.get("type")
        if type(message) is dict:
            take_message(message, self._outcome)
        elif type(values.get("usage")) is dict:
            self._near_end = True
            self.steps += _MERGING
            if type(delta) is dict:
                self._finished = self._finished or bool(delta.get("stop_reason"))
                values["container"] = delta.get("container")
            take_message(values, self._outcome)
        elif kind == "message_stop":
            self._ended = True
        elif kind == "error":
            self._failed = True


def brackets_and_quotes(text: bytes | bytearray) -> int:
    """How much work it is to read some JSON in steps: what stands in strings is nearly none."""
    return 1 + text.count(b'"') - text.count(b'\\"') + text.count(b"{") + text.count(b"[")


def _next_usage(piece: bytes, start: int) -> int:
    """Where the next usage stands that is not null; the piece's end where there is none."""
    at = piece.find(_USAGE, start)
    while at >= 0 and piece.startswith(_NULLS, at + len(_USAGE)):
        at = piece.find(_USAGE, at + len(_USAGE))
    return at if at >= 0 else len(piece)
