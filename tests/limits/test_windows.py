from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.limits.windows import (
    BUCKETS,
    CELLS,
    GRAIN,
    SPAN,
    LateError,
    add,
    advance,
    bucket_of,
    ends_at,
    frees_at,
    live,
    sound,
    take_back,
)

WORKERS = 3
COLUMNS = [worker * CELLS for worker in range(WORKERS)]

steps = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 5), st.floats(57, 63), st.floats(0, 150)),  # seconds since the last one
        st.integers(0, WORKERS - 1),
        st.integers(1, 40),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 60))
def test_no_60_seconds_hold_more_than_the_limit_wherever_they_begin(
    steps: list[tuple[float, int, int]], limit: int
) -> None:
    cells, now = [0] * CELLS * WORKERS, 1000.0
    admitted: list[tuple[float, int]] = []
    for wait, worker, amount in steps:
        now += wait
        if sum(live(cells, at, bucket_of(now)) for at in COLUMNS) + amount <= limit:
            add(cells, COLUMNS[worker], bucket_of(now), amount)
            admitted.append((now, amount))
    for begin, _ in admitted:
        assert sum(amount for when, amount in admitted if begin <= when <= begin + SPAN) <= limit


@given(steps)
def test_an_amount_counts_for_60_seconds_at_least_and_for_62_at_most(steps: list[tuple[float, int, int]]) -> None:
    cells, now = [0] * CELLS * WORKERS, 1000.0
    log: list[tuple[float, int]] = []
    for wait, worker, amount in steps:
        now += wait
        add(cells, COLUMNS[worker], bucket_of(now), amount)
        log.append((now, amount))
        for later in (now, now + 1.9, now + 30, now + 59.9, now + 75):
            counted = sum(live(cells, at, bucket_of(later)) for at in COLUMNS)
            assert counted >= sum(amount for when, amount in log if later - when <= SPAN)
            assert counted <= sum(amount for when, amount in log if later - when < SPAN + GRAIN)


@given(steps, st.data())
def test_what_is_taken_back_counts_no_more_and_nothing_else_changes(
    steps: list[tuple[float, int, int]], data: st.DataObject
) -> None:
    cells, now = [0] * CELLS * WORKERS, 1000.0
    log: list[list[Any]] = []
    for wait, worker, amount in steps:
        now += wait
        bucket = bucket_of(now)
        add(cells, COLUMNS[worker], bucket, amount)
        log.append([bucket, worker, amount])
        entry = data.draw(st.sampled_from(log))
        less = data.draw(st.integers(0, entry[2]))
        take_back(cells, COLUMNS[entry[1]], entry[0], less)
        entry[2] -= less
        expected = sum(amount for then, _, amount in log if bucket - then < BUCKETS)
        assert sum(live(cells, at, bucket) for at in COLUMNS) == expected


@given(steps, st.integers(1, 2000))
def test_a_window_frees_what_is_asked_when_it_says_and_not_before(
    steps: list[tuple[float, int, int]], excess: int
) -> None:
    cells, now = [0] * CELLS * WORKERS, 1000.0
    for wait, worker, amount in steps:
        now += wait
        add(cells, COLUMNS[worker], bucket_of(now), amount)
    counted = sum(live(cells, at, bucket_of(now)) for at in COLUMNS)
    free = frees_at(cells, COLUMNS, bucket_of(now), excess)
    if excess > counted:
        assert free is None
        return
    assert free is not None

    def left(when: float) -> int:
        return sum(live(cells, at, bucket_of(when)) for at in COLUMNS)

    assert left(free) <= counted - excess
    assert left(free - 0.001) > counted - excess


class Recorded(list[int]):
    """Cells that keep what they were after each write."""

    def __init__(self, cells: list[int]) -> None:
        super().__init__(cells)
        self.states = [list(cells)]

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(place, value)
        self.states.append(list(self))


class Moving:
    """Cells that a reader reads while their writer goes on: a state further, or more, at each read."""

    def __init__(self, states: list[list[int]], hurry: list[int]) -> None:
        self._states = states
        self._hurry = iter(hurry)
        self.at = 0

    def __getitem__(self, place: int) -> int:
        value = self._states[self.at][place]
        self.at = min(self.at + next(self._hurry, 0), len(self._states) - 1)
        return value


writes = st.lists(st.tuples(st.integers(0, 35), st.integers(1, 9)), max_size=6)


@given(writes, writes, st.integers(0, 35), st.lists(st.integers(0, 120), max_size=20), st.integers(0, 100))
def test_a_reader_at_any_moment_of_others_writes_sees_what_was_there_or_more(
    past: list[tuple[int, int]], during: list[tuple[int, int]], behind: int, hurry: list[int], start: int
) -> None:
    cells, bucket = [0] * CELLS, 100
    log = []
    for lag, amount in past:
        bucket += lag
        add(cells, 0, bucket, amount)
        log.append((0, bucket, amount))
    writer = Recorded(cells)
    for lag, amount in during:
        bucket += lag
        add(writer, 0, bucket, amount)
        log.append((len(writer.states) - 1, bucket, amount))
    bucket += behind
    reader = Moving(writer.states, hurry)
    began = reader.at = min(start, len(writer.states) - 1)
    seen = live(reader, 0, bucket)  # type: ignore[arg-type]
    assert seen >= sum(amount for done, then, amount in log if done <= began and bucket - then < BUCKETS)


def test_a_reader_that_was_stopped_while_a_writer_went_on_for_two_buckets_looks_again() -> None:
    cells = [0] * CELLS
    add(cells, 0, 100, 1)
    add(cells, 0, 120, 4)
    writer = Recorded(cells)
    add(writer, 0, 131, 9)
    add(writer, 0, 132, 1)
    for stopped_at in range(len(writer.states)):
        for reads in range(20):
            reader = Moving(writer.states, [0] * reads + [stopped_at, len(writer.states)])
            assert live(reader, 0, 132) >= 4  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(0, 60),
    st.integers(0, 100),
)
def test_a_writer_killed_between_two_steps_leaves_no_window_that_gives_more_or_never_recovers(
    past: list[tuple[int, int]], wait: int, killed_after: int
) -> None:
    cells, bucket = [0] * CELLS, 100
    log = []
    for lag, amount in past:
        bucket += lag
        add(cells, 0, bucket, amount)
        log.append((bucket, amount))
    writer = Recorded(cells)
    add(writer, 0, bucket + wait, 5)
    left = writer.states[min(killed_after, len(writer.states) - 1)]
    for later in range(bucket + wait, bucket + wait + 2 * BUCKETS):  # the next process goes on with these cells
        advance(left, 0, later)
        assert live(left, 0, later) >= sum(amount for then, amount in log if later - then < BUCKETS)
    assert live(left, 0, bucket + wait + 2 * BUCKETS) == 0


def test_a_window_that_is_ahead_of_the_reader_s_clock_is_to_be_read_anew() -> None:
    cells = [0] * CELLS
    add(cells, 0, 50, 1)
    with pytest.raises(LateError):
        live(cells, 0, 49)


def test_a_window_that_cannot_be_is_known() -> None:
    cells = [0] * CELLS
    assert sound(cells, 0, 100)
    add(cells, 0, 90, 3)
    add(cells, 0, 95, 3)
    assert sound(cells, 0, 100)
    assert not sound(cells, 0, 94)  # of the future
    assert not sound([*cells[:10], -1, *cells[11:]], 0, 100)
    assert not sound([cells[0], 1, *cells[2:]], 0, 100)  # less in all than in one bucket


def test_a_bucket_ends_62_seconds_after_it_began() -> None:
    assert ends_at(bucket_of(1000.0)) == 1062
    assert ends_at(bucket_of(1001.999)) == 1062
