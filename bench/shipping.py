"""``python -m bench.shipping``: what it costs to send rows to PostgreSQL and to add them up, and reports over them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.journal import DAYS, END, journal
from bench.reports import REPORTS, TIMES
from flowstack.ledger.folding import Folding
from flowstack.ledger.migrate import migrate
from flowstack.ledger.postgres import Postgres
from flowstack.ledger.questions import answer, question_of
from flowstack.ledger.shared import open_shared
from flowstack.ledger.shipping import Shipping
from tests.ledger.servers import server

_TICK = os.sysconf("SC_CLK_TCK")


class Costs:
    """Time and CPU of one kind of work.

    :param backend: the process of PostgreSQL that does it.
    """

    def __init__(self, backend: int) -> None:
        self._backend = Path(f"/proc/{backend}/stat")
        self._wall = self._ours = self._theirs = 0.0
        self._rows = 0

    def add(self, rows: int, work: Callable[[], None]) -> None:
        """Do it."""
        wall, ours, theirs = time.perf_counter(), time.process_time(), self._used()
        work()
        self._wall += time.perf_counter() - wall
        self._ours += time.process_time() - ours
        self._theirs += self._used() - theirs
        self._rows += rows

    def __str__(self) -> str:
        ours, theirs = (1e6 * spent / self._rows for spent in (self._ours, self._theirs))
        return f"{self._rows / self._wall:>10,.0f}{ours:>14.1f}{theirs:>14.1f}"

    def _used(self) -> float:
        after = self._backend.read_text().rpartition(")")[2].split()
        return (int(after[11]) + int(after[12])) / _TICK


def _send(database: Postgres, folder: Path, rows: int, days: int) -> None:
    """Send a journal that is written day by day, so that only one lies on the disk, and add up as the shipper does."""
    folder.mkdir()
    shipping, folding = Shipping(database, folder, "bench"), Folding(database)
    (backend,) = database.execute("SELECT pg_backend_pid()").fetchone()
    sending, adding = Costs(backend), Costs(backend)
    taken = 0

    def send() -> None:
        while shipping.ship().behind:
            pass

    def fold() -> None:
        while folding.fold().behind:
            pass

    for day, lines in journal(rows, days):
        path = folder / f"{day}.w0.jsonl"
        with open(path, "wb") as file:
            file.writelines(lines)
        sending.add(len(lines), send)
        adding.add(len(lines), fold)
        path.unlink()
        taken += len(lines)
        click.echo(f"\r{taken:,} rows", nl=False, err=True)
    click.echo(err=True)
    click.echo(f"{'':12}{'rows/s':>10}{'µs CPU here':>14}{'in PostgreSQL':>14}")
    click.echo(f"{'to send':12}{sending}")
    click.echo(f"{'to add up':12}{adding}")
    (size,) = database.execute("SELECT pg_database_size(current_database())").fetchone()
    click.echo(f"{rows:,} rows over {days} days take {size / rows:.0f} bytes each")


def _reports(database: Postgres) -> None:
    click.echo(f"{'':28}{'lines':>7}{'cold ms':>9}{'median':>8}{'worst':>8}")
    for name, (by, where, since, until) in REPORTS.items():
        question = question_of(by, where, since, until, END, lambda _, text: text)
        walls = []
        for _ in range(TIMES):
            begun = time.perf_counter()
            lines = len(answer(database, question).lines)
            walls.append(1000 * (time.perf_counter() - begun))
        click.echo(f"{name:28}{lines:>7,}{walls[0]:>9.0f}{median(walls[1:]):>8.0f}{max(walls[1:]):>8.0f}")


@click.command()
@click.option("--rows", type=click.IntRange(1000), default=1_000_000, show_default=True, help="That are sent.")
@click.option("--days", type=click.IntRange(1), default=DAYS, show_default=True, help="Over which they are spread.")
def main(rows: int, days: int) -> None:
    """Print rows a second and CPU for each row, and milliseconds of each report, with a PostgreSQL of its own."""
    folder = Path(tempfile.mkdtemp(prefix="flowstack-shipping-"))
    try:
        with server() as one:
            shared: Any = one.database(folder)
            with Postgres(shared, "bench") as database:
                click.echo(f"PostgreSQL {database.version}, on this machine, without fsync")
                migrate(database)
                _send(database, folder / "ledger", rows, days)
            with one.superuser(str(shared.postgres).rpartition("/")[2]) as connection:
                connection.execute("VACUUM ANALYZE")  # as autovacuum does
            with open_shared(shared, "bench") as database:
                _reports(database)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
