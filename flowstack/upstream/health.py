"""Whether a target is up, by what becomes of the requests that it gets; nothing is sent to find out."""

from __future__ import annotations

from array import array
from collections import deque
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


class Recent:
    """How much a number that only grows has grown in about the last :data:`SECONDS` seconds.

    What is counted is counted by its owner; here is only noted, about once a second, how much it was.
    """

    __slots__ = ("_notes",)

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """Note what the number is.

        :param now: on a clock that never steps.
        """
        notes = self._notes
        notes.append((now, count))
        while len(notes) > 1 and notes[1][0] <= now - SECONDS:
            notes.popleft()

    def grown(self, now: float, count: int) -> int:
        """By how much it has grown.

        :param count: what it is now.
        """
        before = 0
        for then, noted in self._notes:
            if then > now - SECONDS:
                break
            before = noted
        return count - before


def is_down(cells: Sequence[float]) -> bool:
    """Whether the target with these cells counts as down."""
    return cells[_DOWN_UNTIL] > 0


class Health:
    """Of one target. Times are on the monotonic clock, which is the same in all workers.

    What the workers share is written without a lock: of two that write at once one is forgotten, so that a failure more
    or less counts, and never anything else.

    :param cells: :data:`CELLS` numbers, all 0 at first; shared between the workers, or not.
    :ivar requests: that were sent there by this process; whoever sends one adds to it.
    """

    __slots__ = ("_cells", "_failed", "_failures", "_recent", "_rules", "requests")

    def __init__(self, rules: Rules, cells: MutableSequence[float] | None = None) -> None:
        self._rules = rules
        self._cells: MutableSequence[float] = array("d", [0.0] * CELLS) if cells is None else cells
        self.requests = self._failures = 0
        self._recent = Recent()  # of requests
        self._failed = Recent()

    @property
    def down(self) -> bool:
        """Whether it counts as down: until a request that tries it ends well."""
        return self._cells[_DOWN_UNTIL] > 0

    @property
    def well(self) -> bool:
        """Whether it is up and its last request ended well, so that nothing is to be said of one that does."""
        return not (self._cells[_IN_A_ROW] or self._cells[_DOWN_UNTIL])

    def note(self, now: float) -> None:
        """About once a second."""
        self._recent.note(now, self.requests)
        self._failed.note(now, self._failures)

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
        if cells[_DOWN_UNTIL] and not cells[_PROBED_UNTIL]:
            return False  # it was sent before the target went down
        cells[_IN_A_ROW] = 0.0
        if not cells[_DOWN_UNTIL]:
            return False
        cells[_DOWN_UNTIL] = cells[_PROBED_UNTIL] = 0.0
        cells[_BACK_AT] = now
        self._recent, self._failed = Recent(), Recent()
        self.note(now - SECONDS)
        return True

    def failed(self, now: float) -> float:
        """A request failed; tell for how long the target is down by that, or 0."""
        cells, rules = self._cells, self._rules
        self._failures += 1
        cells[_IN_A_ROW] += 1.0
        if cells[_DOWN_UNTIL]:
            if cells[_DOWN_UNTIL] > now or not cells[_PROBED_UNTIL]:
                return 0.0  # it was sent before
            return self._eject(now)
        if cells[_IN_A_ROW] >= rules.failures:
            return self._eject(now)
        requests = self._recent.grown(now, self.requests)
        if rules.failure_share < 1 and requests >= rules.failure_share_requests:
            failures = self._failed.grown(now, self._failures)
            return self._eject(now) if failures >= rules.failure_share * requests else 0.0
        return 0.0

    def _eject(self, now: float) -> float:
        cells, rules = self._cells, self._rules
        if cells[_BACK_AT] and now - cells[_BACK_AT] > rules.eject_max:
            cells[_EJECTIONS] = 0.0
        seconds: float = min(rules.eject_max, rules.eject * 2.0 ** min(cells[_EJECTIONS], 60.0))
        cells[_EJECTIONS] += 1.0
        cells[_PROBED_UNTIL] = 0.0
        cells[_DOWN_UNTIL] = now + seconds
        return seconds
