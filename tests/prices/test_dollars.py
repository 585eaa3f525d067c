"""Money as every command shows it, by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.prices.dollars import money, money_of


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "0.00"),
        ("0.000000001", "0.000000001"),
        ("0.00000123456", "0.00000123"),
        ("0.00001", "0.00001"),
        ("0.00004999", "0.00005"),
        ("0.0000999", "0.0000999"),
        ("0.00009999", "0.0001"),
        ("0.0001", "0.0001"),
        ("0.00015", "0.00015"),
        ("0.00105", "0.00105"),
        ("0.0123456", "0.0123"),
        ("0.5", "0.5000"),
        ("1.00125", "1.0012"),
        ("3.9525", "3.9525"),
        ("999.99996", "1,000.0000"),
        ("1000", "1,000.00"),
        ("1234567.891", "1,234,567.89"),
        ("-0.00001", "-0.00001"),
        ("-12.5", "-12.5000"),
    ],
)
def test_money_has_four_decimals_or_as_many_as_its_first_digits_take(usd: str, shown: str) -> None:
    assert money(Decimal(usd)) == shown
    if Decimal(usd) % Decimal("1e-9") == 0:
        assert money_of(int(Decimal(usd) * 10**9)) == shown


@given(st.integers(1, 10**18))
def test_what_was_spent_is_shown_to_half_a_percent_and_never_as_nothing(nanos: int) -> None:
    shown = Decimal(money_of(nanos).replace(",", ""))
    assert abs(shown * 10**9 - nanos) <= Decimal(nanos) / 200


@pytest.mark.parametrize(("usd", "shown"), [(None, "-"), (0.0, "0.00"), (7.5e-8, "0.000000075"), (0.5, "0.5000")])
def test_what_is_not_known_is_a_dash_and_a_float_is_what_it_is_written_as(usd: float | None, shown: str) -> None:
    assert money(usd) == shown
