"""One line a request, in the order in which they ended, and none lost without being counted."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from flowstack.ledger import events
from flowstack.ledger.events import FLUSH_BYTES, FLUSH_SECONDS, EventLedger


def row(number: int, **more: Any) -> Any:
    return {"v": 1, "request_id": str(number), "started_at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), **more}


def ids(path: Path) -> list[int]:
    return [int(json.loads(line)["request_id"]) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def started(path: Path) -> tuple[EventLedger, Clock]:
    clock = Clock()
    ledger = EventLedger(str(path), clock)
    ledger.start()
    return ledger, clock


def test_rows_are_lines_of_json_written_at_most_half_a_second_later(path: Path) -> None:
    ledger, clock = started(path)
    ledger.record(row(1, owner="ä", path="/v1/x\n"))
    ledger.record(row(2))
    assert path.read_text() == ""
    clock.advance(FLUSH_SECONDS)
    assert ids(path) == [1, 2]
    first = json.loads(path.read_text("utf-8").splitlines()[0])
    assert first["started_at"] == "2026-01-02T03:04:05.000678+00:00"
    assert (first["owner"], first["path"]) == ("ä", "/v1/x\n")


def test_many_rows_are_written_without_waiting(path: Path) -> None:
    ledger, _ = started(path)
    ledger.record(row(1, path="x" * FLUSH_BYTES))
    assert ids(path) == [1]


def test_stopping_writes_what_waits_and_closes_the_file(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ledger, clock = started(path)
    ledger.record(row(1))
    ledger.stop()
    assert ids(path) == [1]
    assert len(os.listdir("/proc/self/fd")) == before
    clock.advance(10)


def test_rows_are_appended_to_what_is_there_in_a_file_that_strangers_cannot_read(path: Path) -> None:
    for number in (1, 2):
        ledger, _ = started(path)
        ledger.record(row(number))
        ledger.stop()
    assert ids(path) == [1, 2]
    assert path.stat().st_mode & 0o007 == 0


def test_reopening_goes_on_in_a_new_file_after_a_rename(path: Path) -> None:
    ledger, clock = started(path)
    ledger.record(row(1))
    moved = path.rename(path.with_suffix(".1"))
    ledger.record(row(2))
    ledger.reopen()
    ledger.record(row(3))
    clock.advance(1)
    assert (ids(moved), ids(path)) == ([1, 2], [3])


def test_a_file_that_cannot_be_reopened_is_used_on(path: Path) -> None:
    ledger, clock = started(path)
    moved = path.rename(path.with_suffix(".1"))
    path.mkdir()
    ledger.reopen()
    ledger.record(row(1))
    clock.advance(1)
    assert ids(moved) == [1]


def test_a_full_disk_keeps_rows_up_to_a_bound_counts_the_rest_and_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, clock = started(path)
    monkeypatch.setattr(events, "KEEP_BYTES", 5000)
    real, full = os.write, True

    def write(descriptor: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:1000])  # and then only a little at a time

    monkeypatch.setattr(events.os, "write", write)
    ledger.record(row(0))
    clock.advance(1)
    for number in range(1, 200):
        ledger.record(row(number))
    assert 100 < ledger.lost < 200
    full = False
    clock.pump([FLUSH_SECONDS] * 20)
    kept = ids(path)
    assert kept == list(range(len(kept)))
    assert len(kept) + ledger.lost == 200


def test_none_writes_nothing(tmp_path: Path) -> None:
    ledger, clock = EventLedger("none", Clock()), None
    ledger.start()
    ledger.record(row(1))
    ledger.stop()
    assert clock is None
    assert list(tmp_path.iterdir()) == []


def test_standard_output_is_written_to_and_left_open(capfd: pytest.CaptureFixture[str]) -> None:
    ledger = EventLedger("-", Clock())
    ledger.start()
    ledger.record(row(1))
    ledger.stop()
    assert json.loads(capfd.readouterr().out)["request_id"] == "1"
    os.fstat(1)


def test_a_file_that_cannot_be_opened_ends_the_start(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        started(path)
