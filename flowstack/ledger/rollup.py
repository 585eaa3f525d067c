"""What rows come to, hour by hour.

Rows wait until they are many, as reports count those that wait one by one: so one costs the same whether it came alone
or among thousands. They are folded here, and each sum that they touch is then written once, with one plain statement.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

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

_PLACE = f"started_at / {HOUR}, dims, plain, alone"
_NEW_ROWS = "FROM rows JOIN dims ON dims.id = rows.dims WHERE rows.id > ? AND rows.id <= ?"
_FOLD = f"SELECT {_PLACE}, {SUMS_OF_ROWS} {_NEW_ROWS} GROUP BY {_PLACE}"
_FOLD_TIMES = f"SELECT started_at / {HOUR}, dims, times FROM rows WHERE id > ? AND id <= ?"

_KNOWN = "SELECT dims, times FROM sums WHERE shape = ? AND span = ? AND start = ?"
_COLUMNS = (*PLACE, *SUMS, "times")
_ADD = (
    f"INSERT INTO sums ({columns(*_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT ({columns(*PLACE)}) DO UPDATE SET times = excluded.times, "
    + ", ".join(f"{name} = sums.{name} + excluded.{name}" for name in SUMS)
)

_SETTLED = (
    f"SELECT rows.id, without_usage, started_at / {HOUR}, dims, plain, alone FROM settled "
    "JOIN rows USING (request_id) JOIN dims ON dims.id = rows.dims"
)
_OF_SETTLED = "WHERE request_id IN (SELECT request_id FROM settled)"

_Cells: TypeAlias = "dict[tuple[int, int], _Cell]"
"""By their start, in spans, and their combination."""


class _Cell:
    """Figures that are still to be added up.

    :ivar combinations: the number of the combination, by what sums tell apart.
    :ivar sums: one or more.
    """

    __slots__ = ("codes", "combinations", "sums")

    def __init__(self, combinations: Sequence[int], sums: Sequence[int], codes: array[int]) -> None:
        self.combinations = combinations
        self.sums = [sums]
        self.codes = codes

    def added_up(self) -> Sequence[int]:
        """All sums as one."""
        if len(self.sums) > 1:
            self.sums = [tuple(map(sum, zip(*self.sums, strict=True)))]
        return self.sums[0]


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
    for number, silent, hour, dims, plain, alone in found:
        if silent and number <= rolled_up:
            less = [-silent if name == "without_usage" else 0 for name in SUMS]
            cell = _Cell((NOTHING, alone, plain, dims), less, array("I"))
            for shape, span, cells in _levels({(hour, dims): cell}):
                if not any(thin[:2] == (shape, span) and thin[2] < number <= thin[3] for thin in all_thin):
                    _store(connection, shape, span, cells)
    connection.execute(f"UPDATE rows SET without_usage = 0 {_OF_SETTLED}")
    connection.execute("DELETE FROM settled WHERE request_id IN (SELECT request_id FROM rows)")


def _roll_up(connection: sqlite3.Connection, first: int, last: int) -> None:
    """Add the rows behind one id, up to another."""
    codes: dict[tuple[int, int], array[int]] = {}
    for hour, dims, code in connection.execute(_FOLD_TIMES, (first, last)):
        some = codes.get((hour, dims))
        if some is None:
            codes[hour, dims] = array("I", (code,))
        else:
            some.append(code)
    hours = {
        (hour, dims): _Cell((NOTHING, alone, plain, dims), sums, codes[hour, dims])
        for hour, dims, plain, alone, *sums in connection.execute(_FOLD, (first, last))
    }
    for shape, span, cells in _levels(hours):
        if span == LONGEST or shape == TOTAL or last - first >= FEW * len(cells):
            _store(connection, shape, span, cells)
        else:
            _keep_thin(connection, shape, span, first, last)


def _levels(hours: _Cells) -> Iterator[tuple[int, int, _Cells]]:
    """What the figures of each hour and combination come to, in less and less detail."""
    for shape in (PLAIN, ATTRIBUTES, TOTAL):
        yield shape, 1, _folded(hours, 1, shape)
    days = _folded(hours, DAY, ALL)
    long = _folded(days, LONGEST // DAY, ALL)
    for span, cells in ((DAY, days), (LONGEST, long)):
        yield ALL, span, cells
        for shape in (PLAIN, ATTRIBUTES, TOTAL):
            yield shape, span, _folded(cells, 1, shape)


def _folded(cells: _Cells, length: int, shape: int) -> _Cells:
    """These cells as fewer: those that have a start, in spans so much longer, and a combination in common."""
    found: _Cells = {}
    for (start, _), cell in cells.items():
        place = start // length, cell.combinations[shape]
        known = found.get(place)
        if known is None:
            found[place] = _Cell(cell.combinations, cell.added_up(), cell.codes[:])
        else:
            known.sums.append(cell.added_up())
            known.codes.extend(cell.codes)
    return found


def _store(connection: sqlite3.Connection, shape: int, span: int, cells: _Cells) -> None:
    """Add them to those in the table."""
    for start, places in groupby(sorted(cells), itemgetter(0)):
        known = dict(connection.execute(_KNOWN, (shape, span, start)))
        rows = ((shape, span, *place, *_columns_of(cells[place], known.get(place[1]))) for place in places)
        connection.executemany(_ADD, rows)


def _columns_of(cell: _Cell, known: bytes | None) -> tuple[Any, ...]:
    """The sums, and the times together with those in the table."""
    return (*cell.added_up(), stored(cell.codes, known))


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
