from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multipart import MultipartError, MultipartParser  # type: ignore[import-untyped]

from flowstack.policy.usage.forms import Fields, boundary_of
from tests.policy.usage.bodies import pieces_of, splits

NAMES = frozenset(("model", "stream"))
FILE = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'


def read(pieces: Iterable[bytes], boundary: bytes = b"B", most: int = 64 * 1024) -> Fields:
    fields = Fields(boundary, NAMES, most)
    for piece in pieces:
        fields.feed(piece)
        assert fields.pending <= fields.size
    fields.finish()
    return fields


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"B") -> bytes:
    body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, data) for head, data in parts)
    return body + b"--" + boundary + b"--\r\n"


def field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return b'Content-Disposition: form-data; name="%b"' % name, value


GOOD: list[tuple[bytes, dict[str, str]]] = [
    (b"--B--\r\n", {}),
    (form(field(b"model", b"whisper-1")), {"model": "whisper-1"}),
    (form(field(b"model", b"whisper-1"))[:-2], {"model": "whisper-1"}),
    (form(field(b"model", b"")), {"model": ""}),
    (form(field(b"model", "é😀".encode())), {"model": "é😀"}),
    (form(field(b"model", b"a\r\nb\r\n-\r\n--\r\n--A\r\n")), {"model": "a\r\nb\r\n-\r\n--\r\n--A\r\n"}),
    (form((FILE, b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nno\r\n'), field(b"model", b"yes")),
     {"model": "yes"}),
    (form(field(b"model", b"m"), (FILE, b""), field(b"prompt", b"model"), field(b"stream", b"true")),
     {"model": "m", "stream": "true"}),
    (form((b"content-disposition:form-data;name=model", b"m")), {"model": "m"}),
    (form((b'Content-Disposition: Form-Data; NAME="model"\r\nContent-Type: text/plain; charset=utf-8\r\n'
           b"Content-Length: 1\r\nContent-Transfer-Encoding: 8bit", b"m")), {"model": "m"}),
    (form((b"Content-Disposition: form-data; name=file; filename=\"a.mp3\"; filename*=utf-8''a.mp3", b"x"),
          field(b"model", b"m")), {"model": "m"}),
    (form((b'Content-Disposition: form-data; name="file"; filename="C:\\a 100% \xc3\xa9.mp3"', b"x"),
          field(b"model", b"m")), {"model": "m"}),
    (form(field(b"Model", b"1"), field(b"model[]", b"2"), field(b" model", b"3")), {}),
]  # fmt: skip

BAD: list[tuple[bytes, str]] = [
    (b"", "it ends before its last boundary"),
    (b"--", "it ends before its last boundary"),
    (b"--B\r\n", "it ends before its last boundary"),
    (form(field(b"model", b"m"))[:-4], "it ends before its last boundary"),
    (form(field(b"model", b"m"))[:-8], "it ends before its last boundary"),
    (b'{"model":"m"}', "it does not begin with its boundary"),
    (b"\r\n" + form(field(b"model", b"m")), "it does not begin with its boundary"),
    (b"preamble\r\n" + form(field(b"model", b"m")), "it does not begin with its boundary"),
    (form(field(b"model", b"m")) + form(field(b"model", b"n")), "something follows its last boundary"),
    (form(field(b"model", b"m")) + b"\r\n" * 4, "something follows its last boundary"),
    (form(field(b"model", b"m")) + b"x", "something follows its last boundary"),
    (form(field(b"model", b"m\n--B\n")), "its boundary stands within a line"),
    (form(field(b"model", b"m--B")), "its boundary stands within a line"),
    (form(field(b"model", b"m\r--B\r\n")), "its boundary stands within a line"),
    (form(field(b"model", b"m\r\n--Bx")), "its boundary stands within a line"),
    (form(field(b"model", b"m\r\n--B \r\n")), "its boundary stands within a line"),
    (form(field(b"model", b"m\r\n--B-x")), "its boundary stands within a line"),
    (form(field(b"model", b"m")).replace(b"\r\n", b"\n"), "its boundary stands within a line"),
    (b"--B\r\n--B--: x\r\n\r\n", "its boundary stands within a line"),
    (b"--B\r\n" + FILE + b"\r\n\r\n--B--\r\n", "its boundary stands within a line"),
    (b"--B\r\n\r\nm\r\n\r\n--B--\r\n", "a part has a header that is no header"),
    (form((b"X-Y: 1", b"m")), "a part's Content-Disposition is not"),
    (form((FILE + b"\r\n" + FILE, b"m")), "a part repeats a header"),
    (form((field(b"x", b"")[0] + b"\r\n" + field(b"model", b"")[0].upper(), b"m")), "a part repeats a header"),
    (form((b"Content-Disposition: form-data;\r\n name=model", b"m")), "a part has a header that is no header"),
    (form((b'Content-Disposition: form-data; name="a"\nX: ; name="model"', b"m")), "a part has a header that is no"),
    (form((b"Content-Disposition : form-data; name=model", b"m")), "a part has a header that is no header"),
    (form((b"Content-Disposition: form-data; name=mo\x00del", b"m")), "a part has a header that is no header"),
    (form((b'Content-Disposition: form-data; name="a"; name="model"', b"m")), "a part's Content-Disposition is not"),
    (form((b"Content-Disposition: form-data; name=a; name*=utf-8''model", b"m")), "a part's Content-Disposition is"),
    (form((b"Content-Disposition: form-data; name*0=mo; name*1=del", b"m")), "a part's Content-Disposition is not"),
    (form((b"Content-Disposition: attachment; name=model", b"m")), "a part's Content-Disposition is not"),
    (form((b"Content-Disposition: form-data", b"m")), "a part's Content-Disposition is not"),
    (form((b"Content-Disposition: form-data; name=model, x", b"m")), "a part's Content-Disposition is not"),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\\"; name=\\"model"', b"m")), "a part's Content-"),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\\""', b"m")), "a part's Content-Disposition"),
    (form(field(b"mo\\del", b"m")), "a part's Content-Disposition has escapes"),
    (form(field(b"mod%65l", b"m")), "a part's Content-Disposition has escapes"),
    (form(field(b"mod\xff", b"m")), "a field's name is no UTF-8"),
    (form(field(b"_charset_", b"utf-7")), "it names a character set of its own"),
    (form((field(b"model", b"")[0] + b'; filename="m"', b"m")), "the field model is no plain text in UTF-8"),
    (form((field(b"model", b"")[0] + b"\r\nContent-Transfer-Encoding: base64", b"bQ==")), "the field model is no pl"),
    (form((field(b"model", b"")[0] + b"\r\nContent-Type: text/plain; charset=utf-16", b"m")), "the field model is no"),
    (form((field(b"model", b"")[0] + b"\r\nContent-Type: multipart/mixed; boundary=C", b"m")), "the field model is no"),
    (form(field(b"model", b"\xff")), "the field model is no UTF-8"),
    (form((b"X: " + b"x" * 9000, b"")), "a part's headers are longer than 8192 bytes"),
    (b"--B\r\nX: " + b"x" * 9000, "a part's headers are longer than 8192 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "values"), GOOD)
def test_wanted_fields_are_found_at_every_split(body: bytes, values: dict[str, str]) -> None:
    for pieces in splits(body):
        fields = read(pieces)
        assert (fields.values, fields.repeated, fields.too_large, fields.fault) == (values, set(), set(), None), pieces
        assert fields.final is not None
        assert body[fields.final :].rstrip(b"\r\n").endswith(b"--B--")
        assert len(body) - fields.final <= len(b"\r\n--B--\r\n")


@pytest.mark.parametrize(("body", "fault"), BAD)
def test_what_may_be_read_in_two_ways_is_a_fault_at_every_split(body: bytes, fault: str) -> None:
    for pieces in splits(body) if len(body) < 1000 else ([body], [body[:9], body[9:]], [body[:8500], body[8500:]]):
        found = read(pieces).fault
        assert found is not None
        assert found.startswith(fault), pieces


def test_a_repeated_field_is_told() -> None:
    body = form(field(b"model", b"a"), field(b"x", b"y"), field(b"model", b"b"))
    for pieces in splits(body):
        fields = read(pieces)
        assert (fields.values, fields.repeated, fields.fault) == ({"model": "b"}, {"model"}, None)


def test_a_field_longer_than_the_most_is_told_and_not_kept() -> None:
    body = form(field(b"model", b"a" * 50), field(b"stream", b"true"))
    for pieces in splits(body):
        fields = read(pieces, most=49)
        assert (fields.values, fields.too_large, fields.fault) == ({"stream": "true"}, {"model"}, None)
        assert read(pieces, most=50).values == {"model": "a" * 50, "stream": "true"}


@pytest.mark.parametrize("data", [b"A" * 65536, b"\r\n" * 32768, b"\r\n--" * 16384, b"-" * 65536])
def test_a_large_file_is_skipped_in_little_memory(data: bytes) -> None:
    fields = Fields(b"BBBB", NAMES)
    tracemalloc.start()
    fields.feed(b"--BBBB\r\n" + FILE + b"\r\n\r\n")
    for _ in range(160):
        fields.feed(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fields.feed(b"\r\n--BBBB\r\n" + form(field(b"model", b"m"), boundary=b"BBBB")[8:])
    fields.finish()
    assert (fields.values, fields.fault) == ({"model": "m"}, None)
    assert peak < 300_000


_DATA = st.lists(
    st.sampled_from([b"\r\n", b"--", b"-", b"B", b"\r", b"\n", b"x", b"Content", b": ", b"\r\n--", b"=B="])
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_has_no_fault_reads_as_with_the_multipart_library(data: st.DataObject) -> None:
    names = st.sampled_from([b"model", b"stream", b"file", b"x"])
    parts = data.draw(st.lists(st.tuples(names, _DATA.map(b"".join)), max_size=4))
    body = bytearray(form(*(field(name, value) for name, value in parts), boundary=b"=B="))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(body)))
        body[at : data.draw(st.integers(at, min(len(body), at + 3)))] = b"".join(data.draw(_DATA))
    whole = bytes(body)
    fields, again = read(data.draw(pieces_of(whole)), b"=B="), read([whole], b"=B=")
    assert (fields.values, fields.repeated, fields.fault) == (again.values, again.repeated, again.fault)
    if fields.fault is not None:
        return
    expected: list[tuple[str, str]] = []
    try:
        for part in MultipartParser(io.BytesIO(whole), "=B=", strict=True, charset="utf8"):
            expected.append((part.name, part.raw.decode("utf8", "surrogateescape")))
    except MultipartError as fault:
        raise AssertionError(f"{fault} was not seen") from fault
    wanted = [(name, text) for name, text in expected if name in NAMES]
    assert fields.values == dict(wanted)
    assert fields.repeated == {name for name, _ in wanted if sum(other == name for other, _ in wanted) > 1}


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"Multipart/Form-Data;BOUNDARY=abc", b"abc"),
        (b'multipart/form-data; boundary="----=_Part_0 (x)"', b"----=_Part_0 (x)"),
        (b"multipart/form-data; charset=utf-8; boundary=----WebKitFormBoundary0aZ", b"----WebKitFormBoundary0aZ"),
        (b"multipart/form-data; boundary=" + b"x" * 70, b"x" * 70),
        (b"multipart/form-data; boundary=" + b"x" * 71, None),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b'multipart/form-data; boundary=""', None),
        (b'multipart/form-data; boundary="a "', None),
        (b'multipart/form-data; boundary="a\\b"', None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (b"multipart/form-data; boundary=a; Boundary*=utf-8''b", None),
        (b"multipart/form-data; boundary=a,b", None),
        (b"multipart/form-data; boundary=a b", None),
        (b"multipart/mixed; boundary=a", None),
        (b"application/json; boundary=a", None),
        (b"", None),
    ],
)
def test_a_boundary_is_taken_only_where_all_read_it_alike(content_type: bytes, boundary: Any) -> None:
    assert boundary_of(content_type) == boundary
