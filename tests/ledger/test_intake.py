"""A line comes to the same row whichever way it is read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from flowstack.ledger.intake import Intake
from flowstack.ledger.lines import line_of
from flowstack.ledger.schema import open_for_writing
from flowstack.ledger.upgrades import carry_over
from tests.ledger.journals import rows
from tests.ledger.samples import STARTED, row

ROWS = rows(400, folded=True, settling=True, sockets=True)
ID = "019a1f2b3c4d5e6f708192a3b4c5d6e7"


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    connection = open_for_writing(tmp_path / "ledger.sqlite", carry_over)
    connection.execute("BEGIN")
    yield Intake(connection)
    connection.close()


def taken(intake: Intake, line: bytes) -> Any:
    """What a line comes to: a row of the table, and whose usage it settles; or that it is none."""
    intake._rows.clear()
    intake._settled.clear()
    try:
        intake.add(line)
    except ValueError:
        return None
    return [*intake._rows], [*intake._settled]


def otherwise(line: bytes) -> bytes:
    """The same row as another program would write it."""
    return json.dumps(dict(reversed(orjson.loads(line).items()))).encode()


def written(**more: Any) -> bytes:
    return line_of(row(**({"request_id": ID} | more))).rstrip(b"\n")


def test_a_line_of_flowstack_s_own_is_read_in_parts_and_comes_to_the_same_row(intake: Intake) -> None:
    for one in ROWS:
        line = line_of(one).rstrip(b"\n")  # type: ignore[arg-type]
        assert intake._parted(line) is not None
        assert intake._parted(otherwise(line)) is None
        assert taken(intake, line) == taken(intake, otherwise(line)) != None  # noqa: E711 - it is a row


@pytest.mark.parametrize(
    "more",
    [
        {"attributes": {"team": "a", "prompt_tokens": "7"}},
        {"attributes": {"prompt_tokens": "7"}},
        {"attributes": {"a": ',"prompt_tokens":7', 'b,"prompt_tokens":': '"}'}},
        {"user_agent": '","prompt_tokens":1,"end":"complete"}'},
        {"model": 'x"},"prompt_tokens":1'},
        {"started_at": STARTED.replace(microsecond=0)},
        {"started_at": STARTED.replace(year=1969)},
        {"v": 3},
        {"request_id": "x" * 32},
        {"request_id": 'a","started_at":"2026-11-23T07:08'},
        {"path": "/flowstack/usage", "upstream": None},
        {"parent_request_id": ID, "requests": 0},
        {"status": 400, "usage_asked_by": "flowstack"},
    ],
)
def test_whatever_a_client_sends_a_line_comes_to_the_same_row(intake: Intake, more: dict[str, Any]) -> None:
    line = written(**more)
    before, after = written(), written(started_at=STARTED + timedelta(seconds=3))
    for one in (before, line, after, line):
        assert taken(intake, one) == taken(intake, otherwise(one))


@pytest.mark.parametrize("name", ["duration_ms", "upstream", "requests"])
def test_a_line_whose_members_stand_in_another_order_comes_to_the_same_row(intake: Intake, name: str) -> None:
    members = list(orjson.loads(written(requests=2, end="refused")).items())
    chosen = next(member for member in members if member[0] == name)
    members.remove(chosen)
    members.insert(5, chosen)
    line = orjson.dumps(dict(members))
    assert taken(intake, line) == taken(intake, otherwise(line)) != None  # noqa: E711 - it is a row


def test_a_damaged_line_is_a_row_only_where_the_whole_of_it_is_one(intake: Intake) -> None:
    chance = random.Random(1)
    line = written(attributes={"team": "a"})
    assert taken(intake, line) is not None
    fine = 0
    for _ in range(3000):
        place = chance.randrange(len(line))
        some = line[:place] + bytes([chance.choice(b'"{}[],:\\ 0a\x00\xff')]) * chance.randrange(2)
        some += line[place + chance.randrange(3) :]
        row = taken(intake, some)
        intake._parted = lambda _: None  # type: ignore[method-assign]
        whole = taken(intake, some)
        del intake._parted
        assert row == whole, some
        fine += row is not None
    assert 100 < fine < 2900
