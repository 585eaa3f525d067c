"""What is the remote limiter's alone: machines that die, answers that are lost, a Redis that forgets or lies."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config.settings import Limits, Settings, Upstream, UpstreamLimits
from flowstack.errors import (
    BudgetExceeded,
    ConcurrencyExceeded,
    FlowstackError,
    LimitsUnavailable,
    RateLimitExceeded,
)
from flowstack.keys import Key
from flowstack.limits.charge import charged_nanos
from flowstack.limits.link import library
from flowstack.limits.share import settings_shared_out, shared_out
from flowstack.limits.told import Untold, time_of

from .lab import REFUSED, group, key, member, reserve, row, usd, used
from .remote_lab import RemoteLab

LEASE = 21.0


@pytest.fixture
def lab(redis_client: redis.Redis) -> RemoteLab:
    return RemoteLab(redis_client)


def standing(lab: RemoteLab, limited: Key, number: int = 0) -> dict[str, int]:
    return {each.limit: each.used for each in lab.limiters[number].standings(limited)}


ALL: dict[str, Any] = {"rpm": 100, "tpm": 1000, "max_parallel": 3, "budget": usd("10")}


def test_what_a_dead_machine_had_in_flight_is_free_when_its_time_is_up_and_its_charges_stay(lab: RemoteLab) -> None:
    limited = key(**ALL)
    for _ in range(3):
        reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    dead, lab.links = lab.links[0], lab.links[1:]
    assert dead.up
    lab.go_on(LEASE - 2)
    with pytest.raises(ConcurrencyExceeded):
        reserve(lab.limiters[1], limited, tokens=1, cost=0.0)
    lab.go_on(2)
    reserve(lab.limiters[1], limited, tokens=1, cost=0.0)
    assert standing(lab, limited, 1) == {"rpm": 4, "tpm": 31, "max_parallel": 1, "budget": 3 * 10**9}


def test_a_machine_that_was_taken_for_dead_says_again_what_it_has_in_flight(lab: RemoteLab) -> None:
    limited = key(max_parallel=2)
    held = [reserve(lab.limiters[0], limited) for _ in range(2)]
    lab.links[0].up = False
    lab.go_on(LEASE)
    other = reserve(lab.limiters[1], limited)
    lab.links[0].come_back()
    with pytest.raises(ConcurrencyExceeded):
        reserve(lab.limiters[1], limited)
    for one in held:
        lab.limiters[0].settle(one, row())
    lab.limiters[1].settle(other, row())
    assert standing(lab, limited) == {"max_parallel": 0}


def test_a_redis_that_lost_everything_is_told_again_what_is_in_flight_and_was_spent(lab: RemoteLab) -> None:
    limited = member("k", group(budget=usd("20", "total"), max_parallel=9), **ALL)
    for number in (0, 1):
        lab.limiters[number].settle(reserve(lab.limiters[number], limited, tokens=10, cost=2.0), used(10, 1.5))
        reserve(lab.limiters[number], limited, tokens=10, cost=0.25)
    before = lab.limiters[0].standings(limited)
    lab.client.flushall()
    for link in lab.links:
        link.come_back()
    after = {(each.name, each.limit): each.used for each in lab.limiters[0].standings(limited)}
    kept = {(each.name, each.limit): each.used for each in before if each.limit in ("max_parallel", "budget")}
    assert {name: after[name] for name in kept} == kept
    assert kept["k", "budget"] == kept["@g", "budget"] == 3_500_000_000
    assert (after["k", "rpm"], after["k", "tpm"]) == (0, 0), "windows are forgotten: a minute"


def test_a_redis_that_forgot_the_last_seconds_does_not_count_in_flight_what_ended_in_them(lab: RemoteLab) -> None:
    limited = key(max_parallel=2)
    held = [reserve(lab.limiters[0], limited) for _ in range(2)]
    (name,) = [one for one in lab.client.scan_iter() if one.endswith(b":p")]
    before = lab.client.dump(name)
    for one in held:
        lab.limiters[0].settle(one, row())
    lab.go_on(1)
    lab.client.restore(name, 0, before, replace=True)
    for link in lab.links:
        link.come_back()
    assert standing(lab, limited) == {"max_parallel": 0}


def test_that_nothing_is_in_flight_is_remembered_for_a_minute(lab: RemoteLab) -> None:
    limiter = lab.limiters[0].one
    for name in ("a", "b"):
        lab.limiters[0].settle(reserve(lab.limiters[0], key(name, max_parallel=2)), row())
        lab.go_on(61)
    assert [len(one.words(True)[1]) for one in limiter.link.again()] == [1]


def test_what_redis_did_and_could_not_say_is_taken_back(lab: RemoteLab) -> None:
    limited, link = key(**ALL), lab.links[0]
    reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    ask, call = link.ask, link.call

    def lose(function: str, keys: Any, arguments: Any, done: Any) -> None:
        call(function, keys, arguments)
        done(None)

    link.ask = lose  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(LimitsUnavailable):
            reserve(lab.limiters[0], limited, tokens=20, cost=2.0)
    link.ask = ask  # type: ignore[method-assign]
    link.come_back()
    assert standing(lab, limited) == {"rpm": 3, "tpm": 50, "max_parallel": 1, "budget": 10**9}


def test_an_answer_that_comes_too_late_is_given_back(lab: RemoteLab) -> None:
    limited, link = member("k", group(**ALL), **ALL), lab.links[0]
    held: list[Any] = []
    ask, call = link.ask, link.call
    link.ask = lambda *asked: held.append(asked)  # type: ignore[method-assign]
    limiter = lab.limiters[0].one
    for looks in (False, True):
        limiter.reserve(limiter.plan(limited, "openai"), 20, 2.0, None, looks).addErrback(lambda failure: None)
    link.ask = ask  # type: ignore[method-assign]
    for function, keys, arguments, done in held:
        done(None)
        done(call(function, keys, arguments))
    found = {(each.name, each.limit): each.used for each in lab.limiters[0].standings(limited)}
    assert {name: used for name, used in found.items() if name[1] != "rpm"} == {
        (name, limit): 0 for name in ("k", "@g") for limit in ("tpm", "max_parallel", "budget")
    }
    link.come_back()
    assert standing(lab, limited)["max_parallel"] == 0


def test_a_late_refusal_changes_nothing(lab: RemoteLab) -> None:
    limited, link = key(rpm=1), lab.links[0]
    held: list[Any] = []
    reserve(lab.limiters[1], limited)
    ask, call = link.ask, link.call
    link.ask = lambda *asked: held.append(asked)  # type: ignore[method-assign]
    lab.limiters[0].one.reserve(lab.limiters[0].one.plan(limited, "openai")).addErrback(lambda failure: None)
    link.ask = ask  # type: ignore[method-assign]
    for function, keys, arguments, done in held:
        done(None)
        done(call(function, keys, arguments))
    assert standing(lab, limited) == {"rpm": 1}


def test_without_redis_each_request_with_limits_is_refused_and_others_pass(lab: RemoteLab) -> None:
    lab.links[0].up = False
    assert lab.limiters[0].plan(key(), "openai") is None
    with pytest.raises(LimitsUnavailable) as refused:
        reserve(lab.limiters[0], key(rpm=1))
    assert dict(refused.value.headers)[b"retry-after"] == b"1"
    with pytest.raises(LimitsUnavailable):
        lab.limiters[0].standings(key(rpm=1))
    assert lab.limiters[0].failed == 1


def test_a_claim_without_redis_is_refused_and_what_was_taken_before_is_given_back(lab: RemoteLab) -> None:
    limited = key(**ALL)
    held = reserve(lab.limiters[0], limited)
    lab.links[0].up = False
    with pytest.raises(LimitsUnavailable):
        held.claim(10, 1.0)
    lab.limiters[0].settle(held, row(end="refused", status=503, error_code="limits_unavailable"))
    lab.links[0].come_back()
    assert standing(lab, limited) == {"rpm": 1, "tpm": 0, "max_parallel": 0, "budget": 0}


def test_a_settlement_without_redis_is_told_when_it_is_back(lab: RemoteLab) -> None:
    limited = key(**ALL)
    held = [reserve(lab.limiters[0], limited, tokens=100, cost=1.0) for _ in range(3)]
    lab.links[0].up = False
    lab.limiters[0].settle(held[0], used(300, 3.0))  # more than it took
    lab.limiters[0].settle(held[1], used(10, 0.1))  # less
    lab.limiters[0].settle(held[2], REFUSED)
    assert standing(lab, limited, 1) == {"rpm": 3, "tpm": 300, "max_parallel": 3, "budget": 3 * 10**9}
    lab.links[0].come_back()
    # Tokens that were given back might have been so before: they are not a second time, and are free in a minute.
    assert standing(lab, limited) == {"rpm": 3, "tpm": 500, "max_parallel": 0, "budget": 3_100_000_000}


def test_each_machine_holds_its_share_alone_and_owes_what_it_charged(redis_client: redis.Redis) -> None:
    lab = RemoteLab(redis_client, share=0.5)
    limited = member("k", group(rpm=100, budget=usd("100")), rpm=5, tpm=1000, max_parallel=9, budget=usd("10"))
    for link in lab.links:
        link.up = False
    for limiter in lab.limiters:
        for cost in (2.0, 1.0):
            limiter.settle(reserve(limiter, limited, tokens=100, cost=cost), used(50, cost / 2))
        with pytest.raises(RateLimitExceeded, match="may begin 2 requests"):
            reserve(limiter, limited, tokens=1, cost=0.0)
    lab.go_on(62)
    with pytest.raises(BudgetExceeded, match=r"may spend 5.00 USD"):
        reserve(lab.limiters[0], limited, tokens=1, cost=4.0)
    with pytest.raises(RateLimitExceeded, match="may use 500 tokens"):
        reserve(lab.limiters[0], limited, tokens=501, cost=0.0)
    for link in lab.links:
        link.come_back()
    found = {(each.name, each.limit): each.used for each in lab.limiters[0].standings(limited)}
    assert found["k", "budget"] == found["@g", "budget"] == 3_000_000_000
    assert found["k", "tpm"] == 200
    assert found["k", "max_parallel"] == 0


def test_a_claim_that_redis_does_not_answer_is_made_of_the_share(redis_client: redis.Redis) -> None:
    lab = RemoteLab(redis_client, share=0.5)
    limited = key(tpm=1000, budget=usd("10"), max_parallel=4)
    taken = reserve(lab.limiters[0], limited)
    lab.links[0].up = False
    with pytest.raises(RateLimitExceeded, match="may use 500 tokens"):
        taken.claim(600, 1.0)
    taken.claim(300, 1.0)
    assert taken.kept()["tokens"] == 300
    lab.limiters[0].settle(taken, used(200, 0.5))
    lab.links[0].come_back()
    assert standing(lab, limited) == {"tpm": 200, "budget": 500_000_000, "max_parallel": 0}


def test_a_budget_that_an_operator_resets_is_new_for_all_machines_and_stays_so(lab: RemoteLab) -> None:
    limited = key(budget=usd("10"))
    done = [reserve(limiter, limited, tokens=1, cost=2.0) for limiter in lab.limiters]
    lab.limiters[0].settle(done[0], used(1, 1.0))
    lab.go_on(1)
    (name,) = [one for one in lab.client.scan_iter() if b":m:" in one]
    assert lab.links[0].call("reset", [name], [b"0"])[1] == 3_000_000_000
    assert standing(lab, limited) == {"budget": 0}
    for link in lab.links:
        link.come_back()
    assert standing(lab, limited) == {"budget": 0}
    lab.go_on(1)
    lab.limiters[1].settle(done[1], used(1, 1.5))
    assert standing(lab, limited) == {"budget": 1_500_000_000}, "what was in flight then is charged with its cost"
    lab.limiters[1].settle(reserve(lab.limiters[1], limited, tokens=1, cost=3.0), used(1, 1.0))
    for link in lab.links:
        link.come_back()
    assert standing(lab, limited) == {"budget": 2_500_000_000}


def test_a_reset_that_a_failover_lost_is_made_again_by_who_knows_of_it(lab: RemoteLab) -> None:
    limited = key(budget=usd("10"))
    lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=1, cost=2.0), used(1, 2.0))
    lab.go_on(1)
    (name,) = [one for one in lab.client.scan_iter() if b":m:" in one]
    before = lab.client.dump(name)
    lab.links[0].call("reset", [name], [b"0"])
    lab.go_on(1)
    lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=1, cost=1.0), used(1, 1.0))
    lab.client.restore(name, 0, before, replace=True)
    for link in lab.links:
        link.come_back()
    assert standing(lab, limited) == {"budget": 10**9}


def test_what_comes_after_the_end_of_its_budget_s_period_finds_what_was_spent_in_it(redis_client: redis.Redis) -> None:
    name, text = library()
    redis_client.execute_command("FUNCTION", "LOAD", "REPLACE", text)
    ended = redis_client.time()[0] * 1000 - 1
    budget = ("flowstack:{k}::m:1", "w", "m", 0, 1000, 700, ended, -1)
    assert redis_client.fcall(f"{name}_take", 1, *budget)[1] == 0
    assert redis_client.fcall(f"{name}_take", 1, *budget)[1:] == [1, [[700, 0]]]
    assert 0 < redis_client.pttl(budget[0]) <= 60_000, "it is forgotten all the same"


NOW = 1_780_000_000_000_000
STRANGE: list[Any] = [
    None, 0, 1, b"OK", "text", [], [None], [b"1"], [0], [-5], [True], [1 << 60], [NOW], [NOW, None], [NOW, b"0"],
    [NOW, 0], [NOW, 0, 1], [NOW, 0, 1, None, 1, 1], [NOW, 0, b"1", 1, 1, 1], [NOW, 0, 1, 1, 1, 1, 1],
    [NOW, 0, [1], 1, 1, 1], [NOW, 3, []], [NOW, -1, []], [NOW, True, []], [NOW, 1], [NOW, 1, None], [NOW, 1, [1]],
    [NOW, 1, [[1, 2], [3, 4]]], [NOW, 1, [[], []]], [NOW, 1, [[0] * 33, [None]]], [NOW, 1, [[0] * 33]],
    redis.ResponseError("WRONGTYPE"),
]  # fmt: skip


@pytest.mark.parametrize("answer", STRANGE, ids=repr)
def test_an_answer_that_is_none_of_ours_lets_nothing_pass(lab: RemoteLab, answer: Any) -> None:
    limited = key(rpm=5, tpm=100)
    limiter, link = lab.limiters[0].one, lab.links[0]
    asked: list[Any] = []
    link.ask = lambda *words: asked.append(words)  # type: ignore[method-assign]
    outcome: list[Any] = []
    limiter.reserve(limiter.plan(limited, "openai"), 1, None).addBoth(outcome.append)
    done = asked[0][3]
    def take(answer: Any) -> None:
        time_of(answer)  # as the link does first
        done(answer)

    with pytest.raises(Untold):
        take(answer)
    assert outcome == []
    done(None)  # as the link does when it gives a connection up
    (failure,) = outcome
    assert failure.check(LimitsUnavailable)


def test_the_share_of_limits_is_rounded_down_and_no_less_than_one() -> None:
    less = shared_out(member("k", group(rpm=9, budget=usd("1")), rpm=3, tpm=1000, max_parallel=1), 0.5)
    assert (less.rpm, less.tpm, less.max_parallel, less.budget) == (1, 500, 1, None)
    assert less.shared is not None
    assert (less.shared.rpm, less.shared.budget) == (4, usd("0.500000"))
    settings = settings_shared_out(
        Settings(limits=Limits(rpm=10, budget="5usd/day"), upstreams=(Upstream(limits=UpstreamLimits(tpm=7)),)), 0.25
    )
    assert (settings.limits.rpm, settings.upstreams[0].limits.tpm) == (2, 1)
    assert settings.limits.budget == "1.25usd/day"


moves = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "reserve", "settle", "settle", "wait", "down", "up", "lost", "flush"]),
        st.integers(0, 2),
        st.integers(0, 300),
        st.sampled_from([row(), row(status=500), used(0, 0.0), used(50, 0.5), used(400, 4.0), REFUSED]),
    ),
    max_size=60,
)


@given(moves)
def test_whatever_fails_no_limit_is_exceeded_and_in_the_end_each_charge_counts_once(
    redis_server: Any, moves: list[tuple[str, int, int, Any]]
) -> None:
    with redis_server.client() as client:
        client.flushall()
        lab = RemoteLab(client, 3)
        limited = key(rpm=12, tpm=1000, max_parallel=4, budget=usd("20", "total"))
        held: list[tuple[int, Any, int]] = []
        admitted: list[float] = []
        spent = beyond = 0
        forgets = False
        for what, number, amount, ending in moves:
            limiter, link = lab.limiters[number], lab.links[number]
            if what == "wait":
                lab.go_on(amount / 30)
            elif what == "settle" and held:
                owner, reservation, nanos = held.pop(amount % len(held))
                charged = charged_nanos(ending, nanos)
                lab.limiters[owner].settle(reservation, ending)
                spent += charged - nanos
                beyond += max(charged - nanos, 0)
            elif what == "down":
                link.up = False
            elif what == "up" and not link.up:
                link.come_back()
            elif what == "flush":  # a failover to a replica that had nothing: every connection is new
                client.flushall()
                forgets = True
                for one in lab.links:
                    if one.up:
                        one.come_back()
            elif what == "lost" and link.up:
                ask = link.ask

                def lose(function: str, keys: Any, arguments: Any, done: Any, link: Any = link) -> None:
                    link.call(function, keys, arguments)
                    done(None)

                link.ask = lose  # type: ignore[method-assign]
                with pytest.raises(FlowstackError):
                    reserve(limiter, limited, tokens=amount, cost=amount / 100)
                link.ask = ask  # type: ignore[method-assign]
                link.come_back()
            elif what == "reserve":
                try:
                    reservation = reserve(limiter, limited, tokens=amount, cost=amount / 100)
                except FlowstackError:
                    continue
                admitted.append(lab.monotonic.now)
                held.append((number, reservation, amount * 10**7))
                spent += amount * 10**7
            if not forgets:
                assert len(held) <= 4
                assert spent <= 20 * 10**9 + beyond
                for begin in admitted:
                    assert sum(begin <= when <= begin + 60 for when in admitted) <= 12
        for link in lab.links:
            if not link.up:
                link.come_back()
        for owner, reservation, nanos in held:
            lab.limiters[owner].settle(reservation, used(1, 0.25))
            spent += 250_000_000 - nanos
        found = standing(lab, limited)
        assert found["max_parallel"] == 0
        assert found["budget"] == spent
