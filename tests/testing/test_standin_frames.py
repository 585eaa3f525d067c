"""What goes wrong with a WebSocket of the stand-in when a test asks for it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, strategies
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from flowstack.testing.standin.websocket import LARGEST, PING, filler, frame
from tests.testing.sockets import WebSocket, websocket
from tests.testing.wire import Answer, Client, read, until

REALTIME = "/v1/realtime?model=gpt-realtime"


def opened(client: Client, directives: str, *headers: str) -> WebSocket:
    ws = WebSocket(client, REALTIME, f"Stand-In: {directives}", *headers)
    assert ws.accepted
    return ws


def rest(ws: WebSocket, limit: float = 5.0) -> Answer:
    """All that still comes, and how it ends."""
    found = read(ws.sock, time.monotonic(), limit)
    ws.sock.close()
    return found


@given(strategies.binary(max_size=70_000), strategies.booleans(), strategies.booleans())
def test_a_frame_is_read_as_it_was_written(payload: bytes, last: bool, masked: bool) -> None:
    reader = FrameProtocol(client=not masked, extensions=[])
    reader.receive_bytes(frame(Opcode.BINARY, payload, last=last, masked=masked))
    found = list(reader.received_frames())
    assert b"".join(bytes(part.payload) for part in found) == payload  # type: ignore[arg-type]
    assert found[-1].message_finished is last


@pytest.mark.parametrize("size", [100, 125, 126, 65_535, 65_536])
def test_a_filler_is_json_of_exactly_its_size(size: int) -> None:
    assert len(filler(12, size)) == size
    assert json.loads(filler(12, size))["sequence_number"] == 12


@pytest.mark.parametrize(("directive", "end"), [("ws-cut", "reset"), ("ws-end", "closed")])
def test_after_n_events_the_connection_ends_without_a_close(client: Client, directive: str, end: str) -> None:
    ws = opened(client, f"ws-after=3; {directive}", "X-Client-Tag: a")
    ws.send(type="response.create")
    assert [ws.event()["type"] for _ in range(3)] == ["session.created", "response.created", "rate_limits.updated"]
    found = rest(ws)
    assert (found.raw, found.end) == (b"", end)
    [seen] = client.seen("a")
    assert (seen["end"], seen["events_out"]) == (directive, 3)


def test_a_close_has_the_code_and_the_reason_asked_for(client: Client) -> None:
    ws = opened(client, "ws-after=1; ws-close=1012 try again later", "X-Client-Tag: a")
    ws.event()
    assert ws.closed() == (1012, "try again later")
    ws.close(1012)
    assert ws.ending() == "closed"
    until(lambda: client.seen("a")[0]["end"] == "ws-close")
    assert client.seen("a")[0]["messages"][0]["code"] == 1012


def test_a_close_may_have_no_code(client: Client) -> None:
    ws = opened(client, "ws-close=0")
    assert rest(ws, 0.5).raw == b"\x88\x00"


def test_a_ping_holds_the_events_back_until_its_pong(client: Client) -> None:
    ws = opened(client, "ws-after=1; ws-ping")
    ws.event()
    ping = ws.frame()
    assert ping is not None and (ping.opcode, ping.payload) == (Opcode.PING, PING)
    ws.send(type="response.create")
    ws.write(bytes(ws.frames.pong(b"other")))
    ws.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        ws.frame()
    ws.sock.settimeout(20)
    ws.write(bytes(ws.frames.pong(PING)))
    assert ws.event()["type"] == "response.created"
    ws.sock.close()


def test_a_flood_has_the_number_and_the_size_asked_for(client: Client) -> None:
    ws = opened(client, "ws-flood=200; ws-bytes=70000")
    texts = [ws.message() for _ in range(200)]
    assert {len(text) for text in texts} == {70_000}
    assert [json.loads(text)["sequence_number"] for text in texts] == list(range(200))
    assert ws.event()["type"] == "session.created"
    ws.sock.close()


def test_a_flood_goes_no_faster_than_it_is_taken(client: Client) -> None:
    ws = opened(client, "ws-flood=1000; ws-bytes=1000000", "X-Client-Tag: a")

    def sent() -> int:
        found: int = client.seen("a")[0]["bytes_out"]
        return found

    def stands() -> bool:
        before = sent()
        time.sleep(0.1)
        return 0 < before == sent()

    until(stands)
    assert sent() < 50_000_000
    ws.sock.close()


def test_a_message_may_be_large(client: Client) -> None:
    ws = opened(client, "ws-flood=1; ws-bytes=20000000")
    assert len(ws.message()) == 20_000_000
    ws.sock.close()


def test_messages_come_in_fragments_of_n_bytes(client: Client) -> None:
    ws = opened(client, "ws-fragment=100; ws-after=1; ws-close=1000")
    data = rest(ws, 0.5).raw
    assert data[:2] == b"\x01\x64" and data[102:104] == b"\x00\x64"
    frames = FrameProtocol(client=True, extensions=[])
    frames.receive_bytes(data)
    parts = [part for part in frames.received_frames() if part.opcode is Opcode.TEXT]
    assert json.loads("".join(str(part.payload) for part in parts))["type"] == "session.created"
    assert {len(str(part.payload)) for part in parts[:-1]} == {100}


def test_frames_may_be_written_byte_by_byte(client: Client) -> None:
    ws = opened(client, "drip=1; gap=0.0005; ws-after=1; ws-close=1000")
    sizes = []
    ws.sock.settimeout(0.5)
    try:
        while data := ws.sock.recv(65536):
            sizes.append(len(data))
    except TimeoutError:
        pass
    ws.sock.close()
    assert sum(sizes) > 500 and len(sizes) > sum(sizes) / 4


def test_a_message_may_be_no_utf8(client: Client) -> None:
    ws = opened(client, "ws-invalid")
    with pytest.raises(ParseFailed) as raised:
        ws.frame()
    assert raised.value.code == 1007
    ws.sock.close()


def test_frames_may_be_masked_from_an_event_on(client: Client) -> None:
    ws = opened(client, "ws-after=1; ws-masked")
    assert ws.event()["type"] == "session.created"
    ws.send(type="response.create")
    with pytest.raises(ParseFailed, match="masked"):
        ws.frame()
    ws.sock.close()


@pytest.mark.parametrize(("directive", "end"), [("cut", "reset"), ("close", "closed")])
def test_the_connection_may_end_within_a_frame(client: Client, directive: str, end: str) -> None:
    found = rest(opened(client, f"{directive}=50"))
    assert (len(found.raw), found.end) == (50, end)
    found = rest(opened(client, f"{directive}=0"))
    assert (found.raw, found.end) == (b"", end)


def test_a_deaf_stand_in_takes_nothing_for_a_while(client: Client) -> None:
    ws = opened(client, "ws-after=1; ws-deaf=1", "X-Client-Tag: a")
    start = time.monotonic()
    ws.event()
    ws.sock.settimeout(0.3)
    sent = 0
    event = bytes(ws.frames.send_data(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 100_000})))
    with pytest.raises(TimeoutError):
        while time.monotonic() - start < 0.9:
            sent += ws.sock.send(event)
    assert sent < 16_000_000
    assert client.seen("a")[0]["body_bytes"] < 1_000_000
    ws.sock.close()


def test_a_client_is_heard_while_the_stand_in_speaks_without_a_pause(client: Client) -> None:
    with websocket(client, REALTIME, "Stand-In: chunks=1000000") as ws:
        ws.send(type="response.create", response={"output_modalities": ["text"]})
        ws.until("response.output_text.delta")
        event = {"type": "input_audio_buffer.append", "audio": "A" * 100_000}
        for _ in range(20):  # more than is held for one who does not listen
            ws.send(**event)
            ws.event()
        ws.send(type="response.cancel")
        assert ws.until("response.done")[-1]["response"]["status"] == "cancelled"


def test_hang_opens_the_socket_and_says_nothing(client: Client) -> None:
    found = rest(opened(client, "hang"), 0.5)
    assert (found.raw, found.end) == (b"", "timeout")


def test_first_and_gap_hold_events_back(client: Client) -> None:
    start = time.monotonic()
    ws = opened(client, "first=0.2; gap=0.1")
    ws.send(type="response.create")
    came = []
    for _ in range(4):
        ws.event()
        came.append(time.monotonic() - start)
    ws.sock.close()
    # From the start, not from the one before: that may have been seen late.
    assert all(at >= 0.2 + 0.1 * number - 0.01 for number, at in enumerate(came))


def test_directives_in_a_responses_metadata_hold_from_its_first_event_on(client: Client) -> None:
    with websocket(client, "/v1/responses") as ws:
        asked = {"type": "response.create", "model": "m", "input": "one"}
        ws.send(**asked)
        ws.until("response.completed")
        ws.send(**asked, metadata={"stand-in": "ws-after=2; ws-close=1011 broken"})
        assert [ws.event()["type"] for _ in range(2)] == ["response.created", "response.in_progress"]
        assert ws.closed() == (1011, "broken")


def test_a_message_past_the_limit_ends_the_connection(client: Client) -> None:
    with websocket(client, "/v1/responses") as ws:
        part = bytes(ws.frames.send_data(b"x" * 1_000_000, fin=False))
        ws.write(part)
        more = bytes(ws.frames.send_data(b"x" * 1_000_000, fin=False))
        try:
            for _ in range(LARGEST // 1_000_000):
                ws.write(more)
        except ConnectionError:
            pass
        assert ws.closed()[0] == 1009
