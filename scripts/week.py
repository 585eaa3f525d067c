"""Two weeks of plausible use for the demo and the page's pictures: a keystore, a journal, and what budgets have used.

Seeded: the same moment gives the same rows. Of two weeks, so that the last one has one before it to be compared with.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from attrs import frozen

from flowstack.keys import Budget, Group, Key, make_token
from flowstack.keys.editor import add_group, add_keys
from flowstack.ledger.files import Name, journal_path, prepare
from flowstack.ledger.lines import line_of
from flowstack.ledger.row import BLANK, Row, put_usage
from flowstack.limits.counters import MONEY, Counters
from flowstack.limits.money import nano, period_at
from flowstack.limits.plans import columns_of, slot_name
from flowstack.limits.restore import NAME
from flowstack.prices.cost import Prices
from flowstack.prices.table import load_prices
from flowstack.usage.model import Usage

DAYS = 14
SEED = 4

OFFICE = (0.05,) * 7 + (0.4, 1, 1.5, 1.6, 1.5, 1, 1.3, 1.6, 1.6, 1.3, 0.8, 0.4, 0.2) + (0.1,) * 4
ALWAYS = (0.5, 0.4, 0.3, 0.3, 0.4, 0.6, 0.8, 1) + (1.2,) * 4 + (1.3,) * 4 + (1.2,) * 5 + (1, 0.8, 0.6)
NIGHT = (4, 6, 6, 4, 1) + (0,) * 17 + (1, 2)


@frozen
class Team:
    """Who asks for what.

    :ivar models: requested, answered, weight, and the median tokens of input, output and reasoning.
    :ivar hours: how busy each hour of a day is (UTC), 1 being ``a_day`` by 24.
    :ivar weekend: the same of Saturdays and Sundays.
    :ivar period: of the key's budget; None where it has none.
    :ivar share: about how much of the budget is used.
    """

    owner: str
    models: tuple[tuple[str, str, float, int, int, int], ...]
    a_day: float
    hours: tuple[float, ...]
    weekend: float = 1.0
    group: str | None = None
    attributes: tuple[dict[str, str], ...] = ()
    stream: float = 0.5
    cached: float = 0.2
    client: str = "OpenAI/Python 3.2.0"
    path: str = "/v1/chat/completions"
    period: str | None = None
    share: float = 0.5
    rpm: int | None = None
    note: str | None = None
    patterns: tuple[str, ...] = ()
    failures: tuple[tuple[str, float], ...] = (("provider_429", 0.004), ("provider_500", 0.002), ("client_gone", 0.01))


MINI, FOUR, FOUR_ONE, FOUR_ONE_MINI = (
    ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), ("gpt-4o", "gpt-4o-2024-08-06"), ("gpt-4.1", "gpt-4.1-2025-04-14"),
    ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"),
)  # fmt: skip
FIVE, THINKING = ("gpt-5", "gpt-5-2025-08-07"), ("o4-mini", "o4-mini-2025-04-16")

TEAMS = (
    Team(
        "search team", ((*FOUR_ONE, 0.3, 5200, 420, 0), (*FOUR_ONE_MINI, 0.7, 3100, 160, 0)), 420, ALWAYS, 0.8,
        group="search", attributes=({"feature": "rerank"}, {"feature": "answers"}, {"feature": "autocomplete"}),
        stream=0.7, cached=0.45, note="answers and reranking",
        failures=(("provider_429", 0.006), ("provider_500", 0.001), ("upstream_timeout", 0.004), ("client_gone", 0.02)),
    ),
    Team(
        "search team", (("text-embedding-3-small", "text-embedding-3-small", 1, 900, 0, 0),), 240, ALWAYS, 0.8,
        group="search", attributes=({"feature": "index"},), stream=0, cached=0, path="/v1/embeddings", note="indexer",
    ),
    Team(
        "support", ((*FOUR, 0.6, 2600, 380, 0), (*MINI, 0.4, 1800, 210, 0)), 300, OFFICE, 0.35, stream=0.9,
        attributes=({"channel": "chat"}, {"channel": "email"}), client="OpenAI/JS 7.57.0", period="total", share=0.94,
        note="help desk", failures=(("client_gone", 0.03), ("provider_429", 0.003)),
    ),
    Team(
        "batch", ((*MINI, 0.8, 6400, 900, 0), ("gpt-5-mini", "gpt-5-mini-2025-08-07", 0.2, 7200, 1300, 900)), 260,
        NIGHT, stream=0, cached=0.6, rpm=60, client="python-httpx2/2.16.2", note="nightly summaries", group="pipelines",
        failures=(("rate_limited", 0.05), ("provider_429", 0.02), ("upstream_closed", 0.004)),
    ),
    Team(
        "data science", ((*THINKING, 0.6, 2200, 2600, 1900), (*FIVE, 0.4, 3400, 3100, 2200)), 90, OFFICE, 0.2,
        stream=0.3, attributes=({"study": "churn"}, {"study": "pricing"}), period="month", share=0.4,
        failures=(("upstream_timeout", 0.02), ("provider_429", 0.01)), path="/v1/responses",
    ),
    Team(
        "marketing", ((*FOUR, 1, 1100, 800, 0),), 60, OFFICE, 0.1, stream=0.8, period="total", share=1.0,
        patterns=("gpt-4o*",), failures=(("model_not_allowed", 0.05),), client="LangChain/1.4",
    ),
)  # fmt: skip


def fill(keys: Path, state: Path, now: float) -> None:
    """Write the keystore, and all that the service would have written by now.

    :param keys: the keystore; made if missing.
    :param state: the state directory, where no service runs and none has.
    """
    chance = random.Random(SEED)
    prices = load_prices()
    places = [(team, make_token(chance.randbytes)[0]) for team in TEAMS]
    rows = sorted(
        (row for team, key_id in places for row in _rows(team, key_id, now, prices, chance)),
        key=lambda row: row["started_at"] + timedelta(milliseconds=row["duration_ms"]),
    )
    _write(journal_path(state), rows)
    add_group(keys, Group("search", budget=_budget("month", 0.45, rows, now, group="search"), note="one for all of it"))
    add_group(keys, Group("pipelines", budget=_budget("month", 0.7, rows, now, group="pipelines"), tpm=2_000_000))
    # No secret is known: these keys have been used, and are not to be.
    made = [
        Key(
            key_id, sha256(os.urandom(32)).digest(), owner=team.owner, group=team.group, rpm=team.rpm, note=team.note,
            models=team.patterns,
            budget=None if team.period is None else _budget(team.period, team.share, rows, now, key_id=key_id),
        )
        for team, key_id in places
    ]  # fmt: skip
    add_keys(keys, made)
    _charge(state / "limits", [*made, *(f"@{name}" for name in ("search", "pipelines"))], rows, now)


def _rows(team: Team, key_id: str, now: float, prices: Prices, chance: random.Random) -> Iterator[Row]:
    end = datetime.fromtimestamp(now, UTC)
    first = (end - timedelta(days=DAYS)).replace(minute=0, second=0, microsecond=0)
    for hour in (first + timedelta(hours=number) for number in range(DAYS * 24 + 1)):
        week = 1.0 if end - hour < timedelta(days=7) else 0.82
        busy = team.a_day / 24 * team.hours[hour.hour] * (team.weekend if hour.weekday() > 4 else 1) * week
        busy *= chance.lognormvariate(0, 0.15)
        for _ in range(int(busy) + (chance.random() < busy % 1)):
            at = hour + timedelta(seconds=3600 * chance.random())
            row = _row(team, key_id, at, end, prices, chance)
            if at + timedelta(milliseconds=row["duration_ms"]) < end - timedelta(seconds=5):
                yield row


def _row(team: Team, key_id: str, at: datetime, end: datetime, prices: Prices, chance: random.Random) -> Row:
    weights = [model[2] for model in team.models]
    asked, answered, _, takes, gives, thinks = chance.choices(team.models, weights)[0]
    takes, gives, thinks = (int(size * chance.lognormvariate(0, 0.6)) for size in (takes, gives, thinks))
    thinks = min(thinks, gives)
    cached = takes // 128 * 128 if chance.random() < team.cached else 0
    stream = chance.random() < team.stream
    begins = chance.lognormvariate(6.1, 0.4) + thinks * 6
    row: dict[str, Any] = {
        **BLANK, "request_id": f"{chance.getrandbits(128):032x}", "started_at": at, "key_id": key_id,
        "owner": team.owner, "group": team.group, "method": "POST", "path": team.path, "model_requested": asked,
        "attributes": chance.choice(team.attributes) if team.attributes else None,
        "client_addr": f"10.20.{len(team.owner)}.{chance.randint(10, 30)}", "user_agent": team.client,
        "upstream": "openai", "upstream_request_id": f"req_{chance.getrandbits(128):032x}", "attempts": 1,
        "status": 200, "stream": stream, "overhead_ms": round(chance.lognormvariate(-0.9, 0.35), 3),
        "bytes_in": takes * 4 + 300, "bytes_out": gives * (180 if stream else 5) + 700,
        "first_byte_ms": round(begins if stream else begins + gives * 9, 3),
        "duration_ms": round(begins + gives * 9 + chance.random() * 30, 3),
    }  # fmt: skip
    failure = _failure(team, asked, at, end, chance)
    if failure is not None:
        row |= FAILURES[failure]
        if row["attempts"] == 0:
            row |= {"first_byte_ms": None, "duration_ms": row["overhead_ms"], "overhead_ms": None,
                    "upstream_request_id": None, "bytes_out": 300}  # fmt: skip
        elif failure == "upstream_timeout":
            row |= {"first_byte_ms": None, "duration_ms": 60_000 + row["overhead_ms"], "upstream_request_id": None}
        elif failure != "client_gone":
            row |= {"first_byte_ms": round(begins / 3, 3), "duration_ms": round(begins / 3 + 1, 3), "bytes_out": 400}
        return row  # type: ignore[return-value]
    row |= {"model": answered, "service_tier": None if gives == 0 else "default"}
    usage = Usage(takes, cached, gives, thinks, takes + gives) if gives else Usage(takes, total_tokens=takes)
    put_usage(row, usage, prices, False, at.timestamp())  # type: ignore[arg-type]
    return row  # type: ignore[return-value]


FAILURES: dict[str, dict[str, Any]] = {
    "provider_429": {"status": 429, "stream": False},
    "provider_500": {"status": 500, "stream": False},
    "provider_503": {"status": 503, "stream": False},
    "client_gone": {"end": "client_gone"},
    "upstream_timeout": {"status": 504, "error_code": "upstream_timeout", "end": "timeout", "stream": False},
    "upstream_closed": {"status": 502, "error_code": "upstream_closed", "end": "upstream_lost", "stream": False},
    "rate_limited": {"status": 429, "error_code": "flowstack_rate_limit_exceeded", "end": "refused", "attempts": 0,
                     "stream": False},
    "model_not_allowed": {"status": 403, "error_code": "model_not_allowed", "end": "refused", "attempts": 0,
                          "stream": False, "model_requested": "gpt-5"},
    "over_budget": {"status": 429, "error_code": "flowstack_budget_exceeded", "end": "refused", "attempts": 0,
                    "stream": False},
}  # fmt: skip


def _failure(team: Team, asked: str, at: datetime, end: datetime, chance: random.Random) -> str | None:
    if team.owner == "marketing" and end - at < timedelta(hours=30):
        return "over_budget"
    # Two days ago the provider had trouble with one model, for an hour and a half.
    trouble = (end - timedelta(days=2)).replace(hour=13, minute=10)
    if asked == "gpt-4.1" and trouble < at < trouble + timedelta(minutes=90):
        return "provider_503"
    for name, share in team.failures:
        if chance.random() < share:
            return name
    return None


def _write(directory: Path, rows: list[Row]) -> None:
    prepare(directory)

    def day(row: Row) -> str:
        return (row["started_at"] + timedelta(milliseconds=row["duration_ms"])).date().isoformat()

    for name, some in groupby(rows, day):
        with open(directory / str(Name(name, 0)), "wb", opener=lambda path, flags: os.open(path, flags, 0o640)) as file:
            file.writelines(map(line_of, some))


def _spent(rows: list[Row], period: str, now: float, **of: str) -> float:
    begins = period_at(period, now).begins
    return sum(
        row["cost_usd"] or 0.0
        for row in rows
        if row["started_at"].timestamp() >= begins and all(row.get(name) == value for name, value in of.items())
    )


def _budget(period: str, share: float, rows: list[Row], now: float, **of: str) -> Budget:
    """Of half dollars, of which about this share is used, or more."""
    halves = int(2 * _spent(rows, period, now, **of) / share)
    return Budget(Decimal(max(halves, 1)) / 2, period)  # type: ignore[arg-type]


def _charge(directory: Path, of: list[Any], rows: list[Row], now: float) -> None:
    """Write what was charged of each budget."""
    directory.mkdir(0o700)
    with open(directory / NAME, "w+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        counters = Counters.new(file.fileno(), 1, 0)
        for one in of:
            if isinstance(one, str):
                period, spent = "month", _spent(rows, "month", now, group=one[1:])
            elif one.budget is None:
                continue
            else:
                period, spent = one.budget.period, _spent(rows, one.budget.period, now, key_id=one.id)
            slot = counters.slot(slot_name(one if isinstance(one, str) else one.id, ""))
            at = columns_of(counters.layout, slot, counters.layout.money, MONEY)[0]
            label = period_at(period, now).label
            counters.write_money(at, counters.cells[slot], now, label, label, nano(spent))
        counters.close()
