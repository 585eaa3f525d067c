from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from twisted.logger import LogEvent, globalLogPublisher

from flowstack.config.settings import Limits, Settings, Upstream
from flowstack.errors import (
    BudgetExceeded,
    ConcurrencyExceeded,
    FlowstackError,
    ModelNotAllowed,
    Overloaded,
    RateLimitExceeded,
)
from flowstack.http.headers import pairs_of
from flowstack.http.replies import error_reply
from flowstack.keys import Key
from flowstack.limits import shared
from flowstack.limits.look import Look
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import Reservation
from tests.redis_server import PROGRAMS

from .lab import NOON, REFUSED, Lab, key, reserve, row, usd, used
from .remote_lab import RemoteLab


@pytest.fixture(params=[1, 2, 3, *PROGRAMS])
def lab(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Workers on the counters of one machine, or machines on one Redis or Valkey: all of this is the same."""
    if request.param in PROGRAMS:
        with request.getfixturevalue("redis_of")(request.param).emptied() as client:
            yield RemoteLab(client)
    else:
        yield Lab(request.param)


@pytest.fixture(params=[1, 2, 3])
def local_lab(request: pytest.FixtureRequest) -> Lab:
    return Lab(request.param)


@pytest.fixture(params=[True, False], ids=["fenced", "locked"])
def lab_of_either_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(shared, "FENCED", request.param)
    return Lab(2)


def test_without_a_limit_nothing_is_reserved() -> None:
    assert Lab().limiters[0].plan(key(), "openai") is None
    assert Lab().limiters[0].plan(key(), "an upstream that is not in the settings") is not None
    assert Lab().counters.count == 0


def test_no_more_requests_are_admitted_than_rpm_says_whichever_workers_take_them(lab_of_either_kind: Lab) -> None:
    lab = lab_of_either_kind
    limited = key(rpm=5)
    for number in range(5):
        lab.limiters[number % 2].settle(reserve(lab.limiters[number % 2], limited), row())
        lab.go_on(1)
    for limiter in lab.limiters:
        with pytest.raises(RateLimitExceeded):
            reserve(limiter, limited)
    lab.go_on(60 - 5)
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[0], limited)
    lab.go_on(2)
    reserve(lab.limiters[0], limited)


def test_what_took_nothing_is_told_the_figures_too(local_lab: Lab) -> None:
    limited, limiter = key("k1", rpm=5, tpm=1000), local_lab.limiters[0]
    assert dict(limiter.fields(key("free"), "openai")) == {}
    before = dict(limiter.fields(limited, "openai"))
    assert before[b"Flowstack-RateLimit-Limit-Requests"] == b"5"
    assert before[b"Flowstack-RateLimit-Remaining-Requests"] == b"5"
    assert before[b"Flowstack-RateLimit-Remaining-Tokens"] == b"1000"
    reserve(limiter, limited)
    after = dict(local_lab.limiters[-1].fields(limited, "openai"))
    assert after[b"Flowstack-RateLimit-Remaining-Requests"] == b"4"
    assert after[b"Flowstack-RateLimit-Reset-Requests"] not in (b"0s", b"")
    assert dict(limiter.fields(limited, "openai")) == after, "asking takes nothing"


def test_a_refused_client_that_comes_back_when_it_was_told_is_admitted(lab: Lab) -> None:
    limited = key(rpm=3, tpm=1000)
    for _ in range(3):
        reserve(lab.limiters[0], limited)
        lab.go_on(1.7)
    with pytest.raises(RateLimitExceeded) as refused:
        reserve(lab.limiters[-1], limited)
    wait = int(dict(refused.value.headers)[b"retry-after-ms"]) / 1000
    lab.go_on(wait - 0.01)
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited)
    lab.go_on(0.01)
    reserve(lab.limiters[-1], limited)


def test_no_more_are_under_way_than_max_parallel_says_and_each_end_makes_room(lab_of_either_kind: Lab) -> None:
    lab = lab_of_either_kind
    limited = key(max_parallel=2)
    first, second = reserve(lab.limiters[0], limited), reserve(lab.limiters[1], limited)
    for limiter in lab.limiters:
        with pytest.raises(ConcurrencyExceeded):
            reserve(limiter, limited)
    lab.limiters[1].settle(second, row())
    third = reserve(lab.limiters[0], limited)
    lab.limiters[0].settle(first, row())
    lab.limiters[0].settle(third, row())
    assert reserve(lab.limiters[0], limited) and reserve(lab.limiters[0], limited)


def test_a_refusal_takes_nothing(lab: Lab) -> None:
    limited = key(rpm=10, max_parallel=1)
    held = reserve(lab.limiters[0], limited)
    for _ in range(30):
        with pytest.raises(ConcurrencyExceeded):
            reserve(lab.limiters[-1], limited)
    lab.limiters[0].settle(held, row())
    for _ in range(9):
        lab.limiters[-1].settle(reserve(lab.limiters[-1], limited), row())
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited)


def test_tokens_are_taken_by_estimate_and_settled_by_the_upstream_s_figure(lab: Lab) -> None:
    limited = key(tpm=1000)
    first = reserve(lab.limiters[0], limited)
    first.claim(900, None)
    second = reserve(lab.limiters[-1], limited)
    with pytest.raises(RateLimitExceeded) as refused:
        second.claim(200, None)
    assert "900 are used or reserved" in refused.value.message
    lab.limiters[-1].settle(second, REFUSED)
    lab.limiters[0].settle(first, used(100))
    third = reserve(lab.limiters[-1], limited)
    third.claim(900, None)
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[0], limited)  # all is reserved: not even the head is taken


@pytest.mark.parametrize(
    ("ending", "left"),
    [(row(), 0), (row(end="client_gone", status=None), 0), (row(status=500), 1000), (row(attempts=0), 1000),
     (used(0), 1000), (used(400), 600)],
)  # fmt: skip
def test_what_stays_charged_follows_from_the_row(lab: Lab, ending: Any, left: int) -> None:
    limited = key(tpm=1000)
    held = reserve(lab.limiters[0], limited)
    held.claim(1000, None)
    lab.go_on(7)
    lab.limiters[0].settle(held, ending)
    if left:
        reserve(lab.limiters[-1], limited, tokens=left)
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited)


def test_what_exceeds_the_estimate_counts_from_when_it_is_known(lab: Lab) -> None:
    limited = key(tpm=1000)
    held = reserve(lab.limiters[0], limited)
    held.claim(100, None)
    lab.go_on(600)
    lab.limiters[0].settle(held, used(1100))
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited)
    lab.go_on(62)
    reserve(lab.limiters[-1], limited, tokens=1000)


def test_usage_that_nobody_expected_is_charged_all_the_same(lab: Lab) -> None:
    limited = key(tpm=1000, budget=usd("1"))
    lab.limiters[0].settle(reserve(lab.limiters[0], limited), used(700, 0.9))
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited, tokens=301, cost=0.0)
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[-1], limited, tokens=1, cost=0.2)


def test_what_was_attempted_and_never_claimed_is_charged_as_its_row_says(lab: Lab) -> None:
    for number, (ending, left) in enumerate([
        (row(status=None, end="client_gone"), False),
        (row(status=502, end="upstream_lost", error_code="upstream_malformed"), False),
        (row(status=413, end="complete"), True),
        (row(status=None, end="client_gone", attempts=0), True),
        (row(status=403, end="refused", error_code="model_not_allowed"), True),
    ]):  # fmt: skip
        limited = key(f"k{number}", tpm=1000, budget=usd("1"))
        lab.limiters[0].settle(reserve(lab.limiters[0], limited), ending, 700, 0.9)
        for tokens, cost in ((301, 0.0), (1, 0.2)):
            if left:
                lab.limiters[-1].settle(reserve(lab.limiters[-1], limited, tokens=tokens, cost=cost), used(0, 0.0))
            else:
                with pytest.raises(FlowstackError):
                    reserve(lab.limiters[-1], limited, tokens=tokens, cost=cost)


def test_an_estimate_of_what_was_never_claimed_gives_way_to_the_upstreams_figures(lab: Lab) -> None:
    limited = key(tpm=1000, budget=usd("1"))
    lab.limiters[0].settle(reserve(lab.limiters[0], limited), used(10, 0.1), 900, 0.9)
    reserve(lab.limiters[-1], limited, tokens=990, cost=0.9)


def test_what_was_never_claimed_and_has_no_price_is_charged_its_tokens(lab: Lab) -> None:
    limited = key(tpm=1000, budget=usd("1"))
    lab.limiters[0].settle(reserve(lab.limiters[0], limited), row(status=None, end="client_gone"), 700, None)
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[-1], limited, tokens=301, cost=0.0)
    reserve(lab.limiters[-1], limited, tokens=300, cost=1.0)


def test_a_request_larger_than_the_limit_is_told_that_waiting_does_not_help(lab: Lab) -> None:
    with pytest.raises(RateLimitExceeded) as refused:
        reserve(lab.limiters[0], key(tpm=1000), tokens=1001)
    assert "waiting does not help" in refused.value.message
    assert dict(error_reply(refused.value).pairs)[b"x-should-retry"] == b"false"


def test_money_is_taken_by_estimate_and_settled_by_the_cost(lab: Lab) -> None:
    limited = key(budget=usd("1.00"))
    first = reserve(lab.limiters[0], limited)
    first.claim(10, 0.75)
    second = reserve(lab.limiters[-1], limited)
    with pytest.raises(BudgetExceeded) as refused:
        second.claim(10, 0.5)
    assert "0.75 USD are used or reserved" in refused.value.message
    lab.limiters[-1].settle(second, REFUSED)
    lab.limiters[0].settle(first, used(10, 0.25))
    third = reserve(lab.limiters[-1], limited)
    third.claim(10, 0.75)
    lab.limiters[-1].settle(third, row(end="client_gone"))
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[0], limited)


@pytest.mark.parametrize("status", [429, 402, 403, 422])
def test_a_budget_refuses_with_the_status_that_was_chosen_and_no_other_limit_does(status: int) -> None:
    lab = Lab(1, Settings(limits=Limits(rpm=1, budget_status=status)))
    with pytest.raises(BudgetExceeded, match="1 USD") as refused:
        reserve(lab.limiters[0], key(budget=usd("1.00", "day")), tokens=1, cost=1.01)
    assert error_reply(refused.value).status == status
    reserve(lab.limiters[0], key("k2"))
    with pytest.raises(RateLimitExceeded) as refused_by_rpm:
        reserve(lab.limiters[0], key("k2"))
    assert error_reply(refused_by_rpm.value).status == 429


def test_a_budget_of_a_month_is_renewed_with_the_month_and_never_pays_back_into_the_next(lab: Lab) -> None:
    limited = key(budget=usd("1.00"))
    held = reserve(lab.limiters[0], limited)
    held.claim(10, 1.0)
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[-1], limited)
    lab.go_on(5 * 86_400)  # into June
    other = reserve(lab.limiters[-1], limited)
    other.claim(10, 0.5)
    again = reserve(lab.limiters[0], limited)
    again.claim(10, 0.25)
    lab.limiters[0].settle(held, used(10, 0.0))  # of May
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[0], limited, tokens=1, cost=0.26)
    reserve(lab.limiters[0], limited, tokens=1, cost=0.25)


@pytest.mark.parametrize("step", [-400 * 86_400.0, -86_400.0, -3600.0])
@pytest.mark.parametrize("kind", ["day", "month", "total"])
def test_a_wall_clock_that_steps_back_opens_no_budget(local_lab: Lab, kind: str, step: float) -> None:
    limited = key(budget=usd("1.00", kind))
    held = reserve(local_lab.limiters[0], limited)
    held.claim(10, 1.0)
    local_lab.limiters[0].settle(held, used(10, 1.0))
    local_lab.wall.now += step
    for limiter in local_lab.limiters:
        with pytest.raises(BudgetExceeded):
            reserve(limiter, limited)
    local_lab.wall.now = NOON
    with pytest.raises(BudgetExceeded):
        reserve(local_lab.limiters[-1], limited)


@pytest.mark.parametrize("step", [-1e9, -90.0, 90.0, 1e9])
def test_a_wall_clock_that_steps_neither_locks_rpm_and_tpm_nor_opens_them(local_lab: Lab, step: float) -> None:
    limited = key(rpm=1, tpm=10)
    reserve(local_lab.limiters[0], limited, tokens=10)
    local_lab.wall.now += step
    with pytest.raises(RateLimitExceeded):
        reserve(local_lab.limiters[-1], limited)
    local_lab.monotonic.now += 62
    reserve(local_lab.limiters[-1], limited, tokens=10)


def test_a_model_without_a_price_is_refused_to_a_key_with_a_budget() -> None:
    limiter = Lab().limiters[0]
    with pytest.raises(ModelNotAllowed, match="no price"):
        reserve(limiter, key(budget=usd("1")), tokens=5)
    reserve(limiter, key(tpm=10), tokens=5)
    reserve(limiter, key(budget=usd("1")), tokens=0)


def test_what_is_taken_at_once_has_the_same_fields_as_what_is_taken_one_after_the_other(lab: Lab) -> None:
    for limits in ({"rpm": 9}, {"tpm": 900}, {"rpm": 9, "tpm": 900}, {"max_parallel": 2}):
        one, other = (
            reserve(lab.limiters[0], key(f"{name} {limits}", **limits), tokens=100, at_once=at_once)
            for name, at_once in (("one", True), ("other", False))
        )
        assert one.lines == other.lines
        assert (b"Tokens: 800\r\n" in one.lines) == ("tpm" in limits)


def test_what_is_refused_for_its_tokens_or_cost_at_once_took_nothing(lab: Lab) -> None:
    limited, limiter = key(rpm=2, tpm=100, max_parallel=1, budget=usd("1", "total")), lab.limiters[0]
    for _ in range(3):
        with pytest.raises(RateLimitExceeded):
            reserve(limiter, limited, tokens=101, cost=0.1)
        with pytest.raises(BudgetExceeded):
            reserve(limiter, limited, tokens=1, cost=1.1)
    for _ in range(2):
        limiter.settle(reserve(lab.limiters[0], limited, tokens=50, cost=0.5), row())
    with pytest.raises(FlowstackError):
        reserve(lab.limiters[-1], limited, tokens=1, cost=0.1)


def test_what_never_fits_is_refused_without_a_trace_that_others_could_take_for_use(local_lab: Lab) -> None:
    limiter, limited = local_lab.limiters[0], key(rpm=5, tpm=100, max_parallel=2, budget=usd("1", "total"))
    limiter.settle(reserve(limiter, limited, tokens=50, cost=0.1), used(50, 0.1))
    cells = limiter.counters.cells
    limiter.counters.cells = memoryview(bytes(cells)).cast("q")  # which cannot be written
    with pytest.raises(RateLimitExceeded, match="waiting does not help"):
        reserve(limiter, limited, tokens=101, cost=0.1)
    with pytest.raises(BudgetExceeded):
        reserve(limiter, limited, tokens=10, cost=1.1)
    limiter.counters.cells = cells
    reserve(limiter, limited, tokens=50, cost=0.9)


def test_a_clock_that_was_ahead_while_nothing_was_claimed_renews_no_budget(lab: Lab) -> None:
    limiter, limited = lab.limiters[0], key(budget=usd("1", "month"))
    limiter.settle(reserve(limiter, limited, tokens=1, cost=0.9), used(1, 0.9))
    lab.wall.now += 400 * 86_400
    limiter.settle(reserve(limiter, limited), row())
    lab.wall.now -= 400 * 86_400
    with pytest.raises(BudgetExceeded):
        reserve(lab.limiters[-1], limited, tokens=1, cost=0.9)


def test_the_fields_name_limit_remaining_and_reset_for_what_is_limited(lab: Lab) -> None:
    limited = key(rpm=10, tpm=1000)
    reserve(lab.limiters[0], limited, tokens=100)
    lab.go_on(0.5)
    held = reserve(lab.limiters[-1], limited)
    before = dict(pairs_of(held.lines))
    held.claim(50, None)
    assert dict(pairs_of(held.lines)) == {
        b"Flowstack-RateLimit-Limit-Requests": b"10",
        b"Flowstack-RateLimit-Remaining-Requests": b"8",
        b"Flowstack-RateLimit-Reset-Requests": b"1m2s",
        b"Flowstack-RateLimit-Limit-Tokens": b"1000",
        b"Flowstack-RateLimit-Remaining-Tokens": b"850",
        b"Flowstack-RateLimit-Reset-Tokens": b"1m2s",
    }
    assert before[b"Flowstack-RateLimit-Remaining-Tokens"] == b"900"
    lab.go_on(30)
    later = dict(pairs_of(reserve(lab.limiters[0], limited).lines))
    assert later[b"Flowstack-RateLimit-Reset-Tokens"] == b"32s"
    assert later[b"Flowstack-RateLimit-Reset-Requests"] == b"1m2s"
    fresh = dict(pairs_of(reserve(lab.limiters[0], key("other", tpm=5)).lines))
    assert fresh == {
        b"Flowstack-RateLimit-Limit-Tokens": b"5",
        b"Flowstack-RateLimit-Remaining-Tokens": b"5",
        b"Flowstack-RateLimit-Reset-Tokens": b"0s",
    }
    assert len(pairs_of(reserve(lab.limiters[0], key("third", rpm=5)).lines)) == 3
    assert reserve(lab.limiters[0], key("fourth", max_parallel=5)).lines == b""


def test_a_refusal_at_the_head_carries_both_families_of_fields_and_one_at_the_claim_openai_s_alone(lab: Lab) -> None:
    limited = key(rpm=1, tpm=10)
    held = reserve(lab.limiters[0], limited)
    with pytest.raises(RateLimitExceeded) as at_claim:
        held.claim(11, None)
    with pytest.raises(RateLimitExceeded) as at_head:
        reserve(lab.limiters[0], limited)

    def families(error: FlowstackError) -> set[bytes]:
        return {name.rpartition(b"-")[0] for name, _ in error.headers if b"imit-" in name}

    assert families(at_claim.value) == {b"x-ratelimit-" + figure for figure in (b"limit", b"remaining", b"reset")}
    assert families(at_head.value) == families(at_claim.value) | {
        b"Flowstack-RateLimit-" + figure for figure in (b"Limit", b"Remaining", b"Reset")
    }
    assert dict(at_head.value.headers)[b"x-ratelimit-remaining-requests"] == b"0"
    names = [name for name, _ in error_reply(at_claim.value, pairs_of(held.lines)).pairs]
    assert len(names) == len(set(names))


def test_an_upstream_s_limit_counts_its_own_requests_and_a_key_s_own_counts_all() -> None:
    configured = Settings(
        upstreams=(Upstream(), Upstream(name="azure", default=False, limits=Limits(rpm=1))), limits=Limits(tpm=100)
    )
    lab = Lab(2, configured)
    first, second = lab.limiters
    reserve(first, key(), "azure")
    with pytest.raises(RateLimitExceeded, match="1 requests to azure"):
        reserve(second, key(), "azure")
    reserve(second, key(), "openai", tokens=100)
    with pytest.raises(RateLimitExceeded, match="tokens"):
        reserve(second, key("k2", rpm=5, tpm=100), "azure", tokens=101)
    with pytest.raises(RateLimitExceeded, match="100 tokens in"):
        reserve(first, evolve(key(), rpm=9), "azure")
    own = key("k3", rpm=2)
    reserve(first, own, "azure"), reserve(second, own)
    with pytest.raises(RateLimitExceeded, match="2 requests in"):
        reserve(first, own)


def test_a_reload_that_changes_a_limit_holds_from_the_next_request_on_what_was_counted(lab: Lab) -> None:
    limiter = lab.limiters[0]
    held = reserve(limiter, key(rpm=9, max_parallel=1))
    with pytest.raises(ConcurrencyExceeded):
        reserve(limiter, key(rpm=9, max_parallel=1))
    reserve(limiter, key(rpm=9, max_parallel=2))
    with pytest.raises(RateLimitExceeded):
        reserve(limiter, key(rpm=2, max_parallel=3))
    assert limiter.plan(key(), "openai") is None
    limiter.settle(held, row())
    reserve(limiter, key(max_parallel=2))
    with pytest.raises(ConcurrencyExceeded):
        reserve(limiter, key(max_parallel=2))


def test_keys_do_not_count_towards_each_other_s_limits(lab: Lab) -> None:
    for number in range(2000):  # the table grows on the way
        reserve(lab.limiters[number % len(lab.limiters)], key(f"k{number}", rpm=1, max_parallel=1))
    for number in range(200):
        with pytest.raises(FlowstackError):
            reserve(lab.limiters[0], key(f"k{number}", rpm=1, max_parallel=1))


def test_limits_as_large_as_a_key_may_have_them_count_right(lab: Lab) -> None:
    most = 10**15 - 1
    limited = key(rpm=most, tpm=most, max_parallel=most, budget=usd("999999999999.999999", "total"))
    for _ in range(3):
        held = reserve(lab.limiters[0], limited)
        held.claim(10**30, 1e30)
        assert held.lines
        lab.limiters[0].settle(held, used(2, 1e30))
    with pytest.raises(BudgetExceeded):  # 4.6 thousand million dollars are the most that is counted
        for _ in range(20):
            reserve(lab.limiters[-1], limited, tokens=2, cost=1e9)


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def test_a_settlement_that_fails_is_logged_and_raises_nothing(logged: list[LogEvent]) -> None:
    limiter = Lab().limiters[0]
    held = reserve(limiter, key(tpm=10))
    held.claim(5, None)
    limiter.settle(held, {})  # type: ignore[typeddict-item]
    assert any("could not be settled" in str(event.get("log_format")) for event in logged)


def test_a_key_whose_counters_find_no_space_is_refused_and_the_log_says_why_once(
    monkeypatch: pytest.MonkeyPatch, logged: list[LogEvent]
) -> None:
    limiter = Lab().limiters[0]

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Overloaded, match="no space"):
        for number in range(1_000_000):  # some have room in what is reserved already
            reserve(limiter, key(f"k{number}", rpm=1))
    for _ in range(50):
        with pytest.raises(Overloaded, match="no space"):
            reserve(limiter, key("late", rpm=1))
    assert len([event for event in logged if "are refused" in str(event.get("log_format"))]) == 1
    monkeypatch.undo()
    reserve(limiter, key("late", rpm=1))


# What is left, what is known late, and what the operator takes off.


def spent_of(lab: Lab, limited: Key) -> float:
    plan = lab.limiters[0].plan(limited, "openai")
    assert plan is not None and plan.money is not None
    look = Look(lab.counters, lab.wall, lab.monotonic)
    return look.spent(plan.money.columns, look.period(plan).label) / 1e9


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_request_that_declares_no_most_needs_only_the_least_to_be_left(workers: int, at_once: bool) -> None:
    lab, limited = Lab(workers), key("k", budget=usd("5"))

    def take(worker: int, cost: float, least: float | None) -> Reservation:
        limiter = lab.limiters[worker % workers]
        plan = limiter.plan(limited, "openai")
        if at_once:
            return limiter.reserve(plan, 10, cost, least)
        held = limiter.reserve(plan)
        held.claim(10, cost, least)
        return held

    take(0, 2.0, 0.25), take(1, 2.0, 0.25)
    rest = take(2, 2.0, 0.25)
    assert (rest.nanos, spent_of(lab, limited)) == (2 * 10**9, 6.0), "its whole cost, beyond the budget too"
    for least in (0.25, None):
        with pytest.raises(BudgetExceeded):
            take(0, 2.0, least)
    lab.limiters[2 % workers].settle(rest, used(10, 0.875))
    with pytest.raises(BudgetExceeded):
        take(1, 2.0, 0.25)  # 0.125 are left
    with pytest.raises(BudgetExceeded):
        take(1, 2.0, None)
    take(1, 2.0, 0.125)
    assert spent_of(lab, limited) == 6.875


def test_what_others_give_back_lets_no_second_request_take_the_little_that_is_left() -> None:
    lab, limited = Lab(1), key("k", budget=usd("5"))
    limiter = lab.limiters[0]
    plan = limiter.plan(limited, "openai")
    held = [limiter.reserve(plan, 10, 1.5, 0.04) for _ in range(4)]
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            limiter.reserve(plan, 10, 1.5, 0.04)
        limiter.settle(held.pop(0), used(10, 1.0))
    assert spent_of(lab, limited) == 5.0
    limiter.settle(held.pop(0), used(10, 1.0))
    held.append(limiter.reserve(plan, 10, 1.5, 0.04))
    for reservation in held:
        limiter.settle(reservation, used(10, 1.0))
    assert spent_of(lab, limited) == 5.0


def test_one_request_that_may_cost_more_than_a_whole_budget_passes_alone() -> None:
    lab, limited = Lab(), key("k", budget=usd("1"))
    limiter = lab.limiters[0]
    plan = limiter.plan(limited, "openai")
    held = limiter.reserve(plan, 10, 1.28, 0.04)
    with pytest.raises(BudgetExceeded):
        limiter.reserve(plan, 10, 1.28, 0.04)
    limiter.settle(held, used(10, 0.25))
    assert limiter.reserve(plan, 10, 1.28, 0.04).nanos == 1_280_000_000


def test_what_costs_nothing_passes_also_when_a_budget_is_used_up() -> None:
    lab, limited = Lab(), key("k", budget=usd("1"))
    limiter = lab.limiters[0]
    reserve(limiter, limited, tokens=10, cost=1.0)
    assert reserve(limiter, limited, tokens=10, cost=0.0).nanos == 0
    for tokens, cost in ((None, None), (10, 1e-9)):
        with pytest.raises(BudgetExceeded):
            reserve(limiter, limited, tokens=tokens, cost=cost)


@pytest.mark.parametrize("cost", [0.0, 0.25, 2.0, 3.5])
@pytest.mark.parametrize("looker", [0, 1])
@pytest.mark.parametrize("restarted", [False, True])
def test_work_that_ends_later_is_settled_once_it_is_known_by_whichever_worker(
    cost: float, looker: int, restarted: bool, tmp_path: Path
) -> None:
    lab, limited = Lab(counters=open_counters(tmp_path / "limits", 2, boot=7)), key("k", budget=usd("9"), tpm=10_000)
    held = reserve(lab.limiters[0], limited, tokens=10, cost=2.0)
    kept = json.loads(json.dumps(held.kept()))
    lab.limiters[0].settle(held, row())
    assert spent_of(lab, limited) == 2.0
    lab.go_on(600)
    if restarted:
        (tmp_path / "limits" / "lock").unlink()
        wall, monotonic = lab.wall, lab.monotonic
        lab = Lab(counters=open_counters(tmp_path / "limits", 2, wall, monotonic, boot=7))
        lab.wall.now, lab.monotonic.now = wall.now, monotonic.now
    lab.limiters[looker].settle_later(kept, used(30, cost))
    assert spent_of(lab, limited) == cost
    plan = lab.limiters[1].plan(limited, "openai")
    assert plan is not None and plan.tpm is not None
    assert Look(lab.counters, lab.wall, lab.monotonic).counts(plan.tpm.columns) == 20


def test_work_that_ends_after_its_budget_s_period_changes_no_other() -> None:
    lab, limited = Lab(), key("k", budget=usd("9"))
    kept = reserve(lab.limiters[0], limited, tokens=10, cost=2.0).kept()
    lab.go_on(40 * 86_400)
    reserve(lab.limiters[1], limited, tokens=10, cost=1.0)
    for cost in (0.0, 5.0):
        lab.limiters[1].settle_later(kept, used(10, cost))
    assert spent_of(lab, limited) == 1.0


def test_nothing_is_kept_of_a_request_that_claimed_nothing() -> None:
    assert reserve(Lab().limiters[0], key("k", budget=usd("9"), rpm=5)).kept() is None


@pytest.mark.parametrize("kept", [{}, {"tokens": 1}, {"tokens": 1, "nanos": "x", "tpm": [], "money": {"k": 3}}])
def test_what_was_kept_and_cannot_be_read_charges_nothing_and_raises_nothing(kept: dict[str, Any]) -> None:
    lab, limited = Lab(), key("k", budget=usd("9"))
    reserve(lab.limiters[0], limited, tokens=10, cost=2.0)
    lab.limiters[0].settle_later(kept, used(10, 1.0))
    assert spent_of(lab, limited) == 2.0


@pytest.mark.parametrize("limits", [{"tpm": 10}, {"budget": usd("1")}, {"tpm": 10, "budget": usd("1")}])
@pytest.mark.parametrize("over", [0, 5])
def test_a_look_passes_though_tokens_and_money_are_used_up_and_takes_none(limits: dict[str, Any], over: int) -> None:
    lab, limited = Lab(), key("k", rpm=4, **limits)
    dear = reserve(lab.limiters[0], limited, tokens=10, cost=1.0)
    lab.limiters[0].settle(dear, used(10 + over, 1.0 + over))
    plan = lab.limiters[1].plan(limited, "openai")
    assert plan is not None
    with pytest.raises(FlowstackError):
        lab.limiters[1].reserve(plan)
    before = spent_of(lab, limited) if "budget" in limits else None
    look = lab.limiters[1].reserve(plan, looks=True)
    assert look.kept() is None
    lab.limiters[1].settle(look, row())
    assert before is None or spent_of(lab, limited) == before
    lab.limiters[1].settle(lab.limiters[1].reserve(plan, looks=True), row())
    lab.limiters[1].settle(lab.limiters[1].reserve(plan, looks=True), row())
    with pytest.raises(RateLimitExceeded):
        lab.limiters[1].reserve(plan, looks=True)


def test_a_batch_is_refused_where_nothing_is_left_and_its_usage_takes_the_place_of_the_least_there_is() -> None:
    lab, limited = Lab(), key("k", budget=usd("1"))
    plan = lab.limiters[0].plan(limited, "openai")
    assert plan is not None
    kept = lab.limiters[0].reserve(plan, 0, 1e-9).kept()
    assert kept is not None
    lab.limiters[1].settle_later(kept, used(10, 1.0))
    assert spent_of(lab, limited) == 1.0
    with pytest.raises(FlowstackError):
        lab.limiters[0].reserve(plan, 0, 1e-9)
