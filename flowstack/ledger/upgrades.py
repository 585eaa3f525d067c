"""An index that an earlier version of Flowstack made becomes one of this version, also where its journal is gone."""

from __future__ import annotations

import sqlite3
from struct import Struct

from flowstack.ledger.combinations import Combinations
from flowstack.ledger.histogram import code
from flowstack.ledger.rollup import roll_up
from flowstack.ledger.schema import DIMS, ROLLED_UP, SETTLED, TABLES, TOLD, VERSION, WITHIN, WORDS, column, columns

_PAIR = Struct("<II")
"""How an attribute stood in a row: the words of its name and of its value."""

_WORDS_OF_1 = f"""
ALTER TABLE words RENAME TO old_words;
{WORDS}
INSERT INTO words SELECT id, kind, word, 0, 0 FROM old_words;
DROP TABLE old_words;
ALTER TABLE rows ADD COLUMN requests BIGINT NOT NULL DEFAULT 1;
"""
"""Nobody knows who brought a word of version 1, and each of its rows was one request."""

_ROWS_OF_2 = f"""
ALTER TABLE rows ADD COLUMN "group" BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN endpoint BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN reason BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN partial BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN cache_write BIGINT;
{SETTLED}
"""

_ROWS_WITHOUT_NODE = "ALTER TABLE rows ADD COLUMN node BIGINT NOT NULL DEFAULT 0;"
"""Before version 4 a row has what tells it apart itself."""

_OLD_ROWS = """
DROP TABLE cells;
DROP INDEX rows_by_time;
DROP INDEX IF EXISTS rows_by_gap;
ALTER TABLE rows RENAME TO old_rows;
"""

_OLD = ", ".join(f"old_rows.{column(name)}" for name in TOLD)
_NUMBER = "COALESCE(attributes.id, 0)"
"""Of a set of attributes."""
_SAME = " AND ".join(f"dims.{column(name)} = old_rows.{column(name)}" for name in TOLD)

_ROWS_OF_3 = f"""
INSERT INTO attributes (pairs) SELECT DISTINCT pairs_of(attributes) FROM old_rows WHERE attributes != x'';
INSERT INTO dims ({columns(*TOLD)}, attributes) SELECT DISTINCT {_OLD}, {_NUMBER}
    FROM old_rows LEFT JOIN attributes ON attributes.pairs = pairs_of(old_rows.attributes)
    WHERE true ON CONFLICT DO NOTHING;
INSERT INTO rows SELECT
    old_rows.id, request_id, started_at, dims.id, requests, errors, unmetered, unpriced, partial, 0,
    prompt, cached, cache_write, completion, reasoning, COALESCE(total, prompt + completion), cost,
    code(COALESCE(first_byte, -1), COALESCE(duration, -1), COALESCE(overhead, -1))
FROM old_rows LEFT JOIN attributes ON attributes.pairs = pairs_of(old_rows.attributes)
JOIN dims ON {_SAME} AND dims.attributes = {_NUMBER};
DROP TABLE old_rows;
"""
"""A total that no upstream gave is what its parts come to, in rows of then as in those of now."""

_ROWS_OF_5 = """
ALTER TABLE rows ADD COLUMN connections BIGINT NOT NULL DEFAULT 0;
DROP TABLE sums;
"""
"""Up to then there were no WebSockets. Sums are made anew."""

_PARTS_OF_4 = """
DROP INDEX rows_by_time;
DROP TABLE rolled_up;
DROP TABLE thin;
"""


def _dims_without_node(*kept: str) -> str:
    """Combinations of before version 7, of which none tells a node.

    :param kept: further columns that stay as they are.
    """
    names = columns("id", *(name for name in TOLD if name != "node"), "attributes", *kept)
    return f"""
ALTER TABLE dims RENAME TO old_dims;
{DIMS}
INSERT INTO dims ({names}, node) SELECT {names}, 0 FROM old_dims;
DROP TABLE old_dims;
"""



def carry_over(connection: sqlite3.Connection, version: int) -> None:
    """Carry the tables over, in one transaction.

    :param version: 1 to 6.
    :raises sqlite3.Error: they cannot be written; they are as they were.
    """
    connection.create_function("code", 3, code, deterministic=True)
    connection.create_function("pairs_of", 1, _pairs_of, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    try:
        steps = [_WORDS_OF_1] if version == 1 else []
        steps += [_ROWS_OF_2] if version < 3 else []
        if version < 4:
            steps += [_ROWS_WITHOUT_NODE, _OLD_ROWS, TABLES, _ROWS_OF_3, ROLLED_UP]
        elif version < 6:
            steps += [_PARTS_OF_4 if version == 4 else "DROP TABLE parts;", _ROWS_OF_5, _dims_without_node(), ROLLED_UP]
        else:
            steps += [_dims_without_node(*WITHIN.values())]
        for statement in "".join((*steps, f"PRAGMA user_version = {VERSION};")).split(";"):
            connection.execute(statement)
        if version < 4:
            for number, pairs in connection.execute("SELECT id, pairs FROM attributes").fetchall():
                some = ((number, *map(int, pair.split("="))) for pair in pairs.split(","))
                connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", some)
        Combinations(connection).complete()
        roll_up(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pairs_of(attributes: bytes) -> str:
    """A set of attributes as the table ``attributes`` has it."""
    return ",".join(f"{name}={value}" for name, value in _PAIR.iter_unpack(attributes))
