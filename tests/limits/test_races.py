"""What no interleaving of workers, and no run of requests, may do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.errors import FlowstackError, RateLimitExceeded
from flowstack.http.headers import pairs_of
from flowstack.limits import plans, shared

from .lab import REFUSED, Lab, key, reserve, row, usd, used


class Interrupted:
    """Cells at whose n-th access something else happens first."""

    def __init__(self, cells: Any, number: int, action: Any) -> None:
        self._cells = cells
        self._left = number
        self._action = action

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()

    def __getitem__(self, place: Any) -> Any:
        self._count()
        return self._cells[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self._count()
        self._cells[place] = value

    @property
    def happened(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize(
    "limits",
    [{"rpm": 2}, {"max_parallel": 2}, {"tpm": 20}, {"budget": usd("2", "total")},
     {"rpm": 2, "max_parallel": 2, "tpm": 20, "budget": usd("2")}],
    ids=["rpm", "max_parallel", "tpm", "budget", "all"],
)  # fmt: skip
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
def test_of_two_workers_that_want_the_last_at_once_one_gets_it_whenever_the_other_comes(
    limits: dict[str, Any], at_once: bool
) -> None:
    limited = key(**limits)

    def wants(limiter: shared.SharedLimiter) -> bool:
        try:
            reserve(limiter, limited, tokens=10, cost=1.0, at_once=at_once)
        except FlowstackError:
            return False
        return True

    def interrupted_at(number: int) -> bool:
        lab = Lab(2)
        first, second = lab.limiters
        assert wants(first)
        lab.go_on(4)
        others: list[bool] = []
        cells = first.counters.cells
        first.counters.cells = interrupted = Interrupted(  # type: ignore[assignment]
            cells, number, lambda: others.append(wants(second))
        )
        got = wants(first)
        first.counters.cells = cells
        if interrupted.happened:
            assert [got, *others].count(True) == 1, number
            assert not wants(first) and not wants(second)
        return interrupted.happened

    number = 1
    while interrupted_at(number):
        number += 1
    assert number > 2


def test_a_worker_whose_clock_was_read_before_another_s_looks_again() -> None:
    lab = Lab(2)
    limited = key(rpm=2, tpm=10)
    reserve(lab.limiters[1], limited)
    early = iter([lab.monotonic.now, lab.monotonic.now])
    times = lambda: next(early, 5100.0)  # noqa: E731
    lab.go_on(100)
    reserve(lab.limiters[1], limited, tokens=4)
    lab.limiters[0]._monotonic = times
    held = reserve(lab.limiters[0], limited)
    held.claim(6, None)
    assert dict(pairs_of(held.lines))[b"Flowstack-RateLimit-Remaining-Requests"] == b"0"
    with pytest.raises(RateLimitExceeded):
        reserve(lab.limiters[1], limited)


def known(limiter: shared.SharedLimiter) -> bool:
    """Whether what a worker remembers of its own columns is what stands there."""
    cells = limiter.counters.cells
    owns = [
        place.own
        for by_key in limiter._by_id.values()
        for made in by_key.values()
        for plan in (made, made.group)
        if plan is not None
        for place in (plan.rpm, plan.tpm, plan.parallel, plan.money)
        if place is not None
    ]
    return all(
        own.count == cells[own.total] and (own.bucket == cells[own.newest] or own.at == own.total) for own in owns
    )


def test_plans_with_a_column_in_common_know_the_same_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's own limit counts for all upstreams, and a plan may be made anew while requests are in flight."""
    monkeypatch.setattr(plans, "MAX_PLANS", 1)
    lab = Lab(2)
    limiter, limited = lab.limiters[0], key(rpm=10, tpm=1000, max_parallel=5)
    held = []
    for upstream in ("openai", "another", "openai", "another"):
        held.append(reserve(limiter, limited, upstream))
        held[-1].claim(100, None)
        reserve(limiter, key("other", rpm=5), upstream)  # takes the only place among the plans
        lab.go_on(1)
    assert limiter.counters.cells[held[0].plan.parallel.own.total] == 4  # type: ignore[union-attr]
    for reservation in held:
        limiter.settle(reservation, used(30))
    again = reserve(limiter, limited)
    assert known(limiter)
    assert dict(pairs_of(again.lines))[b"Flowstack-RateLimit-Remaining-Requests"] == b"5"
    assert dict(pairs_of(again.lines))[b"Flowstack-RateLimit-Remaining-Tokens"] == b"880"
    for _ in range(4):
        reserve(limiter, limited, "another")
    with pytest.raises(FlowstackError):
        reserve(lab.limiters[1], limited)


def test_a_plan_that_is_made_anew_takes_no_other_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MAX_PLANS", 2)
    limiter = Lab(1).limiters[0]
    for limited in (key("a", rpm=5), key("b", rpm=5), key("b", rpm=6)):
        reserve(limiter, limited)
    assert set(limiter._by_id["openai"]) == {"a", "b"}
    reserve(limiter, key("c", rpm=5))
    assert set(limiter._by_id["openai"]) == {"b", "c"}


actions = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "wait"]), st.integers(0, 2), st.integers(0, 300),
        st.sampled_from([row(), row(status=500), used(0, 0.0), used(50, 0.5), used(400, 4.0), REFUSED]),
    ),
    max_size=80,
)  # fmt: skip


@given(actions)
def test_whatever_happens_no_limit_is_exceeded_by_more_than_what_was_used_beyond_the_estimates(
    actions: list[tuple[str, int, int, Any]],
) -> None:
    lab = Lab(3)
    limited = key(rpm=12, tpm=1000, max_parallel=4, budget=usd("20", "total"))
    held: list[tuple[int, Any, int]] = []
    admitted: list[float] = []
    charged: list[list[float]] = []
    beyond_tokens = 0
    spent = beyond_spent = 0.0
    for what, worker, amount, ending in actions:
        limiter = lab.limiters[worker]
        if what == "wait":
            lab.go_on(amount / 10)
        elif what == "settle" and held:
            owner, reservation, entry = held.pop(amount % len(held))
            lab.limiters[owner].settle(reservation, ending)
            if reservation.tokens >= 0:
                estimate = charged[entry][1]
                now = shared.charged_tokens(ending, int(estimate))
                cost = shared.charged_nanos(ending, reservation.nanos) / 1e9
                spent += cost - estimate / 100
                beyond_spent += max(cost - estimate / 100, 0.0)
                if now > estimate:
                    beyond_tokens += int(now - estimate)
                else:
                    charged[entry][1] = now
        elif what == "reserve":
            at_once = amount % 2 == 0
            try:
                if at_once:
                    reservation = reserve(limiter, limited, tokens=amount, cost=amount / 100)
                else:
                    reservation = reserve(limiter, limited)
            except FlowstackError:
                continue
            admitted.append(lab.monotonic.now)
            charged.append([lab.monotonic.now, 0])
            held.append((worker, reservation, len(charged) - 1))
            try:
                if not at_once:
                    reservation.claim(amount, amount / 100)
            except FlowstackError:
                continue
            charged[-1][1] = amount
            spent += amount / 100
        assert all(known(limiter) for limiter in lab.limiters)
        assert len(held) <= 4
        assert spent <= 20 + beyond_spent + 1e-6
        for begin in admitted:
            assert sum(begin <= when <= begin + 60 for when in admitted) <= 12
            assert sum(tokens for when, tokens in charged if begin <= when <= begin + 60) <= 1000
