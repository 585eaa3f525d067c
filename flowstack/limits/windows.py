"""How much happened in the last 60 seconds, in bounded memory, and never too little.

A window is a run of cells, each a 64-bit number: the newest bucket, the sum of all buckets, and a ring of 31 buckets
of 2 seconds. A bucket counts as long as any of its 2 seconds may lie within the last 60, so an amount counts for 60
seconds at least and for 62 at most. Hence no 60 seconds, wherever they begin, hold more than the limit; the price is
that a limit which is used evenly and to the full gives at least 60/62 of its rate (3.2 % less).

The newest bucket's own cell is not kept up to date: it is what the sum has beyond the other cells, and is written when
the next bucket begins. So to count one more costs one cell.

A window has one writer. Others may read it at any moment: the writer's steps are in such an order that what a reader
sees is what was there, or more.

Buckets are numbered from the epoch of a clock that never steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

Cells: TypeAlias = "memoryview[int] | list[int]"

SPAN: Final = 60
"""Seconds for which an amount counts at least."""

GRAIN: Final = 2
"""Seconds to a bucket."""

BUCKETS: Final = SPAN // GRAIN + 1

TOTAL: Final = 1
RING: Final = 2
"""Where the sum and the ring lie, from the window's first cell on; that one is the bucket of the last change."""

CELLS: Final = RING + BUCKETS
"""Cells of a window. All zero is an empty one."""


class LateError(Exception):
    """A window has gone on to a bucket that the reader's clock had not reached when it was read: read it anew."""


def bucket_of(seconds: float) -> int:
    """The bucket of a time."""
    return int(seconds) // GRAIN


def ends_at(bucket: int) -> int:
    """The first whole second at which a bucket counts no more."""
    return (bucket + BUCKETS) * GRAIN


def advance(cells: Cells, at: int, bucket: int) -> None:
    """Bring a window to ``bucket``: what is older than 60 seconds leaves. For its writer alone."""
    head = cells[at]
    if bucket <= head:
        return
    ring = at + RING
    if bucket - head >= BUCKETS:
        for place in range(ring, ring + BUCKETS):
            cells[place] = 0
    else:
        newest = ring + head % BUCKETS
        cells[newest] = cells[at + TOTAL] - sum(cells[ring : ring + BUCKETS]) + cells[newest]
        for old in range(head + 1, bucket + 1):
            cells[ring + old % BUCKETS] = 0
    # In this order, so that a reader between two steps finds what was there, or more. And summed anew, so that a writer
    # which was killed between two steps leaves no error behind.
    cells[at + TOTAL] = sum(cells[ring : ring + BUCKETS])
    cells[at] = bucket


def add(cells: Cells, at: int, bucket: int, amount: int) -> None:
    """Count an amount in ``bucket``, or in the newest if that is later. For the window's writer alone."""
    if cells[at] < bucket:
        advance(cells, at, bucket)
    cells[at + TOTAL] += amount


def take_back(cells: Cells, at: int, bucket: int, amount: int) -> None:
    """Count ``amount`` less in ``bucket``, where at least as much was added, if it still counts. For its writer."""
    age = cells[at] - bucket
    if age < BUCKETS:
        if age > 0:
            cells[at + RING + bucket % BUCKETS] -= amount
        cells[at + TOTAL] -= amount


def live(cells: Cells, at: int, bucket: int) -> int:
    """What counts at ``bucket``, which may be later than the window's last change. For any reader.

    :raises LateError: it is earlier.
    """
    ring = at + RING
    while True:
        head = cells[at]
        lag = bucket - head
        if lag < 0:
            raise LateError
        if not lag:
            return cells[at + TOTAL]
        if lag >= BUCKETS:
            return 0
        total = cells[at + TOTAL]
        for old in range(head + 1, bucket + 1):
            total -= cells[ring + old % BUCKETS]
        if cells[at] == head:  # else its writer has begun to fill the cells that were just taken for old ones
            return total


def frees_at(cells: Cells, columns: Iterable[int], bucket: int, excess: int) -> int | None:
    """When at least ``excess`` of what counts in several windows together will count no more.

    :param columns: where each window begins.
    :return: whole seconds on the buckets' clock; None if less than that counts.
    """
    counts = [0] * BUCKETS
    for at in columns:
        head, ring = cells[at], at + RING
        rest = live(cells, at, bucket)
        for old in range(bucket - BUCKETS + 1, min(head, bucket + 1)):
            counts[old % BUCKETS] += cells[ring + old % BUCKETS]
            rest -= cells[ring + old % BUCKETS]
        counts[min(head, bucket) % BUCKETS] += rest
    for old in range(bucket - BUCKETS + 1, bucket + 1):
        excess -= counts[old % BUCKETS]
        if excess <= 0:
            return ends_at(old)
    return None


def sound(cells: Cells, at: int, bucket: int) -> bool:
    """Whether a window that was found somewhere can be one: not of the future, and nothing in it below zero."""
    head, ring = cells[at], cells[at + RING : at + CELLS]
    return 0 <= head <= bucket and min(ring) >= 0 and cells[at + TOTAL] >= sum(ring) - ring[head % BUCKETS]
