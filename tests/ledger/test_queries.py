"""Reports are what the rows say, whichever sums they are read from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowstack.config import Price
from flowstack.ledger.folding import Folding
from flowstack.ledger.formats import Entry
from flowstack.ledger.index import Index
from flowstack.ledger.migrate import migrate
from flowstack.ledger.postgres import Postgres
from flowstack.ledger.queries import Condition, Question, report, standing, total
from flowstack.ledger.questions import SHORT, answer
from flowstack.ledger.schema import HOUR, SPANS, open_for_reading
from flowstack.ledger.shared import open_shared
from flowstack.ledger.shipping import Shipping
from flowstack.prices.cost import Prices
from flowstack.usage.figures import MAX_COUNT
from flowstack.usage.model import Usage
from tests.ledger.journals import BEGIN, TOKENS, agree, expected, figures, microseconds, rows, write
from tests.ledger.servers import Server
from tests.usage.fixtures import message_usage_of

FIELDS = ("key", "owner", "model", "upstream", "status", "end", "error", "group", "node", "day", "hour",
          "attribute:team", "attribute:tier", "attribute:nobody")  # fmt: skip
PATTERNS = {
    "key": ("k1", "k*", "x", ""),
    "owner": ("", "alice", "*", "Smith*"),
    "model": ("gpt-4o*", "gpt-4?", "o3[x]", "*mini", ""),
    "status": ("2*", "429", "", "*0*"),
    "upstream": ("openai", ""),
    "group": ("search", "*a*", ""),
    "end": ("complete", "*o*"),
    "node": ("east*", ""),
    "attribute:team": ("red", "*e*", "", "x"),
    "attribute:tier": ("a", "b*", ""),
    "attribute:nobody": ("", "x"),
}
ROWS = rows(1500, folded=True, settling=True, sockets=True)


@pytest.fixture(scope="module", params=["none", "some", "all", "all but the thin", "none, shared", "all, shared"])
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres: Server
) -> Iterator[Any]:
    """An index of which none, some or all rows are rolled up; or the same in PostgreSQL, from two machines."""
    folder = tmp_path_factory.mktemp("state")
    few = 4 if request.param == "all but the thin" else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowstack.ledger.intake.MANY", 1 if "all" in request.param else 10_000)
        patch.setattr("flowstack.ledger.intake.MANY_BEHIND", {"none": 10_000, "some": 500}.get(request.param, 1))
        patch.setattr("flowstack.ledger.rollup.FEW", dict.fromkeys(SPANS, few))
        if "shared" in request.param:
            yield from shipped(folder, postgres)
        else:
            yield from indexed(folder)


def shipped(folder: Path, postgres: Server) -> Iterator[Any]:
    shared = postgres.database(folder)
    for name, some in (("east", ROWS[:700]), ("west", ROWS[700:])):
        write(folder / name / "2026-11-23.w0.jsonl", some)
        with Postgres(shared, "test") as database:
            migrate(database)
            Shipping(database, folder / name, name).ship()
            Folding(database).fold()
    with open_shared(shared, "test") as database:
        yield database


def indexed(folder: Path) -> Iterator[Any]:
    write(folder / "ledger" / "2026-11-23.w0.jsonl", ROWS[:700])
    write(folder / "ledger" / "2026-11-23.w1.jsonl", ROWS[700:])
    with Index(folder / "ledger.sqlite", folder / "ledger") as index:
        while index.catch_up(limit_rows=400).behind:  # several transactions, which add to each other's sums
            pass
    opened = open_for_reading(folder / "ledger.sqlite")
    yield opened
    opened.close()


def asked(seed: int) -> Question:
    chance = random.Random(seed)
    by = tuple(chance.sample(FIELDS, chance.randrange(4)))
    where = tuple(
        Condition(field, tuple(chance.sample(PATTERNS[field], chance.choice((1, 1, 2)))))
        for field in chance.sample(list(PATTERNS), chance.choice((0, 0, 1, 2)))
    )

    def moment() -> int | None:
        at = microseconds(BEGIN + timedelta(days=70) * chance.random())
        return chance.choice((None, at, at // HOUR * HOUR, at // (24 * HOUR) * (24 * HOUR)))

    return Question(by, where, moment(), moment())


@pytest.mark.parametrize("seed", range(60))
def test_a_report_is_what_counting_row_by_row_gives(connection: Any, seed: int) -> None:
    question = asked(seed)
    found = {line.group: line.figures() for line in report(connection, question)}
    wanted = expected(ROWS, question)
    assert found.keys() == wanted.keys(), question
    for group, line in wanted.items():
        assert agree(found[group], line), (question, group)


@pytest.mark.parametrize("field", FIELDS)
def test_the_total_is_that_of_all_rows_whatever_it_is_asked_by(connection: Any, field: str) -> None:
    assert agree(total(report(connection, Question((field,)))).figures(), figures(ROWS))


@pytest.mark.parametrize("sort", [None, "cost", "latency", "requests", "cached_tokens", "first_byte_p50_ms", "model"])
@pytest.mark.parametrize("by", ["hour,model", "model,owner,attribute:team", "status,model"])
def test_lines_come_by_what_is_sorted_by_then_by_requests_then_by_group_without_a_value_last(
    connection: Any, by: str, sort: str | None
) -> None:
    fields = tuple(by.split(","))
    field = sort or ("hour" if "hour" in fields else "cost_usd")

    def place(entry: Entry) -> Any:
        groups = [(value is None, value) for value in entry.group]
        if field in fields:
            return [groups[fields.index(field)], *groups]
        value = entry.figures[SHORT.get(field, field)]
        return [value is None, -(value or 0), -int(entry.figures["requests"] or 0), *groups]

    entries = answer(connection, Question(fields), sort).entries()
    assert len(entries) > 5
    assert [entry.group for entry in entries] == [entry.group for entry in sorted(entries, key=place)]


def test_what_no_row_knows_is_none_and_never_0(tmp_path: Path) -> None:
    unknown = {name: None for name in TOKENS} | {"usage_source": "none", "cost_usd": None, "first_byte_ms": None}
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [one | unknown for one in ROWS[:20]])
    with Index(tmp_path / "ledger.sqlite", tmp_path / "ledger") as index:
        index.catch_up()
    connection = open_for_reading(tmp_path / "ledger.sqlite")
    found = total(report(connection, Question(("key",)))).figures()
    connection.close()
    assert {name for name, value in found.items() if value is None} == {
        *TOKENS, "cost_nano_usd", "first_byte_p50_ms", "first_byte_p95_ms", "first_byte_p99_ms"
    }  # fmt: skip


def test_a_report_of_no_rows_has_no_line_and_knows_nothing(connection: Any) -> None:
    assert report(connection, Question(("key",), (), microseconds(BEGIN) - HOUR, microseconds(BEGIN))) == []
    assert total([]).figures()["requests"] == 0
    assert total([]).figures()["cost_nano_usd"] is None


def test_money_adds_up_exactly(tmp_path: Path) -> None:
    some = [dict(one, cost_usd=0.1, request_id=str(number)) for number, one in enumerate(rows(10) * 100)]
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", some)
    with Index(tmp_path / "ledger.sqlite", tmp_path / "ledger") as index:
        index.catch_up()
    connection = open_for_reading(tmp_path / "ledger.sqlite")
    assert total(report(connection, Question())).figures()["cost_nano_usd"] == 100 * 10**9
    connection.close()


def test_a_report_sees_one_moment_while_rows_come_in(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "2026-11-23.w0.jsonl"
    write(path, ROWS[:100])
    with Index(tmp_path / "ledger.sqlite", tmp_path / "ledger") as index:
        index.catch_up()
        reader = open_for_reading(tmp_path / "ledger.sqlite")
        reader.execute("BEGIN")
        assert standing(reader).last_row is not None
        write(path, ROWS[100:200])
        assert index.catch_up().rows == 100  # a reader holds no writer up
        assert reader.execute("SELECT count(*) FROM rows").fetchone() == (100,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM rows").fetchone() == (200,)
        reader.close()


def report_of(tmp_path: Path, lines: list[dict[str, Any]], *by: str) -> list[tuple[tuple[Any, ...], int]]:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", lines)
    with Index(tmp_path / "ledger.sqlite", tmp_path / "ledger") as index:
        index.catch_up()
    connection = open_for_reading(tmp_path / "ledger.sqlite")
    try:
        return sorted(((line.group, line.requests) for line in report(connection, Question(by))), key=str)
    finally:
        connection.close()


def test_a_request_that_fails_where_flowstack_asked_for_usage_is_told_as_such(tmp_path: Path) -> None:
    plain = {"status": 400, "error_code": None, "upstream": "local", "requests": 1}
    asked = {**plain, "usage_asked_by": "flowstack"}
    lines = [plain, asked, {**asked, "status": 422}, {**asked, "status": 429}, {**asked, "status": 200}]
    lines.append({**asked, "error_code": "model_not_allowed"})
    got = report_of(tmp_path, [row | more for row, more in zip(ROWS, lines, strict=False)], "error")
    assert got == [(("asked_for_usage",), 2), (("model_not_allowed",), 1), ((None,), 3)]


def test_the_largest_figures_that_an_answer_may_have_are_in_the_index(tmp_path: Path) -> None:
    most = message_usage_of({
        "input_tokens": MAX_COUNT - 1, "cache_read_input_tokens": MAX_COUNT - 1,
        "cache_creation_input_tokens": MAX_COUNT - 1, "output_tokens": MAX_COUNT - 1, "total_tokens": MAX_COUNT - 1,
    })  # fmt: skip
    assert most is not None
    dear = Prices({"date": "2026-11-01", "models": []}, [Price("m", input=1.0, output=1.0)])
    cost, _, _ = dear.cost("m", Usage(10**11 - 1, None, 1), None, False, 0)
    assert cost is not None
    assert dear.cost("m", Usage(10**11, None, 1), None, False, 0) == (None, None, "figures")
    row = ROWS[0] | {
        "usage_source": "upstream", "prompt_tokens": most.prompt_tokens, "cached_tokens": most.cached_tokens,
        "completion_tokens": most.completion_tokens, "total_tokens": most.total_tokens, "cost_usd": cost,
    }  # fmt: skip
    assert report_of(tmp_path, [row]) == [((), 1)]
