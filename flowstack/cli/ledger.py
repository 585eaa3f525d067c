"""The ledger as commands read it: this machine's index, or the PostgreSQL of all machines."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from attrs import frozen

from flowstack.config import ConfigError, Settings, load
from flowstack.files import as_owner, folder_at
from flowstack.ledger.database import Database, Unavailable
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import Index, Progress, bytes_behind, index_path
from flowstack.ledger.queries import standing
from flowstack.ledger.questions import shown
from flowstack.ledger.schema import Unusable, open_for_reading
from flowstack.ledger.shared import bytes_missing, shared_ledger
from flowstack.redact import visible
from flowstack.tokens import hide_keys

STEP = 20_000
"""Rows that are taken over before a word is said about how many there are."""


def reads_ledger(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which ledger is meant."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--local", is_flag=True, help="Read this machine's index, also with [shared] postgres."),
        click.option("--config", type=path, metavar="FILE", help="Take what is not given from this configuration."),
        click.option("--state", type=path, metavar="DIR", help="The service's state directory, whose index is read."),
    ):
        function = option(function)
    return function


@frozen
class Rows:
    """Where rows are read.

    :ivar state: this machine's state directory; None where the settings name none.
    :ivar settings: of the service, whose PostgreSQL is read where they name one; None for the index in the state
        directory.
    """

    state: Path | None
    settings: Settings | None = None

    @contextmanager
    def opened(self, notes: list[str]) -> Iterator[tuple[Database, int]]:
        """Open it; close it at the end.

        :param notes: takes what is to be said of it.
        :return: the database, and how many bytes of rows are not in its figures.
        :raises click.ClickException: it cannot be read, in the block too; the text says why.
        """
        if self.settings is not None and self.settings.shared.postgres is not None:
            with _shared(self.settings, notes) as found:
                yield found
            return
        assert self.state is not None
        try:
            with as_owner(self.state), _indexed(self.state, notes) as found:
                yield found
        except (sqlite3.Error, OSError, Unusable) as error:
            raise click.ClickException(told(f"the index in {self.state} cannot be read: {error}")) from None


def ledger_of(state: Path | None, config: Path | None, local: bool) -> Rows:
    """The ledger that is meant by the options of :func:`reads_ledger`.

    :raises click.ClickException: nothing says it.
    """
    if state is not None:
        return Rows(state)
    if config is None:
        raise click.UsageError("say where the ledger is: --state DIR, or --config FILE with [server] state in it")
    try:
        settings = load(config)
    except ConfigError as error:
        raise click.ClickException(told(str(error))) from None
    if settings.shared.postgres is not None and not local:
        return Rows(settings.server.state, settings)
    if settings.server.state is None:
        raise click.ClickException(told(f"{config}: [server] state: not set, so that no ledger is kept"))
    return Rows(settings.server.state)


def told(words: str) -> str:
    """Words for a person: no key in them, and nothing that drives a terminal."""
    return visible(hide_keys(words))


# The PostgreSQL of all machines


@contextmanager
def _shared(settings: Settings, notes: list[str]) -> Iterator[tuple[Database, int]]:
    try:
        with shared_ledger(settings.shared, "flowstack command") as database:
            missing = bytes_missing(database, settings)
            if missing:
                notes.append(f"{missing:,} bytes of rows, known here, are still on their way and not in these figures")
            yield database, missing
    except Unavailable as error:
        raise click.ClickException(told(f"the ledger of all machines cannot be read: {error}")) from None


# This machine's index


@contextmanager
def _indexed(directory: Path, notes: list[str]) -> Iterator[tuple[Database, int]]:
    """Bring the index up to date where that is possible."""
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
