"""A line is on disk when ``record_line`` returns, or it waits, or it is counted; and none is there twice."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from flowstack.config.settings import Ledger
from flowstack.ledger.files import files
from flowstack.ledger.journal import Journal
from flowstack.ledger.reader import read
from tests.files import open_below
from tests.ledger.samples import NOON, ids, line, told
from tests.rights import ROOT, needs_root

DAY = 86400.0
FIRST, SECOND, THIRD = "2026-11-23.w0.jsonl", "2026-11-23.w0.1.jsonl", "2026-11-23.w0.2.jsonl"


@define
class Bench:
    """A journal with its time in the test's hands."""

    directory: Path
    journal: Journal
    clock: Clock
    now: float = NOON

    def second(self, count: int = 1) -> None:
        """Let seconds pass."""
        for _ in range(count):
            self.now += 1
            self.clock.advance(1)

    def ids(self) -> list[int]:
        """The ids of all lines in all files."""
        return ids(*files(self.directory))


BENCHES: list[Bench] = []


def started(
    directory: Path,
    worker: int = 0,
    defer: Any = maybeDeferred,
    before_writes: Callable[[Callable[[], None]], None] | None = None,
    **settings: Any,
) -> Bench:
    settings = {"fsync": "never", **settings}
    clock = Clock()
    bench: Bench
    journal = Journal(directory, worker, Ledger(**settings), clock, lambda: bench.now, defer, before_writes)
    bench = Bench(directory, journal, clock)
    journal.start()
    BENCHES.append(bench)
    return bench


@pytest.fixture(autouse=True)
def all_stopped() -> Iterator[None]:
    """No journal outlives its test, as its lock would."""
    yield
    while BENCHES:
        BENCHES.pop().journal.stop()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writes come back short, then fail (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"root may not mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# Writing.


def test_a_line_is_in_the_file_at_once_and_in_order(directory: Path) -> None:
    bench = started(directory)
    for number in range(3):
        bench.journal.record_line(line(number))
        assert ids(directory / FIRST) == list(range(number + 1))


def test_strangers_can_neither_enter_the_directory_nor_read_a_file(directory: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(1))
    assert directory.stat().st_mode & 0o777 == 0o750
    assert (directory / FIRST).stat().st_mode & 0o777 == 0o640


def test_each_worker_has_a_file_of_its_own(directory: Path) -> None:
    for worker in (0, 1, 11):
        started(directory, worker).journal.record_line(line(worker))
    assert {path.name: ids(path) for path in files(directory)} == {
        FIRST: [0],
        "2026-11-23.w1.jsonl": [1],
        "2026-11-23.w11.jsonl": [11],
    }


CHILD = """
import itertools, os, sys, time
from pathlib import Path
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from flowstack.config.settings import Ledger
from flowstack.ledger.journal import Journal
journal = Journal(Path(sys.argv[1]), 0, Ledger(fsync="never"), Clock(), lambda: {now}, maybeDeferred)
journal.start()
for number in itertools.count():
    journal.record_line(b'{{"request_id":"%d","x":"%s"}}\\n' % (number, b"x" * 5000))
    os.write(1, b"%d\\n" % number)
"""


def test_what_was_answered_is_in_the_file_after_sigkill_in_the_next_instant(directory: Path) -> None:
    for turn in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD.format(now=NOON + turn * DAY), str(directory)],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as child:  # fmt: skip
            assert child.stdout is not None
            seen = [int(child.stdout.readline()) for _ in range(100 + turn)]
            child.kill()
            seen += [int(number) for number in child.stdout.read().split(b"\n")[:-1]]
        (path,) = (path for path in files(directory) if path.name == f"2026-11-{23 + turn}.w0.jsonl")
        written = [int(row["request_id"]) for _, row in read(path) if row is not None]
        assert written[: len(seen)] == seen
        assert len(written) <= len(seen) + 1


# Lines of one turn.


def test_the_lines_of_a_turn_are_written_together_before_the_turn_writes(directory: Path) -> None:
    first: list[Callable[[], None]] = []
    bench = started(directory, before_writes=first.append)
    for number in range(3):
        bench.journal.record_line(line(number))
    assert (bench.ids(), len(first)) == ([], 1)
    first.pop()()
    assert bench.ids() == [0, 1, 2]
    bench.journal.record_line(line(3))
    assert len(first) == 1


def test_the_lines_of_a_turn_are_written_at_once_where_that_is_asked_for_and_none_twice(directory: Path) -> None:
    first: list[Callable[[], None]] = []
    bench = started(directory, before_writes=first.append)
    for number in range(2):
        bench.journal.record_line(line(number))
    bench.journal.flush()
    assert bench.ids() == [0, 1]
    bench.journal.record_line(line(2))
    for write in first:
        write()
    assert bench.ids() == [0, 1, 2]


def test_a_turn_that_stops_the_journal_loses_no_line(directory: Path) -> None:
    bench = started(directory, before_writes=lambda write: None)
    bench.journal.record_line(line(1))
    bench.journal.stop()
    assert (bench.ids(), bench.journal.lost) == ([1], 0)


def test_a_line_of_the_turn_goes_before_what_the_tick_finds_to_write(directory: Path) -> None:
    first: list[Callable[[], None]] = []
    bench = started(directory, before_writes=first.append)
    bench.journal.record_line(line(1))
    bench.second()
    assert bench.ids() == [1]
    first.pop()()
    assert bench.ids() == [1]


@pytest.mark.parametrize("room", range(0, 1200, 67))
def test_wherever_a_turns_write_is_cut_each_line_is_in_the_journal_once(directory: Path, room: int) -> None:
    first: list[Callable[[], None]] = []
    bench = started(directory, before_writes=first.append)
    for number in range(3):
        bench.journal.record_line(line(number, 400))
    with at_most(room):
        first.pop()()
        assert bench.journal.failing
        assert (directory / FIRST).stat().st_size == room
        bench.journal.record_line(line(3))
        first.pop()()
    bench.second()
    rows = [row and int(row["request_id"]) for path in files(directory) for _, row in read(path)]
    assert rows == [0, 1, 2, 3]
    assert (bench.journal.lost, bench.journal.waiting, bench.journal.failing) == (0, 0, False)


def test_of_a_turn_that_cannot_be_written_as_much_waits_as_may(directory: Path) -> None:
    first: list[Callable[[], None]] = []
    size = len(line(0, 400))
    bench = started(directory, before_writes=first.append, queue_bytes=2 * size)
    for number in range(4):
        bench.journal.record_line(line(number, 400))
    with at_most(0):
        first.pop()()
    assert (bench.journal.lost, bench.journal.waiting) == (2, 2 * size)
    bench.second()
    assert bench.ids() == [0, 1]


# Files.


def test_the_day_of_the_writing_names_the_file(directory: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(1))
    bench.now = NOON + DAY / 2
    bench.second()
    bench.journal.record_line(line(2))
    bench.now += 40 * DAY
    bench.second()
    bench.journal.record_line(line(3))
    found = {path.name: ids(path) for path in files(directory)}
    assert found == {FIRST: [1], "2026-11-24.w0.jsonl": [2], "2027-01-03.w0.jsonl": [3]}


def test_a_clock_that_is_set_back_finds_its_old_file_again(directory: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(1))
    for now in (NOON + DAY, NOON):
        bench.now = now
        bench.second()
        bench.journal.record_line(line(int(now)))
    assert ids(directory / FIRST) == [1, int(NOON)]


def test_a_file_that_has_its_size_is_gone_on_from_in_another(directory: Path) -> None:
    bench = started(directory, max_file_bytes=1000)
    for number in range(11):
        bench.journal.record_line(line(number, 400))
        bench.second()
    assert [path.name for path in files(directory)] == [FIRST, SECOND, THIRD, "2026-11-23.w0.3.jsonl"]
    assert bench.ids() == list(range(11))
    assert all(path.stat().st_size <= 1200 for path in files(directory))


def test_a_worker_that_is_started_again_goes_on_in_the_last_file(directory: Path) -> None:
    for number in range(4):
        bench = started(directory, max_file_bytes=1000)
        bench.journal.record_line(line(number, 600))
        bench.journal.stop()
    assert [(path.name, ids(path)) for path in files(directory)] == [(FIRST, [0, 1]), (SECOND, [2, 3])]


def test_a_line_that_a_killed_process_left_without_its_end_damages_no_later_one(directory: Path) -> None:
    directory.mkdir()
    torn = line(1) + line(2)[:-5]
    (directory / FIRST).write_bytes(torn)
    bench = started(directory)
    bench.journal.record_line(line(3))
    assert (directory / FIRST).read_bytes() == torn + b"\n" + line(3)


def test_a_second_process_of_the_same_index_writes_to_another_file(directory: Path) -> None:
    first, second = started(directory), started(directory)
    for number in range(3):
        first.journal.record_line(line(number))
        second.journal.record_line(line(10 + number))
    assert {path.name: ids(path) for path in files(directory)} == {FIRST: [0, 1, 2], SECOND: [10, 11, 12]}
    first.journal.stop()
    second.journal.stop()
    third = started(directory)
    third.journal.record_line(line(20))
    assert ids(directory / SECOND) == [10, 11, 12, 20]


def test_other_files_in_the_directory_are_left_alone(directory: Path) -> None:
    directory.mkdir()
    for name in ("2026-11-23.w0.x.jsonl", "notes.txt", "2026-11-23.w0.jsonl.gz"):
        (directory / name).write_text("mine")
    bench = started(directory)
    bench.journal.record_line(line(1))
    assert [path.name for path in files(directory)] == [FIRST]
    assert (directory / "notes.txt").read_text() == "mine"


def test_stopping_closes_every_file(directory: Path) -> None:
    for fsync in ("never", "second", "row"):
        bench = started(directory, fsync=fsync)
        bench.journal.record_line(line(1))
        bench.second(2)
        assert str(directory / FIRST) in open_below(directory)
        bench.journal.stop()
        bench.journal.stop()
        assert open_below(directory) == []


# Files that vanish.


def test_lines_that_went_into_a_removed_file_are_written_again(directory: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(0))
    bench.second()
    (directory / FIRST).unlink()
    bench.journal.record_line(line(1))
    bench.journal.record_line(line(2))
    with told() as texts:
        bench.second()
    bench.journal.record_line(line(3))
    assert bench.ids() == [1, 2, 3]
    assert FIRST in texts[0]
    assert not bench.journal.failing


def test_lines_in_a_file_that_was_moved_stay_there_alone(directory: Path, tmp_path: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(1))
    moved = (directory / FIRST).rename(tmp_path / "moved.jsonl")
    bench.journal.record_line(line(2))
    bench.second()
    bench.journal.record_line(line(3))
    assert (ids(moved), bench.ids()) == ([1, 2], [3])


def test_a_directory_that_was_removed_is_made_again_and_nothing_is_lost(directory: Path) -> None:
    bench = started(directory)
    (directory / FIRST).unlink()
    directory.rmdir()
    bench.journal.record_line(line(1))
    bench.second()
    bench.journal.record_line(line(2))
    assert bench.ids() == [1, 2]
    assert directory.stat().st_mode & 0o777 == 0o750


def test_rows_wait_while_the_state_directory_is_gone_and_are_written_when_it_is_back(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    bench = started(state / "ledger", on_ledger_failure="refuse")
    bench.journal.record_line(line(0))
    bench.second()
    state.rename(elsewhere)
    bench.second()
    for number in range(1, 4):
        bench.journal.record_line(line(number))
    bench.second()
    assert (bench.journal.accepting, bench.journal.waiting) == (False, 3 * len(line(1)))
    elsewhere.rename(state)
    with told() as texts:
        bench.second()
    assert (bench.journal.accepting, bench.journal.waiting, bench.journal.lost) == (True, 0, 0)
    assert bench.ids() == [0, 1, 2, 3]
    assert texts == ["warn: the journal is written again: 3 rows that waited are in it, 0 were lost"]


# Failures. A link to /dev/full stands in for a full disk: all writes to it fail with ENOSPC (null(4), full(4)).


def full(directory: Path) -> Callable[[], None]:
    """Make the journal's first file one that takes nothing; what this gives makes it a good one."""
    directory.mkdir(exist_ok=True)
    (directory / FIRST).symlink_to("/dev/full")
    return (directory / FIRST).unlink


@pytest.mark.parametrize("policy", ["serve", "refuse"])
def test_while_the_disk_is_full_rows_wait_in_order_and_new_requests_are_refused_only_where_the_operator_says_so(
    directory: Path, policy: str
) -> None:
    empty = full(directory)
    bench = started(directory, on_ledger_failure=policy)
    assert bench.journal.accepting
    for number in range(5):
        bench.journal.record_line(line(number))
        assert bench.journal.accepting == (policy == "serve")
        bench.second()
    assert bench.journal.failing
    empty()
    bench.second()
    bench.journal.record_line(line(5))
    assert bench.ids() == [0, 1, 2, 3, 4, 5]
    assert (bench.journal.accepting, bench.journal.failing, bench.journal.lost) == (True, False, 0)


def test_what_does_not_fit_the_queue_is_lost_counted_and_told_of(directory: Path) -> None:
    empty = full(directory)
    bench = started(directory, queue_bytes=1000)
    with told() as texts:
        for number in range(10):
            bench.journal.record_line(line(number, 300))
    assert (bench.journal.waiting, bench.journal.lost) == (900, 7)
    assert [text.partition(" (")[0] for text in texts] == [
        "error: the journal cannot be written, and rows wait",
        "error: ROWS ARE LOST: the journal cannot be written, and the queue_bytes of [ledger] are full",
    ]
    empty()
    with told() as texts:
        bench.second()
    assert bench.ids() == [0, 1, 2]
    assert texts[-1] == "warn: the journal is written again: 3 rows that waited are in it, 7 were lost"


def test_a_failure_that_lasts_is_told_of_once_a_minute(directory: Path) -> None:
    full(directory)
    bench = started(directory)
    with told() as texts:
        for number in range(150):
            bench.journal.record_line(line(number))
            bench.second()
    assert len(texts) == 3
    assert "No space left on device" in texts[0]
    assert str(directory) in texts[0]
    assert f"{100 * len(line(1))}" < texts[-1].split("; ")[1]


def test_what_still_waits_at_the_end_is_counted_as_lost(directory: Path) -> None:
    full(directory)
    bench = started(directory)
    bench.journal.record_line(line(1))
    bench.journal.record_line(line(2))
    with told() as texts:
        bench.journal.stop()
    assert bench.journal.lost == 2
    assert texts == ["error: the journal could not be written to its end: 2 rows that waited are lost, 2 in all"]
    bench.journal.record_line(line(3))
    assert bench.journal.lost == 3


def test_what_waits_is_written_at_the_end_where_that_is_possible_again(directory: Path) -> None:
    empty = full(directory)
    bench = started(directory)
    bench.journal.record_line(line(1))
    empty()
    bench.journal.stop()
    assert (bench.ids(), bench.journal.lost) == ([1], 0)


def test_a_line_of_which_a_part_was_written_is_whole_in_the_next_file_and_not_twice(directory: Path) -> None:
    bench = started(directory)
    with at_most(1000):
        for number in range(3):
            bench.journal.record_line(line(number, 400))
        assert bench.journal.failing
        assert (directory / FIRST).stat().st_size == 1000
        bench.second()
        assert not bench.journal.failing
        bench.journal.record_line(line(3, 400))
    rows = [row and int(row["request_id"]) for path in files(directory) for _, row in read(path)]
    assert rows == [0, 1, 2, 3]
    # Whoever comes next leaves the torn line where it is.
    bench.journal.stop()
    again = started(directory)
    again.journal.record_line(line(4))
    assert ids(directory / SECOND) == [2, 3, 4]


@pytest.mark.parametrize("size", range(1, 60))
def test_wherever_a_line_is_cut_it_is_in_the_journal_once(directory: Path, size: int) -> None:
    bench = started(directory, max_file_bytes=10_000)
    bench.journal.record_line(line(0, 59))
    with at_most(59 + size):
        bench.journal.record_line(line(1, 60))
    bench.second()
    bench.journal.record_line(line(2))
    assert [row and int(row["request_id"]) for path in files(directory) for _, row in read(path)] == [0, 1, 2]


def test_files_that_nothing_can_be_written_to_do_not_become_many(directory: Path) -> None:
    bench = started(directory)
    with at_most(0):
        for number in range(5):
            bench.journal.record_line(line(number))
            bench.second()
    bench.second()
    assert bench.ids() == [0, 1, 2, 3, 4]
    assert len(files(directory)) <= 2


@needs_root
def test_a_real_disk_that_is_full_and_then_not_costs_no_row_and_tears_none(small_disk: Path) -> None:
    bench = started(small_disk / "ledger")
    number = 0
    while not bench.journal.failing:
        bench.journal.record_line(line(number, 1000))
        number += 1
    assert number < 100
    assert (small_disk / "ledger" / FIRST).stat().st_size % 1000, "the last write came back short"
    for _ in range(3):
        bench.journal.record_line(line(number, 1000))
        bench.second()
        number += 1
    assert bench.journal.failing
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    bench.second()
    bench.journal.record_line(line(number))
    assert bench.ids() == list(range(number + 1))
    assert bench.journal.lost == 0
    bench.journal.stop()


@needs_root
def test_a_line_that_lacks_its_newline_alone_is_not_there_twice_when_its_file_had_to_be_left(small_disk: Path) -> None:
    state, elsewhere, filler = small_disk / "state", small_disk / "elsewhere", small_disk / "filler"
    state.mkdir()
    bench = started(state / "ledger")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 4096)
    bench.journal.record_line(line(1, 4097))
    assert (state / "ledger" / FIRST).read_bytes() == line(1, 4097)[:-1]
    state.rename(elsewhere)
    bench.second()
    elsewhere.rename(state)
    filler.unlink()
    bench.second()
    assert not bench.journal.failing
    bench.journal.stop()
    started(state / "ledger").journal.record_line(line(2))
    found = [row and int(row["request_id"]) for path in files(state / "ledger") for _, row in read(path)]
    assert found == [1, 2]


@needs_root
def test_a_disk_that_becomes_read_only_is_waited_for(small_disk: Path) -> None:
    bench = started(small_disk / "ledger")
    bench.journal.record_line(line(0))
    bench.journal.stop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    bench = started(small_disk / "ledger", on_ledger_failure="refuse")
    assert not bench.journal.accepting
    bench.journal.record_line(line(1))
    bench.second()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    bench.second()
    assert (bench.ids(), bench.journal.accepting) == ([0, 1], True)
    bench.journal.stop()


def test_a_day_whose_file_cannot_be_begun_goes_on_in_the_old_one(directory: Path) -> None:
    bench = started(directory)
    bench.journal.record_line(line(1))
    (directory / "2026-11-24.w0.jsonl").mkdir()
    bench.now += DAY
    with told() as texts:
        bench.second(3)
    bench.journal.record_line(line(2))
    assert ids(directory / FIRST) == [1, 2]
    assert len(texts) == 1
    assert not bench.journal.failing
    (directory / "2026-11-24.w0.jsonl").rmdir()
    bench.second()
    bench.journal.record_line(line(3))
    assert ids(directory / "2026-11-24.w0.jsonl") == [3]


# Syncs. What cannot be synced, such as /dev/null, fails when it is (fsync(2): EINVAL): so it shows whether it was.


def test_the_policy_row_syncs_each_row(directory: Path) -> None:
    directory.mkdir()
    (directory / FIRST).symlink_to("/dev/null")
    for fsync, synced in (("row", True), ("never", False), ("second", False)):
        bench = started(directory, fsync=fsync)
        with told() as texts:
            bench.journal.record_line(line(1))
        assert ["cannot be synced" in text for text in texts] == [True] * synced


def test_the_policy_second_syncs_in_a_thread_once_a_second_where_there_is_something_new(directory: Path) -> None:
    jobs: list[tuple[Callable[[], None], Deferred[None]]] = []

    def defer(job: Callable[[], None]) -> Deferred[None]:
        jobs.append((job, Deferred()))
        return jobs[-1][1]

    def carry_out() -> None:
        job, done = jobs.pop()
        job()
        done.callback(None)

    bench = started(directory, defer=defer, fsync="second")
    bench.second()
    carry_out()
    bench.second()
    assert not jobs
    for number in range(3):
        bench.journal.record_line(line(number))
    assert not jobs
    bench.second()
    assert len(jobs) == 1
    bench.journal.record_line(line(3))
    bench.second(3)
    assert len(jobs) == 1, "one sync at a time"
    carry_out()
    bench.second()
    assert len(jobs) == 1
    carry_out()
    bench.second(3)
    assert not jobs
    # The file that a new day ends is synced, too, although it is closed by then.
    bench.journal.record_line(line(4))
    bench.now += DAY
    bench.second()
    while jobs:
        carry_out()
    bench.journal.stop()
    assert not jobs
    assert open_below(directory) == []


def test_a_file_that_is_left_while_it_is_synced_is_closed_after_that(directory: Path) -> None:
    jobs: list[tuple[Callable[[], None], Deferred[None]]] = []

    def defer(job: Callable[[], None]) -> Deferred[None]:
        jobs.append((job, Deferred()))
        return jobs[-1][1]

    bench = started(directory, defer=defer, fsync="second")
    bench.journal.record_line(line(1))
    bench.second()
    bench.now += DAY
    bench.second()
    assert len(open_below(directory)) == 2
    for _ in range(3):
        while jobs:
            job, done = jobs.pop(0)
            job()
            done.callback(None)
        assert len(open_below(directory)) == 1
        bench.second()
    bench.journal.stop()
    assert len(jobs) <= 1


def test_where_no_descriptor_is_left_rows_are_written_and_synced(directory: Path) -> None:
    bench = started(directory, fsync="second")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with told() as texts:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            for number in range(3):
                bench.journal.record_line(line(number))
                bench.second()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert texts == []
    bench.journal.stop()
    assert ids(directory / FIRST) == [0, 1, 2]


@pytest.mark.parametrize("fsync", ["second", "row"])
def test_a_sync_that_fails_is_told_of_and_tried_again(directory: Path, fsync: str) -> None:
    directory.mkdir()
    (directory / FIRST).symlink_to("/dev/null")
    bench = started(directory, fsync=fsync, on_ledger_failure="refuse")
    with told() as texts:
        for number in range(100):
            bench.journal.record_line(line(number))
            bench.second()
    assert len(texts) == 2
    assert "rows may be lost" in texts[0]
    assert bench.journal.accepting
