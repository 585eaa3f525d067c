"""From the ledger in PostgreSQL to the sums that reports read, by the same intake as the index's.

What a machine sends is a batch, and in no sum. One process at a time, whichever has an advisory lock that nobody waits
for, takes the batches that were committed, adds up their rows and forgets the batches, in one transaction. So a machine
that sends never waits for sums; and a batch that is committed late is taken later, whatever its number is.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import frozen
from twisted.logger import Logger

from flowstack.ledger.database import Unavailable
from flowstack.ledger.intake import Intake
from flowstack.ledger.migrate import LOCK
from flowstack.ledger.postgres import Misfit, Postgres
from flowstack.ledger.shipping import following, make_partitions, partition

log = Logger()

FOLD_LOCK: Final = LOCK + 1
"""The advisory lock of who adds up."""

FOLD_ROWS: Final = 50_000
"""Rows in one transaction, about."""

AHEAD: Final = 2
"""Months whose partitions are made before they begin."""

UNFIT: Final = ("", "(fit no sum)")
"""Under which node and file rows are counted that are in the ledger and in no sum, since their figures cannot be."""

_FIRST_ID: Final = (
    "SELECT setval(pg_get_serial_sequence('rows', 'id'), (SELECT COALESCE(MAX(id), 0) FROM rows) + 1, false)"
)
"""What was rolled back leaves no hole in the ids, in order that a part of them is not empty."""

GONE: Final = ("", "(gone)")
"""Under which lines that are no rows are counted, of files that are not known any more."""

GONE_DAYS: Final = 32
"""After which a file counts as gone that its machine has not named as being there."""

_FORGET_FILES: Final = (
    "WITH gone AS (DELETE FROM files WHERE node != '' AND seen < CURRENT_DATE - ?::integer RETURNING bad) "
    "INSERT INTO files (node, name, taken, seal, bad) SELECT ?, ?, 0, 0, SUM(bad) FROM gone HAVING SUM(bad) > 0 "
    "ON CONFLICT (node, name) DO UPDATE SET bad = files.bad + excluded.bad"
)
_COUNT_UNFIT: Final = (
    "INSERT INTO files (node, name, taken, seal, bad) VALUES (?, ?, 0, 0, ?) ON CONFLICT (node, name) "
    "DO UPDATE SET bad = files.bad + excluded.bad"
)

_WAITING: Final = "FROM batches WHERE id != ALL(?)"
_ALL_WAITING: Final = f"SELECT id, rows, since, until {_WAITING} ORDER BY id"
_ROWS: Final = 'SELECT "row"::text FROM ledger WHERE batch = ? AND started_at BETWEEN ? AND ?'


@frozen(slots=True)
class Folded:
    """What was added up.

    :ivar batches: that were taken; 0 where there are none, or another process adds up.
    :ivar behind: whether there are more.
    """

    batches: int = 0
    behind: bool = False


class Folding:
    """Adds up over one connection."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._intake = Intake(database)
        self._unfit: list[int] = []  # batches that cannot be taken
        self._most = FOLD_ROWS

    def fold(self) -> Folded:
        """Take the batches that wait, or some of them.

        One that cannot be added up would hold up those of all machines. It is left to wait, and tried again over the
        next connection, as that of a Flowstack that knows better.

        :raises Unavailable: PostgreSQL cannot be used now. Nothing is lost: begin anew with another connection.
        """
        database = self._database
        if database.execute(f"SELECT {_WAITING} LIMIT 1", (self._unfit,)).fetchone() is None:
            return Folded()
        taken: list[int] = []
        try:
            with database.transaction():
                if not database.execute("SELECT pg_try_advisory_xact_lock(?)", (FOLD_LOCK,)).fetchone()[0]:
                    return Folded()
                waiting = database.execute(_ALL_WAITING, (self._unfit,)).fetchall()
                self._take(waiting, taken)
        except Misfit as error:
            self._intake.forget()
            self._narrow(taken, str(error))
            return Folded(behind=True)
        return Folded(len(taken), len(taken) < len(waiting))

    def _take(self, waiting: list[tuple[int, int, datetime, datetime]], taken: list[int]) -> None:
        """Add up batches, and forget them.

        :param taken: to which each is added as it is taken.
        :raises Misfit: one cannot be.
        """
        database, count, bad = self._database, 0, 0
        try:
            database.execute(_FIRST_ID)
            for number, rows, since, until in waiting:
                taken.append(number)
                bad += self._add(number, since, until)
                count += rows
                if count >= self._most:
                    break
            self._intake.store(len(taken) < len(waiting))
        except (Misfit, Unavailable):
            raise
        except Exception as error:
            raise Misfit(f"for a fault of Flowstack's own: {error!r}") from error
        if bad:
            database.execute(_COUNT_UNFIT, (*UNFIT, bad))
        database.execute("DELETE FROM batches WHERE id = ANY(?)", (taken,))

    def _narrow(self, taken: list[int], why: str) -> None:
        """Look for the batch that cannot be added up, one by one."""
        if len(taken) > 1:
            self._most = 1
            return
        self._most = FOLD_ROWS
        self._unfit += taken
        log.error(
            "batch {batch} of the ledger in PostgreSQL cannot be added up: its rows are in no report, and are tried "
            "again when the shipper connects again: {why}", batch=taken[0], why=why,
        )  # fmt: skip

    def _add(self, batch: int, since: datetime, until: datetime) -> int:
        """Add a batch's rows.

        :return: how many could not be.
        """
        bad = 0
        for (text,) in self._database.execute(_ROWS, (batch, since, until)):
            try:
                self._intake.add(text.encode())
            except ValueError:
                bad += 1
        return bad


def keep_places(database: Postgres, node: str, names: Collection[str], days: int | None) -> None:
    """Forget how far files were sent that no machine has any more, and what was put aside too long ago.

    A machine that comes back after longer sends them again, which adds nothing.

    :param names: of the files that this one has.
    :param days: for which whole rows are kept, those put aside too; None for ever.
    :raises Unavailable: PostgreSQL cannot be used now.
    """
    database.execute(
        "UPDATE files SET seen = CURRENT_DATE WHERE node = ? AND name = ANY(?) AND seen != CURRENT_DATE",
        (node, [*names]),
    )
    database.execute(_FORGET_FILES, (GONE_DAYS, *GONE))
    if days is not None:
        database.execute("DELETE FROM unfit WHERE at < now() - make_interval(days => ?::integer)", (days,))


def keep_partitions(database: Postgres, now: datetime, days: int | None) -> list[str]:
    """Make the partitions of the months to come, and drop those that ended longer ago than whole rows are kept.

    One that has rows which are in no sum yet stays.

    :param days: None for ever.
    :return: the names of those that were dropped.
    :raises Unavailable: PostgreSQL cannot be used now.
    """
    month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    months = [month]
    while len(months) <= AHEAD:
        months.append(following(months[-1]))
    make_partitions(database, set(months))
    if days is None:
        return []
    oldest = now - timedelta(days=days)
    dropped = []
    for (name,) in database.execute(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'ledger'::regclass"
    ).fetchall():
        _, year, number = name.split("_")
        begins = datetime(int(year), int(number), 1, tzinfo=UTC)
        if partition(begins) != name or begins.year == datetime.max.year or following(begins) > oldest:
            continue
        with database.transaction():
            # Who inserts waits for this lock, and this for them: not for long.
            database.execute("SET LOCAL lock_timeout = '2s'")
            database.execute(f"LOCK TABLE ledger, {name} IN ACCESS EXCLUSIVE MODE")
            waits = database.execute("SELECT FROM batches WHERE since < ? LIMIT 1", (following(begins),)).fetchone()
            if waits is None:
                database.execute(f"DROP TABLE {name}")
                database.execute("DELETE FROM settlements WHERE started_at < ?", (following(begins),))
                dropped.append(name)
    return dropped
