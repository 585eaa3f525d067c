"""An index that an earlier version of Flowstack made becomes one of this version, also where its journal is gone."""

from __future__ import annotations

import sqlite3

from flowstack.ledger.cells import Cells, only
from flowstack.ledger.schema import DIMENSIONS, FROM_1, FROM_2, HOUR, column

_AT_ONCE = 20_000
"""Rows whose sums wait in memory."""

_WITHOUT_TOTAL = "total IS NULL AND prompt IS NOT NULL AND completion IS NOT NULL"


def carry_over(connection: sqlite3.Connection, version: int) -> None:
    """Carry the tables over, in one transaction.

    :param version: 1 or 2.
    :raises sqlite3.Error: they cannot be written; they are as they were.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in f"{FROM_1 if version == 1 else ''}{FROM_2}".split(";"):
            connection.execute(statement)
        _complete_totals(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _complete_totals(connection: sqlite3.Connection) -> None:
    """A total that no upstream gave is what its parts come to, in rows of then as in those of now."""
    cells = Cells()
    columns = ", ".join(map(column, DIMENSIONS))
    rows = connection.execute(
        f"SELECT prompt + completion, started_at, attributes, {columns} FROM rows WHERE {_WITHOUT_TOTAL}"
    )
    while some := rows.fetchmany(_AT_ONCE):
        for total, started_at, attributes, *dimensions in some:
            cells.add((started_at // HOUR, attributes, tuple(dimensions)), only(total=total, known_total=1))
        cells.store(connection)
    connection.execute(f"UPDATE rows SET total = prompt + completion WHERE {_WITHOUT_TOTAL}")
