"""What the counters of a plan say, and the error that a refused client gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from flowstack.errors import BudgetExceeded, FlowstackError, Pairs
from flowstack.http.headers import pairs_of
from flowstack.http.names import REQUESTS, TOKENS
from flowstack.limits import answers
from flowstack.limits.answers import DURATIONS, FIGURES
from flowstack.limits.counters import LATEST, SEEN, USED, Counters
from flowstack.limits.money import Period, period_at, roll
from flowstack.limits.plans import Place, Plan
from flowstack.limits.windows import GRAIN, SPAN, LateError, bucket_of, ends_at, frees_at, live

RPM: Final = "rpm"
TPM: Final = "tpm"
PARALLEL: Final = "max_parallel"
MONEY: Final = "budget"
"""The limit that refused."""

LATE: Final = "late"
"""None did, but another worker's clock was ahead: look again."""

MAX_RESET: Final = SPAN + GRAIN
"""Seconds for which what is counted now counts at most."""


class Look:
    """Reads the counters, and writes none.

    :param wall: UTC Unix seconds.
    :param monotonic: seconds on the clock of the windows.
    :param budget_status: of the answer to a request that a budget does not cover.
    """

    def __init__(
        self,
        counters: Counters,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        budget_status: int = BudgetExceeded.status,
    ) -> None:
        self._budget_status = budget_status
        self._counters = counters
        self._wall = wall
        self._monotonic = monotonic

    def period(self, plan: Plan) -> Period:
        """The present period of a plan that has a budget."""
        money, wall = plan.money, self._wall()
        assert money is not None and plan.budget is not None
        if not money.period.begins <= wall < money.period.ends:
            money.period = period_at(plan.budget.period, wall)
        return money.period

    def spent(self, columns: tuple[int, ...], label: int) -> int:
        """What all workers used and reserved in a period, in billionths of a dollar, less what the operator took off.

        :param columns: of a budget.
        """
        cells, spent = self._counters.cells, 0
        for at in columns:
            seen = cells[at + SEEN]
            if seen == label:
                spent += cells[at + USED]
            elif seen:
                spent += roll(cells[at + LATEST], seen, cells[at + USED], label)[2]
        return spent

    def counts(self, columns: tuple[int, ...]) -> int:
        """What counts in a window of all workers now."""
        while True:
            try:
                bucket = bucket_of(self._monotonic())
                return sum([live(self._counters.cells, at, bucket) for at in columns])
            except LateError:
                continue

    def reset_of(self, columns: tuple[int, ...]) -> int:
        """Whole seconds, rounded up, until nothing of a window counts any more in which something does."""
        newest = max([self._counters.cells[at] for at in columns])
        return min(max(ends_at(newest) - int(self._monotonic()), 0), MAX_RESET)

    def _wait(self, place: Place, excess: int) -> float | None:
        """Seconds until so much of what counts will count no more; None if there is not so much."""
        while True:
            try:
                now = self._monotonic()
                if excess <= 0:
                    return 0.0
                free = frees_at(self._counters.cells, place.columns, bucket_of(now), excess)
                return None if free is None else max(free - now, 0.0)
            except LateError:
                continue

    def fields(self, plan: Plan) -> Pairs:
        """The ``Flowstack-RateLimit-*`` of an answer to a request that took nothing."""
        lines = b""
        for unit, place, counts in self._told(plan):
            reset = DURATIONS[self.reset_of(place.columns) if counts else 0]
            lines += FIGURES[unit] % (place.most, max(place.most - counts, 0), reset)
        return pairs_of(lines)

    def _told(self, plan: Plan) -> Iterator[tuple[bytes, Place, int]]:
        """The limits of which a client is told, each with what counts: of a key's and its group's, the tighter one."""
        group = plan.group
        for unit, own, shared in (
            (REQUESTS, plan.rpm, None if group is None else group.rpm),
            (TOKENS, plan.tpm, None if group is None else group.tpm),
        ):
            own_counts = 0 if own is None else self.counts(own.columns)
            shared_counts = 0 if shared is None else self.counts(shared.columns)
            found = tighter(own, own_counts, shared, shared_counts)
            if found is not None:
                yield unit, *found

    def refusal(
        self, plan: Plan, limit: str, told: Plan, tokens: int = 0, nanos: int = 0, ours: bool = False
    ) -> FlowstackError:
        """The error for a request that a limit refused.

        :param plan: the key's or its group's, which has the limit.
        :param told: the key's, for the figures.
        :param tokens: what it may use, as far as that is known.
        :param nanos: what it may cost.
        :param ours: whether the answer has the ``Flowstack-RateLimit-*`` from the error alone.
        """
        fields: Pairs = ()
        for unit, place, counts in self._told(told):
            reset = self.reset_of(place.columns) if counts else 0
            fields += answers.refusal_fields(unit, place.most, counts, reset, ours)
        who = plan.who
        if limit == PARALLEL:
            assert plan.parallel is not None
            return answers.too_much_at_once(who, plan.parallel.most, plan.parallel.scope, fields)
        if limit == MONEY:
            assert plan.money is not None and plan.budget is not None
            period = self.period(plan)
            spent = self.spent(plan.money.columns, period.label)
            return answers.too_expensive(
                who, plan.budget, plan.money.scope, spent, nanos, period, fields, self._budget_status
            )
        if limit == RPM:
            assert plan.rpm is not None
            counts = self.counts(plan.rpm.columns)
            wait = self._wait(plan.rpm, counts + 1 - plan.rpm.most) or 0.0
            return answers.too_many_requests(who, plan.rpm.most, plan.rpm.scope, counts, wait, fields)
        assert plan.tpm is not None
        counts, most = self.counts(plan.tpm.columns), plan.tpm.most
        maybe = None if tokens > most else self._wait(plan.tpm, counts + max(tokens, 1) - most) or 0.0
        return answers.too_many_tokens(who, most, plan.tpm.scope, counts, tokens, maybe, fields)


def tighter(own: Place | None, own_counts: int, shared: Place | None, shared_counts: int) -> tuple[Place, int] | None:
    """Of a key's limit and its group's the one of which less remains, and what counts towards it."""
    if own is None or (shared is not None and shared.most - shared_counts < own.most - own_counts):
        return None if shared is None else (shared, shared_counts)
    return own, own_counts
