"""``flowstack budgets``: what is spent of each budget, what of that is in no row, and how to begin one anew."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from flowstack.cli.arguments import Command, read_id
from flowstack.cli.columns import show_columns
from flowstack.cli.keys_options import Where, read_or_tell, reads_keystore
from flowstack.cli.money import money_of
from flowstack.cli.standings import budgets_of, need_books, note, note_of_service
from flowstack.cli.usage import opened
from flowstack.cli.uses import in_usd, money_as_json, resets_at
from flowstack.files import as_owner
from flowstack.keys import Group, Key, KeySet
from flowstack.keys.editor import group_of, key_of
from flowstack.ledger.queries import Condition, Question, report
from flowstack.ledger.schema import Unusable
from flowstack.limits.books import Books, Standing
from flowstack.redact import visible

_HEAD = ("id", "owner", "to", "amount USD", "spent", "left", "in ledger", "by estimate", "period", "renewed at")
_NUMBERS = range(3, 8)

_FEW = 10
"""Keys whose rows are asked for by name, as where their budgets were reset."""

Place = tuple[str, str]
"""Whose a budget is, by id or ``@name``, and the upstream whose requests alone count, or nothing."""


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


@click.command(cls=Command)
@reads_keystore
@click.option("--reset", "reset_id", metavar="ID", help="Reset the budget of this key, or @group.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for programs.")
def budgets(path: Path, reset_id: str | None, as_json: bool) -> None:
    """List budgets: amount, spent, left, and when they are renewed; or reset one now.

    The fullest come first. "spent" is what is charged: the cost of requests, or an estimate while it is not known.
    "in ledger" is the cost of the rows of the same time, and "by estimate" what is charged beyond that: for requests
    in flight, for work still open, and for requests that ended without known usage or price. With --config, budgets in
    [limits] are listed too.

    --reset sets what is charged to zero, and says what it was. A running service goes on counting, and no charge is
    lost.

    \b
    Example: list all budgets; reset a key's; reset a group's.
      flowstack budgets --config /etc/flowstack/flowstack.toml
      flowstack budgets --config /etc/flowstack/flowstack.toml --reset k7Qm2xW9pLz4
      flowstack budgets --config /etc/flowstack/flowstack.toml --reset @search
    """
    where = Where.of_command()
    if where.state is None:
        raise click.UsageError("say where the counters are: --state DIR, or --config FILE with [server] state in it")
    keys = read_or_tell(path)
    with need_books(where.state) as books:
        if reset_id is not None:
            _reset(books, _found(path, keys, read_id(reset_id, "--reset")), where, as_json)
        else:
            note_of_service(where.state)
            _list(books, [*keys.groups.values(), *keys], where, where.state, as_json)


def _found(path: Path, keys: KeySet, name: str) -> Key | Group:
    """The key with an id, or the group with a name behind ``@``.

    :raises KeystoreError: there is none.
    :raises click.BadParameter: a group's name, without the ``@``.
    """
    if name.startswith("@"):
        return group_of(path, keys, name[1:])
    if name in keys.groups and all(key.id != name for key in keys):
        raise click.BadParameter(f"found the name of a group, expected a key's id, or @{name}", param_hint="--reset")
    return key_of(path, keys, name)


def _reset(books: Books, of: Key | Group, where: Where, as_json: bool) -> None:
    found = budgets_of(books, of, where.settings)
    what = f"group {of.name}" if isinstance(of, Group) else f"key {of.id}"
    if not found:
        more = "" if isinstance(of, Group) else _more(where)
        raise click.ClickException(f"the {what} has no budget, so that there is nothing to reset{more}")
    before = [(standing, books.reset(standing)) for standing in found]
    if as_json:
        were = [{"id": each.name, "upstream": each.scope or None, "spent_usd": in_usd(spent)} for each, spent in before]
        click.echo(json.dumps(were, indent=2))
        return
    for standing, spent in before:
        to = f" to {standing.scope}" if standing.scope else ""
        click.echo(
            f"The budget of the {what}{to} was reset: {money_of(spent)} of {money_of(standing.most)} USD had "
            "been charged."
        )


def _more(where: Where) -> str:
    return "" if where.configured else "; with --config, those of [limits] would be known too"


def _list(books: Books, all_of: list[Key | Group], where: Where, state: Path, as_json: bool) -> None:
    def held() -> Iterator[tuple[str | None, Standing]]:
        for of in all_of:
            for standing in budgets_of(books, of, where.settings):
                yield of.owner if isinstance(of, Key) else None, standing

    costs = _costs(state, {(each.name, each.scope): _since(each, books.reset_at(each)) for _, each in held()})
    # Counted anew, after the rows: what ends meanwhile is then charged and in no row yet, and never the reverse.
    lines = [
        Line(owner, each, None if costs is None else costs.get((each.name, each.scope), 0)) for owner, each in held()
    ]
    lines.sort(key=lambda line: (-line.standing.used / line.standing.most, line.standing.name, line.standing.scope))
    if as_json:
        click.echo(json.dumps([_as_json(line) for line in lines], indent=2))
        return
    if not lines:
        note(f"no key and no group has a budget{_more(where)}")
        return
    show_columns(_HEAD, [[visible(cell) for cell in _cells(line)] for line in lines], _NUMBERS)
    if any(line.in_ledger is not None and line.by_estimate is None for line in lines):
        note(
            "where by estimate has no figure, the rows of the period cost more than is charged: they are older than "
            "the budget, or the counters were lost"
        )


def _since(standing: Standing, reset_at: int) -> int | None:
    """From which microsecond on a budget counts; None for all time."""
    assert standing.period is not None
    begins = standing.period.begins
    return max(int(begins * 1e6), reset_at) if begins > 0 else reset_at or None


def _costs(state: Path, budgets: dict[Place, int | None]) -> dict[Place, int] | None:
    """What the rows of each budget cost; None, and a note that says why, where the ledger cannot be read."""
    notes: list[str] = []
    try:
        with as_owner(state), opened(state, notes) as (connection, _):
            found = _read_costs(connection, budgets)
    except click.ClickException as error:
        notes.append(error.format_message())
        found = None
    except (sqlite3.Error, OSError, Unusable) as error:
        notes.append(f"the index in {state} cannot be read: {error}")
        found = None
    for words in notes:
        note(words)
    return found


def _read_costs(connection: sqlite3.Connection, budgets: dict[Place, int | None]) -> dict[Place, int]:
    """One report for all budgets that count from the same time on, or of a few, where only these do."""
    found: dict[Place, int] = {}
    for since in set(budgets.values()):
        names = {name for (name, _), at in budgets.items() if at == since}
        groups = {name[1:] for name in names if name.startswith("@")}
        for field, some in (("group", groups), ("key", {name for name in names if not name.startswith("@")})):
            if not some:
                continue
            where = (Condition(field, tuple(sorted(some))),) if len(some) <= _FEW else ()
            for line in report(connection, Question((field, "upstream"), where, since)):
                name, upstream = line.group
                name = f"@{name}" if field == "group" else name
                for place in {(name, ""), (name, upstream)}:
                    if budgets.get(place, -1) == since:
                        found[place] = found.get(place, 0) + int(line.figures()["cost_nano_usd"] or 0)
    return found


def _cells(line: Line) -> tuple[str, ...]:
    standing = line.standing
    assert standing.budget is not None
    amounts = (standing.most, standing.used, standing.left, line.in_ledger, line.by_estimate)
    return (
        standing.name,
        line.owner or "",
        standing.scope,
        *map(money_of, amounts),
        standing.budget.period,
        resets_at(standing, 0.0) or "never",
    )


def _as_json(line: Line) -> dict[str, Any]:
    return {
        "id": line.standing.name,
        "owner": line.owner,
        "upstream": line.standing.scope or None,
        **money_as_json(line.standing),
        "resets_at": resets_at(line.standing, 0.0),
        "in_ledger_usd": None if line.in_ledger is None else in_usd(line.in_ledger),
        "by_estimate_usd": None if line.by_estimate is None else in_usd(line.by_estimate),
    }
