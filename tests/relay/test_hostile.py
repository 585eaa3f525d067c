"""What a hostile client or a broken upstream sends, whole and byte by byte, through the whole proxy in memory."""

from __future__ import annotations

import pytest

from flowstack.config import Upstream
from tests.harness import Transport
from tests.hostile import (
    BAD_CHUNKS,
    CHUNKS,
    DOT_SEGMENTS,
    ELSEWHERE,
    FRAMING,
    HEAD,
    HEADS,
    HOSTS,
    MALFORMED,
    METHODS,
    OK,
    OVERSIZE,
    POST,
    REQUEST_LINES,
    SHORT,
    SMUGGLED,
)  # fmt: skip
from tests.relay.lab import AUTH, Lab, answer, request


def lab() -> Lab:
    upstream = Upstream(base_url="http://upstream.example/v1", hosts=("flowstack.example",))
    return Lab(upstreams=(upstream,), max_request_bytes=100_000)


def keyed(raw: bytes) -> bytes:
    return raw.replace(b"Flowstack-Auth: Bearer KEY", AUTH).replace(b"Bearer KEY", AUTH.partition(b": ")[2])


def sizes(raw: bytes) -> list[int | None]:
    """In what pieces it comes: at once, and byte by byte where it is not long."""
    return [None, 1] if len(raw) < 2000 else [None]


def assert_own_error(client: Transport, status: int, code: str) -> bytes | None:
    """The client got this error; give its Connection field."""
    got = answer(client)
    assert (got.status, got.error["code"]) == (status, code)
    return got["connection"]


def assert_refused(raw: bytes) -> None:
    """It is refused, the connection closes, and the upstream hears nothing, also of what is sent after it."""
    for size in sizes(raw):
        made = lab()
        client = made.client()
        client.send(keyed(raw + SMUGGLED), size)
        assert assert_own_error(client, 400, "malformed_request") == b"close", size
        assert client.peer_saw, "the connection is closed"
        assert made.upstreams == []


@pytest.mark.parametrize("fields", FRAMING.values(), ids=FRAMING)
def test_doubtful_framing_is_refused(fields: bytes) -> None:
    assert_refused(POST + fields + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("raw", HEADS.values(), ids=HEADS)
def test_a_malformed_head_is_refused(raw: bytes) -> None:
    assert_refused(raw)


@pytest.mark.parametrize("line", REQUEST_LINES, ids=lambda line: line.decode("latin-1"))
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    assert_refused(line + b"\r\n" + HEAD + b"\r\n")


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_missing_repeated_or_invalid_host_is_refused(host: bytes) -> None:
    assert_refused(b"GET /v1/x HTTP/1.1\r\n" + host + b"Flowstack-Auth: Bearer KEY\r\n\r\n")


@pytest.mark.parametrize("raw", OVERSIZE.values(), ids=OVERSIZE)
def test_an_oversize_head_is_refused_before_it_is_all_there(raw: bytes) -> None:
    made = lab()
    client = made.client()
    for at in range(0, len(raw), 65536):
        client.send(keyed(raw[at : at + 65536]))
        if client.peer_saw:
            break
    assert at <= 3 * 65536
    assert assert_own_error(client, 400, "malformed_request") == b"close"
    assert made.upstreams == []


@pytest.mark.parametrize("target", DOT_SEGMENTS, ids=bytes.decode)
def test_dot_segments_are_refused_raw_and_encoded_and_the_connection_lives_on(target: bytes) -> None:
    made = lab()
    client = made.ask(b"GET " + target + b" HTTP/1.1")
    assert_own_error(client, 400, "malformed_request")
    assert made.upstreams == []
    client.send(request())
    assert made.upstreams[0].take().startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize(("line", "error"), ELSEWHERE.items(), ids=lambda value: str(value)[:60])
def test_a_target_that_is_not_served_is_refused(line: bytes, error: tuple[int, str]) -> None:
    made = lab()
    assert_own_error(made.ask(line), *error)
    assert made.upstreams == []


@pytest.mark.parametrize("auth", [AUTH, None], ids=["key", "no key"])
@pytest.mark.parametrize("start", METHODS, ids=bytes.decode)
def test_another_method_is_answered_405(start: bytes, auth: bytes | None) -> None:
    made = lab()
    assert_own_error(made.ask(start + b" HTTP/1.1", auth=auth), 405, "method_not_allowed")
    assert made.upstreams == []


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
def test_a_badly_chunked_body_is_refused_and_never_ends_for_the_upstream(body: bytes) -> None:
    begun = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    for size in sizes(body):
        made = lab()
        client = made.client()
        client.send(keyed(begun))
        client.send(keyed(body + SMUGGLED), size)
        assert_own_error(client, 400, "malformed_request")
        assert client.peer_saw
        (upstream,) = made.upstreams
        assert upstream.peer_saw == "reset"
        sent = upstream.take()
        assert sent.count(b"HTTP/1.1") == 1
        assert not sent.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"], ids=bytes.decode)
def test_an_answer_that_is_no_strict_http_becomes_a_502(method: bytes, raw: bytes) -> None:
    for size in sizes(raw):
        made = lab()
        client = made.ask(method + b" /v1/x HTTP/1.1")
        made.upstreams[0].send(raw, size)
        got = answer(client)
        assert (got.status, got["flowstack-error"]) == (502, b"upstream_malformed")
        assert bool(got.body) == (method == b"GET")
        client.send(request())
        assert len(made.upstreams) == 2, "such a connection is not used again"


@pytest.mark.parametrize("raw", [*SHORT.values(), *BAD_CHUNKS.values()], ids=[*SHORT, *BAD_CHUNKS])
def test_an_answer_that_is_cut_or_badly_chunked_is_cut_for_the_client(raw: bytes) -> None:
    for size in sizes(raw):
        made = lab()
        client = made.ask()
        made.upstreams[0].send(raw, size)
        made.upstreams[0].hang_up()
        got = client.take()
        assert client.peer_saw == "reset"
        assert not got.endswith(b"0\r\n\r\n")


def test_a_good_answer_is_none_of_these() -> None:
    made = lab()
    client = made.ask()
    made.upstreams[0].send(OK)
    assert answer(client).body == b"ok"
    assert client.peer_saw is None
