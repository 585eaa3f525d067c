"""``python -m flowstack.process.shipper``: sends the ledger's rows to the PostgreSQL of all machines. The service
starts it, and gives it the settings on its standard input.

Killed at any moment it leaves nothing that the next one does not put right, and the same holds for PostgreSQL.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import time
from contextlib import suppress
from datetime import UTC, datetime

from twisted.logger import Logger

from flowstack.config import Settings, node_of
from flowstack.files import open_regular
from flowstack.ledger.database import Unavailable
from flowstack.ledger.files import files, journal_path, shipped_path
from flowstack.ledger.folding import Folding, keep_partitions, keep_places
from flowstack.ledger.index import bytes_beyond
from flowstack.ledger.migrate import migrate
from flowstack.ledger.postgres import Postgres, TookTooLong, at_most
from flowstack.ledger.shipping import Shipping
from flowstack.process.background import NICE, Background, run
from flowstack.process.shipped import Shipped, read_shipped, write_shipped

log = Logger()

LOOK_SECONDS = 1.0
"""Between two looks at the journal."""

ANSWER_SECONDS = 150.0
"""For all that one look asks PostgreSQL; a statement has less."""

KEEP_SECONDS = 3600.0
"""Between two looks at the partitions."""

SAVE_SECONDS = 10.0
"""After which ``ledger.shipped.json`` is written although nothing has changed."""


class Shipper(Background):
    """Looks each second at what the journal has and PostgreSQL has not.

    :param settings: of the service, with a state directory and ``[shared] postgres``.
    """

    what = "rows are not sent to PostgreSQL and wait in the journal"

    def __init__(self, settings: Settings, stop: int) -> None:
        super().__init__(stop)
        assert settings.server.state is not None
        self._settings = settings
        self._state = settings.server.state
        self._node = node_of(settings) or ""
        self._lock: int | None = None
        self._database: Postgres | None = None
        self._kept_at = float("-inf")
        self._said = read_shipped(self._state) or Shipped()
        self._saved_at = float("-inf")

    def look(self) -> float:
        """Send a batch, and add up what is to be added up.

        :raises Unavailable: PostgreSQL cannot be used now.
        :raises OSError: another one sends this journal, or it cannot be read.
        """
        self._take_turn()
        try:
            with at_most(ANSWER_SECONDS):
                return self._work()
        except TookTooLong:
            raise Unavailable(
                f"PostgreSQL did not answer within {ANSWER_SECONDS:g} seconds: look at the network, and at its load"
            ) from None

    def failed(self) -> None:
        """Begin anew with another connection, and count."""
        self.close()
        behind = self._said.lag_bytes or 0
        with suppress(OSError):
            behind = bytes_beyond(self._said.files, journal_path(self._state))
        self._said = self._said.failed(behind)
        self._save()

    def close(self) -> None:
        """Close the connection."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _take_turn(self) -> None:
        if self._lock is None:
            descriptor = open_regular(f"{shipped_path(self._state)}.lock", os.O_RDWR | os.O_CREAT, 0o640, follow=False)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(descriptor)
                raise
            self._lock = descriptor

    def _work(self) -> float:
        if self._database is None:
            self._connect()
        database = self._database
        assert database is not None
        if time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._kept_at = time.monotonic()  # also where it fails: what rows need is made when they are sent
            for name in keep_partitions(database, datetime.now(UTC), self._settings.shared.postgres_days):
                log.info("{name} was dropped in PostgreSQL: its rows are older than postgres_days", name=name)
            names = [path.name for path in files(journal_path(self._state))]
            keep_places(database, self._node, names, self._settings.shared.postgres_days)
        sent = self._shipping.ship()
        if sent.bad_lines:
            self.trouble(f"{sent.bad_lines} lines of the journal are no rows, and were not sent")
        said = self._said.succeeded(sent.rows, sent.behind, self._shipping.done(), time.time())
        changed, self._said = said.files != self._said.files or said.lag_bytes != self._said.lag_bytes, said
        if changed or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()
        behind = self._folding.fold().behind
        return 0.0 if sent.behind or behind else LOOK_SECONDS

    def _connect(self) -> None:
        database = Postgres(self._settings.shared, f"flowstack shipper {self._node}")
        self._database = database
        for name in migrate(database):
            log.info("PostgreSQL at {place}: applied {name}", place=database.place, name=name)
        self._shipping = Shipping(database, journal_path(self._state), self._node)
        self._folding = Folding(database)

    def _save(self) -> None:
        with suppress(OSError):  # a full disk: the next time it may have room
            write_shipped(self._state, self._said)
        self._saved_at = time.monotonic()


def main() -> None:
    """Send the rows of the service whose settings come on standard input."""

    def make() -> Shipper:
        with open(0, "rb", buffering=0, closefd=False) as pipe:
            return Shipper(pickle.load(pipe), 0)

    with suppress(EOFError):  # who starts it is gone already
        run(make, NICE)


if __name__ == "__main__":
    main()
