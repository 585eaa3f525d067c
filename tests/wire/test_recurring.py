"""What is read from a head is the same whether or not the connection had one like it before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowstack.wire.recurring
from flowstack.errors import FlowstackError
from flowstack.wire.heads import RequestHead, parse_request
from flowstack.wire.recurring import MISSES, RequestHeads


def head(length: bytes = b"5", line: bytes = b"POST /v1/x HTTP/1.1", name: bytes = b"Content-Length: ") -> bytes:
    return line + b"\r\nHost: a\r\nX-A: 1\r\n" + name + length + b"\r\nX-B: 2\r\n\r\n"


def values(found: RequestHead) -> list[Any]:
    names = ("method", "target", "minor", "pairs", "by_name", "repeated", "length", "keep_alive", "expects")
    return [getattr(found, name) for name in names]


def outcome(read: Any, data: bytes) -> Any:
    try:
        return values(read(data))
    except FlowstackError as error:
        return type(error), error.message


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every head that was read anew."""
    found: list[bytes] = []

    def read(data: bytes) -> RequestHead:
        found.append(data)
        return parse_request(data)

    monkeypatch.setattr(flowstack.wire.recurring, "parse_request", read)
    return found


def test_from_the_third_on_a_head_that_differs_in_its_length_only_is_not_read_anew(parsed: list[bytes]) -> None:
    heads = RequestHeads()
    for length in (b"5", b"5", b"5", b"17", b"999999999999999999", b"1"):
        data = head(length)
        assert values(heads.read(data)) == values(parse_request(data))
    assert parsed == [head(b"5"), head(b"5")]


@pytest.mark.parametrize(
    "length",
    [b"", b"0", b"05", b"00", b"1" * 19, b"-1", b"+1", b"5x", b"x", b"5 ", b" 5", b"5\t", b"5, 5", b"5\r\nX: 1",
     b"\xb2", b"5\r\nContent-Length: 5", b"5\r\nTransfer-Encoding: chunked", b"5\r\n Y", b"5\nX: 1", b"5\x00",
     b"1_0", b"0x5"],
)  # fmt: skip
def test_what_is_no_plain_length_is_read_with_all_care(length: bytes) -> None:
    heads = RequestHeads()
    for _ in range(3):
        heads.read(head())
    assert outcome(heads.read, head(length)) == outcome(parse_request, head(length))
    assert values(heads.read(head(b"7"))) == values(parse_request(head(b"7")))


def test_a_head_is_not_another_ones_although_it_begins_and_ends_like_it() -> None:
    heads = RequestHeads()
    for _ in range(3):
        heads.read(head(b"11"))
    data = head(b"11")
    at = data.index(b"11")
    for short in (data[: at + 1] + data[at + 3 :], data[:at] + data[at + 4 :], data[:at] + data[at + 1 :]):
        assert outcome(heads.read, short) == outcome(parse_request, short)


def test_who_changes_a_heads_fields_changes_no_other_heads() -> None:
    heads = RequestHeads()
    for _ in range(4):
        found = heads.read(head())
        assert values(found) == values(parse_request(head()))
        found.pairs.append((b"X-C", b"3"))
        found.by_name[b"x-c"] = b"3"


def test_where_heads_keep_changing_they_are_not_compared_for_ever(parsed: list[bytes]) -> None:
    heads = RequestHeads()
    for number in range(2 * MISSES):
        heads.read(head(line=b"POST /v1/%d HTTP/1.1" % number))
    parsed.clear()
    for _ in range(3):
        heads.read(head())
    assert len(parsed) == 3


def test_a_head_that_changes_now_and_then_is_compared_on(parsed: list[bytes]) -> None:
    heads = RequestHeads()
    for number in range(3 * MISSES):
        for _ in range(3):
            heads.read(head(line=b"POST /v1/%d HTTP/1.1" % number))
    assert len(parsed) == 3 * MISSES + 1


PIECES = st.sampled_from([head(), head(b"12"), head(b"0"), head(b"007"), head(name=b"content-length: "),
                          head(name=b"Content-Length:"), head(b"chunked", name=b"Transfer-Encoding: "),
                          head(line=b"POST /v1/y HTTP/1.1"), head(line=b"GET /v1/x HTTP/1.0"),
                          b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])  # fmt: skip


@given(st.lists(PIECES | st.tuples(PIECES, st.integers(0, 90), st.binary(max_size=3)), max_size=12))
def test_a_sequence_of_heads_is_read_as_each_would_be_alone(
    sequence: list[bytes | tuple[bytes, int, bytes]],
) -> None:
    heads = RequestHeads()
    for each in sequence:
        data = each if isinstance(each, bytes) else each[0][: each[1]] + each[2] + each[0][each[1] :]
        if data.count(b"\r\n\r\n") == 1 and data.endswith(b"\r\n\r\n"):
            assert outcome(heads.read, data) == outcome(parse_request, data)
