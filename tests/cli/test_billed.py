"""The comparison of the ledger with what a provider says, and the reading of the provider's pages."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.cli.billed import (
    Billed,
    Charge,
    Ledger,
    Malformed,
    Ours,
    Pair,
    Theirs,
    Used,
    charge_of,
    compared,
    others_of,
    results_of,
    used_of,
)

ONE, TWO = "2026-11-01", "2026-11-02"
START = 1_793_491_200  # 2026-11-01 00:00 UTC
DAY = 86_400

OURS = [
    Ours(ONE, "gpt-4o-2024-08-06", "a", Ledger(3, 900, Decimal("0.90"), 1, 0, 0)),
    Ours(TWO, "gpt-4o-2024-08-06", None, Ledger(1, 100, None, 0, 1, 1)),
]
BILLED = Billed(
    [Used(ONE, "GPT-4o-2024-08-06", "a", 1000, 4), Used(TWO, "gpt-4o-2024-08-06", "b", 100, 1)],
    [
        Charge(ONE, "gpt-4o-2024-08-06, input", "a", Decimal("0.25")),
        Charge(ONE, "GPT-4o-2024-08-06, cached input", "a", Decimal("0.75")),
        Charge(TWO, "web search tool calls", "b", Decimal("0.03")),
    ],
)


def line(pair: Pair) -> tuple[Any, ...]:
    ours = pair.ledger
    return (
        pair.name, None if ours is None else (ours.tokens, ours.usd), (pair.provider.tokens, pair.provider.usd),
        pair.captured_tokens, pair.captured_cost, pair.drift_usd,
    )  # fmt: skip


BY: dict[str, list[tuple[Any, ...]]] = {
    "day": [
        (ONE, (900, Decimal("0.90")), (1000, Decimal("1.00")), 0.9, 0.9, Decimal("-0.10")),
        (TWO, (100, None), (100, Decimal("0.03")), 1.0, 0.0, Decimal("-0.03")),
    ],
    "model": [
        ("gpt-4o-2024-08-06", (1000, Decimal("0.90")), (1100, Decimal("1.00")), 1000 / 1100, 0.9, Decimal("-0.10")),
        ("web search tool calls", (None, None), (None, Decimal("0.03")), None, 0.0, Decimal("-0.03")),
    ],
    "project": [
        ("a", (900, Decimal("0.90")), (1000, Decimal("1.00")), 0.9, 0.9, Decimal("-0.10")),
        ("b", (None, None), (100, Decimal("0.03")), 0.0, 0.0, Decimal("-0.03")),
        (None, (100, None), (None, None), None, None, None),
    ],
}


@pytest.mark.parametrize("by", BY)
def test_both_sides_stand_beside_each_other(by: Any) -> None:
    pairs, total = compared(by, OURS, BILLED)
    assert [line(pair) for pair in pairs] == BY[by]
    assert line(total)[1:3] == ((1000, Decimal("0.90")), (1100, Decimal("1.03")))
    assert (total.ledger or Ledger()).without_price == 1
    assert (total.provider.requests, (total.ledger or Ledger()).requests) == (5, 4)


def test_a_ledger_that_knows_no_projects_is_compared_in_its_total_alone() -> None:
    pairs, total = compared("project", OURS, BILLED, projects_told=False)
    assert [(pair.name, pair.ledger, pair.captured) for pair in pairs] == [("a", None, None), ("b", None, None)]
    assert total.captured == pytest.approx(0.90 / 1.03)


@pytest.mark.parametrize(
    ("ledger", "provider", "captured", "enough"),
    [
        (Ledger(1, 98, Decimal("0.98")), Theirs(1, 100, Decimal("1.00")), 0.98, True),
        (Ledger(1, 97, Decimal("1.00")), Theirs(1, 100, Decimal("1.00")), 0.97, False),
        (Ledger(1, 100, Decimal("0.97")), Theirs(1, 100, Decimal("1.00")), 0.97, False),
        (Ledger(1, 150, Decimal("1.50")), Theirs(1, 100, Decimal("1.00")), 1.5, True),
        (Ledger(1, 100, None), Theirs(1, 100, Decimal("1.00")), 0.0, False),
        (Ledger(1, None, None), Theirs(1, 100, None), 0.0, False),
        (Ledger(1, 100, None), Theirs(1, 100, Decimal()), 1.0, True),  # free
        (Ledger(), Theirs(), None, True),  # nothing on either side
        (Ledger(9), Theirs(), None, True),
        (Ledger(1, 100, None), Theirs(), None, False),  # nobody can know
        (Ledger(1, None, Decimal("0.01")), Theirs(1, 0, Decimal()), None, False),
    ],
)
def test_enough_is_captured_where_both_shares_are(
    ledger: Ledger, provider: Theirs, captured: float | None, enough: bool
) -> None:
    pair = Pair(None, ledger, provider)
    assert pair.captured == captured
    assert pair.enough(0.98) == enough


_NAMES = st.sampled_from((None, "a", "b", "c"))
_DAYS = st.sampled_from((ONE, TWO))
_USD = st.decimals(0, 100, places=6)
_OURS = st.builds(
    Ours, _DAYS, _NAMES, _NAMES,
    st.builds(Ledger, st.integers(0, 9), st.none() | st.integers(0, 99), st.none() | _USD, st.integers(0, 9)),
)  # fmt: skip
_BILLED = st.builds(
    Billed, st.lists(st.builds(Used, _DAYS, _NAMES, _NAMES, st.integers(0, 99), st.integers(0, 9))),
    st.lists(st.builds(Charge, _DAYS, _NAMES, _NAMES, _USD)),
)  # fmt: skip


@given(st.sampled_from(("day", "model", "project")), st.lists(_OURS), _BILLED)
def test_the_lines_add_up_to_the_total_and_nothing_is_left_out(by: Any, ours: list[Ours], billed: Billed) -> None:
    pairs, total = compared(by, ours, billed)

    def of(values: Any) -> Any:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    ledgers = [pair.ledger or Ledger() for pair in pairs]
    assert total.ledger is not None
    for name in ("tokens", "usd"):
        wanted = of(getattr(one.figures, name) for one in ours)
        assert of(getattr(one, name) for one in ledgers) == getattr(total.ledger, name) == wanted
    assert sum(one.without_usage for one in ledgers) == sum(one.figures.without_usage for one in ours)
    assert of(pair.provider.tokens for pair in pairs) == total.provider.tokens == of(u.tokens for u in billed.used)
    assert of(pair.provider.usd for pair in pairs) == total.provider.usd == of(c.usd for c in billed.charges)
    assert len({pair.name for pair in pairs}) == len(pairs)


# The provider's pages


def page(*results: Any, **more: Any) -> dict[str, Any]:
    bucket = {"object": "bucket", "start_time": START, "end_time": START + DAY, "results": list(results)}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None} | more


def test_a_page_is_read_by_its_days_and_names_the_next() -> None:
    assert results_of(page({"a": 1}, {"b": 2}), START, START + DAY) == ([(ONE, {"a": 1}), (ONE, {"b": 2})], None)
    assert results_of(page(has_more=True, next_page="p2"), START, START + DAY) == ([], "p2")
    assert results_of(page({"a": 1}), START + DAY, START + 2 * DAY) == ([], None)  # of a day that was not asked for


@pytest.mark.parametrize(
    "bad",
    [None, [], "x", {}, {"data": {}}, {"data": [None]}, {"data": [{"results": []}]}, page("x"), page(None),
     {"data": [{"start_time": True, "results": []}]}, {"data": [{"start_time": START}]},
     page(has_more=True), page(has_more=True, next_page=5), page(has_more=True, next_page="")],
)  # fmt: skip
def test_what_is_no_page_is_told(bad: Any) -> None:
    with pytest.raises(Malformed, match=r"expected|it says that there is more"):
        results_of(bad, START, START + DAY)


def test_a_result_s_tokens_are_those_of_input_and_output() -> None:
    result = {"input_tokens": 1000, "output_tokens": 50, "input_cached_tokens": 800, "input_audio_tokens": 0,
              "num_model_requests": 5, "model": "gpt-4o", "project_id": None}  # fmt: skip
    assert used_of(ONE, result) == Used(ONE, "gpt-4o", None, 1050, 5)
    assert others_of({"images": 3, "num_model_requests": 1, "seconds": Decimal("4.0")}) == {"images": 3, "seconds": 4}
    for bad in (-1, True, "5", 1e300, Decimal("0.5")):
        with pytest.raises(Malformed, match="whole number"):
            used_of(ONE, result | {"output_tokens": bad})


@pytest.mark.parametrize(
    ("value", "usd"),
    [(0.06, None), (Decimal("0.06"), "0.06"), ("0.06", "0.06"), (5, "5"), (Decimal("1E-9"), "1E-9"), ("-0.5", "-0.5"),
     (None, None), (True, None), ("much", None), ("NaN", None), ("Infinity", None), ([], None), ("1e99", None)],
)  # fmt: skip
def test_an_amount_is_an_exact_number_of_dollars(value: Any, usd: str | None) -> None:
    result = {"amount": {"value": value, "currency": "USD"}, "line_item": "gpt-4o, input", "project_id": "a"}
    if usd is None:
        with pytest.raises(Malformed, match="number"):
            charge_of(ONE, result)
    else:
        assert charge_of(ONE, result) == Charge(ONE, "gpt-4o, input", "a", Decimal(usd))


@pytest.mark.parametrize(
    "amount", [None, {}, {"value": 1}, {"value": 1, "currency": "eur"}, {"value": 1, "currency": 5}]
)
def test_another_currency_is_refused(amount: Any) -> None:
    with pytest.raises(Malformed, match="usd"):
        charge_of(ONE, {"amount": amount})
