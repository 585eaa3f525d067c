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
from flowstack.keys import Budget, Group, Key
from flowstack.limits.bounds import Bound, bounds_of, bounds_of_group
from flowstack.limits.counters import (
    LATEST,
    MONEY,
    RESET,
    SEEN,
    USED,
    Counters,
    CountersError,
    boot_id,
    head_boot,
    is_earlier,
)
from flowstack.limits.look import Look
from flowstack.limits.money import Period, budget_nano, kind_of, period_at, roll
from flowstack.limits.plans import columns_of, slot_name
from flowstack.limits.restore import NAME
from flowstack.limits.windows import CELLS as WINDOW
from flowstack.limits.windows import bucket_of

Limit = Literal["rpm", "tpm", "max_parallel", "budget"]

_MAX_SECONDS = 60
"""That a reset may take, on a machine that is busy with other things."""


@frozen(slots=True)
class Standing:
    """How one limit stands.

    :ivar name: the key's id, or a group's name with an ``@`` before it.
    :ivar scope: the upstream whose requests alone count; empty where all do.
    :ivar most: requests, tokens, requests in flight; or billionths of a dollar.
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


def bounds_by_scope(
    limited: Key | Group | Limits, settings: Settings
) -> Iterator[tuple[Limit, Bound[int] | Bound[Budget]]]:
    """The limits that stand for a key's or a group's requests to any upstream, each once."""
    seen: set[tuple[Limit, str]] = set()
    for upstream in settings.upstreams:
        if isinstance(limited, Group):
            bounds = bounds_of_group(limited)
        else:
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
        self._same_boot = head_boot(counters.cells) == boot_id()

    def standings(self, name: str, limited: Key | Group | Limits, settings: Settings) -> list[Standing]:
        """How all limits of a key stand, in no more time than that takes: no lock is held, and nothing is made.

        :param name: as in :class:`Standing`.
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
        columns = () if slot is None else self._live(columns_of(layout, slot, offset, WINDOW))
        used = max(look.counts(columns), 0)
        reset = float(look.reset_of(columns)) if used else 0.0
        return Standing(limit, name, bound.scope, bound.value, used, reset)

    def _live(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Those of some windows that can hold what counts now. After the machine was started anew none does, and what
        lies in the future is none: there is no waiting for it."""
        soon = bucket_of(self._monotonic()) + 1
        return tuple([at for at in columns if self._counters.cells[at] <= soon]) if self._same_boot else ()

    def reset_at(self, standing: Standing) -> int:
        """When the operator had a budget begin anew last, in microseconds since 1970; 0 for never."""
        columns = self._money(standing)
        return self._counters.cells[columns[-1] + RESET] if columns else 0

    def spent_before(self, standing: Standing) -> tuple[str, int] | None:
        """What was charged of a budget by periods of another kind, before it was changed to the present one.

        :return: that kind, and billionths of a dollar; None where nothing was.
        """
        assert standing.budget is not None
        columns, cells = self._money(standing), self._counters.cells
        seen = {cells[at + SEEN] for at in columns[:-1]} - {0}
        kinds = {kind_of(label) for label in seen} - {None}
        if not seen or standing.budget.period in kinds:
            return None
        kind = kind_of(max(seen)) or ""
        spent = self._look.spent(columns, period_at(kind, self._wall()).label) if kind else 0
        return (kind, spent) if spent > 0 else None

    def _money(self, standing: Standing) -> tuple[int, ...]:
        slot = self._counters.find(slot_name(standing.name, standing.scope))
        layout = self._counters.layout
        return () if slot is None else columns_of(layout, slot, layout.money, MONEY)

    def reset(self, standing: Standing) -> int:
        """Have a budget begin anew: what was used and reserved in its present period is taken off.

        Of what is in flight now, the cost is charged when it ends.

        :return: how much that was, in billionths of a dollar.
        """
        counters = self._counters
        with counters.operators_lock():
            slot = counters.find(slot_name(standing.name, standing.scope))
            if slot is None or standing.period is None:
                return 0
            columns = columns_of(counters.layout, slot, counters.layout.money, MONEY)
            at, cells, label = columns[-1], counters.cells, standing.period.label
            latest, seen, taken = roll(cells[at + LATEST], cells[at + SEEN], cells[at + USED], label)
            # In time to come until all is done: whoever ends meanwhile is charged in full, like those who were reserved
            # before, and nobody is left out.
            cells[at + RESET] = _microseconds(self._wall() + _MAX_SECONDS)
            workers = self._look.spent(columns[:-1], label)
            counters.write_money(at, cells[slot], self._wall(), latest, seen, -workers)
            cells[at + RESET] = _microseconds(self._wall())
            return max(workers + taken, 0)


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)


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
        try:
            counters = Counters.beside(descriptor)
            counters.check()
        except (CountersError, OSError, TypeError, ValueError):
            if is_earlier(descriptor):
                raise CountersError(
                    f"the limits' counters {path} are those of an earlier version; the next start of the service "
                    "carries them over."
                ) from None
            raise CountersError(
                f"the limits' counters {path} are damaged, or another version's; the next start of the service carries "
                "over what is whole, and says in its log what is not."
            ) from None
        yield Books(counters)
    finally:
        os.close(descriptor)
