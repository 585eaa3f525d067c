"""``flowstack reconcile``: the ledger beside what the provider says was used and what it bills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from attrs import frozen
from twisted.internet.defer import Deferred

from flowstack.cli.billed import DAY, Billed, By, Ledger, Ours, Pair, compared
from flowstack.cli.ledger import Rows, ledger_of, reads_ledger, told
from flowstack.cli.usage import option_named, pattern_of
from flowstack.cli.usage_formats import aligned
from flowstack.config import ConfigError, Upstream, load
from flowstack.errors import ParseError
from flowstack.keys.provider import read_key
from flowstack.ledger.moments import moment
from flowstack.ledger.queries import ATTRIBUTE, Condition, Line, Question, report
from flowstack.ledger.questions import conditions
from flowstack.prices.dollars import NANO, UNKNOWN, money
from flowstack.redact import visible

TOO_LITTLE = 3
"""The exit status where the ledger has captured less than ``--min-capture``."""

DAYS = 7
"""Without ``--since``."""

MOST_DAYS = 366

_SECOND = 1_000_000
_HOURS = 24


@frozen(slots=True)
class _Days:
    """Whole days: Unix times of the first one's beginning, and of that of the day behind the last."""

    first: int
    last: int

    @property
    def shown(self) -> tuple[str, str]:
        """The first and the last, as dates."""
        return _date(self.first), _date(self.last - DAY)


@click.command()
@reads_ledger
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="An admin key of the organization, and nothing else; others must not be able to read it.",
)
@click.option("--upstream", metavar="NAME", help="The upstream to compare.  [default: the default one]")
@click.option("--url", metavar="URL", help="Ask this base URL.  [default: the upstream's base_url, or OpenAI's]")
@click.option("--since", metavar="TIME", help=f"First day (UTC).  [default: {DAYS} days before the end]")
@click.option("--until", metavar="TIME", help="End day, not included.  [default: today]")
@click.option("--by", type=click.Choice(["day", "model", "project"]), default="day", show_default=True)
@click.option("--project", "projects", multiple=True, metavar="ID", help="Only this project's figures; repeatable.")
@click.option("--project-attribute", metavar="NAME", help="The attribute of requests that names their project.")
@click.option("--where", multiple=True, metavar="CONDITIONS", help="Only these rows, as in flowstack usage.")
@click.option("--min-capture", type=click.FloatRange(0, 1), default=0.98, show_default=True, metavar="SHARE")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=120.0, show_default=True, metavar="SECONDS")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def reconcile(
    state: Path | None,
    config: Path | None,
    local: bool,
    admin_key_file: Path,
    upstream: str | None,
    url: str | None,
    since: str | None,
    until: str | None,
    by: By,
    projects: tuple[str, ...],
    project_attribute: str | None,
    where: tuple[str, ...],
    min_capture: float,
    timeout: float,
    as_json: bool,
) -> None:
    """Compare the ledger with what the provider says was used and what it bills.

    It asks for the organization's figures with an admin key. Days are in UTC. "captured" is the ledger's share of the
    provider's figure, "drift" what the ledger has more. The ledger has no projects: --project selects a project's
    figures and --where its rows, or --project-attribute names the attribute that has the project. With [shared]
    postgres in --config the ledger is that of all machines.

    \b
    Exit status: 0 if the ledger has at least --min-capture of the provider's tokens and dollars; 3 if it has less, or
    the provider has no figures and the ledger has; 1 if that cannot be found out; 2 for a wrong option.

    \b
    Example: the last seven days; this month by model; one project, whose keys are a group.
      flowstack reconcile --config flowstack.toml --admin-key-file admin.key
      flowstack reconcile --config flowstack.toml --admin-key-file admin.key --since month --by model
      flowstack reconcile --config flowstack.toml --admin-key-file admin.key --project proj_abc --where group=search
    """
    now = datetime.now(UTC)
    days = _days(since, until, now)
    chosen = _upstream(config, upstream)
    base_url = _checked(url or chosen.base_url)
    try:
        key = read_key("--admin-key-file", admin_key_file)
    except ParseError as error:
        raise click.ClickException(told(str(error))) from None
    with option_named():
        rows = [*conditions(where, pattern_of)]
    if (config is not None or upstream is not None) and all(one.field != "upstream" for one in rows):
        rows.append(Condition("upstream", (chosen.name,)))
    attribute = None if project_attribute is None else ATTRIBUTE + project_attribute.lower()
    if attribute is not None and projects:
        rows.append(Condition(attribute, projects))
    notes: list[str] = []
    ours = _ours(ledger_of(state, config, local), days, rows, attribute, notes)
    billed = _billed(base_url, key, chosen.ca_file, days, projects, timeout)
    pairs, total = compared(by, ours, billed, attribute is not None)
    notes += _notes(by, days, now, projects, attribute, where, billed, total)
    enough = total.enough(min_capture)
    if as_json:
        click.echo(_as_json(by, days, chosen.name, base_url, pairs, total, billed, min_capture, enough, notes))
    else:
        click.echo(_as_text(by, days, base_url, pairs, total, billed), nl=False)
        for note in notes:
            click.echo(told(f"Note: {note}."), err=True)
        click.echo(_verdict(total, min_capture, enough))
    if not enough:
        click.get_current_context().exit(TOO_LITTLE)


# What was asked


def _days(since: str | None, until: str | None, now: datetime) -> _Days:
    """Whole days, those that a moment lies in included."""
    last = -(-_moment("until", until or "today", now) // DAY) * DAY
    first = last - DAYS * DAY if since is None else _moment("since", since, now) // DAY * DAY
    if first >= last:
        raise click.BadParameter(
            f"{until or 'today'} is not after {since}, which --since says; the day of --until is not included",
            param_hint="--until",
        )
    if last - first > MOST_DAYS * DAY:
        found = (last - first) // DAY
        raise click.BadParameter(f"found {found} days, expected at most {MOST_DAYS}", param_hint="--since")
    return _Days(first, last)


def _moment(name: str, text: str, now: datetime) -> int:
    """Unix time; a part of a second counts as a whole one."""
    try:
        return -(-moment(text, now) // _SECOND)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"--{name}") from None


def _upstream(config: Path | None, name: str | None) -> Upstream:
    if config is None:
        return Upstream(name or Upstream().name)
    try:
        upstreams = load(config).upstreams
    except ConfigError as error:
        raise click.ClickException(told(str(error))) from None
    for one in upstreams:
        if one.name == name or (name is None and one.default):
            return one
    known = ", ".join(one.name for one in upstreams)
    raise click.BadParameter(f"found {name!r}, expected one of {known}", param_hint="--upstream")


def _checked(url: str) -> str:
    """A base URL to which an admin key may go.

    :raises click.BadParameter: it is none.
    """
    expected = "expected a base URL such as https://api.openai.com/v1"
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError:
        fits = None
    if "@" in url:  # what stands before it is not repeated
        raise click.BadParameter(f"found one with a user's name in it, {expected}", param_hint="--url")
    if not fits or not url.isascii() or any(c in url for c in "?# \t\r\n"):
        raise click.BadParameter(f"found {visible(url)!r}, {expected}", param_hint="--url")
    if parts.scheme == "http" and not _is_here(parts.hostname or ""):
        raise click.BadParameter(
            f"found {url!r}, {expected}: an admin key goes to another machine by https alone", param_hint="--url"
        )
    return url.rstrip("/")


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


# Both sides


def _ours(
    ledger: Rows, days: _Days, rows: Sequence[Condition], attribute: str | None, notes: list[str]
) -> list[Ours]:
    by = ("day", "model") if attribute is None else ("day", "model", attribute)
    question = Question(by, tuple(rows), days.first * _SECOND, days.last * _SECOND)
    with ledger.opened(notes) as (database, _):
        lines = report(database, question)
    return [_of(line) for line in lines]


def _of(line: Line) -> Ours:
    figures: dict[str, Any] = line.counts()
    nano = figures["cost_nano_usd"]
    day, model, *project = line.group
    return Ours(
        _date(day // _HOURS * DAY),
        model,
        project[0] if project else None,
        Ledger(
            figures["requests"],
            figures["total_tokens"],
            None if nano is None else nano * NANO,
            figures["without_usage"],
            figures["without_price"],
            figures["partial_usage"],
        ),
    )


def _billed(
    base_url: str, key: bytes, ca_file: Path | None, days: _Days, projects: Sequence[str], timeout: float
) -> Billed:
    """Ask the provider, in a reactor that is there for nothing else.

    :raises click.ClickException: it does not say.
    """
    from twisted.internet.task import react

    from flowstack.cli.organization import Fault, Organization  # with the HTTP client, which no other command needs

    outcome: list[Billed | Exception] = []

    async def ask(reactor: Any) -> None:
        try:
            asked = Organization(reactor, base_url, key, timeout, ca_file)
            outcome.append(await asked.billed(days.first, days.last, projects))
        except (Fault, OSError) as fault:
            outcome.append(fault)

    try:
        react(lambda reactor: Deferred.fromCoroutine(ask(reactor)))
    except SystemExit:
        if not outcome:
            raise
    if isinstance(outcome[0], Exception):
        raise click.ClickException(told(str(outcome[0])))
    return outcome[0]


# What is said


def _notes(
    by: By,
    days: _Days,
    now: datetime,
    projects: Sequence[str],
    attribute: str | None,
    where: Sequence[str],
    billed: Billed,
    total: Pair,
) -> list[str]:
    found = []
    if days.last > int(now.timestamp()) // DAY * DAY:
        found.append("the provider's figures come late: those of today, and perhaps of yesterday, are not complete")
    if by == "project" and attribute is None:
        found.append(
            "the ledger knows no projects, so only its total is compared; --project-attribute names the attribute of "
            "requests that says theirs"
        )
    if projects and attribute is None and not where:
        found.append("all of the ledger's rows are compared with these projects; --where says which rows are theirs")
    if billed.absent:
        found.append(f"the provider does not report {', '.join(billed.absent)}")
    ledger = total.ledger
    if ledger is not None and ledger.without_price:
        found.append(
            f"rows without a price, which are missing in the ledger's dollars: {ledger.without_price:,}; flowstack "
            "usage says which and why"
        )
    if ledger is not None and ledger.without_usage:
        found.append(f"requests without usage, which are missing in the ledger's tokens: {ledger.without_usage:,}")
    return found


_HEADINGS = (
    "tokens", "provider", "captured", "USD", "provider", "captured", "drift USD", "drift", "no price", "no usage",
)  # fmt: skip


def _as_text(by: By, days: _Days, base_url: str, pairs: Sequence[Pair], total: Pair, billed: Billed) -> str:
    first, last = days.shown
    lines = [[by, *_HEADINGS], *(_cells(pair, pair.name or "(none)") for pair in pairs), _cells(total, "total")]
    title = f"Ledger and {visible(base_url)} from {first} to {last}, days in UTC"
    below = [f"The provider also counts {', '.join(_others(billed))}."] if billed.others else []
    return "\n".join([title, "", *aligned(lines, 1), "", *below, ""])


def _others(billed: Billed) -> list[str]:
    return [f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(billed.others.items())]


def _cells(pair: Pair, name: str) -> list[str]:
    ours, theirs = pair.ledger, pair.provider
    drift = pair.drift_usd
    return [
        visible(name),
        _count(None if ours is None else ours.tokens),
        _count(theirs.tokens),
        _percent(pair.captured_tokens),
        money(None if ours is None else ours.usd),
        money(theirs.usd),
        _percent(pair.captured_cost),
        money(drift) if drift is None or drift <= 0 else f"+{money(drift)}",
        UNKNOWN if pair.drift_share is None else f"{pair.drift_share:+.1%}",
        _count(None if ours is None else ours.without_price),
        _count(None if ours is None else ours.without_usage),
    ]


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1%}"


def _verdict(total: Pair, least: float, enough: bool) -> str:
    if total.captured is not None:
        word = "at least" if enough else "less than"
        return f"Captured: {total.captured:.2%}, {word} {least:.2%}."
    if enough:
        return "Captured: neither side has anything."
    return "Captured: unknown. The provider has no figures for these days, the ledger has."


def _as_json(
    by: By,
    days: _Days,
    upstream: str,
    base_url: str,
    pairs: Sequence[Pair],
    total: Pair,
    billed: Billed,
    least: float,
    enough: bool,
    notes: Sequence[str],
) -> str:
    first, last = days.shown
    document = {
        "first_day": first,
        "last_day": last,
        "upstream": upstream,
        "url": base_url,
        "by": by,
        "lines": [{by: pair.name, **_numbers(pair)} for pair in pairs],
        "total": _numbers(total),
        "provider_others": dict(billed.others),
        "min_capture": least,
        "captured": total.captured,
        "enough": enough,
        "notes": list(notes),
    }
    return json.dumps(document, indent=2).replace("\x7f", "\\u007f")


def _numbers(pair: Pair) -> dict[str, Any]:
    ours, theirs = pair.ledger, pair.provider
    return {
        "ledger": None
        if ours is None
        else {
            "requests": ours.requests,
            "total_tokens": ours.tokens,
            "cost_usd": _float(ours.usd),
            "without_usage": ours.without_usage,
            "without_price": ours.without_price,
            "partial_usage": ours.partial_usage,
        },
        "provider": {"requests": theirs.requests, "total_tokens": theirs.tokens, "cost_usd": _float(theirs.usd)},
        "captured_tokens": pair.captured_tokens,
        "captured_cost": pair.captured_cost,
        "drift_usd": _float(pair.drift_usd),
        "drift_share": pair.drift_share,
    }


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _date(unix: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=unix)).strftime("%Y-%m-%d")
