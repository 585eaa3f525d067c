"""``flowstack budgets``: what is spent of each budget, what of that is in no row, and how to begin one anew."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flowstack.cli.arguments import Command, read_id
from flowstack.cli.columns import show_columns
from flowstack.cli.keys_options import Where, read_or_tell, reads_keystore
from flowstack.cli.ledger import Rows
from flowstack.cli.standings import need_books, note, note_of_service
from flowstack.keys import Group, Key, KeySet
from flowstack.keys.editor import group_of, key_of
from flowstack.limits.books import Books
from flowstack.limits.budgets import Line, Place, costs_of, held, lines, spans
from flowstack.limits.budgets import as_json as line_as_json
from flowstack.limits.listing import budgets_of
from flowstack.limits.uses import in_usd, resets_at
from flowstack.prices.dollars import money_of
from flowstack.redact import visible

_HEAD = ("id", "owner", "to", "amount USD", "spent", "left", "in ledger", "by estimate", "period", "renewed at")
_NUMBERS = range(3, 8)

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
    with need_books(where.state, where.settings) as books:
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
    found = held(books, all_of, where.settings)
    # What this machine alone counts, its rows alone explain.
    all_count = where.settings.shared.redis is not None
    costs = _costs(Rows(state, where.settings if all_count else None), spans(books, found))
    # Counted anew, after the rows: what ends meanwhile is then charged and in no row yet, and never the reverse.
    shown = lines(held(books, all_of, where.settings), costs)
    if as_json:
        click.echo(json.dumps([line_as_json(line) for line in shown], indent=2))
        return
    if not shown:
        note(f"no key and no group has a budget{_more(where)}")
        return
    show_columns(_HEAD, [[visible(cell) for cell in _cells(line)] for line in shown], _NUMBERS)
    if any(line.in_ledger is not None and line.by_estimate is None for line in shown):
        note(
            "where by estimate has no figure, the rows of the period cost more than is charged: they are older than "
            "the budget, or the counters were lost"
        )


def _costs(rows: Rows, budgets: dict[Place, int | None]) -> dict[Place, int] | None:
    """What the rows of each budget cost; None, and a note that says why, where the ledger cannot be read."""
    notes: list[str] = []
    try:
        with rows.opened(notes) as (database, _):
            found = costs_of(database, budgets)
    except click.ClickException as error:
        notes.append(error.format_message())
        found = None
    for words in notes:
        note(words)
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
