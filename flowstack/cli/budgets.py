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
from flowstack.cli.keys_options import Where, keys_of, reads_keystore
from flowstack.cli.keys_shown import visible
from flowstack.cli.money import shown_nanos
from flowstack.cli.standings import budgets_of, need_books, note, note_of_service
from flowstack.cli.usage import opened
from flowstack.cli.uses import in_usd, money_as_json, resets_at
from flowstack.files import as_owner
from flowstack.keystore.editor import unknown_id
from flowstack.ledger.queries import Condition, Question, report
from flowstack.ledger.schema import Unusable
from flowstack.limits.books import Books, Standing
from flowstack.policy.keys import Key

UNKNOWN = "-"
_HEAD = ("id", "owner", "to", "amount USD", "spent", "left", "in ledger", "by estimate", "period", "anew from")
_NUMBERS = range(3, 8)

_FEW = 10
"""Keys whose rows are asked for by name, as where their budgets were reset."""

Place = tuple[str, str]
"""A budget's place: a key's id, and the upstream whose requests alone count, or nothing."""


@frozen
class Line:
    """One budget.

    :ivar id: the key's.
    :ivar owner: the key's.
    :ivar in_ledger: what the rows of the period cost, in billionths of a dollar; None where that is not known.
    """

    id: str
    owner: str | None
    standing: Standing
    in_ledger: int | None

    @property
    def by_estimate(self) -> int | None:
        """What is charged and in no row's cost: of requests under way, and by estimates that stayed.

        None where that is not known: rows cost more than is charged where the budget is younger than they are.
        """
        if self.in_ledger is None or self.in_ledger > self.standing.used:
            return None
        return self.standing.used - self.in_ledger


@click.command(cls=Command)
@reads_keystore
@click.option("--reset", "reset_id", metavar="ID", help="Have this key's budget begin anew, also while it is served.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for programs.")
def budgets(path: Path, reset_id: str | None, as_json: bool) -> None:
    """List budgets: amount, spent, left, and when they begin anew; or have one begin anew now.

    Spent is what is charged: what requests cost, and for those whose cost is not known (yet) what was estimated.
    "in ledger" is what the rows of the same time cost together, and "by estimate" is what is charged beyond that: for
    requests under way, for work whose outcome is still open, and for what ended without its usage or its price known.
    The fullest come first. --config also tells of the budgets in [limits].

    --reset sets what is charged to nothing, and says what it was. Nothing else is touched: a service goes on counting,
    and charges of the same moment count from then on.

    \b
    Example: all budgets; one key's anew.
      flowstack budgets --config /etc/flowstack/flowstack.toml
      flowstack budgets --config /etc/flowstack/flowstack.toml --reset k7Qm2xW9pLz4
    """
    where = Where.of_command()
    if where.state is None:
        raise click.UsageError("say where the counters are: --state DIR, or --config FILE with [server] state in it")
    keys = keys_of(path)
    only = None if reset_id is None else read_id(reset_id, "--reset")
    chosen = [key for key in keys if only in (None, key.id)]
    if only is not None and not chosen:
        raise unknown_id(path, keys, only)
    with need_books(where.state) as books:
        if only is None:
            note_of_service(where.state)
            _list(books, chosen, where, where.state, as_json)
        else:
            _reset(books, chosen[0], where, as_json)


def _reset(books: Books, key: Key, where: Where, as_json: bool) -> None:
    found = budgets_of(books, key, where.settings)
    if not found:
        raise click.ClickException(f"the key {key.id} has no budget, so that there is nothing to reset{_more(where)}")
    before = [(standing, books.reset(standing)) for standing in found]
    if as_json:
        were = [{"id": key.id, "upstream": each.scope or None, "spent_usd": in_usd(spent)} for each, spent in before]
        click.echo(json.dumps(were, indent=2))
        return
    for standing, spent in before:
        to = f" to {standing.scope}" if standing.scope else ""
        click.echo(
            f"The budget of the key {key.id}{to} begins anew: {shown_nanos(spent)} of {shown_nanos(standing.most)} USD "
            "were charged."
        )


def _more(where: Where) -> str:
    return "" if where.configured else "; with --config, those of [limits] would be known too"


def _list(books: Books, keys: list[Key], where: Where, state: Path, as_json: bool) -> None:
    def held() -> Iterator[tuple[Key, Standing]]:
        for key in keys:
            for standing in budgets_of(books, key, where.settings):
                yield key, standing

    costs = _costs(state, {(key.id, each.scope): _since(each, books.reset_at(each)) for key, each in held()})
    # Counted anew, after the rows: what ends meanwhile is then charged and in no row yet, and never the reverse.
    lines = [
        Line(key.id, key.owner, each, None if costs is None else costs.get((key.id, each.scope), 0))
        for key, each in held()
    ]
    lines.sort(key=lambda line: (-line.standing.used / line.standing.most, line.id, line.standing.scope))
    if as_json:
        click.echo(json.dumps([_as_json(line) for line in lines], indent=2))
        return
    if not lines:
        note(f"no key has a budget{_more(where)}")
        return
    show_columns(_HEAD, [[visible(cell) for cell in _cells(line)] for line in lines], _NUMBERS)
    if any(line.in_ledger is not None and line.by_estimate is None for line in lines):
        note(
            "where nothing stands under by estimate, the rows of the period cost more than is charged: they are older "
            "than the budget, or the counters were lost"
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
    """One report for all budgets that count from the same time on, or of a few keys, where only these do."""
    found: dict[Place, int] = {}
    for since in set(budgets.values()):
        chosen = {budget for budget, at in budgets.items() if at == since}
        ids = tuple(sorted({key_id for key_id, _ in chosen}))
        where = (Condition("key", ids),) if len(ids) <= _FEW else ()
        for line in report(connection, Question(("key", "upstream"), where, since)):
            key_id, upstream = line.group
            for budget in chosen & {(key_id, ""), (key_id, upstream)}:
                found[budget] = found.get(budget, 0) + int(line.figures()["cost_nano_usd"] or 0)
    return found


def _cells(line: Line) -> tuple[str, ...]:
    standing = line.standing
    assert standing.budget is not None
    money = (standing.most, standing.used, standing.left, line.in_ledger, line.by_estimate)
    return (
        line.id,
        line.owner or "",
        standing.scope,
        *(UNKNOWN if nanos is None else shown_nanos(nanos) for nanos in money),
        standing.budget.period,
        resets_at(standing, 0.0) or "never",
    )


def _as_json(line: Line) -> dict[str, Any]:
    return {
        "id": line.id,
        "owner": line.owner,
        "upstream": line.standing.scope or None,
        **money_as_json(line.standing),
        "resets_at": resets_at(line.standing, 0.0),
        "in_ledger_usd": None if line.in_ledger is None else in_usd(line.in_ledger),
        "by_estimate_usd": None if line.by_estimate is None else in_usd(line.by_estimate),
    }
