"""A file's name says its day, its worker and its place; old files go, the day's never do."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.ledger.files import Name, files, prepare, prune
from tests.ledger.samples import told
from tests.rights import needs_root, public_folder, told_as_nobody

TODAY = date(2026, 11, 23)


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text("{}\n")


def names(directory: Path) -> list[str]:
    return [path.name for path in files(directory)]


def test_files_come_in_the_order_of_day_worker_and_part_and_nothing_else_comes(tmp_path: Path) -> None:
    ordered = [
        "2025-12-31.w7.jsonl",
        "2026-11-23.w0.jsonl",
        "2026-11-23.w0.2.jsonl",
        "2026-11-23.w0.10.jsonl",
        "2026-11-23.w2.jsonl",
        "2026-11-23.w10.jsonl",
        "2026-11-24.w0.jsonl",
    ]
    touch(tmp_path, *reversed(ordered), "index.sqlite", "2026-11-23.jsonl", "2026-11-23.w0.jsonl.gz", ".probe.1")
    assert names(tmp_path) == ordered


def test_a_missing_directory_has_no_files(tmp_path: Path) -> None:
    assert files(tmp_path / "ledger") == []


@given(st.dates(min_value=date(1000, 1, 1)), st.integers(0, 999_999), st.integers(0, 999_999))
def test_a_name_is_read_as_it_was_written(day: date, worker: int, part: int) -> None:
    name = Name(day.isoformat(), worker, part)
    assert Name.of(str(name)) == name


@pytest.mark.parametrize("days", [1, 2, 30])
def test_a_file_is_removed_once_its_day_is_over_by_as_many_days_as_are_to_be_kept(tmp_path: Path, days: int) -> None:
    every = {age: f"{TODAY - timedelta(age)}.w0.jsonl" for age in range(-1, 40)}
    touch(tmp_path, *every.values())
    assert prune(tmp_path, TODAY, days) == 39 - days
    assert names(tmp_path) == sorted(name for age, name in every.items() if age <= days)
    assert {every[0], every[1]} <= set(names(tmp_path)), "today's and yesterday's stay"
    assert prune(tmp_path, TODAY, days) == 0


def test_each_part_and_worker_of_an_old_day_goes_and_no_other_file_does(tmp_path: Path) -> None:
    touch(tmp_path, "2020-01-01.w0.jsonl", "2020-01-01.w1.3.jsonl", "2020-01-01.txt", "2020-13-45.w0.jsonl")
    assert prune(tmp_path, TODAY, 1) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2020-01-01.txt", "2020-13-45.w0.jsonl"]


def test_nothing_is_removed_where_nothing_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "2020-01-01.w0.jsonl")
    assert prune(tmp_path, TODAY, 0) == 0
    assert names(tmp_path) == ["2020-01-01.w0.jsonl"]


def test_what_cannot_be_removed_is_told_of_and_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "2020-01-01.w0.jsonl").mkdir()
    touch(tmp_path, "2020-01-02.w0.jsonl")
    with told() as texts:
        assert prune(tmp_path, TODAY, 1) == 1
        assert prune(tmp_path / "2020-01-01.w0.jsonl", TODAY, 1) == 0
        assert prune(tmp_path / "missing", TODAY, 1) == 0
    assert len(texts) == 1
    assert "2020-01-01.w0.jsonl" in texts[0]


def test_preparing_makes_the_directory_for_its_group_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    for _ in range(2):
        prepare(tmp_path / "ledger")
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o750
    assert list((tmp_path / "ledger").iterdir()) == []


def test_preparing_says_what_is_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        prepare(tmp_path / "missing" / "ledger")
    touch(tmp_path, "ledger")
    with pytest.raises(OSError, match="ledger"):
        prepare(tmp_path / "ledger")


@needs_root
def test_a_directory_that_the_service_may_not_write_to_is_refused_at_the_start() -> None:
    with public_folder() as folder:
        (folder / "ledger").mkdir(0o755)
        said = told_as_nobody(
            "from flowstack.ledger.files import prepare",
            """
            try:
                prepare(path)
            except PermissionError as error:
                print(error)
            """,
            folder / "ledger",
        )
    assert "Permission denied" in said
    assert str(folder / "ledger") in said
