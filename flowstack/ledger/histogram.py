"""How long requests took, counted in buckets, and the percentiles of that.

Bucket 1 holds times under 1 µs; each further one, ``i``, those from ``1.1 ** (i - 2)`` µs up to ``1.1 ** (i - 1)`` µs,
and the last one all from eight hours up. Bucket 0 is for no time, and is not counted. A percentile is its bucket's
geometric middle, so it is off by at most 4.9 %.

The three buckets of a row are one number, see :func:`code`. A histogram is a whole number too: a bucket's count stands
in its bits ``32 i`` to ``32 i + 31``, so that to merge is to add.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

GROWTH = 1.1
LAST = 255

MOST_MS = 1e9
"""Milliseconds above this are nobody's."""

_BOUNDS = [0, *(math.ceil(GROWTH**power) for power in range(LAST - 1))]
"""Where each bucket begins, from bucket 1 on. Some are empty, as no whole number lies in them."""

_BOUNDS_MS = [(bound - 0.5) / 1000 for bound in _BOUNDS]
"""The same in milliseconds, of times that are rounded to whole microseconds."""

_MIDDLES = [0.0, 0.0, *(GROWTH ** (bucket - 1.5) / 1000 for bucket in range(2, LAST + 1))]
"""Of each bucket, in milliseconds, the geometric one."""

Three = tuple[int, int, int]
"""The histograms of the times of several rows."""

_LANES = struct.Struct(f"<{LAST + 1}I")
_LANE = 4
_HEAD = struct.Struct("<B3H3B")
"""Of what is stored of many rows: 1; of each histogram its bytes; and the bucket of its first count."""

FEW = 64 * _LANE
"""Bytes of codes that are kept one by one, which takes less than counts."""


def bucket(microseconds: int) -> int:
    """Where a time is counted; 0 for -1, which stands for no time."""
    return bisect_right(_BOUNDS, microseconds)


def code(first_byte: int, duration: int, overhead: int) -> int:
    """The buckets of a row's times as one number."""
    return (
        bisect_right(_BOUNDS, first_byte) | bisect_right(_BOUNDS, duration) << 8 | bisect_right(_BOUNDS, overhead) << 16
    )


def bucket_of(milliseconds: float | None) -> int:
    """Where a time is counted; 0 for None, which stands for no time.

    :raises ValueError: it is none that can be.
    """
    if milliseconds is None:
        return 0
    if not 0.0 <= milliseconds <= MOST_MS:
        raise ValueError(f"found {milliseconds} ms, expected from 0 to {MOST_MS:.0f}")
    return bisect_right(_BOUNDS_MS, milliseconds)


class Times:
    """The times of several rows.

    :ivar codes: of rows that are not counted yet, as :func:`stored` takes them.
    """

    __slots__ = ("_counts", "codes")

    def __init__(self) -> None:
        self.codes = bytearray()
        self._counts: Three | None = None

    @classmethod
    def together(cls, some: Iterable[Times]) -> Times:
        """All of them as one."""
        found, counts = cls(), []
        for times in some:
            found.codes += times.codes
            if times._counts is not None:
                counts.append(times._counts)
        found._counts = added(counts) if counts else None
        return found

    def add(self, data: bytes) -> None:
        """Add what :func:`stored` gave."""
        if not data[0]:
            self.codes += data[1:]
            return
        some = _counts(data)
        self._counts = some if self._counts is None else added((self._counts, some))

    def three(self) -> Three:
        """The histograms of the three times."""
        if self.codes:
            some = counted(self.codes)
            self._counts = some if self._counts is None else added((self._counts, some))
            self.codes = bytearray()
        return self._counts or (0, 0, 0)


def stored(codes: bytes, counts: Three | None, known: bytes | None) -> bytearray:
    """Times as they stand in the table, together with what stands there: 0 and the codes themselves, where they are
    few, or counts.

    :param codes: of four bytes each, the lowest first.
    :param counts: those of further rows.
    """
    some = [] if counts is None else [counts]
    if known is not None:
        if known[0]:
            some.append(_counts(known))
        else:
            codes = known[1:] + codes
    if not some and len(codes) <= FEW:
        return bytearray(b"\0" + codes)
    if codes:
        some.append(counted(codes))
    parts, firsts = [], []
    for histogram in added(some):
        first, left = _parted(histogram)
        parts.append(left.to_bytes((left.bit_length() + 7) // 8, "little"))
        firsts.append(first)
    return bytearray(b"".join((_HEAD.pack(1, *map(len, parts), *firsts), *parts)))


def _counts(data: bytes) -> Three:
    """What :func:`stored` gave of many rows."""
    _, a, b, c, first, second, third = _HEAD.unpack_from(data)
    at, number = _HEAD.size, int.from_bytes
    return (
        number(data[at : at + a], "little") << (first << 5),
        number(data[at + a : at + a + b], "little") << (second << 5),
        number(data[at + a + b : at + a + b + c], "little") << (third << 5),
    )


def added(some: Sequence[Three]) -> Three:
    """The histograms of all together."""
    if len(some) == 1:
        return some[0]
    first, second, third = zip(*some, strict=True)
    return sum(first), sum(second), sum(third)


def counted(codes: bytes | bytearray) -> Three:
    """The histograms of some rows' times.

    :param codes: of four bytes each, the lowest first.
    """
    return _counted(codes[0::_LANE]), _counted(codes[1::_LANE]), _counted(codes[2::_LANE])


def _counted(buckets: bytes | bytearray) -> int:
    lanes = [0] * (LAST + 1)
    for one in buckets:
        lanes[one] += 1
    lanes[0] = 0
    return int.from_bytes(_LANES.pack(*lanes), "little")


def percentiles(histogram: int, percents: Iterable[float]) -> list[float | None]:
    """The times, in milliseconds, that so many percent do not exceed; None where no time is known."""
    if not histogram:
        return [None for _ in percents]
    first, left = _parted(histogram)
    lanes = memoryview(left.to_bytes((left.bit_length() + 31) // 32 * _LANE, "little")).cast("I")
    counts = list(accumulate(lanes))
    return [_MIDDLES[first + bisect_left(counts, math.ceil(counts[-1] * percent / 100))] for percent in percents]


def _parted(histogram: int) -> tuple[int, int]:
    """The first bucket that counts something, and the histogram from that one on."""
    first = (histogram & -histogram).bit_length() >> 5
    return first, histogram >> (first << 5)
