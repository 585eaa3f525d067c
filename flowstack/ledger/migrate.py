"""The tables in PostgreSQL: made and changed by numbered files of SQL, one after another, and never back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

from flowstack.ledger.database import Unavailable
from flowstack.ledger.postgres import SCHEMA, Postgres

LOCK: Final = 0x666C_6F77_0001
"""The advisory lock of who changes the schema: its tables, or a partition."""

_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql").fullmatch


def migrations() -> Iterator[tuple[int, str, str]]:
    """Number, name and text of each, in order."""
    found = sorted(files("flowstack.ledger").joinpath("migrations").iterdir(), key=lambda file: file.name)
    for file in found:
        if match := _NAME(file.name):
            yield int(match[1]), file.name, file.read_text("utf-8")


NEWEST: Final = max(number for number, _, _ in migrations())


def version_of(database: Postgres) -> int:
    """The number of the last migration that was applied; 0 where there are no tables.

    :raises Unavailable: it cannot be asked.
    """
    if not database.has_table("migrations"):
        return 0
    return int(database.execute("SELECT COALESCE(MAX(number), 0) FROM migrations").fetchone()[0])


def check_not_newer(database: Postgres) -> int:
    """See that no newer Flowstack has changed the tables.

    :return: their version, as of :func:`version_of`.
    :raises Unavailable: one has; the text says what to do.
    """
    version = version_of(database)
    if version > NEWEST:
        raise Unavailable(
            f"PostgreSQL at {database.place}: found tables of version {version}, expected at most {NEWEST}: a newer "
            "Flowstack made them, and this one leaves them alone. Upgrade Flowstack here"
        )
    return version


def check_version(database: Postgres) -> None:
    """See that the tables are those of this version of Flowstack.

    :raises Unavailable: they are not; the text says what to do.
    """
    version = check_not_newer(database)
    if version < NEWEST:
        raise Unavailable(
            f"PostgreSQL at {database.place}: found tables of version {version}, expected {NEWEST}: start the service "
            "of this Flowstack, which makes them"
        )


def check_writable(database: Postgres) -> None:
    """See that the server takes rows.

    :raises Unavailable: it is a standby, which may become the primary at any time.
    """
    (standby,) = database.execute("SELECT pg_is_in_recovery()").fetchone()
    if standby:
        raise Unavailable(
            f"PostgreSQL at {database.place}: found a standby, expected the primary, which takes rows: name that, or "
            "promote this one"
        )


def migrate(database: Postgres) -> list[str]:
    """Bring the tables to this version. Whoever comes second finds them so.

    :return: the names of what was applied.
    :raises Unavailable: a newer Flowstack has changed them, and nothing is changed; or they cannot be changed.
    """
    check_writable(database)
    applied = []
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))
        version = check_not_newer(database)
        if version == 0:
            if database.execute("SELECT FROM pg_namespace WHERE nspname = ?", (SCHEMA,)).fetchone() is None:
                database.execute(f"CREATE SCHEMA {SCHEMA}")
            database.execute(
                "CREATE TABLE migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL, "
                "applied_at TIMESTAMPTZ NOT NULL DEFAULT now())"
            )
        for number, name, text in migrations():
            if number > version:
                database.execute(text)
                database.execute("INSERT INTO migrations (number, name) VALUES (?, ?)", (number, name))
                applied.append(name)
    return applied
