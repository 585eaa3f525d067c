"""An index that an earlier version of Flowstack made becomes one of this version, also where its journal is gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from struct import Struct

from flowstack.ledger.histogram import bucket
from flowstack.ledger.rollup import prepare, roll_up
from flowstack.ledger.schema import DIMENSIONS, EVERYTHING, SHAPES, TABLES, TIMES, VERSION, WORDS, columns

_PAIR = Struct("<II")
"""How an attribute stood in a row: the words of its name and of its value."""

_DIMS = columns(*DIMENSIONS)

_WORDS_OF_1 = f"""
ALTER TABLE words RENAME TO old_words;
{WORDS}
INSERT INTO words SELECT id, kind, word, 0, 0 FROM old_words;
DROP TABLE old_words;
"""
"""Nobody knows who brought a word of version 1."""

_ROWS_OF_1 = "ALTER TABLE rows ADD COLUMN requests BIGINT NOT NULL DEFAULT 1;"
"""Of version 1 each row was one request."""

_ROWS_OF_2 = """
ALTER TABLE rows ADD COLUMN "group" BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN endpoint BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN reason BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN partial BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN cache_write BIGINT;
CREATE TABLE settled (request_id BLOB PRIMARY KEY) WITHOUT ROWID;
"""

_ROWS = f"""
DROP TABLE cells;
DROP INDEX rows_by_time;
DROP INDEX IF EXISTS rows_by_gap;
ALTER TABLE rows RENAME TO old_rows;
ALTER TABLE settled RENAME TO old_settled;
{TABLES}
INSERT INTO settled SELECT request_id FROM old_settled;
INSERT INTO attributes (pairs) SELECT DISTINCT pairs_of(attributes) FROM old_rows WHERE attributes != x'';
INSERT INTO dims (shape, {_DIMS}) SELECT DISTINCT {EVERYTHING}, {_DIMS} FROM old_rows;
{
    "".join(
        f"INSERT INTO dims (shape, {_DIMS}) SELECT DISTINCT {shape}, "
        f"{', '.join(columns(field) if field in fields else '0' for field in DIMENSIONS)} "
        f"FROM dims WHERE shape = {EVERYTHING};"
        for shape, fields in enumerate(SHAPES[:EVERYTHING])
        if fields
    )
}
INSERT INTO coarser SELECT dims.id, coarse.shape, coarse.id FROM dims JOIN dims coarse ON (
    {
    " OR ".join(
        "("
        + " AND ".join(
            [
                f"coarse.shape = {shape}",
                *(
                    f"coarse.{columns(field)} = {f'dims.{columns(field)}' if field in fields else '0'}"
                    for field in DIMENSIONS
                ),
            ]
        )
        + ")"
        for shape, fields in enumerate(SHAPES[:EVERYTHING])
    )
}
) WHERE dims.shape = {EVERYTHING};
INSERT INTO rows SELECT
    old_rows.id, request_id, started_at, dims.id, COALESCE(attributes.id, 0), endpoint, reason,
    requests, errors, unmetered, unpriced, partial,
    prompt, cached, cache_write, completion, reasoning, COALESCE(total, prompt + completion), cost,
    {", ".join(TIMES)}, {", ".join(f"bucket(COALESCE({name}, -1))" for name in TIMES)}
FROM old_rows JOIN dims USING ({_DIMS}) LEFT JOIN attributes ON attributes.pairs = pairs_of(old_rows.attributes)
WHERE dims.shape = {EVERYTHING};
DROP TABLE old_rows;
DROP TABLE old_settled;
PRAGMA user_version = {VERSION};
"""
"""A total that no upstream gave is what its parts come to, in rows of then as in those of now."""


def carry_over(connection: sqlite3.Connection, version: int) -> None:
    """Carry the tables over, in one transaction. Takes up to a minute a million rows.

    :param version: 1, 2 or 3.
    :raises sqlite3.Error: they cannot be written; they are as they were.
    """
    connection.create_function("bucket", 1, bucket, deterministic=True)
    connection.create_function("pairs_of", 1, _pairs_of, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(version):
            connection.execute(statement)
        for number, pairs in connection.execute("SELECT id, pairs FROM attributes").fetchall():
            some = ((number, *map(int, pair.split("="))) for pair in pairs.split(","))
            connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", some)
        prepare(connection)
        roll_up(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(version: int) -> Iterator[str]:
    if version == 1:
        yield from _WORDS_OF_1.split(";")
        yield _ROWS_OF_1
    if version < 3:
        yield from _ROWS_OF_2.split(";")
    yield from _ROWS.split(";")


def _pairs_of(attributes: bytes) -> str:
    """A set of attributes as the table ``attributes`` has it."""
    return ",".join(f"{name}={value}" for name, value in _PAIR.iter_unpack(attributes))
