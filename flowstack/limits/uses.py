"""How what is used of a limit is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flowstack.limits.books import Standing
from flowstack.prices.dollars import NANO, money_of


def name_of(standing: Standing) -> str:
    """The limit, to which upstream it stands, and of which group where it is not a key's own."""
    of = f" of {standing.name}" if standing.name.startswith("@") else ""
    return f"{standing.limit}{of}" + (f" to {standing.scope}" if standing.scope else "")


def in_words(standing: Standing) -> str:
    """What is used of a limit, what is left, and when it is free again."""
    most, used, left = _figures(standing)
    if standing.limit == "budget":
        ends = resets_at(standing, 0.0)
        return f"{used} of {most} USD spent, {left} left{f', renewed at {ends}' if ends else ''}"
    if standing.limit == "max_parallel":
        return f"{used} of {most} in flight, {left} left"
    return f"{used} of {most} used, {left} left{f', all free in {standing.reset:.0f} s' if standing.reset else ''}"


def in_short(standing: Standing) -> str:
    """The same for a column."""
    _, used, left = _figures(standing)
    when = ""
    if standing.limit == "budget" and (ends := resets_at(standing, 0.0)):
        when = f" until {ends[:10]}"
    elif standing.reset:
        when = f" for {standing.reset:.0f} s"
    return f"{name_of(standing)} {used}, {left} left{when}"


def as_json(standing: Standing, now: float) -> dict[str, Any]:
    """The same for programs; money in US dollars.

    :param now: UTC Unix seconds, when it was looked at.
    """
    group = standing.name[1:] if standing.name.startswith("@") else None
    found: dict[str, Any] = {"limit": standing.limit, "upstream": standing.scope or None, "group": group}
    if standing.budget is None:
        found |= {"most": standing.most, "used": standing.used, "left": standing.left}
    else:
        found |= money_as_json(standing)
    return found | {"resets_at": resets_at(standing, now)}


def money_as_json(standing: Standing) -> dict[str, Any]:
    """A budget's figures, in US dollars, and its period."""
    assert standing.budget is not None
    return {
        "amount_usd": in_usd(standing.most),
        "spent_usd": in_usd(standing.used),
        "left_usd": in_usd(standing.left),
        "period": standing.budget.period,
    }


def in_usd(nanos: int) -> float:
    """Billionths of a dollar in dollars, for programs."""
    return float(nanos * NANO)


def resets_at(standing: Standing, now: float) -> str | None:
    """When all of a limit is free again, or the budget's period ends; None where time alone frees nothing.

    :param now: as of :func:`as_json`; a budget's period does not need it.
    """
    if standing.reset is None:
        return None
    at = now + standing.reset if standing.period is None else standing.period.ends
    return datetime.fromtimestamp(round(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _figures(standing: Standing) -> tuple[str, str, str]:
    shown = str if standing.budget is None else money_of
    return shown(standing.most), shown(standing.used), shown(standing.left)
