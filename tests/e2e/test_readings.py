"""What is read of a body is what any parser behind the proxy reads of it, or it is a fault."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstack.usage.request_facts import BodyKind, RequestFacts, read_request_facts
from tests.e2e.parsers import Parsers
from tests.usage.client_forms import CLIENTS

pytestmark = pytest.mark.e2e

JSON = b"application/json"
WANTED = (
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of",
    "service_tier", "prompt", "conversation", "previous_response_id",
)  # fmt: skip

OTHER = "a-boundary-that-stands-in-no-example"

Pairs = Iterable[tuple[str, str]]


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parsers]:
    children = Parsers(tmp_path_factory.mktemp("parsers"))
    yield children
    children.stop()


def asked(kind: BodyKind, content_type: bytes, body: bytes) -> RequestFacts:
    found = read_request_facts(kind, {b"content-type": content_type}, body)
    assert found is not None
    return found


def readable(found: RequestFacts) -> bool:
    return found.fault is None and not found.repeated


def meant(name: str) -> str | None:
    """The wanted name that a handler might find below a name, whatever it makes of case and punctuation."""
    for part in re.split(r"[][.\s]+", name.casefold()):
        for wanted in WANTED:
            if re.sub(r"[\W_]", "", part) == wanted.replace("_", ""):
                return wanted
    return None


def as_form(pairs: Pairs) -> bytes:
    parts = dict.fromkeys((meant(name), value) for name, value in pairs if meant(name) not in (None, "prompt"))
    return "".join(
        f'--{OTHER}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts
    ).encode() + f"--{OTHER}--\r\n".encode()


def as_json(pairs: Pairs) -> bytes:
    members = {name.casefold(): value for name, value in pairs if name.casefold() in WANTED}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}").encode()


def said(found: RequestFacts) -> tuple[Any, ...]:
    return found.model, found.stream, found.include_usage, found.service_tier, found.stored_prompt


def same(one: RequestFacts, other: RequestFacts) -> bool:
    """Whether two readings agree, but for what numbers lose in parsers that know no large whole ones."""
    mine, theirs = one.limits or {}, other.limits or {}
    both = mine.keys() & theirs.keys()
    numbers = [(one.n, other.n), *((mine[name], theirs[name]) for name in both)]
    return (
        said(one) == said(other)
        and mine.keys() == theirs.keys()
        and all(
            left == right or (left is not None and right is not None and math.isclose(left, right))
            for left, right in numbers
        )
    )


def differing(parsers: Parsers, kind: BodyKind, content_type: bytes, body: bytes) -> dict[str, Any]:
    """By parser what those found who read something else than what is asked for here."""
    ours = asked(kind, content_type, body)
    found = {}
    for parser, pairs in parsers.read(content_type, body).items():
        if pairs is not None:
            theirs = (
                asked("json", JSON, as_json(pairs))
                if kind == "json"
                else asked("multipart", f"multipart/form-data; boundary={OTHER}".encode(), as_form(pairs))
            )
            if not same(ours, theirs):
                found[parser] = pairs
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_the_usual_clients_forms_are_read_alike_by_all(parsers: Parsers, client: str) -> None:
    content_type, body = CLIENTS[client]
    assert readable(asked("multipart", content_type, body))
    assert asked("multipart", content_type, body).model == "whisper-1"
    assert differing(parsers, "multipart", content_type, body) == {}


def one(head: bytes, text: bytes = b"a") -> bytes:
    return b"--B\r\n" + head + b"\r\n\r\n" + text + b"\r\n--B--\r\n"


FORM = b"multipart/form-data; boundary=B"
MODEL = b'Content-Disposition: form-data; name="model"'
TWO = b"--CC\r\n" + MODEL + b"\r\n\r\nb\r\n--CC--\r\n--BB\r\n" + MODEL + b"\r\n\r\na\r\n--BB--\r\n"
"""Two forms, told apart by the boundary."""

TRICKS: dict[str, tuple[bytes, bytes]] = {
    "a boundary within another parameter": (b'multipart/form-data; x="; boundary=CC"; boundary=BB', TWO),
    "two boundaries": (b"multipart/form-data; boundary=CC; boundary=BB", TWO),
    "an encoded boundary": (b"multipart/form-data; boundary*=utf-8''CC; boundary=BB", TWO),
    "a parameter that ends like a boundary": (b"multipart/form-data; xboundary=CC; boundary=BB", TWO),
    "two Content-Types": (b"multipart/form-data; boundary=BB, multipart/form-data; boundary=CC", TWO),
    "no last boundary": (FORM, one(MODEL)[:-4]),
    "an epilogue": (FORM, one(MODEL) + one(MODEL, b"b")),
    "a preamble": (FORM, one(MODEL, b"b").replace(b"--B\r\n", b"-B\r\n") + one(MODEL)),
    "white space behind a boundary": (FORM, one(MODEL, b"a\r\n--B \r\n")),
    "a boundary that begins like the right one": (FORM, one(MODEL, b"a\r\n--Bx")),
    "a boundary within a line": (FORM, one(MODEL, b"a--B")),
    "line ends that are LF": (FORM, one(MODEL).replace(b"\r\n", b"\n")),
    "two Content-Dispositions": (FORM, one(b'Content-Disposition: form-data; name="x"\r\n' + MODEL)),
    "a folded header": (FORM, one(MODEL.replace(b" name", b"\r\n name"))),
    "a space before the colon": (FORM, one(MODEL.replace(b":", b" :"))),
    "a header within a header": (FORM, one(b'Content-Disposition: form-data; name="x"\nX: y; name="model"')),
    "two names": (FORM, one(b'Content-Disposition: form-data; name="x"; name="model"')),
    "an encoded name": (FORM, one(b"Content-Disposition: form-data; name=x; name*=utf-8''model")),
    "a name in pieces": (FORM, one(b"Content-Disposition: form-data; name*0=mo; name*1=del")),
    "a name within another parameter": (FORM, one(b'Content-Disposition: form-data; x="; name=y"; name="model"')),
    "another disposition": (FORM, one(b'Content-Disposition: attachment; name="model"')),
    "a name with NUL": (FORM, one(b"Content-Disposition: form-data; name=mo\x00del")),
    "a name with an index": (FORM, one(b'Content-Disposition: form-data; name="model[0]"')),
    "a name in brackets": (FORM, one(b'Content-Disposition: form-data; name="x[model]"')),
    "base64": (FORM, one(MODEL + b"\r\nContent-Transfer-Encoding: base64", b"YQ==")),
    "quoted-printable": (FORM, one(MODEL + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=61")),
    "another charset": (FORM, one(MODEL + b"\r\nContent-Type: text/plain; charset=utf-16")),
    "a field that is a file": (FORM, one(MODEL + b"\r\nContent-Type: application/octet-stream")),
    "text that is no UTF-8": (FORM, one(MODEL, b"\xff")),
    "a byte order mark": (FORM, one(MODEL, b"\xef\xbb\xbfa")),
    "a member in another case": (JSON, b'{"model":"a","Model":"b"}'),
    "a member in letters that fold": (JSON, b'{"stream":false,"\xc5\xbftream":true}'),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_parsers_read_in_two_ways_is_a_fault(parsers: Parsers, trick: str) -> None:
    content_type, body = TRICKS[trick]
    assert not readable(asked("json" if content_type == JSON else "multipart", content_type, body))
    readings = {None if pairs is None else str(sorted(pairs)) for pairs in parsers.read(content_type, body).values()}
    assert len(readings - {None}) > 1


# A form is a row of places, each with what usually stands there and what oddly might. Few places are odd at once:
# what is wholly odd is refused by all.

Place = tuple[bytes, ...]
"""What usually stands somewhere, and what else might."""

SEMICOLON: Place = (b"; ", b";", b" ; ", b";\t", b";;", b", ", b";  ", b"; x=y; ", b'; x="; name=model"; ', b";\r\n ")
COLON: Place = (b": ", b":", b":  ", b":\t", b" : ", b":\r\n ", b"=")
QUOTE: Place = (b'"', b"'", b"", b'\\"', b'""')
LINE_END: Place = (b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" \r\n", b"", b"\r\r\n", b"\n\r", b"\t\r\n")

CONTENT_TYPE: tuple[Place, ...] = (
    (b"multipart/form-data", b"Multipart/Form-Data", b"MULTIPART/FORM-DATA", b"multipart/mixed", b"multipart/related",
     b"multipart/form-data ", b"multipart/form-data, multipart/form-data", b"multipart / form-data",
     b"multipart/form-data2",
     b"application/x-www-form-urlencoded", b"application/json, multipart/form-data", b" multipart/form-data"),
    SEMICOLON,
    (b"boundary=B", b'boundary="B"', b"Boundary=B", b"BOUNDARY=B", b"boundary = B", b"boundary= B", b"boundary=B ",
     b"boundary='B'", b"boundary=C; boundary=B", b"boundary=B; boundary=C", b'x="; boundary=C"; boundary=B',
     b"boundary=b",
     b"boundary=B, boundary=C", b"boundary*=utf-8''C; boundary=B", b"boundary*0=C; boundary=B", b'boundary="B', b"B",
     b'boundary="B\\"', b'boundary="\\B"', b"xboundary=C; boundary=B", b"boundary=B;", b"boundary=B; charset=utf-8",
     b"charset=utf-8; boundary=B", b"boundary=B; charset=utf-16", b"charset=utf-7; boundary=B", b"boundary=B; x=y",
     b'boundary=B; x="; boundary=C"', b'boundary="B "', b"boundary=B\t", b"boundary=B%20", b"boundary=B(c)",
     b"boundary=",
     b'boundary="B;C"', b"boundary=B;C", b"boundary=B; charset=UTF-8; charset=utf-7", b"charset=UTF-8;boundary=B"),
)  # fmt: skip

BEGIN: Place = (b"", b"\r\n", b"preamble\r\n", b" ", b"--\r\n", b"\n", b"--C\r\n", b"\xef\xbb\xbf")
END: tuple[Place, ...] = (
    (b"--B--", b"--B-", b"--B", b"--B--x", b"--b--", b"--B --", b"", b"--C--", b"--B\r\n--B--", b"--B--\r\n--B--"),
    (b"\r\n", b"", b"\n", b"\r\n\r\n", b" ", b"\r\nepilogue", b"\r\n--B\r\n", b"\r", b"\r\n\r\n\r\n", b"\x00"),
)  # fmt: skip

ODD_NAMES = (
    b"Model", b"MODEL", b"model[]", b"model[0]", b"model[a]", b"[model]", b"x[model]", b"model]", b"model[", b" model",
    b"model ", b"mo\\del", b"model\\", b"mod%65l", b"%6dodel", b"=?utf-8?q?model?=", b"=?utf-8?b?bW9kZWw=?=", b"",
    b"model\x00", b"model\x00x", b"m\xc3\xb6del", b"\xef\xbb\xbfmodel", b"\xef\xbd\x8dodel", b"model.x", b"x.model",
    b"N",
    b"n[]", b"model\t", b"mod\xe2\x80\x8bel", b"_charset_", b"_method", b"max-tokens", b"maxTokens", b"max tokens",
    b"stream[]", b"a" * 120, b"model;", b"model=", b"model\xff", b"x", b"model", b"n", b"stream", b"prompt",
)  # fmt: skip
ODD_VALUES = (
    b"a", b"b", b"1", b"0", b"", b" a", b"a ", b"\xc3\xa9", b"\xff", b"a\r\n", b"\r\na", b"\na", b"a\n", b"YQ==",
    b"=61",
    b"a%20b", b"a+b", b"\xef\xbb\xbfa", b"--B", b"\r\n--B", b"\n--B\n", b"--B--", b"\r\n--BX", b"\r\n--B \r\n",
    b"\r\n--",
    b'\r\n--C\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--C--\r\n', b"-" * 9, b"1e3", b"0x10", b"010",
    b"1_0", b"+1", b"-1", b"[1]", b"\x00", b"a\x00b", b"a,b", b'"a"', b"TRUE", b"yes", b"a b", b"\r", b"\r\n-",
    b"\r\n--b",
    b'a\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nb', b"\xe2\x80\xa8", b"a\tb",
    b"~!'()*;:@&=+$,/?#[]",
)  # fmt: skip

FILE: Place = (
    b'; filename="a.mp3"\r\nContent-Type: audio/mpeg', b'; filename="a.mp3"', b'; filename=""', b"; filename=a.mp3",
    b"",
    b"; filename*=utf-8''a%22.mp3", b"; filename=a.mp3; filename*=utf-8''a.mp3", b'; filename="a\\"',
    b'; filename="a\\\\"',
    b'; filename="a\\"; name=\\"model"', b'; filename="a; name=model"', b'; filename="a";name*=utf-8\'\'model',
    b"; filename",
    b'; filename="x\xe2\x80\xa8name=model"', b'; filename="\xc3\xa9 %22.mp3"', b'; filename="C:\\a"',
    b'; filename="a=b;c"',
    b'; filename="x\x85Content-Disposition: form-data; name=model"', b'; filename="a\rb"',
    b'; Filename="a"; name="model"',
    b'; filename="a" ; name=model', b"; filename*=utf-8''a%0d%0aContent-Disposition:%20form-data;%20name=model",
    b'; filename="=?utf-8?q?a?="', b'; filename="a"; filename="b"', b"; filename*0=a; filename*1=b",
    b'; filename="\xff"',
    b'; filename="x\xc3\x85y.mp3"', b'; filename="a:b;c,d.mp3"', b"; filename=\"a'b.mp3\"",
)  # fmt: skip
HEADERS: Place = (
    b"", b"\r\nContent-Type: text/plain", b"\r\nContent-Type: text/plain; charset=utf-16", b"\r\nContent-Length: 1",
    b"\r\nContent-Type: text/plain; charset=utf-7", b"\r\nContent-Type: application/octet-stream",
    b"\r\nContent-Length: 9",
    b"\r\nContent-Type: multipart/mixed; boundary=C", b'\r\nContent-Type: text/plain; name="model"', b"\r\nX: y",
    b"\r\n x",
    b"\r\nContent-Transfer-Encoding: base64", b"\r\nContent-Transfer-Encoding: quoted-printable", b"\r\n\tx", b"\nX: y",
    b"\r\nContent-Transfer-Encoding: 8bit", b'\r\nContent-Disposition: form-data; name="model"',
    b"\r\nContent-Length: x",
    b"\r\nContent-Encoding: gzip", b"\r\nContent-Type: application/json", b"\r\nContent-Type: message/rfc822", b"\r\n",
    b"\r\nContent-Type: Text/Plain;charset=UTF-8", b"\r\nContent-Disposition: attachment", b"\r\ncontent-length: 5",
    b"\r\nContent-Type: text/plain;charset=ISO-8859-1", b"\r\nContent-Type: text/plain; charset=us-ascii",
    b"; charset=utf-16",
    b"\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: binary", b"\r\nContent-Type: text/html",
    b"\r\nContent-Type:",
)  # fmt: skip


def part(name: bytes, value: bytes) -> tuple[Place, ...]:
    return (
        (b"--B", b"--b", b"-B", b"---B", b"--BB", b"--C", b" --B", b"--B ", b"--B\t", b"--B--", b'--"B"', b"\r\n--B"),
        LINE_END,
        (b"Content-Disposition", b"content-disposition", b"CONTENT-DISPOSITION", b" Content-Disposition",
         b"Content-Type",
         b"X-Content-Disposition", b"Content-Type: x/y\r\nContent-Disposition",
         b"Content-Length: 9\r\nContent-Disposition",
         b'X: form-data; name="model"\r\nContent-Disposition'),
        COLON,
        (b"form-data", b"Form-Data", b"attachment", b"form-data ", b"inline", b"file", b"", b'"form-data"',
         b'form-data; filename="a"', b'form-data; filename="name=model"', b'form-data; name="model"'),
        SEMICOLON,
        (b"name=", b"Name=", b"NAME=", b"name =", b"name= ", b"name*=", b"name*=utf-8''", b"name*0=", b"nam=",
         b"xname="),
        QUOTE,
        (name, *ODD_NAMES),
        QUOTE,
        FILE if value == b"audio" else (FILE[4], *FILE[:4], *FILE[5:]),
        HEADERS,
        LINE_END,
        LINE_END,
        (value, *ODD_VALUES),
        LINE_END,
    )  # fmt: skip


PARTS = st.lists(
    st.sampled_from([
        part(b"model", b"whisper-1"), part(b"model", b"whisper-1"), part(b"stream", b"true"), part(b"n", b"2"),
        part(b"file", b"audio"), part(b"x", b"text"), part(b"timestamp_granularities[]", b"word"), part(b"x", b"model"),
    ]),
    min_size=1,
    max_size=3,
)  # fmt: skip
BOUNDARIES = st.sampled_from((b"B", b"B", b"-", b"--", b"B--", b"--B", b"+.", b"_", b"B" * 70, b"B" * 71, b"0", b"e"))
ODDITIES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=2)
TOKENS = (
    b"", b"\r", b"\n", b"\r\n", b"--", b"-", b"B", b"--B", b'"', b"'", b"\\", b"\x00", b";", b"=", b":", b" ", b"\t",
    b"%", b"[",
    b"\xff", b"\xc2\x85", b"\x0b", b"name=", b"\r\n--B\r\n", b"\r\n\r\n", b"model", b"]", b",", b"a", b"\r\n--B--\r\n",
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2), st.sampled_from(TOKENS)), min_size=1, max_size=2)


def spoiled(body: bytes, edits: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A body in which some places were changed."""
    spoilt = bytearray(body)
    for at, cut, token in edits:
        at %= len(spoilt) + 1
        spoilt[at : at + cut] = token
    return bytes(spoilt)


def oddly(row: Sequence[Place], oddities: Iterable[tuple[int, int]]) -> list[bytes]:
    """What stands in each place, in some of them oddly."""
    chosen = [place[0] for place in row]
    for where, which in oddities:
        place = row[where % len(row)]
        chosen[where % len(row)] = place[which % len(place)]
    return chosen


@st.composite
def forms(draw: Any) -> tuple[bytes, bytes]:
    """A Content-Type and a body, odd in a few places."""
    if draw(st.integers(0, 3)) == 0:
        content_type, body = draw(st.sampled_from(list(CLIENTS.values())))
        return content_type, spoiled(body, draw(EDITS))
    row = [*CONTENT_TYPE, BEGIN, *itertools.chain.from_iterable(draw(PARTS)), *END]
    chosen = oddly(row, draw(ODDITIES))
    content_type, body = b"".join(chosen[: len(CONTENT_TYPE)]), b"".join(chosen[len(CONTENT_TYPE) :])
    boundary = draw(BOUNDARIES)
    return content_type.replace(b"B", boundary), body.replace(b"B", boundary)


EXAMPLES = settings(derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def test_a_form_that_is_read_is_read_alike_by_all(parsers: Parsers) -> None:
    seen: set[tuple[bytes, bytes]] = set()

    @settings(EXAMPLES, max_examples=600)
    @given(forms())
    def check(form: tuple[bytes, bytes]) -> None:
        if form not in seen and readable(asked("multipart", *form)):
            assert differing(parsers, "multipart", *form) == {}
            seen.add(form)

    check()
    assert len(seen) > 100


# Objects, the same way: names and values of any kind, and a few places in which no parser of a strict mind agrees.

NAMES: Place = (
    b'"model"', b'"stream"', b'"n"', b'"max_tokens"', b'"stream_options"', b'"best_of"', b'"max_completion_tokens"',
    b'"max_output_tokens"', b'"service_tier"', b'"prompt"', b'"conversation"', b'"previous_response_id"', b'"x"',
    b'"mod\\u0065l"', b'"\\u006e"', b'"st\\u0072eam"', b'"__proto__"', b'""', b'"constructor"', b'"\\u0000"',
    b'"model "',
    b'"model\\u0000"', b'"mod\xc3\xa9l"', b'"\xef\xbd\x8dodel"', b'"\\"model"', b'"mo\\\\del"', b'"m\\u00f6del"',
)  # fmt: skip
ODD_JSON_NAMES: Place = (
    b'"Model"', b'"MODEL"', b'"\\u004dodel"', b'"mo\\del"', b"'model'", b"model", b'"model\x00"', b'"model\xff"',
    b'"N"',
    b'"\\ud800model"', b'"model\\"', b'"mo\tdel"', b'"\xc5\xbftream"', b'"\\u017ftream"', b'"max_to\xe2\x84\xaaens"',
    b'"MaxTokens"', b'"Best_Of"', b"1", b"null", b'"x\\',
)  # fmt: skip
VALUES: Place = (
    b'"a"', b'"b"', b"true", b"false", b"null", b"1", b"2", b"0", b"-0", b"-1", b"1.0", b"1.5", b"1e3", b"1E+2",
    b"1e-2",
    b'"a\\u0062"', b'"\\u0061"', b'"\\ud83d\\ude00"', b'"\\/"', b'"a\x7f"', b'"\xe2\x80\xa8"', b'"}"', b'""', b'"1"',
    b'"1e3"',
    b'"\\",\\"model\\":\\"b"', b'" 1"', b"{}", b"[]", b'{"model":"b"}', b'{"model":"b","model":"c"}', b'["model","b"]',
    b'{"include_usage":true}', b'{"include_usage":false}', b'{"include_usage":null}', b'{"x":{"include_usage":true}}',
    b'{"\\u0069nclude_usage":true}', b'[{"model":"b"}]', b'{"id":"a"}', b"9007199254740993", b"18446744073709551616",
    b"1e22", b"0.1e1", b"4.9999999999999999", b'{"":{"":{}}}', b"[" * 30 + b"]" * 30, b'"\xef\xbb\xbf"', b'"\\\\"',
    b'"[{"',
)  # fmt: skip
ODD_JSON_VALUES: Place = (
    b'"\\ud800"', b'"\\udc00a"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"', b'"\x00"',
    b'"a\nb"',
    b'"\\x61"', b'"\\u00"', b'"\\U0061"', b'"a\\\n"', b'"', b'"\\"', b'"a""b"', b"'a'", b"01", b"+1", b".5", b"1.",
    b"0x10",
    b"1_0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"1" + b"0" * 400, b"1 2", b"-", b"1e", b"True", b"tru", b"truee",
    b"undefined", b"", b"[1,]", b"[,]", b"[1 2]", b'{"a":1,}', b"{a:1}", b"{]", b"[}", b"//", b"/* */1", b"1}", b'"a"}',
    b'{"a":"\xff"}', b"[1.2.3]", b"[--1]", b"[tru]", b'["\\x"]', b'["\x01"]', b"[01]", b"[truefalse]", b"\x0b1",
    b"\xc2\xa01",
    b"\xef\xbb\xbf1", b"\x001", b'{"include_usage":true,"include_usage":false}',
    b'{"include_usage":false,"Include_Usage":true}',
)  # fmt: skip
SPACE: Place = (
    b"", b" ", b"\n", b"\r\n\t", b"\x0b", b"\x0c", b"\xc2\xa0", b"\xe2\x80\xa8", b"\x00", b"\xef\xbb\xbf", b"//\n",
    b"#", b"/**/",
    b",", b":", b"=", b"{", b"}", b"]", b'"',
)  # fmt: skip
COLONS: Place = (b":", b"::", b"=", b"", b",", b"=>")
MEMBERS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4, unique_by=lambda pair: pair[0]
)


@st.composite
def objects(draw: Any) -> bytes:
    """An object, odd in a few places."""
    row: list[Place] = [SPACE, (b"{", b"[{", b"{{", b"", b"[", b'{"x":{', b"\xef\xbb\xbf{")]
    for at, (name, value) in enumerate(draw(MEMBERS)):
        row += [(b",", b",,", b"", b";", b"}{", b"},{")] if at else []
        row += [SPACE, (name, *ODD_JSON_NAMES), SPACE, COLONS, SPACE, (value, *ODD_JSON_VALUES), SPACE]
    row += [(b"}", b",}", b"}}", b"", b"]", b"}]", b"};", b'}{"model":"b"}', b"} x"), SPACE]
    body = b"".join(oddly(row, draw(ODDITIES)))
    return spoiled(body, draw(EDITS)) if draw(st.integers(0, 3)) == 0 else body


def test_an_object_that_is_read_is_read_alike_by_all(parsers: Parsers) -> None:
    seen: set[bytes] = set()

    @settings(EXAMPLES, max_examples=1500)
    @given(objects())
    def check(body: bytes) -> None:
        if body not in seen and readable(asked("json", JSON, body)):
            assert differing(parsers, "json", JSON, body) == {}
            seen.add(body)

    check()
    assert len(seen) > 100
