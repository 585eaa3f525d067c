"""A worker process that takes of one key's limits as fast as it can, and writes down what it was given.

``python -m tests.limits.hammer FD WORKER MODE SEED SECONDS RATE LOG``: FD is the counters'; MODE one of a key, or with
``@`` before it the same of a group, of which each worker has a key of its own; RATE how much faster than real time the
limiter's clock goes. Each line of LOG is JSON, appended with one write: it is what an observer knows who
has nothing to do with the counters. It says ``ready`` on standard output, and begins when a line comes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from flowstack.config.settings import Settings
from flowstack.errors import FlowstackError
from flowstack.keys import Group, Key
from flowstack.limits.counters import Counters
from flowstack.limits.shared import Reservation, SharedLimiter

from .lab import key, member, reserve, row, usd, used

KEYS = {
    "parallel": key("parallel", max_parallel=5),
    "one": key("one", max_parallel=1),
    "rpm": key("rpm", rpm=300),
    "tokens": key("tokens", tpm=30_000),
    "money": key("money", budget=usd("40", "total")),
    "all": key("all", rpm=10**6, tpm=10**9, max_parallel=7, budget=usd("1000000", "total")),
}


def key_of(mode: str, worker: int = 0) -> Key:
    """The key that a worker uses."""
    limits = KEYS[mode.removeprefix("@")]
    if not mode.startswith("@"):
        return limits
    shared = Group(mode[1:], limits.rpm, limits.tpm, limits.max_parallel, limits.budget)
    # With limits that never refuse, so that there is something to give back.
    most = {"rpm": 10**9, "tpm": 10**12, "max_parallel": 10**6, "budget": usd("1000000", "total")}
    own = {name: value for name, value in most.items() if getattr(limits, name) is not None}
    return member(f"{mode[1:]}-{worker}", shared, **own)


PARALLEL = 4
"""Requests that a worker has in flight at most, in the modes that settle for more than was reserved."""
BEYOND = 50
"""Tokens, and cents, by which a settlement is above the estimate at most, in these."""


class Hammer:
    """One worker."""

    def __init__(self, fd: int, worker: int, mode: str, seed: int, rate: float, log: str) -> None:
        self.key = key_of(mode, worker)
        self.random = random.Random(seed)
        self.rate = rate
        self.limiter = SharedLimiter(Counters.attach(fd, worker), Settings(), time.time, self.now)
        self.held: list[tuple[Reservation, int]] = []
        self.step: Callable[[], None] = getattr(self, mode.removeprefix("@"))
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def now(self) -> float:
        """The limiter's clock: the machine's, faster."""
        return time.monotonic() * self.rate

    def write(self, **entry: Any) -> None:
        """A line of the log."""
        os.write(self._log, json.dumps(entry).encode() + b"\n")

    def reserve(self, tokens: int | None = None, cost: float | None = None) -> Reservation | None:
        """Try for a reservation."""
        try:
            return reserve(self.limiter, self.key, tokens=tokens, cost=cost)
        except FlowstackError:
            return None

    def claimed(self, tokens: int, cents: int | None = None) -> bool:
        """Try for a reservation with tokens and money, taken at once or one after the other; hold what it gives."""
        cost = None if cents is None else cents / 100
        at_once = self.random.random() < 0.5
        taken = self.reserve(tokens, cost) if at_once else self.reserve()
        if taken is None:
            return False
        if not at_once:
            try:
                taken.claim(tokens, cost)
            except FlowstackError:
                self.limiter.settle(taken, row(end="refused", status=429, error_code="x"))
                return False
        self.held.append((taken, tokens if cents is None else cents))
        return True

    def parallel(self) -> None:
        """Take and give back at random, telling when it surely had one."""
        if self.held and self.random.random() < 0.5:
            reservation, began = self.held.pop(0)
            self.write(began=began, ended=time.monotonic_ns())
            self.limiter.settle(reservation, row())
        elif (taken := self.reserve()) is not None:
            self.held.append((taken, time.monotonic_ns()))

    one = parallel

    def rpm(self) -> None:
        """Take, telling between which times."""
        before = self.now()
        taken = self.reserve()
        if taken is not None:
            self.write(before=before, after=self.now())
            self.limiter.settle(taken, row())

    def tokens(self) -> None:
        """Claim at random; settle for less, as much, or a little more."""
        self._settle_some(self._tokens_used)
        tokens, before = self.random.randrange(1, 900), self.now()
        if self.claimed(tokens):
            self.write(before=before, after=self.now(), tokens=tokens)

    def _tokens_used(self, tokens: int) -> Any:
        return used(max(tokens + self.random.choice([0, 0, BEYOND]), 0))

    def money(self) -> None:
        """Claim money; settle for less, as much, or a little more."""
        self._settle_some(self._money_used)
        cents = self.random.randrange(1, 9)
        if self.claimed(10, cents):
            self.write(reserved=cents)

    def _money_used(self, cents: int) -> Any:
        more = self.random.choice([-cents, 0, 0, BEYOND if self.random.random() < 0.02 else 0])
        self.write(more=more)
        return used(10, (cents + more) / 100)

    def all(self) -> None:
        """Take of everything, and never settle what is left at the end."""
        self._settle_some(lambda cents: used(10, 0.01))
        if self.claimed(10, 1):
            self.write(paid=1)

    def _settle_some(self, ending: Callable[[int], Any]) -> None:
        while len(self.held) >= PARALLEL or (self.held and self.random.random() < 0.5):
            reservation, amount = self.held.pop(self.random.randrange(len(self.held)))
            self.limiter.settle(reservation, ending(amount))

    def finish(self) -> None:
        """Settle the rest as it was reserved."""
        for reservation, began in self.held:
            if self.step in (self.parallel, self.one):
                self.write(began=began, ended=time.monotonic_ns())
            self.limiter.settle(reservation, row())


def main() -> None:
    """Run."""
    fd, worker, mode, seed, seconds, rate, log = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    hammer = Hammer(int(fd), int(worker), mode, int(seed), float(rate), log)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        for _ in range(20):
            hammer.step()
    hammer.finish()


if __name__ == "__main__":
    main()
