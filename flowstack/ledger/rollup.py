"""What rows come to, hour by hour.

Rows wait until they are many, as reports count those that wait one by one: so one costs the same whether it came alone
or among thousands. They are folded here, and each sum that they touch is then written once, with one plain statement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from struct import Struct

from flowstack.ledger.database import Database
from flowstack.ledger.histogram import stored
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

_WHICH = "WHERE rows.id > ? AND rows.id <= ?"
_READ = (
    f"SELECT started_at / {HOUR}, dims, times, {', '.join(COUNTS)}, "
    + ", ".join(f"COALESCE({name}, 0), CASE WHEN {name} IS NULL THEN 0 ELSE 1 END" for name in FIGURES)
    + f" FROM rows {_WHICH}"
)
_DIMS = f"SELECT id, {', '.join(WITHIN.values())} FROM dims WHERE id IN (SELECT DISTINCT dims FROM rows {_WHICH})"

_KNOWN = "SELECT dims, times FROM sums WHERE shape = ? AND span = ? AND start = ?"
_COLUMNS = (*PLACE, *SUMS, "times")
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

_LANES = Struct(f"<{len(SUMS)}Q")
"""The sums as one number, so that one addition adds all of them."""

_Sum = tuple[int, bytes]
"""What rows come to: their sums, packed; and the codes of their times, one after another."""

_Groups = dict[tuple[int, int], _Sum]
"""By a start, in spans, and a combination, what comes together there."""


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
    execute("DELETE FROM settled WHERE request_id IN (SELECT request_id FROM rows)")


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
    hours = len({hour for hour, _ in rows})
    for shape, whole in SHAPES.items():
        by_day[shape] = _grouped(by_day.get(whole, rows), within[whole], within[shape], DAY if shape == whole else 1)
        # In an hour there are at most as many combinations as in all days, which is found out with less work.
        most = hours * len({dims for _, dims in by_day[shape]})
        if shape not in by_hour and (shape == TOTAL or count >= FEW[1] * most):
            while whole not in by_hour:
                whole = SHAPES[whole]
            by_hour[shape] = _grouped(by_hour[whole], within[whole], within[shape])
        by_longest = _grouped(by_day[shape], within[shape], within[shape], LONGEST // DAY)
        for span, groups in ((1, by_hour.get(shape)), (DAY, by_day[shape]), (LONGEST, by_longest)):
            few = groups is None or count < FEW[span] * len(groups)
            yield shape, span, None if few and shape != TOTAL else groups


def _read(connection: Database, first: int, last: int) -> _Groups:
    """The rows by the hour and combination."""
    groups: defaultdict[tuple[int, int], list[_Sum]] = defaultdict(list)
    number, pack = int.from_bytes, _LANES.pack
    for hour, dims, code, *sums in connection.execute(_READ, (first, last)):
        groups[hour, dims].append((number(pack(*sums), "little"), code.to_bytes(4, "little")))
    return {place: _together(some) for place, some in groups.items()}


def _grouped(parts: _Groups, dims: Sequence[int], others: Sequence[int], length: int = 1) -> _Groups:
    """Add up what is one combination without what others tell, in spans so much longer.

    :param others: what ``dims`` are then, one by one.
    """
    groups: defaultdict[tuple[int, int], list[_Sum]] = defaultdict(list)
    number = dict(zip(dims, others, strict=True))
    for (start, one), part in parts.items():
        groups[start // length, number[one]].append(part)
    return {place: _together(some) for place, some in groups.items()}


def _together(some: list[_Sum]) -> _Sum:
    """Add up."""
    if len(some) == 1:
        return some[0]
    sums, codes = zip(*some, strict=True)
    return sum(sums), b"".join(codes)


def _store(connection: Database, shape: int, span: int, groups: _Groups) -> None:
    """Add them to the sums in the table."""
    for start, places in groupby(sorted(groups), itemgetter(0)):
        known = dict(connection.execute(_KNOWN, (shape, span, start)))
        rows = []
        for place in places:
            sums, codes = groups[place]
            times = stored(codes, known.get(place[1]))
            rows.append((shape, span, *place, *_LANES.unpack(sums.to_bytes(_LANES.size, "little")), times))
        connection.executemany(_ADD, rows)
