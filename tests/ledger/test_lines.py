"""A row is one line of JSON, whatever is in it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.http.headers import MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, attributes
from flowstack.ledger.lines import MAX_LINE, line_of
from flowstack.ledger.row import MAX_TEXT, Row, text
from tests.ledger.samples import STARTED, row

FIGURES = [name for name, value in row().items() if isinstance(value, (int, float))]


def read(whole: Row) -> dict[str, Any]:
    """The line of a row, read by another JSON library."""
    line = line_of(whole)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE
    found: dict[str, Any] = json.loads(line.decode("utf-8"))
    assert set(found) == set(whole)
    return found


def test_a_line_says_what_the_row_says_and_the_time_in_utc_to_the_microsecond() -> None:
    found = read(row(7))
    assert found.pop("started_at") == "2026-11-23T07:08:09.123456Z"
    assert found == {name: value for name, value in row(7).items() if name != "started_at"}


def test_a_time_on_the_very_second_has_no_fraction_and_is_the_same_time() -> None:
    whole = STARTED.replace(microsecond=0)
    found = read(row(started_at=whole))["started_at"]
    assert found == "2026-11-23T07:08:09Z"
    assert datetime.fromisoformat(found) == whole


WORST_BYTE = {"no UTF-8": b"\xff", "a quote": b'"', "a backslash": b"\\", "a tab": b"\t", "long": "€".encode()}
WORST_CHARACTER = ("\x00", '"', "\U0001f600", "�")


@pytest.mark.parametrize("byte", WORST_BYTE.values(), ids=WORST_BYTE)
@pytest.mark.parametrize("character", WORST_CHARACTER, ids=ascii)
def test_the_largest_row_that_a_client_and_an_upstream_can_cause_fits_with_all_its_figures(
    byte: bytes, character: str
) -> None:
    of_client, of_body = text(byte * 100_000), character * MAX_TEXT
    each = MAX_ATTRIBUTE_BYTES // MAX_ATTRIBUTES - 3
    sent = [(b"Flowstack-Attribute-%03d" % number, (byte * each)[:each]) for number in range(MAX_ATTRIBUTES)]
    details = {f"{number}{character}": {"tokens": number} for number in range(2000)}
    worst = row(
        attributes=attributes(sent), user_agent=of_client, path=of_client, upstream_request_id=of_client,
        owner="\U0001f600" * 256, model_requested=of_body, model=of_body, service_tier=of_body, usage_details=details,
    )  # fmt: skip
    found = read(worst)
    for name in FIGURES:
        assert found[name] == worst[name], name  # type: ignore[literal-required]
    for name in ("key_id", "method", "end", "usage_source", "price_date", "client_addr", "request_id"):
        assert found[name] == worst[name], name  # type: ignore[literal-required]
    assert found["attributes"].keys() == {f"{number:03d}" for number in range(MAX_ATTRIBUTES)}
    assert found["started_at"] == "2026-11-23T07:08:09.123456Z"


def test_what_a_client_may_send_in_plain_utf_8_is_kept_whole() -> None:
    long = "x" * MAX_TEXT
    own = attributes([(b"Flowstack-Attribute-A", "ä".encode() * (MAX_ATTRIBUTE_BYTES // 2 - 1))])
    whole = row(attributes=own, user_agent=long, path=long, model_requested=long, model=long, owner="x" * 256)
    found = read(whole)
    assert found["attributes"] == own
    assert (found["user_agent"], found["path"], found["model_requested"]) == (long, long, long)


def test_what_json_cannot_say_is_replaced_and_the_rest_of_the_row_stands() -> None:
    found = read(
        row(model="a\ud800b", usage_details={"big": 2**70, "\udfff": 1, "bytes": b"x", "deep": [[1, "\ud800"]]})
    )
    assert found["model"] == "a?b"
    assert found["usage_details"] == {"big": None, "?": 1, "bytes": None, "deep": [[1, "?"]]}
    assert found["total_tokens"] == 1290


def test_what_contains_itself_ends_somewhere() -> None:
    circle: dict[str, Any] = {"a": 1}
    circle["circle"] = circle
    found = read(row(usage_details=circle))
    assert found["usage_details"]["circle"]["a"] == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
)


@given(anything, st.text(st.characters()))
def test_nothing_that_an_upstream_may_say_makes_it_raise_or_break_the_line(details: Any, model: str) -> None:
    read(row(usage_details={"details": details}, model=model))
