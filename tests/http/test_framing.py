"""Where bodies end: RFC 9112 §6 and §7, at every byte split."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.http.framing import (
    LAST_CHUNK,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    BadFraming,
    Body,
    ChunkedBody,
    LengthBody,
    UntilClose,
    chunk,
)

GOOD = {
    "nothing": (b"0\r\n\r\n", b""),
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "two chunks": (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    "hexadecimal in both cases, leading zeros": (b"0000a\r\n0123456789\r\n1A\r\n" + b"z" * 26 + b"\r\n000\r\n\r\n",
                                                b"0123456789" + b"z" * 26),
    "extensions": (b'5;a=b;c="d e"\r\nhello\r\n0;last\r\n\r\n', b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nFlowstack-Auth: Bearer x\r\n\r\n", b"hello"),
    "a payload that looks like framing": (b"c\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r\n0\r\n"),
}  # fmt: skip

BAD = {
    "no size": b"\r\nhello\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with a plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with white space before it": b" 5\r\nhello\r\n0\r\n\r\n",
    "a size with white space behind it": b"5 \r\nhello\r\n0\r\n\r\n",
    "white space before an extension": b"5 ;a\r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
    "a size of sixteen digits": b"f" * 16 + b"\r\nhello\r\n0\r\n\r\n",
    "a bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "a bare LF after the bytes": b"5\r\nhello\n0\r\n\r\n",
    "bytes longer than their size": b"4\r\nhello\r\n0\r\n\r\n",
    "bytes shorter than their size": b"6\r\nhello\r\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nnonsense\r\n\r\n",
    "a trailer with white space before its colon": b"0\r\nX : y\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a bare LF in the trailers": b"0\r\nX: y\n\r\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "NUL in a trailer": b"0\r\nX: \x00\r\n\r\n",
}


def fed(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes | None]:
    """All payload, and what is left after the end, with the pieces that were never fed."""
    payload = b""
    for number, piece in enumerate(pieces):
        got, rest = body.feed(piece)
        payload += got
        if rest is not None:
            return payload, rest + b"".join(pieces[number + 1 :])
    return payload, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    return [data[start:stop] for start, stop in pairwise([0, *sorted(places), len(data)])]


@pytest.mark.parametrize(("wire", "payload"), GOOD.values(), ids=GOOD)
def test_a_chunked_body_reads_the_same_at_every_split(wire: bytes, payload: bytes) -> None:
    follows = b"GET /next"
    for first in range(len(wire) + 1):
        for second in range(first, len(wire) + len(follows) + 1):
            pieces = cut(wire + follows, [first, second])
            assert fed(ChunkedBody(), pieces) == (payload, follows), pieces


@pytest.mark.parametrize("wire", BAD.values(), ids=BAD)
def test_a_badly_chunked_body_is_refused_at_every_split(wire: bytes) -> None:
    for place in range(len(wire) + 1):
        with pytest.raises(BadFraming):
            fed(ChunkedBody(), cut(wire + b"\r\n\r\n0\r\n\r\n", [place]))
    with pytest.raises(BadFraming):
        fed(ChunkedBody(), [b"%c" % byte for byte in wire + b"\r\n\r\n0\r\n\r\n"])


@pytest.mark.parametrize("size", [1, 7, None])
def test_a_size_line_and_the_trailers_are_bounded(size: int | None) -> None:
    for data in (b"5;" + b"x" * (MAX_SIZE_LINE + 9), b"0\r\n" + b"X: y\r\n" * (MAX_TRAILERS // 6 + 2),
                 b"0\r\nX: " + b"y" * (MAX_TRAILERS + 9)):  # fmt: skip
        with pytest.raises(BadFraming):
            fed(ChunkedBody(), [data[at : at + (size or len(data))] for at in range(0, len(data), size or len(data))])


def test_what_stays_within_the_bounds_is_taken() -> None:
    line = b"5;" + b"x" * (MAX_SIZE_LINE - 2)
    trailers = b"X: y\r\n" * (MAX_TRAILERS // 6)
    wire = line + b"\r\nhello\r\n0\r\n" + trailers + b"\r\n"
    assert fed(ChunkedBody(), [wire]) == (b"hello", b"")
    assert fed(ChunkedBody(), cut(wire, list(range(1, len(wire))))) == (b"hello", b"")


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 400), max_size=8), st.binary(max_size=9))
def test_what_is_chunked_here_comes_back(pieces: list[bytes], places: list[int], follows: bytes) -> None:
    wire = b"".join(map(chunk, pieces)) + LAST_CHUNK
    places = [min(place, len(wire)) for place in places]
    assert fed(ChunkedBody(), [*cut(wire, places), follows]) == (b"".join(pieces), follows)


@given(st.lists(st.binary(min_size=1, max_size=40)))
def test_h11_reads_what_is_chunked_here(pieces: list[bytes]) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive_data(b"".join(map(chunk, pieces)) + LAST_CHUNK)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert (body, type(event)) == (b"".join(pieces), h11.EndOfMessage)


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5))
def test_a_body_of_known_length_ends_after_so_many_bytes(data: bytes, length: int, places: list[int]) -> None:
    payload, rest = fed(LengthBody(length), cut(data, [min(place, len(data)) for place in places]))
    assert payload == data[:length]
    assert rest == (data[length:] if len(data) >= length else None)


def test_a_body_that_ends_with_the_connection_has_no_other_end() -> None:
    assert fed(UntilClose(), [b"a", b"0\r\n\r\n"]) == (b"a0\r\n\r\n", None)


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 1023, 1024, 4095, 4096, 70_000])
def test_a_chunk_that_is_alone_in_its_read_is_as_any_other(size: int) -> None:
    payload = b"\r\n" * (size // 2) + b"x" * (size % 2)
    for head in (b"%x", b"%X", b"0%x", b"%x;a=b"):
        body = ChunkedBody()
        for _ in range(3):
            assert body.feed(head % size + b"\r\n" + payload + b"\r\n") == (payload, None)
        assert body.feed(LAST_CHUNK) == (b"", b"")
        for end in (b"\n\n", b"\r\r", b"xx", b"\n\r"):
            with pytest.raises(BadFraming):
                ChunkedBody().feed(head % size + b"\r\n" + payload + end)
    body = ChunkedBody()
    assert body.feed(b"%x\r\n" % (size + 9)) == (b"", None)
    assert body.feed(chunk(payload)[: size + 9]) == (chunk(payload)[: size + 9], None)


def test_payload_of_one_chunk_is_not_copied_together() -> None:
    """A memory view would be better still; one slice a chunk is what bytes allow."""
    body = ChunkedBody()
    payload, _ = body.feed(b"4000\r\n" + b"x" * 0x4000)
    assert payload == b"x" * 0x4000
    payload, rest = body.feed(b"\r\n1\r\ny\r\n0\r\n\r\n")
    assert (payload, rest) == (b"y", b"")
