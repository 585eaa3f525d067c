"""Work whose usage is known later than its beginning: waited for, and settled once, for the key that began it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.interfaces import Ledger, Limiter, OpenWork
from flowstack.ledger.late import Begun, settlement, together
from flowstack.ledger.row import Row
from flowstack.limits.charge import assumed_cost
from flowstack.prices.cost import Prices
from flowstack.usage.model import Late

log = Logger()


class LateWork:
    """Settles open work, whoever sees it finished: another key, another worker, or Flowstack that asked by itself.

    :param observe: given each row and its operation's name, for metrics.
    :param wall: UTC Unix seconds.
    :param default_price: US dollars for a million tokens, charged where a model has no price.
    """

    def __init__(
        self,
        open_work: OpenWork,
        limiter: Limiter,
        ledger: Ledger,
        prices: Prices,
        observe: Callable[[Row, str], None],
        wall: Callable[[], float],
        default_price: float | None = None,
    ) -> None:
        self._open = open_work
        self._limiter = limiter
        self._ledger = ledger
        self._prices = prices
        self._observe = observe
        self._wall = wall
        self._default_price = default_price

    def begin(self, begun: Begun) -> None:
        """Wait for work. Never raises."""
        try:
            self._open.begin(begun)
        except Exception:
            log.failure("background work cannot be tracked: its estimate stays charged")

    def seen(self, upstream: str, late: Late, identity: str, status: int) -> bool | Deferred[bool]:
        """An answer shows work: where it is finished, its usage known, and it is waited for, settle it. Never raises.

        First its rows are written, then it is forgotten, and then the limits are settled: a process that is killed
        in between leaves a row that is written again with the same id, or an estimate that stays charged; never an
        amount that is given back twice.

        :param status: of the answer.
        :return: whether it was settled now.
        """
        if not (late.finished and late.used):
            return False
        try:
            claimed = self._open.claim(upstream, late.kind, identity)
            if isinstance(claimed, Deferred):
                settled: Deferred[bool] = claimed.addCallback(self._write, late, status).addErrback(_unsettled)
                return settled
            return cast(bool, self._write(claimed, late, status))
        except Exception:
            return _unsettled(Failure())

    def _write(self, begun: Begun | None, late: Late, status: int) -> Any:
        """Write the rows of work that was claimed, and settle it; whether that was done."""
        if begun is None:
            return False
        now = self._wall()
        if now > begun.expires:
            forgotten = self._open.done(begun)
            return forgotten.addCallback(lambda _: False) if isinstance(forgotten, Deferred) else False
        rows = settlement(begun, late.used, self._prices, now, status)
        for row in rows:
            self._ledger.record(row)
        self._ledger.flush()
        forgotten = self._open.done(begun)
        if isinstance(forgotten, Deferred):
            return forgotten.addCallback(self._settle, begun, rows)
        return self._settle(forgotten, begun, rows)

    def _settle(self, ours: bool, begun: Begun, rows: Sequence[Row]) -> bool:
        if ours and begun.kept is not None:
            self._limiter.settle_later(begun.kept, together([self._charged(row, begun) for row in rows]))
        for row in rows:
            self._observe(row, begun.operation)
        return True

    def _charged(self, row: Row, begun: Begun) -> Row:
        """The row by which work is charged: with what its tokens cost at most where nobody knows their price."""
        if row["cost_usd"] is not None:
            return row
        models = row["model"], row["model_requested"]
        tier = row["service_tier"]
        return {**row, "cost_usd": assumed_cost(row, self._prices, models, tier, begun.begun, self._default_price)}


def _unsettled(failure: Failure) -> bool:
    log.failure("finished background work could not be settled: its estimate stays charged", failure)
    return False
