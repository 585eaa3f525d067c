"""A key's limits and its group's hold at once, and nothing is taken of the one where the other refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config.settings import Limits, Settings
from flowstack.errors import BudgetExceeded, FlowstackError, ModelNotAllowed
from flowstack.http.headers import pairs_of
from flowstack.keys import Group, Key
from flowstack.limits import shared as limiting
from flowstack.limits.look import Look
from flowstack.limits.restore import open_counters
from tests.redis_server import PROGRAMS

from .lab import REFUSED, Clock, Lab, group, key, member, reserve, row, usd, used
from .remote_lab import RemoteLab
from .test_races import Interrupted, known

BEFORE = "The group g, to which this Flowstack key belongs, "


@pytest.fixture(params=["fenced", "locked", *PROGRAMS])
def lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param in PROGRAMS:
        with request.getfixturevalue("redis_of")(request.param).emptied() as client:
            yield RemoteLab(client)
    else:
        monkeypatch.setattr(limiting, "FENCED", request.param == "fenced")
        yield Lab(2)


def held_of(lab: Lab, limited: Key) -> dict[str, Any]:
    """What counts of each limit of a key's own, whichever worker took it."""
    if isinstance(lab, RemoteLab):
        standings = {each.limit: each.used for each in lab.limiters[0].standings(limited) if each.name == limited.id}
        found = {limit: standings.get(limit) for limit in ("rpm", "tpm", "max_parallel", "budget")}
        return found | {"budget": found["budget"] if found["budget"] is None else found["budget"] / 1e9}
    plan = lab.limiters[0].plan(limited, "openai")
    assert plan is not None
    look = Look(lab.counters, lab.wall, lab.monotonic)
    cells = lab.counters.cells
    return {
        "rpm": plan.rpm and look.counts(plan.rpm.columns),
        "tpm": plan.tpm and look.counts(plan.tpm.columns),
        "max_parallel": plan.parallel and sum(cells[at] for at in plan.parallel.columns),
        "budget": plan.money and look.spent(plan.money.columns, look.period(plan).label) / 1e9,
    }


OWN: dict[str, Any] = {"rpm": 100, "tpm": 10_000, "max_parallel": 50, "budget": usd("100")}
TAKEN = {"rpm": 1, "tpm": 10, "max_parallel": 1, "budget": 1.0}


@pytest.mark.parametrize("own", [{}, OWN], ids=["without limits of its own", "with limits of its own"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
@pytest.mark.parametrize(
    ("limits", "error", "says"),
    [
        ({"rpm": 3}, "rate_limit_exceeded", "may begin 3 requests in any 60 seconds (rpm), and began 3. Try again in"),
        ({"tpm": 30}, "rate_limit_exceeded", "may use 30 tokens in any 60 seconds (tpm), and 30 are used or reserved."),
        ({"max_parallel": 3}, "concurrency_exceeded", "already has 3 requests in flight, its limit (max_parallel). "),
        ({"budget": usd("3")}, "budget_exceeded", "may spend 3.00 USD a month (budget), of which 3.00 USD are used or "
         "reserved. This request may cost up to 1.00 USD. It is renewed at 2026-06-01T00:00:00Z."),
        ({"rpm": 3, "tpm": 30, "max_parallel": 3, "budget": usd("3")}, "budget_exceeded", "may spend 3.00 USD"),
    ],
    ids=["rpm", "tpm", "max_parallel", "budget", "all"],
)  # fmt: skip
def test_the_keys_of_a_group_share_its_limits_whichever_workers_they_come_to(
    lab: Lab, limits: dict[str, Any], error: str, says: str, at_once: bool, own: dict[str, Any]
) -> None:
    shared = group(**limits)
    keys = [member(f"k{number}", shared, **own) for number in range(4)]
    for number in range(3):
        reserve(lab.limiters[number % 2], keys[number], tokens=10, cost=1.0, at_once=at_once)
    for limiter in lab.limiters:
        for _ in range(3):
            with pytest.raises(FlowstackError) as refused:
                reserve(limiter, keys[3], tokens=10, cost=1.0)
            assert refused.value.code == f"flowstack_{error}"
            assert refused.value.message.startswith(BEFORE + says)
    if own:
        assert held_of(lab, keys[0]) == TAKEN
        # An admission of the key is none where the group refused it.
        assert held_of(lab, keys[3]) == {"rpm": 0, "tpm": 0, "max_parallel": 0, "budget": 0.0}


def test_a_key_s_own_limit_refuses_in_its_own_name_and_takes_nothing_of_its_group_s(lab: Lab) -> None:
    shared = group(**OWN)
    small = member("k1", shared, rpm=1)
    reserve(lab.limiters[0], small, tokens=10, cost=1.0)
    for limiter in lab.limiters:
        with pytest.raises(FlowstackError, match=r"^The Flowstack key k1 may begin 1 requests in any 60 seconds"):
            reserve(limiter, small, tokens=10, cost=1.0)
    assert held_of(lab, key("@g", **OWN)) == TAKEN
    reserve(lab.limiters[1], member("k2", shared), tokens=10, cost=1.0)


def test_what_a_group_refuses_at_the_claim_is_settled_as_a_refusal_and_costs_its_key_nothing(lab: Lab) -> None:
    limited = member("k1", group(tpm=100, budget=usd("1")), **OWN)
    for tokens, cost in ((101, 0.5), (10, 1.5)):
        taken = reserve(lab.limiters[0], limited)
        with pytest.raises(FlowstackError, match="The group g, to which"):
            taken.claim(tokens, cost)
        lab.limiters[0].settle(taken, REFUSED)
    assert held_of(lab, limited) == {"rpm": 2, "tpm": 0, "max_parallel": 0, "budget": 0.0}
    assert held_of(lab, key("@g", tpm=100, budget=usd("1"))) == {
        "rpm": None, "tpm": 0, "max_parallel": None, "budget": 0.0,
    }  # fmt: skip


def test_a_settlement_is_the_key_s_and_its_group_s(lab: Lab) -> None:
    shared, limiter = group(**OWN), lab.limiters[0]
    limited = member("k1", shared, **OWN)
    limiter.settle(reserve(limiter, limited, tokens=50, cost=5.0), used(20, 2.0))
    limiter.settle(reserve(limiter, limited, tokens=50, cost=5.0, at_once=False), used(70, 7.0))
    limiter.settle(reserve(limiter, limited), used(5, 0.5))  # that nobody expected
    limiter.settle(reserve(limiter, limited), row(), 3, 0.25)  # attempted, and never claimed
    both = {"rpm": 4, "tpm": 98, "max_parallel": 0, "budget": 9.75}
    assert held_of(lab, limited) == both
    assert held_of(lab, key("@g", **OWN)) == both


def test_work_that_ends_later_is_settled_with_the_key_and_its_group(lab: Lab) -> None:
    limited = member("k1", group(**OWN), budget=usd("50", "total"), tpm=1000)
    taken = reserve(lab.limiters[0], limited, tokens=10, cost=2.0)
    kept = json.loads(json.dumps(taken.kept()))
    lab.limiters[0].settle(taken, row())
    lab.limiters[1].settle_later(kept, used(30, 7.0))
    assert held_of(lab, limited) == {"rpm": None, "tpm": 30, "max_parallel": None, "budget": 7.0}
    assert held_of(lab, key("@g", **OWN)) == {"rpm": 1, "tpm": 30, "max_parallel": 0, "budget": 7.0}


def test_what_declares_no_most_takes_all_that_it_may_cost_of_the_key_s_budget_and_the_group_s(lab: Lab) -> None:
    limited, limiter = member("k1", group(budget=usd("10"))), lab.limiters[0]
    rich = evolve(limited, budget=usd("3"))
    plan = limiter.plan(rich, "openai")
    taken = limiter.reserve(plan, 10, 50.0, 0.5)  # beyond both budgets
    assert held_of(lab, rich)["budget"] == held_of(lab, key("@g", budget=usd("10")))["budget"] == 50.0
    for other in (plan, limiter.plan(evolve(limited, id="k2"), "openai")):
        with pytest.raises(BudgetExceeded):
            limiter.reserve(other, 10, 50.0, 0.5)
    kept = taken.kept()
    limiter.settle(taken, row())
    assert kept is not None
    limiter.settle_later(kept, used(10, 1.5))
    assert held_of(lab, rich)["budget"] == 1.5
    assert held_of(lab, key("@g", budget=usd("10")))["budget"] == 1.5


def test_a_group_s_budget_refuses_a_model_without_a_price(lab: Lab) -> None:
    limited = member("k1", group(budget=usd("9")), rpm=5)
    plan = lab.limiters[0].plan(limited, "openai")
    assert plan is not None
    assert (plan.metered, plan.priced) == (True, True)
    with pytest.raises(ModelNotAllowed, match="The group g, to which this Flowstack key belongs, has a budget"):
        reserve(lab.limiters[0], limited, tokens=10)
    assert held_of(lab, limited)["rpm"] == 0


def test_a_key_without_a_group_that_limits_it_has_no_plan_and_no_counters() -> None:
    lab = Lab()
    assert lab.limiters[0].plan(key("k", group="g"), "openai") is None
    assert lab.limiters[0].fields(key("k", group="g"), "openai") == ()
    assert lab.counters.count == 0


@pytest.mark.parametrize(
    ("own", "shared", "told"),
    [
        ({"rpm": 5}, {"rpm": 10}, (b"5", b"4")),
        ({"rpm": 10}, {"rpm": 5}, (b"5", b"3")),
        ({}, {"rpm": 5}, (b"5", b"3")),
        ({"rpm": 5}, {"tpm": 10**6}, (b"5", b"4")),
        ({"rpm": 5}, {"rpm": 6}, (b"5", b"4")),  # as much of both: the key's
        ({"rpm": 5}, {"max_parallel": 9}, (b"5", b"4")),
    ],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
def test_the_fields_are_those_of_the_limit_of_which_less_remains(
    lab: Lab, own: dict[str, Any], shared: dict[str, Any], told: tuple[bytes, bytes], at_once: bool
) -> None:
    common = group(**shared)
    reserve(lab.limiters[1], member("other", common))
    limited = member("k", common, **own)
    taken = reserve(lab.limiters[0], limited, tokens=7, cost=1.0, at_once=at_once)
    fields = dict(pairs_of(taken.lines))
    assert fields[b"Flowstack-RateLimit-Limit-Requests"] == told[0]
    assert fields[b"Flowstack-RateLimit-Remaining-Requests"] == told[1]
    assert fields[b"Flowstack-RateLimit-Reset-Requests"] == b"1m2s"
    assert (b"Flowstack-RateLimit-Limit-Tokens" in fields) == ("tpm" in shared)
    # What takes nothing does not ask Redis, and so is told nothing.
    assert dict(lab.limiters[1].fields(limited, "openai")) == ({} if isinstance(lab, RemoteLab) else fields)


@pytest.mark.parametrize(
    ("own", "shared", "told"),
    [
        ({"tpm": 50}, {"tpm": 100}, (b"50", b"43", b"1m2s")),
        ({"tpm": 1000}, {"tpm": 100}, (b"100", b"43", b"1m2s")),
        ({}, {"tpm": 100}, (b"100", b"43", b"1m2s")),
    ],
)
def test_of_tokens_too(lab: Lab, own: dict[str, Any], shared: dict[str, Any], told: tuple[bytes, ...]) -> None:
    common = group(**shared)
    reserve(lab.limiters[1], member("other", common), tokens=50)
    limited = member("k", common, **own)
    fields = dict(pairs_of(reserve(lab.limiters[0], limited, tokens=7).lines))
    names = [b"Flowstack-RateLimit-%b-Tokens" % figure for figure in (b"Limit", b"Remaining", b"Reset")]
    assert tuple(fields[name] for name in names) == told
    # What takes nothing does not ask Redis, and so is told nothing.
    assert dict(lab.limiters[1].fields(limited, "openai")) == ({} if isinstance(lab, RemoteLab) else fields)


def test_a_refusal_by_the_group_carries_the_figures_of_both_and_when_to_come_back(lab: Lab) -> None:
    shared = group(rpm=2)
    for name in ("a", "b"):
        reserve(lab.limiters[0], member(name, shared))
    limited = member("c", shared, rpm=600, tpm=1000)
    with pytest.raises(FlowstackError) as refused:
        reserve(lab.limiters[1], limited)
    fields = dict(refused.value.headers)
    assert fields[b"Flowstack-RateLimit-Limit-Requests"] == fields[b"x-ratelimit-limit-requests"] == b"2"
    assert fields[b"Flowstack-RateLimit-Remaining-Requests"] == b"0"
    assert fields[b"Flowstack-RateLimit-Limit-Tokens"] == b"1000"
    lab.go_on(int(fields[b"retry-after-ms"]) / 1000)
    reserve(lab.limiters[1], limited)


def test_a_reload_that_changes_a_group_holds_from_the_next_request_on_what_was_counted(lab: Lab) -> None:
    shared = group(rpm=2)
    one = member("a", shared)
    for _ in range(2):
        reserve(lab.limiters[0], one)
    with pytest.raises(FlowstackError):
        reserve(lab.limiters[1], one)
    more = member("a", evolve(shared, rpm=3))
    reserve(lab.limiters[1], more)
    with pytest.raises(FlowstackError):
        reserve(lab.limiters[0], more)
    reserve(lab.limiters[0], member("a", group("another", rpm=2)))  # moved: it shares with others now
    with pytest.raises(FlowstackError):
        reserve(lab.limiters[0], member("b", evolve(shared, rpm=3)))
    reserve(lab.limiters[0], key("a", rpm=10))  # left


def test_a_key_and_a_group_of_the_same_name_do_not_count_towards_each_other(lab: Lab) -> None:
    shared = group("same", rpm=1)
    reserve(lab.limiters[0], key("same", rpm=1))
    reserve(lab.limiters[0], member("k", shared))
    for limited in (key("same", rpm=1), member("k", shared)):
        with pytest.raises(FlowstackError):
            reserve(lab.limiters[1], limited)


def test_a_group_s_limits_count_requests_to_all_upstreams_and_stand_beside_theirs() -> None:
    lab = Lab(2, Settings(limits=Limits(rpm=5, max_parallel=1)))
    shared = group(rpm=2)
    reserve(lab.limiters[0], member("a", shared), "openai")
    with pytest.raises(FlowstackError, match="The Flowstack key a already has 1 requests in flight"):
        reserve(lab.limiters[0], member("a", shared), "openai")
    reserve(lab.limiters[0], member("b", shared), "another")
    with pytest.raises(FlowstackError, match="The group g, to which this Flowstack key belongs, may begin 2"):
        reserve(lab.limiters[1], member("c", shared), "openai")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_a_group_spent_outlives_a_restart_and_its_windows_that_of_the_service(
    tmp_path: Path, workers: int
) -> None:
    shared = group(budget=usd("5"), rpm=3, max_parallel=3)
    wall, monotonic = Clock(1_780_000_000.0), Clock(5000.0)
    before = Lab(counters=open_counters(tmp_path / "limits", 2, wall, monotonic, 7))
    for number in range(3):
        reserve(before.limiters[number % 2], member(f"k{number}", shared), tokens=1, cost=1.5)
    (tmp_path / "limits" / "lock").unlink()
    after = Lab(counters=open_counters(tmp_path / "limits", workers, wall, monotonic, 7))
    assert held_of(after, key("@g", budget=usd("5"), rpm=3, max_parallel=3)) == {
        "rpm": 3 if workers == 2 else 0, "tpm": None, "max_parallel": 0, "budget": 4.5,
    }  # fmt: skip
    after.go_on(62)
    with pytest.raises(FlowstackError, match=r"5.00 USD a month \(budget\), of which 4.50 USD are used or reserved"):
        reserve(after.limiters[-1], member("k9", shared), tokens=1, cost=1.5)


@pytest.mark.parametrize(
    "limits",
    [{"rpm": 2}, {"max_parallel": 2}, {"tpm": 20}, {"budget": usd("2", "total")},
     {"rpm": 2, "max_parallel": 2, "tpm": 20, "budget": usd("2")}],
    ids=["rpm", "max_parallel", "tpm", "budget", "all"],
)  # fmt: skip
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
def test_of_two_keys_that_want_a_group_s_last_at_once_one_gets_it_whenever_the_other_comes(
    limits: dict[str, Any], at_once: bool
) -> None:
    shared = group(**limits)

    def wants(limiter: limiting.SharedLimiter, name: str) -> bool:
        try:
            reserve(limiter, member(name, shared, **OWN), tokens=10, cost=1.0, at_once=at_once)
        except FlowstackError:
            return False
        return True

    def interrupted_at(number: int) -> bool:
        lab = Lab(2)
        first, second = lab.limiters
        assert wants(first, "a")
        for limiter in lab.limiters:  # so that both have a place to count in: no slot is made meanwhile
            for name in ("b", "c"):
                limiter.plan(member(name, shared, **OWN), "openai")
        others: list[bool] = []
        cells = first.counters.cells
        first.counters.cells = interrupted = Interrupted(  # type: ignore[assignment]
            cells, number, lambda: others.append(wants(second, "b"))
        )
        got = wants(first, "c")
        first.counters.cells = cells
        if interrupted.happened:
            assert [got, *others].count(True) == 1, number
            assert not wants(first, "c") and not wants(second, "b")
        return interrupted.happened

    number = 1
    while interrupted_at(number):
        number += 1
    assert number > 2


moves = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "wait"]), st.integers(0, 2), st.integers(0, 1),
        st.integers(0, 300),
        st.sampled_from([row(), row(status=500), used(0, 0.0), used(50, 0.5), used(100, 1.0), REFUSED]),
    ),
    max_size=60,
)  # fmt: skip


@given(moves)
def test_whatever_the_keys_of_a_group_do_neither_their_limits_nor_its_own_are_exceeded(
    moves: list[tuple[str, int, int, int, Any]],
) -> None:
    lab = Lab(3)
    shared = group(rpm=10, tpm=900, max_parallel=4, budget=usd("15", "total"))
    keys = [
        member("a", shared, rpm=7, max_parallel=3, budget=usd("9", "total")),
        member("b", shared, tpm=600, max_parallel=3),
    ]
    held: list[tuple[int, int, Any, int]] = []
    admitted: list[list[float]] = []  # when, which key, tokens
    spent = [0.0, 0.0]
    beyond = 0.0
    for what, worker, who, amount, ending in moves:
        if what == "wait":
            lab.go_on(amount / 10)
        elif what == "settle" and held:
            owner, of, taken, entry = held.pop(amount % len(held))
            lab.limiters[owner].settle(taken, ending)
            estimate = int(admitted[entry][2])
            now = limiting.charged_tokens(ending, estimate)
            cost = limiting.charged_nanos(ending, estimate * 10**7) / 1e9
            spent[of] += cost - estimate / 100
            beyond += max(cost - estimate / 100, 0.0)
            admitted[entry][2] = min(now, estimate)
        elif what == "reserve":
            try:
                taken = reserve(lab.limiters[worker], keys[who], tokens=amount, cost=amount / 100)
            except FlowstackError:
                continue
            admitted.append([lab.monotonic.now, who, amount])
            held.append((worker, who, taken, len(admitted) - 1))
            spent[who] += amount / 100
        assert all(known(limiter) for limiter in lab.limiters)
        assert len(held) <= 4
        assert all(sum(of == who for _, of, _, _ in held) <= 3 for who in (0, 1))
        assert sum(spent) <= 15 + beyond + 1e-6
        assert spent[0] <= 9 + beyond + 1e-6
        for begin, _, _ in admitted:
            window = [entry for entry in admitted if begin <= entry[0] <= begin + 60]
            assert len(window) <= 10
            assert sum(entry[1] == 0 for entry in window) <= 7
            assert sum(entry[2] for entry in window) <= 900
            assert sum(entry[2] for entry in window if entry[1] == 1) <= 600
    for owner, _, taken, _ in held:
        lab.limiters[owner].settle(taken, row())
    for limited in (*keys, key("@g", rpm=10, tpm=900, max_parallel=4, budget=usd("15", "total"))):
        assert not held_of(lab, limited)["max_parallel"]  # nothing is lost, and nothing given back twice


def test_the_same_group_is_one_plan_for_all_its_keys() -> None:
    limiter, shared = Lab(1).limiters[0], Group("g", rpm=5)
    first, second = limiter.plan(member("a", shared), "openai"), limiter.plan(member("b", shared), "another")
    assert first is not None and second is not None
    assert first.group is second.group is not None
