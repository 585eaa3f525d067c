"""A histogram of times as one whole number, so that to merge is to add, and to take away is to subtract.

Bucket 1 holds times under 1 µs; each further one, ``i``, those from ``1.1 ** (i - 2)`` µs up to ``1.1 ** (i - 1)`` µs,
and the last one all from eight hours up. A bucket's count stands in the number's bits ``32 i`` to ``32 i + 31``. A
percentile is given as its bucket's geometric middle, so it is off by at most 4.9 %.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

GROWTH = 1.1
LANE = 32
LAST = 255
UNKNOWN = 0
"""The bucket of no time, which is not counted."""

_LANES = struct.Struct(f"<{LAST + 1}I")
_PER_E = 1 / math.log(GROWTH)
_LENGTHS = struct.Struct("<3H")


def bucket(microseconds: int | None) -> int:
    """Where a time is counted."""
    if microseconds is None:
        return UNKNOWN
    return 1 if microseconds < 1 else min(LAST, 2 + int(math.log(microseconds) * _PER_E))


def packed(buckets: bytes) -> bytes:
    """The histogram of times whose buckets these are, as it is stored: the first bucket, then the counts up to the
    last, 32 bits each, little-endian, without zeros at the end.
    """
    known = buckets.translate(None, b"\0")
    if len(known) < 2:
        return known and known + b"\1"
    first = min(known)
    if len(known) > 64:
        return _joined(first, sum(count << LANE * (one - first) for one, count in Counter(known).items()))
    histogram = 0
    for one in known:
        histogram += 1 << LANE * (one - first)
    return _joined(first, histogram)


def merged(a: bytes, b: bytes) -> bytes:
    """Two stored histograms as one."""
    if not a or not b:
        return a or b
    first = min(a[0], b[0])
    return _joined(
        first,
        (int.from_bytes(a[1:], "little") << LANE * (a[0] - first))
        + (int.from_bytes(b[1:], "little") << LANE * (b[0] - first)),
    )


def _joined(first: int, counts: int) -> bytes:
    return bytes((first,)) + counts.to_bytes((counts.bit_length() + 7) // 8, "little")


def percentiles(histogram: int, percents: Iterable[float]) -> list[float | None]:
    """The times, in milliseconds, that so many percent do not exceed; None where no time is known."""
    counts = list(accumulate(_LANES.unpack(histogram.to_bytes(_LANES.size, "little"))))
    if not counts[-1]:
        return [None for _ in percents]
    return [_middle(bisect_left(counts, math.ceil(counts[-1] * percent / 100))) for percent in percents]


def _middle(bucket: int) -> float:
    return GROWTH ** (bucket - 1.5) / 1000 if bucket > 1 else 0.0


class Merge:
    """SQLite's aggregate function ``merge(a, b, c)`` of stored histograms: gives the three sums, see :func:`three`."""

    def __init__(self) -> None:
        self._a = self._b = self._c = 0

    def step(self, a: bytes, b: bytes, c: bytes) -> None:
        """Add three."""
        if a:
            self._a += int.from_bytes(a[1:], "little") << (a[0] << 5)
        if b:
            self._b += int.from_bytes(b[1:], "little") << (b[0] << 5)
        if c:
            self._c += int.from_bytes(c[1:], "little") << (c[0] << 5)

    def finalize(self) -> bytes:
        """The sums."""
        all_three = [each.to_bytes((each.bit_length() + 7) // 8, "little") for each in (self._a, self._b, self._c)]
        return _LENGTHS.pack(*map(len, all_three)) + b"".join(all_three)


class Tally:
    """SQLite's aggregate function ``tally(buckets)`` of three buckets a row: gives the same as :class:`Merge`."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []

    def step(self, buckets: bytes) -> None:
        """Count a row."""
        self._rows.append(buckets)

    def finalize(self) -> bytes:
        """The sums."""
        rows = b"".join(self._rows)
        merge = Merge()
        merge.step(packed(rows[0::3]), packed(rows[1::3]), packed(rows[2::3]))
        return merge.finalize()


def three(data: bytes) -> list[int]:
    """The three histograms that an aggregate function gave."""
    at = _LENGTHS.size
    found = []
    for length in _LENGTHS.unpack_from(data):
        found.append(int.from_bytes(data[at : at + length], "little"))
        at += length
    return found
