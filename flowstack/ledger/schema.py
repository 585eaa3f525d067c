"""The index's tables, and how its file is opened.

Three kinds of table. ``rows`` has the figures of each row of the journal. ``cells`` has sums: of each hour, day and 32
days, for each combination of what reports are asked by; every column but the key is a number that adds, or a histogram
that does.
``words`` gives each name a number. Times are whole microseconds since 1970, money is whole nano-dollars (10⁻⁹ USD),
so that sums are exact.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flowstack.files import check_regular, open_regular
from flowstack.keys.patterns import compiled
from flowstack.ledger.histogram import Merge, Tally, merged

VERSION = 3
"""Of the schema, in ``PRAGMA user_version``. A file of an earlier version is carried over; one of another is set aside,
and the index built anew."""

HOUR = 3_600_000_000
"""Microseconds."""

DAY, LONGEST = 24, 32 * 24
"""Beside the hour, the spans of time that cells sum up, in hours; from 1970 on, in UTC."""

PLAIN = 1
"""Of a view: its cells tell no dimension apart."""


def view(name: int, plain: int = 0) -> int:
    """The number of a set of cells: those of all rows, or those of the rows with an attribute, told apart by its value.

    There is one of each for the hour, the day and 32 days. But plain ones are few, so there are none for 32 days; and
    those of an attribute are many, so for the hour there are only plain ones.

    :param name: the number of the attribute's name, or 0.
    """
    return 2 * name + plain


DIMENSIONS = ("key", "owner", "model", "upstream", "status", "end", "error", "group")
"""What cells tell apart; ``status`` is itself, the others are words. 0 is none."""


def column(field: str) -> str:
    """SQL's name for a column; ``group`` is a word of SQL's own."""
    return '"group"' if field == "group" else field


TOKENS = ("prompt", "cached", "cache_write", "completion", "reasoning", "total")
FIGURES = (*TOKENS, "cost")
"""Columns that may be unknown: a cell has the sum of the known ones, and in ``known_…`` how many rows these are."""

PAIR = struct.Struct("<II")
"""An attribute of a row: the words of its name and of its value."""

COUNTS = ("requests", "errors", "unmetered", "unpriced", "partial")
"""Of a row: how many requests it stands for, and how many of them are so. One that settles an earlier request's work
stands for none, and its usage counts all the same: as one that is ``unpriced`` or ``partial``.

So each row that used something, or may have, is in one of ``known_cost``, ``unpriced`` and ``unmetered``: as many rows
should be known to each sum.
"""

GAP = ("endpoint", "reason")
"""Of a row without usage or price: its path, where it names no model, and why; words."""

HAS_GAP = "unmetered + unpriced > 0"

SUMS = (*COUNTS, *(column for figure in FIGURES for column in (figure, f"known_{figure}")))
TIMES = ("first_byte", "duration", "overhead")
"""Histograms in cells; microseconds in rows, where ``buckets`` has their three buckets."""

CELL_KEY = ("view", "span", "start", "value", *map(column, DIMENSIONS))

_WHOLE = "INTEGER NOT NULL"

_BROUGHT = "day INTEGER NOT NULL DEFAULT 0, key INTEGER NOT NULL DEFAULT 0"
_BY_BRINGER = "CREATE INDEX words_by_bringer ON words (day, key);"
"""Of a word, whose request brought it, and on which day since 1970."""

_ROWS_BY_GAP = f"CREATE INDEX rows_by_gap ON rows (started_at) WHERE {HAS_GAP};"

_SETTLED = "CREATE TABLE settled (request_id BLOB PRIMARY KEY) WITHOUT ROWID;"
"""Requests whose usage a later row tells, and whose own row has not come yet."""

_CELLS = f"""
CREATE TABLE cells (
    {", ".join(f"{name} {_WHOLE}" for name in (*CELL_KEY, *SUMS))},
    {", ".join(f"{name} BLOB NOT NULL" for name in TIMES)},
    PRIMARY KEY ({", ".join(CELL_KEY)})
) WITHOUT ROWID;
"""

TABLES = f"""
CREATE TABLE files (
    name TEXT PRIMARY KEY, taken {_WHOLE}, seal {_WHOLE}, bad {_WHOLE}
) WITHOUT ROWID;
CREATE TABLE words (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, word TEXT NOT NULL, {_BROUGHT}, UNIQUE (kind, word)
);
{_BY_BRINGER}
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, request_id BLOB NOT NULL UNIQUE, started_at {_WHOLE},
    {", ".join(f"{column(name)} {_WHOLE}" for name in DIMENSIONS)}, attributes BLOB NOT NULL,
    {", ".join(f"{name} {_WHOLE}" for name in (*GAP, *COUNTS))},
    {", ".join(f"{name} INTEGER" for name in (*FIGURES, *TIMES))}, buckets BLOB NOT NULL
);
CREATE INDEX rows_by_time ON rows (started_at);
{_ROWS_BY_GAP}
{_SETTLED}
{_CELLS}
PRAGMA user_version = {VERSION};
"""

FROM_1 = f"""
{"".join(f"ALTER TABLE words ADD COLUMN {name};" for name in _BROUGHT.split(", "))}
{_BY_BRINGER}
ALTER TABLE rows ADD COLUMN requests {_WHOLE} DEFAULT 1;
"""
"""From the tables of version 1, in which each row was one request, and nobody knows who brought a word."""

_NEW = ('"group"', *GAP, "partial")
_OF_2 = [
    name for name in (*CELL_KEY, *SUMS, *TIMES) if name not in (*_NEW, "cache_write", "known_cache_write")
]  # fmt: skip

FROM_2 = f"""
{"".join(f"ALTER TABLE rows ADD COLUMN {name} {_WHOLE} DEFAULT 0;" for name in _NEW)}
ALTER TABLE rows ADD COLUMN cache_write INTEGER;
{_ROWS_BY_GAP}
{_SETTLED}
ALTER TABLE cells RENAME TO cells_of_2;
{_CELLS}
INSERT INTO cells ({", ".join(_OF_2)}, "group", partial, cache_write, known_cache_write)
SELECT {", ".join(_OF_2)}, 0, 0, 0, 0 FROM cells_of_2;
DROP TABLE cells_of_2;
PRAGMA user_version = {VERSION};
"""
"""From those of version 2, whose rows tell no group, no tokens written to a cache, and nothing of a missing price."""


class Unusable(Exception):
    """The file is damaged, or of another version of Flowstack."""


def create(path: Path) -> int:
    """Open a file, made where it is missing; no link is followed.

    :return: the descriptor.
    :raises OSError: it cannot be opened.
    """
    return open_regular(path, os.O_RDWR | os.O_CREAT, 0o640, follow=False)


def open_for_writing(path: Path, carry_over: Callable[[sqlite3.Connection, int], None]) -> sqlite3.Connection:
    """Open the index, made where it is missing, readable for whom the directory's owner lets in.

    :param carry_over: makes one of an earlier version, which it is told, one of this.
    :raises Unusable: it must be set aside first, see :func:`set_aside`.
    :raises sqlite3.Error: it cannot be opened or written.
    :raises OSError: it cannot be made.
    """
    os.close(create(path))  # SQLite gives the files that it makes beside it the same mode
    _check_names(path)
    connection = _connect(f"{path.absolute().as_uri()}?mode=rw")
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        # Without a sync at each commit a failing machine loses the last transactions whole, and they are made again.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA secure_delete = OFF")
        version = _version(connection)
        if not version and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            connection.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        elif 0 < version < VERSION:
            carry_over(connection, version)
        _check_version(connection)
    except BaseException as error:
        connection.close()
        raise (Unusable("it is damaged") if is_damage(error) else error) from None
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the index as a reader, who never waits for a writer and holds none up.

    :raises Unusable: it is damaged, or of another version.
    :raises sqlite3.Error: it cannot be opened.
    :raises OSError: it, or what SQLite keeps beside it, is no regular file.
    """
    uri = path.absolute().as_uri()
    _check_names(path)
    try:
        connection = _connect(f"{uri}?mode=ro")
        try:
            _check_version(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            wal = path.with_name(f"{path.name}-wal")
            cannot_write = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if not cannot_write or (wal.exists() and wal.stat().st_size):
                raise
            # Nobody has it open, and who may not write here cannot make the files beside it: it stands still.
            connection = _connect(f"{uri}?mode=ro&immutable=1")
            _check_version(connection)
    except sqlite3.Error as error:
        raise (Unusable("it is damaged") if is_damage(error) else error) from None
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _check_names(path: Path) -> None:
    """See that SQLite, which opens by name, finds no FIFO or link.

    :raises OSError: it would.
    """
    for suffix in ("", "-journal", "-wal", "-shm"):
        check_regular(path.with_name(f"{path.name}{suffix}"))


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
    connection.create_function("merged", 2, merged, deterministic=True)
    connection.create_function("fits", 2, _fits, deterministic=True)
    connection.create_aggregate("merge", 3, Merge)  # type: ignore[arg-type]
    connection.create_aggregate("tally", 1, Tally)  # type: ignore[arg-type]
    return connection


def _fits(pattern: str, word: str) -> bool:
    """SQL's own GLOB and LIKE try each way to share a word among a pattern's stars, and the words are clients'."""
    return compiled((pattern,)).fit(word)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version != VERSION:
        raise Unusable(f"its schema has version {version}, this Flowstack's has {VERSION}")


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken, or is no database."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, sqlite3.Error) and code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def set_aside(path: Path) -> Path:
    """Rename an unusable index; one that was set aside before makes room.

    :return: its new name.
    """
    aside = path.with_name(f"{path.name}.unusable")
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside
