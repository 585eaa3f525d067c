"""Counts what a process does, in its segment.

What runs once for each request is :meth:`Recorder.record`; it costs about a microsecond: one look into a dict by the
row's own values gives the cells, and each number is an addition to a cell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import isnan, nan

from attrs import define
from twisted.logger import Logger

from flowstack.metrics.families import (
    DURATION,
    FAMILIES,
    MAX_MODELS,
    OTHER,
    REFUSALS,
    REQUESTS,
    STRANGERS,
    UPSTREAM,
    USAGE,
    Family,
)
from flowstack.metrics.segment import Segment
from flowstack.policy.keys import hide_keys
from flowstack.policy.rows import Row

log = Logger()

MAX_LABEL = 128
"""Characters kept of a label's value."""

MAX_CACHED = 4096
"""Combinations of a row's values whose cells are remembered."""

_INPUT, _OUTPUT, _FIRST_TOKEN, _CACHED, _REASONING, _COST = USAGE.offsets
_OVERHEAD, _BYTES_IN, _BYTES_OUT = UPSTREAM.offsets
_TOKENS = tuple(map(int, USAGE.series[0].recorded_bounds))  # as numbers of tokens are, which compares faster
_FIRST_TOKENS = USAGE.series[2].recorded_bounds
_DURATIONS = DURATION.series[0].recorded_bounds
_OVERHEADS = UPSTREAM.series[0].recorded_bounds
_INPUT_SUM = _INPUT + len(_TOKENS) + 1
_OUTPUT_SUM = _OUTPUT + len(_TOKENS) + 1
_FIRST_TOKEN_SUM = _FIRST_TOKEN + len(_FIRST_TOKENS) + 1
_DURATION_SUM = len(_DURATIONS) + 1
_OVERHEAD_SUM = _OVERHEAD + len(_OVERHEADS) + 1

Cells = tuple[int, int, int, int, int, bool]
"""First cells of a row's usage, duration, requests, upstream and refusals (or -1), and whether the answer was good."""


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
        self._add = segment.cells
        clear_gauges(segment)
        self._slots = {(slot.kind, slot.labels): slot.start for slot in segment.slots()}
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
        self._cells: dict[tuple[object, ...], Cells] = {}
        self._strangers: dict[str, int] = {}
        self._watched: list[_Watched] = []
        self._failed = False

    # A request's end.

    def record(self, row: Row, operation: str) -> None:
        """Count a request that has ended, once.

        :param operation: what was asked for, as OpenTelemetry names it: ``chat``, ``embeddings`` …
        """
        key = (
            operation, row["upstream"], row["model_requested"], row["model"], row["status"], row["error_code"],
            row["end"],
        )  # fmt: skip
        cells = self._cells.get(key)
        if cells is None:
            cells = self._find(row, operation, key)
        usage, duration, requests, upstream, refusals, good = cells
        add = self._add
        add[requests] += 1.0
        took = row["duration_ms"]
        add[duration + bisect_left(_DURATIONS, took)] += 1.0
        add[duration + _DURATION_SUM] += took
        value = row["overhead_ms"]
        if value is not None:
            add[upstream + bisect_left(_OVERHEADS, value)] += 1.0
            add[upstream + _OVERHEAD_SUM] += value
        if size := row["bytes_in"]:
            add[upstream + _BYTES_IN] += size
        if size := row["bytes_out"]:
            add[upstream + _BYTES_OUT] += size
        if refusals >= 0:
            add[refusals] += 1.0
        if not good:
            return
        if row["stream"] and (value := row["first_byte_ms"]) is not None:
            add[usage + _FIRST_TOKEN + bisect_left(_FIRST_TOKENS, value)] += 1.0
            add[usage + _FIRST_TOKEN_SUM] += value
        tokens = row["prompt_tokens"]
        if tokens is not None:
            add[usage + _INPUT + bisect_left(_TOKENS, tokens)] += 1.0
            add[usage + _INPUT_SUM] += tokens
        tokens = row["completion_tokens"]
        if tokens is not None:
            add[usage + _OUTPUT + bisect_left(_TOKENS, tokens)] += 1.0
            add[usage + _OUTPUT_SUM] += tokens
        if tokens := row["cached_tokens"]:
            add[usage + _CACHED] += tokens
        if tokens := row["reasoning_tokens"]:
            add[usage + _REASONING] += tokens
        if value := row["cost_usd"]:
            add[usage + _COST] += value

    def _find(self, row: Row, operation: str, key: tuple[object, ...]) -> Cells:
        """The cells for a combination of values that is not remembered."""
        status, code, end = row["status"], row["error_code"], row["end"]
        upstream = label(row["upstream"])
        good = status is not None and 200 <= status < 300
        models = self._models_of(label(row["model_requested"]), label(row["model"]), good)
        fault = code or (str(status) if status is not None and status >= 400 else "" if end == "complete" else end)
        common = (operation, upstream, *models)
        cells = (
            self._take(USAGE, common) if good else -1,
            self._take(DURATION, (*common, fault)),
            self._take(REQUESTS, (upstream, operation, "" if status is None else str(status), end)),
            self._take(UPSTREAM, (upstream,)),
            self._take(REFUSALS, (code,)) if code else -1,
            good,
        )
        if len(self._cells) >= MAX_CACHED:
            self._cells.clear()
        self._cells[key] = cells
        return cells

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
        if family.series[0].kind == "gauge":
            self.segment.cells[slot.start] = nan
        self._counts[family.name] += 1
        self._slots[family.name, labels] = slot.start
        return slot.start

    # All else.

    def stranger(self, code: str) -> None:
        """Count a request that showed no valid key.

        :param code: of the error that it got.
        """
        cell = self._strangers.get(code)
        if cell is None:
            cell = self._strangers[code] = self._take(STRANGERS, (code,))
        self._add[cell] += 1.0

    def count(self, family: Family, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        self._add[self._take(family, labels)] += by

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
                    log.failure("metrics: a number could not be read")
                value = nan
            if not watched.counts:
                self._add[watched.cell] = value
            elif not isnan(value):
                self._add[watched.cell] += max(0.0, value - watched.last)
                watched.last = max(watched.last, value)
