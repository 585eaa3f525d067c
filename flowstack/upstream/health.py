"""Whether a target is up, by what becomes of the requests that it gets; nothing is sent to find out."""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence, Sequence
from typing import Final

from flowstack.config.settings import Health as Rules

SECONDS: Final = 10
"""Of requests that are looked back on."""

CELLS: Final = 5
"""Numbers that the workers share of each target."""

_IN_A_ROW, _DOWN_UNTIL, _EJECTIONS, _PROBED_UNTIL, _BACK_AT = range(CELLS)

PROBE: Final = 30.0
"""Seconds after which the next request may probe a target, where that of the one before is not known yet."""


class Window:
    """Two counts of the last :data:`SECONDS` seconds, to the second."""

    __slots__ = ("_all", "_some", "_then")

    def __init__(self) -> None:
        self._all = [0] * SECONDS
        self._some = [0] * SECONDS
        self._then = 0  # the newest second that is counted

    def add(self, now: float, all_of: int, some: int) -> None:
        """Count.

        :param now: on a clock that never steps.
        """
        second = int(now)
        if second != self._then:
            self._forget(second)
        self._all[second % SECONDS] += all_of
        self._some[second % SECONDS] += some

    def sums(self, now: float) -> tuple[int, int]:
        """Both counts."""
        self._forget(int(now))
        return sum(self._all), sum(self._some)

    def _forget(self, second: int) -> None:
        for old in range(max(self._then + 1, second - SECONDS + 1), second + 1):
            self._all[old % SECONDS] = self._some[old % SECONDS] = 0
        self._then = max(self._then, second)


def is_down(cells: Sequence[float]) -> bool:
    """Whether the target with these cells counts as down."""
    return cells[_DOWN_UNTIL] > 0


class Health:
    """Of one target. Times are on the monotonic clock, which is the same in all workers.

    What the workers share is written without a lock: of two that write at once one is forgotten, so that a failure more
    or less counts, and never anything else.

    :param cells: :data:`CELLS` numbers, all 0 at first; shared between the workers, or not.
    """

    __slots__ = ("_cells", "_rules", "_window")

    def __init__(self, rules: Rules, cells: MutableSequence[float] | None = None) -> None:
        self._rules = rules
        self._cells: MutableSequence[float] = array("d", [0.0] * CELLS) if cells is None else cells
        self._window = Window()

    @property
    def down(self) -> bool:
        """Whether it counts as down: until a request that tries it ends well."""
        return is_down(self._cells)

    def may_probe(self, now: float) -> bool:
        """Whether its time is over and nobody tries it."""
        cells = self._cells
        return 0 < cells[_DOWN_UNTIL] <= now and cells[_PROBED_UNTIL] <= now

    def probe(self, now: float) -> None:
        """A request goes out that tries it."""
        self._cells[_PROBED_UNTIL] = now + PROBE

    def share(self, now: float) -> float:
        """Which part of its weight counts: less than 1 for a time after it is back."""
        back, slow = self._cells[_BACK_AT], self._rules.slow_start
        if not back or not slow or now >= back + slow:
            return 1.0
        return max(0.1, (now - back) / slow)

    def succeeded(self, now: float) -> bool:
        """A request ended well; tell whether the target is back by that."""
        cells = self._cells
        self._window.add(now, 1, 0)
        if cells[_IN_A_ROW]:
            cells[_IN_A_ROW] = 0.0
        if not cells[_DOWN_UNTIL]:
            return False
        cells[_DOWN_UNTIL] = cells[_PROBED_UNTIL] = 0.0
        cells[_BACK_AT] = now
        self._window = Window()
        return True

    def failed(self, now: float) -> float:
        """A request failed; tell for how long the target is down by that, or 0."""
        cells, rules = self._cells, self._rules
        self._window.add(now, 1, 1)
        cells[_IN_A_ROW] += 1.0
        if cells[_DOWN_UNTIL]:
            if cells[_DOWN_UNTIL] > now or not cells[_PROBED_UNTIL]:
                return 0.0  # it was sent before
            return self._eject(now)
        if cells[_IN_A_ROW] >= rules.failures:
            return self._eject(now)
        requests, failures = self._window.sums(now)
        enough = rules.failure_share < 1 and requests >= rules.failure_share_requests
        return self._eject(now) if enough and failures >= rules.failure_share * requests else 0.0

    def _eject(self, now: float) -> float:
        cells, rules = self._cells, self._rules
        if cells[_BACK_AT] and now - cells[_BACK_AT] > rules.eject_max:
            cells[_EJECTIONS] = 0.0
        seconds: float = min(rules.eject_max, rules.eject * 2.0 ** min(cells[_EJECTIONS], 60.0))
        cells[_EJECTIONS] += 1.0
        cells[_PROBED_UNTIL] = 0.0
        cells[_DOWN_UNTIL] = now + seconds
        return seconds
