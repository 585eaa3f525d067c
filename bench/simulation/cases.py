"""What may go wrong, and what is allowed to pass all the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import redis
from attrs import field, frozen

from bench.simulation.machines import CENTS, COST, KEYS, PARALLEL, RATES, RPM, TOKENS, TPM, Machine, Upstream
from bench.simulation.world import Network, Reactor, Server
from flowstack.limits.money import period_at
from flowstack.limits.share import shared_out
from tests.limits.lab import NOON

LIMITS = {"rpm": RPM, "tpm": TPM, "max_parallel": PARALLEL, "budget": CENTS}
SHARE = 0.5
UNITS = {"rpm": 1, "tpm": TOKENS, "max_parallel": 1, "budget": int(100 * COST)}
WARM = 40.0
"""Seconds until something fails; by then every limit is used up, and holds."""

LENGTH = 120.0


class World:
    """Some machines, one Redis or two, clients, an upstream.

    :ivar forgotten: what Redis had counted of each limit, and was made to forget.
    :ivar apart: the most that machines had in flight when Redis took them for dead, and they were not.
    :ivar sides: in how many databases the limits were counted apart.
    :ivar after: seconds without new requests at the end, in which all ends, and all is told.
    :ivar untold: cents that were billed and that Redis does not know of at the end.
    """

    def __init__(
        self, connect: Callable[[int], redis.Redis], seed: int, nodes: int, on_failure: str, skew: float = 0.0,
        begin: float = 0.0, seconds: float = 4.0,
    ) -> None:  # fmt: skip
        self.chance = random.Random(f"{seed} {nodes} {on_failure}")
        self.reactor = Reactor(begin)
        self.network = self.reactor.network = Network(self.chance)
        self.servers = [Server(self.reactor, connect, number) for number in (0, 1)]
        self.upstream = Upstream()
        self.machines = [
            Machine(
                *(number, self.reactor, self.network, self.servers[0], self.upstream, self.chance, on_failure, SHARE),
                skew=self.chance.uniform(-skew, skew), seconds=seconds,
            )
            for number in range(1, nodes + 1)
        ]  # fmt: skip
        self.forgotten = dict.fromkeys(LIMITS, 0)
        self.apart = dict.fromkeys(LIMITS, 0)
        self.begin, self._ends = begin, begin + LENGTH
        self.sides = 1
        self.after = 5 + 30 * seconds / 4
        self.untold = 0
        for name, rate in RATES.items():
            self.reactor.callLater(2 + self.chance.expovariate(rate), self._ask, name, rate)

    def _ask(self, name: str, rate: float) -> None:
        if self.reactor.now > self._ends:
            return
        self.reactor.callLater(self.chance.expovariate(rate), self._ask, name, rate)
        self.burst(name, 1)

    def burst(self, name: str, count: int) -> None:
        """Requests of one key at once."""
        living = [machine for machine in self.machines if machine.workers]
        for _ in range(count if living else 0):
            self.chance.choice(self.chance.choice(living).workers).ask(name)

    def later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        """Do something so long after the limits are used up."""
        self.reactor.callLater(self.begin + WARM + seconds - self.reactor.now, call, *args)

    def half(self) -> list[Machine]:
        """Half of the machines, one at least."""
        return self.machines[: max(1, len(self.machines) // 2)]

    # What happens.

    def cut(self, machines: list[Machine], answers_only: bool = False) -> None:
        """Cut machines off."""
        for machine in machines:
            machine.path.cut, machine.path.deaf = not answers_only, answers_only

    def lapse(self, machines: list[Machine]) -> None:
        """So long after the cut that Redis takes them for dead: what they have in flight now may be there twice."""
        for name in LIMITS:
            self.apart[name] = sum(machine.held(name) for machine in machines)

    def heal(self, machines: list[Machine]) -> None:
        """They can reach Redis again."""
        for machine in machines:
            machine.path.heal()

    def counted(self) -> dict[str, int]:
        """What Redis counts now, by limit, in the units of the limits."""
        server, found = self.servers[self.sides - 1], dict.fromkeys(LIMITS, 0)
        for name, limited in KEYS.items():
            for one in server.value("KEYS", f"flowstack:{{{limited.id}}}*"):
                kind = one.rsplit(b":", 2 if name == "budget" else 1)[1]
                if kind == b"p":
                    found[name] = server.call("show", [b"1", one, b"p"])[1][0][0]  # without those of the dead
                else:
                    found[name] = int(server.value("HGET", one, "t") or 0)
        found["budget"] = -(-found["budget"] // 10_000_000)
        return found

    def stop(self, lost: float | None) -> None:
        """Redis is killed, and with it goes what it did in so many seconds; None: all."""
        self.servers[0].stop()
        if lost is None:
            self.forgotten = self.counted()
        else:
            since = self.reactor.now - lost
            for name, unit in UNITS.items():
                self.forgotten[name] = unit * sum(since <= at for at in self.upstream.passed[name])

    def restart(self, number: int | None) -> None:
        """It is there again, with what a database has, or with nothing. Clients press."""
        self.servers[0].recall(number)
        self.servers[0].runs = True
        for seconds in range(20):
            for name in ("max_parallel", "budget"):
                self.reactor.callLater(seconds / 10, self.burst, name, 10)

    def split(self) -> None:
        """Half of the machines stay with the master, the others get a replica that took its place."""
        self.servers[0].remember(1)
        self.sides = 2
        for machine in self.machines[len(self.half()) :]:
            machine.path.server = self.servers[1]
        for wire in list(self.servers[0].wires):
            if wire.path.server is self.servers[1]:
                self.servers[0].wires.remove(wire)
                wire.reset()

    def join(self) -> None:
        """The old master becomes a replica of the new one: it closes its connections."""
        for machine in self.machines:
            machine.path.server = self.servers[1]
        self.servers[0].stop()

    def run(self) -> None:
        """To the end, and until all is told."""
        self.reactor.run(self._ends + self.after)
        counted = self.counted()
        self.untold = self.upstream.found("budget") - counted["budget"]
        assert not counted["max_parallel"], "nothing is in flight"

    def close(self) -> None:
        """Give back what the system lent."""
        for machine in self.machines:
            machine.close()
        for server in self.servers:
            server.close()


@frozen(slots=True)
class Case:
    """One thing that goes wrong.

    :ivar prepare: says when what happens.
    :ivar alone: whether machines are without Redis, so that the share counts.
    :ivar seconds: that a request takes.
    """

    title: str
    prepare: Callable[[World], None]
    alone: Callable[[int], int] = field(default=lambda nodes: 0)
    skew: float = 0.0
    midnight: bool = False
    seconds: float = 4.0


def _nothing(world: World) -> None:
    pass


def _slow(world: World) -> None:
    world.network.spikes = 0.02
    for seconds in range(0, 60, 10):
        world.later(seconds, _stall, world)


def _stall(world: World) -> None:
    world.servers[0].stalled_until = world.reactor.now + 0.3


def _partition(seconds: float, answers_only: bool = False) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        world.later(0, world.cut, world.half(), answers_only)
        for after in range(30, 41):  # it said that it lives up to 5 s before the cut, and counts as alive for 20 s
            if after / 2 < seconds:
                world.later(after / 2, _note, world)
        world.later(seconds, world.heal, world.half())

    return prepare


def _note(world: World) -> None:
    before = dict(world.apart)
    world.lapse(world.half())
    world.apart = {name: max(before[name], now) for name, now in world.apart.items()}


def _restart(lost: float | None, away: float = 1.0) -> Callable[[World], None]:
    """Redis is killed; it comes back with what it knew so many seconds before."""

    def prepare(world: World) -> None:
        if lost is not None:
            world.later(-lost, world.servers[0].remember, 2)
        world.later(0, world.stop, lost)
        world.later(away, world.restart, None if lost is None else 2)

    return prepare


def _deaths(world: World) -> None:
    for at, machine in enumerate(world.half()):
        world.later(0.2 * at, machine.die)
        world.later(15 + 0.2 * at, machine.start)


def _split(world: World) -> None:
    world.later(0, world.split)
    world.later(70, world.join)


def _storm(world: World) -> None:
    chance = world.chance
    world.network.spikes = 0.01
    at = 0.0
    while at < 60:
        seconds = chance.uniform(0.1, 12)
        some = chance.sample(world.machines, chance.randint(1, len(world.machines)))
        what = chance.choice(("cut", "deaf", "stall", "death"))
        if what == "stall":
            world.later(at, _stall, world)
        elif what == "death":
            world.later(at, some[0].die)
            world.later(at + seconds, some[0].start)
        else:
            world.later(at, world.cut, some, what == "deaf")
            world.later(at + seconds, world.heal, some)
        at += seconds + chance.uniform(0, 6)


def _midnight(world: World) -> None:
    # 400 requests at once, so shortly before midnight that many reach Redis after it.
    world.later(20 - 0.0001, world.burst, "budget", 400)


def _all(nodes: int) -> int:
    return nodes


def _half(nodes: int) -> int:
    return max(1, nodes // 2)


CASES = {
    "calm": Case("nothing fails", _nothing),
    "slow": Case("2 % of messages take 20 to 200 ms, Redis stalls six times for 0.3 s", _slow, _all),
    "cut": Case("half of the machines are cut off for 15 s", _partition(15), _half),
    "cut-long": Case("half are cut off for 40 s; requests take a minute", _partition(40), _half, seconds=60.0),
    "deaf": Case("half hear no answer for 10 s, but are heard", _partition(10, True), _half),
    "empty": Case("Redis is killed, and is there again after 1 s, empty", _restart(None), _all),
    "second": Case("the same, from a file that is a second old", _restart(1.0), _all),
    "failover": Case("after 5 s a replica takes its place that lacks 0.2 s", _restart(0.2, 5.0), _all),
    "deaths": Case("half of the machines are killed, and start again after 15 s", _deaths, _half),
    "skew": Case("clocks up to 4 minutes off; half are cut off for 15 s", _partition(15), _half, skew=240.0),
    "split": Case("two masters for 70 s, half of the machines with each", _split, _all),
    "storm": Case("by chance: cuts, lost answers, stalls and deaths, none for over 12 s", _storm, _all),
    "midnight": Case("400 requests at once when a budget's day ends", _midnight, midnight=True),
}
"""By a name, what goes wrong."""


@frozen(slots=True)
class Found:
    """Of one limit in one case.

    :ivar passed: the most that passed at the upstream.
    :ivar stated: what the manual says may pass.
    :ivar terms: how that is made up.
    """

    limit: str
    passed: int
    stated: int
    terms: str

    @property
    def held(self) -> bool:
        """Whether no more passed than may."""
        return self.passed <= self.stated


def shares(name: str) -> int:
    """What a machine holds a key to by itself."""
    less = shared_out(KEYS[name], SHARE)
    found = getattr(less, name)
    return int(found.amount * 100) if name == "budget" else int(found)


def simulate(connect: Callable[[int], redis.Redis], case: Case, nodes: int, on_failure: str, seed: int) -> World:
    """Run a case to its end."""
    begin = period_at("day", NOON).ends - NOON - WARM - 20 if case.midnight else 0.0
    world = World(connect, seed, nodes, on_failure, case.skew, begin, case.seconds)
    try:
        case.prepare(world)
        world.run()
    finally:
        world.close()
    return world


def judge(world: World, case: Case, nodes: int, on_failure: str) -> list[Found]:
    """Hold what passed against what may."""
    found = []
    for name, limit in LIMITS.items():
        terms, stated = [str(limit)], limit
        alone = case.alone(nodes) if on_failure == "local" else 0
        if world.sides > 1:
            terms[0], stated = f"{world.sides} x {limit}", world.sides * limit
        if alone:
            stated += alone * shares(name)
            terms.append(f"{alone} x {shares(name)}")
        if world.forgotten[name]:
            stated += world.forgotten[name]
            terms.append(f"{world.forgotten[name]} forgotten")
        if name == "max_parallel" and world.apart[name]:
            stated += world.apart[name]
            terms.append(f"{world.apart[name]} cut off")
        found.append(Found(name, world.upstream.found(name), stated, " + ".join(terms)))
    return found


__all__ = ["CASES", "COST", "TOKENS", "Case", "Found", "World", "judge", "simulate"]
