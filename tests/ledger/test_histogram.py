"""Histograms as numbers."""

from __future__ import annotations

import math
import random

import pytest

from flowstack.ledger.histogram import LAST, Merge, Tally, bucket, merged, packed, percentiles, three


def number(stored: bytes) -> int:
    return int.from_bytes(stored[1:], "little") << 32 * stored[0] if stored else 0


def exact(times: list[int], percent: float) -> float:
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1] / 1000


@pytest.mark.parametrize("seed", range(20))
def test_a_percentile_is_off_by_less_than_five_percent(seed: int) -> None:
    chance = random.Random(seed)
    times = [int(chance.lognormvariate(10, 3)) + 1 for _ in range(chance.choice((1, 2, 3, 99, 1000)))]
    stored = packed(bytes(map(bucket, times)))
    for percent, found in zip((1, 50, 95, 99, 100), percentiles(number(stored), (1, 50, 95, 99, 100)), strict=True):
        assert found is not None
        assert abs(found / exact(times, percent) - 1) < 0.05


def test_every_time_from_a_microsecond_to_eight_hours_is_told_within_five_percent() -> None:
    time = 1
    while time < 8 * 3600 * 10**6:
        (found,) = percentiles(number(packed(bytes([bucket(time)]))), (50,))
        assert found is not None and abs(found * 1000 / time - 1) < 0.0489
        time = max(time + 1, int(time * 1.013))


def test_what_is_longer_than_a_day_counts_in_the_last_bucket_and_nothing_in_the_first() -> None:
    assert bucket(10**12) == LAST
    assert bucket(0) == 1
    assert bucket(None) == 0
    assert percentiles(number(packed(bytes([1]))), (50,)) == [0.0]
    assert percentiles(0, (50, 99)) == [None, None]
    assert packed(b"\0\0") == packed(b"") == b""


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (1, 1), (5, 70), (200, 100)])
def test_merging_what_is_stored_is_counting_together(sizes: tuple[int, int]) -> None:
    chance = random.Random(sum(sizes))
    a, b = (bytes(chance.randrange(LAST + 1) for _ in range(size)) for size in sizes)
    assert merged(packed(a), packed(b)) == packed(a + b)
    assert number(merged(packed(a), packed(b))) == number(packed(a)) + number(packed(b))


def test_the_two_aggregates_agree() -> None:
    times = [(None, 5, 10**6), (7, None, None), (0, 10**7, 3)]
    merge, tally = Merge(), Tally()
    for some in times:
        merge.step(*(packed(bytes([bucket(time)])) for time in some))
        tally.step(bytes(map(bucket, some)))
    assert merge.finalize() == tally.finalize()
    assert three(merge.finalize()) == [
        number(packed(bytes(bucket(some[at]) for some in times))) for at in range(3)
    ]  # fmt: skip
    assert three(Merge().finalize()) == [0, 0, 0]
