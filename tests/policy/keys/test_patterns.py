"""Patterns with ``*``, against the regular expressions that they could be."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.policy.keys.patterns import Patterns


@given(st.lists(st.text("ab*", min_size=1, max_size=8), max_size=3).map(tuple), st.text("ab", max_size=12))
def test_a_pattern_fits_what_the_same_regular_expression_fits(patterns: tuple[str, ...], text: str) -> None:
    expected = any(re.fullmatch(".*".join(map(re.escape, p.split("*"))), text, re.DOTALL) for p in patterns)
    assert Patterns(patterns).fit(text) == expected


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("gpt-4o*", ["gpt-4o", "gpt-4o-mini", "gpt-4o\n"], ["gpt-4", "xgpt-4o", "GPT-4o"]),
        ("*", ["", "a"], []),
        ("a*a", ["aa", "aba"], ["a"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_only_the_star_has_a_meaning(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    assert [text for text in fits + fits_not if Patterns((pattern,)).fit(text)] == fits


def test_many_stars_against_a_long_text_that_almost_fits_take_no_time() -> None:
    began = time.process_time()
    assert not Patterns(("*a" * 100 + "b",)).fit("a" * 100_000)
    assert time.process_time() - began < 5  # a regular expression would not come back
