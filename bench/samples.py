"""From single runs to medians and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import field, frozen

from bench.lab import DIRECT
from bench.measures import MEASURES
from bench.subjects import REFERENCES


@frozen(slots=True)
class Sample:
    """One run of one case with one subject.

    :ivar values: what was measured; empty if it failed.
    :ivar fault: why there is no figure.
    """

    measure: str
    case: str
    subject: str
    round: int
    turn: int
    values: dict[str, float] = field(factory=dict)
    fault: str | None = None


@frozen(slots=True)
class Figure:
    """One value of a row over all its runs.

    :ivar ratios: by reference subject, the median of the ratios to its value in the same round and turn.
    """

    median: float
    least: float
    most: float
    ratios: dict[str, float]


@frozen(slots=True)
class Row:
    """All runs of one case with one subject, summed up."""

    measure: str
    case: str
    subject: str
    runs: int
    figures: dict[str, Figure]
    faults: tuple[str, ...]


def sum_up(samples: Sequence[Sample]) -> list[Row]:
    """A row for each case and subject, in the order of their first samples; a pair is one round's same turn."""
    by_turn = {(s.measure, s.case, s.subject, s.round, s.turn): s.values for s in samples if not s.fault}

    def values_of(sample: Sample) -> dict[str, float]:
        direct = by_turn.get((sample.measure, sample.case, DIRECT, sample.round, sample.turn))
        known = MEASURES[sample.measure].derive(sample.values, direct) if sample.subject != DIRECT else {}
        return {**sample.values, **known}

    rows = []
    for key in dict.fromkeys((s.measure, s.case, s.subject) for s in samples):
        mine = [s for s in samples if (s.measure, s.case, s.subject) == key]
        good = [s for s in mine if not s.fault]
        values = [values_of(s) for s in good]
        references = {
            name: [by_turn.get((s.measure, s.case, name, s.round, s.turn), {}) for s in good] for name in REFERENCES
        }
        names = dict.fromkeys(name for one in values for name in one)
        rows.append(
            Row(
                *key,
                runs=len(good),
                figures={name: _figure(name, values, references) for name in names},
                faults=tuple(dict.fromkeys(s.fault for s in mine if s.fault)),
            )
        )
    return rows


def _figure(name: str, values: Sequence[dict[str, float]], references: dict[str, list[dict[str, float]]]) -> Figure:
    mine = [one[name] for one in values if name in one]
    ratios = {}
    for reference, theirs in references.items():
        pairs = [(one.get(name), other.get(name)) for one, other in zip(values, theirs, strict=True)]
        known = [my / their for my, their in pairs if my is not None and their]
        if known:
            ratios[reference] = statistics.median(known)
    return Figure(statistics.median(mine), min(mine), max(mine), ratios)


def find(rows: Iterable[Row], measure: str, case: str, subject: str) -> Row | None:
    """The row of that case and subject; ``case`` is the begin of the case's label."""
    return next(
        (row for row in rows if (row.measure, row.subject) == (measure, subject) and row.case.startswith(case)), None
    )


def as_documents(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows, for JSON."""
    return [
        {
            "measure": row.measure,
            "case": row.case,
            "subject": row.subject,
            "runs": row.runs,
            "figures": {
                name: {"median": f.median, "least": f.least, "most": f.most, "ratios": f.ratios}
                for name, f in row.figures.items()
            },
            "faults": list(row.faults),
        }
        for row in rows
    ]
