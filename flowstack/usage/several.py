"""Meters of answers that show many objects: lists of batches, and the results of a message batch.

The objects are cut out of the answer as it comes, and read one by one, so that no answer is too long, and no more than
:data:`MAX_HELD` bytes of one are held.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import orjson

from flowstack.http.codings import TooMuch
from flowstack.usage.answers import LATE_MEMBERS, late_of
from flowstack.usage.figures import count_message, text_of, usage_of
from flowstack.usage.members import Names, NestedMembers
from flowstack.usage.model import Late, Outcome, Usage, Used
from flowstack.usage.operations import Operation
from flowstack.usage.turns import MAX_HELD

MAX_LATE: Final = 10_000
"""Works that are taken from one list. Anthropic gives 1,000 at most, OpenAI 100."""

MAX_GROUPS: Final = 64
"""Of a batch's requests that are added up apart, as one price may not hold for all; with more, nothing is known."""

MAX_ITEMS: Final = 1_000
"""Kept of a list among the figures."""

LONG: Final = 200_000
"""Input tokens above which Anthropic has other prices for some models: such requests are added up apart."""

_OBJECT: Final = Names.of(LATE_MEMBERS, answered=True)
_RESULT: Final = Names.of(("result",), answered=True)
_WAY: Final = (
    ("result", Names.of(("message",), answered=True)), ("message", Names.of(("model", "usage"), answered=True)),
)  # fmt: skip
"""To the figures in a line of results: ``{"custom_id": …, "result": {"type": …, "message": {"usage": …}}}``."""

_outside: Final = re.compile(rb'["{}\[\]]').search
_inside: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL).match
_BACKSLASH: Final = 0x5C


class _Objects(ABC):
    """Cuts an answer into the objects at a depth, and hands each on.

    What it is handed is of any form; what is too much for it raises :class:`TooMuch`, and nothing is known then.

    :param depth: of the brackets around an object, its own included.
    """

    def __init__(self, depth: int, names: Names, way: Sequence[tuple[str, Names]] = ()) -> None:
        self.steps = 0
        self._wanted = depth
        self._names = names
        self._way = way
        self._depth = 0
        self._in_string = self._escaped = self._within = False
        self._held = bytearray()
        self._large: NestedMembers | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is open that was begun."""
        return self._depth == 0 and not self._in_string

    def feed(self, piece: bytes) -> None:
        """Look at a piece."""
        at, size, begun = 0, len(piece), 0
        self.steps += 1 + (size >> 6)
        if self._escaped and size:
            self._escaped, at = False, 1
        while at < size:
            if self._in_string:
                found = _inside(piece, at)
                at = size if found is None else found.end()
                if at < size:
                    self._escaped = piece[at] == _BACKSLASH  # the last byte of the piece
                    self._in_string = self._escaped
                    at += 1
                continue
            mark = _outside(piece, at)
            if mark is None:
                break
            self.steps += 1
            byte, at = mark[0], mark.end()
            if byte == b'"':
                self._in_string = True
            elif byte in b"{[":
                self._depth += 1
                if self._depth == self._wanted and byte == b"{":
                    self._within, begun = True, at - 1
            else:
                if self._depth == self._wanted and self._within:
                    self._within = False
                    self._part(piece[begun:at])
                    self._end()
                self._depth = max(self._depth - 1, 0)
        if self._within:
            self._part(piece[begun:])

    def _part(self, fragment: bytes) -> None:
        if self._large is None and len(self._held) + len(fragment) > MAX_HELD:
            self._large = NestedMembers(self._names, self._way)
            self._large.feed(bytes(self._held))
            self._held.clear()
        if self._large is None:
            self._held += fragment
        else:
            self.steps += fragment.count(b'"') + fragment.count(b"{") + fragment.count(b"[")
            self._large.feed(fragment)

    def _end(self) -> None:
        large, self._large = self._large, None
        held = bytes(self._held)
        self._held.clear()
        if large is None:
            self.steps += 2 + (len(held) >> 6)
            try:
                values = orjson.loads(held)
            except ValueError:  # half of a surrogate pair is enough for that
                large = NestedMembers(self._names, self._way)
                large.feed(held)
            else:
                self._take(values if type(values) is dict else {})
        if large is not None:
            self._take_large(large.levels[-1].values if large.complete else {})

    @abstractmethod
    def _take(self, values: dict[str, Any]) -> None:
        """An object has come, whole."""

    @abstractmethod
    def _take_large(self, values: dict[str, Any]) -> None:
        """The same of a large one, of which this was found."""


class ListMeter(_Objects):
    """Of a list of batches: ``{"data": [{…}, …], …}`` (OpenAI and Anthropic references, each under list)."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(3, _OBJECT)
        self._work = operation.work
        self._late: list[Late] = []

    def finish(self, ended: bool = True) -> Outcome:
        """What the list shows, as far as it came."""
        return Outcome(late=tuple(self._late))

    def _take(self, values: dict[str, Any]) -> None:
        late = None if self._work is None else late_of(self._work, values)
        if late is not None and late.finished and len(self._late) < MAX_LATE:
            self._late.append(late)

    _take_large = _take


class ResultsMeter(_Objects):
    """Of a message batch's results, a line for each request (Anthropic reference): what all of them used together."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(1, _RESULT, _WAY)
        self._sums: dict[tuple[Any, ...], Usage] = {}
        self._lines = 0
        self._unknown = False  # what one of them used

    def finish(self, ended: bool = True) -> Outcome:
        """What the results show, where they came whole."""
        late = Late("message_batch", None, True)
        if ended and self.whole and self._lines and not self._unknown:
            late.used = tuple(
                Used(usage, model, tier) for (model, tier, _, _), usage in sorted(self._sums.items(), key=repr)
            ) or (Used(Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)),)
        return Outcome(late=(late,))

    def _take(self, values: dict[str, Any]) -> None:
        result = values.get("result")
        if type(result) is not dict:
            self._unknown = True
            return
        message = result.get("message")
        if type(message) is dict:
            self._take_large(message)
        else:  # errored, canceled, expired: not billed
            self._lines += 1
            self._unknown |= result.get("type") not in ("errored", "canceled", "expired")

    def _take_large(self, values: dict[str, Any]) -> None:
        self._lines += 1
        usage = usage_of(values.get("usage"))
        if usage is None:
            self._unknown = True
            return
        count_message(usage)
        tier, prompt = text_of((usage.details or {}).get("service_tier")), usage.prompt_tokens or 0
        texts = [item for item in (usage.details or {}).items() if type(item[1]) is str]
        group = text_of(values.get("model")), tier, prompt > LONG, tuple(sorted(texts))
        held = self._sums.get(group)
        if held is None:
            if len(self._sums) == MAX_GROUPS:
                raise TooMuch
            self._sums[group] = usage
            usage.longest = prompt
            return
        longest = max(held.longest or 0, prompt)
        for each in fields(Usage):
            setattr(held, each.name, _added(getattr(held, each.name), getattr(usage, each.name)))
        held.longest = longest


def _added(one: Any, other: Any) -> Any:
    """Figures together, within objects too: what only one of them says stays, and what cannot be added is the first's.

    :raises TooMuch: a list among them becomes too long.
    """
    if one is None or other is None:
        return one if other is None else other
    if type(one) is dict and type(other) is dict:
        return {name: _added(one.get(name), other.get(name)) for name in one | other}
    if type(one) is list and type(other) is list:
        if len(one) + len(other) > MAX_ITEMS:
            raise TooMuch
        return one + other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + other
    return one
