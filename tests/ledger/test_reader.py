"""Whatever a crash leaves in a file, each whole row in it is read once, and memory does not grow with it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from flowstack.ledger import reader
from flowstack.ledger.lines import line_of
from flowstack.ledger.reader import BLOCK, MAX_READ_LINE, read
from tests.ledger.samples import line, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "2026-11-23.w0.jsonl"


def found(path: Path, offset: int = 0) -> list[tuple[int, int | None]]:
    return [(behind, None if row is None else int(row["request_id"])) for behind, row in read(path, offset)]


def test_rows_come_as_they_were_written_and_their_times_as_text(path: Path) -> None:
    path.write_bytes(line_of(row(1)) + line_of(row(2, model="ä")))
    (_, first), (end, second) = read(path)
    assert end == path.stat().st_size
    assert first == {**row(1), "started_at": "2026-11-23T07:08:09.123456Z"}
    assert second is not None
    assert second["model"] == "ä"


def test_names_of_a_later_version_are_kept(path: Path) -> None:
    path.write_bytes(b'{"v":2,"request_id":"1","colour":"blue"}\n')
    assert [row for _, row in read(path)] == [{"v": 2, "request_id": "1", "colour": "blue"}]


def test_an_empty_file_has_no_rows(path: Path) -> None:
    path.write_bytes(b"")
    assert found(path) == []


def test_wherever_the_file_ends_whole_lines_are_read_and_reading_goes_on_there(path: Path) -> None:
    whole = line(1) + b"damage\n" + line(2) + line(3)
    ends = [end for end in range(1, len(whole) + 1) if whole[end - 1 : end] == b"\n"]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        before = found(path)
        assert [end for end, _ in before] == [end for end in ends if end <= cut]
        path.write_bytes(whole)
        after = found(path, before[-1][0] if before else 0)
        assert before + after == list(zip(ends, [1, None, 2, 3], strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        line(9)[:-7] + b"\n",
        b"\x00" * 5000 + b"\n",
        b"\n",
        b'"text"\n',
        b"[1]\n",
        b'{"v":1}\n',
        b"\xff\xfe{}\n",
        line(8)[:-1] + line(9),
        b"[" * 100_000 + b"\n",
        b"x" * (MAX_READ_LINE + 1) + b"\n",
        b"x" * (3 * MAX_READ_LINE) + b"\n",
    ],
    ids=lambda damage: ascii(damage[:20]),
)
def test_a_damaged_line_is_counted_as_one_and_harms_no_other(path: Path, damage: bytes) -> None:
    path.write_bytes(line(1) + damage + line(2) + damage)
    assert [number for _, number in found(path)] == [1, None, 2, None]
    assert found(path)[-1][0] == path.stat().st_size
    for offset, _ in found(path):
        assert found(path, offset) == [pair for pair in found(path) if pair[0] > offset]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000, BLOCK])
def test_where_a_block_ends_does_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    numbers: list[Any] = []
    with path.open("wb") as file:
        for number in range(50):
            file.write(line(number, 20 + number * 3))
            numbers.append(number)
            if number % 7 == 0:
                file.write(b"?" * number + b"\n")
                numbers.append(None)
        file.write(b'{"request_id":"99"}')
    monkeypatch.setattr(reader, "BLOCK", block)
    monkeypatch.setattr(reader, "MAX_READ_LINE", 4000)
    assert [number for _, number in found(path)] == numbers


def test_a_file_of_half_a_gigabyte_without_a_line_takes_little_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(line(1))
        file.truncate(512 * 1024 * 1024)
        file.seek(0, 2)
        file.write(b"\n" + line(2))
    tracemalloc.start()
    try:
        numbers = [number for _, number in found(path)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert numbers == [1, None, 2]
    assert peak < 8 * 1024 * 1024
