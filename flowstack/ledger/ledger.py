"""The ledger as the relay knows it: a row comes in, is made a line once, and goes to the journal and the access log.

Refused requests beyond some a minute have one row together, and so have those for Flowstack's own paths: see
:mod:`flowstack.ledger.refusals`.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from flowstack.ledger.access import AccessLog
from flowstack.ledger.journal import Journal
from flowstack.ledger.lines import line_of
from flowstack.ledger.refusals import MINUTE, Refusals
from flowstack.ledger.row import Row

log = Logger()


class RowLedger:
    """Hands each row to the journal, then to the access log.

    :param journal: None where there is no state directory.
    :param refusals: whole rows of each key's refused requests in a minute; those beyond are counted together.
    :ivar failures: rows that one of them could not take; that is a fault of the program, and logged once.
    """

    def __init__(self, journal: Journal | None, access: AccessLog, refusals: int, clock: IReactorTime) -> None:
        self.journal = journal
        self.access = access
        self.failures = 0
        self._refusals = Refusals(refusals)
        self._minutes = LoopingCall(self._end_minute)
        self._minutes.clock = clock

    @property
    def accepting(self) -> bool:
        """See :class:`flowstack.interfaces.Ledger`."""
        return self.journal is None or self.journal.accepting

    @property
    def lost(self) -> int:
        """Rows that should be in the journal and will never be."""
        return 0 if self.journal is None else self.journal.lost

    @property
    def waiting(self) -> int:
        """Bytes of rows that wait to be written to the journal."""
        return 0 if self.journal is None else self.journal.waiting

    def start(self) -> None:
        """Open what is written to.

        :raises OSError: the access log's file cannot be opened. The journal's may fail: then rows wait.
        """
        self.access.start()
        if self.journal is not None:
            self.journal.start()
        self._minutes.start(MINUTE, now=False)

    def stop(self) -> None:
        """Write what waits, and close."""
        if self._minutes.running:
            self._minutes.stop()
        self._end_minute()
        if self.journal is not None:
            self.journal.stop()
        self.access.stop()

    def reopen(self) -> None:
        """SIGHUP: open the access log's file anew. The journal's files are never renamed by anyone."""
        self.access.reopen()

    def record(self, row: Row, operation: str = "") -> None:
        """See :class:`flowstack.interfaces.Ledger`."""
        try:
            # A request that Flowstack answered by itself has no upstream, and no limit counts it.
            folds = row["end"] == "refused" or (row["upstream"] is None and row["parent_request_id"] is None)
            whole = self._refusals.take(row) if folds else row
            if whole is not None:
                self._write(whole)
        except Exception:
            self._failed()

    def flush(self) -> None:
        """See :class:`flowstack.interfaces.Ledger`."""
        if self.journal is not None:
            self.journal.flush()

    def _write(self, row: Row) -> None:
        journal, access = self.journal, self.access
        line = line_of(row)
        if journal is not None:
            journal.record_line(line)
        if not access.off:
            access.record(row, line)

    def _end_minute(self) -> None:
        for row in self._refusals.end():
            try:
                self._write(row)
            except Exception:
                self._failed()

    def _failed(self) -> None:
        self.failures += 1
        if self.failures == 1:
            log.failure("a row could not be written everywhere; the journal comes first")
