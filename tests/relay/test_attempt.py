"""What follows a failed attempt: the rule as a table, and what holds whatever comes."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config.settings import Fallback, Retry
from flowstack.relay.attempt import (
    FALLBACK,
    GIVE_UP,
    KEY,
    OTHER,
    SAME,
    Next,
    Situation,
    next_attempt,
    retry_after_seconds,
)

NOW = 1_700_000_000.0
USUAL = Situation(
    faults=(503,), retry_after=None, elapsed=1.0, waited=0.0, again=True, others=False, key=False, budget=True,
    fallback=False, too_long=False,
)  # fmt: skip
RETRY = Retry(on=("connect", "timeout", 429, 503), attempts=3, within=10.0)
RULE = Fallback("azure", on=("timeout", 503))


def most(least: float, greatest: float) -> float:
    return greatest


TABLE: dict[str, tuple[dict[str, Any], Next, float]] = {
    "again after a time": ({}, SAME, 0.75),
    "longer than before": ({"waited": 1.0}, SAME, 3.0),
    "at most so long": ({"waited": 4.0}, SAME, 5.0),
    "another target at once": ({"others": True}, OTHER, 0.0),
    "as long as it is asked to": ({"retry_after": 4.0}, SAME, 4.0),
    "another target though it is asked to wait": ({"others": True, "retry_after": 4.0}, OTHER, 0.0),
    "not as long as that": ({"retry_after": 11.0}, GIVE_UP, 0.0),
    "not beyond its time": ({"retry_after": 9.5}, GIVE_UP, 0.0),
    "the fallback in place of a long wait": ({"retry_after": 11.0, "fallback": True}, FALLBACK, 0.0),
    "the fallback once there were enough": ({"faults": (503,) * 3, "fallback": True}, FALLBACK, 0.0),
    "enough": ({"faults": (503,) * 3}, GIVE_UP, 0.0),
    "too late": ({"elapsed": 10.5}, GIVE_UP, 0.0),
    "no budget": ({"budget": False}, GIVE_UP, 0.0),
    "no budget, and the fallback needs none": ({"budget": False, "fallback": True}, FALLBACK, 0.0),
    "what is not named": ({"faults": (500,)}, GIVE_UP, 0.0),
    "not the one that was silent": ({"faults": ("timeout",)}, GIVE_UP, 0.0),
    "another than the one that was silent": ({"faults": ("timeout",), "others": True}, OTHER, 0.0),
    "the fallback of the one that was silent": ({"faults": ("timeout",), "fallback": True}, FALLBACK, 0.0),
    "a fallback for what it is not for": ({"faults": (429,) * 3, "fallback": True}, GIVE_UP, 0.0),
    "another key": ({"faults": (401,), "key": True}, KEY, 0.0),
    "another key for one that rests": ({"faults": (429,), "key": True, "retry_after": 9.0}, KEY, 0.0),
    "no other key": ({"faults": (401,)}, GIVE_UP, 0.0),
    "another key does not help": ({"faults": (500,), "key": True}, GIVE_UP, 0.0),
    "too long for the model": ({"faults": (400,), "too_long": True, "fallback": True}, GIVE_UP, 0.0),
    "it cannot be sent again": ({"again": False, "others": True, "key": True, "fallback": True}, GIVE_UP, 0.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_failure_leads_to_its_next_step(name: str) -> None:
    changed, expected, wait = TABLE[name]
    assert next_attempt(RETRY, RULE, evolve(USUAL, **changed), most) == (expected, wait)


def test_a_body_that_is_too_long_goes_to_the_fallback_where_that_is_asked_for() -> None:
    situation = evolve(USUAL, faults=(400,), too_long=True, fallback=True)
    rule = evolve(RULE, context_length=True)
    assert next_attempt(None, rule, situation, most).next is FALLBACK
    assert next_attempt(None, rule, evolve(situation, too_long=False), most).next is GIVE_UP


FAULTS = st.sampled_from(["connect", "reset", "timeout", 400, 401, 403, 404, 429, 500, 503])
SITUATIONS = st.builds(
    Situation,
    faults=st.lists(FAULTS, min_size=1, max_size=6).map(tuple),
    retry_after=st.none() | st.floats(0, 100),
    elapsed=st.floats(0, 100),
    waited=st.floats(0, 5),
    again=st.booleans(),
    others=st.booleans(),
    key=st.booleans(),
    budget=st.booleans(),
    fallback=st.booleans(),
    too_long=st.booleans(),
)
RETRIES = st.none() | st.builds(
    Retry,
    on=st.sets(FAULTS, max_size=5).map(tuple),
    attempts=st.integers(1, 5),
    within=st.floats(1, 60),
    backoff=st.floats(0, 2),
    backoff_max=st.floats(2, 9),
    retry_after_max=st.floats(0, 60),
)


@given(RETRIES, st.none() | st.just(RULE), SITUATIONS, st.floats(0, 1))
def test_whatever_comes_the_bounds_hold(
    retry: Retry | None, rule: Fallback | None, now: Situation, drawn: float
) -> None:
    step = next_attempt(retry, rule, now, lambda least, greatest: least + drawn * (greatest - least))
    if not now.again:
        assert step.next is GIVE_UP
    if step.next in (SAME, OTHER):
        assert retry is not None and now.budget
        assert now.faults[-1] in retry.on
        assert len(now.faults) < retry.attempts
        assert now.elapsed + step.wait <= retry.within + 1e-9
    if step.next is SAME:
        assert now.faults[-1] != "timeout"
        if now.retry_after is not None:
            assert step.wait == now.retry_after <= retry.retry_after_max  # type: ignore[union-attr]
        else:
            assert retry.backoff <= step.wait + 1e-9  # type: ignore[union-attr]
            assert step.wait <= retry.backoff_max  # type: ignore[union-attr]
    if step.next is FALLBACK:
        assert now.fallback and rule is not None
        assert now.faults[-1] in rule.on
    if step.next is KEY:
        assert now.key and now.faults[-1] in (401, 403, 429)


WAITS = {
    b"2": 2.0,
    b" 2 ": 2.0,
    b"0": 0.0,
    b"2.5": None,
    b"-1": None,
    b"soon": None,
    b"": None,
    b"99999999999": None,
    b"\xff": None,
    formatdate(NOW + 30, usegmt=True).encode(): 30.0,
    formatdate(NOW - 30, usegmt=True).encode(): 0.0,
    b"Thu, 99 Foo 2026 00:00:00 GMT": None,
}


@pytest.mark.parametrize("value", WAITS)
def test_retry_after_is_seconds_or_a_date(value: bytes) -> None:
    assert retry_after_seconds({b"retry-after": value}, NOW) == WAITS[value]


def test_milliseconds_are_more_exact() -> None:
    assert retry_after_seconds({b"retry-after": b"2", b"retry-after-ms": b"1250"}, NOW) == 1.25
    assert retry_after_seconds({b"retry-after": b"2", b"retry-after-ms": b"x"}, NOW) == 2.0


@given(st.binary(max_size=40), st.binary(max_size=20))
def test_no_value_of_it_is_a_fault(value: bytes, milliseconds: bytes) -> None:
    seconds = retry_after_seconds({b"retry-after": value, b"retry-after-ms": milliseconds}, NOW)
    assert seconds is None or seconds >= 0
