"""The upstream sees the client's bytes, and the client the upstream's, but for what the contract lists.

Both ends are bare sockets. Fields are compared one by one, in order and in case; bodies byte by byte.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator

import brotli
import pytest
import zstandard

from tests.e2e.raw import Answer, Pairs, lines, values, without
from tests.e2e.raw_upstream import Front, Seen, front, reply

pytestmark = pytest.mark.e2e

BINARY = random.Random(7).randbytes(300_000)
JSON = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Grüße, 世界 \\u0000"}]}'.encode()
MULTIPART = (
    b'preamble that nobody reads\r\n--b0uNd-Ary\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    b'--b0uNd-Ary\r\nContent-Disposition: form-data; name="file"; filename="n\xc3\xa4me \\"q\\".bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + bytes(range(256)) * 4 + b"\r\n\r\n--b0uNd-Ary--\r\nepilogue\n"
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with front(tmp_path_factory.mktemp("bytes")) as found:
        yield found
        assert found.upstream.faults == []


@pytest.fixture(autouse=True)
def fresh(ends: Front) -> None:
    ends.upstream.forget()


def through(ends: Front, line: bytes, fields: Pairs, *body: bytes) -> tuple[Seen, Answer]:
    """Send a request exactly so, and return what the upstream saw and what it answered."""
    method = line.split(b" ")[0].decode()
    with ends.client() as client:
        answer = client.ask(lines(line, fields), *body, method=method)
        assert client.quiet(0.01), "more came than the answer"
    assert len(ends.upstream.requests) == 1
    return ends.upstream.last(), answer


def usual(ends: Front) -> Pairs:
    return [(b"Host", b"flowstack.example"), (b"Flowstack-Auth", b"Bearer " + ends.proxy.key.encode())]


# The request.

METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]


@pytest.mark.parametrize("with_body", [False, True], ids=["bare", "with-body"])
@pytest.mark.parametrize("method", METHODS, ids=bytes.decode)
def test_each_method_arrives_as_it_was_sent_with_its_body(ends: Front, method: bytes, with_body: bool) -> None:
    length = [(b"Content-Length", b"%d" % len(JSON))] if with_body else []
    seen, answer = through(ends, method + b" /v1/a/b HTTP/1.1", [*usual(ends), *length], *([JSON] if with_body else []))
    assert seen.line == method + b" /api/base/a/b HTTP/1.1"
    assert seen.pairs == [(b"Host", ends.upstream.authority), *length]
    assert (seen.framed, answer.status) == (JSON if with_body else b"", 200)


TARGETS = [
    b"",
    b"models",
    b"models/",
    b"models//two",
    b"/models",
    b"models?",
    b"models??a=b",
    b"models?a?b?",
    b"?",
    b"?a=b",
    b"models?a=b&a=c&&=&c",
    b"models?include[]=x&include[]=y",
    b"models?include%5B%5D=x",
    b"models/%7Euser",
    b"models/~user",
    b"models/a%2Fb",
    b"models/a%2fb",
    b"models/%41%61%C3%A4%00%0D%0A%25",
    b"models/a;b=c;d",
    b"models/a:b@c!$&'()*+,=",
    b"models?q=%20+%2B&r=/../..//./",
    b"models?url=http://other.example/v1/x?y",
    b"files/..hidden",
    b"files/...",
    b"files/a..b/.c/d.",
    b"v1/v1/",
    b"models/" + b"x" * 8000,
    b"models?" + b"y=1&" * 4000,
]


@pytest.mark.parametrize("rest", TARGETS, ids=lambda rest: rest[:40].decode() or "nothing")
def test_the_target_after_the_prefix_goes_on_byte_for_byte(ends: Front, rest: bytes) -> None:
    seen, _ = through(ends, b"GET /v1/" + rest + b" HTTP/1.1", usual(ends))
    assert seen.line == b"GET /api/base/" + rest + b" HTTP/1.1"


FIELDS: dict[str, Pairs] = {
    "what an SDK sends": [
        (b"Accept", b"application/json"),
        (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
        (b"Authorization", b"Bearer sk-proj-abc"),
        (b"User-Agent", b"OpenAI/Python 2.0"),
        (b"OpenAI-Organization", b"org-1"),
        (b"X-Stainless-Arch", b"x64"),
        (b"Idempotency-Key", b"stainless-python-retry-1"),
    ],
    "odd case": [(b"aUTHORIZATION", b"Bearer x"), (b"x-lower", b"1"), (b"X-UPPER", b"2"), (b"X-mIXed", b"3")],
    "repeats, apart and in several cases": [
        (b"X-A", b"1"),
        (b"X-B", b"2"),
        (b"x-a", b"3"),
        (b"X-A", b"1"),
        (b"Cookie", b"a=b"),
        (b"Accept", b"text/html"),
        (b"Cookie", b"c=d; e=f"),
        (b"accept", b"*/*"),
    ],
    "odd names and values": [
        (b"!#$%&'*+-.^_`|~09aZ", b"every character of a token"),
        (b"X-Empty", b""),
        (b"X-Inner", b'a  b\tc ,;="\\'),
        (b"X-Latin", b"caf\xe9"),
        (b"X-Utf8", "Grüße, 世界".encode()),
        (b"X-Long", b"v" * 20_000),
        (b"X-Date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    ],
    "provider's credentials": [(b"api-key", b"azure"), (b"x-api-key", b"anthropic"), (b"Authorization", b"Basic Zm9v")],
    "what only looks like the connection's own": [
        (b"Trailer", b"X-T"),
        (b"Keep-Alive-Not", b"1"),
        (b"X-Connection", b"close"),
        (b"Proxy-Authorization-Not", b"x"),
        (b"X-Flowstack-Auth", b"not ours"),
        (b"Forwarded-Not", b"x"),
        (b"Range", b"bytes=0-1"),
        (b"If-None-Match", b'"e"'),
    ],
    "two hundred": [(b"X-%d" % number, b"%d" % number) for number in range(200)],
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_header_fields_keep_order_case_and_repeats(ends: Front, fields: Pairs) -> None:
    host, auth = usual(ends)
    middle = len(fields) // 2
    seen, _ = through(ends, b"GET /v1/x HTTP/1.1", [*fields[:middle], host, auth, *fields[middle:]])
    assert seen.pairs == [*fields[:middle], (b"Host", ends.upstream.authority), *fields[middle:]]
    assert seen.raw_head == lines(b"GET /api/base/x HTTP/1.1", seen.pairs)


@pytest.mark.parametrize("spacing", [b"", b" ", b"\t", b"  \t "], ids=["none", "one", "tab", "many"])
def test_white_space_around_a_value_is_no_part_of_it(ends: Front, spacing: bytes) -> None:
    host, auth = usual(ends)
    raw = lines(b"GET /v1/x HTTP/1.1", [host, auth])[:-2] + b"X-A:" + spacing + b"a b" + spacing + b"\r\n\r\n"
    with ends.client() as client:
        assert client.ask(raw).status == 200
    assert seen_values(ends, b"x-a") == [b"a b"]


def seen_values(ends: Front, name: bytes) -> list[bytes]:
    return values(ends.upstream.last().pairs, name)


DROPPED: dict[str, Pairs] = {
    "connection's own": [
        (b"Connection", b"keep-alive"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"h2c, TLS/1.0"),
    ],
    "named by Connection": [
        (b"X-Gone", b"1"),
        (b"Connection", b"x-gone, KEEP-ALIVE"),
        (b"X-Also-Gone", b"2"),
        (b"connection", b" X-Also-Gone ,"),
        (b"x-GONE", b"3"),
    ],
    "Flowstack's own": [
        (b"Flowstack-Attribute-Team", b"search"),
        (b"fLOWSTACK-attribute-run", b"7"),
        (b"Flowstack-Anything", b"x"),
        (b"FLOWSTACK-RateLimit-Limit-Requests", b"1"),
    ],
    "Expect": [(b"Expect", b"something-else")],
    "hops before this one": [
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"x-forwarded-host", b"h"),
        (b"X-Forwarded-Port", b"1"),
        (b"Forwarded", b"for=10.0.0.1"),
        (b"Via", b"1.1 other"),
    ],
}


@pytest.mark.parametrize("fields", DROPPED.values(), ids=DROPPED)
def test_what_the_contract_takes_out_is_gone_and_its_neighbours_stay(ends: Front, fields: Pairs) -> None:
    kept = [(b"X-Before", b"1"), (b"X-After", b"2")]
    between = [kept[0], *fields, kept[1]]
    seen, _ = through(ends, b"GET /v1/x HTTP/1.1", [*usual(ends), *between])
    assert seen.pairs == [(b"Host", ends.upstream.authority), *kept]


BODIES = {
    "empty": b"",
    "one byte": b"\x00",
    "JSON": JSON,
    "multipart": MULTIPART,
    "binary": BINARY,
    "a request as a body": b"GET /v1/secret HTTP/1.1\r\nHost: x\r\n\r\n",
    "a last chunk as a body": b"0\r\n\r\n",
    "gzip": gzip.compress(JSON),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_of_known_length_arrives_byte_for_byte_with_its_length(ends: Front, body: bytes) -> None:
    fields = [
        (b"Content-Type", b"multipart/form-data; boundary=b0uNd-Ary"),
        (b"content-length", b"%d" % len(body)),
        (b"Content-Encoding", b"x-odd"),
    ]
    seen, _ = through(ends, b"POST /v1/files HTTP/1.1", [*usual(ends), *fields], body)
    assert seen.pairs == [(b"Host", ends.upstream.authority), *fields]
    assert seen.framed == body


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_of_known_length_may_come_in_pieces_of_any_size(ends: Front, size: int) -> None:
    body = BINARY[: size * 60]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    head = [*usual(ends), (b"Content-Length", b"%d" % len(body))]
    seen, _ = through(ends, b"POST /v1/files HTTP/1.1", head, *pieces)
    assert seen.framed == body


def chunks(body: bytes, *sizes: int, extension: bytes = b"", end: bytes = b"0\r\n\r\n") -> list[bytes]:
    """A chunked body of these sizes in turn, one chunk a piece."""
    found, at, turn = [], 0, 0
    while at < len(body):
        part = body[at : at + sizes[turn % len(sizes)]]
        found.append(b"%x%b\r\n%b\r\n" % (len(part), extension, part))
        at, turn = at + len(part), turn + 1
    return [*found, end]


CHUNKED = {
    "nothing": (b"", [b"0\r\n\r\n"]),
    "odd sizes": (BINARY[:30_000], chunks(BINARY[:30_000], 1, 13, 4096, 7, 9999)),
    "upper case and leading zeros": (b"x" * 171, [b"00AB\r\n" + b"x" * 171 + b"\r\n000\r\n\r\n"]),
    "extensions": (JSON, chunks(JSON, 20, extension=b';a=b;c="d e";f')),
    "an extension on the last chunk": (JSON, chunks(JSON, 50, end=b"0;last\r\n\r\n")),
    "trailers": (JSON, chunks(JSON, 50, end=b"0\r\nX-Trailer: 1\r\nFlowstack-Auth: Bearer x\r\nHost: y\r\n\r\n")),
    "in one write": (MULTIPART, [b"".join(chunks(MULTIPART, 100))]),
    "byte by byte": (JSON, [bytes([byte]) for byte in b"".join(chunks(JSON, 30))]),
    "large": (BINARY, chunks(BINARY, 65_536)),
    "a request in it": (b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", chunks(b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 9)),
}


@pytest.mark.parametrize(("body", "pieces"), CHUNKED.values(), ids=CHUNKED)
def test_a_chunked_body_arrives_chunked_and_byte_for_byte_without_extensions_and_trailers(
    ends: Front, body: bytes, pieces: list[bytes]
) -> None:
    fields = [(b"Transfer-Encoding", b"chunked"), (b"Content-Type", b"application/json")]
    seen, _ = through(ends, b"POST /v1/x HTTP/1.1", [*usual(ends), *fields], *pieces)
    assert seen.body == body
    assert without(seen.pairs, b"transfer-encoding") == [(b"Host", ends.upstream.authority), fields[1]]
    assert seen.all(b"transfer-encoding") == [b"chunked"]


# The response.


def answered(ends: Front, raw: bytes, *, method: str = "GET", close: bool = False) -> Answer:
    """Let the upstream answer exactly so; return what the client got, without the field that Flowstack adds."""
    ends.upstream.script = reply(raw, close=close)
    _, answer = through(ends, method.encode() + b" /v1/x HTTP/1.1", usual(ends))
    assert answer.request_id
    answer.pairs = without(answer.pairs, b"flowstack-request-id")
    return answer


DATE = (b"Date", b"Thu, 01 Jan 2026 00:00:00 GMT")

ANSWERS: dict[str, tuple[bytes, Pairs]] = {
    "OpenAI's usual": (
        b"200 OK",
        [
            DATE,
            (b"Content-Type", b"application/json"),
            (b"openai-organization", b"org-1"),
            (b"openai-processing-ms", b"12"),
            (b"x-ratelimit-limit-requests", b"10000"),
            (b"x-request-id", b"req_1"),
            (b"CF-RAY", b"8f0-FRA"),
            (b"alt-svc", b'h3=":443"; ma=86400'),
        ],
    ),
    "several cookies": (
        b"200 OK",
        [
            (b"Set-Cookie", b"__cf_bm=a; path=/; HttpOnly"),
            DATE,
            (b"set-cookie", b"_cfuvid=b; path=/"),
            (b"X-Between", b""),
            (b"Set-Cookie", b"__cf_bm=a; path=/; HttpOnly"),
        ],
    ),
    "odd case and repeats": (
        b"200 OK",
        [(b"x-A", b"1"), (b"dAtE", DATE[1]), (b"X-a", b"2"), (b"VARY", b"a"), (b"Vary", b"b")],
    ),
    "a Server of its own and odd values": (
        b"200 OK",
        [(b"Server", b"cloudflare"), DATE, (b"X-Inner", b"a  b\t;\"c\\"), (b"X-Latin", b"caf\xe9"), (b"X-Empty", b"")],
    ),
    "an odd reason": (b"200 All \t\xc3\xa4 right, isn't it?", [DATE]),
    "an empty reason": (b"200 ", [DATE]),
    "an unknown status": (b"299 Whatever", [DATE]),
    "created": (b"201 Created", [DATE, (b"Location", b"http://elsewhere.example/v1/files/1")]),
    "a redirect, not followed": (b"307 Temporary Redirect", [DATE, (b"Location", b"/v1/elsewhere")]),
    "unauthorized": (b"401 Unauthorized", [DATE, (b"WWW-Authenticate", b"Bearer"), (b"Content-Type", b"text/plain")]),
    "a limit": (b"429 Too Many Requests", [DATE, (b"retry-after-ms", b"20"), (b"x-should-retry", b"true")]),
    "a failure": (b"503 Slow Down", [DATE, (b"Retry-After", b"1")]),
    "CORS of its own": (
        b"200 OK",
        [DATE, (b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Expose-Headers", b"X-A")],
    ),
    "a range": (b"206 Partial Content", [DATE, (b"Content-Range", b"bytes 0-1/2"), (b"ETag", b'W/"1"')]),
}  # fmt: skip


@pytest.mark.parametrize(("status", "fields"), ANSWERS.values(), ids=ANSWERS)
def test_status_reason_and_fields_come_back_as_the_upstream_sent_them(
    ends: Front, status: bytes, fields: Pairs
) -> None:
    fields = [*fields, (b"Content-Length", b"%d" % len(JSON))]
    answer = answered(ends, lines(b"HTTP/1.1 " + status, fields) + JSON)
    assert answer.raw_head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert answer.pairs == fields
    assert answer.framed == JSON


def test_a_date_is_added_only_where_the_upstream_sent_none(ends: Front) -> None:
    answer = answered(ends, b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n")
    date = answer.one(b"date")
    assert date is not None and re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert without(answer.pairs, b"date") == [(b"X-A", b"1"), (b"Content-Length", b"0")]


def test_the_upstreams_connection_fields_and_flowstack_fields_do_not_come_back(ends: Front) -> None:
    fields = [
        DATE,
        (b"Connection", b"keep-alive, X-Hop"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Hop", b"1"),
        (b"Upgrade", b"h2,h2c"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Flowstack-Error", b"draining"),
        (b"flowstack-request-id", b"forged"),
        (b"X-Stays", b"1"),
        (b"Content-Length", b"0"),
    ]
    answer = answered(ends, lines(b"HTTP/1.1 200 OK", fields))
    assert answer.pairs == [DATE, (b"X-Stays", b"1"), (b"Content-Length", b"0")]


CODINGS = {
    "gzip": gzip.compress(JSON),
    "br": brotli.compress(JSON),
    "zstd": zstandard.compress(JSON),
    "gzip, x-odd": b"\x1f\x8b no gzip at all",
}
ANSWER_BODIES = BODIES | {f"coded {name}": body for name, body in CODINGS.items()}


@pytest.mark.parametrize("body", ANSWER_BODIES.values(), ids=ANSWER_BODIES)
def test_an_answer_of_known_length_comes_back_byte_for_byte_with_its_length(ends: Front, body: bytes) -> None:
    fields = [DATE, (b"Content-Length", b"%d" % len(body)), (b"Content-Type", b"application/octet-stream")]
    answer = answered(ends, lines(b"HTTP/1.1 200 OK", fields) + body)
    assert answer.pairs == fields
    assert answer.framed == body


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_answer_is_not_decoded(ends: Front, coding: str, framing: str) -> None:
    coded = CODINGS[coding]
    fields = [DATE, (b"Content-Encoding", coding.encode())]
    if framing == "chunked":
        raw = lines(b"HTTP/1.1 200 OK", [*fields, (b"Transfer-Encoding", b"chunked")]) + b"".join(chunks(coded, 11))
    else:
        raw = lines(b"HTTP/1.1 200 OK", [*fields, (b"Content-Length", b"%d" % len(coded))]) + coded
    answer = answered(ends, raw)
    assert answer.body == coded
    assert answer.one(b"content-encoding") == coding.encode()


@pytest.mark.parametrize(("body", "pieces"), CHUNKED.values(), ids=CHUNKED)
def test_a_chunked_answer_comes_back_chunked_and_byte_for_byte_without_extensions_and_trailers(
    ends: Front, body: bytes, pieces: list[bytes]
) -> None:
    fields = [DATE, (b"Content-Type", b"text/event-stream"), (b"Trailer", b"X-Trailer")]
    ends.upstream.script = reply(lines(b"HTTP/1.1 200 OK", [*fields, (b"Transfer-Encoding", b"chunked")]), *pieces)
    _, answer = through(ends, b"GET /v1/x HTTP/1.1", usual(ends))
    assert answer.body == body
    assert without(answer.pairs, b"transfer-encoding", b"flowstack-request-id") == fields
    assert answer.all(b"transfer-encoding") == [b"chunked"]


@pytest.mark.parametrize("body", [b"", JSON, BINARY], ids=["empty", "JSON", "binary"])
@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"], ids=["1.0", "1.1"])
def test_an_answer_that_ends_with_its_connection_comes_back_whole_and_framed(
    ends: Front, version: bytes, body: bytes
) -> None:
    fields = [DATE, (b"X-A", b"1")]
    answer = answered(ends, lines(version + b" 200 OK", [*fields, (b"Connection", b"close")]) + body, close=True)
    assert answer.body == body
    assert without(answer.pairs, b"transfer-encoding") == fields
    assert answer.raw_head.startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_http_1_0_answer_of_known_length_comes_back_as_it_is(ends: Front) -> None:
    fields = [DATE, (b"Content-Length", b"%d" % len(JSON))]
    answer = answered(ends, lines(b"HTTP/1.0 200 OK", fields) + JSON, close=True)
    assert (answer.pairs, answer.framed) == (fields, JSON)


BODILESS = [
    ("HEAD", b"200 OK", [(b"Content-Length", b"12345")]),
    ("HEAD", b"200 OK", [(b"Content-Type", b"audio/mpeg")]),
    ("HEAD", b"404 Not Found", [(b"Content-Length", b"0")]),
    ("GET", b"204 No Content", []),
    ("DELETE", b"204 No Content", [(b"X-A", b"1")]),
    ("GET", b"304 Not Modified", [(b"ETag", b'"e"')]),
    ("GET", b"304 Not Modified", [(b"Content-Length", b"77")]),
]


@pytest.mark.parametrize(("method", "status", "fields"), BODILESS)
def test_an_answer_without_a_body_keeps_its_fields_and_ends_at_its_head(
    ends: Front, method: str, status: bytes, fields: Pairs
) -> None:
    answer = answered(ends, lines(b"HTTP/1.1 " + status, [DATE, *fields]), method=method)
    assert answer.raw_head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert (answer.pairs, answer.framed) == ([DATE, *fields], b"")


def test_a_head_answer_that_would_be_chunked_has_no_body(ends: Front) -> None:
    answer = answered(ends, lines(b"HTTP/1.1 200 OK", [DATE, (b"Transfer-Encoding", b"chunked")]), method="HEAD")
    assert (without(answer.pairs, b"transfer-encoding"), answer.framed) == ([DATE], b"")


@pytest.mark.parametrize("before", [[100], [102, 103], [103] * 20], ids=["100", "102 and 103", "many"])
def test_interim_answers_of_the_upstream_are_dropped(ends: Front, before: list[int]) -> None:
    interim = b"".join(b"HTTP/1.1 %d Interim\r\nLink: </a>; rel=preload\r\n\r\n" % status for status in before)
    fields = [DATE, (b"Content-Length", b"2")]
    answer = answered(ends, interim + lines(b"HTTP/1.1 200 OK", fields) + b"ok")
    assert answer.interim == []
    assert (answer.status, answer.pairs, answer.framed) == (200, fields, b"ok")


def test_an_answer_split_at_any_byte_is_the_same_answer(ends: Front) -> None:
    raw = (
        b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n" + b"Date: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % DATE[1]
        + b"5;x=y\r\nhello\r\nB\r\n, the world\r\n0\r\nX-T: 1\r\n\r\n"
    )  # fmt: skip
    with ends.client() as client:
        for cut in range(1, len(raw), 3):
            ends.upstream.script = reply(raw[:cut], raw[cut:], pause=0.002)
            answer = client.ask(lines(b"GET /v1/x HTTP/1.1", usual(ends)))
            assert (answer.status, answer.body) == (200, b"hello, the world"), cut


def test_a_request_split_at_any_byte_is_the_same_request(ends: Front) -> None:
    body = b"".join(chunks(b"hello, the world", 5, extension=b";x=y", end=b"0\r\nX-T: 1\r\n\r\n"))
    raw = lines(b"POST /v1/x?y HTTP/1.1", [*usual(ends), (b"Transfer-Encoding", b"chunked"), (b"X-A", b"1")]) + body
    with ends.client() as client:
        for cut in range(1, len(raw), 3):
            client.send(raw[:cut])
            client.quiet(0.001)
            answer = client.ask(raw[cut:])
            assert answer.status == 200, cut
            seen = ends.upstream.last()
            assert (seen.line, seen.body) == (b"POST /api/base/x?y HTTP/1.1", b"hello, the world"), cut
            assert without(seen.pairs, b"transfer-encoding") == [(b"Host", ends.upstream.authority), (b"X-A", b"1")]
