"""Three machines and one Redis that stalls, is killed, forgets and drops them, in the midst of their requests."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from flowstack.config.settings import Settings, Shared
from flowstack.errors import FlowstackError
from flowstack.limits.link import Link
from flowstack.limits.remote import RemoteLimiter
from flowstack.limits.restore import open_counters
from flowstack.limits.share import settings_shared_out
from flowstack.limits.shared import SharedLimiter
from tests.limits.test_link import until
from tests.redis_server import PROGRAMS, RedisServer

from .lab import group, member, usd, used

reactor: Any = _reactor

MOST = 20
SHARE = 0.3


class Machine:
    """Its limiter, and what it is asked for.

    :param local: whether it holds its share while Redis is away.
    """

    def __init__(self, url: str, number: int, local: bool) -> None:
        settings = Settings(shared=Shared(redis=url))
        clocks = time.time, time.monotonic
        self.link = link = Link(settings.shared, reactor, b"m%d" % number, *clocks, random.uniform)
        mirror = SharedLimiter(open_counters(None, 1), settings, link.clock, link.clock)
        own = SharedLimiter(open_counters(None, 1), settings_shared_out(settings, SHARE)) if local else None
        self.limiter = RemoteLimiter(link, mirror, own, SHARE, settings)
        link.start()


class Storm:
    """Requests at random, some of which are ended at each step.

    :ivar spent: by those that have ended, in billionths of a dollar.
    :ivar most: that were in flight at once.
    """

    def __init__(self, url: str, local: bool) -> None:
        self.machines = [Machine(url, number, local) for number in range(3)]
        self.held: list[tuple[Machine, Any]] = []
        self.spent = self.most = self.admitted = 0
        self.faults: list[Failure] = []
        budget = usd("1000000", "total")
        self.key = member("k", group(budget=budget), rpm=10**8, tpm=10**9, max_parallel=MOST, budget=budget)

    def step(self) -> None:
        for machine in self.machines:
            for _ in range(random.randint(0, 8)):
                self.ask(machine)
        self.most = max(self.most, len(self.held))
        while self.held and random.random() < 0.9:
            self.end()

    def ask(self, machine: Machine) -> None:
        plan = machine.limiter.plan(self.key, "openai")
        assert plan is not None
        try:
            taken = machine.limiter.reserve(plan, 10, 0.01)
        except FlowstackError:
            return
        if isinstance(taken, Deferred):
            taken.addCallback(self.took, machine).addErrback(self.failed)
        else:
            self.took(taken, machine)

    def took(self, reservation: Any, machine: Machine) -> None:
        self.admitted += 1
        self.held.append((machine, reservation))

    def failed(self, failure: Failure) -> None:
        if not failure.check(FlowstackError):
            self.faults.append(failure)

    def end(self) -> None:
        machine, reservation = self.held.pop(random.randrange(len(self.held)))
        cost = random.randint(0, 200)
        machine.limiter.settle(reservation, used(9, cost / 1e4))
        self.spent += cost * 10**5


@pytest.fixture(params=PROGRAMS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    program = PROGRAMS[request.param]()
    server = RedisServer(tmp_path, "appendonly yes", "appendfsync everysec", program=program).start()
    yield server
    server.stop()


async def trouble(own: RedisServer, what: str) -> None:
    if what == "stall":
        own.signal(signal.SIGSTOP)
        await deferLater(reactor, random.random() / 2)
        own.signal(signal.SIGCONT)
    elif what == "kill":
        own.kill()
        await deferLater(reactor, random.random() / 2)
        own.start()
    else:
        with own.client() as client:
            client.execute_command(*what.split())


@ensureDeferred
@pytest.mark.parametrize("local", (False, True), ids=("refuse", "local"))
async def test_whatever_becomes_of_redis_no_limit_is_exceeded_and_each_cent_counts_once(
    own: RedisServer, local: bool
) -> None:
    troubles = ["stall", "stall", "kill", "FLUSHALL", "FLUSHALL", "FUNCTION FLUSH", "CLIENT KILL TYPE normal"]
    random.shuffle(troubles)
    storm = Storm(own.url, local)
    steps = LoopingCall(storm.step)
    try:
        await until(lambda: all(machine.link.up for machine in storm.machines))
        steps.start(0.01)
        for what in troubles:
            await trouble(own, what)
            await until(lambda: all(machine.link.up for machine in storm.machines))
            await deferLater(reactor, 0.3)
        steps.stop()
        await until(lambda: not any(machine.link._asked for machine in storm.machines))
        while storm.held:
            storm.end()
        with own.client() as client:

            def counted() -> bool:
                budgets = [int(client.hget(name, "t") or 0) for name in client.scan_iter("flowstack:*:m:*")]
                return budgets == [storm.spent] * 2 and not list(client.scan_iter("flowstack:*:p"))

            await until(counted, "what Redis counts is what was used")
    finally:
        if steps.running:
            steps.stop()
        for machine in storm.machines:
            stopped = machine.link.stop()
            if stopped is not None:
                await stopped
    assert storm.faults == [] and storm.admitted > 100
    # Beyond the limit those have as many in flight who have not told it yet to a Redis that forgot; and each its share.
    assert storm.most <= 2 * MOST + (3 * int(SHARE * MOST) if local else 0)
