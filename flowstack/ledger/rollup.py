"""Sums of rows, made by SQL alone: the text is what SQLite and PostgreSQL share.

Rows wait until there are many, as reports count those that wait one by one: so a row costs the same whether it came
alone or among thousands.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from flowstack.ledger.histogram import WIDTH
from flowstack.ledger.schema import (
    BAND,
    BUCKETS,
    COUNTS,
    DAY,
    EVERYTHING,
    FIGURES,
    HOUR,
    NOTHING,
    PLACE,
    SPANS,
    SUMS,
    TIMES,
    TOTAL,
    column,
    columns,
)

AT_ONCE = 50_000
"""Rows that are rolled up together; what that takes in memory is bounded."""

SUMS_OF_ROWS = ", ".join(
    [f"SUM({name})" for name in COUNTS]
    + [text for name in FIGURES for text in (f"COALESCE(SUM({name}), 0)", f"COUNT({name})")]
)
"""SQL for :data:`flowstack.ledger.schema.SUMS` of rows."""

_HOUR_OF_ROW = f"started_at / {HOUR}"
_NEW_ROWS = "id > ? AND id <= ?"
_SPLIT = ("attributes", "dims")
"""What sums of new rows are told apart by first: all that there is."""


def bands_of_rows(what: int) -> tuple[str, ...]:
    """SQL for :data:`flowstack.ledger.schema.BAND` and the buckets of rows, by the time's place in ``TIMES``."""
    bucket = f"{TIMES[what]}_bucket"
    counts = (f"COUNT(CASE {bucket} % {WIDTH} WHEN {number} THEN 1 END)" for number in range(WIDTH))
    return f"{what}", f"{bucket} / {WIDTH}", ", ".join(counts)


def _sums_of_rows() -> Iterator[str]:
    yield (
        f"INSERT INTO new_sums SELECT {_HOUR_OF_ROW}, attributes, dims, {SUMS_OF_ROWS} FROM rows "
        f"WHERE {_NEW_ROWS} GROUP BY 1, 2, 3"
    )


def _times_of_rows() -> Iterator[str]:
    for place, name in enumerate(TIMES):
        yield (
            f"INSERT INTO new_times SELECT {_HOUR_OF_ROW}, attributes, dims, {', '.join(bands_of_rows(place))} "
            f"FROM rows WHERE {_NEW_ROWS} AND {name}_bucket > 0 GROUP BY 1, 2, 3, 5"
        )


def _spread(table: str, names: Sequence[str], more: Sequence[str] = ()) -> Iterator[str]:
    """From ``new_<table>`` to each place in the table where it belongs, by way of ``delta_<table>``.

    :param names: of the columns that add up.
    :param more: of those that tell its rows apart beside the place.
    """
    kept = ", ".join([*more, *(f"SUM({name})" for name in names)])
    others = "".join(f", {name}" for name in more)
    delta = f"INSERT INTO delta_{table} SELECT"
    yield f"DELETE FROM delta_{table}"
    yield f"{delta} 0, {EVERYTHING}, start, dims, 0, {kept} FROM new_{table} GROUP BY start, dims{others}"
    yield (
        f"{delta} 0, coarser.shape, start, coarse, 0, {kept} FROM delta_{table} JOIN coarser USING (dims) "
        f"GROUP BY coarser.shape, start, coarse{others}"
    )
    for shape, start, dims in ((EVERYTHING, f"start / {DAY} * {DAY}", "dims"), (NOTHING, "start", f"{TOTAL}")):
        yield (
            f"{delta} name, {shape}, {start}, {dims}, value, {kept} FROM new_{table} JOIN pairs USING (attributes) "
            f"GROUP BY name, {start}, {dims}, value{others}"
        )
    key = columns(*PLACE, *more)
    for span in SPANS:
        few = f"attribute = 0 OR shape = {NOTHING}" if span == 1 else "start >= 0"
        yield (
            f"INSERT INTO {table} SELECT attribute, shape, {span}, start / {span}, dims, value, {kept} "
            f"FROM delta_{table} WHERE {few} GROUP BY attribute, shape, start / {span}, dims, value{others} "
            f"ON CONFLICT ({key}) DO UPDATE SET "
            + ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in names)
        )
    yield f"DELETE FROM new_{table}"


def _temporary(table: str, names: Sequence[str], more: Sequence[str] = ()) -> Iterator[str]:
    new = ("start", *_SPLIT, *more, *names)
    delta = (*(name for name in PLACE if name != "span"), *more, *names)
    for name, some in (("new", new), ("delta", delta)):
        declared = ", ".join(f"{column(each)} BIGINT NOT NULL DEFAULT 0" for each in some)
        yield f"CREATE TEMPORARY TABLE IF NOT EXISTS {name}_{table} ({declared})"


_TEMPORARY = (*_temporary("sums", SUMS), *_temporary("times", BUCKETS, BAND))

_ADD_UP = (*_sums_of_rows(), *_times_of_rows())
_SPREAD = (*_spread("sums", SUMS), *_spread("times", BUCKETS, BAND))

_SETTLE = (
    "INSERT INTO new_sums (start, attributes, dims, without_usage) "
    f"SELECT {_HOUR_OF_ROW}, attributes, dims, -without_usage FROM settled JOIN rows USING (request_id) "
    f"WHERE without_usage > 0 AND id <= (SELECT id FROM rolled_up)",
    "UPDATE rows SET without_usage = 0, endpoint = 0, reason = 0 "
    "WHERE without_usage > 0 AND request_id IN (SELECT request_id FROM settled)",
    "DELETE FROM settled WHERE request_id IN (SELECT request_id FROM rows)",
    *_spread("sums", SUMS),
)
"""A request whose usage a later row tells is no more without, wherever it was counted so."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the temporary tables that the connection's roll-ups need."""
    for statement in _TEMPORARY:
        connection.execute(statement)


def roll_up(connection: sqlite3.Connection) -> None:
    """Add the rows that wait to the sums. The caller holds the transaction."""
    done, last = connection.execute("SELECT id, (SELECT COALESCE(MAX(id), 0) FROM rows) FROM rolled_up").fetchone()
    while done < last:
        piece = done, min(done + AT_ONCE, last)
        for statement in _ADD_UP:
            connection.execute(statement, piece)
        for statement in _SPREAD:
            connection.execute(statement)
        (_, done) = piece
    connection.execute("UPDATE rolled_up SET id = ?", (done,))


def settle(connection: sqlite3.Connection) -> None:
    """Count no request in ``settled`` as one without usage. The caller holds the transaction."""
    if connection.execute("SELECT 1 FROM settled LIMIT 1").fetchone():
        for statement in _SETTLE:
            connection.execute(statement)
