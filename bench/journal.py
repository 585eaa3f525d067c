"""A journal as a busy service leaves it: seeded, and some microseconds a row, so that millions are soon there."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

END = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
DAYS, KEYS, MODELS, TEAMS, FEATURES, WORKERS = 30, 50, 6, 10, 4, 2

_KINDS = 40_000
"""Rows that are made; all others differ from one of these in their id and their time only."""

_SECOND = 1_000_000


def write_journal(folder: Path, count: int, days: int = DAYS) -> None:
    """Write so many rows, evenly over so many days up to :data:`END`."""
    folder.mkdir()
    for day, lines in journal(count, days):
        for worker in range(WORKERS):
            with open(folder / f"{day}.w{worker}.jsonl", "wb") as file:
                file.writelines(lines[worker::WORKERS])


def journal(count: int, days: int = DAYS) -> Iterator[tuple[str, list[bytes]]]:
    """The lines of each day, in order."""
    chance = random.Random(1)
    tails = [orjson.dumps(_row(chance), option=orjson.OPT_APPEND_NEWLINE)[1:] for _ in range(_KINDS)]
    end = int(END.timestamp()) * _SECOND
    begin = end - days * 86_400 * _SECOND
    lines: list[bytes] = []
    before, last, text = "", -1, ""
    for number, tail in enumerate(islice(_choices(chance, tails), count)):
        at = begin + (end - begin) * number // count
        second, microsecond = divmod(at, _SECOND)
        if second != last:
            last = second
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            if text[:10] != before:
                if lines:
                    yield before, lines
                before, lines = text[:10], []
        head = f'{{"v":2,"request_id":"{at // 1000:012x}{chance.getrandbits(80):020x}","started_at":"{text}'
        lines.append(f'{head}.{microsecond:06}Z",'.encode() + tail)
    if lines:
        yield before, lines


def _choices(chance: random.Random, some: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from chance.choices(some, k=10_000)


def _row(chance: random.Random) -> dict[str, Any]:
    """A row, but for its id and when it began."""
    key = min(int(chance.expovariate(0.1)), KEYS - 1)  # a few keys do most
    fine = chance.random() < 0.95
    metered = fine and chance.random() < 0.9
    prompt, completion = chance.randrange(10, 5000), chance.randrange(1, 800)
    duration = chance.lognormvariate(7.5, 1)
    return {
        "key_id": f"key{key:08}",
        "owner": f"user{key}@example.com",
        "group": None,
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
        "cache_write_tokens": None,
        "completion_tokens": completion if metered else None,
        "reasoning_tokens": 0 if metered else None,
        "total_tokens": prompt + completion if metered else None,
        "usage_details": {"prompt_tokens_details": {"cached_tokens": prompt // 2}} if metered else None,
        "usage_source": "upstream" if metered else "none",
        "cost_usd": (prompt * 2.5 + completion * 10) / 1e6 if metered else None,
        "price_date": "2026-11-01" if metered else None,
        "priced_by": "model" if metered else None,
        "unpriced": None,
        "first_byte_ms": round(duration / 4, 3),
        "duration_ms": round(duration, 3),
        "overhead_ms": round(chance.lognormvariate(-1, 0.3), 3),
        "bytes_in": 4021,
        "bytes_out": 15210,
        "upstream": "openai",
        "upstream_request_id": f"req_{chance.getrandbits(128):032x}",
        "attempts": 1,
        "usage_asked_by": None,
        "parent_request_id": None,
    }
