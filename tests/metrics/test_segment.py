"""The memory that a worker counts in and its parent reads."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from flowstack.metrics.segment import CELLS, CELLS_AT, DIRECTORY_AT, SIZE, Segment, Slot


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create()
    yield segment
    segment.close()


def raw(segment: Segment) -> Any:
    """The same memory, byte by byte."""
    import mmap

    return mmap.mmap(segment.fileno(), SIZE)


def test_what_one_mapping_writes_another_reads(segment: Segment) -> None:
    slot = segment.add("requests", ("openai", "200"), 3)
    assert slot == Slot("requests", ("openai", "200"), 0, 3)
    segment.cells[slot.start + 1] += 2.5
    other = Segment.attach(segment.fileno())
    assert other.slots() == [slot]
    assert other.values(slot) == [0.0, 2.5, 0.0]
    other.close()
    assert segment.values(slot) == [0.0, 2.5, 0.0]


def test_slots_never_share_a_cell_and_never_move(segment: Segment) -> None:
    taken = [segment.add("kind", (str(number),), 1 + number % 5) for number in range(500)]
    assert segment.slots() == taken
    used = [cell for slot in segment.slots() for cell in range(slot.start, slot.start + slot.size)]
    assert len(used) == len(set(used))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_text_comes_back_as_it_was(labels: list[str]) -> None:
    segment = Segment.create()
    segment.add("kind", tuple(labels), 1)
    assert [slot.labels for slot in segment.slots()] == [tuple(labels)]
    segment.close()


def test_a_full_segment_says_so_and_keeps_what_it_has(segment: Segment) -> None:
    assert segment.add("big", (), CELLS - 1) is not None
    assert segment.add("two", (), 2) is None
    assert segment.add("one", (), 1) is not None
    assert segment.add("none", (), 1) is None
    assert [slot.kind for slot in segment.slots()] == ["big", "one"]


def test_a_full_directory_says_so_and_never_reaches_the_cells(segment: Segment) -> None:
    slot = segment.add("first", (), 1)
    assert slot is not None
    segment.cells[slot.start] = 42.0
    count = 1
    while segment.add("kind", (f"{count:5}" + "x" * 1000,), 1) is not None:
        count += 1
    assert 400 < count < 600
    assert len(segment.slots()) == count
    assert segment.values(slot) == [42.0]


def test_an_entry_left_half_written_at_any_byte_is_not_seen_and_is_written_over() -> None:
    whole = Segment.create()
    first = whole.add("kind", ("first",), 2)
    before = bytes(raw(whole))
    second = whole.add("kind", ("second",), 2)
    after = bytes(raw(whole))
    changed = [at for at in range(CELLS_AT) if before[at] != after[at]]
    # The writes come in this order: the entry's text, its length and checksum, the cells' count, the directory's.
    order = sorted(at for at in changed if at >= DIRECTORY_AT) + [at for at in changed if 24 <= at < 32]
    assert set(changed) - set(order) == {at for at in changed if 16 <= at < 24} != set()
    assert len(order) > 20
    for done in range(len(order) + 1):
        torn = Segment.create()
        memory = raw(torn)
        memory[:CELLS_AT] = before[:CELLS_AT]
        for at in order[:done]:
            memory[at] = after[at]
        assert torn.slots() == [first]
        third = torn.add("kind", ("third",), 2)
        assert torn.slots() == [first, third]
        assert third is not None
        assert second is not None
        assert third.start >= second.start
        torn.close()
    whole.close()


def test_an_entry_whose_bytes_have_not_all_come_ends_the_reading(segment: Segment) -> None:
    first = segment.add("kind", ("first",), 1)
    at = DIRECTORY_AT + struct.unpack_from("<Q", raw(segment), 16)[0]
    segment.add("kind", ("second",), 1)
    memory = raw(segment)
    memory[at + 12] ^= 0xFF
    assert segment.slots() == [first]
    memory[at + 12] ^= 0xFF
    assert len(segment.slots()) == 2


@pytest.mark.parametrize("size", [0, 100, SIZE])
def test_memory_of_another_kind_is_not_taken_for_a_segment_and_the_worker_counts_all_the_same(size: int) -> None:
    texts: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        texts.append(event["log_format"].format(**event))

    descriptor = os.memfd_create("other")
    os.truncate(descriptor, size)
    globalLogPublisher.addObserver(observe)
    try:
        segment = Segment.attach(descriptor)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(texts) == 1
    assert texts[0].startswith(f"metrics: the memory on descriptor {descriptor} cannot be used")
    assert segment.add("kind", (), 1) is not None
    segment.close()
    os.close(descriptor)


def test_a_segment_of_another_layout_is_not_touched() -> None:
    old = Segment.create(layout=1)
    slot = old.add("kind", (), 1)
    new = Segment.attach(old.fileno(), layout=2)
    new.add("other", (), 1)
    assert old.slots() == [slot]
    assert new.fileno() != old.fileno()
    old.close()
    new.close()


def test_a_descriptor_that_is_none_costs_no_start() -> None:
    segment = Segment.attach(10_000)
    assert segment.slots() == []
    segment.close()


def test_nobody_who_holds_the_descriptor_can_cut_the_memory_off(segment: Segment) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fileno(), 0)


def test_the_descriptor_is_handed_down_on_purpose_only(segment: Segment) -> None:
    assert not os.get_inheritable(segment.fileno())
