"""Many refused requests are one row, in which nothing is lost but what tells them apart."""

from __future__ import annotations

from typing import Any

import pytest

from flowstack.ledger import refusals
from flowstack.ledger.lines import line_of
from flowstack.ledger.refusals import Refusals
from flowstack.ledger.row import Row
from tests.ledger.samples import STARTED, row


def refused(number: int = 0, **more: Any) -> Row:
    return row(
        number,
        **{
            "end": "refused", "status": 429, "error_code": "flowstack_rate_limit_exceeded", "model": None,
            "usage_source": "none", "attempts": 0, "bytes_in": 100, "bytes_out": 300, "duration_ms": 1.5,
            "first_byte_ms": 1.5, "overhead_ms": 1.5, **more,
        },
    )  # fmt: skip


def requests(rows: list[Row]) -> list[int]:
    return [one.get("requests", 1) for one in rows]  # type: ignore[misc]


def test_the_first_of_each_key_in_a_minute_stay_as_they_are() -> None:
    some = Refusals(3)
    for key in ("a", "b"):
        whole = [refused(number, key_id=key) for number in range(4)]
        assert [some.take(one) for one in whole] == [*whole[:3], None]
    assert requests(some.end()) == [1, 1]
    assert some.end() == []
    again = refused(5, key_id="a")
    assert some.take(again) is again, "another minute has begun"


@pytest.mark.parametrize(
    ("name", "other"),
    {"key_id": "b", "error_code": "model_not_allowed", "status": 403, "upstream": "azure"}.items(),
)
def test_what_reports_tell_apart_of_a_refusal_is_told_apart(name: str, other: Any) -> None:
    some = Refusals(0)
    for more in ({}, {name: other}, {}, {}, {name: other}):
        assert some.take(refused(**more)) is None
    first, second = some.end()
    assert requests([first, second]) == [3, 2]
    assert (first[name], second[name]) == (refused()[name], other)  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("name", "other"),
    {
        "attributes": {"team": "red"}, "client_addr": "192.0.2.8", "user_agent": "x", "method": "GET", "path": "/v1/x",
        "model_requested": "x",
    }.items(),
)  # fmt: skip
def test_what_all_have_in_common_stays_and_what_tells_them_apart_is_null(name: str, other: Any) -> None:
    some = Refusals(0)
    for more in ({}, {}, {name: other}, {}):
        some.take(refused(**more))
    (folded,) = some.end()
    assert folded == refused() | {
        name: None, "requests": 4, "bytes_in": 400, "bytes_out": 1200, "first_byte_ms": None, "overhead_ms": None
    }  # fmt: skip


def test_it_has_the_id_and_the_time_of_the_first_the_sums_and_the_mean() -> None:
    some = Refusals(0)
    for number in range(3):
        some.take(refused(number, duration_ms=float(number), bytes_in=number, bytes_out=10, attempts=number))
    (folded,) = some.end()
    assert (folded["request_id"], folded["started_at"]) == ("0", STARTED)
    assert (folded["bytes_in"], folded["bytes_out"], folded["attempts"]) == (3, 30, 3)
    assert folded["duration_ms"] == 1.0


def test_fresh_texts_in_each_request_make_no_row_of_their_own_and_hold_no_memory() -> None:
    some = Refusals(60)
    written = 0
    for number in range(5000):
        text = f"{number} ".ljust(500, "x")
        one = refused(number, attributes={text[:9]: text}, user_agent=text, path=text, model_requested=text)
        whole = some.take(one)
        written += 0 if whole is None else len(line_of(whole))
    assert len(some) == 1
    written += sum(len(line_of(one)) for one in some.end())
    assert written < 61 * 4096


def test_however_many_keys_are_refused_the_rows_that_wait_are_bounded_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusals, "MOST_ROWS", 10)
    monkeypatch.setattr(refusals, "MOST_KEYS", 10)
    some = Refusals(1)
    written = []
    for _ in range(3):
        for key in range(50):
            written.append(some.take(refused(key_id=f"k{key}")))
            assert len(some) <= 10
            assert len(some._passed) <= 10
    assert sum(requests([one for one in [*written, *some.end()] if one is not None])) == 150
