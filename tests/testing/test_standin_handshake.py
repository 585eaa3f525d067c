"""How a WebSocket to the stand-in is opened and refused (RFC 6455 §4)."""

from __future__ import annotations

import time

import pytest
from wsproto.frame_protocol import FrameProtocol

from tests.testing.sockets import WebSocket, refused, websocket
from tests.testing.wire import Client, until

REALTIME = "/v1/realtime?model=gpt-realtime"
RIGHT = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize("target", [REALTIME, "/v1/responses", "/v1/realtime?intent=transcription"])
def test_a_handshake_is_answered_with_101_and_the_right_accept(client: Client, target: str) -> None:
    with websocket(client, target) as ws:
        assert (ws.answer.header("upgrade"), ws.answer.header("connection")) == ("websocket", "Upgrade")
        assert ws.answer.header("sec-websocket-protocol") is None
        assert ws.answer.header("content-length") is None
        assert ws.answer.header("x-request-id")


def test_no_extension_is_accepted(client: Client) -> None:
    with websocket(client, REALTIME, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits") as ws:
        assert ws.answer.header("sec-websocket-extensions") is None


def test_a_browsers_key_is_taken_from_the_subprotocols_and_realtime_is_chosen(client: Client) -> None:
    offer = "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-browser, openai-organization.org-1"
    with websocket(client, REALTIME, offer, key="") as ws:
        assert ws.answer.header("sec-websocket-protocol") == "realtime"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ((), ""),
        ((), "Authorization: Bearer"),
        ((), "Authorization: Basic c2stdGVzdA=="),
        ((), "Authorization: Bearer other-test"),
        (("Sec-WebSocket-Protocol: realtime",), ""),
        (("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.other",), ""),
        (("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.ek_unknown",), ""),
    ],
)
@pytest.mark.parametrize("target", [REALTIME, "/v1/responses"])
def test_a_handshake_without_a_good_key_is_401(client: Client, target: str, headers: tuple[str, ...], key: str) -> None:
    answer = refused(client, target, *headers, key=key)
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")


def test_a_realtime_handshake_that_says_no_model_is_400(client: Client) -> None:
    answer = refused(client, "/v1/realtime")
    assert (answer.status, answer.json["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Connection", "keep-alive", 400),
        ("Sec-WebSocket-Key", None, 400),
        ("Sec-WebSocket-Key", "c2hvcnQ=", 400),
        ("Sec-WebSocket-Key", "not Base64", 400),
        ("Sec-WebSocket-Version", None, 426),
        ("Sec-WebSocket-Version", "8", 426),
        ("Sec-WebSocket-Version", "13, 8", 426),
    ],
)
@pytest.mark.parametrize("target", [REALTIME, "/v1/responses"])
def test_a_bad_handshake_is_refused(client: Client, target: str, name: str, value: str | None, status: int) -> None:
    fields = tuple(f"{n}: {v}" for n, v in {**RIGHT, name: value}.items() if v is not None)
    answer = refused(client, target, fields=fields)
    assert answer.status == status
    assert answer.header("sec-websocket-version") == ("13" if status == 426 else None)


def test_two_keys_are_refused(client: Client) -> None:
    fields = tuple(f"{n}: {v}" for n, v in RIGHT.items())
    assert refused(client, REALTIME, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", fields=fields).status == 400


def test_without_an_upgrade_realtime_is_426_and_responses_405(client: Client) -> None:
    plain = client.ask("GET", REALTIME)
    assert (plain.status, plain.header("upgrade")) == (426, "websocket")
    other = client.ask("GET", "/v1/responses")
    assert (other.status, other.header("allow")) == (405, "POST")


def test_an_upgrade_elsewhere_is_ignored(client: Client) -> None:
    answer = client.ask("GET", "/v1/models", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    assert answer.status == 200


def test_an_upgrade_in_http_1_0_is_ignored(client: Client) -> None:
    fields = [f"{name}: {value}" for name, value in RIGHT.items()]
    assert client.raw(client.request("GET", REALTIME, *fields, version="1.0")).status == 426


def test_early_changes_nothing_about_a_handshake(client: Client) -> None:
    with websocket(client, REALTIME, "Stand-In: early") as ws:
        assert ws.event()["type"] == "session.created"


def test_what_comes_behind_the_handshake_in_one_piece_is_heard(client: Client) -> None:
    fields = [f"{name}: {value}" for name, value in RIGHT.items()]
    frames = FrameProtocol(client=True, extensions=[])
    asked = '{"type": "response.create", "model": "m", "input": "one", "generate": false}'
    behind = bytes(frames.send_data(asked)) + bytes(frames.close(1000))
    answer = client.raw(client.request("GET", "/v1/responses", *fields, "X-Client-Tag: a") + behind)
    assert (answer.status, answer.end) == (101, "closed")
    [seen] = client.seen("a")
    assert [message["kind"] for message in seen["messages"]] == ["text", "close"]
    assert (seen["messages"][0]["data"], seen["body_bytes"]) == (asked, len(behind))


def test_a_refused_handshake_has_the_status_body_and_field_asked_for(client: Client) -> None:
    answer = refused(client, REALTIME, "Stand-In: status=429; field=X-Why: too many")
    assert (answer.status, answer.header("retry-after"), answer.header("x-why")) == (429, "1", "too many")
    assert answer.json["error"]["code"] == "rate_limit_exceeded"
    assert refused(client, REALTIME, "Stand-In: status=403; size=3").rest == b"\0\0\0"


def test_a_handshake_has_the_faults_asked_for(client: Client) -> None:
    opened = WebSocket(client, REALTIME, "Stand-In: ws-accept; ws-extension; ws-protocol=chat")
    try:
        assert (opened.answer.status, opened.accepted) == (101, False)
        assert opened.answer.header("sec-websocket-extensions") == "permessage-deflate"
        assert opened.answer.header("sec-websocket-protocol") == "chat"
    finally:
        opened.sock.close()


def test_delay_keeps_silence_before_the_101(client: Client) -> None:
    start = time.monotonic()
    with websocket(client, REALTIME, "Stand-In: delay=0.4"):
        assert time.monotonic() - start >= 0.39


def test_the_journal_has_the_handshake_and_all_that_came_byte_for_byte(client: Client) -> None:
    with websocket(client, "/v1/responses?a=%2f", "X-Client-Tag: a", "x-FIRST: 1") as ws:
        ws.write(bytes(ws.frames.send_data('{"type": "é', fin=False)))
        ws.write(bytes(ws.frames.send_data('"}', fin=True)))
        ws.write(bytes(ws.frames.ping(b"p\xff")))
        ws.write(bytes(ws.frames.send_data(b"\0\xff")))
        ws.close(1001, "going")
        assert ws.ending() == "closed"
    until(lambda: client.seen("a")[0]["end"] != "open")
    [seen] = client.seen("a")
    assert seen["head"].encode("latin-1") == ws.head
    assert (seen["body_bytes"], seen["body_sha256"]) == (len(ws.sent), ws.sha256())
    assert (seen["status"], seen["end"], seen["body_complete"]) == (101, "closed", True)
    told = [(m["kind"], m["data"], m.get("frames"), m.get("code")) for m in seen["messages"]]
    assert told == [
        ("text", '{"type": "é"}', 2, None),
        ("ping", "p\xff", None, None),
        ("binary", "\0\xff", 1, None),
        ("close", "going", None, 1001),
    ]


def test_a_client_that_leaves_without_a_close_is_recorded(client: Client) -> None:
    with websocket(client, REALTIME, "X-Client-Tag: a") as ws:
        ws.event()
    until(lambda: client.seen("a")[0]["end"] == "client_gone")
    assert client.seen("a")[0]["gone_at"] is not None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (b"\xc1\x82\0\0\0\0{}", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # no such opcode
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation of nothing
        (b"\x09\x80\0\0\0\0", 1002),  # a Ping in fragments
        (b"\x81\x81\0\0\0\0\xff", 1007),  # no UTF-8
        (b"\x88\x81\0\0\0\0\x03", 1002),  # half a code
    ],
)
def test_what_breaks_the_protocol_is_closed_and_recorded(client: Client, data: bytes, code: int) -> None:
    with websocket(client, "/v1/responses", "X-Client-Tag: a") as ws:
        ws.write(data)
        assert ws.closed()[0] == code
        assert ws.ending() == "closed"
    assert client.state()["framing_faults"] == 1
    assert client.seen("a")[0]["end"] == "framing_fault"
