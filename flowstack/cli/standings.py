"""What is used of limits, as far as the counters tell: read beside a service that runs, or after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from time import time

import click

from flowstack.cli.doubts import begins_anew, budget_of, doubts_of_key
from flowstack.cli.keys_options import Where
from flowstack.cli.keys_shown import shown
from flowstack.cli.money import shown_nanos
from flowstack.cli.uses import Use
from flowstack.config import Limits, Settings
from flowstack.files import as_owner
from flowstack.ledger.prices import load_prices
from flowstack.limits.books import Books, Standing, open_books
from flowstack.limits.counters import CountersError
from flowstack.policy.keys import Budget, Key
from flowstack.policy.pricing import Prices

NO_STATE = (
    "no state directory is known, so that only the limits are shown, and not what is used of them: add --state DIR, or "
    "--config FILE with [server] state"
)


def uses_of(books: Books, key: Key, settings: Settings) -> list[Use]:
    """What is used of each limit that stands for a key."""
    return [_use(standing, key, settings) for standing in books.standings(key, settings)]


def _use(standing: Standing, key: Key, settings: Settings) -> Use:
    budget = _budget(key, standing.scope, settings) if standing.limit == "budget" else None
    resets_at = None if standing.reset is None else time() + standing.reset
    return Use(standing.limit, standing.scope, standing.most, standing.used, resets_at, budget)


def _budget(key: Key, scope: str, settings: Settings) -> Budget | None:
    if scope:
        return next((budget_of(each.limits) for each in settings.upstreams if each.name == scope), None)
    return key.budget or budget_of(settings.limits)


def need_books(state: Path) -> Books:
    """Open the counters of a service; as root with the rights of whoever owns the state directory.

    :raises CountersError: there are none, or they cannot be read; the text says why.
    """
    try:
        with as_owner(state):
            books = open_books(state)
    except OSError as error:
        raise CountersError(f"the limits' counters in {state} cannot be read: {error.strerror or error}") from None
    if books is None:
        raise CountersError(
            f"there are no counters of limits in {state}: no service has run with this state directory, or they were "
            "removed"
        )
    return books


def find_books(where: Where) -> Books | None:
    """The same; None, and a note on standard error that says why, where there are none."""
    if where.state is None:
        note(NO_STATE)
        return None
    try:
        return need_books(where.state)
    except CountersError as error:
        note(f"{str(error).rstrip('.')}; only the limits are shown, and not what is used of them")
        return None


def note(words: str) -> None:
    """Say on standard error what is missing from what is shown."""
    click.echo(shown(f"Note: {words}."), err=True)


def used_by(where: Where, keys: Iterable[Key]) -> Callable[[Key], list[Use]] | None:
    """What is used of a key's limits; None, and a note that says why, where one has limits and that is not known."""
    limited = any(
        limits != Limits() for limits in (where.settings.limits, *(u.limits for u in where.settings.upstreams))
    )
    if not limited and not any(key.rpm or key.tpm or key.max_parallel or key.budget for key in keys):
        return lambda key: []
    books = find_books(where)
    return None if books is None else lambda key: uses_of(books, key, where.settings)


def warn_of_limits(where: Where, key: Key, before: Key | None = None) -> None:
    """Warn of limits that a key was just given and that cannot work, and of a budget that begins at nothing by it.

    :param before: the key as it was, if it was. Its counters are looked at before a service takes the change over.
    """
    known = "" if where.configured else " (as far as is known without --config)"
    if before is None or (before.tpm, before.budget, before.models) != (key.tpm, key.budget, key.models):
        for doubt in doubts_of_key(f"the key {key.id}", key, where.settings, _prices(where.settings)):
            warn(f"{doubt}{known}")
    anew = begins_anew(_budget(before, "", where.settings), _budget(key, "", where.settings)) if before else None
    if before is not None and anew is not None:
        warn(f"{anew}; {_spent_before(where, before)}{known}")


def warn(words: str) -> None:
    """Say on standard error what is hardly meant."""
    click.echo(shown(f"Warning: {words}."), err=True)


def _spent_before(where: Where, key: Key) -> str:
    if where.state is None:
        return "--state, or --config with [server] state, would tell what was spent of it before"
    try:
        uses = uses_of(need_books(where.state), key, where.settings)
    except CountersError as error:
        return f"what was spent of it before is not known: {error}"
    return " and ".join(
        f"{shown_nanos(use.used)} of {shown_nanos(use.most)} USD were spent of it before"
        for use in uses
        if use.budget is not None
    )


def _prices(settings: Settings) -> Callable[[], Prices]:
    return cache(lambda: load_prices(settings.prices))
