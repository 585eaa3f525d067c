"""The limiter over the shared counters.

To take of a limit, a worker first adds to its own column, and then looks at the others': if the sum is too much, it
takes back what it added. What it wrote itself it remembers. Of two workers that do so at once, at least one sees the
other's, so the limit is never exceeded; this needs no lock, but that the own write is seen before the others' columns
are read. On x86-64 a locked instruction between the two sees to it; elsewhere the key's lock is held around both. Where
two see each other and both take back, each looks again under that lock.

A key's request takes of its own limits first and then of its group's, each as a whole; where the group's refuse, what
it took of its own goes back.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.logger import Logger

from flowstack.config.settings import Settings
from flowstack.errors import FlowstackError, Pairs
from flowstack.http.names import REQUESTS, TOKENS
from flowstack.keys import Key
from flowstack.ledger.row import Row
from flowstack.limits.answers import DURATIONS, FIGURES, no_price
from flowstack.limits.books import Books, Standing
from flowstack.limits.charge import charged_nanos, charged_tokens
from flowstack.limits.counters import AFTER, BEFORE, LATEST, RESET, SEEN, USED, Counters
from flowstack.limits.look import LATE, MAX_RESET, MONEY, PARALLEL, RPM, TPM, Look, tighter
from flowstack.limits.money import MAX, NANO, nano, period_of, roll
from flowstack.limits.plans import OwnColumn, Place, Plan, Plans, group_slot
from flowstack.limits.windows import (
    BUCKETS,
    GRAIN,
    TOTAL,
    LateError,
    add,
    bucket_of,
    live,
    take_back,
)

log = Logger()

_TRIES: Final = 100
"""Looks at what is left of a budget before its last part is refused."""

LOOKS: Final = -2
"""In place of tokens, of a request that uses none."""

MAX_TOKENS: Final = 1 << 48
"""The most that one request is taken to use; keeps sums within a cell."""

FENCED = platform.machine().lower() in {"x86_64", "amd64"}
"""Whether taking a free lock of Python's is a full barrier between what was written before and what is read after: it
is a locked instruction, with which loads and stores are not reordered (Intel SDM, volume 3A, "Memory Ordering")."""


class Reservation:
    """What one request took.

    :ivar plan: of which limits.
    :ivar lines: of ``Reservation``: requests as of the admission, tokens as of the claim.
    :ivar requests: that counted, this one among them.
    :ivar reset: the time until all of them are free again.
    :ivar tokens: claimed by estimate; -1 before the claim.
    :ivar nanos: claimed by estimate, in billionths of a dollar.
    :ivar bucket: in which the tokens count.
    :ivar period: in which the money counts.
    :ivar group: what it took of its group's limits, where there are any; the other one's lines stand for both.
    :ivar used: tokens that counted then, where a group has limits.
    """

    __slots__ = (
        "bucket", "group", "limiter", "lines", "nanos", "period", "plan", "requests", "reset", "tokens", "used",
    )  # fmt: skip

    limiter: SharedLimiter
    plan: Plan
    lines: bytes
    requests: int
    reset: bytes
    tokens: int
    nanos: int
    bucket: int
    period: int
    group: Reservation
    used: int

    def claim(self, tokens: int, cost_usd: float | None, least_usd: float | None = None) -> None:
        """Of ``Reservation``; at most once."""
        limiter, plan = self.limiter, self.plan
        if plan.metered and (limiter.lock_first or limiter.take(self, tokens, cost_usd, False)):
            limiter.take_locked(self, plan, tokens, cost_usd, False, least_usd)
        if plan.group is not None:
            limiter.claim_of_group(self, tokens, cost_usd, least_usd)

    def kept(self) -> dict[str, Any] | None:
        """Of ``Reservation``."""
        tokens = self.tokens
        if tokens < 0:
            return None
        both = (self,) if self.plan.group is None else (self, self.group)
        return {
            "at": self.limiter.wall(),
            "tokens": tokens,
            "tpm": [one.plan.tpm.name for one in both if one.plan.tpm is not None],
            "money": {one.plan.money.name: [one.period, one.nanos] for one in both if one.plan.money is not None},
        }


class SharedLimiter:
    """Holds each key to its limits, together with the other workers on the same counters.

    :ivar lock_first: whether the key's lock is held around each look, and not only around a second one.
    :param counters: for this limiter alone, as it remembers what it wrote there.
    :param settings: for the limits of upstreams, and those of all keys.
    :param wall: UTC Unix seconds, for the periods of budgets.
    :param monotonic: seconds on a clock that never steps and is the same for all workers.
    """

    def __init__(
        self,
        counters: Counters,
        settings: Settings,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = counters
        self._settings = settings
        self._books = Books(counters, wall, monotonic)
        self._plans = Plans(counters, settings, monotonic)
        self._by_id = self._plans.by_id
        self._free = self._plans.free
        self.wall = wall
        self._monotonic = monotonic
        self._look = look = Look(counters, wall, monotonic, settings.limits.budget_status)
        self._period, self._spent = look.period, look.spent
        self._together = counters.layout.workers > 1
        self.lock_first = self._together and not FENCED
        barrier = threading.Lock()
        self._barrier = barrier.acquire, barrier.release
        self._tick_ends, self._bucket, self._oldest, self._reset = 0.0, 0, 0, b""

    def plan(self, key: Key, upstream: str) -> Plan | None:
        """Of ``Limiter``."""
        if (key.rpm is None and key.tpm is None and key.max_parallel is None and key.budget is None
                and key.shared is None and upstream in self._free):  # fmt: skip
            return None
        return self._plan(key, upstream)

    def parts(self, plan: Plan) -> tuple[Plan, Plan, Plan]:
        """Of ``Limiter``."""
        return plan.of_connection(), plan.of_responses(), plan.of_speech()

    def _plan(self, key: Key, upstream: str) -> Plan:
        plan = self._by_id[upstream].get(key.id)
        if plan is None or (plan.key is not key and not plan.holds_for(key)):
            plan = self._plans.make(key, upstream)
        return plan

    def reserve(
        self,
        plan: Plan,
        tokens: int | None = None,
        cost_usd: float | None = None,
        least_usd: float | None = None,
        looks: bool = False,
    ) -> Reservation:
        """Of ``Limiter``. An admission counts for ``rpm`` whatever becomes of it."""
        taken = Reservation()
        taken.limiter, taken.plan = self, plan
        if tokens is None or not plan.metered:
            tokens = LOOKS if looks else -1
        if self.lock_first or self.take(taken, tokens, cost_usd, True):
            self.take_locked(taken, plan, tokens, cost_usd, True, least_usd)
        if plan.group is not None:
            self._take_of_group(taken, plan.group, tokens, cost_usd, least_usd)
        return taken

    def _take_of_group(
        self, taken: Reservation, plan: Plan, tokens: int, cost_usd: float | None, least_usd: float | None
    ) -> None:
        """Take of a group's limits what was taken of its key's; if that cannot be, what was taken is given back."""
        group = taken.group = Reservation()
        group.limiter, group.plan = self, plan
        if not plan.metered:
            tokens = -1
        try:
            if self.lock_first or self.take(group, tokens, cost_usd, True):
                self.take_locked(group, taken.plan, tokens, cost_usd, True, least_usd)
        except FlowstackError:
            self._undo(taken)
            raise
        taken.lines = self._joint_lines(taken)

    def claim_of_group(self, taken: Reservation, tokens: int, cost_usd: float | None, least_usd: float | None) -> None:
        """As :meth:`Reservation.claim`, for the group; what the key claimed is settled with all else."""
        group = taken.group
        if group.plan.metered and (self.lock_first or self.take(group, tokens, cost_usd, False)):
            self.take_locked(group, taken.plan, tokens, cost_usd, False, least_usd)
        taken.lines = self._joint_lines(taken)

    def _undo(self, taken: Reservation) -> None:
        """Give back all that was taken at once, in the same turn: no window has gone on meanwhile."""
        plan = taken.plan
        if plan.rpm is not None:
            self._give_back(plan.rpm.own, 1)
        if plan.parallel is not None:
            self._give_back(plan.parallel.own, 1)
        if taken.tokens >= 0:
            if plan.tpm is not None:
                self._give_back(plan.tpm.own, taken.tokens)
            if plan.money is not None:
                self._settle_money(plan.money, taken.period, -taken.nanos)

    def _joint_lines(self, taken: Reservation) -> bytes:
        """The figures of an answer to a key in a group: each of the limit of which less remains."""
        group, lines = taken.group, b""
        own, shared = taken.plan, group.plan
        found = tighter(own.rpm, taken.requests, shared.rpm, group.requests)
        if found is not None:
            place, requests = found
            lines = FIGURES[REQUESTS] % (place.most, place.most - requests, taken.reset)
        found = tighter(own.tpm, taken.used, shared.tpm, group.used)
        if found is not None:
            place, used = found
            claimed = (taken if place is own.tpm else group).tokens >= 0
            free = self._reset if claimed else DURATIONS[self._look.reset_of(place.columns) if used else 0]
            lines += FIGURES[TOKENS] % (place.most, place.most - used, free)
        return lines

    def fields(self, key: Key, upstream: str) -> Pairs:
        """Of ``Limiter``."""
        if key.rpm is None and key.tpm is None and key.shared is None and upstream in self._free:
            return ()
        return self._look.fields(self._plan(key, upstream))

    def standings(self, key: Key) -> list[Standing]:
        """Of ``Limiter``."""
        standings = self._books.standings(key.id, key, self._settings)
        if key.shared is not None:
            standings += self._books.standings(group_slot(key.shared.name), key.shared, self._settings)
        return standings

    def _tick(self, now: float) -> None:
        """Another second has begun: note what stands for all of it."""
        seconds = int(now)
        self._tick_ends = seconds + 1.0
        self._bucket = bucket = bucket_of(seconds)
        self._oldest = bucket - BUCKETS
        self._reset = DURATIONS[MAX_RESET - seconds % GRAIN]

    def take(self, taken: Reservation, tokens: int, cost_usd: float | None, begins: bool) -> str:
        """Take what a request needs; or take nothing, and say of which limit there is too little left.

        :param tokens: by estimate; -1 where it is not known yet what it may use, :data:`LOOKS` where it uses nothing.
        :param cost_usd: of the tokens; None where they have no price.
        :param begins: whether to take the request itself, which otherwise was taken before.
        :raises ModelNotAllowed: money is limited, and there is no price.
        """
        plan, cells, monotonic = taken.plan, self.counters.cells, self._monotonic
        rpm, tpm, parallel, money = plan.rpm, plan.tpm, plan.parallel, plan.money
        if not begins:
            rpm = parallel = None
        if tokens > MAX_TOKENS:
            tokens = MAX_TOKENS
        now = monotonic()
        if now >= self._tick_ends:
            self._tick(now)
        bucket = self._bucket
        requests = in_flight = used = label = nanos = spent = charged = 0
        refused = ""

        # 1. What can never fit is not added first: others might see it, and think that there is no room.
        if tpm is not None and tokens > tpm.most:
            return TPM
        if money is not None and tokens >= 0:
            if cost_usd is not None:
                nanos = nano(cost_usd)
            elif tokens:
                raise no_price(plan.who)
            if nanos > money.most:
                return MONEY

        # 2. Add to the own columns. The own count is known without a look: nobody else writes there.
        if rpm is not None:
            own = rpm.own
            if own.bucket != bucket:
                own.bring_to(bucket, cells)
            own.count = requests = own.count + 1
            cells[own.total] = requests
        if parallel is not None:
            own = parallel.own
            own.count = in_flight = own.count + 1
            cells[own.total] = in_flight
        if tpm is not None and tokens > 0:
            own = tpm.own
            if own.bucket != bucket:
                own.bring_to(bucket, cells)
            own.count = used = own.count + tokens
            cells[own.total] = used
        if money is not None:
            period = money.period
            if not period.begins <= self.wall() < period.ends:
                period = self._period(plan)
            label = period.label
            if tokens >= 0:
                own = money.own
                if own.bucket != label:
                    self._roll(money, label)
                own.count = spent = own.count + nanos
                cells[own.total + 1] = cells[own.total] = spent  # BEFORE, then USED

        # 3. The own writes are visible to all others before any of theirs is read (see above).
        if self._together:
            acquire, release = self._barrier
            acquire()
            release()

        # 4. Add what stands in the others' columns, and compare the sum with the limit.
        try:
            if rpm is not None:
                for at in rpm.others:
                    newest = cells[at]
                    if newest == bucket:
                        requests += cells[at + TOTAL]
                    elif newest > self._oldest:
                        requests += live(cells, at, bucket)
                if requests > rpm.most:
                    refused = RPM
            if parallel is not None:
                for at in parallel.others:
                    in_flight += cells[at]
                if in_flight > parallel.most:
                    refused = PARALLEL
            if tpm is not None:
                if tokens <= 0:
                    own = tpm.own
                    used = own.count if own.bucket == bucket else live(cells, own.at, bucket)
                for at in tpm.others:
                    newest = cells[at]
                    if newest == bucket:
                        used += cells[at + TOTAL]
                    elif newest > self._oldest:
                        used += live(cells, at, bucket)
                if tokens != LOOKS and (used > tpm.most or (used == tpm.most and tokens <= 0)):
                    refused = TPM
            if money is not None:
                charged = spent
                for at in money.others if tokens >= 0 else money.columns:
                    seen = cells[at + SEEN]
                    if seen == label:
                        spent += cells[at + USED]
                    elif seen:
                        spent += self._spent((at,), label)
                if tokens != LOOKS and (spent > money.most or (spent == money.most and tokens < 0)):
                    refused = MONEY
        except LateError:
            refused = LATE

        # 5. It fits: keep it, and say what remains.
        if not refused:
            taken.tokens, taken.bucket = tokens, bucket
            reset = self._reset
            if rpm is not None and tpm is not None and tokens >= 0 and plan.figures:
                taken.lines = plan.figures % (rpm.most - requests, reset, tpm.most - used, reset)
            else:
                if begins:
                    taken.requests, taken.reset = requests, reset  # for the claim
                taken.used = used
                taken.lines = self._lines(taken, used) if plan.figures else b""
            if money is not None and tokens >= 0:
                taken.nanos, taken.period = nanos, label
                own = money.own
                cells[own.total + 2] = charged  # AFTER
                if own.kept != bucket:
                    # Once in each of the windows' buckets a copy: for all else a restart takes the live cells' word.
                    own.kept = bucket
                    self.counters.write_money(own.at, money.tag, self.wall(), cells[own.at + LATEST], label, charged)
            return refused

        # 6. It does not: take back what was added, so that a refusal takes nothing.
        if rpm is not None:
            self._give_back(rpm.own, 1)
        if parallel is not None:
            self._give_back(parallel.own, 1)
        if tpm is not None and tokens > 0:
            self._give_back(tpm.own, tokens)
        if money is not None and tokens >= 0:
            self._give_back(money.own, nanos)
        return refused

    def take_locked(
        self, taken: Reservation, told: Plan, tokens: int, cost_usd: float | None, begins: bool, least_usd: float | None
    ) -> None:
        """As :meth:`take`, after another worker's attempt may have been seen.

        :param told: the key's own plan, where it is its group's of which it takes.
        :raises FlowstackError: there is too little left all the same.
        """
        plan = taken.plan
        with self.counters.locked(plan.lock):
            refused = LATE
            while refused is LATE:
                refused = self.take(taken, tokens, cost_usd, begins)
            if refused is MONEY and least_usd is not None:
                refused = self._take_the_rest(taken, tokens, nano(cost_usd or 0.0), least_usd, begins)
        if refused:
            raise self._look.refusal(plan, refused, told, max(tokens, 0), nano(cost_usd or 0.0), ours=begins)

    def _take_the_rest(self, taken: Reservation, tokens: int, nanos: int, least_usd: float, begins: bool) -> str:
        """As :meth:`take`, where no more need be left of a budget than the least. Under the key's lock.

        It takes all of what it may cost, beyond the budget too: so nothing else is admitted until what others give back
        has made room for all of it. Otherwise each of several that took the little that was left could cost too much.

        :param nanos: what it may cost.
        """
        plan, least = taken.plan, nano(least_usd)
        money = plan.money
        assert money is not None
        refused = LATE
        for _ in range(_TRIES):  # others, without the lock, may be about to take, or give back, in between
            left = money.most - self._spent(money.columns, self._period(plan).label)
            if left < least or not left:
                return MONEY
            refused = self.take(taken, tokens, left / NANO, begins)
            if refused not in (MONEY, LATE):
                break
        if not refused and nanos > taken.nanos:
            self._settle_money(money, taken.period, nanos - taken.nanos)
            taken.nanos = nanos
        return refused

    def _lines(self, taken: Reservation, used: int) -> bytes:
        """The figures of an answer.

        :param used: tokens that count.
        """
        plan = taken.plan
        figures: tuple[int | bytes, ...] = ()
        if plan.rpm is not None:
            figures = plan.rpm.most - taken.requests, taken.reset
        if plan.tpm is not None:
            free = self._reset if taken.tokens >= 0 else DURATIONS[self._look.reset_of(plan.tpm.columns) if used else 0]
            figures += plan.tpm.most - used, free
        return plan.figures % figures

    def _give_back(self, own: OwnColumn, amount: int) -> None:
        own.count -= amount
        self.counters.cells[own.total] = own.count

    def settle(
        self, reservation: Reservation, row: Row, tokens: int | None = None, cost_usd: float | None = None
    ) -> None:
        """Of ``Limiter``."""
        try:
            plan = reservation.plan
            if plan.group is not None:
                self.settle(reservation.group, row, tokens, cost_usd)
            tpm, parallel = plan.tpm, plan.parallel
            if parallel is not None:
                own = parallel.own
                own.count = in_flight = own.count - 1
                self.counters.cells[own.total] = in_flight
            reserved = reservation.tokens
            if reserved < 0:
                if plan.metered:
                    self._charge(plan, charged_tokens(row, tokens or 0), charged_nanos(row, nano(cost_usd or 0.0)))
                return
            if tpm is not None:
                more = charged_tokens(row, reserved) - reserved
                own = tpm.own
                if more < 0 and own.bucket == reservation.bucket:
                    own.count = count = own.count + more
                    self.counters.cells[own.total] = count
                elif more:
                    self._settle_tokens(own, reservation, more)
            if plan.money is not None:
                held = reservation.nanos
                reset = self.counters.cells[plan.money.columns[-1] + RESET]
                more = charged_nanos(row, held) - (0 if reset and row["started_at"].timestamp() * 1e6 < reset else held)
                if more:
                    self._settle_money(plan.money, reservation.period, more)
        except Exception:
            log.failure("a request could not be settled: what it reserved stays charged")

    def charge(self, plan: Plan, tokens: int | None, cost_usd: float | None) -> None:
        """Of ``Limiter``."""
        try:
            for one in (plan,) if plan.group is None else (plan, plan.group):
                if one.metered:
                    self._charge(one, tokens or 0, nano(cost_usd or 0.0))
        except Exception:
            log.failure("what nothing was reserved for could not be charged")

    def settle_later(self, kept: Mapping[str, Any], row: Row) -> None:
        """Of ``Limiter``."""
        try:
            tokens = kept["tokens"]
            more = charged_tokens(row, tokens) - tokens
            for name in kept["tpm"]:
                if more > 0:
                    self._add_tokens(self._plans.window(name), more)
            for name, (label, nanos) in kept["money"].items():
                period = period_of(label, self.wall())
                money = self._plans.budget(name)
                if period is None or period.label != label:
                    continue  # that period has ended
                if money.own.bucket != label:
                    self._roll(money, label)
                reset = self.counters.cells[money.columns[-1] + RESET]
                self._settle_money(money, label, charged_nanos(row, nanos) - (0 if kept["at"] * 1e6 < reset else nanos))
        except Exception:
            log.failure("work that ended later could not be settled: what it reserved stays charged")

    def _settle_tokens(self, own: OwnColumn, reservation: Reservation, more: int) -> None:
        """What was claimed lies in a bucket that is over, or there is more to charge."""
        if more > 0:
            self._add_tokens(own, more)
        else:
            take_back(self.counters.cells, own.at, reservation.bucket, -more)
            own.look(self.counters.cells)

    def _add_tokens(self, own: OwnColumn, tokens: int) -> None:
        """They count from when they are known."""
        add(self.counters.cells, own.at, bucket_of(self._monotonic()), min(tokens, MAX_TOKENS))
        own.look(self.counters.cells)

    def _charge(self, plan: Plan, tokens: int, nanos: int) -> None:
        """Nothing was claimed: nobody knew that the request would use anything, or it ended before that was known."""
        if plan.tpm is not None and tokens:
            self._add_tokens(plan.tpm.own, tokens)
        if plan.money is not None and nanos:
            period = self._period(plan).label
            if plan.money.own.bucket != period:
                self._roll(plan.money, period)
            self._settle_money(plan.money, period, nanos)

    def _settle_money(self, money: Place, period: int, more: int) -> None:
        own = money.own
        if own.bucket == period:  # else it has ended, and what was used in it does not matter any more
            # Another worker's column may hold what this one gives back, so that only the sum is never below zero.
            used = own.count + more
            if not -MAX <= used <= MAX:
                used = MAX if used > 0 else -MAX
            own.count = used
            cells, at = self.counters.cells, own.at
            cells[at + BEFORE] = cells[at + USED] = cells[at + AFTER] = used

    def _roll(self, money: Place, label: int) -> None:
        """Bring this worker's record to the present period."""
        own, cells = money.own, self.counters.cells
        rolled = roll(cells[own.at + LATEST], own.bucket, own.count, label)
        self.counters.write_money(own.at, money.tag, self.wall(), *rolled)
        own.look(cells)
