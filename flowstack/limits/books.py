"""What is used of each limit, for whoever asks: the holder of a key, or the operator beside the running service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from attrs import frozen

from flowstack.config.settings import Limits, Settings
from flowstack.files import open_regular
from flowstack.limits.counters import (
    AFTER,
    BEFORE,
    LATEST,
    MONEY,
    RESET,
    SEEN,
    SEQUENCE,
    USED,
    Counters,
    CountersError,
)
from flowstack.limits.look import Look
from flowstack.limits.plans import columns_of, slot_name
from flowstack.limits.restore import NAME
from flowstack.policy.keys import Budget, Key
from flowstack.policy.limits.bounds import Bound, bounds_of
from flowstack.policy.limits.money import Period, budget_nano, period_at, roll
from flowstack.policy.limits.windows import CELLS as WINDOW

Limit = Literal["rpm", "tpm", "max_parallel", "budget"]


@frozen(slots=True)
class Standing:
    """How one limit stands.

    :ivar name: of the key.
    :ivar scope: the upstream whose requests alone count; empty where all do.
    :ivar most: requests, tokens, requests under way; or billionths of a dollar.
    :ivar used: of these; it may be more than the most.
    :ivar reset: seconds until all of it is free again, or the budget is renewed; None where time alone frees nothing.
    :ivar budget: of the limit ``budget``: with its period.
    :ivar period: the present one of that.
    """

    limit: Limit
    name: str
    scope: str
    most: int
    used: int
    reset: float | None
    budget: Budget | None = None
    period: Period | None = None

    @property
    def left(self) -> int:
        """What remains."""
        return max(self.most - self.used, 0)


def bounds_by_scope(limited: Key | Limits, settings: Settings) -> Iterator[tuple[Limit, Bound[int] | Bound[Budget]]]:
    """The limits that stand for a key's requests to any upstream, each once."""
    seen: set[tuple[Limit, str]] = set()
    for upstream in settings.upstreams:
        bounds = bounds_of(limited, upstream.name, upstream.limits, settings.limits)
        found: tuple[tuple[Limit, Bound[int] | Bound[Budget] | None], ...] = (
            ("rpm", bounds.rpm), ("tpm", bounds.tpm), ("max_parallel", bounds.max_parallel), ("budget", bounds.budget),
        )  # fmt: skip
        for limit, bound in found:
            if bound is not None and (limit, bound.scope) not in seen:
                seen.add((limit, bound.scope))
                yield limit, bound


class Books:
    """Reads the counters, and writes nothing but the operator's records.

    :param counters: a worker's, or those of :func:`open_books`.
    :param wall: UTC Unix seconds.
    :param monotonic: seconds on the clock of the windows.
    """

    def __init__(
        self,
        counters: Counters,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._wall = wall
        self._monotonic = monotonic
        self._look = Look(counters, wall, monotonic)

    def standings(self, name: str, limited: Key | Limits, settings: Settings) -> list[Standing]:
        """How all limits of a key stand, in no more time than that takes: no lock is held, and nothing is made.

        :param name: the key's id.
        """
        return [self._standing(limit, name, bound) for limit, bound in bounds_by_scope(limited, settings)]

    def _standing(self, limit: Limit, name: str, bound: Bound[int] | Bound[Budget]) -> Standing:
        layout, cells, look = self._counters.layout, self._counters.cells, self._look
        slot = self._counters.find(slot_name(name, bound.scope))
        if isinstance(bound.value, Budget):
            period = period_at(bound.value.period, self._wall())
            columns = () if slot is None else columns_of(layout, slot, layout.money, MONEY)
            reset = None if bound.value.period == "total" else period.ends - self._wall()
            used = max(look.spent(columns, period.label), 0)
            return Standing(limit, name, bound.scope, budget_nano(bound.value), used, reset, bound.value, period)
        if limit == "max_parallel":
            columns = () if slot is None else columns_of(layout, slot, layout.parallel, 1)
            cells = self._counters.cells
            return Standing(limit, name, bound.scope, bound.value, max(sum(cells[at] for at in columns), 0), None)
        offset = layout.rpm if limit == "rpm" else layout.tpm
        columns = () if slot is None else columns_of(layout, slot, offset, WINDOW)
        used = max(look.counts(columns), 0)
        return Standing(
            limit, name, bound.scope, bound.value, used, float(look.reset_of(columns)) if used else 0.0
        )  # fmt: skip

    def reset(self, standing: Standing) -> int:
        """Have a budget begin anew: what was used and reserved in its present period is taken off.

        Of what is under way now, the cost is charged when it ends.

        :return: how much that was, in billionths of a dollar.
        """
        counters = self._counters
        with counters.operators_lock():
            slot = counters.find(slot_name(standing.name, standing.scope))
            if slot is None or standing.period is None:
                return 0
            columns = columns_of(counters.layout, slot, counters.layout.money, MONEY)
            at, cells, label = columns[-1], counters.cells, standing.period.label
            workers = self._look.spent(columns[:-1], label)
            latest, seen, taken = roll(cells[at + LATEST], cells[at + SEEN], cells[at + USED], label)
            cells[at + RESET] = int(self._wall())  # first: who was reserved before is then charged in full
            cells[at + BEFORE] = cells[at + USED] = cells[at + AFTER] = -workers
            cells[at + SEEN], cells[at + LATEST] = seen, latest
            sequence = max(cells[at + SEQUENCE] + 1, int(self._wall()) * 2)
            counters.write_money(at, cells[slot], sequence, latest, seen, -workers)
            return max(workers + taken, 0)


@contextmanager
def open_books(state: Path) -> Iterator[Books | None]:
    """The books of a service, which may be running; None where it never counted anything.

    :param state: its state directory.
    :raises CountersError: the counters cannot be read; the text says why.
    """
    path = state / "limits" / NAME
    try:
        descriptor = open_regular(path, os.O_RDWR, follow=False)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise CountersError(f"the limits' counters {path} cannot be read: {error.strerror or error}.") from None
    try:
        yield Books(Counters.beside(descriptor))
    finally:
        os.close(descriptor)
