from __future__ import annotations

from decimal import Decimal

import pytest

from flowstack.config.settings import Limits
from flowstack.errors import ParseError
from flowstack.keys import Budget, Key
from flowstack.limits.bounds import Bound, bounds_of


def key(**limits: object) -> Key:
    return Key("k", b"", **limits)  # type: ignore[arg-type]


def test_a_key_s_own_limit_stands_before_the_upstream_s_and_that_before_the_one_for_all() -> None:
    found = bounds_of(key(rpm=1), "azure", Limits(rpm=2, tpm=20), Limits(rpm=3, tpm=30, max_parallel=300))
    assert found.rpm == Bound(1, "")
    assert found.tpm == Bound(20, "azure")
    assert found.max_parallel == Bound(300, "")
    assert found.budget is None
    assert found.limited


def test_an_upstream_s_limit_counts_its_requests_alone_and_each_other_limit_counts_all() -> None:
    of_azure = bounds_of(key(), "azure", Limits(rpm=2), Limits(rpm=3))
    of_openai = bounds_of(key(), "openai", Limits(), Limits(rpm=3))
    assert (of_azure.rpm, of_openai.rpm) == (Bound(2, "azure"), Bound(3, ""))


def test_a_budget_in_the_settings_is_read_as_in_the_keystore_file() -> None:
    found = bounds_of(key(), "openai", Limits(), Limits(budget="50.00usd/month"))
    assert found.budget == Bound(Budget(Decimal("50.00"), "month"), "")
    with pytest.raises(ParseError, match="50\\.00usd/month"):
        bounds_of(key(), "openai", Limits(), Limits(budget="50 EUR"))


def test_without_any_limit_nothing_is_limited() -> None:
    assert not bounds_of(key(), "openai", Limits(), Limits()).limited
