"""``flowstack usage``: what was used, by whom, at what cost."""

from __future__ import annotations

import os
import re
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
from flowstack.cli.moments import moment
from flowstack.cli.usage_formats import Entry, Gap, Gaps, as_csv, as_json, as_table
from flowstack.config import ConfigError, load
from flowstack.files import as_owner, folder_at
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import Index, Progress, bytes_behind, index_path
from flowstack.ledger.intake import MAX_WORD
from flowstack.ledger.queries import ATTRIBUTE, CLOCK, Condition, Line, Question, gaps, report, standing, total
from flowstack.ledger.schema import DIMENSIONS, Unusable, open_for_reading
from flowstack.memo import cut
from flowstack.redact import visible
from flowstack.tokens import hide_keys

FIELDS = (*DIMENSIONS, *CLOCK)
WHAT = f"{', '.join(FIELDS)} or {ATTRIBUTE}<name>"

COST = "cost_nano_usd"
SHORT = {"cost": COST, "cost_usd": COST, "tokens": "total_tokens", "latency": "duration_p95_ms"}
"""Shorter names of figures, for ``--sort``."""

STEP = 20_000
"""Rows that are taken over before a word is said about how many there are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONDITION = re.compile(rf"(?:{'|'.join(DIMENSIONS)}|{ATTRIBUTE}[^=,]+)=")


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
    question = Question(_fields(by), conditions(where), _moment("since", since, now), _moment("until", until, now))
    if question.since is not None and question.until is not None and question.since >= question.until:
        raise click.BadParameter(f"{until} is not after {since}, which --since says", param_hint="--until")
    directory = state_directory(state, config)
    notes: list[str] = []
    try:
        with as_owner(directory), opened(directory, notes) as (connection, behind):
            lines = report(connection, question)
            stands = standing(connection)
            everything = Entry((), total(lines).figures())
            lacking = _gaps(connection, question, everything) if form != "csv" else Gaps()
    except (sqlite3.Error, OSError, Unusable) as error:
        raise click.ClickException(told(f"the index in {directory} cannot be read: {error}")) from None
    if stands.bad_lines:
        notes.append(f"{stands.bad_lines:,} lines of the journal are damaged and not counted")
    for note in notes:
        click.echo(told(f"Note: {note}."), err=True)
    shown = _sorted(lines, question.by, sort)
    rest = shown[limit:] if limit else []
    entries = [_entry(line, question.by) for line in shown[:limit]]
    about = {
        "since": _shown(question.since),
        "until": _shown(question.until),
        "where": _where(question),
        "left_out": len(rest),
        "journal_bytes_not_indexed": behind,
        "damaged_lines": stands.bad_lines,
    }
    if form == "json":
        click.echo(as_json(question.by, entries, everything, lacking, about), nl=False)
    elif form == "csv":
        sys.stdout.write(as_csv(question.by, entries, everything))
    else:
        if rest:
            entries.append(Entry((f"({len(rest):,} more)", *[""] * (len(question.by) - 1)), total(rest).figures()))
        title = _title(question, now)
        console = Console(highlight=False) if sys.stdout.isatty() else None
        click.echo(as_table(title, question.by, entries, everything, lacking, console), nl=False)


# What was asked


def _check_text(text: str, option: str) -> None:
    """Refuse what no name in the ledger can be.

    :raises click.BadParameter: the argument's bytes were no UTF-8.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise click.BadParameter(f"found {text!r}, expected UTF-8", param_hint=option)


def _fields(text: str) -> tuple[str, ...]:
    _check_text(text, "--by")
    fields = tuple(dict.fromkeys(filter(None, (field.strip() for field in text.split(",")))))
    for field in fields:
        if field not in FIELDS and not (field.startswith(ATTRIBUTE) and field != ATTRIBUTE):
            raise click.BadParameter(f"found {field!r}, expected {WHAT}, with commas between", param_hint="--by")
    return tuple(_as_kept(field) for field in fields)


def _as_kept(field: str) -> str:
    """The field's name as the ledger has it: attributes in lower case, without a key in them, and not endless."""
    if not field.startswith(ATTRIBUTE):
        return field
    return ATTRIBUTE + cut(hide_keys(field.removeprefix(ATTRIBUTE).lower()), MAX_WORD)


def conditions(options: tuple[str, ...]) -> tuple[Condition, ...]:
    """Read ``--where``.

    :raises click.BadParameter: it is no condition, or holds a key.
    """
    found: dict[str, list[str]] = {}
    for option in options:
        _check_text(option, "--where")
        # A comma may stand in a value: it ends one only where another condition begins.
        starts = [match.start() for match in _CONDITION.finditer(option) if _begins(option, match.start())]
        if not option.strip() or not starts or starts[0] != 0:
            raise click.BadParameter(
                f"found {option!r}, expected conditions such as model=gpt-4o*,owner=alice, each on one of "
                f"{', '.join(DIMENSIONS)} or {ATTRIBUTE}<name>",
                param_hint="--where",
            )
        for start, end in zip(starts, [*starts[1:], len(option) + 1], strict=True):
            field, _, pattern = option[start : end - 1].partition("=")
            pattern = read_id(pattern, "--where") if field == "key" else no_key(pattern)
            found.setdefault(_as_kept(field), []).append(pattern)
    return tuple(Condition(field, tuple(patterns)) for field, patterns in found.items())


def _begins(option: str, start: int) -> bool:
    return start == 0 or option[start - 1] == ","


def _moment(name: str, text: str | None, now: datetime) -> int | None:
    try:
        return None if text is None else moment(text, now)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"--{name}") from None


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
                f"report; its last row is of {_shown(last) or 'no time'}"
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


# Lines


def _gaps(connection: sqlite3.Connection, question: Question, everything: Entry) -> Gaps:
    """Which models and endpoints lack a price or usage; nothing is read where none does."""
    if not everything.figures["without_price"] and not everything.figures["without_usage"]:
        return Gaps()
    lines = gaps(connection, question)

    def of(figure: str) -> list[Gap]:
        found = []
        for line in lines:
            model, endpoint, reason = line.group
            if count := line.figures()[figure]:
                found.append(Gap(model, endpoint, reason, int(count)))
        return sorted(found, key=lambda gap: (-gap.rows, gap.of, gap.reason or ""))

    return Gaps(of("without_price"), of("without_usage"))


def _entry(line: Line, by: tuple[str, ...]) -> Entry:
    pairs = zip(by, line.group, strict=True)
    return Entry(tuple(_clock(field, value) if field in CLOCK else value for field, value in pairs), line.figures())


def _clock(field: str, hours: int) -> str:
    time = _EPOCH + timedelta(hours=hours)
    return time.strftime("%Y-%m-%d" if field == "day" else "%Y-%m-%dT%H:%MZ")


def _sorted(lines: list[Line], by: tuple[str, ...], sort: str | None) -> list[Line]:
    """In order, lines without the value that counts last; what is equal is in the order of its group."""
    if sort is None:
        sort = next((field for field in by if field in CLOCK), "cost_usd")
    lines = sorted(lines, key=lambda line: [(value is None, value) for value in line.group])
    if sort in by:
        at = by.index(sort)
        return sorted(lines, key=lambda line: (line.group[at] is None, line.group[at]))
    name = SHORT.get(sort, sort)
    names = Line().figures()
    if name not in names:
        known = ", ".join([*by, *(figure for figure in names if figure != COST), *SHORT])
        raise click.BadParameter(f"found {sort!r}, expected one of {known}", param_hint="--sort")

    def order(line: Line) -> tuple[float, int]:
        value = line.figures()[name]
        return (float("inf") if value is None else -value, -line.requests)

    return sorted(lines, key=order)


def _title(question: Question, now: datetime) -> str:
    since = "the beginning" if question.since is None else _minute(question.since)
    until = f"now, {now:%Y-%m-%d %H:%M}" if question.until is None else _minute(question.until)
    where = ", ".join(_where(question))
    return f"Usage from {since} to {until} UTC" + (f", where {visible(where)}" if where else "")


def _where(question: Question) -> list[str]:
    return [hide_keys(f"{condition.field}={pattern}") for condition in question.where for pattern in condition.patterns]


def _minute(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M")


def _shown(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")


def told(words: str) -> str:
    """Words for a person: no key in them, and nothing that drives a terminal."""
    return visible(hide_keys(words))
