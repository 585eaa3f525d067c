"""What is the remote limiter's alone: machines that die, answers that are lost, a Redis that forgets or lies."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config.settings import Limits, Settings, Shared, Upstream, UpstreamLimits
from flowstack.errors import (
    BudgetExceeded,
    ConcurrencyExceeded,
    FlowstackError,
    LimitsUnavailable,
    RateLimitExceeded,
)
from flowstack.keys import Key
from flowstack.limits.charge import charged_nanos
from flowstack.limits.link import Link, library
from flowstack.limits.remote import AT_ONCE
from flowstack.limits.share import settings_shared_out, shared_out
from flowstack.limits.told import Unfit, Untold, time_of
from tests.redis_server import PROGRAMS

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


def test_what_is_settled_waits_for_what_is_asked_next_and_of_several_it_is_told_in_one_call(lab: RemoteLab) -> None:
    limited, link = key(**(ALL | {"max_parallel": 9})), lab.links[0]
    link.waits = True
    called: list[str] = []
    call = link.call
    link.call = lambda function, *more: (called.append(function), call(function, *more))[1]  # type: ignore
    held = [reserve(lab.limiters[0], limited, tokens=10, cost=1.0) for _ in range(2)]
    for one in held:
        lab.limiters[0].settle(one, used(3, 0.25))
    assert standing(lab, limited, 1) == {"rpm": 2, "tpm": 20, "max_parallel": 2, "budget": 2 * 10**9}
    reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    assert standing(lab, limited, 1) == {"rpm": 3, "tpm": 16, "max_parallel": 1, "budget": 15 * 10**8}
    assert [name for name in called if name != "alive"] == ["take", "take", "give", "take"]


@pytest.mark.parametrize(("most", "others", "seconds", "waits"),
                         [(9, 3, 0.0, True), (9, 4, 0.0, False), (9, 3, 0.2, False), (1, 0, 0.0, False)])  # fmt: skip
def test_a_place_that_somebody_may_wait_for_is_given_back_at_once(
    lab: RemoteLab, most: int, others: int, seconds: float, waits: bool
) -> None:
    limited, link = key(max_parallel=most), lab.links[0]
    for _ in range(others):
        reserve(lab.limiters[1], limited)
    one = reserve(lab.limiters[0], limited)
    link.waits = True
    lab.wall.now += seconds
    lab.limiters[0].settle(one, row())
    assert len(link.soon) == waits
    assert standing(lab, limited, 1) == {"max_parallel": others + waits}


def test_who_was_refused_a_place_of_a_limit_gives_its_own_back_at_once(lab: RemoteLab) -> None:
    limited, link = key(max_parallel=4), lab.links[0]
    one = reserve(lab.limiters[0], limited)
    for _ in range(3):
        reserve(lab.limiters[1], limited)
    with pytest.raises(ConcurrencyExceeded):
        reserve(lab.limiters[0], limited)
    link.waits = True
    lab.limiters[0].settle(one, row())
    assert standing(lab, limited, 1) == {"max_parallel": 3}


def test_what_waited_when_redis_went_away_is_told_when_it_is_back(lab: RemoteLab) -> None:
    limited, link = key(**(ALL | {"max_parallel": 9})), lab.links[0]
    held = [reserve(lab.limiters[0], limited, tokens=10, cost=1.0) for _ in range(2)]
    link.waits = True
    lab.limiters[0].settle(held[0], used(30, 3.0))
    link.up = False
    lab.limiters[0].settle(held[1], used(30, 3.0))
    link.come_back()
    assert standing(lab, limited, 1) == {"rpm": 2, "tpm": 60, "max_parallel": 0, "budget": 6 * 10**9}


def test_of_settlements_that_are_told_together_only_those_are_lost_whose_key_is_another_programs(
    lab: RemoteLab,
) -> None:
    some = [key(name, **(ALL | {"max_parallel": 9})) for name in ("a", "b", "c")]
    held = [reserve(lab.limiters[0], one, tokens=10, cost=1.0) for one in some]
    (name,) = [one for one in lab.client.scan_iter() if b"{b}" in one and b":m:" in one]
    lab.client.set(name, "theirs")
    lab.client.set("flowstack:{b}::t", "theirs")
    lab.links[0].waits = True
    for one in held:
        lab.limiters[0].settle(one, used(3, 0.25))
    with pytest.raises(Unfit, match="WRONGTYPE"):  # which the link logs
        lab.links[0].tell_now()
    lab.client.delete(name, "flowstack:{b}::t")
    for limited in some[0], some[2]:
        assert standing(lab, limited, 1) == {"rpm": 1, "tpm": 3, "max_parallel": 0, "budget": 25 * 10**7}
    assert standing(lab, some[1], 1) == {"rpm": 1, "tpm": 0, "max_parallel": 0, "budget": 0}


@pytest.mark.parametrize("kind", ["max_parallel", "budget"])
def test_of_what_is_told_again_only_that_is_missing_whose_key_is_another_programs(lab: RemoteLab, kind: str) -> None:
    some = [key(name, **{kind: ALL[kind]}) for name in ("a", "b", "c")]
    held = [reserve(lab.limiters[0], one, tokens=10, cost=1.0) for one in some]
    (name,) = lab.client.scan_iter("flowstack:{b}:*")
    lab.client.flushall()
    lab.client.set(name, "theirs")
    with pytest.raises(Unfit, match="WRONGTYPE"):  # which the link logs
        lab.links[0].come_back()
    lab.client.delete(name)
    lab.links[1].come_back()
    taken = {"max_parallel": 1, "budget": 10**9}[kind]
    assert [standing(lab, one, 1)[kind] for one in some] == [taken, 0, taken]
    for one in held:
        lab.limiters[0].settle(one, used(3, 0.25))
    left = {"max_parallel": 0, "budget": 25 * 10**7}[kind]
    assert [standing(lab, one, 1)[kind] for one in (some[0], some[2])] == [left, left]


BROKEN = {
    "what counts in a window": (b"::t", lambda client, key: b"t"),
    "a window's bucket": (b"::t", lambda client, key: b"%d" % (int(client.hget(key, "b")) % 31)),
    "what is in flight": (b"::p", lambda client, key: b"worker-0"),
    "what others have in flight": (b"::p", lambda client, key: b"worker-9"),
    "what a budget has": (b"::m:", lambda client, key: b"t"),
    "when a budget was reset": (b"::m:", lambda client, key: b"e"),
    "what a worker added to a budget": (b"::m:", lambda client, key: b"worker-0"),
}


@pytest.mark.parametrize("value", ["theirs", "nan", "1.5", "9" * 30])
@pytest.mark.parametrize(("of", "field"), BROKEN.values(), ids=BROKEN)
def test_where_one_limit_is_not_as_it_was_left_nothing_is_taken_of_the_others(
    lab: RemoteLab, of: bytes, field: Any, value: str
) -> None:
    limited = member("k", group(**ALL), **ALL)
    reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    (name,) = [one for one in lab.client.scan_iter("flowstack:{@g}:*") if of in one]
    lab.client.hset(name, field(lab.client, name), value)
    names = list(lab.client.scan_iter("flowstack:{*"))
    before = [lab.client.hgetall(one) for one in names]
    with pytest.raises(redis.ResponseError, match="hash value is not an integer"):
        reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    assert [lab.client.hgetall(one) for one in names] == before


@pytest.mark.parametrize("answer", [[], [0], [0, 1, 2], [None, 1], [b"1", 1], [0, -1, 1, b"why"], ["why"]], ids=repr)
def test_an_answer_to_settlements_that_is_none_of_ours_settles_nothing(lab: RemoteLab, answer: list[Any]) -> None:
    limited = key(**ALL)
    link = lab.links[0]
    link.waits = True
    lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=10, cost=1.0), used(3, 0.25))
    link.up = False
    (owed,) = link.soon
    owed.words(False)
    with pytest.raises(Untold):
        owed.told([NOW, *answer])
    owed.kept()
    link.come_back()
    assert standing(lab, limited, 1) == {"rpm": 1, "tpm": 10, "max_parallel": 0, "budget": 25 * 10**7}


def test_what_was_used_beyond_what_was_taken_is_told_at_once(lab: RemoteLab) -> None:
    some = [key(f"k{number}", rpm=9, tpm=1000, budget=usd("10")) for number in range(5)]
    link, limiter = lab.links[0], lab.limiters[0]
    held = [reserve(limiter, limited, tokens=10, cost=1.0) for limited in some[:4]]
    link.waits = True
    limiter.settle(held[0], used(10, 0.5))
    assert len(link.soon) == 1
    limiter.settle(held[1], used(11, 0.5))
    limiter.settle(held[2], used(3, 1.5))
    limiter.settle_later(held[3].kept(), used(10, 2.0))
    limiter.charge(limiter.plan(some[4], "openai"), 7, 0.25)
    assert not link.soon
    found = [standing(lab, limited, 1) for limited in some]
    assert [one["tpm"] for one in found] == [10, 11, 3, 10, 7]
    assert [one["budget"] for one in found] == [5 * 10**8, 5 * 10**8, 15 * 10**8, 2 * 10**9, 25 * 10**7]


def test_what_is_in_flight_is_kept_as_other_versions_of_the_functions_keep_it(lab: RemoteLab) -> None:
    """They count what all fields have, and take a field for dead that is no worker's."""
    limited = key(max_parallel=3)
    place = "flowstack:{k}::p"
    held = [reserve(lab.limiters[number], limited) for number in (0, 1)]
    assert lab.client.hgetall(place) == {b"worker-0": b"1", b"worker-1": b"1"}
    lab.add()
    lab.client.hincrby(place, "worker-2", 1)  # as a worker does that has another version
    with pytest.raises(ConcurrencyExceeded):
        reserve(lab.limiters[0], limited)
    lab.client.hdel(place, "worker-2")
    held.append(reserve(lab.limiters[0], limited))
    for owner, one in zip((0, 1, 0), held, strict=True):
        lab.client.hincrby(place, "worker-2", 1)
        lab.limiters[owner].settle(one, row())
        lab.links[owner].come_back()
    assert standing(lab, limited) == {"max_parallel": 3}
    assert lab.client.hgetall(place) == {b"worker-2": b"3"}


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
    assert found["k", "tpm"] == 0, "that was over a minute ago"
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


def test_what_was_used_of_the_share_within_a_minute_counts_for_all_when_redis_is_back(
    redis_client: redis.Redis,
) -> None:
    lab = RemoteLab(redis_client, share=0.5)
    limited = member("k", group(rpm=100), rpm=10, tpm=1000)
    lab.links[0].up = False
    for _ in range(2):
        lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=100, cost=0.0), used(50, 0.0))
        lab.go_on(31)
    lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=100, cost=0.0), used(70, 0.0))
    lab.links[0].come_back()
    found = {(each.name, each.limit): each.used for each in lab.limiters[1].standings(limited)}
    assert found == {("k", "rpm"): 2, ("k", "tpm"): 120, ("@g", "rpm"): 2}


def test_what_waits_for_redis_does_not_grow_with_the_requests(redis_client: redis.Redis) -> None:
    lab = RemoteLab(redis_client, share=1.0)
    some = [member(f"k{number}", group(budget=usd("900")), budget=usd("90"), tpm=10**6) for number in range(40)]
    lab.links[0].up = False
    for _ in range(20):
        for limited in some:
            lab.limiters[0].settle(reserve(lab.limiters[0], limited, tokens=1, cost=0.01), used(1, 0.01))
    waiting = lab.links[0].waiting
    assert 2 <= len(waiting) <= 4
    assert all(len(give.entries) <= AT_ONCE for give in waiting)  # type: ignore[attr-defined]
    lab.links[0].come_back()
    for limited in some[0], some[-1]:
        found = {(each.name, each.limit): each.used for each in lab.limiters[1].standings(limited)}
        assert found == {(limited.id, "tpm"): 20, (limited.id, "budget"): 2 * 10**8, ("@g", "budget"): 8 * 10**9}
    lab.links[0].up = False
    lab.limiters[0].settle(reserve(lab.limiters[0], some[0], tokens=1, cost=0.01), used(1, 0.01))
    lab.links[0].come_back()
    assert standing(lab, some[0], 1) == {"tpm": 21, "budget": 8_010_000_000}, "of the group, which comes last"


def test_what_is_charged_before_redis_ever_answered_is_of_this_period(lab: RemoteLab) -> None:
    shared = Shared(redis="redis://127.0.0.1:1/0")
    link = Link(shared, None, b"w", lab.wall, lambda: 5000.0, lambda *_: 0.0)
    assert link.clock() == lab.wall()


def test_money_that_is_asked_for_in_one_period_and_taken_in_the_next_stays_with_the_first(lab: RemoteLab) -> None:
    limited, link = key(budget=usd("10", "day")), lab.links[0]
    midnight = (lab.wall.now // 86400 + 1) * 86400
    lab.wall.now = midnight - 0.01
    ask = link.ask

    def slowly(*asked: Any) -> None:
        lab.wall.now = midnight + 0.01
        ask(*asked)

    link.ask = slowly  # type: ignore[method-assign]
    taken = reserve(lab.limiters[0], limited, tokens=1, cost=4.0)
    link.ask = ask  # type: ignore[method-assign]
    lab.limiters[0].settle(taken, used(1, 1.0))
    link.come_back()
    assert standing(lab, limited) == {"budget": 0}
    reserve(lab.limiters[0], limited, tokens=1, cost=9.0)
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[0], limited, tokens=1, cost=2.0)


HUGE = [used(10**30, 1e300), used(10**17, 1e9), row(status=200, usage_source="none")]


@pytest.mark.parametrize("ending", HUGE, ids=("absurd", "large", "none"))
def test_no_figure_of_an_upstream_is_too_large_for_redis(lab: RemoteLab, ending: Any) -> None:
    limited = member("k", group(tpm=10**14, budget=usd("4000000000")), tpm=10**14, budget=usd("4000000000"))
    held = [reserve(lab.limiters[0], limited, tokens=1, cost=1e8) for _ in range(30)]
    for one in held:
        lab.limiters[0].settle(one, ending)
    lab.links[0].come_back()
    for number in (0, 1):
        found = standing(lab, limited, number)
        assert 0 < found["budget"] <= 2**62 and 0 < found["tpm"] <= 2**62
    assert lab.client.exists(b"flowstack:{k}::t")


def test_what_ended_workers_added_to_a_budget_is_not_kept_for_each_of_them(lab: RemoteLab) -> None:
    limited = key(budget=usd("100", "total"))
    for _ in range(5):
        limiter = lab.add()
        reserve(limiter, limited, tokens=1, cost=1.0)
        lab.links[-1].call("alive", (), (b"0", b"0"))
        lab.links.pop()
        lab.limiters.pop()
        lab.links.append(lab.links[0])
    (name,) = [one for one in lab.client.scan_iter() if b":m:" in one]
    assert len(lab.client.hkeys(name)) <= 3
    assert standing(lab, limited) == {"budget": 5 * 10**9}


def test_to_know_of_many_budgets_takes_no_time_that_grows_with_their_number(lab: RemoteLab) -> None:
    limiter = lab.limiters[0].one
    looks = 0

    class Ends(int):
        def __gt__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return True

    for number in range(20_000):
        limiter.spent(b"%d" % number, Ends(1))
    assert looks < 60_000
def test_what_comes_after_the_end_of_its_budget_s_period_finds_what_was_spent_in_it(redis_client: redis.Redis) -> None:
    name, text = library()
    redis_client.execute_command("FUNCTION", "LOAD", "REPLACE", text)
    ended = redis_client.time()[0] * 1000 - 1
    redis_client.fcall(f"{name}_alive", 0, "w", 1, 1_000_000, 1)
    budget = ("flowstack:{k}::m:1", "w", 1, 0, 700, -1, f"m01000:{ended}")
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


@given(st.sampled_from([*PROGRAMS]), moves, st.booleans())
def test_whatever_fails_no_limit_is_exceeded_and_in_the_end_each_charge_counts_once(
    redis_of: Any, program: str, moves: list[tuple[str, int, int, Any]], waits: bool
) -> None:
    with redis_of(program).emptied() as client:
        lab = RemoteLab(client, 3)
        for link in lab.links:
            link.waits = waits
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
        lab.go_on(0.005)
        assert not client.keys("flowstack:*:p")
        found = standing(lab, limited)
        assert found["max_parallel"] == 0
        assert found["budget"] == spent
