"""Where the counters of a key and its group are, worked out once: what a request then needs is at hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from attrs import define
from twisted.logger import Logger

from flowstack.config.settings import Limits, Settings
from flowstack.errors import Overloaded
from flowstack.http.names import REQUESTS, TOKENS
from flowstack.keys import Budget, Group, Key
from flowstack.limits.answers import figures_of, the_group, the_key
from flowstack.limits.bounds import Bound, Bounds, bounds_of, bounds_of_group
from flowstack.limits.counters import MONEY, SEEN, TAG, USED, Counters, Layout, tag_of
from flowstack.limits.money import NEVER, Period, budget_nano
from flowstack.limits.windows import CELLS as WINDOW
from flowstack.limits.windows import TOTAL, Cells, advance
from flowstack.util import Throttle

log = Logger()

TELL_SECONDS = 10.0
"""The log says at most once in this time that there is no space to count in, however many are refused for it."""

MAX_PLANS = 10_000
"""For each upstream; then the oldest goes for each new one. More would hold up requests while garbage is collected."""


@define(slots=True, weakref_slot=True, eq=False)
class OwnColumn:
    """This worker's own column for one limit. As nobody else writes there, what it holds is known without a look at it.

    There is one object for each column, whichever plans have it, so that all know the same.

    :ivar at: where the column begins, in cells.
    :ivar newest: the cell of ``bucket``; ``total``: that of ``count``.
    :ivar bucket: the newest of a window; the period of a money record.
    :ivar count: a window's sum, the requests in flight, or what was used in the period.
    :ivar kept: of a money record: in which of the windows' buckets its copy was written last.
    """

    at: int
    newest: int
    total: int
    bucket: int
    count: int
    kept: int = 0

    def bring_to(self, bucket: int, cells: Cells) -> None:
        """Bring a window to the present bucket."""
        advance(cells, self.at, bucket)
        self.look(cells)

    def look(self, cells: Cells) -> None:
        """Know what is there, where others than :class:`flowstack.limits.shared.SharedLimiter` wrote it."""
        self.bucket, self.count = cells[self.newest], cells[self.total]


@dataclass(eq=False)
class Place:
    """One limit, and where it is counted.

    :ivar most: the limit; money in billionths of a dollar.
    :ivar scope: the upstream whose requests alone count; empty for all.
    :ivar own: this worker's own column.
    :ivar others: where the other workers' begin, in cells.
    :ivar columns: where each worker's begins; of money, behind them the operator's.
    :ivar tag: the mark of the slot.
    :ivar name: the slot's.
    :ivar period: of money: the one that was the present one last.
    """

    most: int
    scope: str
    own: OwnColumn
    others: tuple[int, ...]
    tag: int
    columns: tuple[int, ...]
    name: str
    period: Period = NEVER


@dataclass(eq=False)
class Plan:
    """The limits that stand for one key's requests to one upstream, or for those of a group's keys to all.

    :ivar key: of which this was last found to hold.
    :ivar limits: what it was made from.
    :ivar who: whose limits they are, for messages.
    :ivar lock: the number of the lock.
    :ivar metered: of ``Plan``, as the others: also by the group's limits.
    :ivar figures: of ``rpm`` and ``tpm`` in answers, see :func:`flowstack.limits.answers.figures_of`; empty for
        a key in a group and for the group, as they are told of together.
    :ivar group: the plan of the key's group, where that has limits.
    """

    key: Key | Group
    limits: tuple[int | None, int | None, int | None, Budget | None, Group | None]
    who: str
    lock: int
    rpm: Place | None
    tpm: Place | None
    parallel: Place | None
    money: Place | None
    budget: Budget | None
    metered: bool
    priced: bool
    figures: bytes
    group: Plan | None

    def holds_for(self, key: Key | Group) -> bool:
        """Whether nothing that matters here was changed by a reload."""
        if self.limits != _limits_of(key):
            return False
        self.key = key
        return True

    def of_connection(self) -> Plan:
        """What a WebSocket itself takes: it is one of those in flight, and no request."""
        told = [(TOKENS, self.tpm.most)] if self.tpm is not None and self.figures else ()
        group = None if self.group is None else self.group.of_connection()
        return replace(self, rpm=None, figures=figures_of(told), group=group)

    def of_speech(self) -> Plan:
        """What the speech on it takes that is written down: it is no request, and in flight with its connection."""
        group = None if self.group is None else self.group.of_speech()
        return replace(self, rpm=None, parallel=None, figures=b"", group=group)

    def of_responses(self) -> Plan:
        """What each response on it takes: it is a request, and is in flight with its connection."""
        group = None if self.group is None else self.group.of_responses()
        return replace(self, parallel=None, figures=b"", group=group)


def _limits_of(key: Key | Group) -> tuple[int | None, int | None, int | None, Budget | None, Group | None]:
    return key.rpm, key.tpm, key.max_parallel, key.budget, key.shared if isinstance(key, Key) else None


class Plans:
    """Makes and keeps the plans.

    :ivar free: the upstreams for which no limit stands but a key's own.
    """

    def __init__(self, counters: Counters, settings: Settings, monotonic: Callable[[], float]) -> None:
        self._counters = counters
        self._complaint = Throttle(monotonic, TELL_SECONDS)
        self._everywhere = settings.limits
        self._of = {upstream.name: upstream.limits for upstream in settings.upstreams}
        self._own: WeakValueDictionary[int, OwnColumn] = WeakValueDictionary()
        self.by_id: defaultdict[str, dict[str, Plan]] = defaultdict(dict)
        self._groups: dict[str, Plan] = {}
        self.free = frozenset(
            name for name, limits in self._of.items() if not bounds_of(Limits(), name, limits, self._everywhere).limited
        )

    def make(self, key: Key, upstream: str) -> Plan:
        """Work out the plan of a key's requests to an upstream.

        :raises Overloaded: there is no space for its counters.
        """
        bounds = bounds_of(key, upstream, self._of.get(upstream, Limits()), self._everywhere)
        try:
            group = None if key.shared is None else self._of_group(key.shared)
            plan = self._made(key, key.id, the_key(key.id), bounds, group)
        except OSError as error:
            self._tell(error, key)
            raise Overloaded(
                "There is no space left to count this key's requests against its limits. Ask the operator to free some."
            ) from None
        plans = self.by_id[upstream]
        if len(plans) >= MAX_PLANS and key.id not in plans:
            del plans[next(iter(plans))]
        plans[key.id] = plan
        return plan

    def _of_group(self, group: Group) -> Plan:
        """The one plan of a group, whichever of its keys asks, for any upstream."""
        plan = self._groups.get(group.name)
        if plan is None or not plan.holds_for(group):
            name, who = group_slot(group.name), the_group(group.name)
            plan = self._groups[group.name] = self._made(group, name, who, bounds_of_group(group), None)
        return plan

    def _made(self, key: Key | Group, name: str, who: str, bounds: Bounds, group: Plan | None) -> Plan:
        layout, budget = self._counters.layout, bounds.budget
        told = [(unit, bound.value) for unit, bound in ((REQUESTS, bounds.rpm), (TOKENS, bounds.tpm)) if bound]
        alone = group is None and isinstance(key, Key)
        return Plan(
            key,
            _limits_of(key),
            who,
            tag_of(name) & 0xFFFF_FFFF,
            self._place(name, bounds.rpm, layout.rpm, WINDOW),
            self._place(name, bounds.tpm, layout.tpm, WINDOW),
            self._place(name, bounds.max_parallel, layout.parallel, 1),
            None if budget is None else self._place(
                name, Bound(budget_nano(budget.value), budget.scope), layout.money, MONEY
            ),
            None if budget is None else budget.value,
            bounds.tpm is not None or budget is not None or (group is not None and group.metered),
            budget is not None or (group is not None and group.priced),
            figures_of(told) if alone else b"",
            group,
        )  # fmt: skip

    def _tell(self, error: OSError, key: Key) -> None:
        if self._complaint.ready():
            log.error(
                "{error}: there is no space to count requests; those of the key {key} and perhaps of others are "
                "refused",
                error=error,
                key=key.id,
            )  # fmt: skip

    def budget(self, name: str) -> Place:
        """Where money of a slot is counted, whatever limit stands for it now.

        :raises OSError: as :meth:`Counters.slot`.
        """
        return self._at(name, Bound(0, ""), self._counters.layout.money, MONEY)

    def window(self, name: str) -> OwnColumn:
        """This worker's column of a slot's tokens.

        :raises OSError: as :meth:`Counters.slot`.
        """
        return self._at(name, Bound(0, ""), self._counters.layout.tpm, WINDOW).own

    def _place(self, name: str, bound: Bound[int] | None, offset: int, size: int) -> Place | None:
        return None if bound is None else self._at(slot_name(name, bound.scope), bound, offset, size)

    def _at(self, name: str, bound: Bound[int], offset: int, size: int) -> Place:
        slot = self._counters.slot(name)
        columns = columns_of(self._counters.layout, slot, offset, size)
        at = columns[self._counters.worker]
        cells = self._counters.cells
        own = self._own.get(at)
        if own is None:
            newest, total = at + {MONEY: SEEN}.get(size, 0), at + {WINDOW: TOTAL, MONEY: USED}.get(size, 0)
            own = self._own[at] = OwnColumn(at, newest, total, cells[newest], cells[total])
        others = tuple([other for other in columns if other != at])
        return Place(bound.value, bound.scope, own, others, cells[slot + TAG], columns, name)


def slot_name(name: str, scope: str) -> str:
    """The name of the slot in which is counted what a key or a group uses.

    :param name: the key's id, or :func:`group_slot`.
    :param scope: see :class:`flowstack.limits.bounds.Bound`.
    """
    return f"{name}\0{scope}"


def group_slot(name: str) -> str:
    """What stands in a slot's name for a group: no key's id, as these have no ``@``."""
    return f"@{name}"


def columns_of(layout: Layout, slot: int, offset: int, size: int) -> tuple[int, ...]:
    """Where each worker's column of a kind begins in a slot; of money the operator's too.

    :param offset: of that kind, see :class:`flowstack.limits.counters.Layout`.
    :param size: of a column.
    """
    count = layout.records if size == MONEY else layout.workers
    return tuple([slot + offset + number * size for number in range(count)])
