"""What the ledger's index costs: no traffic, one process, a journal as a month of a busy service leaves it."""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from bench.procs import BenchError
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import Index, index_path
from flowstack.ledger.queries import Condition, Question, report, total
from flowstack.ledger.schema import HOUR, open_for_reading

END = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
DAYS, KEYS, MODELS, TEAMS, FEATURES = 30, 50, 6, 10, 4
REPEATS = 5


def run(order: dict[str, Any]) -> dict[str, float]:
    """Write a journal of ``rows`` rows, take it over into an index, and ask for each report."""
    gc.enable()
    count = order["rows"]
    with tempfile.TemporaryDirectory(dir=order["directory"]) as folder:
        state = Path(folder)
        _write(journal_path(state), count)
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


def _write(folder: Path, count: int) -> None:
    folder.mkdir()
    files: dict[str, list[bytes]] = {}
    for number, row in enumerate(_rows(count)):
        lines = files.setdefault(f"{row['started_at']:%Y-%m-%d}.w{number % 2}.jsonl", [])
        lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
        if len(lines) == 5000:
            _flush(folder, files)
    _flush(folder, files)


def _flush(folder: Path, files: dict[str, list[bytes]]) -> None:
    for name, lines in files.items():
        with open(folder / name, "ab") as file:
            file.writelines(lines)
    files.clear()


def _rows(count: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    step = timedelta(days=DAYS) / count
    for number in range(count):
        key = min(int(chance.expovariate(0.1)), KEYS - 1)  # a few keys do most
        fine = chance.random() < 0.95
        metered = fine and chance.random() < 0.9
        prompt, completion = chance.randrange(10, 5000), chance.randrange(1, 800)
        duration = chance.lognormvariate(7.5, 1)
        started_at = END - timedelta(days=DAYS) + step * number
        yield {
            "v": 1,
            "request_id": f"{int(started_at.timestamp() * 1000):012x}{chance.getrandbits(80):020x}",
            "started_at": started_at,
            "key_id": f"key{key:08}",
            "owner": f"user{key}@example.com",
            "attributes": {"team": f"team {key % TEAMS}", "feature": f"feature {chance.randrange(FEATURES)}"},
            "client_addr": "192.0.2.7",
            "user_agent": "OpenAI/Python 2.9.0",
            "method": "POST",
            "path": "/v1/chat/completions",
            "model_requested": "gpt-4o",
            "model": f"model-{chance.randrange(MODELS)}-2026-08-06" if fine else None,
            "service_tier": "default",
            "status": 200 if fine else chance.choice((429, 500, 502)),
            "error_code": None,
            "end": "complete" if chance.random() < 0.98 else "client_gone",
            "stream": True,
            "prompt_tokens": prompt if metered else None,
            "cached_tokens": prompt // 2 if metered else None,
            "completion_tokens": completion if metered else None,
            "reasoning_tokens": 0 if metered else None,
            "total_tokens": prompt + completion if metered else None,
            "usage_details": {"prompt_tokens_details": {"cached_tokens": prompt // 2}} if metered else None,
            "usage_source": "upstream" if metered else "none",
            "cost_usd": (prompt * 2.5 + completion * 10) / 1e6 if metered else None,
            "price_date": "2026-11-01" if metered else None,
            "first_byte_ms": round(duration / 4, 3),
            "duration_ms": round(duration, 3),
            "overhead_ms": round(chance.lognormvariate(-1, 0.3), 3),
            "bytes_in": 4021,
            "bytes_out": 15210,
            "upstream": "openai",
            "upstream_request_id": f"req_{chance.getrandbits(128):032x}",
            "attempts": 1,
        }
