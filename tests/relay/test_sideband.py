"""Realtime calls: their media pass by, and what they use is heard on a WebSocket beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowstack.config import Target, Timeouts, Upstream
from flowstack.errors import BudgetExceeded
from flowstack.http.frames import PONG, accept_of
from flowstack.process.proxy import CLOSE_SECONDS, Public
from flowstack.relay.heard import Heard
from flowstack.relay.sideband import (
    DONE,
    ENDING,
    HANG_UP_SECONDS,
    HEARD_WITHIN,
    MOVES,
    TRYING,
    WAITS,
    Call,
    State,
)
from flowstack.relay.sideband import HEARD as IS_HEARD
from tests.harness import Transport
from tests.relay.lab import KEY, NOW, Lab, answer
from tests.relay.sockets import OPENING, End
from tests.states import assert_others_raise, legal, moves_of

OTHER = b"another-key-of-others-that-is-long-enough"
BEGIN = b"POST /v1/realtime/calls HTTP/1.1"
SDP = b"Content-Type: application/sdp"
SK = b"Authorization: Bearer sk-the-clients"
HEARD = Upstream(base_url="http://upstream.example/v1", meter_calls=True)
USAGE = {
    "total_tokens": 30, "input_tokens": 20, "output_tokens": 10,
    "input_token_details": {"text_tokens": 5, "audio_tokens": 15, "cached_tokens": 0},
    "output_token_details": {"text_tokens": 2, "audio_tokens": 8},
}  # fmt: skip
SESSION = {"type": "session.created", "session": {"type": "realtime", "model": "gpt-realtime"}}


def begin(
    lab: Lab, *fields: bytes, place: bytes = b"/v1/realtime/calls/rtc_1", target: bytes = b"", code: int = 201
) -> Transport:
    """A client that begins a call, and has its answer."""
    line = BEGIN if not target else b"POST %b HTTP/1.1" % target
    client = lab.ask(line, SDP, SK, b"Content-Length: 3", *fields, body=b"v=0")
    upstream = newest(lab)
    assert upstream.take().startswith(b"POST ")
    located = b"Location: " + place + b"\r\n" if place else b""
    upstream.send(b"HTTP/1.1 %d X\r\n%bContent-Type: application/sdp\r\nContent-Length: 3\r\n\r\nv=1" % (code, located))
    return client


def newest(lab: Lab) -> Transport:
    """The upstream's end that has something to read."""
    peers = [peer for provider in lab.providers.values() for peer in provider.peers]
    return next((peer for peer in reversed(peers) if peer.got), peers[-1])


class Sideband:
    """The upstream's end of what hears a call."""

    def __init__(self, lab: Lab, opens: bool = True) -> None:
        self.lab = lab
        self.transport = newest(lab)
        self.asked = self.transport.take()
        self.end = End(self.transport, False)
        if opens:
            (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", self.asked)
            self.transport.send(
                b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
                + accept_of(key) + b"\r\n\r\n"
            )  # fmt: skip

    def refuse(self, status: int = 404) -> None:
        self.transport.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)

    def speak(self, identity: str = "resp_1", usage: Any = USAGE) -> None:
        self.end.say({"type": "response.created", "response": {"id": identity}})
        self.end.say({"type": "response.done", "response": {"id": identity, "status": "completed", "usage": usage}})


def ending(lab: Lab) -> Transport:
    """The connection on which a call is to be ended; that is read."""
    peers = [peer for provider in lab.providers.values() for peer in provider.peers]
    (asked,) = [peer for peer in peers if b"/hangup " in bytes(peer.got)]
    asked.take()
    return asked


def end(lab: Lab, status: int = 200) -> None:
    """Answer to a call's end."""
    ending(lab).send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)


def hangups(lab: Lab) -> list[bytes]:
    """The heads of the requests that end a call, of those that were not read yet."""
    heads = [peer.take() for provider in lab.providers.values() for peer in provider.peers]
    return [head for head in heads if b"/hangup " in head]


def test_a_calls_row_says_that_its_media_pass_by() -> None:
    lab = Lab()
    client = begin(lab)
    assert answer(client).status == 201
    assert lab.row["transport"] == "webrtc"
    assert newest(lab).take() == b"", "nothing is heard unless that is asked for"


def test_a_call_that_was_not_begun_has_no_media() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab, code=400)
    assert "transport" not in lab.row
    assert newest(lab).take() == b""


def test_a_client_that_leaves_while_the_answer_waits_for_its_first_byte_has_its_row() -> None:
    lab = Lab(upstreams=(Upstream(base_url="http://upstream.example/v1", meter_calls=True, first_byte=5.0),))
    client = lab.ask(BEGIN, SDP, SK, b"Content-Length: 3", body=b"v=0")
    upstream = newest(lab)
    upstream.take()
    upstream.send(b"HTTP/1.1 201 X\r\nLocation: /v1/realtime/calls/rtc_1\r\nContent-Length: 3\r\n\r\n")
    client.hang_up()
    assert (lab.row["status"], lab.row["end"]) == (None, "client_gone")


def test_each_response_of_a_call_has_its_row_and_the_call_is_heard_to_its_end() -> None:
    lab = Lab(upstreams=(HEARD,))
    client = begin(lab, b"User-Agent: a-browser", b"OpenAI-Project: proj_1", b"Cookie: a=b")
    got = answer(client)
    assert (got.status, got["location"]) == (201, b"/v1/realtime/calls/rtc_1")
    aside = Sideband(lab)
    assert aside.asked.startswith(b"GET /v1/realtime?call_id=rtc_1 HTTP/1.1\r\n")
    for field in (SK, b"Host: upstream.example", b"User-Agent: a-browser", b"OpenAI-Project: proj_1"):
        assert field in aside.asked
    for name in (b"cookie", b"content-", b"flowstack", b"extensions"):
        assert name not in aside.asked.lower()
    assert lab.limiter.settled == [], "it counts as one of those at once until it ends"
    aside.end.say(SESSION)
    aside.speak()
    aside.speak("resp_2")
    call, one, two = lab.rows
    assert call["request_id"] == got["flowstack-request-id"].decode()  # type: ignore[union-attr]
    for row in (one, two):
        assert (row["parent_request_id"], row["transport"]) == (call["request_id"], "webrtc")
        assert (row["model_requested"], row["total_tokens"]) == ("gpt-realtime", 30)
        assert (row["key_id"], row["owner"], row["status"], row["end"]) == ("k1", "alice@example.com", 200, "complete")
        assert row["cost_usd"] == pytest.approx((5 * 4 + 15 * 32 + 2 * 16 + 8 * 64) / 1e6)
    assert not hangups(lab)
    aside.end.close()
    lab.turns.advance(0.01)
    assert aside.end.closed() == (1000, "")
    (connection,) = lab.rows[3:]
    assert (connection["method"], connection["path"]) == ("GET", "/v1/realtime")
    assert (connection["status"], connection["end"], connection["close_code"]) == (101, "complete", 1000)
    assert (connection["transport"], connection["parent_request_id"]) == ("websocket", call["request_id"])
    assert (connection["messages_in"], connection["messages_out"], connection["usage_source"]) == (0, 5, "none")
    assert len({row["request_id"] for row in lab.rows}) == 4
    assert lab.limiter.open == set()
    assert lab.socket_ends == ["complete"]
    (ended,) = hangups(lab)
    assert ended.startswith(b"POST /v1/realtime/calls/rtc_1/hangup HTTP/1.1\r\n")
    assert SK in ended
    assert b"\r\nContent-Length: 0\r\n" in ended


def test_with_a_client_secret_the_operators_key_hears_it_where_there_is_one() -> None:
    for keys in ({}, {"openai": (b"sk-operators",)}):
        lab = Lab(upstreams=(HEARD,), provider_keys=keys)
        lab.keys.add(KEY, endpoints=("/v1/realtime*",))
        lab.secrets.remember("ek_0123", lab.key.digest, "openai", NOW + 60)
        lab.ask(BEGIN, SDP, b"Content-Length: 3", b"Authorization: Bearer ek_0123", body=b"v=0", auth=None)
        upstream = newest(lab)
        assert b"Bearer ek_0123" in upstream.take()
        upstream.send(b"HTTP/1.1 201 X\r\nLocation: /v1/realtime/calls/rtc_1\r\nContent-Length: 0\r\n\r\n")
        aside = Sideband(lab)
        assert (b"Bearer sk-operators" in aside.asked, b"Bearer ek_0123" in aside.asked) == (bool(keys), not keys)
        aside.speak()
        assert lab.rows[-1]["key_id"] == "k1"


@pytest.mark.parametrize(
    ("target", "place", "asked"),
    [
        (b"/v1/realtime/calls?model=gpt-realtime", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime/calls?call_id=rtc_other", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime/calls?api-version=1;call_id=rtc_other", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime/calls?api-version=1&api-version=2", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime?model=gpt-realtime", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/deployments/x/realtime/calls", b"", b"/v1/deployments/x/realtime?call_id=rtc_9"),
        (b"/v1/realtime/translations/calls", b"", b"/v1/realtime/translations?call_id=rtc_9"),
        (b"/v1/realtime/Calls", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime/calls/", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime//call%73", b"", b"/v1/realtime?call_id=rtc_9"),
        (b"/v1/realtime%3Fcall_id=other%26x/calls", b"", b"/v1/realtime%3Fcall_id%3Dother%26x?call_id=rtc_9"),
        (b"/v1/realtime%20HTTP%2f1.1%0D%0AX-Mine:%20y%0D%0AZ:/calls", b"",
         b"/v1/realtime%20HTTP/1.1%0D%0AX-Mine:%20y%0D%0AZ:?call_id=rtc_9"),
        (b"/v1/realtime%23/calls", b"", b"/v1/realtime%23?call_id=rtc_9"),
        (b"/v1/%72ealtime%2Fcalls?api-version=1", b"", b"/v1/realtime?call_id=rtc_9&api-version=1"),
        (b"", b"/v1/realtime/calls/rtc_9?ref=/realtime/calls/rtc_other", b"/v1/realtime?call_id=rtc_9"),
        (b"", b"https://upstream.example/v1/realtime/calls/rtc_9?x=1", b"/v1/realtime?call_id=rtc_9"),
    ],
)
def test_where_it_is_heard(target: bytes, place: bytes, asked: bytes) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab, target=target, place=place or b"/v1/realtime/calls/rtc_9")
    assert Sideband(lab).asked.startswith(b"GET %b HTTP/1.1\r\n" % asked)


def test_it_is_heard_at_the_target_that_has_it_with_that_targets_key() -> None:
    upstream = Upstream(
        targets=(Target("one", "http://one.example/v1"), Target("two", "http://two.example/v1")), meter_calls=True
    )
    lab = Lab(upstreams=(upstream,), provider_keys={"openai/one": (b"sk-one",), "openai/two": (b"sk-two",)})
    lab.keys.add(KEY, endpoints=("/v1/realtime*",))
    for _ in range(2):
        begin(lab)
        aside = Sideband(lab)
        host, key = (b"one", b"sk-one") if b"Host: one.example" in aside.asked else (b"two", b"sk-two")
        assert b"Host: %b.example" % host in aside.asked
        assert b"Bearer " + key in aside.asked
        aside.speak()


@pytest.mark.parametrize("place", [b"", b"/v1/realtime/calls/", b"/v1/realtime/calls/a%20b", b"/" + b"x" * 300,
                                   b"/v1/realtime/calls/..", b"/v1/realtime/calls/.x"])  # fmt: skip
def test_a_call_without_a_name_cannot_be_heard_and_says_so(place: bytes, logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    assert answer(begin(lab, place=place)).status == 201
    call, aside = lab.rows
    assert (aside["error_code"], aside["end"], aside["requests"], aside["attempts"]) == (
        "upstream_malformed", "upstream_lost", 0, 0,
    )  # fmt: skip
    assert aside["parent_request_id"] == call["request_id"]
    assert lab.limiter.open == set()
    assert any("cannot be heard" in line for line in logged)
    assert not hangups(lab)


def test_a_call_that_is_not_known_yet_is_asked_for_again() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    for wait in WAITS:
        Sideband(lab, opens=False).refuse(404)
        lab.turns.advance(wait - 0.01)
        assert newest(lab).take() == b""
        lab.turns.advance(0.01)
    Sideband(lab).speak()
    assert lab.rows[-1]["total_tokens"] == 30


@pytest.mark.parametrize(
    ("status", "tries"), [(404, len(WAITS) + 1), (500, len(WAITS) + 1), (401, 1), (403, 1), (200, len(WAITS) + 1)]
)
def test_one_that_cannot_be_heard_is_ended(status: int, tries: int, logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    for number in range(tries):
        Sideband(lab, opens=False).refuse(status)
        lab.turns.advance((*WAITS, 0.0)[number])
    row = lab.rows[-1]
    assert (row["status"], row["end"], row["error_code"], row["attempts"], row["requests"]) == (
        status, "upstream_lost", "upstream_malformed", tries, 0,
    )  # fmt: skip
    assert len(hangups(lab)) == 1
    assert lab.limiter.open == set()
    assert sum("cannot be heard" in line for line in logged) == 1


def test_what_is_no_answer_to_the_handshake_hears_nothing() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab, opens=False)
    aside.transport.send(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert (lab.rows[-1]["end"], lab.rows[-1]["error_code"]) == ("upstream_lost", "upstream_malformed")
    assert len(hangups(lab)) == 1


def test_an_upstream_that_is_away_is_tried_again(logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab, opens=False).transport.hang_up()  # on the connection of the call: repeated at once, as any GET
    for wait in (*WAITS, 0.0):
        Sideband(lab, opens=False).transport.hang_up()
        lab.turns.advance(wait)
    assert lab.rows[-1]["attempts"] == len(WAITS) + 1
    assert lab.rows[-1]["error_code"] == "upstream_closed"
    assert lab.limiter.open == set()


def test_a_call_whose_key_is_removed_is_ended_within_a_second() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    lab.keys.keys.clear()
    lab.keys.generation += 1
    lab.turns.advance(1.1)
    assert (lab.rows[-1]["end"], lab.rows[-1]["error_code"]) == ("refused", "flowstack_key_disabled")
    assert aside.end.closed() == (1001, "")
    assert len(hangups(lab)) == 1
    assert lab.limiter.open == set()


def test_a_response_for_which_too_little_is_left_is_cancelled() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    lab.limiter.fault = BudgetExceeded("The budget is used up.")
    aside.end.say({"type": "response.created", "response": {"id": "resp_1"}})
    (told,) = aside.end.events()
    assert told == {"type": "response.cancel", "response_id": "resp_1"}


def test_a_model_that_the_key_may_not_use_ends_the_call() -> None:
    lab = Lab(upstreams=(HEARD,))
    lab.keys.add(KEY, models=("gpt-4o*",), endpoints=("/v1/realtime*",))
    begin(lab)
    Sideband(lab).end.say(SESSION)
    assert (lab.rows[-1]["end"], lab.rows[-1]["error_code"]) == ("refused", "model_not_allowed")
    lab.turns.advance(0.01)
    assert len(hangups(lab)) == 1


def test_a_key_that_is_limited_still_needs_the_endpoint_for_a_call() -> None:
    lab = Lab(upstreams=(HEARD,))
    lab.keys.add(KEY, models=("gpt-realtime*",))
    client = lab.ask(BEGIN, SDP, SK, b"Content-Length: 3", body=b"v=0")
    assert answer(client).error["code"] == "endpoint_not_allowed"


def test_a_call_that_the_upstream_cuts_is_ended_and_what_was_open_keeps_its_estimate() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    aside.end.say({"type": "response.created", "response": {"id": "resp_1"}})
    aside.transport.hang_up()
    lab.turns.advance(0.01)
    one, connection = lab.rows[1:]
    assert (one["end"], one["usage_source"]) == ("upstream_lost", "none")
    assert (connection["end"], connection["close_code"], connection["status"]) == ("upstream_lost", None, 101)
    assert len(hangups(lab)) == 1
    assert lab.limiter.open == set()


def test_pings_are_answered_both_ways() -> None:
    lab = Lab(Timeouts(websocket_ping=5.0), upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    aside.transport.send(b"\x89\x02hi")
    lab.turns.advance(0.01)
    assert aside.end.take() == [(PONG, b"hi")]
    for _ in range(4):
        lab.turns.advance(5.1)
        for opcode, payload in aside.end.take():
            assert opcode == 9
            aside.transport.send(bytes([0x80 | PONG, len(payload)]) + payload)
    assert lab.sockets.current, "a call in which nobody speaks goes on"


def test_a_call_is_in_flight_and_a_drain_ends_it() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    site = lab.listener.site
    assert site.busy == 1, "before it is heard"
    aside = Sideband(lab)
    assert site.busy == 1
    site.drain()
    site.close()
    lab.turns.advance(0.01)
    assert (lab.rows[-1]["end"], lab.rows[-1]["close_code"]) == ("drain", 1012)
    aside.transport.hang_up()
    lab.turns.advance(0.01)
    assert site.busy == 1, "until the provider has ended it"
    end(lab)
    assert (site.busy, lab.sockets.current, lab.limiter.open) == (0, set(), set())


def test_a_call_goes_on_when_the_connection_that_began_it_is_closed() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab).hang_up()
    aside = Sideband(lab)
    aside.speak()
    aside.end.close()
    lab.turns.advance(0.01)
    assert {row["end"] for row in lab.rows} == {"complete"}
    assert [row["status"] for row in lab.rows] == [201, 200, 101]
    aside.transport.hang_up()
    end(lab)
    assert lab.listener.site.connections == set()


def test_a_drain_gives_up_what_is_not_heard_yet() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    lab.listener.site.close()
    assert lab.rows[-1]["end"] == "drain"
    lab.turns.advance(0.01)
    end(lab)
    assert lab.listener.site.busy == 0
    assert lab.limiter.open == set()


def test_a_provider_that_does_not_end_a_call_is_told_of(logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    aside.end.close()
    lab.turns.advance(0.01)
    for wait in (*WAITS, 0.0):
        end(lab, 500)
        lab.turns.advance(wait)
    assert sum("may go on, as the upstream did not end it: status 500" in line for line in logged) == 1
    assert not hangups(lab)
    assert lab.listener.site.busy == 0


class Controls:
    """A WebSocket of the client's own beside a call, to steer it from a server."""

    def __init__(self, lab: Lab, query: bytes, path: bytes = b"/v1/realtime", key: bytes = KEY) -> None:
        self.transport = lab.client()
        auth = b"Flowstack-Auth: Bearer " + key
        lines = [b"GET %b?%b HTTP/1.1" % (path, query), b"Host: flowstack.example", *OPENING, auth, SK, b"", b""]
        self.transport.send(b"\r\n".join(lines))
        self.client = End(self.transport, True)
        self.upstream = Sideband(lab)
        assert self.transport.take().startswith(b"HTTP/1.1 101 ")


def responses(lab: Lab) -> list[dict[str, Any]]:
    return [row for row in lab.rows if row["total_tokens"] is not None]


@pytest.mark.parametrize(
    "query", [b"call_id=rtc_1", b"call_id=rtc_1&api-version=2026-01-01", b"api-version=1&call_id=rtc_1"]
)
def test_a_response_that_two_websockets_of_a_call_tell_of_is_counted_once(query: bytes) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    controls = Controls(lab, query)
    controls.client.say({"type": "response.create"})
    assert [event["type"] for event in controls.upstream.end.events()] == ["response.create"]
    for end in (aside, controls.upstream):
        end.speak()
    (counted,) = responses(lab)
    assert counted["parent_request_id"] == lab.rows[0]["request_id"]
    controls.transport.hang_up()
    assert (lab.rows[-1]["status"], lab.rows[-1]["end"]) == (101, "client_gone")
    assert lab.sockets.current, "the call goes on"


@pytest.mark.parametrize(
    "query",
    [
        b"call_id=rtc_2", b"call_id=rtc_1&model=gpt-realtime", b"model=gpt-realtime&call_id=rtc_1",
        b"call_id=rtc_1;model=x", b"call_id=rtc_1&call_id=rtc_2", b"model=rtc_1", b"CALL_ID=rtc_1",
        b"call_id=%E2%82%AC", b"call_id=%ff", b"call%5fid=rtc_1", b"call_id=rtc_1&api-version=1;call_id=rtc_2",
        b"call_id=rtc_1&",
    ],
)  # fmt: skip
def test_what_may_be_another_websocket_than_that_of_a_call_is_counted(query: bytes) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab)
    Controls(lab, query).upstream.speak()
    assert len(responses(lab)) == 1


def test_no_other_path_is_uncounted_for_a_calls_id() -> None:
    lab = Lab(upstreams=(HEARD,))
    lab.keys.add(KEY, models=("gpt-realtime*",), endpoints=("/v1/*",))
    begin(lab)
    Sideband(lab)
    controls = Controls(lab, b"call_id=rtc_1", b"/v1/responses")
    controls.client.say({"type": "response.create", "model": "gpt-5-pro"})
    assert not controls.upstream.end.events(), "it is judged"
    assert controls.client.events()[0]["error"]["code"] == "model_not_allowed"


def test_another_keys_websocket_is_counted_and_judged() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab)
    lab.keys.add(OTHER, id="k2", models=("gpt-4o-mini",))
    controls = Controls(lab, b"call_id=rtc_1", key=OTHER)
    controls.client.say({"type": "response.create", "response": {"model": "gpt-5-pro"}})
    assert not controls.upstream.end.events()
    controls.upstream.speak()
    assert [row["key_id"] for row in responses(lab)] == ["k2"]


def test_a_call_that_has_ended_is_counted_on_a_websocket_of_the_clients() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside, controls = Sideband(lab), Controls(lab, b"call_id=rtc_1")
    aside.end.close()
    lab.turns.advance(0.01)
    end(lab)
    assert len(lab.sockets.current) == 1
    lab.turns.advance(1.1)
    assert not lab.sockets.current, "one that was not counted does not go on"
    assert controls.client.closed() == (1001, "the call has ended")
    Controls(lab, b"call_id=rtc_1").upstream.speak()
    assert len(responses(lab)) == 1


def test_a_call_that_is_not_heard_is_counted_on_the_clients_own_websocket() -> None:
    lab = Lab()
    begin(lab)
    Controls(lab, b"call_id=rtc_1").upstream.speak()
    assert len(responses(lab)) == 1


def test_no_key_is_in_a_row_or_the_log(logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab, opens=False).refuse(401)
    assert "sk-the-clients" not in repr(lab.rows) + repr(logged)


# Its end, whatever happens at it.


def test_the_end_of_a_call_is_asked_for_again_when_the_network_is_down() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab).transport.hang_up()
    lab.turns.advance(0.01)
    for wait in WAITS:
        ending(lab).hang_up()
        lab.turns.advance(wait)
    end(lab, 404)
    lab.turns.advance(60)
    assert not hangups(lab)
    assert lab.listener.site.busy == 0


def test_an_end_that_is_not_answered_is_asked_for_again() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab).end.close()
    lab.turns.advance(0.01)
    ending(lab)
    lab.turns.advance(HANG_UP_SECONDS + WAITS[0] + 0.1)
    end(lab)
    lab.turns.advance(60)
    assert not hangups(lab)


def test_a_refusal_of_the_end_is_told_once(logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab).end.close()
    lab.turns.advance(0.01)
    end(lab, 403)
    lab.turns.advance(60)
    assert sum("may go on" in line for line in logged) == 1
    assert not hangups(lab)


def test_an_upstream_that_is_silent_must_let_it_be_heard_in_time() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    newest(lab).take()
    lab.turns.fires(HEARD_WITHIN, lambda: lab.rows[1:])
    assert (lab.rows[1]["end"], lab.rows[1]["error_code"]) == ("timeout", "upstream_timeout")
    assert len(hangups(lab)) == 1


def test_a_key_that_is_removed_while_it_is_tried_keeps_no_call() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    Sideband(lab, opens=False).refuse()
    lab.keys.keys.clear()
    lab.keys.generation += 1
    lab.turns.advance(2 * WAITS[0] + 1)
    Sideband(lab)
    lab.turns.advance(1.1)
    assert not lab.sockets.current
    assert lab.rows[-1]["error_code"] == "flowstack_key_disabled"


def test_a_drain_ends_when_the_call_is_ended_and_all_is_written_down() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab).hang_up()
    public = Public(lab.turns.clock, lab.listener.site, lab.relay, 30.0)
    drained: list[Any] = []
    public.stopService().addCallback(lambda _: drained.append((len(lab.rows), len(lab.limiter.open))))
    aside = Sideband(lab)
    assert (len(drained), len(lab.sockets.current)) == (0, 1)
    lab.turns.advance(30.1)
    assert aside.end.closed() == (1001, "Flowstack is restarting; connect again")
    aside.transport.hang_up()
    lab.turns.advance(0.1)
    assert drained == []
    end(lab)
    assert drained == [(2, 0)]


def test_a_drain_that_is_cut_waits_for_no_provider() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab).hang_up()
    public = Public(lab.turns.clock, lab.listener.site, lab.relay, 1.0)
    drained: list[Any] = []
    public.stopService().addCallback(lambda _: drained.append((len(lab.rows), len(lab.limiter.open))))
    Sideband(lab)
    lab.turns.advance(1.0 + CLOSE_SECONDS + 0.2)
    assert drained == [(2, 0)]
    assert len(hangups(lab)) == 1


@pytest.mark.parametrize("heard", [False, True])
def test_an_observer_that_fails_costs_neither_the_answer_nor_the_calls_end(heard: bool, logged: list[str]) -> None:
    lab = Lab(upstreams=(HEARD,))

    def watch() -> None:
        if len(lab.rows) == 2:
            raise RuntimeError

    lab.ledger.watch = watch
    client = begin(lab)
    assert answer(client).status == 201
    if heard:
        Sideband(lab).end.close()
        lab.turns.advance(0.01)
    else:
        Sideband(lab, opens=False).refuse(401)
    assert "what heard a call could not be counted" in logged
    assert len(hangups(lab)) == 1
    assert lab.limiter.open == set()


@pytest.mark.parametrize("operators", [False, True])
def test_a_header_of_the_operators_choice_for_the_key_goes_with_it(operators: bool) -> None:
    upstream = Upstream(base_url="http://upstream.example/v1", meter_calls=True, api_key_header="X-Own-Key")
    lab = Lab(upstreams=(upstream,), provider_keys={"openai": (b"sk-operators",)} if operators else {})
    lab.keys.add(KEY, endpoints=("/v1/realtime*",))
    begin(lab, b"X-Own-Key: sk-own")
    aside = Sideband(lab)
    assert b"X-Own-Key: sk-o" + (b"perators" if operators else b"wn") in aside.asked
    aside.end.close()
    lab.turns.advance(0.01)
    assert b"X-Own-Key: sk-o" in hangups(lab)[0]


def test_only_the_last_of_many_pings_is_answered() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    aside = Sideband(lab)
    (tunnel,) = lab.sockets.current
    for number in range(1000):
        aside.transport.send(b"\x89\x04%04d" % number)
    lab.turns.advance(0.01)
    assert aside.end.take() == [(PONG, b"0999")]
    tunnel.upstream.pauseProducing()
    for number in range(1000):
        aside.transport.send(b"\x89\x04%04d" % number)
        lab.turns.advance(0.001)
    assert aside.end.take() == [], "nothing is written to one that takes nothing"
    tunnel.upstream.resumeProducing()
    lab.turns.advance(0.01)
    assert aside.end.take() == [(PONG, b"0999")]


def test_nothing_is_kept_of_the_request_that_began_it() -> None:
    lab = Lab(upstreams=(HEARD,))
    begin(lab).hang_up()
    Sideband(lab)
    (tunnel,) = lab.sockets.current
    kept = [type(value).__name__ for value in vars(tunnel.exchange).values()]
    assert {"Request", "ServerConnection", "WholeBody"}.isdisjoint(kept)


# Its states.


def play_to(state: State) -> Any:
    lab = Lab(upstreams=(HEARD,))
    begin(lab)
    call = next(one for one in lab.listener.site.connections if isinstance(one, Call))
    if state is not TRYING:
        aside = Sideband(lab)
    if state is ENDING or state is DONE:
        aside.end.close()
        lab.turns.advance(0.01)
    if state is DONE:
        end(lab)
    assert call.state is state
    return SimpleNamespace(lab=lab, connection=call)


@pytest.mark.parametrize("state", State)
def test_any_move_that_is_not_in_the_table_raises(state: State) -> None:
    assert_others_raise(play_to, state, MOVES)


def refused(play: Any) -> None:
    Sideband(play.lab, opens=False).refuse(401)


def ended(play: Any) -> None:
    end(play.lab)


def aborted(play: Any) -> None:
    play.connection.abort()


def opened(play: Any) -> None:
    Sideband(play.lab)


def removed(play: Any) -> None:
    play.lab.keys.keys.clear()
    play.lab.keys.generation += 1
    play.lab.turns.advance(1.1)


def test_every_move_of_the_table_is_made() -> None:
    script = [(TRYING, [opened]), (TRYING, [refused]), (IS_HEARD, [removed]), (ENDING, [ended]), (ENDING, [aborted])]
    assert moves_of(play_to, script, MOVES) >= legal(MOVES)


@pytest.mark.parametrize("state", State)
def test_a_cut_in_any_state_leaves_nothing(state: State) -> None:
    play = play_to(state)
    site = play.lab.listener.site
    site.close()
    site.cut()
    play.lab.turns.advance(0.1)
    assert {type(one).__name__ for one in site.connections} <= {"ServerConnection"}
    assert not any(one.busy for one in site.connections)
    assert play.lab.limiter.open == set()
    assert [row["status"] for row in play.lab.rows][:1] == [201]
    assert len(play.lab.rows) == 2


# Among workers.


def test_other_workers_know_of_a_call_as_long_as_it_is_heard(tmp_path: Path) -> None:
    one, other = Heard(tmp_path / "calls"), Heard(tmp_path / "calls")
    assert not other.is_heard("openai", b"rtc_1", b"k" * 32)
    assert one.hold("openai", b"rtc_1", b"k" * 32, NOW + 60)
    assert not one.hold("openai", b"rtc_1", b"x" * 32, NOW + 60)
    for worker in (one, other):
        assert worker.is_heard("openai", b"rtc_1", b"k" * 32)
        assert not worker.is_heard("openai", b"rtc_1", b"x" * 32)
        assert not worker.is_heard("azure", b"rtc_1", b"k" * 32)
        assert not worker.is_heard("openai", b"rtc_2", b"k" * 32)
    (file,) = (tmp_path / "calls").iterdir()
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime) == (0o600, NOW + 60)
    assert b"rtc" not in file.read_bytes() + file.name.encode()
    one.let_go("openai", b"rtc_1")
    assert not other.is_heard("openai", b"rtc_1", b"k" * 32)
    assert list((tmp_path / "calls").iterdir()) == []


def test_a_call_of_a_worker_that_was_killed_is_not_heard(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flowstack.relay.heard import Heard\n"
        "h = Heard(Path(sys.argv[1])); h.hold('openai', b'rtc_1', b'k' * 32, 2e9); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert Heard(tmp_path).is_heard("openai", b"rtc_1", b"k" * 32)
        process.kill()
        process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    assert not Heard(tmp_path).is_heard("openai", b"rtc_1", b"k" * 32)


def test_what_cannot_be_told_to_others_is_known_here(tmp_path: Path, logged: list[str]) -> None:
    (tmp_path / "file").touch()
    heard = Heard(tmp_path / "file" / "calls")
    assert heard.hold("openai", b"rtc_1", b"k" * 32, NOW)
    assert any("cannot be told" in line for line in logged)
    assert heard.is_heard("openai", b"rtc_1", b"k" * 32)
    heard.let_go("openai", b"rtc_1")
    assert not heard.is_heard("openai", b"rtc_1", b"k" * 32)
