"""Money in whole billionths of a dollar, and the periods of budgets.

A period is one number, its label: the kind of period in the high bits, and below it the number of the day, or of the
month, in UTC. Labels of one kind grow with time.

What is known of a budget's use is three numbers: ``latest``, the latest period that the clock ever showed; ``seen``,
the one that it showed last; ``used``, in that one. The two differ only after the clock was set back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flowstack.keys import Budget

NANO: Final = 1_000_000_000
DAY: Final = 86_400

MAX: Final = 1 << 62
"""The most that a cell holds, in billionths of a dollar: 4.6 billion dollars."""

MAX_REQUEST: Final = 10**18
"""The most that one request is taken to cost, in billionths of a dollar."""

_KIND: Final = 40
_KINDS = {"day": 1 << _KIND, "month": 2 << _KIND, "total": 3 << _KIND}
_LAST = 253_402_300_799 - 31 * DAY  # within December of 9999, after which datetime knows nothing


@dataclass(frozen=True)
class Period:
    """A day, a month, or all time.

    :ivar label: greater than those of the periods of its kind before it.
    :ivar begins: UTC Unix seconds.
    :ivar ends: UTC Unix seconds, the first instant that lies in the next.
    """

    label: int
    begins: float
    ends: float


NEVER = Period(0, float("inf"), float("-inf"))
"""In which no time lies."""


def period_at(kind: str, wall: float) -> Period:
    """The period in which a time lies.

    :param kind: ``day``, ``month`` or ``total``.
    :param wall: UTC Unix seconds; times that no calendar has count as the nearest that one has.
    """
    label = _KINDS[kind]
    wall = min(max(wall, 0.0), float(_LAST))
    if kind == "day":
        day = int(wall) // DAY
        return Period(label + day, day * DAY, (day + 1) * DAY)
    if kind == "month":
        now = datetime.fromtimestamp(wall, UTC)
        months = now.year * 12 + now.month - 1
        return Period(label + months, _month_begins(months), _month_begins(months + 1))
    return Period(label, float("-inf"), float("inf"))


def period_of(label: int, wall: float) -> Period | None:
    """The period at a time, of the same kind as one that has this label; None where that is no kind."""
    kind = kind_of(label)
    return None if kind is None else period_at(kind, wall)


def kind_of(label: int) -> str | None:
    """The kind of the period that has this label; None where that is no kind."""
    return next((kind for kind, first in _KINDS.items() if first >> _KIND == label >> _KIND), None)


def _month_begins(months: int) -> float:
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp()


def roll(latest: int, seen: int, used: int, now: int) -> tuple[int, int, int]:
    """What becomes of a budget's use when the clock shows the period ``now``.

    A period that follows begins at nothing. A clock that is set back opens no ended period again: what was used stays,
    also once the clock is back where it was. And a clock that was wrongly far ahead does not keep a budget used up
    until that time: each period that follows begins at nothing even so.
    """
    if now == seen:
        return latest, seen, used
    if now > latest or seen >> _KIND != now >> _KIND:
        return now, now, 0  # a new period, or another kind of budget
    if seen < now < latest:
        return latest, now, 0
    return latest, now, used


def ended(latest: int, wall: float) -> bool:
    """Whether a time lies in a later period than the latest of a budget's, so that nothing of its use counts now."""
    period = period_of(latest, wall)
    return period is not None and period.label > latest


def nano(usd: float) -> int:
    """Dollars as billionths, to the nearest; between 0 and :data:`MAX_REQUEST`."""
    if 0.0 <= usd < 1e9:
        return int(usd * 1e9 + 0.5)
    return MAX_REQUEST if usd > 0 else 0


def budget_nano(budget: Budget) -> int:
    """A budget's amount in billionths of a dollar, up to :data:`MAX`."""
    return min(int(budget.amount * NANO), MAX)


def dollars(nanos: int) -> str:
    """Billionths as dollars for a message, with two decimals at least and six at most, rounded up."""
    whole, rest = divmod(-(-nanos // 1000), 1_000_000)
    return f"{whole}.{rest:06d}".rstrip("0").ljust(len(str(whole)) + 3, "0")
