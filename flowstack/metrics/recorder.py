"""Counts what a process does, in its segment.

What runs once for each request is :meth:`Recorder.record`; it costs about a microsecond: one look into a dict by the
row's own values gives the cells, and each number is an addition to a cell: to the process's own copy of it, and what
comes out is shared at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import isnan, nan
from typing import Final

from attrs import define
from twisted.logger import Logger

from flowstack.ledger.row import Row
from flowstack.memo import Memo
from flowstack.metrics.families import (
    DURATION,
    FAMILIES,
    MAX_MODELS,
    OTHER,
    REFUSALS,
    REQUESTS,
    UNAUTHENTICATED,
    UPSTREAM,
    USAGE,
    Family,
)
from flowstack.metrics.segment import Segment, Slot
from flowstack.tokens import hide_keys

log = Logger()

MAX_LABEL = 128
"""Characters kept of a label's value."""

MAX_CACHED = 2048
"""Combinations of a row's values whose cells are remembered, where the models' names are no longer than labels."""

_INPUT, _OUTPUT, _FIRST_TOKEN, _CACHED, _REASONING, _COST, _WITHOUT_USAGE, _WITHOUT_PRICE = USAGE.offsets
_OVERHEAD, _BYTES_IN, _BYTES_OUT = UPSTREAM.offsets
_TOKENS: Final = tuple(map(int, USAGE.series[0].recorded_bounds))  # as numbers of tokens are, which compares faster
_FIRST_TOKENS: Final = USAGE.series[2].recorded_bounds
_DURATIONS: Final = DURATION.series[0].recorded_bounds
_OVERHEADS: Final = UPSTREAM.series[0].recorded_bounds
_DURATION_CELLS = (0, len(_DURATIONS) + 1)
_UPSTREAM_CELLS = (_OVERHEAD, _OVERHEAD + len(_OVERHEADS) + 1, _BYTES_IN, _BYTES_OUT)
_USAGE_CELLS = (
    _FIRST_TOKEN, _FIRST_TOKEN + len(_FIRST_TOKENS) + 1, _INPUT, _INPUT + len(_TOKENS) + 1, _OUTPUT,
    _OUTPUT + len(_TOKENS) + 1, _CACHED, _REASONING, _COST, _WITHOUT_USAGE, _WITHOUT_PRICE,
)  # fmt: skip
"""Of each family, the cells in which is counted; of a histogram the first bucket and the sum."""

Kind = tuple[str, str | None, str | None, str | None, int | None, str | None, str]
"""What decides where a row is counted: operation, upstream, the model asked for and the one that answered, status, the
code of Flowstack's error, end."""

Cells = tuple[tuple[int, ...], tuple[int, ...] | None]
"""Where a row is counted: its requests, refusals (or -1), duration and upstream; and, if its answer was good, usage."""


def clear_gauges(segment: Segment) -> None:
    """Take back what a process said of its present state: it is gone, or only just begins."""
    for slot in segment.slots():
        family = FAMILIES.get(slot.kind)
        if family is not None and family.series[0].kind == "gauge":
            segment.cells[slot.start] = nan


def label(value: str | None) -> str:
    """A text as a label's value: of bounded length, without a key, and fit to be printed. None becomes empty."""
    if not value:
        return ""
    text = hide_keys(value[:MAX_LABEL])
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _names_size(kind: Kind) -> int:
    return len(kind[2] or "") + len(kind[3] or "")


@define
class _Watched:
    """A number that is looked at now and then."""

    cell: int
    read: Callable[[], float]
    counts: bool
    last: float = 0.0


class Recorder:
    """Counts in a segment, of which it is the only writer.

    :param segment: with what other recorders before this one counted there.
    :ivar segment: the same.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        clear_gauges(segment)
        self._shared = segment.cells
        self._held: list[float] = []  # the same again, as to read what is shared costs more; the writer knows it
        self._slots: dict[tuple[str, tuple[str, ...]], int] = {}
        for slot in segment.slots():
            self._know(slot)
        self._counts = dict.fromkeys(FAMILIES, 0)
        for kind, _ in self._slots:
            if kind in self._counts:
                self._counts[kind] += 1
        for family in FAMILIES.values():
            if family.labels:  # where all others end up, so it must be there before the segment is full
                self._take(family, (OTHER,) * len(family.labels))
        model = slice(2, 4)
        self._models = {labels[model] for kind, labels in self._slots if kind in (USAGE.name, DURATION.name)}
        self._models.discard((OTHER, OTHER))
        self._cells = Memo(self._find, MAX_CACHED, 2 * MAX_LABEL, _names_size)
        self._unauthenticated: dict[str, int] = {}
        self._watched: list[_Watched] = []
        self._failed = False

    # A request's end.

    def record(self, row: Row, operation: str) -> None:
        """Count a request that has ended, once.

        :param operation: what was asked for, as OpenTelemetry names it: ``chat``, ``embeddings`` …
        """
        ended, used = self._cells[
            operation, row["upstream"], row["model_requested"], row["model"], row["status"], row["error_code"],
            row["end"]
        ]  # fmt: skip
        requests, refusals, durations, duration, overheads, overhead, bytes_in, bytes_out = ended
        held, shared = self._held, self._shared
        shared[requests] = held[requests] = held[requests] + 1.0
        if refusals >= 0:
            shared[refusals] = held[refusals] = held[refusals] + 1.0
        took = row["duration_ms"]
        at = durations + bisect_left(_DURATIONS, took)
        shared[at] = held[at] = held[at] + 1.0
        shared[duration] = held[duration] = held[duration] + took
        if (added := row["overhead_ms"]) is not None:
            at = overheads + bisect_left(_OVERHEADS, added)
            shared[at] = held[at] = held[at] + 1.0
            shared[overhead] = held[overhead] = held[overhead] + added
        if size := row["bytes_in"]:
            shared[bytes_in] = held[bytes_in] = held[bytes_in] + size
        if size := row["bytes_out"]:
            shared[bytes_out] = held[bytes_out] = held[bytes_out] + size
        if used is not None:
            self._use(row, used)

    def settled(self, row: Row, operation: str) -> None:
        """Count what work used that an earlier request began; that request was counted when it ended."""
        _, used = self._cells[
            operation, row["upstream"], row["model_requested"], row["model"], row["status"], None, row["end"]
        ]
        if used is not None:
            self._use(row, used)

    def _use(self, row: Row, used: tuple[int, ...]) -> None:
        held, shared = self._held, self._shared
        firsts, first, inputs, into, outputs, out, cached, reasoning, cost, silent, unpriced = used
        if row["stream"] and (waited := row["first_byte_ms"]) is not None:
            at = firsts + bisect_left(_FIRST_TOKENS, waited)
            shared[at] = held[at] = held[at] + 1.0
            shared[first] = held[first] = held[first] + waited
        if (tokens := row["prompt_tokens"]) is not None:
            at = inputs + bisect_left(_TOKENS, tokens)
            shared[at] = held[at] = held[at] + 1.0
            shared[into] = held[into] = held[into] + tokens
        if (tokens := row["completion_tokens"]) is not None:
            at = outputs + bisect_left(_TOKENS, tokens)
            shared[at] = held[at] = held[at] + 1.0
            shared[out] = held[out] = held[out] + tokens
        if tokens := row["cached_tokens"]:
            shared[cached] = held[cached] = held[cached] + tokens
        if tokens := row["reasoning_tokens"]:
            shared[reasoning] = held[reasoning] = held[reasoning] + tokens
        if dollars := row["cost_usd"]:
            shared[cost] = held[cost] = held[cost] + dollars
        elif dollars is None:  # the sums lack it: how many they lack is counted
            if row["usage_source"] != "none":
                shared[unpriced] = held[unpriced] = held[unpriced] + 1.0
            elif row["method"] == "POST" or row["parent_request_id"] is not None:
                shared[silent] = held[silent] = held[silent] + 1.0

    def _find(self, kind: Kind) -> Cells:
        """The cells for a combination of values that is not remembered."""
        operation, named, requested, answered, status, code, end = kind
        upstream = label(named)
        good = status is not None and 200 <= status < 300
        models = self._models_of(label(requested), label(answered), good)
        fault = code or (str(status) if status is not None and status >= 400 else "" if end == "complete" else end)
        common = (operation, upstream, *models)
        usage = self._take(USAGE, common) if good else -1
        duration = self._take(DURATION, (*common, fault))
        requests = self._take(REQUESTS, (upstream, operation, "" if status is None else str(status), end))
        added = self._take(UPSTREAM, (upstream,))
        refusals = self._take(REFUSALS, (code,)) if code else -1
        return (
            (requests, refusals, *(duration + at for at in _DURATION_CELLS), *(added + at for at in _UPSTREAM_CELLS)),
            tuple(usage + at for at in _USAGE_CELLS) if good else None,
        )

    def _models_of(self, requested: str, answered: str, good: bool) -> tuple[str, str]:
        """The models' names as labels.

        A name that no upstream took is a client's word only: it gets a label if a good answer to it was seen, so that
        a client that makes names up cannot use the bound up.
        """
        if (requested, answered) in self._models or not (requested or answered):
            return requested, answered
        if good and len(self._models) < MAX_MODELS:
            self._models.add((requested, answered))
            self._cells.clear()  # the errors of this model were another's so far
            return requested, answered
        if not good and not answered and any(known == requested for known, _ in self._models):
            return requested, ""
        return OTHER if requested else "", OTHER if answered else ""

    def _take(self, family: Family, labels: tuple[str, ...]) -> int:
        """The first cell for these labels; for :data:`OTHER` where there is no room for more."""
        start = self._slots.get((family.name, labels))
        if start is not None:
            return start
        other = (OTHER,) * len(family.labels)
        slot = None
        if self._counts[family.name] <= family.limit or labels == other:
            slot = self.segment.add(family.name, labels, family.size)
        if slot is None:
            return self._slots[family.name, other]
        self._know(slot)
        if family.series[0].kind == "gauge":
            self._set(slot.start, nan)
        self._counts[family.name] += 1
        return slot.start

    def _know(self, slot: Slot) -> None:
        self._slots[slot.kind, slot.labels] = slot.start
        self._held += self._shared[len(self._held) : slot.start + slot.size]

    def _set(self, cell: int, value: float) -> None:
        self._shared[cell] = self._held[cell] = value

    # All else.

    def unauthenticated(self, code: str) -> None:
        """Count a request that showed no valid key.

        :param code: of the error that it got.
        """
        cell = self._unauthenticated.get(code)
        if cell is None:
            cell = self._unauthenticated[code] = self._take(UNAUTHENTICATED, (code,))
        self._set(cell, self._held[cell] + 1.0)

    def count(self, family: Family, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        cell = self._take(family, labels)
        self._set(cell, self._held[cell] + by)

    def watch(self, family: Family, read: Callable[[], float], *labels: str) -> None:
        """Have :meth:`publish` show what ``read`` gives.

        :param family: a gauge, or a counter: then ``read`` gives a number that only grows, from 0 in this process,
            and by what it has grown is added to what the processes before this one counted.
        """
        counts = family.series[0].kind == "counter"
        self._watched.append(_Watched(self._take(family, labels), read, counts))

    def publish(self) -> None:
        """Look at all that is watched, and show it. For a coarse tick; never raises."""
        for watched in self._watched:
            try:
                value = float(watched.read())
            except Exception:
                if not self._failed:
                    self._failed = True  # once: it would come with each tick
                    log.failure("metrics: a value could not be read")
                value = nan
            if not watched.counts:
                self._set(watched.cell, value)
            elif not isnan(value):
                self._set(watched.cell, self._held[watched.cell] + max(0.0, value - watched.last))
                watched.last = max(watched.last, value)
