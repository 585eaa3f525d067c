"""A row reaches the journal, then the access log, and nothing that goes wrong on the way reaches the relay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from flowstack.config.settings import Ledger, Log
from flowstack.ledger.access import AccessLog, text_line
from flowstack.ledger.files import files
from flowstack.ledger.journal import Journal
from flowstack.ledger.ledger import RowLedger
from flowstack.ledger.lines import line_of
from tests.ledger.samples import NOON, row, told


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Build a ledger with its journal in ``ledger``, and its access log in ``requests``."""

    clock = Clock()

    def made(requests: str | None = None, form: str = "json", journal: bool = True, refusals: int = 60) -> RowLedger:
        settings = Ledger(fsync="never", on_ledger_failure="refuse")
        target = requests or str(tmp_path / "requests")
        ledger = RowLedger(
            Journal(tmp_path / "ledger", 0, settings, clock, lambda: NOON, maybeDeferred) if journal else None,
            AccessLog(Log(target, form), clock),
            refusals,
            clock,
        )
        ledger.start()
        return ledger

    made.clock = clock  # type: ignore[attr-defined]
    return made


def refused(number: int, **more: Any) -> Any:
    return row(number, **{"end": "refused", "status": 429, "error_code": "flowstack_rate_limit_exceeded", "model": None,
                          "usage_source": "none", **more})  # fmt: skip


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal_of(tmp_path).splitlines()]


def ids_of(tmp_path: Path) -> list[str]:
    return [one["request_id"] for one in rows_of(tmp_path)]


def journal_of(tmp_path: Path) -> bytes:
    return b"".join(path.read_bytes() for path in files(tmp_path / "ledger"))


def test_journal_and_access_log_get_the_same_bytes_and_the_journal_gets_them_at_once(make: Any, tmp_path: Path) -> None:
    ledger = make()
    first = row(1)
    ledger.record(first)
    assert journal_of(tmp_path) == line_of(first)
    ledger.stop()
    assert (tmp_path / "requests").read_bytes() == journal_of(tmp_path)


def test_the_access_log_may_be_text_while_the_journal_is_json(make: Any, tmp_path: Path) -> None:
    ledger = make(form="text")
    ledger.record(row(1))
    ledger.stop()
    assert (tmp_path / "requests").read_bytes() == text_line(row(1))
    assert journal_of(tmp_path) == line_of(row(1))


def test_either_may_be_absent(make: Any, tmp_path: Path) -> None:
    ledger = make(journal=False)
    ledger.record(row(1))
    assert ledger.accepting
    assert (ledger.lost, ledger.waiting) == (0, 0)
    ledger.stop()
    assert (tmp_path / "requests").read_bytes() == line_of(row(1))
    assert not (tmp_path / "ledger").exists()
    ledger = make(requests="none")
    ledger.record(row(2))
    ledger.stop()
    assert journal_of(tmp_path) == line_of(row(2))


def test_what_goes_wrong_after_the_journal_is_counted_told_of_once_and_raises_nothing(
    make: Any, tmp_path: Path
) -> None:
    ledger = make(form="text")
    whole = [row(number, client_addr="\ud800") for number in range(3)]  # no address, and no text that could be written
    with told() as texts:
        for one in whole:
            ledger.record(one)
    assert journal_of(tmp_path) == b"".join(map(line_of, whole))
    assert ledger.failures == 3
    assert len(texts) == 1


def test_it_says_whether_rows_are_taken_how_much_waits_and_what_is_lost(make: Any, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "2026-11-23.w0.jsonl").symlink_to("/dev/full")
    ledger = make()
    assert ledger.accepting
    ledger.record(row(1))
    assert not ledger.accepting
    assert ledger.waiting == len(line_of(row(1)))
    assert ledger.lost == 0
    ledger.stop()
    assert ledger.lost == 1
    assert (tmp_path / "requests").read_bytes() == line_of(row(1))


def test_a_reload_opens_the_access_log_anew_and_leaves_the_journal_alone(make: Any, tmp_path: Path) -> None:
    ledger = make()
    ledger.record(row(1))
    os.rename(tmp_path / "requests", tmp_path / "requests.1")
    ledger.reopen()
    ledger.record(row(2))
    ledger.stop()
    assert (tmp_path / "requests.1").read_bytes() == line_of(row(1))
    assert (tmp_path / "requests").read_bytes() == line_of(row(2))
    assert len(files(tmp_path / "ledger")) == 1


def test_refused_requests_beyond_some_a_minute_are_one_row_in_journal_and_access_log(make: Any, tmp_path: Path) -> None:
    ledger = make(refusals=2)
    for number in range(1000):
        ledger.record(refused(number, attributes={"fresh": str(number)}))
    assert ids_of(tmp_path) == ["0", "1"]
    make.clock.advance(60)
    (*_, many) = rows_of(tmp_path)
    assert ids_of(tmp_path) == ["0", "1", "2"]
    assert (many["requests"], many["attributes"], many["model_requested"]) == (998, None, "gpt-4o")
    ledger.stop()
    assert (tmp_path / "requests").read_bytes() == journal_of(tmp_path)


def test_requests_for_flowstack_s_own_paths_beyond_some_a_minute_are_one_row(make: Any, tmp_path: Path) -> None:
    ledger = make(refusals=2)
    for number in range(1000):
        own = {"path": "/flowstack/v1/key", "upstream": None, "status": 200, "usage_source": "none", "attempts": 0}
        ledger.record(row(number, **own))
    for number in range(1000, 1100):  # what settles earlier work stands for none
        ledger.record(row(number, upstream=None, parent_request_id="1"))
    make.clock.advance(60)
    assert len(ids_of(tmp_path)) == 103
    (*_, many) = rows_of(tmp_path)
    assert (many["requests"], many["path"], many["status"], many["end"]) == (998, "/flowstack/v1/key", 200, "complete")


def test_what_was_counted_together_is_written_at_the_end_and_only_once(make: Any, tmp_path: Path) -> None:
    ledger = make(refusals=0)
    for number in range(5):
        ledger.record(refused(number))
    assert rows_of(tmp_path) == []
    ledger.stop()
    make.clock.advance(120)
    assert [one["requests"] for one in rows_of(tmp_path)] == [5]


def test_rows_that_are_no_refusals_are_each_written_however_many(make: Any, tmp_path: Path) -> None:
    ledger = make(refusals=0)
    ends = ("complete", "client_gone", "upstream_lost", "timeout", "drain")
    for number, end in enumerate(ends * 50):
        ledger.record(row(number, end=end, status=502))
    assert len(rows_of(tmp_path)) == 250


def test_a_line_of_text_says_how_many_requests_it_stands_for(make: Any, tmp_path: Path) -> None:
    ledger = make(refusals=1, form="text")
    for number in range(4):
        ledger.record(refused(number, client_addr=f"192.0.2.{number}", path=f"/v1/{number}"))
    ledger.stop()
    one, many = (tmp_path / "requests").read_text().splitlines()
    assert one == text_line(refused(0, client_addr="192.0.2.0", path="/v1/0")).decode().rstrip()
    assert "requests=" not in one
    assert many.split()[1:5] == ["-", "k7Qm2xW9pLz4", "POST", "-"]
    assert many.split()[-2:] == ["request_id=1", "requests=3"]
