"""``python -m bench.reports``: reports and searches over millions of rows, and what it costs to take them in."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.journal import DAYS, END, journal
from flowstack.ledger.index import Index, index_path
from flowstack.ledger.questions import answer, question_of
from flowstack.ledger.schema import open_for_reading
from flowstack.ledger.search import Filter, older

REPORTS: dict[str, tuple[str, tuple[str, ...], str | None, str | None]] = {
    "by status": ("status", (), None, None),
    "by key": ("key", (), None, None),
    "by owner, model": ("owner,model", (), None, None),
    "by day": ("day", (), None, None),
    "by day, model": ("day,model", (), None, None),
    "by hour, a week": ("hour", (), "2026-11-16", "2026-11-23"),
    "by hour, key, a week": ("hour,key", (), "2026-11-16", "2026-11-23"),
    "by model, from 03:20 on": ("model", (), "2026-11-02T03:20:00Z", "2026-11-21T17:45:00Z"),
    "failures by reason": ("status,error,end,upstream", (), None, None),
    "by attribute": ("attribute:team", (), None, None),
    "by attribute, model": ("attribute:feature,model", (), None, None),
    "one key by day": ("day", ("key=key00000003",), None, None),
    "one team by model": ("model", ("attribute:team=team 3",), None, None),
    "one team's key by day": ("day", ("attribute:team=team 3", "key=key00000003"), None, None),
}
"""By a name, what is asked: groups, conditions, and the period."""

TIMES = 5
"""How often each is asked; the first is the cold one."""


def _milliseconds(ask: Callable[[], Any]) -> Iterator[tuple[float, float]]:
    """Wall-clock time and CPU of each time it is asked."""
    for _ in range(TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        yield 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def _take_in(state: Path, rows: int, days: int) -> tuple[float, float]:
    """Index a journal that is written day by day, so that only one lies on the disk; but for the last, which stays.

    :return: microseconds of CPU for a row, of all and of the last tenth.
    """
    folder = state / "ledger"
    folder.mkdir()
    taken, spent, late, late_rows, before = 0, 0.0, 0.0, 0, None
    with Index(index_path(state), folder) as index:
        for day, lines in journal(rows, days):
            if before is not None:
                before.unlink()
            before = folder / f"{day}.w0.jsonl"
            with open(before, "wb") as file:
                file.writelines(lines)
            cpu = time.process_time()
            index.catch_up()
            cpu = time.process_time() - cpu
            taken, spent = taken + len(lines), spent + cpu
            if taken > rows * 0.9:
                late, late_rows = late + cpu, late_rows + len(lines)
            click.echo(f"\r{taken:,} rows", nl=False, err=True)
    click.echo(err=True)
    return 1e6 * spent / rows, 1e6 * late / max(1, late_rows)


@click.command()
@click.option("--rows", type=click.IntRange(1000), default=10_000_000, show_default=True, help="In the index.")
@click.option("--days", type=click.IntRange(1), default=DAYS, show_default=True, help="Over which they are spread.")
def main(rows: int, days: int) -> None:
    """Print milliseconds of each report, and what a row's intake and its place cost."""
    state = Path(tempfile.mkdtemp(prefix="flowstack-reports-"))
    try:
        each, last = _take_in(state, rows, days)
        size = index_path(state).stat().st_size
        taken = f"{each:.1f} µs of CPU a row to take in, of the last tenth {last:.1f};"
        click.echo(f"{rows:,} rows over {days} days: {taken}")
        click.echo(f"{size / rows:.0f} bytes a row, {size / 2**20:,.0f} MiB, peak {_peak():,.0f} MiB of memory")
        click.echo(f"{'':28}{'lines':>7}{'cold ms':>9}{'median':>8}{'worst':>8}{'CPU':>8}")
        for name, (by, where, since, until) in REPORTS.items():
            question = question_of(by, where, since, until, END, lambda _, text: text)
            lines = 0

            def ask(question: Any = question) -> None:
                nonlocal lines
                connection = open_for_reading(index_path(state))
                lines = len(answer(connection, question).lines)
                connection.close()

            walls, cpus = zip(*_milliseconds(ask), strict=True)
            click.echo(
                f"{name:28}{lines:>7,}{walls[0]:>9.0f}{median(walls[1:]):>8.0f}{max(walls[1:]):>8.0f}{median(cpus):>8.0f}"
            )
        _search(state)
    finally:
        shutil.rmtree(state)


def _search(state: Path) -> None:
    """Pages of rows of the last day, the newest and deep down."""
    wanted, cursor, walls = Filter(), None, []
    for _ in range(200):
        begun = time.perf_counter()
        found = older(state / "ledger", wanted, 100, cursor, 8.0)
        walls.append(1000 * (time.perf_counter() - begun))
        cursor = found.older
        if cursor is None:
            break
    click.echo(f"pages of 100 rows: the first {walls[0]:.1f} ms, page {len(walls)} {walls[-1]:.1f} ms")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
