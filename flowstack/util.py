"""Small things that several rooms need. No clock, no file: what they need of these is handed in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

_MAX_THINGS = 64


class Throttle:
    """Lets each thing be logged at most once in a time, so that what goes on without end fills no disk.

    :param clock: gives seconds, on a clock that never steps.
    :param seconds: that time.
    """

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._logged_at: dict[str, float] = {}

    def ready(self, thing: str = "") -> bool:
        """Whether it may be logged now. If so, it counts as logged."""
        now = self._clock()
        if now - self._logged_at.get(thing, float("-inf")) < self._seconds:
            return False
        if len(self._logged_at) >= _MAX_THINGS:
            self._logged_at = {one: at for one, at in self._logged_at.items() if now - at < self._seconds}
        self._logged_at[thing] = now
        return True


def instant(seconds: float) -> str:
    """Write UTC Unix seconds as RFC 3339 has it, with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
