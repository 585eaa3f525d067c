from __future__ import annotations

from twisted.internet.task import Clock

from flowstack.util import Throttle, instant


def test_a_thing_is_logged_once_in_the_time_and_others_beside_it() -> None:
    clock = Clock()
    throttle = Throttle(clock.seconds, 10.0)
    assert [throttle.ready(thing) for thing in ("a", "a", "b", "")] == [True, False, True, True]
    clock.advance(9.9)
    assert not throttle.ready("a")
    clock.advance(0.1)
    assert throttle.ready("a")
    assert not throttle.ready("a")


def test_things_without_end_are_not_remembered_for_ever() -> None:
    clock = Clock()
    throttle = Throttle(clock.seconds, 10.0)
    for number in range(10_000):
        clock.advance(1)
        assert throttle.ready(str(number))
    assert len(throttle._logged_at) <= 64


def test_an_instant_has_microseconds_and_says_that_it_is_utc() -> None:
    assert instant(0) == "1970-01-01T00:00:00.000000Z"
    assert instant(1_800_000_000.25) == "2027-01-15T08:00:00.250000Z"
