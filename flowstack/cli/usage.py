"""``flowstack usage``: what was used, by whom, at what cost."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console

from flowstack.cli.arguments import Command, no_key, read_id
from flowstack.cli.usage_formats import as_table
from flowstack.config import ConfigError, load
from flowstack.errors import ParseError
from flowstack.files import as_owner, folder_at
from flowstack.ledger.files import journal_path
from flowstack.ledger.formats import Entry, as_csv, as_json
from flowstack.ledger.index import Index, Progress, bytes_behind, index_path
from flowstack.ledger.queries import Question, standing, total
from flowstack.ledger.questions import WHAT, answer, question_of, shown, where_shown
from flowstack.ledger.schema import Unusable, open_for_reading
from flowstack.redact import visible
from flowstack.tokens import hide_keys

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STEP = 20_000
"""Rows that are taken over before a word is said about how many there are."""


@click.command(cls=Command)
@click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="The service's state directory.")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Take [server] state from this configuration."
)
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
    since: str | None,
    until: str | None,
    by: str,
    where: tuple[str, ...],
    form: str,
    sort: str | None,
    limit: int | None,
) -> None:
    """Report requests, tokens, cost, errors and times from the ledger.

    Times are in UTC. The report is as new as the ledger itself, even while the service is off. An unknown figure is a
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
    directory = state_directory(state, config)
    notes: list[str] = []
    try:
        with as_owner(directory), opened(directory, notes) as (connection, behind), option_named():
            found = answer(connection, question, sort, gaps=form != "csv")
    except (sqlite3.Error, OSError, Unusable) as error:
        raise click.ClickException(told(f"the index in {directory} cannot be read: {error}")) from None
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


def state_directory(state: Path | None, config: Path | None) -> Path:
    """Where the ledger is.

    :raises click.ClickException: nothing says it.
    """
    if state is not None:
        return state
    if config is None:
        raise click.UsageError("say where the ledger is: --state DIR, or --config FILE with [server] state in it")
    try:
        found = load(config).server.state
    except ConfigError as error:
        raise click.ClickException(told(str(error))) from None
    if found is None:
        raise click.ClickException(told(f"{config}: [server] state: not set, so that no ledger is kept"))
    return found


# The index


@contextmanager
def opened(directory: Path, notes: list[str]) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Bring the index up to date where that is possible, and open it; close it at the end.

    :return: the index, and how many bytes of the journal are not in it.
    """
    path, journal = index_path(directory), journal_path(directory)
    if not path.exists() and not journal.is_dir():
        raise click.ClickException(
            told(f"no ledger in {directory}: found neither {journal.name}/ nor {path.name}. The service writes it "
                  "below [server] state, once a request with a valid key has come")
        )  # fmt: skip
    _check_roots(directory)
    why = None
    try:
        with Index(path, journal) as index:
            behind = _catch_up(index).behind
    except (OSError, sqlite3.Error) as error:
        if not path.exists():
            raise click.ClickException(
                told(f"there is no index yet, and it cannot be made: {error}. Run this as the service's user")
            ) from None
        why = error
    with closing(open_for_reading(path)) as connection:
        if why is not None and (behind := bytes_behind(connection, journal)):
            last = standing(connection).last_row
            notes.append(
                f"the index cannot be brought up to date ({why}). {behind:,} bytes of the journal are not in this "
                f"report; its last row is of {shown(last) or 'no time'}"
            )
        yield connection, behind


def _check_roots(directory: Path) -> None:
    """Refuse, as root, a folder of root's in which others may write: there SQLite would open what they like.

    :raises click.ClickException: it is one.
    :raises OSError: it is not even root's any more, or a link of another's leads there now.
    """
    with folder_at(directory) as folder:
        status = os.fstat(folder)
    others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid)
    if os.geteuid() == 0 and others:
        raise click.ClickException(
            told(f"{directory} is root's, and others may write in it (mode {stat.S_IMODE(status.st_mode):04o}, group "
                  f"{status.st_gid}): root opens no ledger there. Run this as the service's user, make the folder that "
                  "user's, or take the right away: chmod g-w,o-w")
        )  # fmt: skip


def _catch_up(index: Index) -> Progress:
    progress = index.catch_up(limit_rows=STEP)
    if progress.behind:
        click.echo(f"Adding {progress.behind / 1e6:,.0f} MB of the journal to the index …", err=True)
        progress = index.catch_up()
    return progress


def _title(question: Question, now: datetime) -> str:
    since = "the beginning" if question.since is None else _minute(question.since)
    until = f"now, {now:%Y-%m-%d %H:%M}" if question.until is None else _minute(question.until)
    where = ", ".join(where_shown(question))
    return f"Usage from {since} to {until} UTC" + (f", where {visible(where)}" if where else "")


def _minute(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M")


def told(words: str) -> str:
    """Words for a person: no key in them, and nothing that drives a terminal."""
    return visible(hide_keys(words))
