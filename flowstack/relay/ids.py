"""Ids of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import iter_unpack


def request_ids(
    random: Callable[[int], bytes], monotonic: Callable[[], float], wall_clock: Callable[[], float]
) -> Iterator[bytes]:
    """Ids of 32 hexadecimal digits: 12 are the time in ms since 1970, as it was at most a second before; the others
    stand for 80 random bits, drawn from the system in blocks. So ids come in the order of time, about, and an index of
    them grows at its end.
    """
    while True:
        until = monotonic() + 1
        time = b"%012x" % int(wall_clock() * 1000)
        block = random(10 * 256).hex().encode("ascii")
        for (end,) in iter_unpack("20s", block):
            yield time + end
            if monotonic() >= until:
                break
