"""Only numbers that can be counts are taken: none is made up, and no text gets in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstack.policy.usage.figures import MAX_DETAILS, MAX_NAME, MAX_TEXT, MOST, message_usage_of, text_of, usage_of
from flowstack.policy.usage.model import Usage


def test_what_is_missing_stays_unknown_and_zero_stays_zero() -> None:
    assert usage_of({"prompt_tokens": 0}) == Usage(prompt_tokens=0)
    assert usage_of({"output_tokens": 0}) == Usage(completion_tokens=0)
    assert usage_of({"total_tokens": 5}) == Usage(total_tokens=5)
    assert usage_of({"prompt_tokens": 3, "completion_tokens": 4}) == Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    "value", [None, True, False, -1, 1.0, 0.5, "7", [7], {"n": 7}, MOST, 2**53, 2**63, 10**30, 1e308, -(2**60)]
)
@pytest.mark.parametrize(
    ("name", "attribute"),
    [("prompt_tokens", "prompt_tokens"), ("completion_tokens", "completion_tokens"), ("total_tokens", "total_tokens"),
     ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")],
)  # fmt: skip
def test_what_is_no_count_is_not_taken(name: str, attribute: str, value: Any) -> None:
    usage = usage_of({name: value, "further": 1})
    assert usage == Usage(details={"further": 1})
    assert getattr(usage_of({name: MOST - 1}), attribute) == MOST - 1


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "7", MOST])
def test_a_detail_that_is_no_count_is_not_taken_for_one(value: Any) -> None:
    usage = usage_of(
        {
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "total_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": value},
            "completion_tokens_details": {"reasoning_tokens": value},
        }
    )
    assert usage is not None
    assert usage.cached_tokens is None
    assert usage.reasoning_tokens is None
    details = {"prompt_tokens_details": {"cached_tokens": 1.5}, "completion_tokens_details": {"reasoning_tokens": 1.5}}
    assert usage.details == (details if value == 1.5 else None)


@pytest.mark.parametrize("value", [None, 7, "usage", [], [1], True, {}, {"prompt_tokens": None}, {"type": "tokens"}])
def test_what_holds_no_figure_is_no_usage(value: Any) -> None:
    assert usage_of(value) is None


def test_details_keep_the_upstream_s_names_and_nesting() -> None:
    details = {
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens_details": {"ttl_12h_tokens": 1}},
        "cost": 0.0125,
        "seconds": 8.5,
        "num_sources_used": 0,
    }
    assert usage_of({"input_tokens": 9, "type": "tokens", **details}) == Usage(
        prompt_tokens=9, cached_tokens=5, details=details
    )


def test_five_members_of_which_one_is_new_are_all_kept() -> None:
    usage = usage_of(
        {"prompt_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}, "cost": 3, "n": 4}
    )
    assert usage == Usage(1, 1, None, None, 2, {"prompt_tokens_details": {"cached_tokens": 1}, "cost": 3, "n": 4})


@pytest.mark.parametrize(
    "further",
    [
        {"note": "text"}, {"a text as name": 1}, {"a-b": 1}, {"sk-abc": 1}, {"n" * (MAX_NAME + 1): 1}, {"é": 1},
        {"": 1}, {"list": [1, 2]}, {"flag": True}, {"nothing": None}, {"deep": {"deep": {"deep": {"deep": 1}}}},
        {"empty": {}}, {"negative": -1}, {"negative": -0.5}, {"infinite": float("inf")}, {"none": float("nan")},
        {"huge": MOST},
    ],
)  # fmt: skip
def test_details_have_no_room_for_anything_but_numbers(further: dict[str, Any]) -> None:
    assert usage_of({"prompt_tokens": 1, **further}) == Usage(prompt_tokens=1)
    assert usage_of({"prompt_tokens": 1, "prompt_tokens_details": further}) == Usage(prompt_tokens=1)


def test_details_are_bounded_in_number() -> None:
    many = {f"n{number}": number for number in range(1000)}
    usage = usage_of({"prompt_tokens": 1, "input_tokens_details": many, **many})
    assert usage is not None
    assert usage.details is not None
    assert len(usage.details) == MAX_DETAILS
    assert len(usage.details["input_tokens_details"]) == MAX_DETAILS


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)


def leaves(value: Any) -> list[Any]:
    return [leaf for inner in value.values() for leaf in leaves(inner)] if isinstance(value, dict) else [value]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details", "x"]
), _JSON))  # fmt: skip
def test_whatever_stands_there_only_numbers_come_out(value: dict[str, Any]) -> None:
    usage = usage_of(value)
    if usage is not None:
        for figure in (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached_tokens):
            assert figure is None or (type(figure) is int and 0 <= figure < MOST)
        assert all(type(leaf) in (int, float) and 0 <= leaf < MOST for leaf in leaves(usage.details or {}))


def test_anthropic_counts_all_input_as_the_sum_of_its_three_parts() -> None:
    assert message_usage_of({"input_tokens": 5, "output_tokens": 7}) == Usage(5, None, 7)
    cache = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    assert message_usage_of({"input_tokens": 5, **cache}) == Usage(125, 100, None, None, None, cache)
    assert message_usage_of({"cache_read_input_tokens": 100, "output_tokens": 1}) == Usage(
        None, 100, 1, None, None, {"cache_read_input_tokens": 100}
    )
    assert message_usage_of(None) is None


@pytest.mark.parametrize("value", [None, "", 7, ["m"], {"m": 1}])
def test_a_name_that_is_no_text_is_none(value: Any) -> None:
    assert text_of(value) is None


def test_a_name_is_bounded_and_holds_no_key() -> None:
    assert text_of("m" * 10_000) == "m" * (MAX_TEXT - 1) + "…"
    shown = text_of("model sk-proj-abcdefghijklmnopqrstuvwxyz0123456789")
    assert shown is not None
    assert "abcdefghijkl" not in shown
