"""The ``Date`` field's value."""

from __future__ import annotations

from flowstack.http.date import Date


def test_the_date_is_an_imf_fixdate_of_the_second_that_it_is() -> None:
    now = 784111777.0  # the example of RFC 9110 §5.6.7
    date = Date(lambda: now)
    assert date() == b"Sun, 06 Nov 1994 08:49:37 GMT"
    now += 0.999
    assert date() == b"Sun, 06 Nov 1994 08:49:37 GMT"
    now += 0.001
    assert date() == b"Sun, 06 Nov 1994 08:49:38 GMT"
    now -= 1  # the clock was set back
    assert date() == b"Sun, 06 Nov 1994 08:49:37 GMT"


def test_the_date_is_made_once_a_second() -> None:
    date = Date(lambda: 784111777.5)
    assert date() is date()
