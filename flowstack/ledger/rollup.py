"""What rows come to, hour by hour.

Rows wait until they are many, as reports count those that wait one by one: so one costs the same whether it came alone
or among thousands. They are folded here, and each sum that they touch is then written once, with one plain statement.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from flowstack.ledger.histogram import stored
from flowstack.ledger.schema import (
    ALL,
    ATTRIBUTES,
    COUNTS,
    DAY,
    FIGURES,
    HOUR,
    LONGEST,
    NOTHING,
    PLACE,
    PLAIN,
    SUMS,
    TOTAL,
    columns,
)

AT_ONCE = 100_000
"""Rows that are folded together; what that takes in memory is bounded."""

FEW = 4
"""Where fewer rows share a sum, on the average, they are not summed up by the hour or by the day: reports read them."""

SUMS_OF_ROWS = ", ".join(
    [f"SUM({name})" for name in COUNTS]
    + [text for name in FIGURES for text in (f"COALESCE(SUM({name}), 0)", f"COUNT({name})")]
)
"""SQL for :data:`flowstack.ledger.schema.SUMS` of rows."""

_NUMBERS = f"{NOTHING}, alone, plain, dims"
"""Of the combinations that a row belongs to, by what sums tell apart."""

_READ = (
    f"SELECT started_at / {HOUR}, {_NUMBERS}, times, {', '.join(COUNTS)}, "
    + ", ".join(f"COALESCE({name}, 0), CASE WHEN {name} IS NULL THEN 0 ELSE 1 END" for name in FIGURES)
    + " FROM rows JOIN dims ON dims.id = rows.dims WHERE rows.id > ? AND rows.id <= ?"
)

_KNOWN = "SELECT dims, times FROM sums WHERE shape = ? AND span = ? AND start = ?"
_COLUMNS = (*PLACE, *SUMS, "times")
_ADD = (
    f"INSERT INTO sums ({columns(*_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT ({columns(*PLACE)}) DO UPDATE SET times = excluded.times, "
    + ", ".join(f"{name} = sums.{name} + excluded.{name}" for name in SUMS)
)

_SETTLED = (
    f"SELECT rows.id, without_usage, started_at / {HOUR}, {_NUMBERS} FROM settled "
    "JOIN rows USING (request_id) JOIN dims ON dims.id = rows.dims"
)
_OF_SETTLED = "WHERE request_id IN (SELECT request_id FROM settled)"

_CODES = 5
_Part = tuple[Any, ...]
"""Figures of a row, or of several: the start, in spans; the numbers of its combinations; the code of its times, or the
codes; the sums."""

_Groups = dict[tuple[int, int], list[_Part]]
"""By a start and a combination, what comes together there."""


def waiting(connection: sqlite3.Connection) -> int:
    """How many rows are not rolled up."""
    (count,) = connection.execute("SELECT COALESCE((SELECT MAX(id) FROM rows), 0) - id FROM rolled_up").fetchone()
    return int(count)


def roll_up(connection: sqlite3.Connection) -> None:
    """Add the rows that wait to the sums. The caller holds the transaction.

    :raises sqlite3.Error: the database cannot be written.
    """
    (first,) = connection.execute("SELECT id FROM rolled_up").fetchone()
    (last,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM rows").fetchone()
    while first < last:
        end = min(first + AT_ONCE, last)
        _roll_up(connection, first, end)
        first = end
    connection.execute("UPDATE rolled_up SET id = ?", (last,))


def settle(connection: sqlite3.Connection) -> None:
    """A request whose usage a later row tells is no more without, wherever it was counted so.

    :raises sqlite3.Error: the database cannot be written.
    """
    found = connection.execute(_SETTLED).fetchall()
    if not found:
        return
    (rolled_up,) = connection.execute("SELECT id FROM rolled_up").fetchone()
    all_thin = connection.execute("SELECT shape, span, first, last FROM thin").fetchall()
    for number, silent, *place in found:
        if silent and number <= rolled_up:
            less = (-silent if name == "without_usage" else 0 for name in SUMS)
            for shape, span, groups in _levels([(*place, array("I"), *less)]):
                if not any(thin[:2] == (shape, span) and thin[2] < number <= thin[3] for thin in all_thin):
                    _store(connection, shape, span, groups)
    connection.execute(f"UPDATE rows SET without_usage = 0 {_OF_SETTLED}")
    connection.execute("DELETE FROM settled WHERE request_id IN (SELECT request_id FROM rows)")


def _roll_up(connection: sqlite3.Connection, first: int, last: int) -> None:
    """Add the rows behind one id, up to another."""
    for shape, span, groups in _levels(connection.execute(_READ, (first, last)).fetchall()):
        if span == LONGEST or shape == TOTAL or last - first >= FEW * len(groups):
            _store(connection, shape, span, groups)
        else:
            _keep_thin(connection, shape, span, first, last)


def _levels(rows: list[_Part]) -> Iterator[tuple[int, int, _Groups]]:
    """What comes together, by what sums tell apart, and by their span."""
    parts = rows
    for span, length in ((1, 1), (DAY, DAY), (LONGEST, LONGEST // DAY)):
        groups = _grouped(parts, ALL, length)
        if span > 1:
            yield ALL, span, groups
        parts = [_together(start, some) for (start, _), some in groups.items()]
        for shape in (PLAIN, ATTRIBUTES, TOTAL):
            yield shape, span, _grouped(parts, shape)


def _grouped(parts: list[_Part], shape: int, length: int = 1) -> _Groups:
    """Group by a combination and the start, in spans so much longer."""
    groups: defaultdict[tuple[int, int], list[_Part]] = defaultdict(list)
    for part in parts:
        groups[part[0] // length, part[1 + shape]].append(part)
    return groups


def _together(start: int, parts: list[_Part]) -> _Part:
    """Add up."""
    if len(parts) == 1:
        return (start, *parts[0][1:])
    columns = list(zip(*parts, strict=True))
    codes = array("I")
    for some in columns[_CODES]:
        if type(some) is int:
            codes.append(some)
        else:
            codes.extend(some)
    return (start, *parts[0][1:_CODES], codes, *map(sum, columns[_CODES + 1 :]))


def _store(connection: sqlite3.Connection, shape: int, span: int, groups: _Groups) -> None:
    """Add them to the sums in the table."""
    for start, places in groupby(sorted(groups), itemgetter(0)):
        known = dict(connection.execute(_KNOWN, (shape, span, start)))
        rows = []
        for place in places:
            part = _together(start, groups[place])
            codes = part[_CODES]
            times = stored(array("I", (codes,)) if type(codes) is int else codes, known.get(place[1]))
            rows.append((shape, span, *place, *part[_CODES + 1 :], times))
        connection.executemany(_ADD, rows)


def _keep_thin(connection: sqlite3.Connection, shape: int, span: int, first: int, last: int) -> None:
    """Keep in mind which rows are not in these sums; those that follow each other are one entry."""
    query = "SELECT MIN(started_at), MAX(started_at) + 1 FROM rows WHERE id > ? AND id <= ?"
    since, until = connection.execute(query, (first, last)).fetchone()
    which = "WHERE shape = ? AND span = ? AND last = ?"
    execute = connection.execute
    before = execute(f"SELECT first, since, until FROM thin {which}", (shape, span, first)).fetchone()
    if before is not None:
        execute(f"DELETE FROM thin {which}", (shape, span, first))
        first, since, until = before[0], min(since, before[1]), max(until, before[2])
    execute("INSERT INTO thin VALUES (?, ?, ?, ?, ?, ?)", (shape, span, first, last, since, until))
