"""Journals for the tests of the index, and what must come out, counted in the plainest way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson

from flowstack.ledger.queries import Condition, Question
from tests.ledger.samples import row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEGIN = datetime(2026, 9, 20, 22, 30, tzinfo=UTC)
TOKENS = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens",
          "total_tokens")  # fmt: skip
UNTOLD = {"usage_source": "none", "cost_usd": None, "first_byte_ms": None, "overhead_ms": None, **dict.fromkeys(TOKENS)}
"""What a row does not tell that stands for several requests."""


def rows(
    count: int, seed: int = 1, days: float = 70, folded: bool = False, settling: bool = False, sockets: bool = False
) -> list[dict[str, Any]]:
    """Rows of few values in each field, so that many share a group, over a time that holds every span.

    :param folded: whether some stand for several refused requests.
    :param settling: whether some settle the work of others, before or after which they may stand.
    :param sockets: whether some are of WebSockets and of responses on them.
    """
    chance = random.Random(seed)
    found = []
    for number in range(count):
        metered = chance.random() < 0.7
        tokens = {name: chance.choice((None, 0, 7, 1000)) if metered else None for name in TOKENS}
        key = chance.choice(("k1", "k2", "k3"))
        one = row(
            request_id=f"{seed:08x}{number:024x}",
            started_at=BEGIN + timedelta(days=days) * chance.random(),
            key_id=key,
            owner={"k1": "alice", "k2": None, "k3": "Smith, John"}[key],
            group={"k1": "search", "k2": None, "k3": "batch jobs"}[key],
            path=chance.choice(("/v1/chat/completions", "/v1/audio/speech")),
            attributes=chance.choice((None, {}, {"team": "red"}, {"team": "blue", "tier": "a"}, {"tier": "b*"})),
            method=chance.choice(("POST", "GET")),
            model_requested=chance.choice((None, "gpt-4o")),
            model=chance.choice((None, "gpt-4o-mini", "o3[x]")),
            status=chance.choice((None, 200, 200, 429, 500)),
            error_code=chance.choice((None, "upstream_closed")),
            end=chance.choice(("complete", "client_gone", "timeout", "refused")),
            usage_source=chance.choice(("upstream", "upstream", "partial")) if metered else "none",
            cost_usd=(cost := chance.choice((None, 0.0, 0.1, 0.000000075)) if metered else None),
            unpriced=chance.choice((None, "no price")) if metered and cost is None else None,
            first_byte_ms=chance.choice((None, 0.0, 0.5, 312.004)),
            duration_ms=chance.choice((0.0004, 3.25, 99999.9, chance.lognormvariate(6, 2))),
            overhead_ms=chance.choice((None, 0.211)),
            upstream=chance.choice((None, "openai", "azure")),
            node=(None, "east-1", "west-1")[number % 3],
            **tokens,
        )
        requests = chance.choice((1, 2, 1000)) if folded and one["end"] == "refused" else 1
        found.append({**one, **({"requests": requests, **UNTOLD} if requests > 1 else {})})
        if sockets and requests == 1 and chance.random() < 0.05:  # a WebSocket, and a response on it
            socket = {**one, **UNTOLD, "method": "GET", "status": 101, "usage_source": "none", "cost_usd": None}
            found[-1] = {**socket, "unpriced": None}
        elif sockets and found[-2:-1] and found[-2]["status"] == 101:
            found[-1] |= {"method": "GET", "parent_request_id": found[-2]["request_id"]}
    if settling:
        for one in found[: count // 5]:
            one |= {"requests": 0, "parent_request_id": chance.choice(found[count // 5 :])["request_id"]}
        chance.shuffle(found)
    return found


def write(path: Path, some: Iterable[Any], mode: str = "ab") -> None:
    """Append rows to a journal file, as the journal does."""
    path.parent.mkdir(exist_ok=True)
    with open(path, mode) as file:
        for one in some:
            file.write(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def expected(some: Sequence[dict[str, Any]], question: Question) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The report, row by row."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in some:
        at = microseconds(one["started_at"])
        if question.since is not None and at < question.since:
            continue
        if question.until is not None and at >= question.until:
            continue
        if all(matches(value_of(one, condition.field), condition) for condition in question.where):
            groups.setdefault(tuple(value_of(one, field) for field in question.by), []).append(one)
    known = settled(some)
    found = {group: figures(members, known) for group, members in groups.items()}
    return {group: line for group, line in found.items() if any(value for value in line.values())}


def settled(some: Iterable[dict[str, Any]]) -> set[str]:
    """The requests whose usage a row of its own tells, and the calls that a WebSocket heard."""
    return {
        one["parent_request_id"] for one in some
        if one.get("parent_request_id") and ((not one.get("requests", 1) and used(one)) or one["status"] == 101)
    }  # fmt: skip


def used(one: dict[str, Any]) -> bool:
    """Whether the row tells usage."""
    return one["usage_source"] in ("upstream", "partial")


def many(one: dict[str, Any]) -> int:
    """How many requests the row stands for; none, if it is a WebSocket's."""
    return 0 if one["status"] == 101 else int(one.get("requests", 1))


def silent(one: dict[str, Any], settled: set[str]) -> bool:
    """Whether its usage is not known, and may be some."""
    good = one["status"] is not None and 200 <= one["status"] < 300
    asked = one["method"] == "POST" or one.get("parent_request_id") is not None
    return good and asked and not used(one) and one["request_id"] not in settled


def value_of(one: dict[str, Any], field: str) -> Any:
    hours = microseconds(one["started_at"]) // 3_600_000_000
    special: dict[str, Callable[[], Any]] = {
        "hour": lambda: hours,
        "day": lambda: hours // 24 * 24,
        "key": lambda: one["key_id"],
        "model": lambda: one["model"] or one["model_requested"],
        "status": lambda: one["status"] and str(one["status"]),
        "error": lambda: one["error_code"],
    }
    if field.startswith("attribute:"):
        return (one["attributes"] or {}).get(field.removeprefix("attribute:"))
    return special[field]() if field in special else one[field]


def matches(value: Any, condition: Condition) -> bool:
    def one(pattern: str) -> bool:
        if not pattern or value is None:
            return not pattern and value is None
        return fnmatchcase(value, pattern.replace("[", "[[]").replace("?", "[?]"))

    return any(map(one, condition.patterns))


def figures(members: Sequence[dict[str, Any]], known: set[str] | None = None) -> dict[str, Any]:
    """The sums, row by row.

    :param known: the requests that other rows settle; None means as these say.
    """
    known = settled(members) if known is None else known

    def told(one: dict[str, Any], name: str) -> Any:
        if (
            name == "total_tokens"
            and one[name] is None
            and None not in (one["prompt_tokens"], one["completion_tokens"])
        ):
            return one["prompt_tokens"] + one["completion_tokens"]
        return one[name]

    found: dict[str, Any] = {
        "requests": sum(map(many, members)),
        "errors": sum(
            many(one) * (one["end"] in ("timeout", "refused") or (one["status"] is not None and one["status"] >= 400))
            for one in members
        ),
        "without_usage": sum(many(one) * silent(one, known) for one in members),
        "without_price": sum(used(one) and one["cost_usd"] is None for one in members),
        "partial_usage": sum(one["usage_source"] == "partial" for one in members),
        "connections": sum(one["status"] == 101 for one in members),
    }
    for name in (*TOKENS, "cost_usd"):
        values = [told(one, name) for one in members]
        lacking = sum(
            many(one) if silent(one, known) else used(one)
            for one, value in zip(members, values, strict=True)
            if value is None
        )
        if name == "cost_usd":
            values = [None if value is None else round(value * 10**9) for value in values]
        left = [value for value in values if value is not None]
        found["cost_nano_usd" if name == "cost_usd" else name] = sum(left) if left else None
        found["without_cost" if name == "cost_usd" else f"without_{name}"] = lacking
    for name in ("first_byte", "duration", "overhead"):
        times = sorted(one[f"{name}_ms"] for one in members if one[f"{name}_ms"] is not None and many(one) == 1)
        for percent in (50, 95, 99):
            found[f"{name}_p{percent}_ms"] = times[math.ceil(len(times) * percent / 100) - 1] if times else None
    return found


def agree(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two sets of figures are the same, percentiles within their error and the microsecond."""
    if found.keys() != wanted.keys():
        return False
    for name, value in wanted.items():
        if not name.endswith("_ms") or value is None or found[name] is None:
            if found[name] != value:
                return False
        elif abs(found[name] - value) > 0.05 * value + 0.001:
            return False
    return True
