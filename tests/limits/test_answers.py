from __future__ import annotations

from decimal import Decimal

import pytest

from flowstack.http.headers import pairs_of
from flowstack.http.names import REQUESTS, TOKENS
from flowstack.http.replies import error_reply
from flowstack.keys import Budget
from flowstack.limits.answers import (
    duration,
    figures_of,
    refusal_fields,
    retry_fields,
    too_expensive,
    too_many_requests,
    too_many_tokens,
    too_much_at_once,
)
from flowstack.limits.money import period_at


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, b"0s"), (1, b"1ms"), (20, b"20ms"), (999, b"999ms"), (1000, b"1s"), (1001, b"2s"), (59_000, b"59s"),
     (60_000, b"1m0s"), (62_000, b"1m2s"), (360_000, b"6m0s")],
)  # fmt: skip
def test_a_time_is_written_as_openai_writes_it(milliseconds: int, text: bytes) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize(
    ("seconds", "whole", "thousandths"),
    [(0.0, b"1", b"1"), (0.0004, b"1", b"1"), (0.25, b"1", b"250"), (1.0, b"1", b"1000"), (1.0001, b"2", b"1001"),
     (61.5, b"62", b"61500")],
)  # fmt: skip
def test_the_time_to_come_back_is_rounded_up(seconds: float, whole: bytes, thousandths: bytes) -> None:
    assert retry_fields(seconds) == ((b"retry-after", whole), (b"retry-after-ms", thousandths))


def test_a_refusal_s_figures_have_openai_s_names_and_ours() -> None:
    assert refusal_fields(TOKENS, 100, 130, 7, True) == (
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"7s"),
        (b"Flowstack-RateLimit-Limit-Tokens", b"100"),
        (b"Flowstack-RateLimit-Remaining-Tokens", b"0"),
        (b"Flowstack-RateLimit-Reset-Tokens", b"7s"),
    )
    assert [name for name, _ in refusal_fields(REQUESTS, 1, 1, 1, False)] == [
        b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"
    ]  # fmt: skip


def test_each_refusal_says_which_limit_what_was_found_and_when_to_come_back() -> None:
    requests = too_many_requests("k7", 600, "", 600, 12.34, ()).message
    assert "k7" in requests and "600 requests in any 60 seconds (rpm)" in requests and "in 12.3 s" in requests
    tokens = too_many_tokens("k7", 1000, "azure", 900, 200, 3.0, ()).message
    assert "1000 tokens to azure" in tokens and "900 are used or reserved" in tokens and "200 more" in tokens
    parallel = too_much_at_once("k7", 5, "", ())
    assert "(max_parallel)" in parallel.message and dict(parallel.headers)[b"retry-after"] == b"1"
    period = period_at("month", 1_780_000_000.0)
    money = too_expensive("k7", Budget(Decimal(50), "month"), "", 49_999_000_000, 20_000_000, period, ()).message
    assert "50.00 USD a month (budget)" in money and "49.999 USD are used" in money and "0.02 USD" in money
    assert "renewed at 2026-06-01T00:00:00Z" in money
    total = too_expensive("k7", Budget(Decimal(50), "total"), "", 1, 0, period_at("total", 0.0), ()).message
    assert "in all" in total and "not renewed" in total


def test_a_request_that_never_fits_is_told_so_and_not_to_try_again() -> None:
    error = too_many_tokens("k7", 1000, "", 0, 5000, None, ())
    assert "this request alone may use 5000" in error.message
    names = [name for name, _ in error_reply(error).pairs]
    assert b"retry-after" not in names
    assert names.count(b"x-should-retry") == 1


def test_an_exhausted_budget_is_not_tried_again() -> None:
    error = too_expensive("k7", Budget(Decimal(50), "total"), "", 1, 0, period_at("total", 0.0), ())
    assert (b"x-should-retry", b"false") in error_reply(error).pairs


def test_the_figures_of_several_limits_are_lines_of_a_head() -> None:
    lines = figures_of(((REQUESTS, 600), (TOKENS, 5))) % (571, b"1m2s", 0, b"0s")
    assert lines == (
        b"\r\nFlowstack-RateLimit-Limit-Requests: 600\r\nFlowstack-RateLimit-Remaining-Requests: 571"
        b"\r\nFlowstack-RateLimit-Reset-Requests: 1m2s\r\nFlowstack-RateLimit-Limit-Tokens: 5"
        b"\r\nFlowstack-RateLimit-Remaining-Tokens: 0\r\nFlowstack-RateLimit-Reset-Tokens: 0s"
    )
    assert pairs_of(lines)[::3] == (
        (b"Flowstack-RateLimit-Limit-Requests", b"600"),
        (b"Flowstack-RateLimit-Limit-Tokens", b"5"),
    )
    assert len(pairs_of(lines)) == 6
    assert figures_of(()) % () == b""
    assert pairs_of(b"") == ()
