"""Patterns with ``*``, against the regular expressions that they could be."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.keys.patterns import Patterns


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


class Read(str):
    """A text that counts how much of it is looked at."""

    looked_at = 0

    def find(self, sub: str, start: Any = 0, end: Any = None) -> int:  # type: ignore[override]
        found = super().find(sub, start, end)
        self.looked_at += (end if found < 0 else found + len(sub)) - start
        return found


STARS = ["*a*b*c*", "*a" * 100 + "b", "*a" * 100 + "*b", "*b" + "*a" * 100, "*ab*" * 50 + "c"]


@pytest.mark.parametrize("pattern", STARS)
@pytest.mark.parametrize("part", ["a", "ab", "abc", "aab", "cba"])
def test_no_text_is_looked_at_twice_whatever_the_stars_are(pattern: str, part: str) -> None:
    for size in (1_000, 100_000):
        text = Read((part * size)[:size])
        Patterns((pattern,)).fit(text)
        assert text.looked_at <= size
