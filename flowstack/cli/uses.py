"""What is used of one limit, and how that is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from flowstack.cli.money import NANO, shown_nanos
from flowstack.policy.keys import Budget


@frozen
class Use:
    """What is used of one limit now.

    :ivar limit: ``rpm``, ``tpm``, ``max_parallel`` or ``budget``.
    :ivar scope: the upstream whose requests alone count; empty for all.
    :ivar most: the limit; money in billionths of a dollar, here and below.
    :ivar resets_at: UTC Unix seconds, when all of it is free again, or the budget's period ends; None where nobody
        knows, or it never is.
    :ivar budget: where it is one.
    :ivar reset_at: when the operator set the budget back to nothing, UTC Unix seconds; 0 for never.
    """

    limit: str
    scope: str
    most: int
    used: int
    resets_at: float | None
    budget: Budget | None = None
    reset_at: float = 0.0

    @property
    def left(self) -> int:
        """What of it is left; never less than nothing."""
        return max(self.most - self.used, 0)

    @property
    def name(self) -> str:
        """The limit, and to which upstream it stands."""
        return f"{self.limit} to {self.scope}" if self.scope else self.limit


def in_words(use: Use, now: float) -> str:
    """What is used of a limit, what is left, and when it is free again."""
    if use.budget is not None:
        when = "" if use.resets_at is None else f", anew from {instant(use.resets_at)}"
        return f"{shown_nanos(use.used)} of {shown_nanos(use.most)} USD spent, {shown_nanos(use.left)} left{when}"
    if use.limit == "max_parallel":
        return f"{use.used} of {use.most} under way, {use.left} left"
    when = "" if use.resets_at is None or not use.used else f", all free in {seconds(use.resets_at - now)}"
    return f"{use.used} of {use.most} used, {use.left} left{when}"


def in_short(use: Use, now: float) -> str:
    """The same for a column."""
    figures = shown_nanos if use.budget is not None else str
    when = ""
    if use.budget is not None and use.resets_at is not None:
        when = f" until {instant(use.resets_at)[:10]}"
    elif use.resets_at is not None and use.used:
        when = f" for {seconds(use.resets_at - now)}"
    return f"{use.name} {figures(use.used)}, {figures(use.left)} left{when}"


def as_json(use: Use) -> dict[str, Any]:
    """The same for programs; money in US dollars."""
    about: dict[str, Any] = {"limit": use.limit, "upstream": use.scope or None}
    resets_at = None if use.resets_at is None else instant(use.resets_at)
    if use.budget is None:
        return {**about, "most": use.most, "used": use.used, "left": use.left, "resets_at": resets_at}
    return {**about, **money_as_json(use), "period": use.budget.period, "resets_at": resets_at}


def money_as_json(use: Use) -> dict[str, float]:
    """The amounts of a budget in US dollars."""
    return {"amount_usd": in_usd(use.most), "spent_usd": in_usd(use.used), "left_usd": in_usd(use.left)}


def in_usd(nanos: int) -> float:
    """Billionths of a dollar in dollars, for programs."""
    return float(nanos * NANO)


def instant(at: float) -> str:
    """A time in UTC, to the nearest second."""
    return datetime.fromtimestamp(round(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(left: float) -> str:
    """A time to wait."""
    return f"{max(round(left), 0)} s"
