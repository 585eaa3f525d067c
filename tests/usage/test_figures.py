"""Only numbers that can be counts are taken for figures, none is made up, and what else is said is kept, bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.figures import (
    MAX_COUNT,
    MAX_DETAILS,
    MAX_FIGURES,
    MAX_ITEMS,
    MAX_NAME,
    MAX_TEXT,
    merge,
    text_of,
    usage_of,
)
from flowstack.usage.model import Usage

from .fixtures import message_usage_of


def test_what_is_missing_stays_unknown_and_zero_stays_zero() -> None:
    assert usage_of({"prompt_tokens": 0}) == Usage(prompt_tokens=0)
    assert usage_of({"output_tokens": 0}) == Usage(completion_tokens=0)
    assert usage_of({"total_tokens": 5}) == Usage(total_tokens=5)
    assert usage_of({"prompt_tokens": 3, "completion_tokens": 4}) == Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    "value", [None, True, False, -1, 1.0, 0.5, "7", [7], {"n": 7}, MAX_COUNT, 2**53, 2**63, 10**30, 1e308, -(2**60)]
)
@pytest.mark.parametrize(
    ("name", "attribute"),
    [("prompt_tokens", "prompt_tokens"), ("completion_tokens", "completion_tokens"), ("total_tokens", "total_tokens"),
     ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")],
)  # fmt: skip
def test_what_is_no_count_is_not_taken(name: str, attribute: str, value: Any) -> None:
    usage = usage_of({name: value, "further": 1})
    assert usage == Usage(details={"further": 1})
    assert getattr(usage_of({name: MAX_COUNT - 1}), attribute) == MAX_COUNT - 1


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "7", MAX_COUNT])
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
    details = {
        "prompt_tokens_details": {"cached_tokens": value},
        "completion_tokens_details": {"reasoning_tokens": value},
    }
    assert usage.details == (details if value in (True, 1.5, "7") else None)


@pytest.mark.parametrize("value", [None, 7, "usage", [], [1], True, {}, {"prompt_tokens": None}])
def test_what_holds_no_figure_is_no_usage(value: Any) -> None:
    assert usage_of(value) is None


def test_details_keep_the_upstream_s_names_and_nesting() -> None:
    details = {
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens_details": {"ttl_12h_tokens": 1}},
        "cost": 0.0125,
        "seconds": 8.5,
        "num_sources_used": 0,
    }
    assert usage_of({"input_tokens": 9, **details}) == Usage(prompt_tokens=9, cached_tokens=5, details=details)


def test_details_keep_texts_flags_and_lists_too() -> None:
    details = {
        "type": "tokens",
        "is_byok": False,
        "speed": "fast",
        "iterations": [{"type": "compaction", "cache_creation": {"ephemeral_1h_input_tokens": 7}}, {"type": "message"}],
        "cost_details": {"upstream_inference_cost": 0.01, "models": ["a", "b"]},
    }
    assert usage_of({"input_tokens": 9, **details}) == Usage(prompt_tokens=9, details=details)


def test_five_members_of_which_one_is_new_are_all_kept() -> None:
    usage = usage_of(
        {"prompt_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}, "cost": 3, "n": 4}
    )
    assert usage == Usage(1, 1, None, None, 2, {"prompt_tokens_details": {"cached_tokens": 1}, "cost": 3, "n": 4})


@pytest.mark.parametrize(
    "further",
    [
        {"a text as name": 1}, {"a-b": 1}, {"sk-abc": 1}, {"n" * (MAX_NAME + 1): 1}, {"é": 1}, {"": 1},
        {"nothing": None}, {"text": ""}, {"deep": {"deep": {"deep": {"deep": {"deep": {"deep": 1}}}}}},
        {"deep": [[[[[[1]]]]]]}, {"empty": {}}, {"empty": []}, {"nothings": [None, [], {}]}, {"negative": -1},
        {"negative": -0.5}, {"infinite": float("inf")}, {"none": float("nan")}, {"huge": MAX_COUNT},
        {"huges": [MAX_COUNT, -1]},
    ],
)  # fmt: skip
def test_details_have_no_room_for_what_says_nothing_or_is_no_name(further: dict[str, Any]) -> None:
    assert usage_of({"prompt_tokens": 1, **further}) == Usage(prompt_tokens=1)
    assert usage_of({"prompt_tokens": 1, "prompt_tokens_details": further}) == Usage(prompt_tokens=1)


def test_texts_among_details_are_bounded_and_hold_no_key() -> None:
    usage = usage_of({"prompt_tokens": 1, "a": "x" * 10_000, "b": ["sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"]})
    assert usage is not None
    assert usage.details is not None
    assert usage.details["a"] == "x" * (MAX_TEXT - 1) + "…"
    assert usage.details["b"] == ["sk-..."]


def test_a_list_that_is_too_long_says_so_in_its_last_item() -> None:
    whole = usage_of({"prompt_tokens": 1, "list": list(range(MAX_ITEMS))})
    usage = usage_of({"prompt_tokens": 1, "list": list(range(MAX_ITEMS + 1))})
    assert whole == Usage(1, details={"list": list(range(MAX_ITEMS))})
    assert usage == Usage(1, details={"list": [*range(MAX_ITEMS - 1), "…"]})


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
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


@given(st.dictionaries(st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details", "x"]
), _JSON))  # fmt: skip
def test_whatever_stands_there_only_counts_come_out_as_figures(value: dict[str, Any]) -> None:
    usage = usage_of(value)
    if usage is not None:
        for figure in (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached_tokens):
            assert figure is None or (type(figure) is int and 0 <= figure < MAX_COUNT)
        for leaf in leaves(usage.details or {}):
            assert type(leaf) in (str, bool) or (type(leaf) in (int, float) and 0 <= leaf < MAX_COUNT)


def test_what_was_written_to_the_cache_is_a_figure_of_its_own() -> None:
    inner = {"cached_tokens": 3, "cache_write_tokens": 4}
    outer = {"reasoning_tokens": 0}
    chat = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "prompt_tokens_details": inner}
    whole = usage_of(chat | {"completion_tokens_details": outer})
    assert whole == Usage(
        9, 3, 1, 0, 10, {"prompt_tokens_details": inner, "completion_tokens_details": outer}, cache_write_tokens=4
    )
    assert usage_of({"input_tokens": 9, "input_tokens_details": inner}) == Usage(
        9, 3, details={"input_tokens_details": inner}, cache_write_tokens=4
    )


@pytest.mark.parametrize(
    ("beside", "cached", "reasoning"),
    [
        ({"prompt_cache_hit_tokens": 7, "prompt_cache_miss_tokens": 2}, 7, None),
        ({"cached_tokens": 7}, 7, None),
        ({"num_cached_tokens": 7}, 7, None),
        ({"reasoning_tokens": 5}, None, 5),
        ({"prompt_cache_hit_tokens": 7, "prompt_tokens_details": {"cached_tokens": 6}}, 6, None),
        ({"reasoning_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 4}}, None, 4),
        ({"cached_tokens": -1, "reasoning_tokens": "5"}, None, None),
    ],
)
def test_what_providers_say_beside_the_counts_is_read_where_it_is_not_said_within(
    beside: dict[str, Any], cached: int | None, reasoning: int | None
) -> None:
    usage = usage_of({"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15, **beside})
    assert usage is not None
    assert (usage.cached_tokens, usage.reasoning_tokens) == (cached, reasoning)


def test_realtime_says_details_of_both_directions_in_its_own_way() -> None:
    details = {
        "input_token_details": {"cached_tokens": 64, "text_tokens": 119, "cached_tokens_details": {"text_tokens": 64}},
        "output_token_details": {"text_tokens": 30, "audio_tokens": 91, "reasoning_tokens": 9},
    }
    usage = usage_of({"total_tokens": 253, "input_tokens": 132, "output_tokens": 121, **details})
    assert usage == Usage(132, 64, 121, 9, 253, details)


def test_anthropic_counts_all_input_as_the_sum_of_its_three_parts() -> None:
    assert message_usage_of({"input_tokens": 5, "output_tokens": 7}) == Usage(5, None, 7)
    cache = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    assert message_usage_of({"input_tokens": 5, **cache}) == Usage(125, 100, None, None, None, cache, 20)
    assert message_usage_of({"cache_read_input_tokens": 100, "output_tokens": 1}) == Usage(
        None, 100, 1, None, None, {"cache_read_input_tokens": 100}
    )
    assert message_usage_of(None) is None


def iteration(kind: str, taken: Any, given: Any, **further: Any) -> dict[str, Any]:
    return {"type": kind, "input_tokens": taken, "output_tokens": given, **further}


COMPACTED = [iteration("compaction", 180_000, 3_500), iteration("message", 23_000, 1_000)]
ADVISED = [
    iteration("message", 412, 89, cache_read_input_tokens=0, cache_creation_input_tokens=0),
    iteration("advisor_message", 823, 1_612, model="claude-opus-4-6"),
    iteration("message", 1_348, 442, cache_read_input_tokens=412, cache_creation_input_tokens=30),
]


@pytest.mark.parametrize(
    ("top", "iterations", "expected"),
    [  # prompt, cached, written, completion
        (iteration("", 23_000, 1_000), COMPACTED, (203_000, 0, 0, 4_500)),
        (iteration("", 412, 531), ADVISED, (3_025, 412, 30, 2_143)),
        (iteration("", 412, 531), [], (412, None, None, 531)),
        (iteration("", 5, 7, cache_read_input_tokens=10), [iteration("message", 5, 7, cache_read_input_tokens=10)],
         (15, 10, 0, 7)),
        # The totals say more than the entries: something is missing there, and the greater figure is billed at least.
        (iteration("", 500, 60), [iteration("message", 400, 50)], (500, 0, 0, 60)),
        # An entry that says nothing, and more of them than are kept: nobody knows the sum.
        (iteration("", 5, 7), [iteration("message", 5, 7), {"type": "new"}], (None, None, None, None)),
        (iteration("", 5, 7), [iteration("message", 5, None)], (None, None, None, None)),
        (iteration("", 5, 7), [iteration("message", 5, 7)] * (MAX_ITEMS + 1), (None, None, None, None)),
    ],
)  # fmt: skip
def test_what_a_message_took_is_the_sum_of_its_iterations(
    top: dict[str, Any], iterations: list[Any], expected: tuple[int | None, ...]
) -> None:
    usage = message_usage_of({**top, "iterations": iterations})
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.completion_tokens) == expected


# Putting several objects together.

_COUNT = st.integers(1, 1000)
_USAGE = st.fixed_dictionaries(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT},
    optional={
        "total_tokens": _COUNT,
        "cost": st.floats(0, 1),
        "speed": st.sampled_from(["fast", "standard"]),
        "iterations": st.lists(st.dictionaries(st.sampled_from("ab"), _COUNT, min_size=1), min_size=1, max_size=3),
        "prompt_tokens_details": st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "new"]), _COUNT),
        "completion_tokens_details": st.dictionaries(st.sampled_from(["reasoning_tokens", "deep"]), _COUNT),
        "server_tool_use": st.fixed_dictionaries({"inner": st.dictionaries(st.sampled_from("xyz"), _COUNT)}),
    },
)


def parts(draw: st.DrawFn, value: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """A usage object split over some, member by member, with nulls for what another says."""
    split: list[dict[str, Any]] = [{} for _ in range(number)]
    for name, figure in value.items():
        if isinstance(figure, dict):
            for one, inner in zip(split, parts(draw, figure, number), strict=True):
                if inner or draw(st.booleans()):
                    one[name] = inner
        else:
            where = draw(st.integers(0, number - 1))
            for at, one in enumerate(split):
                if at == where or (at > where and draw(st.booleans())):
                    one[name] = figure
                elif draw(st.booleans()):
                    one[name] = None
    return split


@st.composite
def split_usages(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    value = draw(_USAGE)
    return value, parts(draw, value, draw(st.integers(1, 4)))


def put_together(objects: list[dict[str, Any]]) -> Usage | None:
    known: Usage | None = None
    for value in objects:
        usage = usage_of(value)
        if known is None:
            known = usage
        elif usage is not None:
            merge(known, usage)
    return known


@given(split_usages())
def test_a_usage_object_split_over_several_says_the_same(split: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    value, objects = split
    assert put_together(objects) == usage_of(value)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([{"prompt_tokens": 9}, {"completion_tokens": 2}], Usage(9, None, 2)),
        ([{"prompt_tokens": 9, "completion_tokens": 1}, {"prompt_tokens": 9, "completion_tokens": 5}],
         Usage(9, None, 5)),
        ([{"prompt_tokens": 9, "completion_tokens": 5}, {"prompt_tokens": None, "completion_tokens": None, "x": 1}],
         Usage(9, None, 5, details={"x": 1})),
        ([{"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
          {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}], Usage(9, None, 5, None, 14)),
        ([{"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 9, "completion_tokens": 0}],
         Usage(9, None, 0)),
        ([{"prompt_tokens": 9, "completion_tokens": 5}, {"prompt_tokens": 8, "completion_tokens": 4}],
         Usage(8, None, 4)),
        ([{"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}, {"completion_tokens": 5}],
         Usage(9, None, 5)),
        ([{"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4, "new": 1}},
          {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}],
         Usage(9, 4, 2, None, 11, {"prompt_tokens_details": {"cached_tokens": 4, "new": 1}})),
        ([{"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
          {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0, "new": None}}],
         Usage(9, 4, details={"prompt_tokens_details": {"cached_tokens": 4}})),
        ([{"prompt_tokens": 9, "list": [1, 2], "flag": True, "text": "a"}, {"list": [3], "flag": False, "text": "b"}],
         Usage(9, details={"list": [3], "flag": False, "text": "b"})),
    ],
)  # fmt: skip
def test_what_is_known_stays_until_something_else_is_said(objects: list[dict[str, Any]], expected: Usage) -> None:
    assert put_together(objects) == expected


def test_what_is_put_together_is_bounded_and_known_names_still_count() -> None:
    known = put_together([{"prompt_tokens": 1, "first": 1}, *({f"n{n}": {f"m{n}": [n]}} for n in range(1000))])
    assert known is not None
    assert known.details is not None
    assert len(leaves(known.details)) <= MAX_FIGURES
    merge(known, Usage(2, details={"first": 7, "last": [8] * 8}))
    assert known.prompt_tokens == 2
    assert known.details["first"] == 7
    assert "last" not in known.details


@pytest.mark.parametrize("value", [None, "", 7, ["m"], {"m": 1}])
def test_a_name_that_is_no_text_is_none(value: Any) -> None:
    assert text_of(value) is None


def test_a_name_is_bounded_and_holds_no_key() -> None:
    assert text_of("m" * 10_000) == "m" * (MAX_TEXT - 1) + "…"
    shown = text_of("model sk-proj-abcdefghijklmnopqrstuvwxyz0123456789")
    assert shown is not None
    assert "abcdefghijkl" not in shown
