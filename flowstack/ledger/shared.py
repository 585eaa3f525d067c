"""The ledger of all machines, as reports read it: psycopg, which is an extra, is imported once it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowstack.config.settings import Shared
from flowstack.ledger.database import Unavailable

if TYPE_CHECKING:
    from flowstack.ledger.postgres import Postgres

INSTALL = "found no psycopg, which reaches it, expected it installed: pip install 'flowstack[postgres]'"
"""What is told where the extra is missing."""


def open_shared(shared: Shared, application: str) -> Postgres:
    """Connect, to read: each report is of one moment.

    :param application: what PostgreSQL's views call the connection.
    :raises Unavailable: it cannot be reached, or its tables are of another version.
    """
    try:
        from flowstack.ledger.migrate import check_version
        from flowstack.ledger.postgres import Postgres
    except ImportError:
        raise Unavailable(f"[shared] postgres: {INSTALL}") from None
    database = Postgres(shared, application)
    try:
        check_version(database)
        database.execute("SET jit = off")  # to compile costs more than a report
        database.execute("SET default_transaction_isolation = 'repeatable read'")
        database.execute("SET default_transaction_read_only = on")
    except BaseException:
        database.close()
        raise
    return database


def ledger_there(shared: Shared) -> str:
    """Connect, and say what is found: the place, PostgreSQL's version, and that of the tables.

    :raises Unavailable: it cannot be reached, or a newer Flowstack has changed its tables.
    """
    try:
        from flowstack.ledger.migrate import NEWEST, check_not_newer
        from flowstack.ledger.postgres import Postgres
    except ImportError:
        raise Unavailable(f"[shared] postgres: {INSTALL}") from None
    with Postgres(shared, "flowstack check") as database:
        version = check_not_newer(database)
        tables = f"tables of version {version}"
        if version < NEWEST:
            tables = f"{tables if version else 'no tables yet'}, which the start makes those of version {NEWEST}"
        return f"PostgreSQL {database.version} at {database.place}, {tables}"


def bytes_waiting(database: Postgres) -> int:
    """Bytes of rows that machines have sent, and that are in no sum yet.

    :raises Unavailable: it cannot be asked.
    """
    return int(database.execute("SELECT COALESCE(SUM(bytes), 0) FROM batches").fetchone()[0])
