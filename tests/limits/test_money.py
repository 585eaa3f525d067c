from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.keys import Budget
from flowstack.limits.money import MAX_REQUEST, budget_nano, dollars, ended, nano, period_at, roll

walls = st.floats(0, 250_000_000_000)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@given(walls, st.sampled_from(["day", "month", "total"]))
def test_a_time_lies_in_its_period(wall: float, kind: str) -> None:
    period = period_at(kind, wall)
    assert period.begins <= wall < period.ends


@given(walls, st.sampled_from(["day", "month"]))
def test_the_next_period_begins_where_one_ends_and_has_the_next_label(wall: float, kind: str) -> None:
    period = period_at(kind, wall)
    following = period_at(kind, period.ends)
    assert following.begins == period.ends
    assert following.label == period.label + 1
    assert period_at(kind, period.begins).label == period.label


def test_days_and_months_are_utc_s() -> None:
    assert period_at("day", at("2026-02-28T23:59:59")).ends == at("2026-03-01T00:00:00")
    assert period_at("month", at("2026-12-31T23:59:59")).ends == at("2027-01-01T00:00:00")
    assert period_at("month", at("2028-02-29T12:00:00")).begins == at("2028-02-01T00:00:00")


@pytest.mark.parametrize("wall", [-1e30, -1.0, 1e12, 1e30])
def test_a_time_that_no_calendar_has_has_a_period_all_the_same(wall: float) -> None:
    assert period_at("month", wall).ends > period_at("month", wall).begins


def day(number: int) -> int:
    return period_at("day", number * 86_400.0).label


def test_a_new_period_begins_at_nothing() -> None:
    assert roll(day(5), day(5), 70, day(6)) == (day(6), day(6), 0)


def test_a_clock_set_back_opens_no_ended_period_again() -> None:
    back = roll(day(6), day(6), 70, day(5))
    assert back == (day(6), day(5), 70)
    assert roll(*back, day(6)) == (day(6), day(6), 70)


def test_a_clock_that_was_far_ahead_does_not_keep_a_budget_used_up() -> None:
    wrong = roll(day(5), day(5), 10, day(4000))
    back = roll(*wrong[:2], 70, day(5))
    assert back[2] == 70
    assert roll(*back, day(6)) == (day(4000), day(6), 0)


def test_a_machine_that_starts_in_1970_has_used_what_it_had() -> None:
    back = roll(day(20_000), day(20_000), 70, day(0))
    assert back[2] == 70
    assert roll(back[0], back[1], 75, day(20_000))[2] == 75
    assert roll(back[0], back[1], 75, day(20_001))[2] == 0


def test_another_kind_of_budget_begins_at_nothing() -> None:
    assert roll(day(5), day(5), 70, period_at("month", 0.0).label)[2] == 0
    assert roll(day(5), day(5), 70, period_at("total", 0.0).label)[2] == 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_a_clock_that_steps_among_seen_periods_only_never_gives_money_back(days: list[int]) -> None:
    latest, seen, used = day(9), day(9), 50
    for number in days:
        went_on = seen < day(number) < latest
        latest, seen, used = roll(latest, seen, used, day(number))
        assert latest == day(9)
        if not went_on:  # only time that goes on while the clock is behind begins a period
            assert used in {0, 50}
    without_forward = sorted(days, reverse=True)
    record = (day(9), day(9), 50)
    for number in without_forward:
        record = roll(*record, day(number))
        assert record[2] == 50


def test_what_of_a_record_has_ended_is_known() -> None:
    label = period_at("day", at("2026-05-01T12:00:00")).label
    assert not ended(label, at("2026-05-01T23:00:00"))
    assert ended(label, at("2026-05-02T00:00:00"))
    assert not ended(label, at("2026-04-01T00:00:00"))
    assert not ended(period_at("total", 0.0).label, 1e11)
    assert not ended(12345, 1e9)


def test_dollars_become_billionths_and_never_less_than_nothing() -> None:
    assert nano(0.000_000_15) == 150
    assert nano(12.5) == 12_500_000_000
    assert nano(-3.0) == 0
    assert nano(float("nan")) == 0
    assert nano(float("inf")) == nano(1e30) == MAX_REQUEST
    assert budget_nano(Budget(Decimal("50.000001"), "month")) == 50_000_001_000


def test_money_is_shown_as_dollars_rounded_up() -> None:
    assert dollars(50_000_000_000) == "50.00"
    assert dollars(1_234_567_000) == "1.234567"
    assert dollars(1) == "0.000001"
    assert dollars(0) == "0.00"
    assert dollars(100_500_000_000) == "100.50"
