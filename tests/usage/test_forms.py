from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartError, MultipartParser  # type: ignore[import-untyped]

from flowstack.usage.forms import FLAG, MAX_PARTS, NUMBER, TEXT, Fields, Wanted, boundary_of
from tests.usage.bodies import pieces_of, splits
from tests.usage.client_forms import CLIENTS

WANTED = Wanted({"model": TEXT, "stream": FLAG, "n": NUMBER, "max_tokens": NUMBER})
FILE = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'


def read(pieces: Iterable[bytes], boundary: bytes = b"B", most: int = 64 * 1024) -> Fields:
    fields = Fields(boundary, WANTED, most)
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


PLAIN = b'Content-Disposition: form-data; name="model"'

GOOD: list[tuple[bytes, dict[str, str]]] = [
    (b"--B--\r\n", {}),
    (form(field(b"model", b"whisper-1")), {"model": "whisper-1"}),
    (form(field(b"model", b"whisper-1"))[:-2], {"model": "whisper-1"}),
    (form(field(b"model", b"whisper-1")) + b"\r\n", {"model": "whisper-1"}),
    (form(field(b"model", b"")), {"model": ""}),
    (form(field(b"model", b"a b~!\"'()*;:@&=+$,/?#[]\\")), {"model": "a b~!\"'()*;:@&=+$,/?#[]\\"}),
    (form(field(b"prompt", b"a\r\nb\r\n-\r\n--\r\n--A\r\n\n\r\xff\x00"), field(b"model", b"m")), {"model": "m"}),
    (form((FILE, b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nno\r\n'), field(b"model", b"yes")),
     {"model": "yes"}),
    (form(field(b"model", b"m"), (FILE, b""), field(b"prompt", b"model"), field(b"stream", b"true")),
     {"model": "m", "stream": "true"}),
    (form(field(b"n", b"10"), field(b"max_tokens", b"0"), field(b"stream", b"False")),
     {"n": "10", "max_tokens": "0", "stream": "False"}),
    (form((b"content-disposition:form-data;name=model", b"m")), {"model": "m"}),
    (form((PLAIN + b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 1\r\n"
           b"Content-Transfer-Encoding: 8bit", b"m")), {"model": "m"}),
    (form((PLAIN + b"\r\nContent-Length: 4", b"--ab")), {"model": "--ab"}),
    (form((b"Content-Disposition: form-data; name=file; filename=\"a.mp3\"; filename*=utf-8''a.mp3", b"x"),
          field(b"model", b"m")), {"model": "m"}),
    (form((b'Content-Disposition: form-data; name="file"; filename="C:\\a 100% \xc3\xa9;.mp3"', b"x"),
          field(b"model", b"m")), {"model": "m"}),
    (form((b'Content-Disposition: form-data; name="file"; filename="\xc3\x85 12:30 a=b.mp3"', b"x")), {}),
    (form((field(b"x", b"")[0] + b"\r\nContent-Transfer-Encoding: base64", b"bQ==")), {}),
    (form(*(field(b"x", b"y") for _ in range(MAX_PARTS - 1)), field(b"model", b"m")), {"model": "m"}),
    (form(*(field(name, b"x") for name in (b"timestamp_granularities[]", b"include[]", b"image[]", b"image[0]", b"user",
                                           b"chunking_strategy[type]", b"expires_after[anchor]",
                                           b"known_speaker_names[]",
                                           b"a-b", b"models", b"model_x", b"num"))), {}),
]  # fmt: skip

TWICE = "one of its fields may be taken for model, and is not called so"
OTHER = "a part's Content-Disposition is not: form-data; name=…, with or without a filename"
NO_HEADER = "a part has a header that is no plain one"
WITHIN = "its boundary is within a line"
TEXT_ONLY = "the field model is no plain text"
PRINTABLE = "the field model is not printable ASCII without white space around it"

BAD: list[tuple[bytes, str]] = [
    (b"", "it ends before its last boundary"),
    (b"--", "it ends before its last boundary"),
    (b"--B\r\n", "it ends before its last boundary"),
    (form(field(b"model", b"m"))[:-4], "it ends before its last boundary"),
    (form(field(b"model", b"m"))[:-8], "it ends before its last boundary"),
    (b'{"model":"m"}', "it does not begin with its boundary"),
    (b"model=m&n=1", "it does not begin with its boundary"),
    (b"\r\n" + form(field(b"model", b"m")), "it does not begin with its boundary"),
    (b"preamble\r\n" + form(field(b"model", b"m")), "it does not begin with its boundary"),
    (form(field(b"model", b"m")) + form(field(b"model", b"n")), "something follows its last boundary"),
    (form(field(b"model", b"m")) + b"\r\n" * 2, "something follows its last boundary"),
    (form(field(b"model", b"m")) + b"\n", "something follows its last boundary"),
    (form(field(b"model", b"m")) + b"x", "something follows its last boundary"),
    (form(field(b"model", b"m\n--B\n")), WITHIN),
    (form(field(b"model", b"m--B")), WITHIN),
    (form(field(b"model", b"m\r--B\r\n")), WITHIN),
    (form(field(b"model", b"m\r\n--Bx")), WITHIN),
    (form(field(b"model", b"m\r\n--B \r\n")), WITHIN),
    (form(field(b"model", b"m\r\n--B-x")), WITHIN),
    (form(field(b"model", b"m")).replace(b"\r\n", b"\n"), WITHIN),
    (b"--B\r\n--B--: x\r\n\r\n", WITHIN),
    (b"--B\r\n" + FILE + b"\r\n\r\n--B--\r\n", WITHIN),
    (b"--B\r\n\r\nm\r\n\r\n--B--\r\n", NO_HEADER),
    (form((b"Content-Type: text/plain", b"m")), OTHER),
    (form((FILE + b"\r\n" + FILE, b"m")), "a part repeats a header"),
    (form((field(b"x", b"")[0] + b"\r\n" + PLAIN.upper(), b"m")), "a part repeats a header"),
    (form((PLAIN + b"\r\nContent-Type: text/plain\r\ncontent-type: text/plain", b"m")), "a part repeats a header"),
    (form((b"Content-Disposition: form-data;\r\n name=model", b"m")), NO_HEADER),
    (form((PLAIN + b"\r\n x", b"m")), NO_HEADER),
    (form((b'Content-Disposition: form-data; name="a"\nX: ; name="model"', b"m")), NO_HEADER),
    (form((b"Content-Disposition : form-data; name=model", b"m")), NO_HEADER),
    (form((b"Content-Disposition:\tform-data; name=model", b"m")), NO_HEADER),
    (form((b"Content-Disposition: form-data; name=model ", b"m")), NO_HEADER),
    (form((b"Content-Disposition: form-data; name=mo\x00del", b"m")), NO_HEADER),
    (form((PLAIN + b"\r\nContent-Type:", b"m")), NO_HEADER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\xe2\x80\xa8X: name"', b"m")), NO_HEADER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\xff"', b"m")), "a part's headers are no UTF-8"),
    (form((PLAIN + b"\r\nX-Y: z", b"m")), "a part has another header than the usual ones of a form's parts"),
    (form((PLAIN + b"\r\nContent-Encoding: gzip", b"m")),
     "a part has another header than the usual ones of a form's parts"),
    (form((b'Content-Disposition: form-data; name="a"; name="model"', b"m")), OTHER),
    (form((b"Content-Disposition: form-data; name=a; name*=utf-8''model", b"m")), OTHER),
    (form((b"Content-Disposition: form-data; name*=utf-8''model", b"m")), OTHER),
    (form((b"Content-Disposition: form-data; name*0=mo; name*1=del", b"m")), OTHER),
    (form((b"Content-Disposition: attachment; name=model", b"m")), OTHER),
    (form((b"Content-Disposition: Form-Data; name=model", b"m")), OTHER),
    (form((b'Content-Disposition: form-data; NAME="model"', b"m")), OTHER),
    (form((b"Content-Disposition: form-data", b"m")), OTHER),
    (form((b"Content-Disposition: form-data; filename=a", b"m")), OTHER),
    (form((b'Content-Disposition: form-data; filename="a"; name="model"', b"m")), OTHER),
    (form((b'Content-Disposition: form-data; x="; name=y"; name="model"', b"m")), OTHER),
    (form((b"Content-Disposition: form-data; name=model, x", b"m")), OTHER),
    (form((b"Content-Disposition: form-data; name='model'", b"m")), OTHER),
    (form((b"Content-Disposition: form-data;  name=model", b"m")), OTHER),
    (form((b'Content-Disposition: form-data; name="model";', b"m")), OTHER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a"; filename="b"', b"m")), OTHER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\\"; name=\\"model"', b"m")), OTHER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\\""', b"m")), OTHER),
    (form((b'Content-Disposition: form-data; name="x"; filename="a\\"', b"m")), OTHER),
    *((form(field(name, b"m")), OTHER) for name in (
        b"mo\\del", b"mod%65l", b"mod\xc3\xa9l", b"", b" model", b"model ", b"=?utf-8?q?model?=", b"[model]", b"model[",
        b"model]", b"model[x]y", b"model[[]]", b"model.x", b"x.model", b"model+", b"model;", b"model=",
        b"\xef\xbd\x8dodel",
        b"\xef\xbb\xbfmodel",
    )),
    *((form(field(name, b"m")), TWICE) for name in (
        b"Model", b"MODEL", b"model[]", b"model[0]", b"model[a]", b"model[][]", b"x[model]", b"x[][Model]", b"mo_del",
        b"_model", b"model-", b"m-o-d-e-l",
    )),
    (form(field(b"model", b"m"), field(b"model[]", b"m")), TWICE),
    (form(field(b"max-tokens", b"1")), "one of its fields may be taken for max_tokens, and is not called so"),
    (form(field(b"maxTokens", b"1")), "one of its fields may be taken for max_tokens, and is not called so"),
    (form(field(b"N", b"1")), "one of its fields may be taken for n, and is not called so"),
    (form(field(b"_charset_", b"utf-7")), "it names a character set or a method of its own"),
    (form(field(b"_method", b"DELETE")), "it names a character set or a method of its own"),
    (form((b'Content-Disposition: form-data; name="x"; filename="a; name=model"', b"m")),
     "a part's headers name it twice"),
    (form((b"Content-Disposition: form-data; name=\"x\"; filename=\"a;name*=utf-8''model\"", b"m")),
     "a part's headers nam"),
    (form((field(b"x", b"")[0] + b'\r\nContent-Type: text/plain; name="model"', b"m")),
     "a part's headers name it twice"),
    (form((field(b"x", b"")[0] + b"\r\nContent-Type: multipart/mixed; boundary=C", b"m")),
     "a part has parts of its own"),
    (form((field(b"x", b"")[0] + b"\r\nContent-Type: Message/rfc822", b"m")), "a part has parts of its own"),
    (form((PLAIN + b"\r\nContent-Length: 2", b"m")), "a part's Content-Length is not its length"),
    (form((FILE + b"\r\nContent-Length: 0", b"m")), "a part's Content-Length is not its length"),
    (form((FILE + b"\r\nContent-Length: +1", b"m")), "a part's Content-Length is no number"),
    (form((PLAIN + b'; filename="m"', b"m")), TEXT_ONLY),
    (form((PLAIN + b'; filename=""', b"m")), TEXT_ONLY),
    (form((PLAIN + b"; filename*=utf-8''m", b"m")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Transfer-Encoding: base64", b"bQ==")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=6D")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Type: text/plain; charset=utf-16", b"m")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Type: text/plain; charset=utf-7", b"m")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Type: application/octet-stream", b"m")), TEXT_ONLY),
    (form((PLAIN + b"\r\nContent-Type: application/json", b'"m"')), TEXT_ONLY),
    *((form(field(b"model", text)), PRINTABLE) for text in (
        b"\xff", b"\xc3\xa9", b" m", b"m ", b"m\n", b"\r\nm", b"m\r\n", b"m\tn", b"m\x00", b"\xef\xbb\xbfm", b" ",
    )),
    *((form(field(b"n", text)), "the field n is not a whole number in plain digits") for text in (
        b"", b" 1", b"1 ", b"+1", b"-1", b"01", b"0x10", b"1e3", b"1.0", b"1_0", b"\xd9\xa1", b"9" * 13, b"[1]",
        b"many",
    )),
    *((form(field(b"stream", text)), "the field stream is not true or false") for text in (
        b"", b"yes", b"on", b"tRue", b" true", b"2", b"null",
    )),
    (form((PLAIN + b"\r\nContent-Type: " + b"x" * 5000, b"")), "a part's headers are longer than 4096 bytes"),
    (b"--B\r\nContent-Type: " + b"x" * 5000, "a part's headers are longer than 4096 bytes"),
    (form(*(field(b"x", b"y") for _ in range(MAX_PARTS)), field(b"model", b"m")), "it has more than 128 parts"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "values"), GOOD)
def test_wanted_fields_are_found_at_every_split(body: bytes, values: dict[str, str]) -> None:
    for pieces in splits(body) if len(body) < 1000 else ([body], [body[:999], body[999:]]):
        fields = read(pieces)
        assert (fields.values, fields.repeated, fields.too_large, fields.fault) == (values, set(), set(), None), pieces
        assert fields.final is not None
        assert body[fields.final :].rstrip(b"\r\n").endswith(b"--B--")
        assert len(body) - fields.final <= len(b"\r\n--B--\r\n\r\n")


@pytest.mark.parametrize(("body", "fault"), BAD)
def test_what_may_be_read_in_two_ways_is_a_fault_at_every_split(body: bytes, fault: str) -> None:
    for pieces in splits(body) if len(body) < 1000 else ([body], [body[:9], body[9:]], [body[:4500], body[4500:]]):
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
    fields = Fields(b"BBBB", WANTED)
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


@given(st.data())
def test_what_has_no_fault_reads_as_with_the_multipart_library(data: st.DataObject) -> None:
    names = st.sampled_from([b"model", b"file", b"x"])
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
    wanted = [(name, text) for name, text in expected if name == "model"]
    assert fields.values == dict(wanted)
    assert fields.repeated == {name for name, _ in wanted if sum(other == name for other, _ in wanted) > 1}


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"multipart/form-data;boundary=abc", b"abc"),
        (b'multipart/form-data; boundary="----=_Part_0.1"', b"----=_Part_0.1"),
        (b"multipart/form-data; charset=utf-8; boundary=----WebKitFormBoundary0aZ", b"----WebKitFormBoundary0aZ"),
        (b"multipart/form-data; boundary=a; charset=UTF-8", b"a"),
        (b"multipart/form-data; boundary=" + b"x" * 70, b"x" * 70),
        *((content_type, None) for content_type in (
            b"multipart/form-data; boundary=" + b"x" * 71,
            b"multipart/form-data",
            b"multipart/form-data; boundary=",
            b'multipart/form-data; boundary=""',
            b'multipart/form-data; boundary="a "',
            b'multipart/form-data; boundary="a b"',
            b'multipart/form-data; boundary="a\\b"',
            b'multipart/form-data; boundary="a',
            b"multipart/form-data; boundary=a\"b",
            b"multipart/form-data; boundary='a'",
            b"multipart/form-data; boundary=a; boundary=b",
            b"multipart/form-data; boundary=a; boundary=a",
            b"multipart/form-data; boundary=a; Boundary*=utf-8''b",
            b"multipart/form-data; boundary*=utf-8''a",
            b"multipart/form-data; boundary*0=a",
            b'multipart/form-data; x="; boundary=CC"; boundary=BB',
            b'multipart/form-data; boundary=BB; x="; boundary=CC"',
            b"multipart/form-data; xboundary=CC; boundary=BB",
            b"multipart/form-data; boundary=a; x=y",
            b"multipart/form-data; boundary=a;",
            b"multipart/form-data; boundary=a ",
            b"multipart/form-data; boundary=a\t",
            b" multipart/form-data; boundary=a",
            b"multipart/form-data ; boundary=a",
            b"multipart/form-data;\tboundary=a",
            b"multipart/form-data;  boundary=a",
            b"multipart/form-data; boundary =a",
            b"multipart/form-data; boundary= a",
            b"multipart/form-data, boundary=a",
            b"multipart/form-data; boundary=a,b",
            b"multipart/form-data; boundary=a, multipart/form-data; boundary=b",
            b"multipart/form-data; boundary=a b",
            b"multipart/form-data; boundary=a\xff",
            b"multipart/form-data; boundary=a%20",
            b"multipart/form-data; boundary=a(b)",
            b"multipart/form-data; BOUNDARY=a",
            b"Multipart/Form-Data; boundary=a",
            b"multipart/form-data; charset=utf-16; boundary=a",
            b"multipart/form-data; boundary=a; charset=utf-7",
            b"multipart/form-data; charset=utf-8; boundary=a; charset=utf-8",
            b"multipart/mixed; boundary=a",
            b"multipart/related; boundary=a",
            b"multipart/form-data2; boundary=a",
            b"application/x-www-form-urlencoded; boundary=a",
            b"application/json; boundary=a",
            b"",
        )),
    ],
)  # fmt: skip
def test_a_boundary_is_taken_only_where_all_read_it_alike(content_type: bytes, boundary: Any) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize("client", CLIENTS)
def test_the_usual_clients_forms_have_no_fault(client: str) -> None:
    content_type, body = CLIENTS[client]
    boundary = boundary_of(content_type)
    assert boundary is not None
    for pieces in [*splits(body)][::9]:
        fields = read(pieces, boundary)
        assert (fields.values["model"], fields.repeated, fields.fault) == ("whisper-1", set(), None), pieces
