"""Browsers: preflights without a key, and answers that a page's script may read, where the operator says so.

The rules are those of the Fetch standard, "HTTP extensions" (CORS protocol).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.raw import Answer, assert_own_error, lines
from tests.e2e.raw_upstream import Front, front, reply

pytestmark = pytest.mark.e2e

PAGE = b"https://app.example"
OTHER = b"https://evil.example"
EXPOSED = {
    "flowstack-request-id",
    "flowstack-error",
    "flowstack-ratelimit-limit-requests",
    "flowstack-ratelimit-remaining-requests",
    "flowstack-ratelimit-reset-requests",
    "flowstack-ratelimit-limit-tokens",
    "flowstack-ratelimit-remaining-tokens",
    "flowstack-ratelimit-reset-tokens",
    "x-request-id",
    "retry-after",
}


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Pages of two origins may call."""
    server = {"cors_origins": ["https://app.example", "http://localhost:3000"], "max_request_bytes": 100}
    with front(tmp_path_factory.mktemp("cors"), server=server) as found:
        yield found


@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """All pages may call."""
    with front(tmp_path_factory.mktemp("cors"), server={"cors_origins": ["*"]}) as found:
        yield found


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The default: no pages may call."""
    with front(tmp_path_factory.mktemp("cors")) as found:
        yield found


def preflight(origin: bytes, *fields: tuple[bytes, bytes]) -> bytes:
    """What a browser asks before a script's POST with OpenAI's headers; it never carries a key."""
    pairs = [
        (b"Host", b"flowstack.example"),
        (b"Origin", origin),
        (b"Access-Control-Request-Method", b"POST"),
        (b"Access-Control-Request-Headers", b"authorization,content-type,flowstack-auth,x-stainless-os"),
        (b"Sec-Fetch-Mode", b"cors"),
        *fields,
    ]
    return lines(b"OPTIONS /v1/chat/completions HTTP/1.1", pairs)


def cors(answer: Answer) -> dict[str, bytes]:
    """The CORS fields of an answer, each at most once."""
    found = {name.lower().decode(): value for name, value in answer.pairs if name.lower().startswith(b"access-control")}
    for name in found:
        answer.one(name.encode())
    return found


def assert_readable(answer: Answer, origin: bytes = PAGE) -> None:
    """A script of that origin may read the answer and the fields that the contract exposes."""
    fields = cors(answer)
    assert fields["access-control-allow-origin"] == origin
    exposed = {name.strip().lower() for name in fields["access-control-expose-headers"].decode().split(",")}
    assert exposed >= EXPOSED
    # Credentials (cookies) are not a way to authenticate here.
    assert "access-control-allow-credentials" not in fields
    if origin != b"*":
        assert b"origin" in answer.all(b"vary")[-1].lower()


@pytest.mark.parametrize("origin", [PAGE, b"http://localhost:3000"], ids=bytes.decode)
def test_a_preflight_of_a_configured_origin_is_answered_without_a_key_and_without_the_upstream(
    some: Front, origin: bytes
) -> None:
    some.upstream.forget()
    with some.client() as client:
        for _ in range(2):
            answer = client.ask(preflight(origin))
            assert answer.status == 204
            assert answer.request_id
            fields = cors(answer)
            assert fields["access-control-allow-origin"] == origin
            methods = {name.strip() for name in fields["access-control-allow-methods"].split(b",")}
            assert methods >= {b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"}
            allowed = {name.strip() for name in fields["access-control-allow-headers"].split(b",")}
            assert allowed >= {b"authorization", b"content-type", b"flowstack-auth", b"x-stainless-os"}
            assert b"origin" in answer.all(b"vary")[0].lower()
    assert some.upstream.requests == []


@pytest.mark.parametrize(
    "origin",
    [OTHER, b"null", b"https://app.example.evil.example", b"http://app.example", b"https://app.example:8443",
     b"https://app.example, https://evil.example", b"*"],
    ids=bytes.decode,
)  # fmt: skip
def test_a_page_of_another_origin_gets_nothing(some: Front, origin: bytes) -> None:
    with some.client() as client:
        answer = client.ask(preflight(origin))
        assert_own_error(answer, 401, "missing_flowstack_key")
        assert cors(answer) == {}
        assert cors(client.ask(some.request(b"GET /v1/models HTTP/1.1", b"Origin: " + origin))) == {}


def test_by_default_no_page_gets_anything(nobody: Front) -> None:
    with nobody.client() as client:
        answer = client.ask(preflight(PAGE))
        assert_own_error(answer, 401, "missing_flowstack_key")
        assert cors(answer) == {}
        assert cors(client.ask(nobody.request(b"GET /v1/models HTTP/1.1", b"Origin: " + PAGE))) == {}


def test_by_default_an_options_request_with_a_key_is_relayed_and_the_upstreams_cors_fields_come_back(
    nobody: Front,
) -> None:
    fields = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Expose-Headers", b"x-request-id"),
        (b"Access-Control-Allow-Credentials", b"true"),
    ]
    nobody.upstream.script = reply(lines(b"HTTP/1.1 200 OK", [*fields, (b"Content-Length", b"0")]))
    with nobody.client() as client:
        raw = preflight(PAGE, (b"Flowstack-Auth", b"Bearer " + nobody.proxy.key.encode()))
        answer = client.ask(raw)
    assert [pair for pair in answer.pairs if pair[0].startswith(b"Access-Control")] == fields
    assert nobody.upstream.last().line == b"OPTIONS /api/base/chat/completions HTTP/1.1"
    assert nobody.upstream.last().all(b"origin") == [PAGE]


def test_a_relayed_answer_may_be_read(some: Front) -> None:
    some.upstream.forget()
    with some.client() as client:
        answer = client.ask(some.request(b"GET /v1/models HTTP/1.1", b"Origin: " + PAGE))
        assert (answer.status, answer.body) == (200, b"ok")
        assert_readable(answer)
        assert cors(client.ask(some.request())) == {}, "a request without Origin is no page's"


def test_an_origin_that_the_upstream_allows_is_not_said_twice(some: Front) -> None:
    some.upstream.script = reply(b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n")
    with some.client() as client:
        answer = client.ask(some.request(b"GET /v1/models HTTP/1.1", b"Origin: " + PAGE))
    assert answer.one(b"access-control-allow-origin") == b"*"
    assert answer.one(b"access-control-expose-headers") is not None


def test_options_that_is_no_preflight_is_relayed(some: Front) -> None:
    some.upstream.forget()
    with some.client() as client:
        assert client.ask(some.request(b"OPTIONS /v1/models HTTP/1.1", b"Origin: " + PAGE)).status == 200
        assert_own_error(client.ask(b"OPTIONS /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"), 401, "missing_flowstack_key")
    assert [seen.method for seen in some.upstream.requests] == ["OPTIONS"]


ERRORS = {
    "missing_flowstack_key": (401, b"GET /v1/x", []),
    "invalid_flowstack_key": (401, b"GET /v1/x", [b"Flowstack-Auth: Bearer nobody"]),
    "misplaced_key": (401, b"GET /v1/x", [b"Authorization: Bearer fsk-x"]),
    "malformed_request": (400, b"GET /v1/../x", [b"KEY"]),
    "unknown_path": (404, b"GET /v2/x", [b"KEY"]),
    "method_not_allowed": (405, b"TRACE /v1/x", [b"KEY"]),
    "request_too_large": (413, b"POST /v1/x", [b"KEY", b"Content-Length: 101"]),
    "upstream_malformed": (502, b"GET /v1/x", [b"KEY"]),
}


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_of_flowstack_may_be_read(some: Front, code: str) -> None:
    status, start, fields = ERRORS[code]
    auth = b"Flowstack-Auth: Bearer " + some.proxy.key.encode()
    some.upstream.script = reply(b"nonsense\r\n\r\n")
    fields = [auth if field == b"KEY" else field for field in fields]
    raw = [start + b" HTTP/1.1", b"Host: a", b"Origin: " + PAGE, *fields]
    with some.client() as client:
        answer = client.ask(b"\r\n".join([*raw, b"", b""]))
    assert_own_error(answer, status, code)
    assert_readable(answer)


def test_with_an_asterisk_every_page_may_call(everyone: Front) -> None:
    everyone.upstream.forget()
    with everyone.client() as client:
        for origin in (PAGE, OTHER, b"null"):
            answer = client.ask(preflight(origin))
            assert (answer.status, cors(answer)["access-control-allow-origin"]) == (204, b"*")
            assert_readable(client.ask(everyone.request(b"GET /v1/models HTTP/1.1", b"Origin: " + origin)), b"*")
            error = client.ask(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nOrigin: " + origin + b"\r\n\r\n")
            assert_own_error(error, 401, "missing_flowstack_key")
            assert_readable(error, b"*")
