"""From the ledger in PostgreSQL to the sums that reports read, by the same intake as the index's.

What a machine sends is a batch, and in no sum. One process at a time, whichever has an advisory lock that nobody waits
for, takes the batches that were committed, adds up their rows and forgets the batches, in one transaction. So a machine
that sends never waits for sums; and a batch that is committed late is taken later, whatever its number is.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import frozen
from twisted.logger import Logger

from flowstack.ledger.intake import Intake
from flowstack.ledger.migrate import LOCK
from flowstack.ledger.postgres import Postgres
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
        self._holder = os.urandom(16).hex()

    def fold(self) -> Folded:
        """Take the batches that wait, or some of them.

        :raises Unavailable: PostgreSQL cannot be used now. Nothing is lost: begin anew with another connection.
        """
        database = self._database
        if database.execute("SELECT FROM batches LIMIT 1").fetchone() is None:
            return Folded()
        with database.transaction():
            if not database.execute("SELECT pg_try_advisory_xact_lock(?)", (FOLD_LOCK,)).fetchone()[0]:
                return Folded()
            if database.execute("UPDATE folding SET holder = ? WHERE holder != ?", (self._holder,) * 2).rowcount:
                self._intake.forget()  # another has added words since
            database.execute(_FIRST_ID)
            waiting = database.execute("SELECT id, rows, since, until FROM batches ORDER BY id").fetchall()
            taken, count, bad = [], 0, 0
            for number, rows, since, until in waiting:
                bad += self._add(number, since, until)
                taken.append(number)
                count += rows
                if count >= FOLD_ROWS:
                    break
            behind = len(taken) < len(waiting)
            self._intake.store(behind)
            if bad:
                database.execute(
                    "INSERT INTO files (node, name, taken, seal, bad) VALUES (?, ?, 0, 0, ?) ON CONFLICT (node, name) "
                    "DO UPDATE SET bad = files.bad + excluded.bad", (*UNFIT, bad),
                )  # fmt: skip
            database.execute("DELETE FROM batches WHERE id = ANY(?)", (taken,))
        return Folded(len(taken), behind)

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
