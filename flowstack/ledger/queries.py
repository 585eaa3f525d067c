"""Reports over the index.

A report reads as few cells as it can: whole spans of 32 days where these lie in its time, then days, then hours, and
single rows only at ragged edges. Where it asks for what no cell tells apart (two attributes at once, an attribute by
the hour) it reads the rows, which gives the same figures, more slowly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import evolve, frozen

from flowstack.ledger.histogram import percentiles, three
from flowstack.ledger.schema import (
    CELL_KEY,
    COUNTS,
    DAY,
    DIMENSIONS,
    FIGURES,
    GAP,
    HAS_GAP,
    HOUR,
    LONGEST,
    PAIR,
    PLAIN,
    SUMS,
    TIMES,
    column,
    view,
)

ATTRIBUTE = "attribute:"
"""Before an attribute's name, where that is asked by."""

CLOCK = {"hour": 1, "day": DAY}
"""What is asked by the time, and its length in hours."""

PERCENTS = (50, 95, 99)

NAMES = {"prompt": "prompt_tokens", "cached": "cached_tokens", "cache_write": "cache_write_tokens",
         "completion": "completion_tokens", "reasoning": "reasoning_tokens", "total": "total_tokens",
         "cost": "cost_nano_usd", "unmetered": "without_usage", "unpriced": "without_price",
         "partial": "partial_usage"}  # fmt: skip
"""What a report calls a column of the index, where it is not the same."""

MISSING = {NAMES[name]: f"without_{'cost' if name == 'cost' else NAMES[name]}" for name in FIGURES}
"""By a figure that may be unknown, the name of the count of the rows that its sum does not know."""

_ALWAYS = LONGEST * 1_000_000 * HOUR
"""When no more request begins; a whole number of the longest spans."""


@frozen(slots=True)
class Condition:
    """What a row's field must match.

    :ivar patterns: one of these. ``*`` stands for any run of characters; the empty one matches where no value is.
    """

    field: str
    patterns: tuple[str, ...]


@frozen(slots=True)
class Question:
    """What is asked.

    :ivar by: any of :data:`flowstack.ledger.schema.DIMENSIONS`, ``day``, ``hour`` and ``attribute:<name>``.
    :ivar since: microseconds since 1970; the first that counts.
    :ivar until: the first that no more counts.
    """

    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    since: int | None = None
    until: int | None = None


class Line:
    """One line of a report: the sums of the rows that share a group.

    :ivar group: for each field of :attr:`Question.by` its value, None where the rows have none; a day or an hour is in
        hours since 1970.
    """

    __slots__ = ("group", "sums", "times")

    def __init__(
        self, group: tuple[Any, ...] = (), sums: Sequence[int] = (0,) * len(SUMS), times: Sequence[int] = (0, 0, 0)
    ) -> None:
        self.group = group
        self.sums = sums
        self.times = times

    def plus(self, other: Line, sign: int = 1) -> Line:
        """Both together; with ``sign`` -1, this one without the other."""
        return Line(
            self.group,
            [a + sign * b for a, b in zip(self.sums, other.sums, strict=True)],
            [a + sign * b for a, b in zip(self.times, other.times, strict=True)],
        )

    def figures(self) -> dict[str, int | float | None]:
        """Everything, by name; None is unknown. Times are in milliseconds, ``cost_nano_usd`` in 10⁻⁹ US dollars.

        A figure is known where at least one row told it, and is the sum of those that did. ``without_usage`` counts
        POSTs that were answered 2xx without a word on usage, ``without_price`` those rows with usage but without cost,
        ``partial_usage`` those whose usage is what was seen before a cut. ``without_…`` of a figure counts the rows
        that used something, or may have, and do not tell it: its sum lacks them.
        """
        sums = dict(zip(SUMS, self.sums, strict=True))
        found: dict[str, int | float | None] = {NAMES.get(name, name): sums[name] for name in COUNTS}
        for name in FIGURES:
            found[NAMES[name]] = sums[name] if sums[f"known_{name}"] else None
        due = sums["known_cost"] + sums["unpriced"] + sums["unmetered"]
        for name in FIGURES:
            found[MISSING[NAMES[name]]] = max(0, due - sums[f"known_{name}"])
        for name, histogram in zip(TIMES, self.times, strict=True):
            for percent, value in zip(PERCENTS, percentiles(histogram, PERCENTS), strict=True):
                found[f"{name}_p{percent}_ms"] = value
        return found

    @property
    def requests(self) -> int:
        """How many requests."""
        return self.sums[0]


def report(connection: sqlite3.Connection, question: Question) -> list[Line]:
    """Answer: a line for each group that has rows, in no order.

    :raises sqlite3.Error: the index cannot be read.
    """
    connection.execute("BEGIN")  # all of it as of one moment
    try:
        return _Reader(connection, question).lines()
    finally:
        connection.execute("COMMIT")


def gaps(connection: sqlite3.Connection, question: Question) -> list[Line]:
    """Rows without usage or without a price, of those that are asked for: a line for each model or, where there is
    none, endpoint, and each reason; the group is the three of them.

    :raises sqlite3.Error: the index cannot be read.
    """
    connection.execute("BEGIN")
    try:
        return _Reader(connection, evolve(question, by=("model", *GAP)), HAS_GAP).lines()
    finally:
        connection.execute("COMMIT")


def total(lines: Iterable[Line]) -> Line:
    """All together."""
    found = Line()
    for line in lines:
        found = found.plus(line)
    return found


_Groups = dict[tuple[Any, ...], Line]

_Column = tuple[str, str]

_NO_WORD = -2
"""The number of no word, and of no view."""

_CELL_SUMS = ", ".join([*(f"sum({name})" for name in SUMS), f"merge({', '.join(TIMES)})"])
_ROW_SUMS = ", ".join(
    [f"sum({name})" for name in COUNTS]
    + [text for name in FIGURES for text in (f"ifnull(sum({name}), 0)", f"count({name})")]
    + ["tally(buckets)"]
)


@frozen(slots=True)
class Standing:
    """How far the index is.

    :ivar bad_lines: lines of the journal that are no rows, skipped so far.
    :ivar last_row: when the youngest row had begun, in microseconds since 1970.
    """

    bad_lines: int
    last_row: int | None


def standing(connection: sqlite3.Connection) -> Standing:
    """How far the index is.

    :raises sqlite3.Error: it cannot be read.
    """
    (bad,) = connection.execute("SELECT ifnull(sum(bad), 0) FROM files").fetchone()
    (last,) = connection.execute("SELECT max(started_at) FROM rows").fetchone()
    return Standing(bad, last)


class _Reader:
    """Reads one report.

    :param only: SQL's condition on the rows that count, which are then read one by one.
    """

    def __init__(self, connection: sqlite3.Connection, question: Question, only: str = "") -> None:
        self._connection = connection
        self._question = question
        self._since = 0 if question.since is None else question.since
        self._until = _ALWAYS if question.until is None else question.until
        self._where = {condition.field: condition.patterns for condition in question.where}
        fields = dict.fromkeys([*question.by, *self._where])
        self._names = [field for field in fields if field.startswith(ATTRIBUTE)]
        self._plain = PLAIN if not any(field in DIMENSIONS for field in fields) else 0
        self._by = question.by
        self._only = only
        self._names_found: dict[int, str] = {}

    def lines(self) -> list[Line]:
        groups: _Groups = {}
        for span, since, until in _parts(self._since, self._until, self._spans()):
            if not span:
                found = self._from_rows(since, until)
            elif self._names:
                found = self._by_attribute(self._names[0], span, since, until)
            else:
                found = self._from_cells(0, self._by, span, since, until)
            for group, line in found.items():
                groups[group] = groups[group].plus(line) if group in groups else line
        return [Line(self._named(group), line.sums, line.times) for group, line in groups.items() if any(line.sums)]

    def _spans(self) -> list[int]:
        """The spans of the cells that can answer, longest first."""
        if len(self._names) > 1 or self._only:
            return []
        spans = (DAY, 1) if self._plain else (LONGEST, DAY) if self._names else (LONGEST, DAY, 1)
        finest = min((CLOCK[field] for field in self._by if field in CLOCK), default=LONGEST)
        return [span for span in spans if span <= finest]

    def _by_attribute(self, field: str, span: int, since: int, until: int) -> _Groups:
        name = self._number("attribute", field.removeprefix(ATTRIBUTE))
        groups = self._from_cells(name, self._by, span, since, until)
        if "" in self._where.get(field, ("",)):
            # Rows without the attribute are all rows, less those that have it.
            others = tuple(other for other in self._by if other != field)
            if field in self._where:
                have = self._from_cells(name, others, span, since, until, any_value=True)
            else:
                have = {}
                for place, line in groups.items():
                    group = tuple(value for other, value in zip(self._by, place, strict=True) if other != field)
                    have[group] = have[group].plus(line) if group in have else line
            for group, line in self._from_cells(0, others, span, since, until, any_value=True).items():
                values = iter(group)
                place = tuple(0 if other == field else next(values) for other in self._by)
                rest = line.plus(have[group], -1) if group in have else line
                groups[place] = groups[place].plus(rest) if place in groups else rest
        return groups

    def _from_cells(
        self, name: int, by: tuple[str, ...], span: int, since: int, until: int, any_value: bool = False
    ) -> _Groups:
        condition, values = self._conditions(
            "view = ? AND span = ? AND start >= ? AND start < ?", ATTRIBUTE if any_value else None
        )
        length = span * HOUR
        values = [view(name, self._plain), span, since // length, until // length, *values]
        return dict(self._read("cells", [_cell_column(field, span) for field in by], _CELL_SUMS, condition, values))

    def _from_rows(self, since: int, until: int) -> _Groups:
        """From single rows, which tell everything apart."""
        columns = [_row_column(field) for field in self._by if not field.startswith(ATTRIBUTE)]
        first = "started_at >= ? AND started_at < ?"
        condition, values = self._conditions(f"{self._only} AND {first}" if self._only else first, ATTRIBUTE)
        values = [since, until, *values]
        if not self._names:
            return dict(self._read("rows", columns, _ROW_SUMS, condition, values))
        names = {self._number("attribute", field.removeprefix(ATTRIBUTE)): field for field in self._names}
        allowed = {field: self._values(field) for field in self._names if field in self._where}
        groups: _Groups = {}
        columns.append(("attributes", "attributes"))
        for (*group, attributes), line in self._read("rows", columns, _ROW_SUMS, condition, values):
            have = {names[name]: value for name, value in PAIR.iter_unpack(attributes) if name in names}
            if all(have.get(field, 0) in some for field, some in allowed.items()):
                others = iter(group)
                place = tuple(have.get(f, 0) if f.startswith(ATTRIBUTE) else next(others) for f in self._by)
                groups[place] = groups[place].plus(line) if place in groups else line
        return groups

    def _read(
        self, table: str, columns: list[_Column], sums: str, condition: str, values: list[Any]
    ) -> Iterator[tuple[tuple[Any, ...], Line]]:
        """Groups and their sums, from one table.

        :param columns: how each field is read, and what to group by so that the table's own order serves.
        """
        count = len(columns)
        query = f"SELECT {', '.join([*(read for read, _ in columns), sums])} FROM {table} WHERE {condition}"
        if columns:
            query += f" GROUP BY {', '.join(sorted((group for _, group in columns), key=_rank))}"
        for row in self._connection.execute(query, values):
            if row[count] is not None:
                yield row[:count], Line((), row[count:-1], three(row[-1]))

    # What is asked for

    def _conditions(self, first: str, skip: str | None) -> tuple[str, list[Any]]:
        """SQL for :attr:`Question.where`, and its values.

        :param skip: conditions on fields that begin so are left out.
        """
        conditions, values = [first], []
        for field, patterns in self._where.items():
            if skip is not None and field.startswith(skip):
                continue
            place = _column(field)
            alternatives = []
            for pattern in patterns:
                if not pattern:
                    alternatives.append(f"{place} = 0")
                elif field == "status":
                    alternatives.append(f"{place} != 0 AND fits(?, CAST({place} AS TEXT))")
                    values.append(pattern)
                else:
                    alternatives.append(f"{place} IN (SELECT id FROM words WHERE kind = ? AND fits(?, word))")
                    values += [field, pattern]
            conditions.append(f"({' OR '.join(alternatives)})")
        return " AND ".join(conditions), values

    def _values(self, field: str) -> set[int]:
        """The numbers of an attribute's values that match; 0 if rows without it do."""
        found = set()
        for pattern in self._where[field]:
            if pattern:
                words = self._connection.execute(
                    "SELECT id FROM words WHERE kind = ? AND fits(?, word)", (field, pattern)
                )
                found |= {number for (number,) in words}
            else:
                found.add(0)
        return found

    def _number(self, kind: str, word: str) -> int:
        """The number of a word; one that stands for none where there is no such word."""
        found = self._connection.execute("SELECT id FROM words WHERE kind = ? AND word = ?", (kind, word)).fetchone()
        return found[0] if found else _NO_WORD

    def _named(self, group: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value if field in CLOCK else self._name(field, value) for field, value in zip(self._by, group, strict=True)
        )

    def _name(self, field: str, value: int) -> str | None:
        if not value:
            return None
        if field == "status":
            return str(value)
        found = self._names_found.get(value)
        if found is None:
            found = self._connection.execute("SELECT word FROM words WHERE id = ?", (value,)).fetchone()[0]
            self._names_found[value] = found
        return found


def _parts(since: int, until: int, spans: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Split a time into whole spans, the longest where they fit: span (0 for single rows), beginning, end."""
    if since >= until:
        return
    if not spans:
        yield 0, since, until
        return
    length = spans[0] * HOUR
    first, last = -(-since // length) * length, until // length * length
    if first >= last:
        yield from _parts(since, until, spans[1:])
        return
    yield from _parts(since, first, spans[1:])
    yield spans[0], first, last
    yield from _parts(last, until, spans[1:])


def _column(field: str) -> str:
    return "value" if field.startswith(ATTRIBUTE) else column(field)


def _cell_column(field: str, span: int) -> _Column:
    length = CLOCK.get(field)
    if length is None:
        return _column(field), _column(field)
    if length == span:
        return f"start * {span}", "start"
    return (f"start * {span} / {length} * {length}",) * 2


def _row_column(field: str) -> _Column:
    length = CLOCK.get(field)
    return (column(field) if length is None else f"started_at / {HOUR * length} * {length}",) * 2


def _rank(name: str) -> int:
    return CELL_KEY.index(name) if name in CELL_KEY else len(CELL_KEY)
