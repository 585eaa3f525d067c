"""Limits of time hold, and end, wherever their alarm comes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from flowstack.admin import time_limit
from flowstack.admin.time_limit import TimeUp, at_most, is_over, seconds_left, within


class PartOver(Exception):
    """A part took too long."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert seconds_left() == float("inf")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler


def _spin(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def test_what_ends_in_time_is_given() -> None:
    assert within(30.0, lambda: at_most(30.0, lambda: _spin(0.002), PartOver())) == "done"


def test_what_does_not_end_in_time_is_interrupted() -> None:
    with pytest.raises(TimeUp):
        within(0.01, lambda: _spin(30.0))


def test_a_part_that_takes_too_long_leaves_the_rest_its_time() -> None:
    def whole() -> str:
        with pytest.raises(PartOver):
            at_most(0.01, lambda: _spin(30.0), PartOver())
        assert not is_over()
        return _spin(0.01)

    assert within(30.0, whole) == "done"


def test_a_part_may_not_take_more_than_the_whole_has() -> None:
    with pytest.raises(TimeUp):
        within(0.01, lambda: at_most(30.0, lambda: _spin(30.0), PartOver()))


def test_what_a_call_raises_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        within(30.0, lambda: at_most(30.0, lambda: 1 // 0, PartOver()))


class AlarmAt:
    """A trace that lets the alarm come at one step of the interpreter within the module."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != time_limit.__file__ or frame.f_code is time_limit._time_up.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGALRM)
        return self


@pytest.mark.parametrize("raised", [None, PartOver], ids=["it ends", "it raises"])
@pytest.mark.parametrize("seconds", [-1.0, 20.0], ids=["it is over", "it is not"])
def test_wherever_the_alarm_comes_a_part_that_is_over_never_ends_the_whole(
    raised: type[Exception] | None, seconds: float
) -> None:
    def call() -> str:
        if raised is not None:
            raise raised
        return "done"

    def whole(step: int) -> tuple[str, int]:
        alarm = AlarmAt(step)
        before = sys.gettrace()
        sys.settrace(alarm)
        try:
            found = at_most(seconds, call, PartOver())
        except PartOver:
            found = "over"
        finally:
            sys.settrace(before)
        assert seconds_left() > 25.0
        return found, alarm.left

    answers, step, left = set(), 0, 0
    while left <= 0:
        step += 1
        found, left = within(30.0, lambda step=step: whole(step))  # type: ignore[misc]
        answers.add(found)
    assert step > 50
    assert answers <= {"done", "over"}
    assert ("done" in answers) == (raised is None)
    assert ("over" in answers) == (raised is not None or seconds < 0)
