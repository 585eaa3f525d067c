"""What a turn writes, put together: order, bounds, and one connection's failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flowstack.transport.outbox import LARGE, MAX_WAITING, Outbox, outbox_of


class Line:
    """A connection as its outbox sees it; its uvloop transport and its loop in one."""

    def __init__(self, said: list[tuple[str, bytes]], scheduled: list[Callable[[], None]], name: str = "a") -> None:
        self.said = said
        self.call_soon = scheduled.append
        self.name = name
        self.faults: list[str] = []
        self.then: Callable[[], None] = lambda: None
        self._uv: Any = self
        self._loop = self

    def write(self, data: bytes) -> None:
        """Take it, unless it says "bad"."""
        if data == b"bad":
            raise TypeError("bad")
        self.said.append((self.name, data))
        self.then()

    def _fault(self, what: str) -> None:
        self.faults.append(what)


def lines() -> tuple[Outbox, Line, Line, list[tuple[str, bytes]], list[Callable[[], None]]]:
    said: list[tuple[str, bytes]] = []
    scheduled: list[Callable[[], None]] = []
    return Outbox(), Line(said, scheduled), Line(said, scheduled, "b"), said, scheduled


def test_small_pieces_wait_for_the_turns_end_and_then_go_out_in_order_by_one_call() -> None:
    outbox, a, b, said, scheduled = lines()
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    outbox.put(a, b"3")
    assert not said
    assert len(scheduled) == 1
    scheduled[0]()
    assert said == [("a", b"1"), ("b", b"2"), ("a", b"3")]


def test_a_turn_after_the_end_of_one_is_scheduled_again() -> None:
    outbox, a, _, said, scheduled = lines()
    for count in (1, 2):
        outbox.put(a, b"x")
        assert len(scheduled) == count
        scheduled[-1]()
        assert len(said) == count


def test_as_many_as_may_wait_go_out_at_once() -> None:
    outbox, a, _, said, _ = lines()
    for number in range(MAX_WAITING - 1):
        outbox.put(a, b"%d" % number)
    assert not said
    outbox.put(a, b"last")
    assert [data for _, data in said] == [*[b"%d" % number for number in range(MAX_WAITING - 1)], b"last"]


def test_a_large_piece_goes_out_at_once_behind_what_waits() -> None:
    outbox, a, b, said, _ = lines()
    outbox.put(b, b"first")
    outbox.put(a, bytes(LARGE - 1))
    assert not said
    outbox.put(a, bytes(LARGE))
    assert [(name, len(data)) for name, data in said] == [("b", 5), ("a", LARGE - 1), ("a", LARGE)]


def test_what_was_written_to_a_connection_that_is_gone_is_dropped() -> None:
    outbox, a, b, said, scheduled = lines()
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    a._uv = None
    scheduled[0]()
    assert said == [("b", b"2")]


def test_a_piece_that_cannot_be_written_is_its_own_connections_fault_alone() -> None:
    outbox, a, b, said, scheduled = lines()
    outbox.put(a, b"bad")
    outbox.put(b, b"2")
    scheduled[0]()
    assert said == [("b", b"2")]
    assert len(a.faults) == 1
    assert not b.faults


def test_who_closes_within_a_write_still_sends_what_was_written_before() -> None:
    outbox, a, b, said, scheduled = lines()

    def close() -> None:
        b.then = lambda: None
        outbox.flush()
        a._uv = None

    outbox.put(b, b"1")
    outbox.put(a, b"2")
    b.then = close
    scheduled[0]()
    assert said == [("b", b"1"), ("a", b"2")]


def test_what_must_be_done_first_is_done_once_before_the_next_piece_is_written() -> None:
    outbox, a, _, said, scheduled = lines()
    outbox.put(a, b"1")
    outbox.before(a, lambda: said.append(("first", b"")))  # type: ignore[arg-type]
    outbox.put(a, b"2")
    assert (said, len(scheduled)) == ([], 1)
    scheduled[0]()
    assert said == [("first", b""), ("a", b"1"), ("a", b"2")]
    outbox.put(a, b"3")
    scheduled[1]()
    assert said[3:] == [("a", b"3")]


def test_what_must_be_done_first_is_done_by_the_turns_end_even_if_nothing_is_written() -> None:
    outbox, a, _, said, scheduled = lines()
    outbox.before(a, lambda: said.append(("first", b"")))  # type: ignore[arg-type]
    assert not said
    scheduled[0]()
    assert said == [("first", b"")]


def test_what_comes_up_within_a_write_is_done_before_the_write_after_it() -> None:
    outbox, a, b, said, scheduled = lines()

    def closes() -> None:
        a.then = lambda: None
        outbox.before(a, lambda: said.append(("first", b"")))  # type: ignore[arg-type]
        outbox.put(a, b"3")

    outbox.put(a, b"1")
    outbox.put(b, b"2")
    a.then = closes
    scheduled[0]()
    assert said == [("a", b"1"), ("first", b""), ("b", b"2"), ("a", b"3")]
    for late in scheduled[1:]:
        late()
    assert len(said) == 4


def test_a_large_piece_does_not_overtake_what_must_be_done_first() -> None:
    outbox, a, _, said, _ = lines()
    outbox.before(a, lambda: said.append(("first", b"")))  # type: ignore[arg-type]
    outbox.put(a, bytes(LARGE))
    assert said[0] == ("first", b"")


def test_a_loop_has_one_outbox() -> None:
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert outbox_of(one) is outbox_of(one)
        assert outbox_of(one) is not outbox_of(other)
    finally:
        one.close()
        other.close()
