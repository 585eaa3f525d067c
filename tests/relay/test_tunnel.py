"""WebSockets: the handshake, and the frames between a client and an upstream."""

from __future__ import annotations

from typing import Any

import pytest

from flowstack.config import Timeouts
from flowstack.errors import Overloaded
from flowstack.http.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    accept_of,
    close_code,
    close_payload,
    frame,
)
from flowstack.keys import Key
from flowstack.relay.tunnel import CLOSED, CLOSING, ENDED, MOVES, OPEN, State
from tests.relay.lab import AUTH, KEY, Answer, Lab, Limiter, SlowLimiter, answer
from tests.relay.sockets import MASK, OPENING, REALTIME, RESPONSES, SOCKET_KEY, Duet

ELSEWHERE = b"/v1/live/sounds"
"""A WebSocket of which nothing is known but its frames."""


def opening(
    lab: Lab, line: bytes = b"GET /v1/realtime HTTP/1.1", fields: tuple[bytes, ...] = OPENING, body: bytes = b""
) -> Answer:
    client = lab.client()
    client.send(b"\r\n".join([line, b"Host: flowstack.example", AUTH, *fields, b"", body]))
    return answer(client)


# The handshake.


def test_the_upstream_gets_the_clients_handshake_without_what_is_flowstacks() -> None:
    duet = Duet(
        Lab(), b"/v1/realtime?model=gpt-realtime&x=%2F", b"Authorization: Bearer sk-mine", b"Origin: https://a.example",
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", b"Sec-WebSocket-Protocol: realtime",
        b"Flowstack-Attribute-Team: search", b"openai-beta: responses_websockets=2026-02-06",
    )  # fmt: skip
    assert duet.asked == (
        b"GET /v1/realtime?model=gpt-realtime&x=%2F HTTP/1.1\r\nHost: upstream.example\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer sk-mine\r\nOrigin: https://a.example\r\n"
        b"openai-beta: responses_websockets=2026-02-06\r\nSec-WebSocket-Protocol: realtime\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\n\r\n"
    )


def test_the_client_gets_the_upstreams_answer_with_its_fields_and_flowstacks() -> None:
    lab = Lab()
    lab.limiter.figures = ((b"Flowstack-RateLimit-Limit-Tokens", b"9"),)
    second = Duet(lab, REALTIME, b"Sec-WebSocket-Protocol: x, realtime",
                  answers=(b"Sec-WebSocket-Protocol: realtime", b"X-Model: y"))  # fmt: skip
    assert b"\r\nSec-WebSocket-Protocol: realtime\r\nSec-WebSocket-Accept" in second.head
    assert b"\r\nX-Model: y\r\n" in second.head
    assert second.head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    assert b"\r\nSec-WebSocket-Accept: " + accept_of(SOCKET_KEY) in second.head
    assert b"\r\nFlowstack-Request-Id: " in second.head
    assert second.head.endswith(b"\r\nFlowstack-RateLimit-Limit-Tokens: 9")


@pytest.mark.parametrize(
    ("shown", "left"),
    [
        (b"realtime, flowstack-auth." + KEY, b"realtime"),
        (b"flowstack-auth." + KEY, None),
        (b"realtime, openai-insecure-api-key." + KEY + b"~sk-mine, openai-organization.o",
         b"realtime, openai-insecure-api-key.sk-mine, openai-organization.o"),
        (b"OpenAI-Insecure-API-Key." + KEY + b"~sk-mine", b"OpenAI-Insecure-API-Key.sk-mine"),
    ],
)  # fmt: skip
def test_a_key_in_a_subprotocol_is_taken_out_of_it(shown: bytes, left: bytes | None) -> None:
    duet = Duet(Lab(), REALTIME, b"Sec-WebSocket-Protocol: " + shown, auth=None)
    assert KEY not in duet.asked
    offered = [line for line in duet.asked.split(b"\r\n") if b"Protocol" in line]
    assert offered == ([] if left is None else [b"Sec-WebSocket-Protocol: " + left])
    duet.client.say({"type": "x"})
    assert duet.upstream.events() == [{"type": "x"}]


@pytest.mark.parametrize(
    "prefix",
    [b"openai-insecure-api-key.", b"OpenAI-Insecure-API-Key.", b"openai-organization.", b"OpenAI-Project."],
)
def test_the_operators_key_takes_the_place_of_every_credential_of_the_client(prefix: bytes) -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    duet = Duet(
        lab, REALTIME, b"Sec-WebSocket-Protocol: realtime, " + prefix + b"sk-clients",
        b"Authorization: Bearer sk-clients",
    )  # fmt: skip
    assert b"sk-clients" not in duet.asked
    assert b"Authorization: Bearer sk-operators\r\n" in duet.asked
    assert b"Sec-WebSocket-Protocol: realtime\r\n" in duet.asked


def test_one_key_alone_may_stand_in_openais_subprotocol_where_the_operator_holds_the_other() -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    offered = b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + KEY
    duet = Duet(lab, REALTIME, offered, auth=None)
    assert KEY not in duet.asked
    assert duet.head.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        (b"openai-insecure-api-key." + KEY, "misplaced_key"),
        (b"OpenAI-Insecure-API-Key." + KEY, "misplaced_key"),
        (b"realtime, Flowstack-Auth.another-key-of-others-long-enough", "malformed_request"),
        (b"openai-insecure-api-key.sk-mine, openai-insecure-api-key." + KEY, "misplaced_key"),
    ],
)
def test_a_flowstack_key_in_a_subprotocol_never_goes_on_though_another_header_has_one(shown: bytes, code: str) -> None:
    lab = Lab()
    lab.keys.add(b"another-key-of-others-long-enough", id="k2")
    duet = Duet(lab, REALTIME, b"Sec-WebSocket-Protocol: " + shown)
    assert Answer(duet.head).error["code"] == code
    assert lab.upstreams == []


def test_a_key_in_a_subprotocol_goes_no_further_where_no_websocket_is_asked_for_either() -> None:
    lab = Lab()
    lab.ask(b"GET /v1/models HTTP/1.1", b"Sec-WebSocket-Protocol: x, flowstack-auth." + KEY)
    asked = lab.upstreams[0].take()
    assert KEY not in asked
    assert b"\r\nSec-WebSocket-Protocol: x\r\n" in asked


def test_two_keys_that_are_not_the_same_are_refused() -> None:
    lab = Lab()
    lab.keys.add(b"another-key-of-others-long-enough", id="k2")
    duet = Duet(lab, REALTIME, b"Sec-WebSocket-Protocol: realtime, flowstack-auth.another-key-of-others-long-enough")
    refused = Answer(duet.head)
    assert (refused.status, refused.error["code"]) == (400, "malformed_request")


def without(name: bytes) -> tuple[bytes, ...]:
    return tuple(field for field in OPENING if not field.startswith(name))


@pytest.mark.parametrize(
    ("line", "fields", "status", "says"),
    [
        (b"GET /v1/realtime HTTP/1.1", without(b"Connection"), 400, "no 'Connection: Upgrade'"),
        (b"GET /v1/realtime HTTP/1.1", without(b"Sec-WebSocket-Key"), 400, "Sec-WebSocket-Key"),
        (b"GET /v1/realtime HTTP/1.1", (*without(b"Sec-WebSocket-Key"), b"Sec-WebSocket-Key: short"), 400, "16 bytes"),
        (b"GET /v1/realtime HTTP/1.1", (*OPENING, b"Sec-WebSocket-Key: " + SOCKET_KEY), 400, "one Sec-WebSocket-Key"),
        (b"GET /v1/realtime HTTP/1.1", without(b"Sec-WebSocket-Version"), 400, "Version: 13"),
        (b"GET /v1/realtime HTTP/1.1", (*without(b"Sec-WebSocket-Version"), b"Sec-WebSocket-Version: 8"), 400,
         "Version: 13"),
        (b"POST /v1/realtime HTTP/1.1", OPENING, 400, "by GET"),
        (b"GET /v1/realtime HTTP/1.0", OPENING, 400, "HTTP/1.1"),
        (b"GET /v1/realtime HTTP/1.1", (*OPENING, b"Content-Length: 1"), 400, "no body"),
    ],
)
def test_what_is_no_handshake_is_refused_and_says_why(
    line: bytes, fields: tuple[bytes, ...], status: int, says: str
) -> None:
    lab = Lab()
    refused = opening(lab, line, fields, b"x" if b"Content-Length: 1" in fields else b"")
    assert (refused.status, lab.upstreams) == (status, [])
    assert says in refused.error["message"]
    if says == "Version: 13":
        assert refused["sec-websocket-version"] == b"13"
    assert lab.row["end"] == "refused"


def test_an_upgrade_to_anything_else_is_ignored() -> None:
    lab = Lab()
    lab.ask(b"GET /v1/models HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c")
    assert b"pgrade" not in lab.upstreams[0].take()


def test_where_they_are_switched_off_it_is_said_before_anything_else_is_looked_at() -> None:
    lab = Lab(websockets=False)
    lab.keys.add(KEY, endpoints=("/v1/chat/completions",))
    refused = opening(lab, fields=without(b"Sec-WebSocket-Key"))
    assert (refused.status, refused.error["code"]) == (426, "websocket_disabled")


@pytest.mark.parametrize(
    ("options", "target", "code"),
    [
        (dict(endpoints=("/v1/chat/completions",)), REALTIME, "endpoint_not_allowed"),
        (dict(models=("gpt-4o*",)), REALTIME, "model_not_allowed"),
        (dict(models=("gpt-4o*",)), b"/v1/realtime?model=gpt-4o&model=gpt-realtime", "model_not_allowed"),
        (dict(models=("gpt-4o*",)), ELSEWHERE, "endpoint_not_allowed"),
        (dict(upstreams=("azure",)), REALTIME, "upstream_not_allowed"),
        (dict(disabled=True), REALTIME, "flowstack_key_disabled"),
    ],
)
def test_the_handshake_is_held_to_what_its_key_may_do(options: dict[str, Any], target: bytes, code: str) -> None:
    lab = Lab()
    lab.keys.add(KEY, **options)
    assert opening(lab, b"GET " + target + b" HTTP/1.1").error["code"] == code
    assert lab.upstreams == []


def test_with_the_operators_key_the_call_of_another_cannot_be_listened_to() -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    assert opening(lab, b"GET /v1/realtime?call_id=rtc_1 HTTP/1.1").error["code"] == "endpoint_not_allowed"
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    lab.keys.add(KEY, endpoints=("/v1/realtime",))
    assert Duet(lab, b"/v1/realtime?call_id=rtc_1").head.startswith(b"HTTP/1.1 101")


def test_the_upstreams_refusal_goes_back_with_its_status_fields_and_body() -> None:
    lab = Lab()
    client = lab.client()
    client.send(b"\r\n".join([b"GET /v1/realtime HTTP/1.1", b"Host: flowstack.example", *OPENING, AUTH, b"", b""]))
    lab.upstreams[0].send(b"HTTP/1.1 401 Unauthorized\r\nX-Why: no\r\nContent-Length: 4\r\n\r\nnope")
    refused = answer(client)
    assert (refused.status, refused["x-why"], refused.body) == (401, b"no", b"nope")
    assert (lab.row["status"], lab.row["end"]) == (401, "complete")


GOOD = (b"Upgrade: websocket", b"Connection: upgrade", b"Sec-WebSocket-Accept: " + accept_of(SOCKET_KEY))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (GOOD[:2], "Accept"),
        ((*GOOD[:2], b"Sec-WebSocket-Accept: " + accept_of(b"another")), "Accept"),
        (GOOD[1:], "strict HTTP"),
        ((b"Upgrade: h2c", *GOOD[1:]), "another protocol"),
        ((*GOOD, b"Sec-WebSocket-Extensions: permessage-deflate"), "extension"),
        ((*GOOD, b"Sec-WebSocket-Protocol: chat"), "subprotocol"),
        ((*GOOD, b"Sec-WebSocket-Protocol: realtime", b"Sec-WebSocket-Protocol: realtime"), "subprotocol"),
    ],
)
def test_a_101_that_is_no_answer_to_the_handshake_is_a_502(fields: tuple[bytes, ...], says: str) -> None:
    lab = Lab()
    client = lab.client()
    offer = (b"Sec-WebSocket-Protocol: realtime",)
    lines = [b"GET /v1/realtime HTTP/1.1", b"Host: flowstack.example", *OPENING, *offer, AUTH, b"", b""]
    client.send(b"\r\n".join(lines))
    lab.upstreams[0].send(b"\r\n".join([b"HTTP/1.1 101 Switching Protocols", *fields, b"", b""]))
    refused = answer(client)
    assert (refused.status, refused.error["code"]) == (502, "upstream_malformed")
    assert says in refused.error["message"]
    assert (lab.row["end"], lab.upstreams[0].peer_saw) == ("upstream_lost", "reset")


def test_a_handshake_that_is_not_answered_in_time_is_a_504() -> None:
    lab = Lab(Timeouts(websocket_handshake=7))
    client = lab.client()
    client.send(b"\r\n".join([b"GET /v1/realtime HTTP/1.1", b"Host: flowstack.example", *OPENING, AUTH, b"", b""]))
    lab.turns.fires(7, lambda: client.got)
    assert answer(client).error["code"] == "upstream_timeout"
    assert lab.row["end"] == "timeout"


# Frames.


class Unlimited(Limiter):
    def plan(self, key: Key, upstream: str) -> Any:
        return None


CONVERSATION = [
    frame(TEXT, '{"type":"grüße"}'.encode(), MASK), frame(PING, b"a ping", MASK),
    frame(BINARY, bytes(range(256)), MASK),
    bytes((CONTINUATION + TEXT, 0x80 | 3)) + MASK + b"\x01\x02\x03", frame(PONG, b"", MASK),
    bytes((0x80 | CONTINUATION, 0x80 | 0)) + MASK,
]  # fmt: skip


@pytest.mark.parametrize("target", [ELSEWHERE, REALTIME, RESPONSES])
def test_what_a_client_sends_reaches_the_upstream_as_it_was_at_every_split(target: bytes) -> None:
    wire, lab = b"".join(CONVERSATION), Lab(limiter=Unlimited())
    for place in range(1, len(wire)):
        duet = Duet(lab, target)
        duet.client.transport.send(wire[:place])
        duet.client.transport.send(wire[place:])
        assert duet.upstream.transport.take() == wire


@pytest.mark.parametrize("target", [ELSEWHERE, REALTIME, RESPONSES])
def test_what_an_upstream_sends_reaches_the_client_as_it_was_at_every_split(target: bytes) -> None:
    frames = (frame(TEXT, b'{"type":"response.output_text.delta"}'), frame(PING, b"x"), frame(TEXT, b"{}"))
    wire, lab = b"".join(frames), Lab()
    for place in range(1, len(wire)):
        duet = Duet(lab, target)
        duet.upstream.transport.send(wire[:place])
        duet.upstream.transport.send(wire[place:])
        assert duet.client.transport.take() == wire


def test_what_comes_with_the_handshakes_goes_on_first() -> None:
    first, later = frame(TEXT, b'{"a":1}', MASK), frame(TEXT, b'{"a":2}', MASK)
    hello, more = frame(TEXT, b'{"type":"session.created"}'), frame(TEXT, b'{"b":2}')
    duet = Duet(Lab(), ELSEWHERE, early=first, more=hello)
    duet.client.transport.send(later)
    duet.upstream.transport.send(more)
    assert duet.upstream.transport.take() == first + later
    assert duet.client.transport.take() == hello + more


def test_a_side_that_does_not_read_stops_the_other_and_no_byte_is_lost() -> None:
    duet = Duet(Lab(), ELSEWHERE)
    ours, theirs = duet.client.transport, duet.upstream.transport
    ours.peer_reads = False
    sent = b""
    while theirs.reading:
        piece = frame(BINARY, bytes(16 * 1024))
        sent += piece
        theirs.send(piece)
    assert len(sent) < 256 * 1024
    theirs.send(frame(TEXT, b'"held"'))
    assert theirs.waiting_to_be_read
    ours.peer_reads = True
    ours.read()
    assert theirs.reading
    assert ours.take() == sent + frame(TEXT, b'"held"')


# Ends.


def test_a_close_goes_to_the_other_side_with_its_code_and_reason_and_back() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    duet.client.say(b'"x"')
    duet.upstream.transport.take()
    duet.client.close(4321, "grüße")
    assert duet.upstream.transport.take() == frame(CLOSE, close_payload(4321, "grüße"), MASK)
    duet.upstream.say(b'"still"')
    assert lab.rows == []
    duet.upstream.close(1000, "bye")
    assert duet.client.transport.take() == frame(TEXT, b'"still"') + frame(CLOSE, close_payload(1000, "bye"))
    lab.turns.settle()
    assert (duet.client.transport.peer_saw, duet.upstream.transport.peer_saw) == ("fin", "fin")
    row = lab.row
    assert (row["status"], row["end"], row["close_code"], row["error_code"]) == (101, "complete", 4321, None)
    assert (row["messages_in"], row["messages_out"], row["bytes_in"], row["bytes_out"]) == (1, 1, 3, 7)
    assert (lab.socket_ends, lab.listener.site.connections, lab.sockets.current) == (["complete"], set(), set())


@pytest.mark.parametrize("how", ["hang_up", "fall_over"])
def test_a_client_that_leaves_without_a_close_closes_the_upstream_at_once(how: str) -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    getattr(duet.client.transport, how)()
    assert duet.upstream.transport.closed
    assert (lab.row["end"], lab.row["close_code"]) == ("client_gone", None)


def test_an_upstream_that_is_lost_closes_the_client_without_a_close_frame() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    duet.upstream.say(b'"last"')
    duet.upstream.transport.fall_over()
    assert duet.client.transport.take() == frame(TEXT, b'"last"')
    assert duet.client.transport.closed
    assert lab.row["end"] == "upstream_lost"


def test_a_side_that_does_not_answer_a_close_is_cut_in_time() -> None:
    lab = Lab(Timeouts(websocket_close=3))
    duet = Duet(lab, ELSEWHERE)
    duet.client.close()
    lab.turns.fires(3, lambda: duet.client.transport.closed)
    assert (lab.row["end"], lab.row["close_code"]) == ("complete", 1000)


def test_bytes_that_never_go_out_are_given_up_in_time() -> None:
    lab = Lab(Timeouts(websocket_close=3))
    duet = Duet(lab, ELSEWHERE)
    duet.client.transport.peer_reads = False
    duet.upstream.say(b'"x"')
    duet.upstream.transport.fall_over()
    assert lab.listener.site.busy == 1
    lab.turns.fires(3, lambda: duet.client.transport.closed)
    lab.turns.settle()
    assert lab.listener.site.busy == 0


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"x"), 1002), (frame(3, b"", MASK), 1002), (frame(TEXT, b"\xff", MASK), 1007),
        (bytes((0x82, 0xFF)) + (2**31).to_bytes(8, "big") + MASK, 1009), (frame(CONTINUATION, b"", MASK), 1002),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_ends_both_sides_and_the_row_says_so(wire: bytes, code: int) -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    good = frame(TEXT, b'"good"', MASK)
    duet.client.transport.send(good + wire)
    first, (opcode, payload) = duet.upstream.take()
    closed = duet.client.closed()
    assert closed is not None and closed[0] == code and closed[1]
    assert (first, opcode, close_code(payload)) == ((TEXT, b'"good"'), CLOSE, closed)
    row = lab.row
    assert (row["end"], row["error_code"], row["close_code"]) == ("refused", "malformed_request", code)


def test_an_upstream_that_breaks_the_protocol_is_told_and_the_client_too() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    duet.upstream.transport.send(frame(TEXT, b"x", MASK))
    closed = duet.client.closed()
    assert closed is not None and closed[0] == 1002
    assert (lab.row["end"], lab.row["error_code"]) == ("upstream_lost", "upstream_malformed")


def test_no_close_is_put_into_the_middle_of_a_frame() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    half = frame(BINARY, bytes(1000))[:500]
    duet.upstream.transport.send(half)
    lab.listener.site.close()
    assert duet.client.transport.take() == half


def test_a_drain_waits_for_them_and_then_closes_with_1012() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    lab.listener.site.drain()
    assert lab.listener.site.busy == 1
    duet.client.say(b'"still served"')
    assert duet.upstream.take() == [(TEXT, b'"still served"')]
    lab.listener.site.close()
    closed, told = duet.client.closed(), duet.upstream.closed()
    assert (closed and closed[0], told and told[0]) == (1012, 1001)
    lab.turns.settle()
    assert (lab.row["end"], lab.listener.site.busy) == ("drain", 0)


def test_a_silent_side_is_asked_by_a_ping_of_which_the_other_hears_nothing() -> None:
    lab = Lab(Timeouts(websocket_ping=10))
    duet = Duet(lab, ELSEWHERE)
    lab.turns.advance(22)
    ((opcode, payload),) = duet.client.take()
    assert (opcode, len(duet.upstream.take())) == (PING, 1)
    for end in (duet.client, duet.upstream):
        end.transport.send(frame(PONG, payload, end.mask))
    assert (duet.client.take(), duet.upstream.take()) == ([], [])
    lab.turns.advance(12)
    duet.client.transport.send(frame(PONG, b"another's", MASK))
    assert duet.upstream.take()[-1] == (PONG, b"another's")
    assert lab.rows == []


@pytest.mark.parametrize("dead", ["client", "upstream"])
def test_a_side_that_answers_no_ping_is_given_up(dead: str) -> None:
    lab = Lab(Timeouts(websocket_ping=10))
    duet = Duet(lab, ELSEWHERE)
    living = duet.upstream if dead == "client" else duet.client
    for _ in range(8):
        lab.turns.advance(5)
        if not lab.rows:
            living.transport.send(frame(PONG, b"here", living.mask))
    assert (lab.row["end"], getattr(duet, dead).transport.closed) == ("timeout", True)
    closed = living.closed()
    assert closed is not None and dead in closed[1]


def test_the_longest_session_ends_with_1001() -> None:
    lab = Lab(Timeouts(websocket_session=100, websocket_ping=1000))
    duet = Duet(lab, ELSEWHERE)
    lab.turns.fires(100, lambda: lab.rows)
    closed = duet.client.closed()
    assert closed is not None and closed[0] == 1001
    assert lab.row["end"] == "timeout"


@pytest.mark.parametrize(
    "changed", [None, dict(disabled=True), dict(expires_at=1.0)], ids=["removed", "disabled", "expired"]
)
def test_a_key_that_may_no_longer_be_used_is_closed_with_1008_within_a_second(changed: dict[str, Any] | None) -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    lab.keys.keys.clear()
    if changed is not None:
        lab.keys.add(KEY, **changed)
    lab.turns.advance(3)
    assert lab.rows == []  # no reload yet
    lab.keys.generation += 1
    lab.turns.advance(1.3)
    closed = duet.client.closed()
    assert closed is not None and closed[0] == 1008 and "key" in closed[1]
    assert lab.row["end"] == "refused"


def test_one_that_cannot_be_looked_after_is_cut_and_hides_no_other_now_or_later(logged: list[str]) -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    (tunnel,) = lab.sockets.current

    def fail() -> bool:
        raise LookupError("on purpose")

    tunnel.heard = fail
    lab.turns.advance(1.3)
    assert duet.client.transport.closed and duet.upstream.transport.closed
    assert len(lab.rows) == 1
    assert "a WebSocket could not be looked after; it is cut" in logged
    assert lab.sockets.deadline < float("inf")
    other = Duet(lab, ELSEWHERE)
    lab.keys.keys.clear()
    lab.keys.generation += 1
    lab.turns.advance(1.3)
    assert (other.client.closed() or (0, ""))[0] == 1008


def test_a_key_that_expires_while_it_is_used_is_closed() -> None:
    lab = Lab()
    key: Key = lab.keys.add(KEY, expires_at=lab.wall() + 50)
    assert key.expires_at is not None
    duet = Duet(lab, ELSEWHERE)
    lab.turns.advance(49)
    assert lab.rows == []
    lab.turns.advance(2.5)
    assert (duet.client.closed() or (0, ""))[0] == 1008
    assert lab.row["error_code"] == "flowstack_key_expired"


@pytest.mark.parametrize("early", [b"", frame(TEXT, b'{"type":"response.create"}', MASK)])
def test_a_key_for_which_there_is_no_room_at_the_101_is_closed_and_nobody_is_left_waiting(early: bytes) -> None:
    class Full(Limiter):
        plans = 0

        def plan(self, key: Key, upstream: str) -> Any:
            self.plans += 1
            if self.plans > 1:
                raise Overloaded("There is no space left.")
            return self

    lab = Lab(limiter=Full())
    duet = Duet(lab, REALTIME, early=early)
    assert duet.head.startswith(b"HTTP/1.1 101")
    assert (duet.client.closed() or (0, ""))[0] == 1008
    lab.turns.settle()
    assert (lab.row["end"], lab.row["error_code"], lab.listener.site.busy) == ("refused", "overloaded", 0)


def test_a_key_to_which_a_reload_gave_an_end_is_closed_then() -> None:
    lab = Lab()
    duet = Duet(lab, ELSEWHERE)
    lab.keys.add(KEY, expires_at=lab.wall() + 50)
    lab.keys.generation += 1
    lab.turns.advance(49)
    assert lab.rows == []
    lab.turns.advance(2.5)
    assert (duet.client.closed() or (0, ""))[0] == 1008


# Its states.


def test_the_table_of_moves_is_the_one_that_is_meant() -> None:
    assert MOVES == {OPEN: (CLOSING, ENDED), CLOSING: (ENDED,), ENDED: (CLOSED,), CLOSED: ()}
    assert set(State) == set(MOVES)


def test_none_of_its_events_in_any_order_asks_for_an_illegal_move() -> None:
    events = {
        "client closes": lambda duet: duet.client.close(),
        "upstream closes": lambda duet: duet.upstream.close(),
        "client leaves": lambda duet: duet.client.transport.hang_up(),
        "upstream leaves": lambda duet: duet.upstream.transport.fall_over(),
        "client breaks it": lambda duet: duet.client.transport.send(b"\xff\xff"),
        "upstream breaks it": lambda duet: duet.upstream.transport.send(b"\xff\xff"),
        "drain": lambda duet: duet.lab.listener.site.close(),
        "cut": lambda duet: duet.lab.listener.site.cut(),
        "time": lambda duet: duet.lab.turns.advance(60),
    }
    for first in events.values():
        for second in events.values():
            for third in events.values():
                lab = Lab(Timeouts(websocket_ping=20, websocket_session=50, drain=1000))
                duet = Duet(lab, ELSEWHERE)
                for event in (first, second, third):
                    event(duet)
                lab.turns.advance(80)
                assert lab.row["end"]
                assert lab.listener.site.busy == 0


# What nobody foresaw.


class Broken(Exception):
    """A fault of Flowstack's own, at a place where none is known."""


class Planless(Limiter):
    """It fails once the WebSocket is open."""

    def parts(self, plan: Any) -> Any:
        found = super().parts(plan)
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked > 1:
            raise Broken
        return found


def test_a_fault_of_its_own_at_the_101_closes_both_sides(logged: list[str]) -> None:
    duet = Duet(Lab(limiter=Planless()))
    assert duet.head.startswith(b"HTTP/1.1 101")
    assert duet.client.closed() == (1011, "Flowstack failed at this message; its log says why.")
    assert duet.upstream.transport.closed
    (row,) = duet.rows
    assert (row["end"], row["error_code"]) == ("refused", "internal_error")
    assert logged.count("a WebSocket's message or key could not be judged") == 1


def test_a_fault_of_its_own_when_a_slow_limiter_has_answered_closes_both_sides(logged: list[str]) -> None:
    limiter = SlowLimiter()
    duet = Duet(Lab(limiter=limiter), waits=limiter.answer)
    duet.client.say({"type": "response.create"})
    behind = duet.upstream.transport
    write = behind.write

    def fails_once(data: bytes) -> None:
        behind.write = write  # type: ignore[method-assign]
        raise Broken

    behind.write = fails_once  # type: ignore[method-assign]
    limiter.answer()
    assert duet.client.closed() == (1011, "Flowstack failed at this message; its log says why.")
    assert behind.closed
    assert logged.count("a WebSocket's message or key could not be judged") == 1
    assert not limiter.open


@pytest.mark.parametrize("what", ["removed", "disabled", "renewed"])
def test_a_reload_while_it_opens_holds_as_one_that_comes_later(what: str) -> None:
    lab = Lab()

    def reload() -> None:
        lab.keys.keys.clear()
        if what != "removed":
            lab.keys.add(KEY, disabled=what == "disabled")
        lab.keys.generation += 1
        lab.turns.advance(3)

    duet = Duet(lab, waits=reload)
    lab.turns.advance(1.1)
    if what == "renewed":
        assert lab.sockets.current
    else:
        assert duet.client.closed() is not None
        assert lab.rows[-1]["error_code"] == "flowstack_key_disabled"
