"""The targets of an upstream: which one a request goes to, and how many more attempts there may be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from flowstack.config.settings import Fallback, Retry, Upstream
from flowstack.keys.patterns import fitting, in_order
from flowstack.keys.provider import KeyRing
from flowstack.transport.ticker import Ticker
from flowstack.upstream.health import Health, Recent
from flowstack.upstream.routes import Origin


class Target:
    """One place at which an upstream is served.

    :ivar told: the fields of an answer that name it, up to the number of attempts, and ``told_once`` with it where that
        is one; see :func:`flowstack.http.headers.lines_of`.
    :ivar client: by which it is asked, see :class:`flowstack.interfaces.UpstreamClient`.
    :ivar keys: the operator's provider keys for it, or None where clients send their own.
    :ivar in_flight: attempts that have not ended, in this process.
    :ivar ejections: how often it went down, as this process found out.
    """

    __slots__ = ("client", "ejections", "health", "in_flight", "keys", "origin", "told", "told_once", "turns", "weight")

    def __init__(self, origin: Origin, weight: int, client: Any, health: Health, keys: KeyRing | None) -> None:
        self.origin = origin
        self.told = b"\r\nFlowstack-Upstream: %b\r\nFlowstack-Attempts: " % origin.shown
        self.told_once = self.told + b"1"
        self.weight = weight
        self.client = client
        self.health = health
        self.keys = keys
        self.in_flight = self.ejections = 0
        self.turns = 0.0


class Course:
    """How requests to one upstream go: to which of its targets, how often, and to which upstream when it is given up.

    :ivar only: the only target, or None where there are several.
    :ivar requests: that came; whoever begins one adds to it.
    :ivar fallback: the course of the other upstream, or None.
    :ivar rescued: requests that were answered well after an attempt had failed.
    """

    __slots__ = ("_further", "_models", "_panic", "_recent", "_repeated", "fallback", "first_byte", "name", "only",
                 "requests", "rescued", "retry", "rule", "settings", "targets")  # fmt: skip

    def __init__(self, settings: Upstream, targets: Sequence[Target]) -> None:
        self.name = settings.name
        self.settings = settings
        self.targets = tuple(targets)
        self.only = self.targets[0] if len(self.targets) == 1 else None
        self.first_byte = settings.first_byte
        self.retry: Retry | None = settings.retry
        self.rule: Fallback | None = settings.fallback
        self.fallback: Course | None = None
        self.rescued = self.requests = self._further = 0
        self._recent, self._repeated = Recent(), Recent()
        self._models = () if self.rule is None else in_order(self.rule.models)
        self._panic = settings.health.panic if self.rule is None else 0.0

    def note(self, now: float) -> None:
        """About once a second: note how many requests there were."""
        self._recent.note(now, self.requests)
        self._repeated.note(now, self._further)
        for target in self.targets:
            target.health.note(now)

    def may_repeat(self, now: float) -> bool:
        """Whether the retry budget has room: further attempts are a share of the requests of the last ten seconds."""
        retry = self.retry
        if retry is None:
            return False
        most = retry.budget * self._recent.grown(now, self.requests)
        return self._repeated.grown(now, self._further) < max(retry.budget_least, most)

    def repeats(self) -> None:
        """A further attempt is made."""
        self._further += 1

    def model_for(self, model: str | None) -> str | None:
        """Which model to ask the fallback for; None where its name stays."""
        return fitting(self._models, model) if model is not None and self._models else None

    def choose(self, now: float, tried: Collection[Target] = (), again: bool = True) -> Target | None:
        """The target for an attempt: of those that are up the least busy one, by weight.

        One that was down and whose time is over is tried by one request: by one that can be sent again, or where no
        other target is up. Where too many are down, that counts for nothing.

        :param tried: targets that are not to be asked.
        :param again: whether the request can be sent again.
        :return: None where all are down, or were tried.
        """
        targets = self.targets
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

    def others(self, now: float, tried: Collection[Target]) -> bool:
        """Whether there is a target that was not tried and may be asked."""
        return any(one not in tried and (not one.health.down or one.health.may_probe(now)) for one in self.targets)


class Notes:
    """Has all courses note, about once a second, how many requests there were.

    :ivar deadline: on the ticker's clock.
    """

    def __init__(self, courses: Iterable[Course], ticker: Ticker, seconds: Callable[[], float]) -> None:
        self._courses = tuple(courses)
        self._ticker = ticker
        self._seconds = seconds
        self.deadline = ticker.base
        ticker.members.add(self)

    def expire(self) -> None:
        """A second is over."""
        self.deadline = self._ticker.base + 1.0 - self._ticker.interval
        now = self._seconds()
        for course in self._courses:
            course.note(now)
