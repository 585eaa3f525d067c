"""The ledger of all machines, as reports read it: psycopg, which is an extra, is imported once it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import orjson

from flowstack.config import Settings, node_of
from flowstack.config.settings import Shared
from flowstack.ledger.database import Unavailable
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import bytes_beyond

if TYPE_CHECKING:
    from flowstack.ledger.postgres import Postgres

INSTALL = "found no psycopg, which reaches it, expected it installed: pip install 'flowstack[postgres]'"
"""What is told where the extra is missing."""

READ_SECONDS: Final = 150.0
"""For connecting, and all that a command asks: a statement has less."""


@contextmanager
def shared_ledger(shared: Shared, application: str) -> Iterator[Postgres]:
    """The ledger of all machines, to read in the block, in the main thread.

    :raises Unavailable: as of :func:`open_shared`, in the block too; or it took longer.
    """
    try:
        from flowstack.ledger.postgres import Misfit, TookTooLong, at_most
    except ImportError:
        raise Unavailable(f"[shared] postgres: {INSTALL}") from None
    try:
        with at_most(READ_SECONDS), open_shared(shared, application) as database:
            yield database
    except Misfit as error:
        raise Unavailable(f"PostgreSQL does not take the question: {error}") from None
    except TookTooLong:
        raise Unavailable(
            f"PostgreSQL did not answer within {READ_SECONDS:g} seconds: look at the network, and at its load"
        ) from None


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

    :raises Unavailable: it cannot be reached, is a standby, or a newer Flowstack has changed its tables.
    """
    try:
        from flowstack.ledger.migrate import NEWEST, check_not_newer, check_writable
        from flowstack.ledger.postgres import Postgres
    except ImportError:
        raise Unavailable(f"[shared] postgres: {INSTALL}") from None
    with Postgres(shared, "flowstack check") as database:
        check_writable(database)
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


def bytes_missing(database: Postgres, settings: Settings) -> int:
    """Bytes of rows that are in no sum yet, as far as is known here: those of :func:`bytes_waiting`, and those of this
    machine's journal that were not sent.

    :raises Unavailable: it cannot be asked.
    """
    taken = dict(database.execute("SELECT name, taken FROM files WHERE node = ?", (node_of(settings),)))
    unsent = 0
    if settings.server.state is not None:
        with suppress(OSError):  # there is none here, or it is another user's
            unsent = bytes_beyond(taken, journal_path(settings.server.state))
    return bytes_waiting(database) + unsent


def row_in(database: Postgres, request_id: str) -> dict[str, Any] | None:
    """A whole row, as the journal had it; None where there is none.

    :raises Unavailable: it cannot be asked.
    """
    found = database.execute(
        'SELECT "row"::text FROM ledger WHERE request_id = ? ORDER BY started_at LIMIT 1', (request_id,)
    ).fetchone()
    return None if found is None else orjson.loads(found[0])
