"""Limits of which one machine holds a part."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal
from typing import Any

from attrs import evolve

from flowstack.config.settings import Settings, UpstreamLimits
from flowstack.keys import ATTRIBUTES, Budget, Group, Key


def shared_out(key: Key, share: float) -> Key:
    """A key with that part of its limits, and of its group's."""
    group = key.shared
    return evolve(
        key, **_part(key, share), shared=None if group is None else evolve(group, **_part(group, share))
    )  # fmt: skip


def settings_shared_out(settings: Settings, share: float) -> Settings:
    """The limits of the settings, likewise."""
    return evolve(
        settings,
        limits=evolve(settings.limits, **_part(settings.limits, share)),
        upstreams=tuple(
            evolve(one, limits=evolve(one.limits, **_part(one.limits, share))) for one in settings.upstreams
        ),
    )


def _part(limits: Key | Group | UpstreamLimits, share: float) -> dict[str, Any]:
    """Whole numbers, rounded down, but one at least."""
    found: dict[str, Any] = {}
    for name in ("rpm", "tpm", "max_parallel"):
        value = getattr(limits, name)
        found[name] = value and max(int(value * share), 1)
    budget = limits.budget
    if isinstance(budget, str):
        read: Budget = ATTRIBUTES["budget"].read(budget)
        found["budget"] = ATTRIBUTES["budget"].write(_less(read, share))
    else:
        found["budget"] = budget and _less(budget, share)
    return found


def _less(budget: Budget, share: float) -> Budget:
    return evolve(budget, amount=(budget.amount * Decimal(share)).quantize(Decimal("0.000001"), ROUND_DOWN).normalize())
