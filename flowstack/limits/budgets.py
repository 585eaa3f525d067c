"""Budgets: what is charged, and what the rows of the same time cost together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from flowstack.config import Settings
from flowstack.keys import Group, Key
from flowstack.ledger.database import Database
from flowstack.ledger.queries import Condition, Question, report
from flowstack.limits.books import Books, Standing
from flowstack.limits.listing import budgets_of
from flowstack.limits.uses import in_usd, money_as_json, resets_at

_FEW = 10
"""Keys whose rows are asked for by name, as where their budgets were reset."""

Place = tuple[str, str]
"""Whose a budget is, by id or ``@name``, and the upstream whose requests alone count, or nothing."""

Held = tuple[str | None, Standing]
"""A budget, after its owner."""


@frozen
class Line:
    """One budget.

    :ivar owner: the key's; None of a group.
    :ivar in_ledger: what the rows of the period cost, in billionths of a dollar; None where that is not known.
    """

    owner: str | None
    standing: Standing
    in_ledger: int | None

    @property
    def by_estimate(self) -> int | None:
        """What is charged and in no row's cost: of requests in flight, and by estimates that stayed.

        None where that is not known: rows cost more than is charged where the budget is younger than they are.
        """
        if self.in_ledger is None or self.in_ledger > self.standing.used:
            return None
        return self.standing.used - self.in_ledger


def held(books: Books, all_of: Iterable[Key | Group], settings: Settings) -> list[Held]:
    """Every budget of keys and groups, as it stands."""
    return [
        (of.owner if isinstance(of, Key) else None, standing)
        for of in all_of
        for standing in budgets_of(books, of, settings)
    ]


def spans(books: Books, budgets: Iterable[Held]) -> dict[Place, int | None]:
    """From which microsecond on each counts; None for all time."""
    return {(each.name, each.scope): _since(each, books.reset_at(each)) for _, each in budgets}


def lines(budgets: Iterable[Held], costs: Mapping[Place, int] | None) -> list[Line]:
    """Budgets with what their rows cost, the fullest first.

    :param costs: as of :func:`costs_of`; None where they are not known.
    """
    found = [
        Line(owner, each, None if costs is None else costs.get((each.name, each.scope), 0)) for owner, each in budgets
    ]
    return sorted(
        found, key=lambda line: (-line.standing.used / line.standing.most, line.standing.name, line.standing.scope)
    )


def _since(standing: Standing, reset_at: int) -> int | None:
    assert standing.period is not None
    begins = standing.period.begins
    return max(int(begins * 1e6), reset_at) if begins > 0 else reset_at or None


def costs_of(database: Database, budgets: Mapping[Place, int | None]) -> dict[Place, int]:
    """What the rows of each budget cost, in billionths of a dollar.

    One report for all budgets that count from the same time on, or of a few, where only these do.

    :param budgets: as of :func:`spans`.
    :raises sqlite3.Error: the index cannot be read.
    :raises Unavailable: PostgreSQL cannot be read.
    """
    found: dict[Place, int] = {}
    for since in set(budgets.values()):
        names = {name for (name, _), at in budgets.items() if at == since}
        groups = {name[1:] for name in names if name.startswith("@")}
        for field, some in (("group", groups), ("key", {name for name in names if not name.startswith("@")})):
            if not some:
                continue
            where = (Condition(field, tuple(sorted(some))),) if len(some) <= _FEW else ()
            for line in report(database, Question((field, "upstream"), where, since)):
                name, upstream = line.group
                name = f"@{name}" if field == "group" else name
                for place in {(name, ""), (name, upstream)}:
                    if budgets.get(place, -1) == since:
                        found[place] = found.get(place, 0) + int(line.counts()["cost_nano_usd"] or 0)
    return found


def as_json(line: Line) -> dict[str, Any]:
    """A budget as programs get it."""
    return {
        "id": line.standing.name,
        "owner": line.owner,
        "upstream": line.standing.scope or None,
        **money_as_json(line.standing),
        "resets_at": resets_at(line.standing, 0.0),
        "in_ledger_usd": None if line.in_ledger is None else in_usd(line.in_ledger),
        "by_estimate_usd": None if line.by_estimate is None else in_usd(line.by_estimate),
    }
