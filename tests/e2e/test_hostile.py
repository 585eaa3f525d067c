"""What a hostile client or a broken upstream sends gets an error of the contract's or is relayed faithfully; none of it
becomes a second request upstream, holds a connection for ever, or ends the process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.processes import eventually
from tests.e2e.raw import Client, Closed, assert_own_error, without
from tests.e2e.raw_upstream import OK, Front, Script, Seen, front, reply
from tests.hostile import (
    BAD_CHUNKS,
    CHUNKS,
    DATE,
    DOT_SEGMENTS,
    ELSEWHERE,
    FRAMING,
    HEAD,
    HEADS,
    HOSTS,
    MALFORMED,
    METHODS,
    OVERSIZE,
    POST,
    REQUEST_LINES,
    SHORT,
    SMUGGLED,
)  # fmt: skip

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    upstreams = {"openai": {"hosts": ["flowstack.example"]}}
    server = {"max_request_bytes": 100_000}
    with front(tmp_path_factory.mktemp("hostile"), upstreams=upstreams, server=server) as found:
        yield found
        # A second opinion, by another parser, on every byte that any connection brought.
        assert found.upstream.requests_by_h11() == found.upstream.total


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Ends with short times, for what only a clock can end."""
    timeouts = {"request_head": 1, "request_idle": 1, "response_head": 1.5, "stream_idle": 1, "keepalive": 2}
    timeouts |= {"client_idle": 1}
    with front(tmp_path_factory.mktemp("hasty"), timeouts=timeouts) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with an empty count, and leaves a proxy that serves on."""
    name = "hasty" if "hasty" in request.fixturenames else "ends"
    used: Front = request.getfixturevalue(name)
    used.upstream.forget()
    yield
    assert used.upstream.faults == []
    used.assert_serves()


def some(table: Mapping[str, bytes] | Sequence[bytes], count: int = 3) -> dict[str, Any]:
    """Return a few cases of a table; all of them are sent in memory by tests/relay/test_hostile.py."""
    named = list(table.items()) if isinstance(table, Mapping) else [(case.decode("latin-1"), case) for case in table]
    chosen = named[:: -(-len(named) // count)]
    return {"argvalues": [case for _, case in chosen], "ids": [name for name, _ in chosen]}


def keyed(ends: Front, raw: bytes) -> bytes:
    return raw.replace(b"KEY", ends.proxy.key.encode())


def assert_refused(ends: Front, raw: bytes, status: int = 400, code: str = "malformed_request") -> None:
    """What is sent is refused, the connection closes, and the upstream hears nothing, also of what is sent after it."""
    with ends.client() as client:
        client.offer(keyed(ends, raw + SMUGGLED))
        answer = client.answer()
        assert_own_error(answer, status, code)
        assert answer.one(b"connection") == b"close"
        assert client.to_the_end()[0] == b""
    assert ends.upstream.requests == []


# Requests that two parsers could read differently.


@pytest.mark.parametrize("fields", **some(FRAMING))
def test_doubtful_framing_is_refused(ends: Front, fields: bytes) -> None:
    assert_refused(ends, POST + fields + b"\r\n0\r\n\r\n")


def test_a_transfer_encoding_in_http_1_0_is_refused(ends: Front) -> None:
    raw = b"POST /v1/x HTTP/1.0\r\n" + HEAD + b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n"
    assert_refused(ends, raw)


@pytest.mark.parametrize("raw", **some(HEADS))
def test_a_malformed_head_is_refused(ends: Front, raw: bytes) -> None:
    assert_refused(ends, raw)


@pytest.mark.parametrize("line", **some(REQUEST_LINES))
def test_a_malformed_request_line_is_refused(ends: Front, line: bytes) -> None:
    assert_refused(ends, line + b"\r\n" + HEAD + b"\r\n")


@pytest.mark.parametrize("host", **some(HOSTS))
def test_a_missing_repeated_or_invalid_host_is_refused(ends: Front, host: bytes) -> None:
    assert_refused(ends, b"GET /v1/x HTTP/1.1\r\n" + host + b"Flowstack-Auth: Bearer KEY\r\n\r\n")


@pytest.mark.parametrize("raw", **some(OVERSIZE))
def test_an_oversize_head_is_refused_before_it_is_all_there(ends: Front, raw: bytes) -> None:
    assert_refused(ends, raw)


# Requests that are well formed, and not to be relayed. The connection lives on.


@pytest.mark.parametrize("target", **some(DOT_SEGMENTS))
def test_dot_segments_are_refused_raw_and_encoded(ends: Front, target: bytes) -> None:
    with ends.client() as client:
        assert_own_error(client.ask(ends.request(b"GET " + target + b" HTTP/1.1")), 400, "malformed_request")
        assert client.ask(ends.request()).status == 200
    assert [seen.target for seen in ends.upstream.requests] == [b"/api/base/models"]


@pytest.mark.parametrize("line", **some(tuple(ELSEWHERE)))
def test_a_target_that_is_not_served_is_refused(ends: Front, line: bytes) -> None:
    with ends.client() as client:
        assert_own_error(client.ask(ends.request(line)), *ELSEWHERE[line])
    assert ends.upstream.requests == []


@pytest.mark.parametrize("scheme", [b"http", b"https", b"HTTP"], ids=bytes.decode)
def test_absolute_form_to_a_configured_host_is_taken_as_origin_form(ends: Front, scheme: bytes) -> None:
    with ends.client() as client:
        line = b"GET " + scheme + b"://FlowStack.example/v1/a%7Eb?? HTTP/1.1"
        assert client.ask(ends.request(line)).status == 200
    seen = ends.upstream.last()
    assert (seen.target, seen.all(b"host")) == (b"/api/base/a%7Eb??", [ends.upstream.authority])


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("start", **some(METHODS))
def test_another_method_is_answered_405(ends: Front, start: bytes, with_key: bool) -> None:
    raw = ends.request(start + b" HTTP/1.1") if with_key else start + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    with ends.client() as client:
        assert_own_error(client.ask(raw), 405, "method_not_allowed")
    assert ends.upstream.requests == []


@pytest.mark.parametrize(
    "names",
    [b"Flowstack-Auth", b"Authorization", b"close, authorization", b"x-a,FLOWSTACK-attribute-team", b"Host", b"cookie",
     b"Content-Length", b"Content-Type", b"keep-alive,\tContent-Encoding "],
    ids=bytes.decode,
)  # fmt: skip
def test_a_connection_field_must_not_strip_what_the_request_means(ends: Front, names: bytes) -> None:
    raw = ends.request(b"POST /v1/x HTTP/1.1", b"Authorization: Bearer sk-x", b"Connection: " + names)
    with ends.client() as client:
        assert_own_error(client.ask(raw), 400, "malformed_request")
    assert ends.upstream.requests == []


def test_a_connection_field_that_names_transfer_encoding_does_not_take_the_body_away(ends: Front) -> None:
    raw = ends.request(b"POST /v1/x HTTP/1.1", b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked")
    with ends.client() as client:
        assert client.ask(raw, b"3\r\nabc\r\n0\r\n\r\n").status == 200
    assert ends.upstream.last().body == b"abc"


@pytest.mark.parametrize("upgrade", [b"websocket", b"WebSocket", b"h2c, websocket"], ids=bytes.decode)
def test_a_handshake_without_its_version_goes_nowhere(ends: Front, upgrade: bytes) -> None:
    fields = b"Connection: Upgrade", b"Upgrade: " + upgrade, b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="
    with ends.client() as client:
        assert_own_error(client.ask(ends.request(b"GET /v1/realtime HTTP/1.1", *fields)), 400, "malformed_request")
        assert client.ask(ends.request()).status == 200
    assert len(ends.upstream.requests) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upgrade_to_h2c_is_ignored_and_the_body_arrives(ends: Front, chunked: bool) -> None:
    fields = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"
    if chunked:
        body = b"3\r\nabc\r\n0\r\n\r\n"
        raw = ends.request(b"POST /v1/x HTTP/1.1", *fields, b"Transfer-Encoding: chunked", body=body)
    else:
        raw = ends.request(b"POST /v1/x HTTP/1.1", *fields, b"Content-Length: 3", body=b"abc")
    with ends.client() as client:
        assert client.ask(raw).status == 200
        assert client.ask(ends.request()).status == 200
    seen = ends.upstream.requests[0]
    assert seen.body == b"abc"
    assert [name.lower() for name, _ in without(seen.pairs, b"transfer-encoding", b"content-length")] == [b"host"]


# Bodies.


@pytest.mark.parametrize("at_once", [True, False], ids=["with the head", "after the head"])
@pytest.mark.parametrize("body", **some(CHUNKS))
def test_a_badly_chunked_body_is_refused_and_never_ends_for_the_upstream(
    ends: Front, body: bytes, at_once: bool
) -> None:
    head = keyed(ends, POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    with ends.client() as client:
        if at_once:
            client.offer(head + body + keyed(ends, SMUGGLED))
        else:
            client.send(head)
            eventually(lambda: ends.upstream.requests, "the head goes upstream")
            client.offer(body + keyed(ends, SMUGGLED))
        assert_own_error(client.answer(), 400, "malformed_request")
        assert client.to_the_end()[0] == b""
    assert len(ends.upstream.requests) <= 1
    assert all(seen.body is None for seen in ends.upstream.requests)


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"], ids=bytes.decode)
def test_a_body_that_the_client_cuts_never_ends_for_the_upstream(ends: Front, framing: bytes) -> None:
    with ends.client() as client:
        client.send(ends.request(b"POST /v1/x HTTP/1.1", framing), b"5\r\nhello\r\n")
        eventually(lambda: ends.upstream.requests, "the head goes upstream")
        client.abort()
    link = ends.upstream.last().link
    eventually(lambda: link.closed, "the upstream connection is closed")
    assert ends.upstream.last().body is None


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 1000000", b"x" * 1_000_000),
        (b"Transfer-Encoding: chunked", b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 200 + b"0\r\n\r\n"),
    ],
    ids=["length", "one chunk", "many chunks"],
)
def test_a_body_over_the_limit_is_answered_413_and_never_ends_for_the_upstream(
    ends: Front, framing: bytes, body: bytes
) -> None:
    with ends.client() as client:
        client.offer(ends.request(b"POST /v1/x HTTP/1.1", framing, body=body))
        assert_own_error(client.answer(), 413, "request_too_large")
        assert client.to_the_end()[0] == b""
    assert all(seen.body is None for seen in ends.upstream.requests)


# Expect (RFC 9110 §10.1.1).


@pytest.mark.parametrize("framing", [b"Content-Length: 13", b"Transfer-Encoding: chunked"], ids=bytes.decode)
@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue"], ids=bytes.decode)
def test_a_client_that_waits_is_told_to_go_on_after_the_checks(ends: Front, expect: bytes, framing: bytes) -> None:
    raw = ends.request(b"POST /v1/x HTTP/1.1", b"Expect: " + expect, framing)
    with ends.client() as client:
        client.send(raw)
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        answer = client.ask(b"3\r\nabc\r\n0\r\n\r\n")
        assert (answer.status, answer.interim) == (200, [])
        assert client.ask(ends.request()).status == 200
    seen = ends.upstream.requests[0]
    assert seen.framed == b"3\r\nabc\r\n0\r\n\r\n"
    assert seen.all(b"expect") == []


def test_a_client_that_did_not_wait_is_told_nothing(ends: Front) -> None:
    raw = ends.request(b"POST /v1/x HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 3", body=b"abc")
    with ends.client() as client:
        answer = client.ask(raw)
    assert (answer.status, answer.interim, ends.upstream.last().framed) == (200, [], b"abc")


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (POST.replace(b"KEY", b"wrong") + b"Content-Length: 5\r\n", 401, "invalid_flowstack_key"),
        (POST + b"Content-Length: 100001\r\n", 413, "request_too_large"),
        (POST.replace(b"/v1/", b"/v2/") + b"Transfer-Encoding: chunked\r\n", 404, "unknown_path"),
        (POST.replace(b"POST", b"TRACE") + b"Content-Length: 5\r\n", 405, "method_not_allowed"),
    ],
)
def test_a_refusal_comes_in_place_of_a_100_and_closes(ends: Front, raw: bytes, status: int, code: str) -> None:
    with ends.client() as client:
        answer = client.ask(keyed(ends, raw) + b"Expect: 100-continue\r\n\r\n")
        assert_own_error(answer, status, code)
        assert (answer.interim, answer.one(b"connection")) == ([], b"close")
        # What comes now may be the body or not: it must not be read as a request.
        client.offer(keyed(ends, SMUGGLED))
        assert client.to_the_end()[0] == b""
    assert ends.upstream.requests == []


def test_http_1_0_is_sent_no_100(ends: Front) -> None:
    raw = ends.request(b"POST /v1/x HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 3")
    with ends.client() as client:
        client.send(raw)
        assert client.quiet()
        answer = client.ask(b"abc")
    assert (answer.status, answer.interim, ends.upstream.last().framed) == (200, [], b"abc")


# Pipelining (RFC 9112 §9.3.2) and HTTP/1.0.


def numbered(seen: Seen) -> None:
    body = seen.target.rpartition(b"/")[2]
    # The first ones are the slowest, so that a wrong order would show.
    time.sleep(0.03 / (1 + int(body)))
    seen.link.offer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize("count", [5, 30, 100])
def test_pipelined_requests_are_answered_in_order(ends: Front, count: int) -> None:
    ends.upstream.script = numbered
    requests = [ends.request(b"GET /v1/%d HTTP/1.1" % number) for number in range(count)]
    with ends.client() as client:
        client.send(b"".join(requests))
        for number in range(count):
            answer = client.answer()
            assert answer.body == b"%d" % number
            if answer.one(b"connection") == b"close":
                # So many at once may be too many (RFC 9112 §9.3.2: the client sends the rest again); it is told.
                assert number >= 30
                assert client.to_the_end() == (b"", False)
                break
        assert len(ends.upstream.requests) == number + 1


def test_pipelined_requests_with_bodies_are_answered_in_order(ends: Front) -> None:
    def echo(seen: Seen) -> None:
        body = seen.read_body()
        seen.link.offer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    ends.upstream.script = echo
    raw = b""
    for number in range(10):
        raw += ends.request(b"POST /v1/x HTTP/1.1", b"Content-Length: 4", body=b"a%03d" % number)
        raw += ends.request(b"POST /v1/x HTTP/1.1", b"Transfer-Encoding: chunked", body=b"2\r\nbc\r\n0\r\n\r\n")
    with ends.client() as client:
        client.send(raw)
        assert [client.answer().body for _ in range(20)] == [
            body for number in range(10) for body in (b"a%03d" % number, b"bc")
        ]


@pytest.mark.parametrize(
    "garbage", [b"garbage\r\n\r\n", b"\x16\x03\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n"], ids=repr
)
def test_a_good_request_before_garbage_is_answered_first(ends: Front, garbage: bytes) -> None:
    ends.upstream.script = reply(OK)
    with ends.client() as client:
        client.offer(ends.request() + garbage + keyed(ends, SMUGGLED))
        answer = client.answer()
        assert (answer.status, answer.body) == (200, b"ok")
        assert_own_error(client.answer(), 400, "malformed_request")
        assert client.to_the_end()[0] == b""
    assert [seen.target for seen in ends.upstream.requests] == [b"/api/base/models"]


def test_a_request_in_a_body_is_no_request(ends: Front) -> None:
    inner = keyed(ends, SMUGGLED)
    with ends.client() as client:
        raw = ends.request(b"POST /v1/x HTTP/1.1", b"Content-Length: %d" % len(inner), body=inner)
        assert client.ask(raw).status == 200
        assert client.quiet()
    assert [seen.framed for seen in ends.upstream.requests] == [inner]


def test_nothing_is_taken_after_a_request_that_closes(ends: Front) -> None:
    with ends.client() as client:
        client.offer(ends.request(b"GET /v1/x HTTP/1.1", b"Connection: close") + keyed(ends, SMUGGLED))
        answer = client.answer()
        assert (answer.status, answer.one(b"connection")) == (200, b"close")
        assert client.to_the_end()[0] == b""
    assert len(ends.upstream.requests) == 1


def test_one_empty_line_before_a_request_is_ignored(ends: Front) -> None:
    with ends.client() as client:
        assert client.ask(b"\r\n" + ends.request()).status == 200
        assert client.ask(b"\r\n" + ends.request()).status == 200


@pytest.mark.parametrize("host", [b"Host: flowstack.example\r\n", b""], ids=["with-host", "without-host"])
def test_http_1_0_is_answered_and_closed(ends: Front, host: bytes) -> None:
    ends.upstream.script = reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    with ends.client() as client:
        client.send(keyed(ends, b"GET /v1/x HTTP/1.0\r\n" + host + b"Flowstack-Auth: Bearer KEY\r\n\r\n"))
        answer = client.answer()
        assert (answer.status, answer.body, answer.all(b"transfer-encoding")) == (200, b"ok", [])
        assert client.to_the_end() == (b"", False)
    seen = ends.upstream.last()
    assert (seen.line, seen.all(b"host")) == (b"GET /api/base/x HTTP/1.1", [ends.upstream.authority])


def test_http_1_0_with_keep_alive_is_kept_alive(ends: Front) -> None:
    raw = ends.request(b"GET /v1/x HTTP/1.0", b"Connection: Keep-Alive")
    with ends.client() as client:
        for _ in range(2):
            answer = client.ask(raw)
            assert (answer.status, (answer.one(b"connection") or b"").lower()) == (200, b"keep-alive")


# What only a clock ends.


def dribble(client: Client, data: bytes, seconds: float = 20.0) -> float:
    """Send byte by byte until the other side closes; how long that took, in seconds."""
    begun = time.monotonic()
    for byte in data:
        client.offer(bytes([byte]))
        if not client.quiet(0.05):
            return time.monotonic() - begun
        assert time.monotonic() - begun < seconds, "it may go on for ever"
    raise AssertionError("all of it was taken")


def test_a_head_that_dribbles_in_is_refused_in_time(hasty: Front) -> None:
    with hasty.client() as client:
        dribble(client, hasty.request(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 500))
        assert_own_error(client.answer(), 400, "malformed_request")
        client.to_the_end()
    assert hasty.upstream.requests == []


def test_a_second_head_that_dribbles_in_is_refused_in_time(hasty: Front) -> None:
    with hasty.client() as client:
        assert client.ask(hasty.request()).status == 200
        dribble(client, hasty.request(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 500))
        assert_own_error(client.answer(), 400, "malformed_request")


def test_clients_that_say_next_to_nothing_are_closed_in_time(hasty: Front) -> None:
    begun = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(hasty.client()) for _ in range(5)]
        for client, start in zip(clients, (b"", b"G", b"\r\n", b"\r", b"GET /v1/x\r\n"), strict=True):
            client.send(start)
        for client in clients:
            client.to_the_end()
    assert time.monotonic() - begun < 20
    assert hasty.upstream.requests == []


def test_uploads_that_stall_are_refused_in_time(hasty: Front) -> None:
    with hasty.client() as first, hasty.client() as second:
        for client, framing in ((first, b"Content-Length: 100"), (second, b"Transfer-Encoding: chunked")):
            client.send(hasty.request(b"POST /v1/x HTTP/1.1", framing), b"5\r\nhel")
        for client in (first, second):
            assert_own_error(client.answer(), 400, "malformed_request")
            client.to_the_end()
    assert all(seen.body is None for seen in hasty.upstream.requests)


def test_a_client_that_asks_without_reading_is_held_back_and_then_cut(hasty: Front) -> None:
    asked = b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n" * 2000
    sent = 0
    with hasty.client() as client:
        client.sock.settimeout(5.0)
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < 20:
                client.sock.sendall(asked)
                sent += len(asked)
    # What the sockets of both sides hold, and no more: the answers to it wait nowhere.
    assert sent < 20_000_000
    assert hasty.upstream.requests == []


# What a broken upstream answers.


@pytest.mark.parametrize("raw", **some(MALFORMED))
def test_an_answer_that_is_no_strict_http_becomes_a_502(ends: Front, raw: bytes) -> None:
    ends.upstream.script = reply(raw)
    with ends.client() as client:
        assert_own_error(client.ask(ends.request()), 502, "upstream_malformed")
        assert_own_error(client.ask(ends.request(b"HEAD /v1/x HTTP/1.1"), method="HEAD"), 502, "upstream_malformed",
                         head=True)  # fmt: skip
    first, second = ends.upstream.requests
    assert first.connection != second.connection, "such a connection is not used again"


@pytest.mark.parametrize("raw", [b"", b"HTT", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX-A: 1\r\n"], ids=repr)
def test_an_upstream_that_closes_before_its_head_is_whole_becomes_a_502(ends: Front, raw: bytes) -> None:
    ends.upstream.script = reply(raw, close=True)
    with ends.client() as client:
        post = ends.request(b"POST /v1/x HTTP/1.1", b"Content-Length: 2", body=b"ok")
        assert_own_error(client.ask(post), 502, "upstream_closed")
    assert len(ends.upstream.requests) == 1, "a POST is never sent twice unasked"


def assert_never_finished(ends: Front, script: Script) -> None:
    ends.upstream.script = script
    with ends.client() as client:
        client.send(ends.request())
        with pytest.raises(Closed):
            found = client.answer()
            pytest.fail(f"this looks finished: {found}")


@pytest.mark.parametrize("raw", **some(SHORT))
def test_an_answer_that_was_cut_is_cut_for_the_client_too(ends: Front, raw: bytes) -> None:
    assert_never_finished(ends, reply(raw, close=True))


@pytest.mark.parametrize("raw", **some(BAD_CHUNKS))
def test_a_badly_chunked_answer_is_cut_for_the_client(ends: Front, raw: bytes) -> None:
    assert_never_finished(ends, reply(raw))


def test_an_answer_until_close_that_ends_by_force_is_cut_for_the_client(ends: Front) -> None:
    def script(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 200 OK\r\n" + DATE + b"\r\nhello")
        time.sleep(0.05)
        seen.link.abort()

    assert_never_finished(ends, script)


EXTRA = {
    "bytes": b"\r\nextra",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned",
    "an empty line": b"\r\n",
}
ANSWERS = {
    "length": ("GET", OK, b"ok"),
    "chunked": ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", b""),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n", b""),
}


@pytest.mark.parametrize("pause", [0.0, 0.03], ids=["at-once", "later"])
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
@pytest.mark.parametrize(("method", "raw", "body"), ANSWERS.values(), ids=ANSWERS)
def test_what_an_upstream_sends_after_its_answer_reaches_nobody(
    ends: Front, method: str, raw: bytes, body: bytes, extra: bytes, pause: float
) -> None:
    ends.upstream.script = reply(raw, extra, pause=pause) if pause else reply(raw + extra)
    with ends.client() as client:
        answer = client.ask(ends.request(method.encode() + b" /v1/x HTTP/1.1"), method=method)
        assert answer.body == body
        link = ends.upstream.last().link
        eventually(lambda: link.closed, "that connection is given up")
        ends.upstream.script = reply(OK)
        assert client.ask(ends.request()).body == b"ok"
    first, second = ends.upstream.requests
    assert first.connection != second.connection


def test_what_an_idle_upstream_says_unasked_reaches_nobody(ends: Front) -> None:
    with ends.client() as client:
        assert client.ask(ends.request()).body == b"ok"
        link = ends.upstream.last().link
        link.offer(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 7\r\n\r\nstale!!")
        eventually(lambda: link.closed, "that connection is given up")
        assert client.ask(ends.request()).body == b"ok"


def test_an_answer_before_the_requests_end_is_relayed_and_both_connections_close(ends: Front) -> None:
    early = b"HTTP/1.1 413 Too Much For Us\r\n" + DATE + b"Content-Length: 3\r\n\r\nno!"

    def script(seen: Seen) -> None:
        seen.link.offer(early)
        seen.link.to_the_end()
        seen.link.close()

    ends.upstream.script = script
    with ends.client() as client:
        client.send(ends.request(b"POST /v1/x HTTP/1.1", b"Content-Length: 1000"), b"half of it")
        answer = client.answer()
        assert (answer.status, answer.reason, answer.body) == (413, b"Too Much For Us", b"no!")
        assert answer.one(b"flowstack-error") is None
        client.offer(keyed(ends, SMUGGLED))
        assert client.to_the_end()[0] == b""
    assert len(ends.upstream.requests) == 1


def test_interim_answers_without_an_end_become_a_502(hasty: Front) -> None:
    def script(seen: Seen) -> None:
        for _ in range(1000):
            seen.link.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")

    hasty.upstream.script = script
    with hasty.client() as client:
        assert_own_error(client.ask(hasty.request()), 502, "upstream_malformed")
    link = hasty.upstream.last().link
    eventually(lambda: link.closed, "that connection is given up")


def test_a_head_that_dribbles_in_from_upstream_becomes_a_504_in_time(hasty: Front) -> None:
    def script(seen: Seen) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1000:
            seen.link.send(bytes([byte]))
            time.sleep(0.02)

    hasty.upstream.script = script
    with hasty.client() as client:
        assert_own_error(client.ask(hasty.request()), 504, "upstream_timeout")


def test_an_answer_that_stalls_is_cut_in_time(hasty: Front) -> None:
    def script(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        seen.link.to_the_end()
        seen.link.close()

    hasty.upstream.script = script
    assert_never_finished(hasty, script)
