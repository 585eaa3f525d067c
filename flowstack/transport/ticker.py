"""One coarse clock a process, in place of a timed call for each exchange.

Whoever has a deadline joins the ticker and keeps an attribute ``deadline``; once a tick, what is past due is told.
Setting a deadline is then an attribute's assignment, which is what the hot path can afford.
"""

from __future__ import annotations

from typing import Final, Protocol

from attrs import fields
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from flowstack.config import Timeouts

log = Logger()

NEVER: Final = float("inf")


class Timed(Protocol):
    """What can join a ticker."""

    deadline: float
    """On the ticker's clock, in seconds; :data:`NEVER` for none."""

    def expire(self) -> None:
        """The deadline has passed. Sets a new one, or leaves the ticker."""


class Ticker:
    """Calls ``expire`` on members whose deadline has passed.

    :ivar now: the time of the last tick, in seconds, less what this process could not run between two ticks: a
        timeout stands still meanwhile, since nobody was there to see what came.
    :ivar interval: seconds between two ticks. A timeout fires up to two intervals late, never early.
    :ivar base: from when a deadline counts: one that is reached ``seconds`` from now at the earliest is
        ``base + seconds``. It is a sum at hand, not a method, since three are set for each request.
    """

    def __init__(self, clock: IReactorTime, interval: float) -> None:
        self.interval = interval
        self.members: set[Timed] = set()
        self._clock = clock
        self._seen = self.now = clock.seconds()
        self.base = self.now + interval
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    @staticmethod
    def interval_for(timeouts: Timeouts) -> float:
        """A quarter of the shortest timeout, between 20 ms and a second. 0 stands for none; the kernel counts one."""
        seconds = [getattr(timeouts, each.name) for each in fields(Timeouts) if each.name != "tcp_keepalive"]
        shortest = min(filter(None, seconds))
        return float(min(1.0, max(0.02, shortest / 4)))

    def start(self) -> None:
        """Begin to tick."""
        self._loop.start(self.interval, now=False)

    def stop(self) -> None:
        """Tick no more."""
        if self._loop.running:
            self._loop.stop()

    def _tick(self) -> None:
        seen = self._clock.seconds()
        self.now = now = self.now + min(seen - self._seen, self.interval)
        self.base = now + self.interval
        self._seen = seen
        for member in [member for member in self.members if member.deadline <= now]:
            if member.deadline <= now:
                try:
                    member.expire()
                except Exception:
                    member.deadline = NEVER
                    log.failure("a timeout could not be carried out")
