"""The coarse clock: never early, whatever the process could not do meanwhile."""

from __future__ import annotations

from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from flowstack.transport.ticker import NEVER, Ticker


@define(eq=False)
class Member:
    clock: Clock
    deadline: float = NEVER
    told_at: float | None = None

    def expire(self) -> None:
        self.deadline = NEVER
        self.told_at = self.clock.seconds()


@given(
    st.lists(st.floats(0.001, 3.0), min_size=1, max_size=20),
    st.floats(0.0, 5.0),
    st.integers(0, 19),
)
def test_no_timeout_is_early_however_long_the_process_stood_still(
    stalls: list[float], seconds: float, begun_in: int
) -> None:
    clock = Clock()
    ticker = Ticker(clock, 0.25)
    ticker.start()
    member = Member(clock)
    ticker.members.add(member)
    begun_at: float | None = None
    for number, stall in enumerate([*stalls, *[0.25] * 60]):
        if number == min(begun_in, len(stalls) - 1):
            # In the middle of a stall: the ticker has not seen yet how late it is.
            clock.rightNow += stall
            member.deadline, begun_at = ticker.base + seconds, clock.seconds()
        clock.advance(stall)
    assert begun_at is not None
    assert member.told_at is not None
    assert member.told_at - begun_at >= seconds - 1e-9


def test_a_timeout_is_at_most_two_ticks_late_where_the_process_runs() -> None:
    clock = Clock()
    ticker = Ticker(clock, 0.25)
    ticker.start()
    member = Member(clock, deadline=ticker.base + 1.0)
    ticker.members.add(member)
    clock.pump([0.05] * 31)
    assert member.told_at is not None
    assert 1.0 <= member.told_at <= 1.5 + 1e-6
