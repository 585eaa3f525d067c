"""Message heads, accepted and refused, each by the sentence of the RFC that says so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flowstack.errors import MalformedRequest, MethodNotAllowed, UpstreamMalformed
from flowstack.http import heads
from flowstack.http.heads import (
    MAX_FIELDS,
    RequestHead,
    ResponseHead,
    malformed_request,
    malformed_response,
    parse_request,
    parse_response,
)
from tests.harness import Listener, Provider, Stage


def asked(line: bytes = b"POST /v1/x HTTP/1.1", *fields: bytes, host: bool = True) -> RequestHead:
    return parse_request(b"\r\n".join([line, *([b"Host: a"] if host else []), *fields, b"", b""]))


def answered(line: bytes, *fields: bytes, method: bytes = b"GET") -> ResponseHead:
    return parse_response(b"\r\n".join([line, *fields, b"", b""]), method)


REFUSED_LINES = {
    "HTTP/0.9": b"GET /",
    "HTTP/2.0": b"GET / HTTP/2.0",
    "the preface of HTTP/2": b"PRI * HTTP/2.0",
    "HTTP/1.2 (a version of which nobody knows the framing)": b"GET / HTTP/1.2",
    "HTTP/1.01": b"GET / HTTP/1.01",
    "RTSP": b"GET / RTSP/1.0",
    "ICE": b"SOURCE / ICE/1.0",
    "lower-case http": b"GET / http/1.1",
    "two spaces before the target": b"GET  / HTTP/1.1",
    "two spaces after the target": b"GET /  HTTP/1.1",
    "a tab for a space": b"GET\t/ HTTP/1.1",
    "a space at the end": b"GET / HTTP/1.1 ",
    "a space in the target": b"GET /a b HTTP/1.1",
    "a space before the method": b" GET / HTTP/1.1",
    "no target": b"GET HTTP/1.1",
    "a fragment": b"GET /a#b HTTP/1.1",
    "a control character": b"GET /a\x01 HTTP/1.1",
    "NUL": b"GET /a\x00 HTTP/1.1",
    "DEL": b"GET /a\x7f HTTP/1.1",
    "a byte above ASCII": b"GET /\xc3\xa4 HTTP/1.1",
    "a quote": b'GET /"a" HTTP/1.1',
    "angle brackets": b"GET /<a> HTTP/1.1",
    "a backslash": b"GET /a\\b HTTP/1.1",
    "braces": b"GET /{a} HTTP/1.1",
    "a bar": b"GET /a|b HTTP/1.1",
    "a bad percent": b"GET /a%2 HTTP/1.1",
    "a bad percent in the query": b"GET /a?%zz HTTP/1.1",
    "a bracket in the path": b"GET /[a] HTTP/1.1",
    "an asterisk, but not for OPTIONS": b"GET * HTTP/1.1",
    "a bare word": b"GET foo HTTP/1.1",
    "authority-form, but not for CONNECT": b"GET foo:80 HTTP/1.1",
    "absolute-form without a path": b"GET http://a HTTP/1.1",
    "a backslash for an authority": b"GET http:\\\\a/ HTTP/1.1",
    "a bare CR in the line": b"GET /\rX HTTP/1.1",
}

ACCEPTED_TARGETS = {
    "plain": b"/v1/chat/completions",
    "all that RFC 3986 allows in a path": b"/v1/-._~!$&'()*+,;=:@%41%ff/",
    "an empty query": b"/v1/x?",
    "brackets and question marks in a query": b"/v1/x?include[]=a&b=c?d/e",
    "two slashes": b"//host/v1",
    "absolute-form": b"http://a/v1/x?y",
    "absolute-form with a port and an IPv6 address": b"http://[::1]:80/v1",
}


@pytest.mark.parametrize("line", REFUSED_LINES.values(), ids=REFUSED_LINES)
def test_a_request_line_that_two_parsers_could_read_differently_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedRequest):
        asked(line)


@pytest.mark.parametrize("target", ACCEPTED_TARGETS.values(), ids=ACCEPTED_TARGETS)
def test_a_good_target_is_kept_byte_for_byte(target: bytes) -> None:
    assert asked(b"GET %b HTTP/1.1" % target).target == target


def test_the_two_forms_that_belong_to_one_method_are_taken_for_it() -> None:
    assert asked(b"OPTIONS * HTTP/1.1").target == b"*"
    assert asked(b"CONNECT foo:443 HTTP/1.1").method == b"CONNECT"


@pytest.mark.parametrize("method", [b"BREW", b"get", b"G3T", b"FOO-BAR"])
def test_a_method_that_llhttp_does_not_know_gets_405_with_allow(method: bytes) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        asked(b"%b / HTTP/1.1" % method)
    assert caught.value.headers[0][0] == b"Allow"


REFUSED_FIELDS = {
    # RFC 9112 §6.1 and §6.3
    "Content-Length with Transfer-Encoding": [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    "Transfer-Encoding with Content-Length": [b"Transfer-Encoding: chunked", b"Content-Length: 3"],
    "two Content-Lengths": [b"Content-Length: 3", b"Content-Length: 4"],
    "two equal Content-Lengths": [b"Content-Length: 3", b"Content-Length: 3"],
    "a list of Content-Lengths": [b"Content-Length: 3, 3"],
    "Content-Length with leading zeros": [b"Content-Length: 003"],
    "Content-Length with a sign": [b"Content-Length: +3"],
    "a negative Content-Length": [b"Content-Length: -3"],
    "a hexadecimal Content-Length": [b"Content-Length: 0x3"],
    "an empty Content-Length": [b"Content-Length:"],
    "a Content-Length of twenty digits": [b"Content-Length: 99999999999999999999"],
    "gzip, chunked": [b"Transfer-Encoding: gzip, chunked"],
    "identity, chunked": [b"Transfer-Encoding: identity, chunked"],
    "identity": [b"Transfer-Encoding: identity"],
    "gzip": [b"Transfer-Encoding: gzip"],
    "chunked, identity": [b"Transfer-Encoding: chunked, identity"],
    "chunked twice in one field": [b"Transfer-Encoding: chunked, chunked"],
    "chunked in two fields": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "an empty element before chunked": [b"Transfer-Encoding: ,chunked"],
    "an empty element behind chunked": [b"Transfer-Encoding: chunked,"],
    "chunked with a parameter": [b"Transfer-Encoding: chunked;a=b"],
    "an empty Transfer-Encoding": [b"Transfer-Encoding:"],
    "xchunked": [b"Transfer-Encoding: xchunked"],
    "chunked in quotes": [b'Transfer-Encoding: "chunked"'],
    # RFC 9112 §5.1: no white space is allowed between the field name and colon
    "a space before the colon": [b"Transfer-Encoding : chunked"],
    "a tab before the colon": [b"X\t: y"],
    # RFC 9112 §5.2: a server that receives an obs-fold must reject the message
    "obs-fold with a space": [b"X: a", b" b"],
    "obs-fold with a tab": [b"X: a", b"\tb"],
    "obs-fold hiding a coding": [b"Transfer-Encoding:", b" chunked"],
    "white space before the first field's name": [b" X: a"],
    # RFC 9110 §5.5: CR, LF and NUL are invalid and dangerous
    "NUL in a value": [b"X: a\x00b"],
    "a bare CR in a value": [b"X: a\rb"],
    "a bare LF in a value": [b"X: a\nY: b"],
    "a control character in a value": [b"X: a\x01b"],
    "DEL in a value": [b"X: a\x7fb"],
    # RFC 9110 §5.1: field-name = token
    "no name": [b": a"],
    "a line without a colon": [b"nonsense"],
    "a name with a separator": [b"X(Y): a"],
    "a name with NUL": [b"X\x00: a"],
    "a name above ASCII": [b"X\xc3\xa4: a"],
    # RFC 9112 §9.3
    "close beside keep-alive": [b"Connection: close, keep-alive"],
    "close beside keep-alive in two fields": [b"Connection: Keep-Alive", b"Connection: CLOSE"],
    "a second Host": [b"Host: b"],
    "the same Host again": [b"host: a"],
}


@pytest.mark.parametrize("fields", REFUSED_FIELDS.values(), ids=REFUSED_FIELDS)
def test_fields_that_two_parsers_could_read_differently_are_refused(fields: list[bytes]) -> None:
    with pytest.raises(MalformedRequest):
        asked(b"POST / HTTP/1.1", *fields)


@pytest.mark.parametrize(
    ("host", "good"),
    [
        (b"a", True), (b"api.example.com", True), (b"a:8080", True), (b"[::1]:80", True), (b"127.0.0.1", True),
        (b"a_b.example", True), (b"", False), (b"a b", False), (b"a,b", True), (b"a/b", False), (b"a@b", False),
        (b"http://a", False), (b"a:80:90", False), (b"a:x", False), (b"[::1", False), (b"a?b", False), (b"a#b", False),
        (b"a\\b", False), (b":80", False), (b"[a]b", False),
    ],
)  # fmt: skip
def test_host_is_exactly_one_valid_name(host: bytes, good: bool) -> None:
    """RFC 9112 §3.2: 400 to a request with an invalid Host."""
    if good:
        assert asked(b"GET / HTTP/1.1", b"Host: %b" % host, host=False).by_name[b"host"] == host
    else:
        with pytest.raises(MalformedRequest):
            asked(b"GET / HTTP/1.1", b"Host: %b" % host, host=False)


def test_http_1_1_needs_a_host_and_http_1_0_does_not() -> None:
    with pytest.raises(MalformedRequest):
        asked(b"GET / HTTP/1.1", host=False)
    assert asked(b"GET / HTTP/1.0", host=False).minor == 0


@pytest.mark.parametrize(
    ("version", "fields", "keep"),
    [
        (b"1.1", [], True), (b"1.1", [b"Connection: close"], False), (b"1.1", [b"Connection: CLOSE"], False),
        (b"1.1", [b"Connection: foo , close"], False), (b"1.1", [b"Connection: foo", b"Connection: close"], False),
        (b"1.1", [b"Connection: keep-alive"], True), (b"1.1", [b"Connection:"], True),
        (b"1.0", [], False), (b"1.0", [b"Connection: Keep-Alive"], True), (b"1.0", [b"Connection: close"], False),
    ],
)  # fmt: skip
def test_a_connection_lives_on_as_rfc_9112_9_3_says(version: bytes, fields: list[bytes], keep: bool) -> None:
    assert asked(b"GET / HTTP/%b" % version, *fields).keep_alive is keep


@pytest.mark.parametrize(
    ("version", "fields", "length"),
    [
        (b"1.1", [], 0), (b"1.1", [b"Content-Length: 0"], 0), (b"1.1", [b"Content-Length: 7"], 7),
        (b"1.1", [b"content-length:\t7 "], 7), (b"1.0", [b"Content-Length: 7"], 7),
        (b"1.1", [b"Transfer-Encoding:  Chunked"], None), (b"1.1", [b"TRANSFER-ENCODING: chunked"], None),
    ],
)  # fmt: skip
def test_the_body_is_framed_by_its_one_length_or_its_one_coding(
    version: bytes, fields: list[bytes], length: int | None
) -> None:
    assert asked(b"POST / HTTP/%b" % version, *fields).length == length


def test_transfer_encoding_in_http_1_0_is_refused() -> None:
    """RFC 9112 §6.1: an HTTP/1.0 message with Transfer-Encoding must be treated as if its framing is faulty."""
    with pytest.raises(MalformedRequest):
        asked(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked")


def test_only_http_1_1_expects_and_only_100_continue() -> None:
    assert asked(b"POST / HTTP/1.1", b"Expect: 100-Continue").expects
    assert not asked(b"POST / HTTP/1.0", b"Expect: 100-continue").expects
    assert not asked(b"POST / HTTP/1.1", b"Expect: 200-ok").expects


def test_fields_keep_order_case_and_repeats_and_lose_the_white_space_around_values() -> None:
    head = asked(b"GET / HTTP/1.1", b"x-b: 1", b"X-A:2", b"X-B:  3 4\t", b"X-Empty:", b"X-High: \xff\t\xfe")
    assert head.pairs[1:] == [
        (b"x-b", b"1"), (b"X-A", b"2"), (b"X-B", b"3 4"), (b"X-Empty", b""), (b"X-High", b"\xff\t\xfe")
    ]  # fmt: skip


def test_upgrade_changes_nothing_about_a_head() -> None:
    head = asked(b"POST / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5")
    assert (head.length, head.keep_alive) == (5, True)


def test_a_head_of_too_many_fields_is_refused() -> None:
    assert asked(b"GET / HTTP/1.1", *[b"X: y"] * (MAX_FIELDS - 1))
    with pytest.raises(MalformedRequest, match="at most 256"):
        asked(b"GET / HTTP/1.1", *[b"X: y"] * MAX_FIELDS)


@pytest.mark.parametrize(
    ("data", "hope"),
    [
        (b"G", True), (b"GET / HTTP/1.1\r\nHost: a\r\n", True), (b"\r", True), (b"GET / HTTP/1.1\r", True),
        (b"\x16\x03\x01", False), (b"\n", False), (b"\rG", False), (b" GET", False), (b"\x00", False),
        (b"GET / HTTP/1.1\nHost: a\n\n", False), (b"x" * 101, False),
    ],
)  # fmt: skip
def test_a_beginning_from_which_no_head_can_come_is_refused_at_once(data: bytes, hope: bool) -> None:
    assert (malformed_request(data, 100) is None) is hope


REFUSED_ANSWERS = {
    "another protocol": (b"SSH-2.0-x",),
    "HTTP/2": (b"HTTP/2 200 OK",),
    "HTTP/1.2": (b"HTTP/1.2 200 OK",),
    "a status of two digits": (b"HTTP/1.1 20 OK",),
    "a status of four digits": (b"HTTP/1.1 2000 OK",),
    "a status of letters": (b"HTTP/1.1 abc OK",),
    "status 099": (b"HTTP/1.1 099 OK",),
    "status 600": (b"HTTP/1.1 600 OK",),
    "two spaces": (b"HTTP/1.1  200 OK",),
    "NUL in the reason": (b"HTTP/1.1 200 O\x00K",),
    "a control in the reason": (b"HTTP/1.1 200 O\x07K",),
    "a bare CR in the reason": (b"HTTP/1.1 200 O\rK",),
    "two lengths": (b"HTTP/1.1 200 OK", b"Content-Length: 1", b"Content-Length: 2"),
    "a length and a coding": (b"HTTP/1.1 200 OK", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    "a length that is no number": (b"HTTP/1.1 200 OK", b"Content-Length: one"),
    "a coding that is not ours to undo": (b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip, chunked"),
    "an unknown coding": (b"HTTP/1.1 200 OK", b"Transfer-Encoding: foo"),
    "chunked in HTTP/1.0": (b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked"),
    "obs-fold": (b"HTTP/1.1 200 OK", b"X: a", b" b"),
    "a space before the colon": (b"HTTP/1.1 200 OK", b"X : a"),
    "a space in a name": (b"HTTP/1.1 200 OK", b"X Y: a"),
    "NUL in a value": (b"HTTP/1.1 200 OK", b"X: \x00"),
    "a line without a colon": (b"HTTP/1.1 200 OK", b"nonsense"),
    "a 204 with a length": (b"HTTP/1.1 204 No Content", b"Content-Length: 1"),
    "a chunked 204": (b"HTTP/1.1 204 No Content", b"Transfer-Encoding: chunked"),
    "too many fields": (b"HTTP/1.1 200 OK", *[b"X: y"] * (MAX_FIELDS + 1)),
}


@pytest.mark.parametrize("lines", REFUSED_ANSWERS.values(), ids=REFUSED_ANSWERS)
def test_an_answer_that_cannot_be_framed_without_doubt_is_malformed(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(UpstreamMalformed):
        answered(*lines)


@pytest.mark.parametrize(
    ("method", "line", "fields", "framing"),
    [
        (b"GET", b"HTTP/1.1 200 OK", [b"Content-Length: 3"], (3, False)),
        (b"GET", b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], (None, True)),
        (b"GET", b"HTTP/1.1 200 OK", [], (None, False)),
        (b"HEAD", b"HTTP/1.1 200 OK", [b"Content-Length: 3"], (0, False)),
        (b"HEAD", b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], (0, False)),
        (b"GET", b"HTTP/1.1 304 Not Modified", [b"Content-Length: 3"], (0, False)),
        (b"GET", b"HTTP/1.1 204 No Content", [], (0, False)),
        (b"GET", b"HTTP/1.1 100 Continue", [], (0, False)),
        (b"GET", b"HTTP/1.0 200 OK", [b"Content-Length: 3"], (3, False)),
    ],
)
def test_an_answers_length_is_as_rfc_9112_6_3_says(
    method: bytes, line: bytes, fields: list[bytes], framing: tuple[int | None, bool]
) -> None:
    head = answered(line, *fields, method=method)
    assert (head.length, head.chunked) == framing


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"), (b"HTTP/1.1 200 ", 200, b""), (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 599 A b\tc \xff", 599, b"A b\tc \xff"),
    ],
)  # fmt: skip
def test_status_and_reason_are_kept(line: bytes, status: int, reason: bytes) -> None:
    head = answered(line)
    assert (head.status, head.reason) == (status, reason)


@pytest.mark.parametrize(
    ("data", "hope"),
    [
        (b"H", True), (b"HTTP/1.1 2", True), (b"HTTP/1.1 200 OK\r\nX: y", True), (b"HTTP/1.1 200 OK\r", True),
        (b"HTTP/2", False), (b"<html>", False), (b"HTTP/1.1 200 OK\nX: y\n\n", False), (b"HTTP/1.1 abc\r\n", False),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 100, False),
    ],
)  # fmt: skip
def test_a_beginning_from_which_no_answer_can_come_is_malformed_at_once(data: bytes, hope: bool) -> None:
    assert (malformed_response(data, 100) is None) is hope


class Counted:
    """An expression that counts the bytes that it is given to look through."""

    def __init__(self, expression: re.Pattern[bytes]) -> None:
        self._expression = expression
        self.bytes = 0

    def search(self, data: bytes, at: int = 0) -> Any:
        self.bytes += len(data) - at
        return self._expression.search(data, at)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_head_that_comes_byte_by_byte_is_looked_through_once(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(heads._BARE_LF)
    monkeypatch.setattr(heads, "_BARE_LF", counted)
    head = b"X-%03d: %b\r\n"
    fields = b"".join(head % (number, b"x" * 200) for number in range(70))
    if side == "client":
        stage = Stage()
        Listener(stage).connect().send(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n", 1)
        assert len(stage.requests) == 1
    else:
        provider = Provider()
        asked = provider.ask()
        provider.peers[0].send(b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n", 1)
        assert asked.response.code == 204
    assert counted.bytes < 6 * len(fields)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_bare_line_feed_is_found_at_whatever_split(side: str) -> None:
    for place in range(1, 30):
        if side == "client":
            site = Listener(Stage())
            client = site.connect()
            data = b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n"
            client.send(data[:place])
            client.send(data[place:])
            assert client.take().startswith(b"HTTP/1.1 400 "), place
        else:
            provider = Provider()
            asked = provider.ask()
            data = b"HTTP/1.1 200 OK\r\nX: y\nZ: y\r\n"
            provider.peers[0].send(data[:place])
            provider.peers[0].send(data[place:])
            assert isinstance(asked.fault, UpstreamMalformed), place
