"""The limiter of several machines: counts in Redis, by the functions in ``functions.lua``.

It does what :class:`flowstack.limits.shared.SharedLimiter` does, in one round trip to Redis for a request. When it is
settled, what it gives back goes out with what is asked next, and what it used beyond its reservation at once. Limits,
plans, messages and figures are that one's: what Redis tells is written into a table of this process alone (the mirror),
and read from there. Requests of keys without limits are never asked about. Every time is Redis' own, so that all
machines have the same windows and periods.

What a worker has in flight and what it added to each budget it knows itself, and tells Redis again on every new
connection, or when it turns out that Redis has lost something. So a failover forgets only windows (a minute) and what
workers did that ended meanwhile. What was asked and never answered counts as not taken.

While Redis does not answer, requests are refused, or held to this machine's share of each limit by the counters of this
machine (``on_failure``); what these charged is told to Redis afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flowstack.config.settings import Settings
from flowstack.errors import FlowstackError, LimitsUnavailable, Pairs
from flowstack.http.names import REQUESTS, TOKENS
from flowstack.keys import Key
from flowstack.ledger.row import Row
from flowstack.limits import look as words
from flowstack.limits.answers import DURATIONS, FIGURES, no_price, retry_fields
from flowstack.limits.books import Standing
from flowstack.limits.charge import charged_nanos, charged_tokens
from flowstack.limits.link import Link, Owed
from flowstack.limits.look import MAX_RESET, Look, tighter
from flowstack.limits.money import Period, nano, period_at, period_of
from flowstack.limits.plans import Place, Plan, group_slot
from flowstack.limits.share import shared_out
from flowstack.limits.shared import LOOKS, MAX_TOKENS, SharedLimiter
from flowstack.limits.told import (
    FLIGHT,
    LOOK,
    MONEY,
    REQUEST,
    STRANGE,
    TOKEN,
    Told,
    Unfit,
    Untold,
    ends_ms,
    key_of,
    mirror,
    numbers_of,
    told_of,
    unfit_of,
)
from flowstack.limits.windows import BUCKETS, bucket_of, ends_at

log = Logger()

OWN, GROUPS = b"0", b"1"
"""Whose limit it is: the key's own, or its group's."""

_REFUSALS: Final = {REQUEST: words.RPM, TOKEN: words.TPM, FLIGHT: words.PARALLEL, MONEY: words.MONEY}

_MAX_PLANS = 10_000

AT_ONCE = 50
"""Limits that are told in one call."""

FRESH: Final = 100_000
"""Microseconds for which is believed how many were in flight of a limit. A place of one that is then not half used is
given back with what is asked next."""

_FORGET_AT = 1000
"""Budgets of which this worker knows what it added, before it looks which of them have ended."""

_Entry = tuple[bytes, bytes, int, int, int, int]
"""A key, its kind, and what give takes of each kind. Of tokens to be counted the second number is when they were used:
the bucket."""

LANDED_SECONDS: Final = 60.0
"""For which a worker tells again that it has nothing in flight any more: a Redis that came back with what it knew some
seconds before would count it for as long as the worker lives."""


class _Limit:
    """One limit of a plan.

    :ivar plan: the key's or its group's.
    :ivar key: Redis'; of money it changes with the period, and so does ``ends``.
    :ivar landing: of ``max_parallel``: the entry that gives back a place.
    """

    __slots__ = ("_period", "_seen", "_seen_at", "ends", "key", "kind", "landing", "part", "place", "plan")

    def __init__(self, kind: bytes, part: bytes, plan: Plan, place: Place) -> None:
        self.kind = kind
        self.part = part
        self.plan = plan
        self.place = place
        self.key = b"" if kind == MONEY else key_of(kind, place.name)
        self.ends = 0
        self.landing: _Entry = self.key, FLIGHT, 0, 0, 0, 0
        self._period: Period | None = None
        self._seen = self._seen_at = 0

    def word(self, kind: bytes) -> bytes:
        """What ``take`` is told of it.

        :param kind: its own, or LOOK.
        """
        ends = b":%d" % self.ends if kind == MONEY else b""
        return b"%b%b%d%b" % (kind, self.part, self.place.most, ends)

    def period(self, now: float) -> Period:
        """The present period of a budget."""
        period, budget = self._period, self.plan.budget
        if period is None or not period.begins <= now < period.ends:
            assert budget is not None
            self._period = period = period_at(budget.period, now)
            self.key = key_of(MONEY, self.place.name, period)
            self.ends = ends_ms(period)
        return period

    def saw(self, count: int, when: int) -> None:
        """So many were in flight, at a time in microseconds since 1970."""
        self._seen, self._seen_at = count, when

    def tight(self, now: float) -> bool:
        """Whether somebody may be refused for a place that is free and not told of.

        :param now: UTC Unix seconds.
        """
        return 2 * self._seen > self.place.most or now * 1e6 - self._seen_at > FRESH


class _Taking:
    """Limits that are taken of in one call, and what Redis is told of them.

    :ivar begins: whether a request begins; else it has begun, and its tokens and its money are claimed.
    :ivar moneys: the budgets of them.
    :ivar figures: of requests, and of tokens: the places of the key's limit and of its group's; -1 where there is none.
    """

    __slots__ = ("_from", "_keys", "_until", "_words", "begins", "figures", "limits", "moneys")

    def __init__(self, limits: list[_Limit], begins: bool) -> None:
        self.limits = limits
        self.begins = begins
        self.moneys = [limit for limit in limits if limit.kind == MONEY]
        at = {(limit.kind, limit.part): number for number, limit in enumerate(limits)}
        self.figures = [
            (unit, at.get((kind, OWN), -1), at.get((kind, GROUPS), -1))
            for unit, kind in ((REQUESTS, REQUEST), (TOKENS, TOKEN))
            if (kind, OWN) in at or (kind, GROUPS) in at
        ]
        self._from, self._until = 1.0, 0.0
        self._keys: list[bytes] = []
        self._words: list[bytes] = []

    def words(self, now: float) -> tuple[list[bytes], list[bytes]]:
        """Keys, and words of ``take``.

        :param now: in which period money is taken, whenever Redis does so.
        """
        if not self._from <= now < self._until:
            periods = [limit.period(now) for limit in self.moneys]
            self._from = max((period.begins for period in periods), default=float("-inf"))
            self._until = min((period.ends for period in periods), default=float("inf"))
            self._keys = [limit.key for limit in self.limits]
            self._words = [
                limit.word(LOOK if limit.kind == REQUEST and not self.begins else limit.kind) for limit in self.limits
            ]
        return self._keys, self._words


class RemotePlan:
    """The limits that hold for one key's requests to one upstream.

    :ivar native: the same in the mirror.
    :ivar source: of whom they are, and to which upstream.
    :ivar beginning: all of them, of which is taken when a request begins; ``claiming`` when its tokens are known later.
    """

    __slots__ = ("_parts", "beginning", "claiming", "limits", "local", "metered", "native", "priced", "source")

    def __init__(self, native: Plan, source: tuple[Key, str], local: Plan | None) -> None:
        self.native = native
        self.source = source
        self.local = local
        self.metered = native.metered
        self.priced = native.priced
        self.limits = [*_limits(native, OWN), *(() if native.group is None else _limits(native.group, GROUPS))]
        self.beginning = _Taking(self.limits, True)
        self.claiming = _Taking([limit for limit in self.limits if limit.kind != FLIGHT], False)
        self._parts: tuple[RemotePlan, RemotePlan, RemotePlan] | None = None

    def parts(self, limiter: RemoteLimiter) -> tuple[RemotePlan, RemotePlan, RemotePlan]:
        """As of :meth:`flowstack.interfaces.Limiter.parts`."""
        if self._parts is None:
            connection, responses, speech = limiter.mirror.parts(self.native)
            local = (None, None, None) if self.local is None else limiter.local_parts(self.local)
            self._parts = (
                RemotePlan(connection, self.source, local[0]),
                RemotePlan(responses, self.source, local[1]),
                RemotePlan(speech, self.source, local[2]),
            )
        return self._parts


def _limits(plan: Plan, part: bytes) -> list[_Limit]:
    found = ((REQUEST, plan.rpm), (FLIGHT, plan.parallel), (TOKEN, plan.tpm), (MONEY, plan.money))
    return [_Limit(kind, part, plan, place) for kind, place in found if place is not None]


def _period_of(limit: _Limit, now: float) -> Period | None:
    return limit.period(now) if limit.kind == MONEY else None


class _Spent:
    """What this worker has added to a budget in a period.

    :ivar added: in billionths of a dollar, since the reset.
    :ivar reset: when an operator reset it last, as far as Redis told: microseconds since 1970.
    """

    __slots__ = ("added", "ends", "reset")

    def __init__(self, ends: int) -> None:
        self.added = self.reset = 0
        self.ends = ends

    def note(self, added: int, reset: int) -> None:
        """What Redis has taken."""
        if reset != self.reset:
            self.added, self.reset = 0, reset
        self.added += added


class RemoteReservation:
    """What one request took.

    :ivar lines: of ``Reservation``.
    :ivar flights: the limits of which it is in flight.
    :ivar tokens: claimed in Redis, by estimate; -1 before that.
    :ivar windows: the limits of tokens, with the bucket in which they count.
    :ivar moneys: the limits of money, with the key and the period of each, and what was claimed, in billionths.
    :ivar taken_at: when that was, in microseconds since 1970, by Redis' clock.
    :ivar local: what was taken of this machine's share; ``began`` whether the request itself was, too.
    :ivar since: how often the link had failed when tokens were claimed. Windows from before may be forgotten: to give
        back of them would be to give back what others took.
    """

    __slots__ = (
        "began", "flights", "limiter", "lines", "local", "moneys", "plan", "since", "taken_at", "tokens", "windows",
    )  # fmt: skip

    def __init__(self, limiter: RemoteLimiter, plan: RemotePlan) -> None:
        self.limiter = limiter
        self.plan = plan
        self.lines = b""
        self.flights: list[_Limit] = []
        self.tokens = -1
        self.windows: list[tuple[_Limit, int]] = []
        self.moneys: list[tuple[_Limit, bytes, Period, int]] = []
        self.taken_at = self.since = 0
        self.local: Any = None
        self.began = False

    def claim(self, tokens: int, cost_usd: float | None, least_usd: float | None = None) -> Deferred[None] | None:
        """Of ``Reservation``."""
        if not self.plan.metered:
            return None
        if self.local is not None:
            self.local.claim(tokens, cost_usd, least_usd)
            return None
        return self.limiter.claim(self, tokens, cost_usd, least_usd)

    def kept(self) -> dict[str, Any] | None:
        """Of ``Reservation``."""
        if self.local is not None:
            kept: dict[str, Any] | None = self.local.kept()
            return kept
        if self.tokens < 0:
            return None
        return {
            "at": self.taken_at / 1e6,
            "tokens": self.tokens,
            "tpm": [limit.place.name for limit, _ in self.windows],
            "money": {limit.place.name: [period.label, nanos] for limit, _, period, nanos in self.moneys},
        }


class _Give:
    """What a settlement tells Redis; or several, while it cannot be told.

    :ivar entries: what is to be told.
    """

    __slots__ = ("_limiter", "_sent", "entries")

    def __init__(self, limiter: RemoteLimiter) -> None:
        self._limiter = limiter
        self._sent: list[_Entry] | None = None
        self.entries: list[_Entry] = []

    @property
    def grows(self) -> bool:
        """Whether more may be added to what it tells."""
        return self._sent is None

    def words(self, again: bool) -> tuple[str, Sequence[bytes], Sequence[bytes]]:
        """Of ``Owed``. Tokens that are given back a second time would let too many pass."""
        over = bucket_of(self._limiter.link.clock()) - BUCKETS
        self._sent = sent = [
            entry for entry in self.entries
            if entry[1] != TOKEN or (entry[3] > over if entry[2] > 0 else not again)
        ]  # fmt: skip
        keys: list[bytes] = []
        arguments: list[bytes] = []
        for key, kind, amount, second, taken_at, ends in sent:
            keys.append(key)
            if kind == FLIGHT:
                arguments.append(FLIGHT)
            elif kind == TOKEN:
                arguments.append(b"t%d %d" % (amount, second))
            else:
                arguments.append(b"m%d %d %d %d" % (amount, second, taken_at, ends))
        return "give", keys, arguments

    def told(self, answer: list[Any]) -> None:
        """Of ``Owed``.

        :raises Unfit: something else has the key of one of them; the others are settled.
        """
        sent, why = self._sent or [], unfit_of(answer)
        moneys = [entry for entry in sent if entry[1] == MONEY]
        numbers = numbers_of(answer, 1, 2 * len(moneys))
        for entry in sent:
            if entry[1] == FLIGHT:
                self._limiter.landed(entry[0])
        for entry, added, reset in zip(moneys, numbers[::2], numbers[1::2], strict=True):
            if reset >= 0:
                self._limiter.spent(entry[0], entry[5]).note(added, reset)
        self._sent = []
        if why:
            raise Unfit(why)

    def kept(self) -> None:
        """Of ``Owed``."""
        self._sent = None

    def lost(self) -> None:
        """Of ``Owed``."""
        for entry in self._sent or ():
            if entry[1] == FLIGHT:
                self._limiter.landed(entry[0])


class _Again:
    """What a worker has in flight and has added, told once more."""

    __slots__ = ("_flights", "_limiter", "_spent")

    def __init__(
        self, limiter: RemoteLimiter, flights: Sequence[tuple[bytes, int]], spent: Sequence[tuple[bytes, _Spent]]
    ) -> None:
        self._limiter = limiter
        self._flights = flights
        self._spent = spent

    def words(self, again: bool) -> tuple[str, Sequence[bytes], Sequence[bytes]]:
        """Of ``Owed``."""
        arguments: list[bytes] = []
        for _, count in self._flights:
            arguments += (FLIGHT, b"%d" % count, b"0", b"0")
        for _, one in self._spent:
            arguments += (MONEY, b"%d" % one.added, b"%d" % one.reset, b"%d" % one.ends)
        return "again", [key for key, _ in (*self._flights, *self._spent)], arguments

    def told(self, answer: list[Any]) -> None:
        """Of ``Owed``.

        :raises Unfit: something else has the key of one of them; of the others it knows.
        """
        why = unfit_of(answer)
        numbers = numbers_of(answer, 1, len(self._flights) + len(self._spent))
        for key, _ in self._flights:
            self._limiter.told(key)
        for (_, one), reset in zip(self._spent, numbers[len(self._flights) :], strict=True):
            if reset >= 0:
                one.note(0, reset)
        if why:
            raise Unfit(why)

    def kept(self) -> None:
        """Of ``Owed``."""

    def lost(self) -> None:
        """Of ``Owed``."""


class RemoteLimiter:
    """Holds each key to its limits, together with all machines.

    :ivar failed: how many requests were refused, or held to this machine's share, because Redis did not answer.
    :param mirror: over counters of this process alone, with the link's clock for both of its own.
    :param local: over this machine's counters; None where requests are refused while Redis does not answer.
    :param share: which part of each limit holds there.
    """

    def __init__(
        self, link: Link, mirror: SharedLimiter, local: SharedLimiter | None, share: float, settings: Settings
    ) -> None:
        self.link = link
        self.mirror = mirror
        self.failed = 0
        self._local = local
        self._share = share
        self._settings = settings
        self._look = Look(mirror.counters, link.clock, link.clock, settings.limits.budget_status)
        self._plans: dict[tuple[str, str], RemotePlan] = {}
        self._flights: dict[bytes, int] = {}
        self._landed: dict[bytes, float] = {}
        self._spent: dict[bytes, _Spent] = {}
        self._forget_at = _FORGET_AT
        self._charges: dict[tuple[bytes, int], tuple[_Give, int]] = {}
        self._latest = _Give(self)
        self._soon: _Give | None = None
        link.again = self._again

    # Of ``Limiter``.

    def plan(self, key: Key, upstream: str) -> RemotePlan | None:
        """Of ``Limiter``."""
        native = self.mirror.plan(key, upstream)
        if native is None:
            return None
        plan = self._plans.get((key.id, upstream))
        if plan is None or plan.native is not native:
            if len(self._plans) >= _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
            local = None if self._local is None else self._local.plan(shared_out(key, self._share), upstream)
            plan = self._plans[key.id, upstream] = RemotePlan(native, (key, upstream), local)
        return plan

    def parts(self, plan: RemotePlan) -> tuple[RemotePlan, RemotePlan, RemotePlan]:
        """Of ``Limiter``."""
        return plan.parts(self)

    def local_parts(self, plan: Plan) -> tuple[Plan, Plan, Plan]:
        """The same of this machine's share."""
        assert self._local is not None
        return self._local.parts(plan)

    def fields(self, key: Key, upstream: str) -> Pairs:
        """Of ``Limiter``: none, as a request that took nothing does not ask Redis."""
        return ()

    def reserve(
        self,
        plan: RemotePlan,
        tokens: int | None = None,
        cost_usd: float | None = None,
        least_usd: float | None = None,
        looks: bool = False,
    ) -> RemoteReservation | Deferred[Any]:
        """Of ``Limiter``."""
        taken = RemoteReservation(self, plan)
        if tokens is None or not plan.metered:
            tokens = LOOKS if looks else -1
        if not self.link.up:
            self._take_here(taken, plan.local, tokens, cost_usd, least_usd, looks, begins=True)
            return taken
        return self._take(taken, plan.beginning, plan.local, (tokens, cost_usd, least_usd, looks))

    def claim(
        self, taken: RemoteReservation, tokens: int, cost_usd: float | None, least_usd: float | None
    ) -> Deferred[None] | None:
        """Of :meth:`RemoteReservation.claim`, where Redis was asked before."""
        plan = taken.plan
        local = None if plan.local is None else self.local_parts(plan.local)[1]
        if not self.link.up:
            self._take_here(taken, local, tokens, cost_usd, least_usd, False)
            return None
        return self._take(taken, plan.claiming, local, (tokens, cost_usd, least_usd, False))

    def _take(
        self,
        taken: RemoteReservation,
        taking: _Taking,
        local: Plan | None,
        demand: tuple[int, float | None, float | None, bool],
    ) -> Deferred[Any]:
        """Ask Redis; or take of this machine's share, where there is no answer. It fires with what was taken.

        :raises ModelNotAllowed: money is limited, and there is no price.
        """
        tokens, cost_usd, least_usd, _ = demand
        now = self.link.clock()
        nanos, least = tokens, -1
        if tokens >= 0 and taking.moneys:
            if cost_usd is None and tokens:
                raise no_price(taking.moneys[0].plan.who)
            nanos = nano(cost_usd or 0.0)
            if least_usd is not None:
                least = nano(least_usd)
        done: Deferred[Any] = Deferred()

        def answered(answer: list[Any] | None) -> None:
            if done.called:
                if answer is not None:
                    self._undo(taken.plan, taking, answer, tokens, nanos, now)
                return
            try:
                if answer is None:
                    self._doubt(taking.limits, now)
                    self._take_here(taken, local, *demand, taking.begins)
                else:
                    self._taken(taken, taking, answer, tokens, nanos, now)
            except Exception as error:
                if answer is not None and not isinstance(error, FlowstackError):
                    raise  # the link gives this Redis up, and says that there is no answer
                done.errback()
            else:
                done.callback(taken)

        keys, words = taking.words(now)
        self.link.ask("take", keys, (b"%d" % min(tokens, MAX_TOKENS), b"%d" % nanos, b"%d" % least, *words), answered)
        return done

    def settle(
        self, reservation: RemoteReservation, row: Row, tokens: int | None = None, cost_usd: float | None = None
    ) -> None:
        """Of ``Limiter``."""
        try:
            plan, now, waits = reservation.plan, self.link.clock(), True
            entries: list[_Entry] = []
            for limit in reservation.flights:
                entries.append(limit.landing)
                waits = waits and not limit.tight(now)
            if reservation.local is not None:
                self._settle_here(entries, reservation, row, tokens, cost_usd)
            elif reservation.tokens < 0:
                if plan.metered:
                    nanos = charged_nanos(row, nano(cost_usd or 0.0))
                    self._charge(entries, plan, charged_tokens(row, tokens or 0), nanos)
            else:
                more = charged_tokens(row, reservation.tokens) - reservation.tokens
                for limit, bucket in reservation.windows:
                    if more > 0:
                        entries.append(self._used(limit.key, more))
                    elif more < 0 and reservation.since == self.link.failures:
                        entries.append((limit.key, TOKEN, more, bucket, 0, 0))
                for _, key, period, held in reservation.moneys:
                    charged, ends = charged_nanos(row, held), ends_ms(period)
                    if charged != held or reservation.taken_at <= self.spent(key, ends).reset:
                        entries.append((key, MONEY, charged, held, reservation.taken_at, ends))
            self._owe(entries, waits)
        except Exception:
            log.failure("a request could not be settled: what it reserved stays charged")

    def charge(self, plan: RemotePlan, tokens: int | None, cost_usd: float | None) -> None:
        """Of ``Limiter``."""
        try:
            if plan.metered:
                entries: list[_Entry] = []
                self._charge(entries, plan, tokens or 0, nano(cost_usd or 0.0))
                self._owe(entries)
        except Exception:
            log.failure("what nothing was reserved for could not be charged")

    def settle_later(self, kept: Mapping[str, Any], row: Row) -> None:
        """Of ``Limiter``."""
        try:
            tokens = kept["tokens"]
            entries: list[_Entry] = []
            more = charged_tokens(row, tokens) - tokens
            if more > 0:
                entries += [self._used(key_of(TOKEN, name), more) for name in kept["tpm"]]
            now = self.link.clock()
            for name, (label, nanos) in kept["money"].items():
                period = period_of(label, now)
                if period is not None and period.label == label:  # else it has ended
                    key, taken_at = key_of(MONEY, name, period), int(kept["at"] * 1e6)
                    entries.append((key, MONEY, charged_nanos(row, nanos), nanos, taken_at, ends_ms(period)))
            self._owe(entries)
        except Exception:
            log.failure("work that ended later could not be settled: what it reserved stays charged")

    def standings(self, key: Key) -> Deferred[Sequence[Standing]]:
        """Of ``Limiter``."""
        now = self.link.clock()
        some = told_of(key.id, key, self._settings, now)
        if key.shared is not None:
            some += told_of(group_slot(key.shared.name), key.shared, self._settings, now)
        done: Deferred[Sequence[Standing]] = Deferred()

        def answered(answer: list[Any] | None) -> None:
            if done.called:
                return
            if answer is None:
                done.errback(self._unavailable())
                return
            if len(answer) != 2:
                raise Untold(STRANGE)
            mirror(self.mirror.counters, some, answer[1], answer[0] / 1e6)
            done.callback(self.mirror.standings(key))

        if self.link.up:
            self.link.ask("show", [one.key for one in some], [one.kind for one in some], answered)
        else:
            done.errback(self._unavailable())
        return done

    # What is asked, and what is answered.

    def _taken(
        self, taken: RemoteReservation, taking: _Taking, answer: list[Any], tokens: int, nanos: int, asked_at: float
    ) -> None:
        """Note what was taken.

        :raises Untold: the answer is none.
        :raises FlowstackError: nothing was, as a limit refused.
        """
        refused = answer[1] if len(answer) > 1 else None
        if refused != 0 or type(refused) is not int:
            limits = taking.limits
            if len(answer) != 3 or type(refused) is not int or not 0 < refused <= len(limits):
                raise Untold(STRANGE)
            some = [Told(limit.kind, limit.place.name, _period_of(limit, asked_at)) for limit in limits]
            mirror(self.mirror.counters, some, answer[2], answer[0] / 1e6)
            limit = limits[refused - 1]
            if limit.kind == FLIGHT:
                limit.saw(limit.place.most, answer[0])
            raise self._look.refusal(
                limit.plan, _REFUSALS[limit.kind], taken.plan.native, max(tokens, 0), max(nanos, 0), ours=taking.begins
            )
        self._note(taken, taking, numbers_of(answer, 2, 2 * len(taking.limits)), answer[0], tokens, nanos, asked_at)

    def _note(
        self,
        taken: RemoteReservation,
        taking: _Taking,
        numbers: list[int],
        taken_at: int,
        tokens: int,
        nanos: int,
        asked_at: float,
    ) -> None:
        """Note what Redis has taken."""
        at = 0
        for limit in taking.limits:
            kind = limit.kind
            if kind == FLIGHT:
                limit.saw(numbers[at], taken_at)
                taken.flights.append(limit)
                self._flights[limit.key] = self._flights.get(limit.key, 0) + 1
            elif tokens >= 0:
                if kind == TOKEN:
                    taken.windows.append((limit, numbers[at + 1]))
                elif kind == MONEY:
                    period = limit.period(asked_at)
                    taken.moneys.append((limit, limit.key, period, nanos))
                    self.spent(limit.key, limit.ends).note(nanos, numbers[at + 1])
            at += 2
        if tokens >= 0:
            taken.tokens, taken.taken_at, taken.since = tokens, taken_at, self.link.failures
        if taking.figures:
            taken.lines = _lines(taking, numbers, taken_at // 1_000_000)

    def _undo(
        self, plan: RemotePlan, taking: _Taking, answer: list[Any], tokens: int, nanos: int, asked_at: float
    ) -> None:
        """An answer came that nobody waits for: give back what it took, if it took something."""
        if len(answer) < 2 or answer[1] != 0:
            return
        taken = RemoteReservation(self, plan)
        numbers = numbers_of(answer, 2, 2 * len(taking.limits))
        self._note(taken, taking, numbers, answer[0], tokens, nanos, asked_at)
        entries = [limit.landing for limit in taken.flights]
        entries += [(limit.key, TOKEN, -tokens, bucket, 0, 0) for limit, bucket in taken.windows if tokens]
        for _, key, period, held in taken.moneys:
            entries.append((key, MONEY, 0, held, taken.taken_at, ends_ms(period)))
        self._owe(entries)

    # What this machine does by itself.

    def _take_here(
        self,
        taken: RemoteReservation,
        plan: Plan | None,
        tokens: int,
        cost_usd: float | None,
        least_usd: float | None,
        looks: bool,
        begins: bool = False,
    ) -> None:
        """Take of this machine's share.

        :param begins: whether the request itself, too.

        :raises FlowstackError: there is too little of it; or nothing is decided here.
        """
        self.failed += 1
        if self._local is None or plan is None:
            raise self._unavailable()
        taken.local = self._local.reserve(plan, None if tokens < 0 else tokens, cost_usd, least_usd, looks)
        taken.lines, taken.began = taken.local.lines, begins

    def _unavailable(self) -> LimitsUnavailable:
        return LimitsUnavailable(
            "The limits of this key cannot be looked at now. Try again in a second; if it lasts, ask the operator.",
            retry_fields(1.0),
        )

    def _settle_here(
        self,
        entries: list[_Entry],
        reservation: RemoteReservation,
        row: Row,
        tokens: int | None,
        cost_usd: float | None,
    ) -> None:
        """Settle what was taken of this machine's share, and owe Redis the charge."""
        assert self._local is not None
        local = reservation.local
        held_tokens, held_nanos = tokens or 0, nano(cost_usd or 0.0)
        if local.tokens >= 0:
            parts = [local] if local.plan.group is None else [local, local.group]
            held_tokens = local.tokens
            held_nanos = max((part.nanos for part in parts if part.plan.money is not None), default=0)
        self._local.settle(local, row, tokens, cost_usd)
        if reservation.began:
            entries += [self._used(limit.key, 1) for limit in reservation.plan.limits if limit.kind == REQUEST]
        if reservation.plan.metered:
            self._charge(entries, reservation.plan, charged_tokens(row, held_tokens), charged_nanos(row, held_nanos))

    def _charge(self, entries: list[_Entry], plan: RemotePlan, tokens: int, nanos: int) -> None:
        """Nothing was claimed in Redis, and this was used."""
        for limit in plan.limits:
            if limit.kind == TOKEN and tokens:
                entries.append(self._used(limit.key, tokens))
            elif limit.kind == MONEY and nanos:
                limit.period(self.link.clock())
                entries.append((limit.key, MONEY, nanos, 0, 0, limit.ends))

    def _used(self, key: bytes, amount: int) -> _Entry:
        """So many tokens, or requests, count from now on."""
        return key, TOKEN, min(amount, MAX_TOKENS), bucket_of(self.link.clock()), 0, 0

    def _owe(self, entries: list[_Entry], waits: bool = True) -> None:
        """Tell Redis, now or later.

        What is given back may wait some milliseconds for what is asked next: till then too much is counted. What was
        used beyond all that was taken is told now. While the link is down, what is kept does not grow with the
        requests: charges of one limit are one.

        :param waits: whether nobody is waiting for what is given back.
        """
        if self.link.up:
            if waits and not any(map(_adds, entries)):
                self._owe_soon(entries)
            else:
                give = _Give(self)
                give.entries = entries
                self.link.owe(give)
            return
        for entry in entries:
            key, kind, amount, second, taken_at, ends = entry
            of_time = kind == TOKEN and amount > 0
            if of_time or (kind == MONEY and not second):
                place = key, second % BUCKETS if of_time else 0
                later, at = self._charges.get(place, (self._latest, -1))
                if at >= 0 and later.grows:
                    before = later.entries[at]
                    if before[3] == second:  # else the window has gone round, and what counted then is over
                        amount += before[2]
                    later.entries[at] = key, kind, amount, second, taken_at, ends
                    continue
                self._charges[place] = self._to_tell(), len(self._latest.entries)
            else:
                self._to_tell()
            self._latest.entries.append(entry)

    def _owe_soon(self, entries: list[_Entry]) -> None:
        """What waits is told in one call."""
        if not entries:
            return
        soon = self._soon
        if soon is None or not soon.grows or len(soon.entries) >= AT_ONCE:
            soon = self._soon = _Give(self)
            self.link.owe_soon(soon)
        soon.entries += entries

    def _to_tell(self) -> _Give:
        """What is told next, with room for one more."""
        latest = self._latest
        if not (latest.entries and latest.grows and len(latest.entries) < AT_ONCE):
            if latest.entries and not latest.grows:  # the link was up meanwhile
                self._charges = {place: found for place, found in self._charges.items() if found[0].grows}
            latest = self._latest = _Give(self)
            self.link.owe(latest)
        return latest

    # What this worker has there.

    def landed(self, key: bytes) -> None:
        """One less is in flight. Of what was the last it is remembered for a while that none is."""
        left = self._flights.get(key, 0) - 1
        if left > 0:
            self._flights[key] = left
            return
        self._flights.pop(key, None)
        landed, now = self._landed, self.link.clock()
        landed.pop(key, None)
        landed[key] = now  # the last of them is the newest
        while landed[first := next(iter(landed))] < now - LANDED_SECONDS:
            del landed[first]

    def spent(self, key: bytes, ends: int) -> _Spent:
        """What this worker has added to a budget.

        :param ends: when its period does, in milliseconds since 1970; 0 for never.
        """
        spent = self._spent.get(key)
        if spent is None:
            if len(self._spent) >= self._forget_at:
                now = self.link.clock() * 1000
                self._spent = {one: of for one, of in self._spent.items() if not of.ends or of.ends > now}
                self._forget_at = 2 * len(self._spent) + _FORGET_AT
            spent = self._spent[key] = _Spent(ends)
        return spent

    def _doubt(self, limits: Sequence[_Limit], asked_at: float) -> None:
        """Redis may have taken of these, and did not say so: it is to be told what this worker has, be it nothing."""
        for limit in limits:
            if limit.kind == FLIGHT:
                self._flights.setdefault(limit.key, 0)
            elif limit.kind == MONEY:
                limit.period(asked_at)
                self.spent(limit.key, limit.ends)

    def told(self, key: bytes) -> None:
        """Redis knows what is in flight; nothing is remembered of what is not."""
        if not self._flights.get(key, 1):
            del self._flights[key]

    def _again(self) -> list[Owed]:
        """All that this worker has in flight, and has added to budgets whose periods have not ended."""
        now = self.link.clock() * 1000
        flights = list((dict.fromkeys(self._landed, 0) | self._flights).items())
        spent = [(key, one) for key, one in self._spent.items() if not one.ends or one.ends > now]
        return [
            *(_Again(self, flights[at : at + AT_ONCE], ()) for at in range(0, len(flights), AT_ONCE)),
            *(_Again(self, (), spent[at : at + AT_ONCE]) for at in range(0, len(spent), AT_ONCE)),
        ]


def _adds(entry: _Entry) -> bool:
    """Whether more is charged than was taken."""
    _, kind, amount, taken, *_ = entry
    return amount > taken if kind == MONEY else kind == TOKEN and amount > 0


def _lines(taking: _Taking, numbers: list[int], now: int) -> bytes:
    """The figures of an answer: of a key's limit and its group's, that of which less remains.

    :param numbers: of each limit what counts, and the newest bucket in which something does.
    :param now: whole seconds.
    """
    lines, limits = b"", taking.limits
    for unit, own, shared in taking.figures:
        at = own if own >= 0 else shared
        if own >= 0 and shared >= 0:
            one, other = limits[own].place, limits[shared].place
            found = tighter(one, numbers[2 * own], other, numbers[2 * shared])
            if found is not None and found[0] is other:
                at = shared
        most, count = limits[at].place.most, numbers[2 * at]
        reset = min(max(ends_at(numbers[2 * at + 1]) - now, 0), MAX_RESET) if count else 0
        lines += FIGURES[unit] % (most, max(most - count, 0), DURATIONS[reset])
    return lines
