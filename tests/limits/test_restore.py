from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from flowstack.config.settings import Settings
from flowstack.errors import BudgetExceeded, FlowstackError, RateLimitExceeded
from flowstack.keys import Key
from flowstack.limits.books import Books, open_books
from flowstack.limits.counters import (
    CELL,
    COUNT,
    FIRST_SLOTS,
    HEAD,
    MAGIC,
    Counters,
    CountersError,
    Layout,
    checksum,
    tag_of,
)
from flowstack.limits.look import Look
from flowstack.limits.money import NANO, period_at
from flowstack.limits.restore import Now, carry, open_counters
from flowstack.limits.shared import SharedLimiter
from flowstack.limits.windows import CELLS as WINDOW
from tests.files import state_of

from .lab import NOON, Clock, Lab, group, key, member, reserve, row, usd, used

MONOTONIC = 5000.0
BOOT = 77
RICH = key("rich", budget=usd("100"))
POOR = key("poor", budget=usd("1"))
NEW = key("new", budget=usd("100"))


def opened(directory: Path, workers: int = 2, wall: float = NOON, boot: int = BOOT, now: float = MONOTONIC) -> Lab:
    """What a start makes of a directory; the lock of an earlier one in this process is let go of before."""
    (directory / "lock").unlink(missing_ok=True)
    counters = open_counters(directory, workers, Clock(wall), Clock(now), boot)
    lab = Lab(counters=counters)
    lab.wall.now, lab.monotonic.now = wall, now
    return lab


def spend(lab: Lab, limited: Any, cost: float, worker: int = 0) -> None:
    held = reserve(lab.limiters[worker], limited)
    held.claim(10, cost)
    lab.limiters[worker].settle(held, used(10, cost))


def spent(lab: Lab, limited: Any) -> float:
    limiter = lab.limiters[0]
    plan = limiter._plans.make(limited, "openai")
    assert plan.money is not None
    look = Look(limiter.counters, lab.wall, lab.monotonic)
    return look.spent(plan.money.columns, look.period(plan).label) / 1e9


def set_aside(directory: Path) -> list[Path]:
    return sorted(directory.glob("counters.damaged-*"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "limits"


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_money_survives_a_restart_with_as_many_workers_or_others(directory: Path, workers: int) -> None:
    before = opened(directory, 2)
    spend(before, RICH, 3.0, 0)
    spend(before, RICH, 4.5, 1)
    spend(before, POOR, 1.0, 1)
    after = opened(directory, workers)
    assert spent(after, RICH) == 7.5
    with pytest.raises(BudgetExceeded):
        reserve(after.limiters[-1], POOR)
    spend(after, RICH, 0.5, workers - 1)
    assert spent(opened(directory, 3), RICH) == 8.0
    assert not set_aside(directory)


def test_a_reservation_that_was_not_settled_before_the_restart_stays_charged(directory: Path) -> None:
    before = opened(directory)
    reserve(before.limiters[1], RICH, tokens=10, cost=6.0)
    assert spent(opened(directory), RICH) == 6.0


def test_money_survives_a_kill_in_the_next_instant(directory: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.limits.test_restore import RICH, opened, spend, reserve
lab = opened(Path({str(directory)!r}))
spend(lab, RICH, 2.5)
reserve(lab.limiters[0], RICH, tokens=10, cost=0.25)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    assert spent(opened(directory), RICH) == 2.75
    assert not set_aside(directory)


class Dying:
    """The cells of a process that dies before one of its stores: that one, and none after it, is done."""

    def __init__(self, cells: memoryview[int], stores: int) -> None:
        self.cells = cells
        self._left = stores
        self.dead = False

    def __getitem__(self, at: int) -> int:
        return self.cells[at]

    def __len__(self) -> int:
        return len(self.cells)

    def __setitem__(self, at: int, value: int) -> None:
        self.dead = self._left == 0
        if self.dead:
            raise Killed
        self._left -= 1
        self.cells[at] = value


class Killed(Exception):
    pass


Step = tuple[Callable[[], object], float, float]
"""What a process does; what is charged after it, in US dollars; and what may be, at most, where it dies in it."""


def requests(lab: Lab, limited: Key = RICH, spent: float = 1.0) -> Iterator[Step]:
    held: list[Any] = []
    for cost in (2.0, 0.5, 4.0):
        spent += cost
        take = partial(reserve, lab.limiters[0], limited, tokens=10, cost=cost)
        yield lambda take=take: held.append(take()), spent, spent
        spent += 0.25
        yield partial(lambda cost: lab.limiters[0].settle(held.pop(), used(10, cost + 0.25)), cost), spent, spent


def in_the_next_bucket(lab: Lab) -> Iterator[Step]:
    lab.go_on(30)
    yield from requests(lab)


def in_the_next_month(lab: Lab) -> Iterator[Step]:
    lab.go_on(30 * 86_400)
    yield from requests(lab, spent=0.0)


def when_the_clock_was_set_back(lab: Lab) -> Iterator[Step]:
    lab.wall.now -= 30 * 86_400
    yield from requests(lab)


def of_a_new_key(lab: Lab) -> Iterator[Step]:
    yield from requests(lab, NEW, 0.0)


def that_nobody_expected(lab: Lab) -> Iterator[Step]:
    held = reserve(lab.limiters[0], RICH)
    yield lambda: lab.limiters[0].settle(held, used(10, 3.0)), 4.0, 4.0


def refused(lab: Lab) -> Iterator[Step]:
    def ask() -> None:
        with pytest.raises(BudgetExceeded):
            reserve(lab.limiters[0], RICH, tokens=10, cost=99.5)

    yield ask, 1.0, 100.5


def refused_to_the_group(lab: Lab) -> Iterator[Step]:
    poor = member("rich", group("g", budget=usd("1")), budget=usd("100"))

    def ask() -> None:
        with pytest.raises(BudgetExceeded):
            reserve(lab.limiters[0], poor, tokens=10, cost=2.0)

    yield ask, 1.0, 3.0


def the_little_that_is_left(lab: Lab) -> Iterator[Step]:
    limiter = lab.limiters[0]
    yield lambda: limiter.reserve(limiter.plan(RICH, "openai"), 10, 150.0, 2.0), 151.0, 151.0


def known_later(lab: Lab) -> Iterator[Step]:
    held = reserve(lab.limiters[1], RICH, tokens=10, cost=2.0)
    kept = held.kept()
    assert kept is not None
    yield lambda: None, 3.0, 3.0
    yield lambda: lab.limiters[0].settle_later(kept, used(10, 7.0)), 8.0, 8.0


def reset_by_the_operator(lab: Lab) -> Iterator[Step]:
    books = Books(lab.limiters[0].counters, lab.wall, lab.monotonic)

    def reset() -> None:
        books.reset(books.standings(RICH.id, RICH, Settings())[0])

    yield reset, 0.0, 1.0
    lab.go_on(30 * 86_400)
    spend(lab, RICH, 2.0, 1)
    yield lambda: None, 2.0, 2.0
    yield reset, 0.0, 2.0


@pytest.mark.parametrize(
    "does",
    [requests, in_the_next_bucket, in_the_next_month, when_the_clock_was_set_back, of_a_new_key, that_nobody_expected,
     refused, refused_to_the_group, the_little_that_is_left, known_later, reset_by_the_operator],
)  # fmt: skip
def test_a_kill_before_any_store_loses_no_charge_and_damages_nothing(does: Callable[[Lab], Iterator[Step]]) -> None:
    def lives_on(stores: int) -> bool:
        lab = Lab(2)
        spend(lab, RICH, 1.0)
        cells = Dying(lab.limiters[0].counters.cells, stores)
        lab.limiters[0].counters.cells = cells  # type: ignore[assignment]
        sure = 0.0 if does in (in_the_next_month, of_a_new_key) else 1.0
        least = most = sure
        with suppress(Killed):
            for step, after, strictest in does(lab):
                least, most = min(sure, after), max(sure, after, strictest)
                step()
                if cells.dead:
                    break  # a settlement tells nobody that it failed
                sure = least = most = after
        lab.limiters[0].counters.cells = cells.cells
        after_it = Lab(counters=open_counters(None, 3))
        after_it.wall.now = lab.wall.now
        found = carry(lab.counters.cells, after_it.counters, Now(0, lab.wall.now), 0)
        assert found is not None and found.damaged == 0, stores
        assert least - 1e-9 <= spent(after_it, NEW if does is of_a_new_key else RICH) <= most + 1e-9, stores
        return not cells.dead

    stores = 0
    while not lives_on(stores):
        stores += 1
    assert stores > 2


def test_what_the_last_version_kept_of_money_and_windows_is_carried_over(directory: Path) -> None:
    old = Layout(2, 1)
    cells = memoryview(bytearray((HEAD + FIRST_SLOTS * old.cells) * CELL)).cast("q")
    head = (MAGIC, 1, 2, BOOT)
    cells[: len(head)] = memoryview(struct.pack("4q", *head)).cast("q")
    cells[len(head)], cells[COUNT] = checksum(*head), 1
    tag, label = tag_of("rich\0"), period_at("month", NOON).label
    cells[HEAD], cells[HEAD + 1] = tag, checksum(tag)
    for worker, (sequence, amount) in enumerate(((5, 3 * NANO), (8, 4 * NANO))):
        record = HEAD + old.money + worker * 14
        cells[record], cells[record + 1], cells[record + 2], cells[record + 3] = label, label, amount, sequence
        copy = (sequence, label, label, amount)
        place = record + 4 + (sequence & 1) * 5
        cells[place : place + 5] = memoryview(struct.pack("5q", *copy, checksum(tag, *copy))).cast("q")
    directory.mkdir()
    (directory / "counters").write_bytes(cells.tobytes())
    with pytest.raises(CountersError, match="are those of an earlier version"), open_books(directory.parent):
        pass
    lab = opened(directory)
    assert spent(lab, RICH) == 7.0
    assert not set_aside(directory)
    spend(lab, RICH, 1.0)
    assert spent(opened(directory), RICH) == 8.0


def test_windows_survive_a_restart_of_the_service_but_not_of_the_machine_and_nothing_is_under_way(
    directory: Path,
) -> None:
    limited = key("k", rpm=2, max_parallel=2)
    before = opened(directory)
    reserve(before.limiters[0], limited), reserve(before.limiters[1], limited)
    after = opened(directory, now=MONOTONIC + 30)
    with pytest.raises(RateLimitExceeded):
        reserve(after.limiters[1], limited)
    after.go_on(32)
    reserve(after.limiters[0], limited), reserve(after.limiters[1], limited)
    rebooted = opened(directory, boot=BOOT + 1, now=MONOTONIC + 63)
    reserve(rebooted.limiters[0], limited), reserve(rebooted.limiters[1], limited)


def test_windows_are_dropped_where_the_boot_is_not_known(directory: Path) -> None:
    limited = key("k", rpm=1)
    reserve(opened(directory, boot=0).limiters[0], limited)
    reserve(opened(directory, boot=0).limiters[0], limited)


def test_a_period_that_ended_meanwhile_begins_at_nothing_and_leaves_the_table(directory: Path) -> None:
    spend(opened(directory), RICH, 3.0)
    after = opened(directory, wall=NOON + 40 * 86_400)
    assert after.counters.count == 0
    assert spent(after, RICH) == 0.0


def test_a_start_with_a_clock_that_is_behind_opens_no_budget(directory: Path) -> None:
    spend(opened(directory), POOR, 1.0)
    early = opened(directory, wall=0.0)
    with pytest.raises(BudgetExceeded):
        reserve(early.limiters[0], POOR)
    with pytest.raises(BudgetExceeded):
        reserve(opened(directory).limiters[0], POOR)


def test_a_budget_whose_period_was_changed_begins_at_nothing_also_after_a_restart(directory: Path) -> None:
    before = opened(directory)
    spend(before, key("k", budget=usd("9", "month")), 5.0, 0)
    spend(before, key("k", budget=usd("9", "month")), 2.0, 1)
    before.go_on(10)
    daily = key("k", budget=usd("9", "day"))
    spend(before, daily, 1.5, 0)
    assert spent(before, daily) == 1.5
    assert spent(opened(directory), daily) == 1.5
    assert spent(opened(directory, 1), daily) == 1.5


def test_the_table_holds_again_only_what_still_counts(directory: Path) -> None:
    before = opened(directory)
    for number in range(300):
        before.limiters[0].settle(reserve(before.limiters[0], key(f"k{number}", rpm=5)), row())
    spend(before, RICH, 1.0)
    assert before.counters.count == 301
    assert opened(directory, now=MONOTONIC + 1).counters.count == 301
    assert opened(directory, now=MONOTONIC + 100).counters.count == 1


def test_two_services_cannot_share_a_directory(directory: Path) -> None:
    first = open_counters(directory, 1)
    with pytest.raises(CountersError, match=rf"in use by another process: .* held by process {os.getpid()} \("):
        open_counters(directory, 1)
    assert first.count == 0


@pytest.mark.parametrize("name", ["counters", "counters.new", "lock"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_link_or_fifo_among_the_counters_files_is_neither_followed_nor_waited_for(
    directory: Path, name: str, kind: str
) -> None:
    directory.mkdir(exist_ok=True)
    target = directory.with_name("precious")
    target.write_bytes(b"precious" * 10_000)
    before = state_of(target)
    if kind == "link":
        (directory / name).symlink_to(target)
    else:
        os.mkfifo(directory / name)
    if name == "counters.new":  # what a killed start left makes room
        assert open_counters(directory, 1).count == 0
    else:
        with pytest.raises(CountersError, match=rf"a (symbolic )?{kind}, no regular file"):
            open_counters(directory, 1)
    assert state_of(target) == before


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "limits").write_text("a file")
    with pytest.raises(CountersError, match="limits' counters cannot be kept"):
        open_counters(tmp_path / "limits", 1)


def test_no_more_workers_than_there_can_be() -> None:
    with pytest.raises(CountersError, match="expected 1 to"):
        open_counters(None, 5000)


def test_only_the_service_s_user_can_read_the_file(directory: Path) -> None:
    opened(directory)
    assert (directory / "counters").stat().st_mode & 0o777 == 0o600


# Damage.

SLOT = Layout(2).cells * CELL


@pytest.fixture
def sound_file(directory: Path) -> Path:
    """A file with two budgets, of which the rich one's key is in the first slot."""
    lab = opened(directory)
    spend(lab, RICH, 1.0, 0)
    spend(lab, RICH, 2.0, 1)
    spend(lab, RICH, 3.0, 0)
    spend(lab, POOR, 1.0, 1)
    return directory / "counters"


@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 100, HEAD * CELL - 1, HEAD * CELL, HEAD * CELL + 3, HEAD * CELL + SLOT - 8]
)
def test_a_file_cut_short_is_set_aside_and_the_service_starts(
    sound_file: Path, logged: list[LogEvent], size: int
) -> None:
    content = sound_file.read_bytes()[:size]
    sound_file.write_bytes(content)
    lab = opened(sound_file.parent)
    assert [path.read_bytes() for path in set_aside(sound_file.parent)] == [content]
    assert spent(lab, RICH) == 0.0
    assert any(event["log_level"] is LogLevel.critical for event in logged)
    spend(lab, RICH, 1.0)
    assert spent(opened(sound_file.parent), RICH) == 1.0
    assert len(set_aside(sound_file.parent)) == 1


@pytest.mark.parametrize("slots", [1, 2, 64, 70])
def test_a_file_that_ends_between_two_slots_is_known_to_be_cut_short(directory: Path, slots: int) -> None:
    lab = opened(directory)
    for number in range(100):
        spend(lab, key(f"k{number}", budget=usd("9")), 1.0)
    os.truncate(directory / "counters", HEAD * CELL + slots * SLOT)
    assert spent(opened(directory), key("k0", budget=usd("9"))) == 1.0
    assert len(set_aside(directory)) == 1


def test_a_block_of_zeros_amid_the_file_is_damage(sound_file: Path) -> None:
    with open(sound_file, "r+b") as file:
        file.seek(HEAD * CELL)
        file.write(bytes(SLOT))
    lab = opened(sound_file.parent)
    assert (spent(lab, RICH), spent(lab, POOR)) == (0.0, 1.0)
    assert len(set_aside(sound_file.parent)) == 1


def test_of_a_file_cut_short_the_whole_slots_are_used(sound_file: Path) -> None:
    os.truncate(sound_file, HEAD * CELL + SLOT + 40)
    lab = opened(sound_file.parent)
    assert (spent(lab, RICH), spent(lab, POOR)) == (6.0, 0.0)
    assert len(set_aside(sound_file.parent)) == 1


@given(content=st.binary(max_size=3 * HEAD * CELL))
def test_a_file_of_random_bytes_is_set_aside(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("limits")
    (directory / "counters").write_bytes(content)
    lab = opened(directory)
    assert lab.counters.count == 0
    assert [path.read_bytes() for path in set_aside(directory)] == [content]


def patch(path: Path, cell: int, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(cell * CELL)
        file.write(value.to_bytes(CELL, sys.byteorder))


def test_another_version_s_file_is_set_aside(sound_file: Path) -> None:
    patch(sound_file, 1, 3)
    assert spent(opened(sound_file.parent), RICH) == 0.0
    assert len(set_aside(sound_file.parent)) == 1


def test_each_damaged_file_is_kept_under_its_own_name(sound_file: Path) -> None:
    for number in range(1, 4):
        patch(sound_file, 1, 3)
        opened(sound_file.parent)
        assert len(set_aside(sound_file.parent)) == number


@given(data=st.data())
def test_a_flipped_bit_never_gives_money_that_was_not_charged_and_money_lost_is_never_silent(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("limits")
    lab = opened(directory)
    for cost, worker in ((1.0, 0), (2.0, 1), (3.0, 0)):
        spend(lab, RICH, cost, worker)
    spend(lab, POOR, 1.0, 1)
    limited = key("k", rpm=5, tpm=50)
    reserve(lab.limiters[0], limited, tokens=5)
    path = directory / "counters"
    content = bytearray(path.read_bytes())
    layout = Layout(2)
    slots = HEAD + layout.cells * data.draw(st.integers(0, 2))
    cell = data.draw(st.one_of(st.integers(0, 8), st.integers(slots, slots + layout.cells - 1)))
    content[cell * CELL + data.draw(st.integers(0, 7))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    after = opened(directory)
    found = (spent(after, RICH), spent(after, POOR))
    assert found[0] <= 6.0 and found[1] <= 1.0
    if found != (6.0, 1.0):
        assert set_aside(directory)
    if cell >= HEAD:  # damage in one slot costs that slot alone
        other = POOR if slots == HEAD else RICH
        assert spent(after, other) == (1.0 if other is POOR else 6.0)
    after.go_on(62)  # and whatever a window holds, it is over when it ends
    reserve(after.limiters[0], limited, tokens=5)


def test_a_first_claim_that_was_refused_is_no_damage(directory: Path) -> None:
    with pytest.raises(BudgetExceeded):
        reserve(opened(directory).limiters[0], POOR, tokens=5, cost=2.0)
    assert spent(opened(directory), POOR) == 0.0
    assert not set_aside(directory)


def test_a_full_disk_refuses_new_keys_and_counts_on_for_the_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = opened(directory, 1)
    spend(lab, RICH, 1.0)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FlowstackError, match="no space"):
        for number in range(100):
            reserve(lab.limiters[0], key(f"k{number}", rpm=5))
    spend(lab, RICH, 1.0)
    assert spent(lab, RICH) == 2.0


def test_a_worker_is_told_apart_from_one_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    with open(tmp_path / "file", "rb") as file, pytest.raises(CountersError, match="holds no counters"):
        Counters.attach(file.fileno(), 0)
    with pytest.raises(CountersError, match="holds no counters"):
        Counters.attach(open_counters(None, 2).fileno(), 2)
    with pytest.raises(CountersError, match="holds no counters"):
        Counters.attach(os.open("/dev/null", os.O_RDONLY), 0)


def test_a_parent_that_never_served_can_free_what_a_dead_worker_had_under_way() -> None:
    parent = open_counters(None, 2)
    limiters = [SharedLimiter(Counters.attach(parent.fileno(), worker), Settings()) for worker in range(2)]
    limited = [key(f"k{number}", max_parallel=1, tpm=10) for number in range(100)]
    for each in limited:
        reserve(limiters[1], each, tokens=4)
    parent.clear(1)
    for each in limited:
        held = reserve(limiters[0], each)
        with pytest.raises(RateLimitExceeded):
            held.claim(7, None)  # the dead worker's tokens stay charged
        held.claim(6, None)
    assert WINDOW * parent.layout.workers < parent.layout.cells
