"""Reports over the index.

A report reads as few sums as it can: of whole spans of 32 days where these lie in its time, then of days, then of
hours, and single rows only at ragged edges and where they are not rolled up yet. Where it asks for what no sums tell
apart (two attributes at once, an attribute and another field by the hour) it reads the rows, which gives the same
figures, more slowly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import evolve, frozen

from flowstack.keys.patterns import compiled
from flowstack.ledger.histogram import percentiles
from flowstack.ledger.rollup import SUMS_OF_ROWS, bands_of_rows
from flowstack.ledger.schema import (
    BAND,
    BUCKETS,
    COUNTS,
    DAY,
    DIMENSIONS,
    EVERYTHING,
    FIGURES,
    GAP,
    HAS_GAP,
    HOUR,
    LONGEST,
    NOTHING,
    SHAPES,
    SUMS,
    TIMES,
    column,
)

ATTRIBUTE = "attribute:"
"""Before an attribute's name, where that is asked by."""

CLOCK = {"hour": 1, "day": DAY}
"""What is asked by the time, and its length in hours."""

PERCENTS = (50, 95, 99)

MISSING = {name: f"without_{name.removesuffix('_nano_usd')}" for name in FIGURES}
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


Bands = dict[int, Sequence[int]]
"""By the number of a band, the counts of its buckets, see :mod:`flowstack.ledger.histogram`."""


class Line:
    """One line of a report: the sums of the rows that share a group.

    :ivar group: for each field of :attr:`Question.by` its value, None where the rows have none; a day or an hour is in
        hours since 1970.
    :ivar times: for each of :data:`flowstack.ledger.schema.TIMES` its counts.
    """

    __slots__ = ("group", "sums", "times")

    def __init__(self, group: tuple[Any, ...] = ()) -> None:
        self.group = group
        self.sums: Sequence[int] = (0,) * len(SUMS)
        self.times: tuple[Bands, ...] = tuple({} for _ in TIMES)

    def add(self, other: Line, sign: int = 1) -> None:
        """Add another's figures; with ``sign`` -1, take them away."""
        self.add_sums(other.sums, sign)
        for what, bands in enumerate(other.times):
            for band, counts in bands.items():
                self.add_times(what, band, counts, sign)

    def add_sums(self, sums: Sequence[int], sign: int = 1) -> None:
        """Add sums."""
        self.sums = [a + sign * b for a, b in zip(self.sums, sums, strict=True)]

    def add_times(self, what: int, band: int, counts: Sequence[int], sign: int = 1) -> None:
        """Add the counts of a band."""
        bands = self.times[what]
        known = bands.get(band)
        if known is not None:
            counts = [a + sign * b for a, b in zip(known, counts, strict=True)]
        bands[band] = counts

    def figures(self) -> dict[str, int | float | None]:
        """Everything, by name; None is unknown. Times are in milliseconds, ``cost_nano_usd`` in 10⁻⁹ US dollars.

        A figure is known where at least one row told it, and is the sum of those that did. ``without_usage`` counts
        POSTs that were answered 2xx without a word on usage, ``without_price`` those rows with usage but without cost,
        ``partial_usage`` those whose usage is what was seen before a cut. ``without_…`` of a figure counts the rows
        that used something, or may have, and do not tell it: its sum lacks them.
        """
        sums = dict(zip(SUMS, self.sums, strict=True))
        found: dict[str, int | float | None] = {name: sums[name] for name in COUNTS}
        for name in FIGURES:
            found[name] = sums[name] if sums[f"known_{name}"] else None
        due = sums["known_cost_nano_usd"] + sums["without_price"] + sums["without_usage"]
        for name in FIGURES:
            found[MISSING[name]] = max(0, due - sums[f"known_{name}"])
        for name, bands in zip(TIMES, self.times, strict=True):
            for percent, value in zip(PERCENTS, percentiles(bands, PERCENTS), strict=True):
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
    return _read(connection, question)


def gaps(connection: sqlite3.Connection, question: Question) -> list[Line]:
    """Rows without usage or without a price, of those that are asked for: a line for each model or, where there is
    none, endpoint, and each reason; the group is the three of them.

    :raises sqlite3.Error: the index cannot be read.
    """
    return _read(connection, evolve(question, by=("model", *GAP)), f" AND {HAS_GAP}")


def _read(connection: sqlite3.Connection, question: Question, only: str = "") -> list[Line]:
    connection.execute("BEGIN")  # all of it as of one moment
    try:
        return _Reader(connection, question, only).lines()
    finally:
        connection.execute("ROLLBACK")


def total(lines: Iterable[Line]) -> Line:
    """All together."""
    found = Line()
    for line in lines:
        found.add(line)
    return found


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
    (bad,) = connection.execute("SELECT COALESCE(SUM(bad), 0) FROM files").fetchone()
    (last,) = connection.execute("SELECT MAX(started_at) FROM rows").fetchone()
    return Standing(bad, last)


_Groups = dict[tuple[Any, ...], Line]

_NO_WORD = -2
"""The number of no word."""

_ROLLED_UP = "(SELECT id FROM rolled_up)"


class _Reader:
    """Reads one report.

    :param only: SQL's further condition on rows, which are then read one by one.
    """

    def __init__(self, connection: sqlite3.Connection, question: Question, only: str = "") -> None:
        self._connection = connection
        self._since = 0 if question.since is None else question.since
        self._until = _ALWAYS if question.until is None else question.until
        self._by = question.by
        self._names: dict[int, str] = {}
        self._where = {condition.field: condition.patterns for condition in question.where}
        self._fields = list(self._where)
        self._only = only
        fields = dict.fromkeys([*question.by, *self._where])
        self._attributes = [field for field in fields if field.startswith(ATTRIBUTE)]
        told = {field for field in fields if field in DIMENSIONS}
        shapes = (NOTHING, EVERYTHING) if self._attributes else range(len(SHAPES))
        self._shape = next(shape for shape in shapes if told.issubset(SHAPES[shape]))

    def lines(self) -> list[Line]:
        groups: _Groups = {}
        self._connection.execute("CREATE TEMPORARY TABLE allowed (field BIGINT, number BIGINT)")
        for field, patterns in self._where.items():
            self._match(field, patterns)
        for span, since, until in _parts(self._since, self._until, self._spans()):
            if not span:
                self._add_rows(groups, "rows.id + 0 <=", "started_at", since, until)
            elif self._attributes:
                self._add_attribute(groups, self._attributes[0], span, since, until)
            else:
                self._add_sums(groups, 0, span, since, until)
        self._add_rows(groups, "rows.id >", "started_at + 0", self._since, self._until)
        found = []
        for group, line in groups.items():
            if any(line.sums):
                line.group = self._named(group)
                found.append(line)
        return found

    def _spans(self) -> list[int]:
        """The spans of the sums that can answer, longest first."""
        if len(self._attributes) > 1 or self._only:
            return []
        spans = (LONGEST, DAY) if self._attributes and self._shape != NOTHING else (LONGEST, DAY, 1)
        finest = min((CLOCK[field] for field in self._by if field in CLOCK), default=LONGEST)
        return [span for span in spans if span <= finest]

    def _add_attribute(self, groups: _Groups, field: str, span: int, since: int, until: int) -> None:
        name = self._number("attribute", field.removeprefix(ATTRIBUTE))
        self._add_sums(groups, name, span, since, until)
        if field in self._where and "" not in self._where[field]:
            return
        # Rows without the attribute are all rows, less those that have it.
        others: _Groups = {}
        self._add_sums(others, 0, span, since, until, without=field)
        self._add_sums(others, name, span, since, until, without=field, sign=-1)
        for group, line in others.items():
            groups.setdefault(group, Line()).add(line)

    def _add_sums(
        self, groups: _Groups, attribute: int, span: int, since: int, until: int, without: str = "", sign: int = 1
    ) -> None:
        """Add what lies in whole spans.

        :param without: an attribute whose values are not told apart, nor asked for.
        """
        reads = []
        for field in self._by:
            if field in CLOCK:
                reads.append(f"start * {span} / {CLOCK[field]} * {CLOCK[field]}")
            else:
                reads.append("0" if field == without else _column(field, "value"))
        conditions = [self._allowed(field, _column(field, "value")) for field in self._where if field != without]
        length = span * HOUR
        values = (attribute, self._shape, span, since // length, until // length)
        for table, names, band in (("sums", SUMS, ()), ("times", BUCKETS, BAND)):
            query = (
                f"FROM {table} CROSS JOIN dims WHERE attribute = ? AND {table}.shape = ? AND span = ? AND start >= ? "
                f"AND start < ? AND dims.id = {table}.dims{''.join(conditions)}"
            )
            self._add(groups, reads, ", ".join(f"SUM({name})" for name in names), query, values, band, sign)

    def _add_rows(self, groups: _Groups, which: str, started_at: str, since: int, until: int) -> None:
        """Add single rows, which tell everything apart.

        :param which: SQL for those that are rolled up, or not.
        :param started_at: SQL for the time. Of this and the id one has ``+ 0``, so that the other's index is used.
        """
        tables, places = ["rows JOIN dims ON dims.id = rows.dims"], {}
        for number, field in enumerate(self._attributes):
            word = self._number("attribute", field.removeprefix(ATTRIBUTE))
            pair = f"pair_{number}"
            tables.append(f"LEFT JOIN pairs {pair} ON {pair}.attributes = rows.attributes AND {pair}.name = {word}")
            places[field] = f"COALESCE({pair}.value, 0)"
        reads = []
        for field in self._by:
            if field in CLOCK:
                reads.append(f"started_at / {CLOCK[field] * HOUR} * {CLOCK[field]}")
            else:
                reads.append(_column(field, places.get(field)))
        conditions = [self._allowed(field, _column(field, places.get(field))) for field in self._where]
        times = f"{started_at} >= ? AND {started_at} < ?"
        query = f"FROM {' '.join(tables)} WHERE {which} {_ROLLED_UP} AND {times}{self._only}{''.join(conditions)}"
        self._add(groups, reads, SUMS_OF_ROWS, query, (since, until))
        for what, name in enumerate(TIMES):
            *band, counts = bands_of_rows(what)
            self._add(groups, reads, counts, f"{query} AND {name}_bucket > 0", (since, until), band)

    def _add(
        self,
        groups: _Groups,
        reads: Sequence[str],
        figures: str,
        query: str,
        values: Sequence[int],
        band: Sequence[str] = (),
        sign: int = 1,
    ) -> None:
        """Add what a query gives to each group: sums, or counts of times where a band is read."""
        told = [*reads, *band]
        places = ", ".join(str(place) for place in range(1, len(told) + 1))
        text = f"SELECT {', '.join([*told, figures])} {query}{' GROUP BY ' if told else ''}{places}"
        count = len(reads)
        for row in self._connection.execute(text, values):
            group = row[:count]
            line = groups.get(group)
            if line is None:
                line = groups[group] = Line()
            if band:
                line.add_times(row[count], row[count + 1], row[count + 2 :], sign)
            elif row[count] is not None:  # no rows at all, and no groups, are one line of nothing
                line.add_sums(row[count:], sign)

    # What is asked for

    def _match(self, field: str, patterns: tuple[str, ...]) -> None:
        """Keep the numbers of a field's values that match; 0 if rows without one do."""
        if field == "status":
            known = self._connection.execute("SELECT DISTINCT status, CAST(status AS TEXT) FROM dims WHERE status > 0")
        else:
            known = self._connection.execute("SELECT id, word FROM words WHERE kind = ?", (field,))
        wanted = compiled(tuple(filter(None, patterns)))
        numbers = [number for number, word in known if wanted.fit(word)]
        if "" in patterns:
            numbers.append(0)
        place = self._fields.index(field)
        self._connection.executemany("INSERT INTO allowed VALUES (?, ?)", ((place, number) for number in numbers))

    def _allowed(self, field: str, value: str) -> str:
        return f" AND {value} IN (SELECT number FROM allowed WHERE field = {self._fields.index(field)})"

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
        found = self._names.get(value)
        if found is None:
            found = self._connection.execute("SELECT word FROM words WHERE id = ?", (value,)).fetchone()[0]
            self._names[value] = found
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


def _column(field: str, attribute: str | None) -> str:
    """SQL for a field's value, or an attribute's."""
    return attribute if attribute is not None and field.startswith(ATTRIBUTE) else column(field)
