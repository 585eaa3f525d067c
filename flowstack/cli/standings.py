"""What is used of limits, as far as the counters tell: read beside a service that runs, or after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import click
from attrs import evolve

from flowstack.cli.keys_options import Where
from flowstack.cli.keys_shown import shown
from flowstack.config import Limits, Settings
from flowstack.files import as_owner
from flowstack.keys import Budget, Group, Key
from flowstack.keys.asking import AskingError, find_service
from flowstack.limits.books import Books, bounds_by_scope
from flowstack.limits.counters import CountersError
from flowstack.limits.doubts import begins_anew, budget_of, doubts_of_key, doubts_of_tokens
from flowstack.limits.listing import Used, budgets_of, standings_of
from flowstack.limits.remote_books import books_of
from flowstack.prices.cost import Prices
from flowstack.prices.dollars import money_of
from flowstack.prices.table import load_prices

NO_STATE = (
    "no state directory is known, so only the limits are shown, not what is used of them: add --state DIR, or --config "
    "FILE with [server] state"
)


@contextmanager
def need_books(state: Path, settings: Settings) -> Iterator[Books]:
    """Open the counters of a service; as root with the rights of whoever owns the state directory.

    :raises CountersError: there are none, or they cannot be read; the text says why.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(as_owner(state))
            books = stack.enter_context(books_of(settings, state))
        except OSError as error:
            reason = error.strerror or error
            raise CountersError(f"the counters of limits in {state} cannot be read: {reason}") from None
        if books is None:
            raise CountersError(
                f"there are no counters of limits in {state}: no service has run with this state directory, or they "
                "were removed"
            )
        yield books


@contextmanager
def used_by(where: Where, keys: Iterable[Key | Group]) -> Iterator[Used]:
    """What is used of the limits of keys, or of groups; None, and a note that says why, where one has limits and what
    is used of them is not known."""
    if not any(bounds_by_scope(Limits(), where.settings)) and not any(_is_limited(key) for key in keys):
        yield lambda of: []
        return
    with ExitStack() as stack:
        books = None
        if where.state is None:
            note(NO_STATE)
        else:
            try:
                books = stack.enter_context(need_books(where.state, where.settings))
            except CountersError as error:
                note(f"{_sentence(error)}; only the limits are shown, not what is used of them")
            else:
                note_of_service(where.state)
        yield None if books is None else lambda of: standings_of(books, of, where.settings)


def note_of_service(state: Path) -> None:
    """Say so where no service seems to run: then the counters are what the last one left."""
    try:
        find_service(state)
    except AskingError:
        note(f"no running service was found for {state}: the figures are those that the last one left")


def note(words: str) -> None:
    """Say on standard error what is missing from what is shown."""
    click.echo(shown(f"Note: {words}."), err=True)


def warn_of_limits(where: Where, of: Key | Group, before: Key | Group | None = None) -> None:
    """Warn of limits that were just given and that cannot work, and of a budget that begins at nothing by it.

    :param before: as it was, if it was. Its counters are looked at before a service takes the change over.
    """
    if isinstance(of, Key) and isinstance(before, Key) and of.group != before.group:
        of = evolve(of, shared=None)  # that is the group of before
    known = "" if where.configured else " (as far as is known without --config)"
    if before is None or _looked_at(before) != _looked_at(of):
        if isinstance(of, Group):
            doubts = doubts_of_tokens(f"the group {of.name}", of.tpm, where.settings)
        else:
            doubts = doubts_of_key(f"the key {of.id}", of, where.settings, _prices(where.settings))
        for doubt in doubts:
            warn(f"{doubt}{known}")
    anew = begins_anew(_budget(before, where.settings), _budget(of, where.settings)) if before else None
    if before is not None and anew is not None:
        warn(f"{anew}; {_spent_before(where, before)}{known}")


def warn(words: str) -> None:
    """Say on standard error what is hardly meant."""
    click.echo(shown(f"Warning: {words}."), err=True)


def _spent_before(where: Where, of: Key | Group) -> str:
    if where.state is None:
        return "--state, or --config with [server] state, would show what was spent of it before"
    try:
        with as_owner(where.state), books_of(where.settings, where.state) as books:
            budgets = [] if books is None else budgets_of(books, of, where.settings)
    except (CountersError, OSError) as error:
        return f"what was spent of it before is unknown: {_sentence(error)}"
    were = [f"{money_of(each.used)} of {money_of(each.most)} USD were spent" for each in budgets if each.used]
    return f"{' and '.join(were) or 'nothing was spent'} of it before"


def _prices(settings: Settings) -> Callable[[], Prices]:
    return cache(lambda: load_prices(settings.prices))


def _is_limited(of: Key | Group) -> bool:
    own = not (of.rpm is None and of.tpm is None and of.max_parallel is None and of.budget is None)
    return own or (isinstance(of, Key) and of.shared is not None)


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".")


def _budget(of: Key | Group, settings: Settings) -> Budget | None:
    return of.budget or (None if isinstance(of, Group) else budget_of(settings.limits))


def _looked_at(of: Key | Group) -> tuple[object, ...]:
    return of.rpm, of.tpm, of.max_parallel, of.budget, *((of.models, of.group) if isinstance(of, Key) else ())
