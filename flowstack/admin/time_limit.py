"""How long an answer, or a part of it, may take: one clock for the process, and one alarm.

SQLite is asked through :func:`is_over`, PostgreSQL is told :func:`seconds_left`; Python, and a library that waits, are
interrupted by a signal. It may come between any two steps of Python, also where a ``with`` is left: so a limit is a
call of a function, in the frame of which everything is put back, not a context manager.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_until = float("inf")


class TimeUp(BaseException):
    """It took too long. No ``except Exception`` on the way holds it up."""


def is_over() -> bool:
    """Whether the time of what is under way is over."""
    return time.monotonic() >= _until


def seconds_left() -> float:
    """Of what is under way: none or less where it is over, without end where nothing is bounded."""
    return _until - time.monotonic()


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives that may take so long.

    :raises TimeUp: it is over.
    """
    before = signal.signal(signal.SIGALRM, _time_up)
    try:
        return at_most(seconds, call, TimeUp())
    finally:
        signal.signal(signal.SIGALRM, before)


def at_most(seconds: float, call: Callable[[], T], over: BaseException) -> T:
    """What a call gives that may take so long of the time of what it is a part of; the rest then goes on.

    :param over: what is raised where it is over: of the part alone.
    :raises TimeUp: the time of the whole is over too.
    """
    global _until
    before = _until
    try:
        try:
            _until = min(before, time.monotonic() + seconds)
            _set_alarm()
            return call()
        finally:
            _until = before
    except TimeUp:
        _until = before  # the alarm may have come before the line that says so above
        if is_over():
            raise
        raise over from None
    finally:
        _set_alarm()


def _time_up(number: int, frame: FrameType | None) -> None:
    if is_over():
        raise TimeUp
    _set_alarm()  # it was that of a part, which has ended meanwhile


def _set_alarm() -> None:
    left = seconds_left()
    signal.setitimer(signal.ITIMER_REAL, 0 if left == float("inf") else max(left, 0.001))
