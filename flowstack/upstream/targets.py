"""The targets of an upstream: which one a request goes to, and how many more attempts there may be."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from flowstack.config.settings import Fallback, Retry, Upstream
from flowstack.keys.patterns import fitting, in_order
from flowstack.keys.provider import KeyRing
from flowstack.upstream.health import Health, Window
from flowstack.upstream.routes import Origin


class Target:
    """One place at which an upstream is served.

    :ivar client: by which it is asked, see :class:`flowstack.interfaces.UpstreamClient`.
    :ivar keys: the operator's provider keys for it, or None where clients send their own.
    :ivar in_flight: attempts that have not ended, in this process.
    :ivar attempts: that were made.
    :ivar ejections: how often it went down, as this process found out.
    """

    __slots__ = ("attempts", "client", "ejections", "health", "in_flight", "keys", "origin", "turns", "weight")

    def __init__(self, origin: Origin, weight: int, client: Any, health: Health, keys: KeyRing | None) -> None:
        self.origin = origin
        self.weight = weight
        self.client = client
        self.health = health
        self.keys = keys
        self.in_flight = self.attempts = self.ejections = 0
        self.turns = 0.0


class Budget:
    """How many further attempts there may be: a share of the requests of the last ten seconds, or a few."""

    __slots__ = ("_least", "_share", "_window")

    def __init__(self, share: float, least: int) -> None:
        self._share = share
        self._least = least
        self._window = Window()

    def request(self, now: float) -> None:
        """A request has come."""
        self._window.add(now, 1, 0)

    def left(self, now: float) -> bool:
        """Whether there may be another attempt now."""
        requests, more = self._window.sums(now)
        return more < max(self._least, self._share * requests)

    def spend(self, now: float) -> None:
        """Another attempt is made."""
        self._window.add(now, 0, 1)


class Course:
    """How requests to one upstream go: to which of its targets, how often, and to which upstream when it is given up.

    :ivar fallback: the course of the other upstream, or None.
    :ivar rescued: requests that were answered well after an attempt had failed.
    """

    __slots__ = ("_models", "_panic", "budget", "fallback", "name", "rescued", "retry", "rule", "settings", "targets")

    def __init__(self, settings: Upstream, targets: Sequence[Target]) -> None:
        self.name = settings.name
        self.settings = settings
        self.targets = tuple(targets)
        self.retry: Retry | None = settings.retry
        self.rule: Fallback | None = settings.fallback
        self.fallback: Course | None = None
        self.budget = None if self.retry is None else Budget(self.retry.budget, self.retry.budget_least)
        self.rescued = 0
        self._models = () if self.rule is None else in_order(self.rule.models)
        self._panic = settings.health.panic if self.rule is None else 0.0

    def model_for(self, model: str | None) -> str | None:
        """Which model to ask the fallback for; None where its name stays."""
        return fitting(self._models, model) if model is not None and self._models else None

    def choose(self, now: float, tried: Container[Target] = (), again: bool = True) -> Target | None:
        """The target for an attempt: of those that are up the least busy one, by weight.

        One that was down and whose time is over is tried by one request: by one that can be sent again, or where no
        other target is up. Where too many are down, that counts for nothing.

        :param tried: targets that are not to be asked.
        :param again: whether the request can be sent again.
        :return: None where all are down, or were tried.
        """
        targets = self.targets
        if len(targets) == 1 and not targets[0].health.down:
            return None if targets[0] in tried else targets[0]
        panic = 0.0 < self._panic < sum(one.health.down for one in targets) / len(targets)
        best, least = None, (0, 0.0, 0.0)
        for target in targets:
            if target in tried:
                continue
            rank = 0
            if target.health.down and not panic:
                if not target.health.may_probe(now):
                    continue
                rank = -1 if again else 2
            elif target.keys is not None and target.keys.resting(now):
                rank = 1
            weight = target.weight * target.health.share(now)
            place = rank, target.in_flight / weight, target.turns
            if best is None or place < least:
                best, least = target, place
        if best is not None:
            if best.health.down:
                best.health.probe(now)
            # None has more turns to catch up than one, however long it was down.
            best.turns = max(best.turns, max(one.turns for one in targets) - 1.0) + 1.0 / best.weight
        return best

    def others(self, now: float, tried: Container[Target]) -> bool:
        """Whether there is a target that was not tried and may be asked."""
        return any(one not in tried and (not one.health.down or one.health.may_probe(now)) for one in self.targets)
