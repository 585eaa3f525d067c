"""What the ledger's index costs: no traffic, one process, a journal as a month of a busy service leaves it."""

from __future__ import annotations

import gc
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.journal import END, write_journal
from bench.procs import BenchError
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import Index, index_path
from flowstack.ledger.queries import Condition, Question, report, total
from flowstack.ledger.schema import HOUR, open_for_reading

REPEATS = 5


def run(order: dict[str, Any]) -> dict[str, float]:
    """Write a journal of ``rows`` rows, take it over into an index, and ask for each report."""
    gc.enable()
    count = order["rows"]
    with tempfile.TemporaryDirectory(dir=order["directory"]) as folder:
        state = Path(folder)
        write_journal(journal_path(state), count)
        began, spent = time.monotonic(), time.process_time()
        with Index(index_path(state), journal_path(state)) as index:
            taken = index.catch_up()
            took, cpu = time.monotonic() - began, time.process_time() - spent
            if (taken.rows, taken.bad_lines, taken.behind) != (count, 0, 0):
                raise BenchError(f"of {count} rows {taken} were taken over")
            values = {
                "rows_s": count / took,
                "us_row": cpu / count * 1e6,
                "index_mib": index.path.stat().st_size / 2**20,
            }
        with closing(open_for_reading(index_path(state))) as connection:
            for name, question in _questions().items():
                values[f"{name}_ms"] = _asked(connection, question, count)
        values["slowest_ms"] = max(value for name, value in values.items() if name.endswith("_ms"))
    return values


def _asked(connection: Any, question: Question, count: int) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.monotonic()
        lines = report(connection, question)
        for line in lines:
            line.figures()
        best = min(best, time.monotonic() - began)
    whole = question.since is None and not question.where
    if not lines or (whole and total(lines).requests != count):
        raise BenchError(f"{question} gave {total(lines).requests} requests")
    return best * 1000


def _questions() -> dict[str, Question]:
    now = int(END.timestamp()) * 1_000_000
    week, day = now - 7 * 24 * HOUR, now - 24 * HOUR
    return {
        "total": Question(),
        "key": Question(("key",)),
        "owner": Question(("owner",)),
        "model": Question(("model",)),
        "upstream": Question(("upstream",)),
        "status": Question(("status",)),
        "day": Question(("day",)),
        "hour": Question(("hour",)),
        "team": Question(("attribute:team",)),
        "key_model": Question(("key", "model")),
        "day_model": Question(("day", "model")),
        "team_day": Question(("attribute:team", "day")),
        "team_model": Question(("attribute:team", "model")),
        "one_key": Question(("model", "day"), (Condition("key", ("key00000001",)),)),
        "one_team": Question(("key",), (Condition("attribute:team", ("team 3",)),)),
        "week_key": Question(("key",), (), week),
        "week_team": Question(("attribute:team",), (), week),
        "day_hour_key": Question(("hour", "key"), (), day),
    }
