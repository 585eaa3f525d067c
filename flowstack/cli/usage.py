"""``flowstack usage``: what was used, by whom, at what cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console

from flowstack.cli.arguments import Command, no_key, read_id
from flowstack.cli.ledger import ledger_of, reads_ledger, told
from flowstack.cli.usage_formats import as_table
from flowstack.errors import ParseError
from flowstack.ledger.formats import Entry, as_csv, as_json
from flowstack.ledger.queries import Question, total
from flowstack.ledger.questions import WHAT, answer, question_of, where_shown
from flowstack.redact import visible

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@click.command(cls=Command)
@reads_ledger
@click.option("--since", metavar="TIME", help="Start, such as 2026-11-01, 7d, 24h, today, month.")
@click.option("--until", metavar="TIME", help="End, not included.")
@click.option("--by", default="key", show_default=True, metavar="FIELDS", help=f"With commas: {WHAT}.")
@click.option("--where", multiple=True, metavar="CONDITIONS", help="With commas: model=gpt-4o*,owner=alice,…")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--sort", metavar="NAME", help="A field, ascending, or a figure, descending.  [default: cost]")
@click.option("--limit", type=click.IntRange(1), help="At most this many lines.")
def usage(
    state: Path | None,
    config: Path | None,
    local: bool,
    since: str | None,
    until: str | None,
    by: str,
    where: tuple[str, ...],
    form: str,
    sort: str | None,
    limit: int | None,
) -> None:
    """Report requests, tokens, cost, errors and times from the ledger.

    Times are in UTC. The report is as new as the ledger itself, even while the service is off. With [shared] postgres
    in --config it is of all machines; --local, or --state, is of this one. An unknown figure is a
    dash, empty (csv) or null (json), never 0. A + means at least: some rows do not report the figure. How many is below
    the table, and in the without_… figures of csv and json. "no usage" is the share of requests answered 2xx without
    usage, "no price" that of requests with usage and no price; below is which models or endpoints these are, and why.

    \b
    Example: this month by owner; one team's models by the day; a spreadsheet.
      flowstack usage --config /etc/flowstack/flowstack.toml --since month --by owner
      flowstack usage --state /var/lib/flowstack --where attribute:team=search --by day,model
      flowstack usage --state /var/lib/flowstack --since 2026-10 --until 2026-11 --format csv > october.csv
    """
    now = datetime.now(UTC)
    with option_named():
        question = question_of(by, where, since, until, now, pattern_of)
    notes: list[str] = []
    with ledger_of(state, config, local).opened(notes) as (database, behind), option_named():
        found = answer(database, question, sort, gaps=form != "csv")
    if found.damaged_lines:
        notes.append(f"{found.damaged_lines:,} lines of the journal are damaged and not counted")
    for note in notes:
        click.echo(told(f"Note: {note}."), err=True)
    entries = found.entries(limit)
    if form == "json":
        click.echo(as_json(question.by, entries, found.total, found.gaps, found.about(limit, behind)), nl=False)
    elif form == "csv":
        sys.stdout.write(as_csv(question.by, entries, found.total))
    else:
        if limit and (rest := found.lines[limit:]):
            entries.append(Entry((f"({len(rest):,} more)", *[""] * (len(question.by) - 1)), total(rest).figures()))
        title = _title(question, now)
        console = Console(highlight=False) if sys.stdout.isatty() else None
        click.echo(as_table(title, question.by, entries, found.total, found.gaps, console), nl=False)


# What was asked


@contextmanager
def option_named() -> Iterator[None]:
    """Say which option was at fault.

    :raises click.BadParameter: one was.
    """
    try:
        yield
    except ParseError as error:
        raise click.BadParameter(error.message, param_hint=f"--{error.key}") from None


def pattern_of(field: str, pattern: str) -> str:
    """A condition's pattern, as it is.

    :raises click.UsageError: it is, or looks like, a whole key.
    """
    return read_id(pattern, "--where") if field == "key" else no_key(pattern)


# What is said


def _title(question: Question, now: datetime) -> str:
    since = "the beginning" if question.since is None else _minute(question.since)
    until = f"now, {now:%Y-%m-%d %H:%M}" if question.until is None else _minute(question.until)
    where = ", ".join(where_shown(question))
    return f"Usage from {since} to {until} UTC" + (f", where {visible(where)}" if where else "")


def _minute(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M")
