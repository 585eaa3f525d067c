"""Reports over the index.

A report reads as few sums as it can: of whole spans of 32 days where these lie in its time, then of days, then of
hours, and single rows only at ragged edges, and where they are not rolled up. What no sums tell apart (an attribute and
another field by the hour) it reads from the rows, which gives the same figures, more slowly.
"""

from __future__ import annotations

import gc
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from attrs import evolve, frozen

from flowstack.keys.patterns import compiled
from flowstack.ledger.database import Database
from flowstack.ledger.histogram import Times, percentiles
from flowstack.ledger.rollup import SUMS_OF_ROWS, rolled_up
from flowstack.ledger.schema import (
    COUNTS,
    DAY,
    FIGURES,
    GAP,
    HOUR,
    LONGEST,
    SHAPES,
    SPANS,
    SUBJECTS,
    SUMS,
    TIMES,
    column,
    thin,
)

ATTRIBUTE = "attribute:"
"""Before an attribute's name, where that is asked by."""

CLOCK = {"hour": 1, "day": DAY}
"""What is asked by the time, and its length in hours."""

PERCENTS = (50, 95, 99)

MISSING = {name: f"without_{name.removesuffix('_nano_usd')}" for name in FIGURES}
"""By a figure that may be unknown, the name of the count of the rows that its sum does not know."""

_KNOWN = {name: f"known_{name}" for name in FIGURES}

_PERCENTILES = [f"{name}_p{percent}_ms" for name in TIMES for percent in PERCENTS]

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
        self, group: tuple[Any, ...] = (), sums: Sequence[int] = (0,) * len(SUMS), times: Times | None = None
    ) -> None:
        self.group = group
        self.sums = sums
        self.times = times or Times()

    def figures(self) -> dict[str, int | float | None]:
        """Everything, by name; None is unknown: :meth:`counts` and :meth:`percentiles`."""
        return {**self.counts(), **self.percentiles()}

    def counts(self) -> dict[str, int | None]:
        """All but the times; ``cost_nano_usd`` in 10⁻⁹ US dollars.

        A figure is known where at least one row told it, and is the sum of those that did. ``without_usage`` counts
        POSTs, and responses on WebSockets, that were answered 2xx without a word on usage, ``without_price`` those rows
        with usage but without cost, ``partial_usage`` those whose usage is what was seen before a cut. ``without_…`` of
        a figure counts the rows that used something, or may have, and do not tell it: its sum lacks them.
        """
        sums = dict(zip(SUMS, self.sums, strict=True))
        found: dict[str, int | None] = {name: sums[name] for name in COUNTS}
        due = sums["known_cost_nano_usd"] + sums["without_price"] + sums["without_usage"]
        for name, known in _KNOWN.items():
            found[name] = sums[name] if sums[known] else None
        for name, known in _KNOWN.items():
            found[MISSING[name]] = max(0, due - sums[known])
        return found

    def percentiles(self) -> dict[str, float | None]:
        """Those of the times, in milliseconds."""
        some = chain.from_iterable(percentiles(histogram, PERCENTS) for histogram in self.times.three())
        return dict(zip(_PERCENTILES, some, strict=True))

    @property
    def requests(self) -> int:
        """How many requests."""
        return self.sums[0]


def report(connection: Database, question: Question) -> list[Line]:
    """Answer: a line for each group that has rows, in no order.

    :raises sqlite3.Error: the index cannot be read.
    """
    return _read(connection, question)


def gaps(connection: Database, question: Question) -> list[Line]:
    """Rows without usage or without a price, of those that are asked for: a line for each model or, where there is
    none, endpoint, and each reason; the group is the three of them. No other figure of these lines means anything.

    :raises sqlite3.Error: the index cannot be read.
    """
    return _read(connection, evolve(question, by=("model", *GAP)), only_gaps=True)


def _read(connection: Database, question: Question, only_gaps: bool = False) -> list[Line]:
    connection.execute("BEGIN")  # all of it as of one moment
    collects = gc.isenabled()
    gc.disable()  # thousands of lines would have it look at all of them again and again, a quarter of the time
    try:
        return _Reader(connection, question, only_gaps).lines()
    finally:
        if collects:
            gc.enable()
        connection.execute("COMMIT")


def total(lines: Iterable[Line]) -> Line:
    """All together."""
    some = list(lines)
    if not some:
        return Line()
    return Line((), _added([line.sums for line in some]), Times.together(line.times for line in some))


def _added(some: Sequence[Sequence[int]]) -> Sequence[int]:
    return some[0] if len(some) == 1 else [*map(sum, zip(*some, strict=True))]


def _together(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ids in as few ranges: PostgreSQL would not look for each part's rows by their ids in one question."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


_WORDS_AT_ONCE = 1000

_NO_WORD = -2
"""The number of no word."""

_HAS_GAP = "without_usage + without_price > 0"

_SUMS = ", ".join(f"SUM({name})" for name in SUMS)


_LAST = (
    "SELECT MAX(began) FROM (SELECT MAX(until) - 1 AS began FROM parts UNION ALL SELECT MAX(started_at) FROM rows "
    "WHERE id > ?) AS latest"
)


@frozen(slots=True)
class Standing:
    """How far the index is.

    :ivar bad_lines: lines of the journal that are no rows, skipped so far.
    :ivar last_row: when the youngest row had begun, in microseconds since 1970.
    """

    bad_lines: int
    last_row: int | None


def standing(connection: Database) -> Standing:
    """How far the index is.

    :raises sqlite3.Error: it cannot be read.
    """
    (bad,) = connection.execute("SELECT COALESCE(SUM(bad), 0) FROM files").fetchone()
    waits = (rolled_up(connection),)
    (last,) = connection.execute(_LAST, waits).fetchone()
    return Standing(bad, last)


class _Reader:
    """Reads one report."""

    def __init__(self, connection: Database, question: Question, only_gaps: bool) -> None:
        self._connection = connection
        self._since = 0 if question.since is None else question.since
        self._until = _ALWAYS if question.until is None else question.until
        self._by = question.by
        self._only_gaps = only_gaps
        self._names: dict[int, str] = {}
        self._sums: defaultdict[tuple[Any, ...], list[Sequence[int]]] = defaultdict(list)
        self._times: defaultdict[tuple[Any, ...], Times] = defaultdict(Times)
        where = {condition.field: condition.patterns for condition in question.where}
        fields = [field for field in dict.fromkeys([*question.by, *where]) if field not in CLOCK]
        attributes = [field for field in fields if field.startswith(ATTRIBUTE)]
        asked = {"attributes" if field in attributes else field for field in fields}
        subjects = sum(subject for subject, names in SUBJECTS.items() if asked.intersection(names))
        self._shape = min((shape for shape in SHAPES if shape & subjects == subjects), key=int.bit_count)
        self._places = {field: column(field) for field in fields}
        self._join = "CROSS JOIN dims" if fields else ""
        self._conditions = " AND dims.id = {table}.dims" if fields else ""
        for number, field in enumerate(attributes):
            word = self._number("attribute", field.removeprefix(ATTRIBUTE))
            pair = f"pair_{number}"
            self._join += f" LEFT JOIN pairs {pair} ON {pair}.attributes = dims.attributes AND {pair}.name = {word}"
            self._places[field] = f"COALESCE({pair}.value, 0)"
        for field, patterns in where.items():
            numbers = ", ".join(map(str, self._matching(field, patterns))) or "NULL"  # PostgreSQL knows no empty list
            self._conditions += f" AND {self._places[field]} IN ({numbers})"
        if only_gaps:
            self._conditions += f" AND {_HAS_GAP}"

    def lines(self) -> list[Line]:
        for span, since, until in _parts(self._since, self._until, self._spans()):
            if span:
                self._add_sums(span, since, until)
            self._add_rows(thin(self._shape, span) if span else None, since, until)
        which = "rows.id > ? AND started_at >= ? AND started_at < ?"
        self._add_codes("rows", which, (rolled_up(self._connection), self._since, self._until))
        found = [(group, sums) for group, sums in self._sums.items() if any(map(any, sums))]
        self._read_names([group for group, _ in found])
        return [Line(self._named(group), _added(sums), self._times[group]) for group, sums in found]

    def _spans(self) -> list[int]:
        """The spans of the sums that can answer, longest first."""
        finest = min((CLOCK[field] for field in self._by if field in CLOCK), default=LONGEST)
        return [span for span in reversed(SPANS) if span <= finest]

    def _add_sums(self, span: int, since: int, until: int) -> None:
        """Add what lies in whole spans."""
        clock = {field: f"start * {span} / {length} * {length}" for field, length in CLOCK.items()}
        which = "shape = ? AND span = ? AND start >= ? AND start < ?"
        length = span * HOUR
        values = (self._shape, span, since // length, until // length)
        for group, times in self._add("sums", "sums", clock, _SUMS, which, values):
            self._times[group].add(times)

    def _add_rows(self, thin: int | None, since: int, until: int) -> None:
        """Add single rows of those that are rolled up.

        :param thin: the bit of the sums that the rows are not in; None for all rows.
        """
        which = "" if thin is None else f" AND thin & {thin} != 0"
        parts = self._connection.execute(
            f"SELECT first, last FROM parts WHERE until > ? AND since < ?{which} ORDER BY last", (since, until)
        )
        for first, last in _together(parts.fetchall()):
            which = "rows.id > ? AND rows.id <= ? AND started_at >= ? AND started_at < ?"
            self._add_codes("rows", which, (first, last, since, until))

    def _add_codes(self, source: str, which: str, values: Sequence[int]) -> None:
        """Add single rows, which tell everything apart.

        :param which: SQL for those that count.
        """
        clock = {field: f"started_at / {HOUR * length} * {length}" for field, length in CLOCK.items()}
        codes: defaultdict[tuple[Any, ...], array[int]] = defaultdict(lambda: array("I"))
        for group, code in self._add(source, "rows", clock, SUMS_OF_ROWS, which, values):
            codes[group].append(code)
        for group, some in codes.items():
            self._times[group].codes += some.tobytes()

    def _add(
        self, source: str, table: str, clock: dict[str, str], sums: str, which: str, values: Sequence[int]
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Add the sums of a table to each group, and give the times of each of its rows.

        :param source: the table, and what is read before it.
        """
        reads = [clock.get(field) or self._places.get(field, field) for field in self._by]
        query = f"FROM {source} {self._join} WHERE {which}{self._conditions.format(table=table)}"
        places = ", ".join(str(place) for place in range(1, len(reads) + 1))
        grouped = f"SELECT {', '.join([*reads, sums])} {query}{' GROUP BY ' if reads else ''}{places}"
        count = len(reads)
        for row in self._connection.execute(grouped, values):
            if row[count] is not None:  # without groups, no rows are one line of nothing
                self._sums[row[:count]].append(row[count:])
        if not self._only_gaps:
            for row in self._connection.execute(f"SELECT {', '.join([*reads, f'{table}.times'])} {query}", values):
                yield row[:count], row[count]

    # What is asked for

    def _matching(self, field: str, patterns: tuple[str, ...]) -> Iterator[int]:
        """The numbers of a field's values that match; 0 if rows without one do."""
        if field == "status":
            known = self._connection.execute("SELECT DISTINCT status, CAST(status AS TEXT) FROM dims WHERE status > 0")
        else:
            known = self._connection.execute("SELECT id, word FROM words WHERE kind = ?", (field,))
        wanted = compiled(tuple(filter(None, patterns)))
        yield from (number for number, word in known if wanted.fit(word))
        if "" in patterns:
            yield 0

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
        return str(value) if field == "status" else self._names[value]

    def _read_names(self, groups: list[tuple[Any, ...]]) -> None:
        """Look up the words of all groups, many at once: each question to a server on its own takes a way there."""
        places = [at for at, field in enumerate(self._by) if field not in CLOCK and field != "status"]
        words = sorted({group[at] for group in groups for at in places} - {0, None})
        for start in range(0, len(words), _WORDS_AT_ONCE):
            some = ", ".join(map(str, words[start : start + _WORDS_AT_ONCE]))
            self._names.update(self._connection.execute(f"SELECT id, word FROM words WHERE id IN ({some})"))


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
