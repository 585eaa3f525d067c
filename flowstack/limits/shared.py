"""The limiter over the shared counters.

To take of a limit, a worker first adds to its own column, and then looks at the others': if the sum is too much, it
takes back what it added. What it wrote itself it remembers. Of two workers that do so at once, at least one sees the
other's, so the limit is never exceeded; this needs no lock, but that the own write is seen before the others' columns
are read. On x86-64 a locked instruction between the two sees to it; elsewhere the key's lock is held around both. Where
two see each other and both take back, each looks again under that lock.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable

from twisted.logger import Logger
from zope.interface import implementer

from flowstack.config.settings import Settings
from flowstack.errors import Pairs
from flowstack.interfaces import ILimiter, IReservation
from flowstack.limits.counters import LATEST, SEEN, SEQUENCE, USED, Counters
from flowstack.limits.look import LATE, LONGEST, MONEY, PARALLEL, RPM, TPM, Look
from flowstack.limits.plans import OwnColumn, Place, Plan, Plans
from flowstack.policy.keys import Key
from flowstack.policy.limits.answers import DURATIONS, no_price, pairs_of
from flowstack.policy.limits.charge import charged_nanos, charged_tokens
from flowstack.policy.limits.money import MOST, nano, roll
from flowstack.policy.limits.windows import (
    BUCKETS,
    GRAIN,
    TOTAL,
    LateError,
    add,
    bucket_of,
    live,
    take_back,
)
from flowstack.policy.rows import Row

log = Logger()

MOST_TOKENS = 1 << 48
"""The most that one request is taken to use; keeps sums within a cell."""

FENCED = platform.machine().lower() in {"x86_64", "amd64"}
"""Whether taking a free lock of Python's is a full barrier between what was written before and what is read after: it
is a locked instruction, with which loads and stores are not reordered (Intel SDM, volume 3A, "Memory Ordering")."""


@implementer(IReservation)
class Reservation:
    """What one request took.

    :ivar plan: of which limits.
    :ivar tokens: claimed by estimate; -1 before the claim.
    :ivar metered: whether tokens or money are limited.
    :ivar priced: whether money is limited.
    :ivar requests: that counted, this one among them.
    :ivar reset: whole seconds until all of them are free again.
    :ivar used: tokens that counted, those claimed here among them.
    :ivar tokens_reset: whole seconds until all of these are free again, once that was worked out.
    :ivar nanos: claimed by estimate, in billionths of a dollar.
    :ivar bucket: in which the tokens count.
    :ivar period: in which the money counts.
    """

    __slots__ = ("bucket", "limiter", "metered", "nanos", "period", "plan", "priced", "requests", "reset", "tokens",
                 "tokens_reset", "used")  # fmt: skip

    limiter: SharedLimiter
    plan: Plan
    metered: bool
    priced: bool
    requests: int
    reset: int
    tokens: int
    used: int
    tokens_reset: int
    nanos: int
    bucket: int
    period: int

    def claim(self, tokens: int, cost_usd: float | None) -> None:
        """Of ``IReservation``; at most once."""
        if not self.metered:
            return
        nanos = 0
        if self.plan.money is not None:
            if cost_usd is None and tokens:
                raise no_price(self.plan.key.id)
            nanos = nano(cost_usd or 0.0)
        if not 0 <= tokens <= MOST_TOKENS:
            tokens = min(max(tokens, 0), MOST_TOKENS)
        limiter = self.limiter
        if limiter.lock_first or limiter.take(self, tokens, nanos):
            limiter.take_locked(self, tokens, nanos)

    def fields(self) -> Pairs:
        """Of ``IReservation``."""
        return pairs_of(self.lines())

    def lines(self) -> bytes:
        """Of ``IReservation``: requests as of the admission, tokens as of the claim."""
        plan = self.plan
        template = plan.figures
        if not template:
            return b""
        rpm, tpm = plan.rpm, plan.tpm
        if tpm is None:
            assert rpm is not None
            return template % (rpm.most - self.requests, DURATIONS[self.reset])
        if self.tokens < 0:
            self.tokens_reset = self.limiter.reset_of(tpm) if self.used > 0 else 0
        tokens, tokens_reset = tpm.most - self.used, DURATIONS[self.tokens_reset]
        if rpm is None:
            return template % (tokens, tokens_reset)
        return template % (rpm.most - self.requests, DURATIONS[self.reset], tokens, tokens_reset)


@implementer(ILimiter)
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
        self._plans = Plans(counters, settings)
        self._by_id = self._plans.by_id
        self._free = self._plans.free
        self._wall = wall
        self._monotonic = monotonic
        self._look = look = Look(counters, wall, monotonic)
        self._period, self._spent, self.reset_of = look.period, look.spent, look.reset_of
        self._together = counters.layout.workers > 1
        self.lock_first = self._together and not FENCED
        barrier = threading.Lock()
        self._barrier = barrier.acquire, barrier.release
        self._tick_ends, self._bucket, self._oldest, self._reset = 0.0, 0, 0, 0

    def reserve(self, key: Key, upstream: str) -> Reservation | None:
        """Of ``ILimiter``. An admission counts for ``rpm`` whatever becomes of it."""
        if (key.rpm is None and key.tpm is None and key.max_parallel is None and key.budget is None
                and upstream in self._free):  # fmt: skip
            return None
        plan = self._by_id[upstream].get(key.id)
        if plan is None or (plan.key is not key and not plan.holds_for(key)):
            plan = self._plans.make(key, upstream)
        taken = Reservation()
        taken.limiter, taken.plan = self, plan
        if self.lock_first or self._admit(plan, taken):
            self._admit_locked(plan, taken)
        return taken

    def fields(self, key: Key, upstream: str) -> Pairs:
        """Of ``ILimiter``."""
        if key.rpm is None and key.tpm is None and upstream in self._free:
            return ()
        plan = self._by_id[upstream].get(key.id)
        if plan is None or (plan.key is not key and not plan.holds_for(key)):
            plan = self._plans.make(key, upstream)
        return self._look.fields(plan)

    def _tick(self, now: float) -> None:
        """Another second has begun: note what stands for all of it."""
        seconds = int(now)
        self._tick_ends = seconds + 1.0
        self._bucket = bucket = bucket_of(seconds)
        self._oldest = bucket - BUCKETS
        self._reset = LONGEST - seconds % GRAIN

    def _admit(self, plan: Plan, taken: Reservation) -> str:
        """Take one request and one of those under way, or say of which limit there is too much."""
        cells = self.counters.cells
        rpm, tpm, parallel, money = plan.rpm, plan.tpm, plan.parallel, plan.money
        monotonic = self._monotonic
        now = monotonic()
        if now >= self._tick_ends:
            self._tick(now)
        bucket, oldest = self._bucket, self._oldest
        requests = under_way = tokens = 0
        refused = ""
        if rpm is not None:
            own = rpm.own
            if own.bucket != bucket:
                own.bring_to(bucket, cells)
            own.count = requests = own.count + 1
            cells[own.total] = requests
        if parallel is not None:
            own = parallel.own
            own.count = under_way = own.count + 1
            cells[own.total] = under_way
        if self._together:
            acquire, release = self._barrier
            acquire()
            release()
        try:
            if rpm is not None:
                for at in rpm.others:
                    newest = cells[at]
                    if newest == bucket:
                        requests += cells[at + TOTAL]
                    elif newest > oldest:
                        requests += live(cells, at, bucket)
                if requests > rpm.most:
                    refused = RPM
            if parallel is not None:
                for at in parallel.others:
                    under_way += cells[at]
                if under_way > parallel.most:
                    refused = PARALLEL
            if tpm is not None:
                own = tpm.own
                tokens = own.count if own.bucket == bucket else live(cells, own.at, bucket)
                for at in tpm.others:
                    newest = cells[at]
                    if newest == bucket:
                        tokens += cells[at + TOTAL]
                    elif newest > oldest:
                        tokens += live(cells, at, bucket)
                if tokens >= tpm.most:
                    refused = TPM
            if money is not None and self._spent(money, self._period(plan).label) >= money.most:
                refused = MONEY
        except LateError:
            refused = LATE
        if not refused:
            taken.metered = plan.metered
            taken.priced = money is not None
            taken.requests, taken.reset = requests, self._reset
            taken.used, taken.tokens = tokens, -1
            return refused
        if rpm is not None:
            self._give_back(rpm.own, 1)
        if parallel is not None:
            self._give_back(parallel.own, 1)
        return refused

    def _admit_locked(self, plan: Plan, taken: Reservation) -> None:
        """As :meth:`_admit`, after another worker's attempt may have been seen.

        :raises FlowstackError: there is too much all the same.
        """
        with self.counters.locked(plan.lock):
            refused = LATE
            while refused is LATE:
                refused = self._admit(plan, taken)
        if refused:
            raise self._look.refusal(plan, refused, ours=True)

    def _give_back(self, own: OwnColumn, amount: int) -> None:
        own.count -= amount
        self.counters.cells[own.total] = own.count

    def take(self, reservation: Reservation, tokens: int, nanos: int) -> str:
        """Take tokens and money, or say of which there is too little left."""
        plan, cells = reservation.plan, self.counters.cells
        tpm, money = plan.tpm, plan.money
        monotonic = self._monotonic
        now = monotonic()
        if now >= self._tick_ends:
            self._tick(now)
        bucket = self._bucket
        used = label = 0
        refused = ""
        if tpm is not None:
            own = tpm.own
            if own.bucket != bucket:
                own.bring_to(bucket, cells)
            own.count = used = own.count + tokens
            cells[own.total] = used
        if money is not None:
            label = self._period(plan).label
            if cells[money.own.at + SEEN] != label:
                self._roll(money, label)
            cells[money.own.at + USED] += nanos
        if self._together:
            acquire, release = self._barrier
            acquire()
            release()
        try:
            if tpm is not None:
                for at in tpm.others:
                    newest = cells[at]
                    if newest == bucket:
                        used += cells[at + TOTAL]
                    elif newest > self._oldest:
                        used += live(cells, at, bucket)
                if used > tpm.most:
                    refused = TPM
            if money is not None and self._spent(money, label) > money.most:
                refused = MONEY
        except LateError:
            refused = LATE
        if not refused:
            reservation.tokens, reservation.bucket = tokens, bucket
            reservation.used, reservation.tokens_reset = used, self._reset
            if money is not None:
                reservation.nanos, reservation.period = nanos, label
                self._keep(money)
            return refused
        if tpm is not None:
            self._give_back(tpm.own, tokens)
        if money is not None:
            cells[money.own.at + USED] -= nanos
        return refused

    def take_locked(self, reservation: Reservation, tokens: int, nanos: int) -> None:
        """As :meth:`take`, after another worker's attempt may have been seen.

        :raises FlowstackError: there is too little left all the same.
        """
        with self.counters.locked(reservation.plan.lock):
            refused = LATE
            while refused is LATE:
                refused = self.take(reservation, tokens, nanos)
        if refused:
            raise self._look.refusal(reservation.plan, refused, tokens, nanos)

    def settle(self, reservation: Reservation, row: Row) -> None:
        """Of ``ILimiter``."""
        try:
            plan = reservation.plan
            tpm, parallel = plan.tpm, plan.parallel
            if parallel is not None:
                own = parallel.own
                own.count = under_way = own.count - 1
                self.counters.cells[own.total] = under_way
            reserved = reservation.tokens
            if reserved < 0:
                if not plan.metered or row["usage_source"] != "upstream":
                    return
                reserved = self._claim_late(reservation)
            if tpm is not None:
                more = charged_tokens(row, reserved) - reserved
                own = tpm.own
                if more < 0 and own.bucket == reservation.bucket:
                    own.count = count = own.count + more
                    self.counters.cells[own.total] = count
                elif more:
                    self._settle_tokens(own, reservation, more)
            if plan.money is not None:
                more = charged_nanos(row, reservation.nanos) - reservation.nanos
                if more:
                    self._settle_money(plan.money, reservation.period, more)
        except Exception:
            log.failure("a request could not be settled: what it reserved stays charged")

    def _settle_tokens(self, own: OwnColumn, reservation: Reservation, more: int) -> None:
        """What was claimed lies in a bucket that is over, or there is more to charge."""
        cells = self.counters.cells
        if more < 0:
            take_back(cells, own.at, reservation.bucket, -more)
        else:  # it counts from when it is known
            add(cells, own.at, bucket_of(self._monotonic()), min(more, MOST_TOKENS))
        own.look(cells)

    def _claim_late(self, reservation: Reservation) -> int:
        """Nothing was claimed, as nobody knew that the request would use anything; but the answer says so."""
        plan = reservation.plan
        reservation.tokens = reservation.nanos = 0
        if plan.money is not None:
            reservation.period = self._period(plan).label
            self._roll(plan.money, reservation.period)
        return 0

    def _settle_money(self, money: Place, period: int, more: int) -> None:
        cells, at = self.counters.cells, money.own.at
        if cells[at + SEEN] == period:  # else it has ended, and what was used in it does not matter any more
            cells[at + USED] = min(max(cells[at + USED] + more, 0), MOST)
            self._keep(money)

    def _roll(self, money: Place, label: int) -> None:
        """Bring this worker's record to the present period."""
        at, cells = money.own.at, self.counters.cells
        latest, seen, used = roll(cells[at + LATEST], cells[at + SEEN], cells[at + USED], label)
        cells[at + USED] = used  # first: until the labels follow, a reader takes it for the old period's
        cells[at + SEEN], cells[at + LATEST] = seen, latest

    def _keep(self, money: Place) -> None:
        at, cells = money.own.at, self.counters.cells
        following = cells[at + SEQUENCE] + 1
        # With the time in it, so that a restart knows which worker's record is the newest; odd and even take turns.
        sequence = max(following, int(self._wall()) * 2 + (following & 1))
        self.counters.write_money(at, money.tag, sequence, cells[at + LATEST], cells[at + SEEN], cells[at + USED])
