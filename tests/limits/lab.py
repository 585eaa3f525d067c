"""Limiters on common counters, clocks that are set by hand, rows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from flowstack.config.settings import Settings
from flowstack.keys import Budget, Group, Key
from flowstack.ledger.row import Row
from flowstack.limits.counters import Counters
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import Reservation, SharedLimiter

NOON = 1_780_000_000.0  # 2026-05-28


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Lab:
    """Several workers' limiters on one table, in one process."""

    def __init__(self, workers: int = 2, settings: Settings | None = None, counters: Counters | None = None) -> None:
        self.wall, self.monotonic = Clock(NOON), Clock(5000.0)
        self.counters = counters or open_counters(None, workers)
        self.limiters = [
            SharedLimiter(
                Counters.attach(self.counters.fileno(), worker), settings or Settings(), self.wall, self.monotonic
            )
            for worker in range(self.counters.layout.workers)
        ]

    def go_on(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self.wall.now += seconds
        self.monotonic.now += seconds


def key(name: str = "k", **limits: Any) -> Key:
    return Key(name, b"", **limits)


def group(name: str = "g", **limits: Any) -> Group:
    return Group(name, **limits)


def member(name: str, shared: Group, **limits: Any) -> Key:
    """A key of a group, with limits of its own or without."""
    return key(name, group=shared.name, shared=shared, **limits)


def usd(amount: str, period: str = "month") -> Budget:
    return Budget(Decimal(amount), period)  # type: ignore[arg-type]


def row(**values: Any) -> Row:
    base = {
        "usage_source": "none", "total_tokens": None, "prompt_tokens": None, "completion_tokens": None,
        "cost_usd": None, "unpriced": None, "status": 200, "error_code": None, "attempts": 1, "end": "complete",
        "started_at": datetime.fromtimestamp(NOON, UTC),
    }  # fmt: skip
    return base | values  # type: ignore[return-value]


def used(tokens: int, cost: float | None = None) -> Row:
    return row(usage_source="upstream", total_tokens=tokens, cost_usd=cost)


REFUSED = row(end="refused", status=429, error_code="flowstack_rate_limit_exceeded")


def reserve(
    limiter: SharedLimiter,
    key: Key,
    upstream: str = "openai",
    tokens: int | None = None,
    cost: float | None = None,
    at_once: bool = True,
) -> Reservation:
    """Take of a limited key's limits.

    :param at_once: whether the tokens are taken with the request, as where its body is at hand, or after it.
    """
    plan = limiter.plan(key, upstream)
    assert plan is not None
    if tokens is None or at_once:
        return limiter.reserve(plan, tokens, cost)
    reservation = limiter.reserve(plan)
    reservation.claim(tokens, cost)
    return reservation
