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
        database.execute("SET default_transaction_isolation = 'repeatable read'")
        database.execute("SET default_transaction_read_only = on")
    except BaseException:
        database.close()
        raise
    return database


def bytes_waiting(database: Postgres) -> int:
    """Bytes of rows that machines have sent, and that are in no sum yet.

    :raises Unavailable: it cannot be asked.
    """
    return int(database.execute("SELECT COALESCE(SUM(bytes), 0) FROM batches").fetchone()[0])
