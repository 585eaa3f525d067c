"""Counts of times, and what percentiles they give."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from flowstack.ledger.histogram import LAST, WIDTH, bucket, percentiles


def bands(times: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for number, count in Counter(map(bucket, times)).items():
        found.setdefault(number // WIDTH, [0] * WIDTH)[number % WIDTH] = count
    return found


def exact(times: list[int], percent: float) -> float:
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1] / 1000


@pytest.mark.parametrize("seed", range(20))
def test_a_percentile_is_off_by_less_than_five_percent(seed: int) -> None:
    chance = random.Random(seed)
    times = [int(chance.lognormvariate(10, 3)) + 1 for _ in range(chance.choice((1, 2, 3, 99, 1000)))]
    for percent, found in zip((1, 50, 95, 99, 100), percentiles(bands(times), (1, 50, 95, 99, 100)), strict=True):
        assert found is not None
        assert abs(found / exact(times, percent) - 1) < 0.05


def test_every_time_from_a_microsecond_to_eight_hours_is_told_within_five_percent() -> None:
    time = 1
    while time < 8 * 3600 * 10**6:
        (found,) = percentiles(bands([time]), (50,))
        assert found is not None and abs(found * 1000 / time - 1) < 0.0489
        time = max(time + 1, int(time * 1.013))


def test_a_time_is_in_the_bucket_whose_power_of_growth_it_has_reached() -> None:
    for power in range(30, LAST - 1):
        begins = math.ceil(1.1**power)
        assert (bucket(begins - 1), bucket(begins)) == (power + 1, power + 2)


def test_what_is_longer_than_a_day_counts_in_the_last_bucket_and_nothing_in_the_first() -> None:
    assert bucket(10**12) == LAST
    assert bucket(0) == 1
    assert bucket(-1) == 0
    assert percentiles(bands([0]), (50,)) == [0.0]
    assert percentiles({}, (50, 99)) == [None, None]
