"""What rows come to, hour by hour.

Rows wait until they are many, as reports count those that wait one by one: so one costs the same whether it came alone
or among thousands. They are folded here, and each sum that they touch is then written once, with one plain statement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from struct import Struct

from flowstack.ledger.database import Database
from flowstack.ledger.histogram import FEW as FEW_CODES
from flowstack.ledger.histogram import Three, added, counted, stored
from flowstack.ledger.schema import (
    ALL,
    COUNTS,
    DAY,
    FIGURES,
    HOUR,
    LONGEST,
    PLACE,
    SHAPES,
    SPANS,
    SUMS,
    TOTAL,
    WITHIN,
    column,
    columns,
    thin,
)

AT_ONCE = 100_000
"""Rows that are folded together; what that takes in memory is bounded."""

PART = 5000
"""Rows of one entry in ``parts``."""

FEW = {1: 8, DAY: 4, LONGEST: 2}
"""Where fewer rows share a sum of such a span, on the average, there is none: reports read the rows."""

SUMS_OF_ROWS = ", ".join(
    [f"SUM({name})" for name in COUNTS]
    + [text for name in FIGURES for text in (f"COALESCE(SUM({name}), 0)", f"COUNT({name})")]
)
"""SQL for :data:`flowstack.ledger.schema.SUMS` of rows."""

_ORDER = (*FIGURES, *COUNTS, *(f"known_{name}" for name in FIGURES))
"""The sums as they follow one another here."""

_WHICH = "WHERE rows.id > ? AND rows.id <= ?"
_KNOWN_ONES = " + ".join(f"CASE WHEN {name} IS NULL THEN 0 ELSE {1 << at} END" for at, name in enumerate(FIGURES))
_READ = (
    f"SELECT started_at / {HOUR}, dims, times, {', '.join(f'COALESCE({name}, 0)' for name in FIGURES)}, "
    f"{', '.join(COUNTS)}, {_KNOWN_ONES} FROM rows {_WHICH}"
)
_FIRST_COUNT = 3 + len(FIGURES)
_DIMS = f"SELECT id, {', '.join(WITHIN.values())} FROM dims WHERE id IN (SELECT DISTINCT dims FROM rows {_WHICH})"

_KNOWN = "SELECT start, dims, times FROM sums WHERE shape = ? AND span = ? AND start >= ? AND start <= ?"
_COLUMNS = (*PLACE, *_ORDER, "times")
_ADD = (
    f"INSERT INTO sums ({columns(*_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT ({columns(*PLACE)}) DO UPDATE SET times = excluded.times, "
    + ", ".join(f"{name} = sums.{name} + excluded.{name}" for name in SUMS)
)

_SETTLED = (
    f"SELECT rows.id, without_usage, started_at / {HOUR}, dims, {', '.join(WITHIN.values())} FROM settled "
    "JOIN rows USING (request_id) JOIN dims ON dims.id = rows.dims"
)
_OF_SETTLED = "WHERE request_id IN (SELECT request_id FROM settled)"
_LESS = (
    f"UPDATE sums SET without_usage = without_usage - ? WHERE {' AND '.join(f'{column(name)} = ?' for name in PLACE)}"
)

TOGETHER = 24
"""Spans whose sums are read together. Others may have brought many combinations of each, which are in memory then."""

_LANES = Struct(f"<{len(_ORDER)}Q")
"""The sums as one number, so that one addition adds all of them."""
_LOW_LANES = Struct(f"<{len(FIGURES)}Q")

_Sum = tuple[int, bytes, Three | None]
"""What rows come to: their sums as a number; the codes of their times, one after another, while these are few; and the
histograms of the times of all others."""

_Groups = dict[int, dict[int, _Sum]]
"""By a start, in spans, and a combination, what comes together there."""

_Parts = defaultdict[int, defaultdict[int, list[_Sum]]]


def rolled_up(connection: Database) -> int:
    """The id up to which rows are in the sums."""
    (last,) = connection.execute("SELECT COALESCE(MAX(last), 0) FROM parts").fetchone()
    return int(last)


def waiting(connection: Database) -> int:
    """How many rows are not rolled up."""
    return _last(connection) - rolled_up(connection)


def roll_up(connection: Database) -> None:
    """Add the rows that wait to the sums. The caller holds the transaction.

    :raises sqlite3.Error: the database cannot be written.
    """
    first, last = rolled_up(connection), _last(connection)
    while first < last:
        end = min(first + AT_ONCE, last)
        _roll_up(connection, first, end)
        first = end


def settle(connection: Database) -> None:
    """A request whose usage a later row tells is no more without, wherever it was counted so.

    :raises sqlite3.Error: the database cannot be written.
    """
    execute = connection.execute
    for number, silent, hour, *dims in execute(_SETTLED).fetchall():
        part = execute("SELECT thin FROM parts WHERE last >= ? ORDER BY last LIMIT 1", (number,)).fetchone()
        if silent and part is not None:
            for shape, combination in zip((ALL, *WITHIN), dims, strict=True):
                for span in SPANS:
                    if not part[0] & thin(shape, span):
                        execute(_LESS, (silent, shape, span, hour // span, combination))
    execute(f"UPDATE rows SET without_usage = 0 {_OF_SETTLED}")
    # EXISTS, as SQLite would look through all rows to find IN them those few.
    execute("DELETE FROM settled WHERE EXISTS (SELECT 1 FROM rows WHERE rows.request_id = settled.request_id)")


def _last(connection: Database) -> int:
    (last,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM rows").fetchone()
    return int(last)


def _roll_up(connection: Database, first: int, last: int) -> None:
    """Add the rows behind one id, up to another."""
    left_out = 0
    for shape, span, groups in _levels(connection, first, last):
        if groups is None:
            left_out |= thin(shape, span)
        else:
            _store(connection, shape, span, groups)
    times = f"SELECT MIN(started_at), MAX(started_at) + 1 FROM rows {_WHICH}"
    for begin in range(first, last, PART):
        end = min(begin + PART, last)
        since, until = connection.execute(times, (begin, end)).fetchone()
        if since is not None:  # PostgreSQL leaves numbers out, for rows that it had already
            connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", (end, begin, since, until, left_out))


def _levels(connection: Database, first: int, last: int) -> Iterator[tuple[int, int, _Groups | None]]:
    """What comes together in each shape and span; None where that is hardly less than the rows."""
    count, rows = last - first, _read(connection, first, last)
    within = dict(zip((ALL, *WITHIN), zip(*connection.execute(_DIMS, (first, last)), strict=True), strict=True))
    by_hour: dict[int, _Groups] = {ALL: rows}
    by_day: dict[int, _Groups] = {}
    hours = len(rows)
    for shape, whole in SHAPES.items():
        by_day[shape] = _grouped(by_day.get(whole, rows), within[whole], within[shape], DAY if shape == whole else 1)
        # In an hour there are at most as many combinations as in all days, which is found out with less work.
        most = hours * len(set().union(*by_day[shape].values()))
        if shape not in by_hour and (shape == TOTAL or count >= FEW[1] * most):
            while whole not in by_hour:
                whole = SHAPES[whole]
            by_hour[shape] = _grouped(by_hour[whole], within[whole], within[shape])
        by_longest = _grouped(by_day[shape], within[shape], within[shape], LONGEST // DAY)
        for span, groups in ((1, by_hour.get(shape)), (DAY, by_day[shape]), (LONGEST, by_longest)):
            few = groups is None or count < FEW[span] * sum(map(len, groups.values()))
            yield shape, span, None if few and shape != TOTAL else groups


def _read(connection: Database, first: int, last: int) -> _Groups:
    """The rows by the hour and combination."""
    parts = _no_parts()
    number, pack = int.from_bytes, _LOW_LANES.pack
    counts: dict[tuple[int, ...], int] = {}  # what rows count as, which few differ in, in the lanes above the figures
    for row in connection.execute(_READ, (first, last)):
        hour, dims, code = row[0], row[1], row[2]
        high = counts.get(key := row[_FIRST_COUNT:])
        if high is None:
            *some, known = key
            lanes = *(0 for _ in FIGURES), *some, *(known >> at & 1 for at in range(len(FIGURES)))
            high = counts[key] = number(_LANES.pack(*lanes), "little")
        sums = number(pack(*row[3:_FIRST_COUNT]), "little") + high
        parts[hour][dims].append((sums, code.to_bytes(4, "little"), None))
    return _added(parts)


def _grouped(groups: _Groups, dims: Sequence[int], others: Sequence[int], length: int = 1) -> _Groups:
    """Add up what is one combination without what others tell, in spans so much longer.

    :param others: what ``dims`` are then, one by one.
    """
    parts = _no_parts()
    number = dict(zip(dims, others, strict=True))
    for start, some in groups.items():
        within = parts[start // length]
        for one, part in some.items():
            within[number[one]].append(part)
    return _added(parts)


def _no_parts() -> _Parts:
    return defaultdict(lambda: defaultdict(list))


def _added(parts: _Parts) -> _Groups:
    return {
        start: {one: some[0] if len(some) == 1 else _together(some) for one, some in within.items()}
        for start, within in parts.items()
    }


def _together(some: list[_Sum]) -> _Sum:
    """Add up. Times are counted once, when they are no more few."""
    sums, codes, counts = zip(*some, strict=True)
    few = b"".join(codes)
    histograms = [one for one in counts if one is not None]
    if len(few) > FEW_CODES:
        histograms.append(counted(few))
        few = b""
    return sum(sums), few, added(histograms) if histograms else None


def _store(connection: Database, shape: int, span: int, groups: _Groups) -> None:
    """Add them to the sums in the table."""
    unpack, size = _LANES.unpack, _LANES.size
    for starts in _runs(sorted(groups)):
        which = (shape, span, starts[0], starts[-1])
        known = {(start, one): times for start, one, times in connection.execute(_KNOWN, which)}
        get = known.get
        rows = [
            (shape, span, start, one, *unpack(sums.to_bytes(size, "little")), stored(codes, counts, get((start, one))))
            for start in starts
            for one, (sums, codes, counts) in sorted(groups[start].items())
        ]
        connection.executemany(_ADD, rows)


def _runs(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split where one is not the next, as what lies between is nobody's; and into parts of :data:`TOGETHER` at most."""
    first = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1 or at - first == TOGETHER:
            yield numbers[first:at]
            first = at
