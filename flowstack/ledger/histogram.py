"""In which bucket a time is counted, and percentiles of such counts.

Bucket 1 holds times under 1 µs; each further one, ``i``, those from ``1.1 ** (i - 2)`` µs up to ``1.1 ** (i - 1)`` µs,
and the last one all from eight hours up. Bucket 0 is for no time, and is not counted. A percentile is its bucket's
geometric middle, so it is off by at most 4.9 %.

Eight buckets in a row, such as 16 to 23, are a *band*: one row of the table ``times``, with a column a bucket.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

GROWTH = 1.1
LAST = 255
WIDTH = 8
"""Buckets in a band."""

_BOUNDS = [0, *(math.ceil(GROWTH**power) for power in range(LAST - 1))]
"""Where each bucket begins, from bucket 1 on. Some are empty, as no whole number lies in them."""


def bucket(microseconds: int) -> int:
    """Give the number of the bucket; 0 for -1, which stands for no time."""
    return bisect_right(_BOUNDS, microseconds)


def percentiles(bands: Mapping[int, Sequence[int]], percents: Sequence[float]) -> list[float | None]:
    """Give the times, in milliseconds, that so many percent do not exceed; None where no time is known.

    :param bands: by its number, the counts of a band's buckets.
    :param percents: ascending.
    """
    places = sorted(bands)
    sizes = [sum(bands[place]) for place in places]
    count = sum(sizes)
    if not count:
        return [None for _ in percents]
    found: list[float | None] = []
    at, before = 0, 0  # the band, and how many times lie before it
    for percent in percents:
        rank = math.ceil(count * percent / 100)
        while before + sizes[at] < rank:
            before += sizes[at]
            at += 1
        left = rank - before
        for number, some in enumerate(bands[places[at]], places[at] * WIDTH):
            left -= some
            if left <= 0:
                found.append(GROWTH ** (number - 1.5) / 1000 if number > 1 else 0.0)
                break
    return found
