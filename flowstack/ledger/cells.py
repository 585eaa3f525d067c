"""Sums of rows, as reports are made of them."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from flowstack.ledger.histogram import bucket, packed
from flowstack.ledger.schema import CELL_KEY, DAY, DIMENSIONS, LONGEST, PAIR, PLAIN, SUMS, TIMES, view

Figures = tuple[int, bytes]
"""A row's, or several rows': the columns :data:`flowstack.ledger.schema.SUMS`, 64 bits each in one number, and three
buckets for each row. So to sum is to add."""

Place = tuple[int, bytes, tuple[int, ...]]
"""Where a row belongs: its hour since 1970, its attributes, its dimensions."""

_Cells = dict[tuple[int, ...], list[Any]]

_LANES = struct.Struct(f"<{len(SUMS)}Q")
_NO_DIMENSIONS = (0,) * len(DIMENSIONS)

_COLUMNS = (*CELL_KEY, *SUMS, *TIMES)
_INSERT = (
    f"INSERT INTO cells ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT ({', '.join(CELL_KEY)}) DO UPDATE SET "
)
_ADD = _INSERT + ", ".join(
    [f"{name} = {name} + excluded.{name}" for name in SUMS]
    + [f"{name} = merged({name}, excluded.{name})" for name in TIMES]
)
_TAKE_OUT = _INSERT + ", ".join(f"{name} = {name} - excluded.{name}" for name in SUMS)


def only(**sums: int) -> Figures:
    """Figures that are 0, and no time, but for these sums."""
    return figures((sums.get(name, 0) for name in SUMS), (None,) * len(TIMES))


def figures(sums: Iterable[int], times: Iterable[int | None]) -> Figures:
    """One row's figures.

    :param sums: as :data:`flowstack.ledger.schema.SUMS` names them.
    :param times: in microseconds, as :data:`flowstack.ledger.schema.TIMES` names them.
    :raises struct.error: a sum is no whole number from 0 up.
    """
    return int.from_bytes(_LANES.pack(*sums), "little"), bytes(map(bucket, times))


class Cells:
    """Sums that wait to be added to those in the table.

    Rows are first summed with all that tells them apart, attributes included: there are fewer such sums than rows, and
    one of them then goes to several cells.
    """

    def __init__(self) -> None:
        self._hours: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._plain_hours: dict[tuple[int, bytes], Any] = {}
        self._days: dict[tuple[int, bytes, tuple[int, ...]], Any] = {}

    def __len__(self) -> int:
        return len(self._hours) + len(self._plain_hours) + len(self._days)

    def clear(self) -> None:
        """Forget them."""
        self._hours.clear()
        self._plain_hours.clear()
        self._days.clear()

    def add(self, place: Place, row: Figures) -> None:
        """Add a row."""
        hour, attributes, dimensions = place
        _add(self._hours, (hour, dimensions), row)
        _add(self._plain_hours, (hour, attributes), row)
        _add(self._days, (hour // DAY, attributes, dimensions), row)

    def store(self, connection: sqlite3.Connection, *, take_out: bool = False) -> None:
        """Add them to the table's.

        :param take_out: take them out instead: sums that are there, and no times.
        """
        hours: _Cells = {(view(0), hour, 0, *dimensions): cell for (hour, dimensions), cell in self._hours.items()}
        for (hour, attributes), cell in self._plain_hours.items():
            _add(hours, (view(0, PLAIN), hour, 0, *_NO_DIMENSIONS), cell)
            for name, value in PAIR.iter_unpack(attributes):
                _add(hours, (view(name, PLAIN), hour, value, *_NO_DIMENSIONS), cell)
        days: _Cells = {}
        for (day, attributes, dimensions), cell in self._days.items():
            _add(days, (view(0), day, 0, *dimensions), cell)
            for name, value in PAIR.iter_unpack(attributes):
                _add(days, (view(name), day, value, *dimensions), cell)
        longest: _Cells = {}
        for (kind, day, *rest), cell in days.items():
            _add(longest, (kind, day * DAY // LONGEST, *rest), cell)
        for (kind, hour, *rest), cell in hours.items():
            if kind & PLAIN:
                _add(days, (kind, hour // DAY, *rest), cell)
        for span, cells in ((1, hours), (DAY, days), (LONGEST, longest)):
            connection.executemany(_TAKE_OUT if take_out else _ADD, _as_rows(span, cells))
        self.clear()


def _add(cells: dict[Any, Any], place: tuple[Any, ...], more: Any) -> None:
    there = cells.get(place)
    if there is None:
        cells[place] = [more[0], bytearray(more[1])]
    else:
        there[0] += more[0]
        there[1] += more[1]


def _as_rows(span: int, cells: _Cells) -> Iterator[tuple[Any, ...]]:
    count = len(TIMES)
    for place in sorted(cells):  # as they stand in the table, so that each page is looked up once
        sums, times = cells[place]
        histograms = [bytearray(packed(times[at::count])) for at in range(count)]  # sqlite3 is slow with bytes
        yield (place[0], span, *place[1:], *_LANES.unpack(sums.to_bytes(_LANES.size, "little")), *histograms)
