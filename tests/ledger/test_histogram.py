"""Counts of times, and what percentiles they give."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from flowstack.ledger.histogram import GROWTH, LAST, Times, bucket, bucket_of, code, percentiles, stored


def told(times: list[int], *percents: float) -> list[float | None]:
    """Percentiles of what stands first in a row."""
    return percentiles(counted(codes((time, -1, -1) for time in times)).three()[0], percents)


def codes(some: Iterable[tuple[int, int, int]]) -> bytes:
    """Times of rows, as those that :func:`stored` takes."""
    return b"".join(code(*times).to_bytes(4, "little") for times in some)


def counted(*some: bytes) -> Times:
    times = Times()
    for one in some:
        times.codes += one
    return times


def some_time(chance: random.Random) -> int:
    return chance.choice((-1, 0, 7, 10**6, 10**9, 10**12))


def exact(times: list[int], percent: float) -> float:
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1] / 1000


@pytest.mark.parametrize("seed", range(20))
def test_a_percentile_is_off_by_less_than_five_percent(seed: int) -> None:
    chance = random.Random(seed)
    times = [int(chance.lognormvariate(10, 3)) + 1 for _ in range(chance.choice((1, 2, 3, 99, 1000)))]
    for percent, found in zip((1, 50, 95, 99, 100), told(times, 1, 50, 95, 99, 100), strict=True):
        assert found is not None
        assert abs(found / exact(times, percent) - 1) < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_are_those_of_the_buckets_in_order(seed: int) -> None:
    chance = random.Random(seed)
    times = [some_time(chance) for _ in range(chance.choice((0, 1, 2, 99, 1000)))]
    buckets = sorted(filter(None, map(bucket, times)))
    percents = (0.1, 50, 95, 99, 100)
    at = [buckets[math.ceil(len(buckets) * percent / 100) - 1] for percent in percents] if buckets else []
    wanted = [GROWTH ** (one - 1.5) / 1000 if one > 1 else 0.0 for one in at] or [None] * len(percents)
    assert told(times, *percents) == wanted


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (70,), (3, 0, 5), (70, 3, 100)])
def test_times_of_several_lines_together_are_counting_all_of_them(sizes: tuple[int, ...]) -> None:
    chance = random.Random(sum(sizes))
    some = [codes((some_time(chance), some_time(chance), some_time(chance)) for _ in range(size)) for size in sizes]
    lines = [Times() for _ in some]
    for times, data in zip(lines, some, strict=True):
        times.add(stored(data, None, None))
    assert Times.together(lines).three() == counted(*some).three()
    assert [times.three() for times in lines] == [counted(data).three() for data in some]


def test_every_time_from_a_microsecond_to_eight_hours_is_told_within_five_percent() -> None:
    time = 1
    while time < 8 * 3600 * 10**6:
        (found,) = told([time], 50)
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
    assert told([0], 50) == [0.0]
    assert told([], 50, 99) == told([-1], 50, 99) == [None, None]


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (1, 1), (40, 20), (5, 70), (70, 5), (200, 100)])
def test_storing_some_with_what_is_stored_is_counting_all_together(sizes: tuple[int, int]) -> None:
    chance = random.Random(sum(sizes))
    a, b = (codes((some_time(chance), some_time(chance), some_time(chance)) for _ in range(size)) for size in sizes)
    times = Times()
    times.add(stored(b, None, bytes(stored(a, None, None))))
    assert times.three() == counted(a, b).three()
    times.add(stored(a, None, None))
    assert times.three() == counted(a, b, a).three()
    times.add(stored(a, counted(b).three(), bytes(stored(b, None, None))))
    assert times.three() == counted(a, b, a, a, b, b).three()


def test_milliseconds_are_counted_where_their_whole_microseconds_are() -> None:
    chance = random.Random(1)
    for time in [*range(20_000), *(round(10 ** (12 * chance.random())) for _ in range(20_000)), 10**12]:
        assert bucket_of(time / 1000) == bucket(time)
    assert bucket_of(None) == bucket(-1)


@pytest.mark.parametrize("time", [-0.001, -5, 1e9 + 1, 1e300, float("inf"), float("nan")])
def test_milliseconds_that_cannot_be_are_refused(time: float) -> None:
    with pytest.raises(ValueError, match="expected from 0 to 1000000000"):
        bucket_of(time)
