"""Limits of several machines hold within what the manual states, whatever fails: in time that is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from bench.simulation.cases import CASES, LIMITS, Found, World, judge, shares, simulate
from tests.redis_server import RedisServer

Connect = Callable[[int], redis.Redis]


@pytest.fixture(scope="module")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield lambda number: server.client(db=number)
    server.stop()


def found(connect: Connect, name: str, nodes: int, on_failure: str, seed: int) -> tuple[World, dict[str, Found]]:
    case = CASES[name]
    world = simulate(connect, case, nodes, on_failure, seed)
    return world, {one.limit: one for one in judge(world, case, nodes, on_failure)}


@pytest.mark.parametrize("on_failure", ["refuse", "local"])
@pytest.mark.parametrize("name", ["slow", "cut-long", "deaf", "empty", "second", "failover", "split", "midnight"])
def test_no_more_passes_than_the_manual_states(connect: Connect, name: str, on_failure: str) -> None:
    world, limits = found(connect, name, 3, on_failure, 7)
    assert [one for one in limits.values() if not one.held] == []
    assert all(one.passed >= LIMITS[one.limit] * 0.5 for one in limits.values()), "the clients ask for more than that"
    assert world.upstream.refused


@pytest.mark.parametrize("on_failure", ["refuse", "local"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_fails_by_chance_no_more_passes(connect: Connect, on_failure: str, seed: int) -> None:
    _, limits = found(connect, "storm", 2, on_failure, seed)
    assert [one for one in limits.values() if not one.held] == []


def test_where_nothing_fails_the_limits_are_used_to_the_full_and_each_charge_is_told(connect: Connect) -> None:
    world, limits = found(connect, "calm", 2, "refuse", 3)
    assert (limits["rpm"].passed, limits["max_parallel"].passed) == (LIMITS["rpm"], LIMITS["max_parallel"])
    assert limits["tpm"].passed > 0.95 * LIMITS["tpm"]
    assert limits["budget"].passed > 0.95 * LIMITS["budget"]
    assert (world.untold, world.upstream.unavailable) == (0, 0)


def test_what_passes_beyond_a_limit_is_seen(connect: Connect) -> None:
    """A machine that counts by itself lets its share pass: more than the limit, where that alone is allowed."""
    world, limits = found(connect, "cut", 3, "local", 7)
    strict = {one.limit: one for one in judge(world, CASES["cut"], 3, "refuse")}
    assert limits["rpm"].held
    assert not strict["rpm"].held
    assert strict["rpm"].passed <= LIMITS["rpm"] + shares("rpm")


def test_the_same_seed_is_the_same_run(connect: Connect) -> None:
    runs = [found(connect, "storm", 2, "local", 11)[0] for _ in range(2)]
    assert runs[0].upstream.passed == runs[1].upstream.passed
    assert runs[0].servers[0].calls == runs[1].servers[0].calls
    other, _ = found(connect, "storm", 2, "local", 12)
    assert other.upstream.passed != runs[0].upstream.passed
