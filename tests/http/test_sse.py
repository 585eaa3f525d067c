"""Events are read by the rules of the HTML standard, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.http.sse import EventReader


class Collector(EventReader):
    """Keeps every event's data."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[bytes] = []
        self._parts: list[bytes] = []

    def data(self, fragment: bytes) -> None:
        assert fragment
        self._parts.append(fragment)

    def event(self) -> None:
        self.events.append(b"".join(self._parts))
        self._parts.clear()


def read(*pieces: bytes, end: bool = False) -> list[bytes]:
    reader = Collector()
    for piece in pieces:
        reader.read(piece)
    if end:
        reader.end()
    return reader.events


STREAMS = [
    (b"data: a\n\n", [b"a"]),
    (b"data:a\n\n", [b"a"]),
    (b"data:  a \n\n", [b" a "]),
    (b"data\n\n", [b""]),
    (b"data:\n\n", [b""]),
    (b"data: \n\n", [b""]),
    (b"data\ndata\n\n", [b"\n"]),
    (b"data: a\ndata: b\ndata:\ndata: c\n\n", [b"a\nb\n\nc"]),
    (b"event: e\ndata: a\n\ndata: b\n\n", [b"a", b"b"]),
    (b"event: e\nevent: f\ndata: a\n\n", [b"a"]),
    (b"data: a\nevent:e\n\n", [b"a"]),
    (b"event: e\nevent\ndata: a\n\n", [b"a"]),
    (b"event: e\nevent:\ndata: a\n\n", [b"a"]),
    (b"event: e\n\ndata: a\n\n", [b"a"]),
    (b": c\n\n:\n\ndata: a\n: c\n\n", [b"a"]),
    (b"id: 1\nretry: 9\nx: y\ndatas: z\nDATA: z\n data: z\ndat: z\ndata : z\ndata: a\n\n", [b"a"]),
    (b"nothing\n" + b"n" * 500 + b"\ndata: a\n\n", [b"a"]),
    (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
    (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [b"a\nb", b"c"]),
    (b"data: a\rdata: b\r\rdata: c\r\r", [b"a\nb", b"c"]),
    (b"data: a\r\n\rdata: b\n\r\ndata: c\r\r\n", [b"a", b"b", b"c"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"\xef\xbb\xbf\ndata: a\n\n", [b"a"]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"]),
    (b"\n\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"]),
    (b"data: \xc3\xa9: x\n\n", [b"\xc3\xa9: x"]),
    (b"data: a\n\ndata: b\n", [b"a"]),
    (b"", []),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_a_stream_is_read_by_the_standard_s_rules(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_a_stream_cut_anywhere_is_read_the_same(stream: bytes, events: list[bytes]) -> None:
    for at in range(len(stream) + 1):
        assert read(stream[:at], b"", stream[at:]) == events
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == events


@pytest.mark.parametrize(
    ("stream", "last"),
    [
        (b"data: a\n", b"a"),
        (b"data: a", b"a"),
        (b"data: a\ndata", b"a\n"),
        (b"data:", b""),
        (b"event: e\ndata: a\r", b"a"),
        (b"data: a\nevent: e", b"a"),
    ],
)
def test_at_the_end_what_has_no_blank_line_is_shown_too(stream: bytes, last: bytes) -> None:
    assert read(stream, end=True) == [last]


def test_at_the_end_no_event_is_shown_where_none_was_begun() -> None:
    for stream in (b"", b"\n", b": c", b"event: e", b"dat", b"data: a\n\n", b"\xef\xbb"):
        assert read(stream, end=True) == read(stream)


def test_it_says_when_nothing_is_held() -> None:
    reader = Collector()
    assert reader.between
    for piece, between in [
        (b"da", False), (b"ta: a", False), (b"\n", False), (b"\r", True), (b"\n", True), (b":", False), (b"\n\n", True),
        (b"event: e\n\n", True), (b"\xef", False), (b"\n\n", True),
    ]:  # fmt: skip
        reader.read(piece)
        assert reader.between is between, piece


def test_a_long_line_is_not_held() -> None:
    for name in (b"n", b": ", b"event: ", b"datas: "):
        reader = Collector()
        reader.read(name)
        for _ in range(1000):
            reader.read(b"n" * 1000)
        assert sum(len(getattr(reader, slot)) for slot in ("_head", "_parts")) == 0
        reader.read(b"\ndata: a\n\n")
        assert reader.events == [b"a"]


_PARTS = [b"data", b"data: x", b":", b"event: e", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"y"]


@given(st.lists(st.sampled_from(_PARTS)))
def test_the_events_are_those_of_the_plain_reading(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    expected: list[bytes] = []
    data: list[bytes] | None = None
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                expected.append(b"\n".join(data))
            data = None
        elif name == b"data":
            data = [*(data or ()), value]
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == expected
    assert read(stream) == expected
