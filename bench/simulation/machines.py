"""Machines with their workers, clients that ask for more than they may have, and what the upstream sees of it."""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from bench.simulation.world import Network, Path, Reactor, Server
from flowstack.config.settings import Settings, Shared
from flowstack.errors import FlowstackError, LimitsUnavailable
from flowstack.keys import Key
from flowstack.limits.counters import Counters
from flowstack.limits.link import STOPPED, Link
from flowstack.limits.remote import RemoteLimiter
from flowstack.limits.restore import open_counters
from flowstack.limits.share import settings_shared_out
from flowstack.limits.shared import SharedLimiter
from tests.limits.lab import NOON, key, usd, used

RPM, TPM, PARALLEL, CENTS = 300, 60_000, 20, 3_000
"""The four limits; each is a key's only one, so that each is what holds that key."""

TOKENS, COST, SECONDS = 400, 0.20, 4.0
"""What a request reserves, and how long it takes by the median. It uses between a tenth of what it reserved and all."""

RATES = {"rpm": 20.0, "tpm": 10.0, "max_parallel": 15.0, "budget": 8.0}
"""Requests a second from all clients of each key: four times its limit, or more."""

SPAN = 59.9
"""Seconds in which no more passes than a window allows: 60 of Redis' clock, less the 100 ms that an answer may take."""

KEYS: dict[str, Key] = {
    "rpm": key("requests", rpm=RPM),
    "tpm": key("tokens", tpm=TPM),
    "max_parallel": key("parallel", max_parallel=PARALLEL),
    "budget": key("money", budget=usd(f"{CENTS / 100:.2f}", "day")),
}


class Upstream:
    """Sees what passes, and bills what was used.

    :ivar passed: when each request of a key came.
    :ivar in_flight: of each key now; ``most`` the most ever.
    :ivar billed: of the key with the budget, in billionths of a dollar: what its requests cost, those of machines that
        died as if they had used all they reserved. By days of the upstream's clock, which is Redis'.
    :ivar tokens: what each request of the key with ``tpm`` used, at the time at which it came.
    """

    def __init__(self) -> None:
        self.passed: dict[str, list[float]] = {name: [] for name in KEYS}
        self.in_flight = dict.fromkeys(KEYS, 0)
        self.most = dict.fromkeys(KEYS, 0)
        self.refused = self.unavailable = 0
        self.billed: dict[int, int] = {}
        self.tokens: list[tuple[float, int]] = []

    def came(self, name: str, now: float) -> None:
        self.passed[name].append(now)
        self.in_flight[name] += 1
        self.most[name] = max(self.most[name], self.in_flight[name])

    def went(self, name: str, began: float, part: float) -> None:
        """It ended, and used that part of what it reserved."""
        self.in_flight[name] -= 1
        if name == "budget":
            day = int((NOON + began) // 86400)
            self.billed[day] = self.billed.get(day, 0) + nanos_of(part)
        elif name == "tpm":
            self.tokens.append((began, int(TOKENS * part)))

    def found(self, name: str) -> int:
        """The most that passed of one key, in the unit of its limit; money in cents."""
        if name == "max_parallel":
            return self.most[name]
        if name == "budget":
            return -(-max(self.billed.values(), default=0) // 10_000_000)
        events = sorted(self.tokens) if name == "tpm" else [(at, 1) for at in self.passed[name]]
        times, sums = [at for at, _ in events], list(accumulate((amount for _, amount in events), initial=0))
        return max((sums[bisect_right(times, at + SPAN)] - sums[number] for number, at in enumerate(times)), default=0)


def nanos_of(part: float) -> int:
    """What a request costs that uses that part of what it reserved."""
    return int(COST * part * 1e9 + 0.5)


class Request:
    """One that passed, until it ends."""

    __slots__ = ("began", "name", "reservation", "worker")

    def __init__(self, name: str, worker: Worker, reservation: Any, began: float) -> None:
        self.name, self.worker, self.reservation, self.began = name, worker, reservation, began


class Worker:
    """A worker's link and limiter.

    :ivar open: what it has in flight.
    """

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine = machine
        reactor, settings, chance = machine.reactor, machine.settings, machine.chance
        name = b"machine-%d/%d/%d" % (machine.number, number, machine.starts)
        self.link = link = Link(settings.shared, reactor, name, machine.wall, machine.monotonic, chance.uniform)
        self.mirror = SharedLimiter(machine.keep(open_counters(None, 1)), settings, link.clock, link.clock)
        local = None
        share = settings.shared.share
        if settings.shared.on_failure == "local":
            counters = Counters.attach(machine.counters.fileno(), number)
            less = settings_shared_out(settings, share)
            local = SharedLimiter(counters, less, machine.wall, machine.monotonic)
        self.limiter = RemoteLimiter(link, self.mirror, local, share, settings)
        self.open: set[Request] = set()
        self.lives = True
        link.start()

    def ask(self, name: str) -> None:
        """A client asks."""
        limiter = self.limiter
        plan = limiter.plan(KEYS[name], "openai")
        assert plan is not None
        upstream = self._machine.upstream
        cost = COST if name == "budget" else None
        try:
            reserving = limiter.reserve(plan, TOKENS, cost)
        except FlowstackError as error:
            self._refused(error)
            return
        if isinstance(reserving, Deferred):
            reserving.addCallbacks(self._pass, self._not, (name, upstream))
        else:
            self._pass(reserving, name, upstream)

    def _not(self, failure: Failure) -> None:
        failure.trap(FlowstackError)
        self._refused(failure.value)

    def _refused(self, error: BaseException) -> None:
        if isinstance(error, LimitsUnavailable):
            self._machine.upstream.unavailable += 1
        else:
            self._machine.upstream.refused += 1

    def _pass(self, reservation: Any, name: str, upstream: Upstream) -> None:
        if not self.lives:
            return
        reactor, chance = self._machine.reactor, self._machine.chance
        request = Request(name, self, reservation, reactor.now)
        self.open.add(request)
        upstream.came(name, reactor.now)
        part = chance.uniform(0.1, 1.0)
        seconds = self._machine.seconds * chance.lognormvariate(0, 0.5)
        reactor.callLater(seconds, self._end, request, part)

    def _end(self, request: Request, part: float) -> None:
        if request not in self.open:
            return
        self.open.remove(request)
        self._machine.upstream.went(request.name, request.began, part)
        self.limiter.settle(request.reservation, used(int(TOKENS * part), nanos_of(part) / 1e9))

    def die(self) -> None:
        """With all that it has in flight, at once: nobody says good-bye."""
        self.lives = False
        link: Any = self.link
        link._to(STOPPED)
        link._cancel_timers()
        link._asked.clear()
        if link._connecting is not None:
            link._connecting.cancel()
        if link._connection is not None:
            link._connection.abort()
        for request in sorted(self.open, key=lambda one: one.began):
            self._machine.upstream.went(request.name, request.began, 1.0)
        self.open.clear()


class Machine:
    """One machine.

    :param skew: seconds by which its clock is fast.
    :param seconds: that a request takes, by the median.
    """

    def __init__(
        self,
        number: int,
        reactor: Reactor,
        network: Network,
        server: Server,
        upstream: Upstream,
        chance: random.Random,
        on_failure: str,
        share: float,
        workers: int = 2,
        skew: float = 0.0,
        seconds: float = SECONDS,
    ) -> None:
        self.number, self.reactor, self.upstream, self.chance = number, reactor, upstream, chance
        self.path = network.paths[number] = Path(server)
        self.seconds = seconds
        self._skew, self._booted = skew, chance.uniform(1e3, 1e6)
        shared = Shared(redis=f"redis://192.0.2.1:{number}/0", on_failure=on_failure, share=share)
        self.settings = Settings(shared=shared)
        self._kept: list[Counters] = []
        self.counters = self.keep(open_counters(None, workers))
        self.starts = 0
        self._number_of_workers = workers
        self.workers: list[Worker] = []
        self.start()

    def keep(self, counters: Counters) -> Counters:
        """Close it at the end."""
        self._kept.append(counters)
        return counters

    def wall(self) -> float:
        return NOON + self.reactor.now + self._skew

    def monotonic(self) -> float:
        return self._booted + self.reactor.now

    def start(self) -> None:
        """Its workers, anew; its counters are those that it has."""
        self.starts += 1
        self.workers = [Worker(self, number) for number in range(self._number_of_workers)]

    def die(self) -> None:
        """All its workers at once."""
        for worker in self.workers:
            worker.die()
        self.workers = []

    def held(self, name: str) -> int:
        """Of a key's requests how many it has in flight."""
        return sum(request.name == name for worker in self.workers for request in worker.open)

    def close(self) -> None:
        """Give back what the system lent."""
        self.die()
        for counters in self._kept:
            os.close(counters.fileno())
