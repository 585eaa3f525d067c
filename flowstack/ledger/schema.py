"""The index's tables, and how its file is opened.

``rows`` has the figures of each row of the journal; ``sums`` what they come to in each hour, day and 32 days, with a
column a figure under its name in the journal; ``dims`` gives each combination of what rows are told apart by a number,
and ``words`` each name. Times of day are whole microseconds since 1970, money is whole nano-dollars (10⁻⁹ USD), so that
sums are exact.

No function of ours runs in the database, and the SQL of intake, roll-ups and reports is what SQLite and PostgreSQL
share. What differs stands in this file: how an id is given out (``INTEGER PRIMARY KEY``; in PostgreSQL an identity),
bytes (``BLOB``; ``BYTEA``), ``WITHOUT ROWID`` (left out there), and the pragmas, with the version of the schema.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flowstack.files import check_regular, open_regular

VERSION = 7
"""Of the schema, in ``PRAGMA user_version``. A file of an earlier version is carried over; one of another is set aside,
and the index built anew."""

HOUR = 3_600_000_000
"""Microseconds."""

DAY, LONGEST = 24, 32 * 24
"""Beside the hour, the spans of time that are summed up, in hours; from 1970 on, in UTC."""

SPANS = (1, DAY, LONGEST)

DIMENSIONS = ("key", "owner", "model", "upstream", "status", "end", "error", "group", "node")
"""What reports are asked by; ``status`` is itself, the others are numbers of words. 0 is none."""

GAP = ("endpoint", "reason")
"""Of a row without usage or price: its path, where it names no model, and why; numbers of words."""

TOLD = (*DIMENSIONS, *GAP)
"""What rows are told apart by, beside the set of their attributes."""

WHO, WHAT, HOW, WITH = 1, 2, 4, 8
SUBJECTS = {
    WHO: ("key", "owner", "group"),
    WHAT: ("model", *GAP),
    HOW: ("upstream", "status", "end", "error", "node"),
    WITH: ("attributes",),
}
"""Whose request it was, for what, how it ended, and its attributes. What of these is together goes together in rows
too, so that there are few combinations of each."""

TOTAL, ALL = 0, WHO | WHAT | HOW | WITH

SHAPES = {
    ALL: ALL,
    WHO | WHAT | HOW: ALL,
    HOW | WITH: ALL,
    WHAT | WITH: ALL,
    WHO | WITH: ALL,
    WHAT | HOW: WHO | WHAT | HOW,
    WHO | HOW: WHO | WHAT | HOW,
    WHO | WHAT: WHO | WHAT | HOW,
    WITH: HOW | WITH,
    HOW: WHAT | HOW,
    WHAT: WHAT | HOW,
    WHO: WHO | HOW,
    TOTAL: HOW,
}
"""What sums tell apart: the subjects of which this is the sum. A report reads those that tell least of what it asks
for, as they are fewest. Each is made from others that tell more. Attributes and two more subjects are hardly fewer than
everything."""

NOTHING = 1
"""The number in ``dims`` of the combination of nothing."""


def told_by(shape: int) -> tuple[str, ...]:
    """The columns of ``dims`` that a shape tells apart."""
    return tuple(name for subject, names in SUBJECTS.items() if shape & subject for name in names)


def column(field: str) -> str:
    """SQL's name for a column; ``group``, ``end`` and ``key`` are words of SQL's own."""
    return f'"{field}"'


def columns(*names: str) -> str:
    """SQL's list of columns."""
    return ", ".join(map(column, names))


COUNTS = ("requests", "errors", "without_usage", "without_price", "partial_usage", "connections")
"""Of a row: how many requests it stands for, and how many of them are so. One that settles an earlier request's work
stands for none, and its usage counts all the same: as one that is ``without_price`` or has ``partial_usage``. That of a
WebSocket is one of ``connections``, and no request: its responses have rows of their own.

So each row that used something, or may have, is in one of ``known_cost_nano_usd``, ``without_price`` and
``without_usage``: as many rows should be known to each sum.
"""

FIGURES = (
    "prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens", "total_tokens",
    "cost_nano_usd",
)  # fmt: skip
"""Columns that may be unknown: sums have that of the known ones, and in ``known_…`` how many rows these are."""

SUMS = (*COUNTS, *(name for figure in FIGURES for name in (figure, f"known_{figure}")))

TIMES = ("first_byte", "duration", "overhead")
"""Columns named ``times`` have all three: in rows as :func:`flowstack.ledger.histogram.code` gives them, in sums as
:meth:`flowstack.ledger.histogram.Times.stored` does."""

ROW = ("request_id", "started_at", "dims", *COUNTS, *FIGURES, "times")
"""The columns of ``rows``. Its ``id`` grows from row to row."""

PLACE = ("shape", "span", "start", "dims")
"""Where sums belong; ``start`` is in spans since 1970."""

_WHOLE = "BIGINT NOT NULL"


def _declared(*names: str) -> str:
    return ", ".join(f"{column(name)} {'BIGINT' if name in FIGURES else _WHOLE}" for name in names)


WORDS = f"""
CREATE TABLE words (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, word TEXT NOT NULL, day {_WHOLE} DEFAULT 0, key {_WHOLE} DEFAULT 0,
    UNIQUE (kind, word)
);
CREATE INDEX words_by_bringer ON words (day, key);
"""
"""Names by their numbers; and whose request brought a word, and on which day since 1970."""

SETTLED = "CREATE TABLE settled (request_id BLOB PRIMARY KEY) WITHOUT ROWID;"
"""Requests whose usage a later row tells, and whose own row has not come yet."""

WITHIN = {shape: f"within_{shape}" for shape in SHAPES if shape != ALL}
"""The columns of ``dims`` with the numbers of what is left of a combination in each shape; 0 where no row has it."""

DIMS = f"""
CREATE TABLE dims (
    id INTEGER PRIMARY KEY, {_declared(*TOLD, "attributes")},
    {", ".join(f"{name} {_WHOLE} DEFAULT 0" for name in WITHIN.values())}, UNIQUE ({columns(*TOLD, "attributes")})
);
"""

TABLES = f"""
CREATE TABLE attributes (id INTEGER PRIMARY KEY, pairs TEXT NOT NULL UNIQUE);
CREATE TABLE pairs (
    attributes {_WHOLE}, name {_WHOLE}, value {_WHOLE}, PRIMARY KEY (attributes, name)
) WITHOUT ROWID;
{DIMS}
INSERT INTO dims (id, {columns(*TOLD, "attributes")}) VALUES ({NOTHING}, {", ".join("0" for _ in TOLD)}, 0);
CREATE TABLE rows (id INTEGER PRIMARY KEY, request_id BLOB NOT NULL UNIQUE, {_declared(*ROW[1:])});
"""
"""``attributes`` has the sets of attributes, ``pairs`` what is in each, ``dims`` combinations."""

ROLLED_UP = f"""
CREATE TABLE sums (
    {_declared(*PLACE)}, {", ".join(f"{name} {_WHOLE}" for name in SUMS)}, times BLOB NOT NULL,
    PRIMARY KEY ({columns(*PLACE)})
) WITHOUT ROWID;
CREATE TABLE parts (last INTEGER PRIMARY KEY, first {_WHOLE}, since {_WHOLE}, until {_WHOLE}, thin {_WHOLE});
"""
"""``parts`` has the rows that are in ``sums``: those behind the id ``first``, up to ``last``, which began from
``since`` on and before ``until``. Rows come about in the order of time, so a part of them is found by its times, and
read in one piece. In those sums that ``thin`` names (see :func:`thin`) they are not, as these would be hardly fewer
than the rows.
"""

FILES = f"CREATE TABLE files (name TEXT PRIMARY KEY, taken {_WHOLE}, seal {_WHOLE}, bad {_WHOLE}) WITHOUT ROWID;"

EVERYTHING_NEW = f"{FILES} {WORDS} {SETTLED} {TABLES} {ROLLED_UP} PRAGMA user_version = {VERSION};"


def thin(shape: int, span: int) -> int:
    """The bit that stands for the sums of a shape and a span."""
    return 1 << (shape * len(SPANS) + SPANS.index(span))


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
            connection.executescript(f"BEGIN IMMEDIATE; {EVERYTHING_NEW} COMMIT;")
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
    return connection


def _check_names(path: Path) -> None:
    """See that SQLite, which opens by name, finds no FIFO or link.

    :raises OSError: it would.
    """
    for suffix in ("", "-journal", "-wal", "-shm"):
        check_regular(path.with_name(f"{path.name}{suffix}"))


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


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
