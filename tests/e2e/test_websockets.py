"""WebSockets through Flowstack, on real sockets: SDKs, rights, limits, drains, and what a slow side costs."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto.frame_protocol import Opcode

from tests.e2e.crowd import journal
from tests.e2e.live import memory
from tests.e2e.processes import PATIENCE, Process, Proxy, StandIn, StartProxy, eventually
from tests.e2e.sdk_runs import HERE, OPENAI_KEY, Outcome, Sdks
from tests.testing.sockets import WebSocket, refused, websocket
from tests.testing.wire import Client
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

PROGRAM = HERE / "sdks/python-openai/sockets.py"
REALTIME, RESPONSES = "/v1/realtime?model=gpt-realtime", "/v1/responses"
KEY = f"Authorization: Bearer {OPENAI_KEY}"
ASK = {"type": "response.create", "model": "gpt-4o-mini", "input": "Say this is a test"}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def proxy(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Two workers."""
    folder = tmp_path_factory.mktemp("websockets")
    process = Proxy(folder, f"{stand_in.url}/v1", settings={"server": {"workers": 2}})
    yield process
    process.stop()


def own(key: str) -> str:
    return f"Flowstack-Auth: Bearer {key}"


def rows_of(proxy: Proxy, key: str, count: int) -> list[dict[str, Any]]:
    """The rows of a key, once there are so many: connections last."""
    found = eventually(
        lambda: rows if len(rows := journal(proxy, key)) >= count else None, f"{count} rows of the key are written"
    )
    return sorted(found, key=lambda row: row["status"] == 101)


# The SDK for Python.


def run(sdks: Sdks, settings: dict[str, Any]) -> dict[str, Outcome]:
    job = json.dumps({"client": settings, "answers": True, "attempts": []})
    lines = sdks.program("python-openai", PROGRAM.read_text("utf-8"), stdin=job, harness=True).splitlines()
    return {report.pop("case"): Outcome(**report) for report in map(json.loads, lines)}


def told(value: Any) -> Any:
    """What a case returned, less what is another each time."""
    if isinstance(value, dict):
        return {name: told(one) for name, one in value.items() if not name.endswith(("id", "_at", "sequence_number"))}
    return [told(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def direct(stand_in: StandIn, sdks: Sdks) -> dict[str, Outcome]:
    return run(sdks, {"base_url": f"{stand_in.url}/v1", "api_key": OPENAI_KEY, "headers": {}})


@pytest.mark.parametrize("way", ["header", "one string"])
def test_the_sdk_sees_what_it_sees_without_flowstack_and_each_response_has_its_row(
    way: str, proxy: Proxy, stand_in: StandIn, sdks: Sdks, direct: dict[str, Outcome]
) -> None:
    key, tag = proxy.keystore.add(), f"websockets-{way.replace(' ', '-')}"
    proxy.reload()
    headers = {"X-Client-Tag": tag} | ({"Flowstack-Auth": f"Bearer {key}"} if way == "header" else {})
    api_key = OPENAI_KEY if way == "header" else f"{key}~{OPENAI_KEY}"
    found = run(sdks, {"base_url": proxy.base_url, "api_key": api_key, "headers": headers})
    assert found.keys() == direct.keys()
    for case, outcome in found.items():
        # The secret that is made stands for the key: here the client's header names that too, or its api_key did.
        assert outcome.raised is None, (case, outcome.raised)
        if case == "responses_in_lanes":  # whose events come as they happen to
            assert sorted(map(str, told(outcome.value))) == sorted(map(str, told(direct[case].value)))
        else:
            assert told(outcome.value) == told(direct[case].value), case
    rows = rows_of(proxy, key, 20)
    responses = [row for row in rows if row["parent_request_id"] is not None]
    sockets = {row["request_id"]: row for row in rows if row["status"] == 101}
    assert {row["parent_request_id"] for row in responses} <= sockets.keys()
    assert all(row["cost_usd"] is not None for row in responses if row["total_tokens"] is not None), responses
    assert {row["end"] for row in sockets.values()} == {"complete"}
    spoken = [row for row in responses if row["model_requested"] == "gpt-4o-transcribe"]
    assert len(spoken) == 1 and spoken[0]["total_tokens"]
    for record in stand_in.seen(tag):
        assert key not in json.dumps(record)


# Rights and limits.


def test_a_refused_response_is_an_event_and_the_next_one_passes(proxy: Proxy) -> None:
    key = proxy.keystore.add("models=gpt-4o-mini rpm=2")
    proxy.reload()
    with websocket(Client(proxy.port), RESPONSES, own(key), key=KEY) as client:
        client.send(**ASK | {"model": "gpt-4.1"})
        assert client.event()["error"]["code"] == "model_not_allowed"
        for _ in range(2):
            client.send(**ASK)
            assert client.until("response.completed")[-1]["response"]["usage"]["total_tokens"] > 0
        client.send(**ASK)
        assert client.event()["error"]["code"] == "flowstack_rate_limit_exceeded"
        client.close()
        assert client.closed() == (1000, "")
    ends = [(row["end"], row["status"]) for row in rows_of(proxy, key, 5)]
    assert sorted(map(str, ends)) == sorted(
        map(str, [("refused", 403), ("complete", 200), ("complete", 200), ("refused", 429), ("complete", 101)])
    )


def test_max_parallel_holds_over_both_workers(proxy: Proxy) -> None:
    key = proxy.keystore.add("max_parallel=2")
    proxy.reload()
    client = Client(proxy.port)
    with websocket(client, RESPONSES, own(key), key=KEY), websocket(client, RESPONSES, own(key), key=KEY):
        answers = [refused(client, RESPONSES, own(key), key=KEY) for _ in range(4)]
        assert [answer.status for answer in answers] == [429] * 4
    eventually(lambda: len(journal(proxy, key)) >= 6 or None, "both connections have their rows")
    with websocket(client, RESPONSES, own(key), key=KEY):
        pass


def test_a_key_that_is_removed_is_closed_within_a_second_or_two(proxy: Proxy) -> None:
    key = proxy.keystore.add()
    proxy.reload()
    with websocket(Client(proxy.port), RESPONSES, own(key), key=KEY) as client:
        proxy.keystore.remove(key)
        proxy.reload()
        begun = time.monotonic()
        code, reason = client.closed()
        assert (code, time.monotonic() - begun < 5) == (1008, True)
        assert "removed" in reason


def test_switched_off_they_get_426(start_proxy: StartProxy) -> None:
    proxy = start_proxy(server={"websockets": False})
    answer = refused(Client(proxy.port), REALTIME, own(proxy.key), key=KEY)
    assert (answer.status, answer.json["error"]["code"]) == (426, "websocket_disabled")


# Ends.


def test_a_client_that_leaves_closes_the_upstream_within_100_ms(proxy: Proxy, stand_in: StandIn) -> None:
    took = []
    for number in range(5):
        tag = f"leaves-{number}-{os.getpid()}"
        with websocket(Client(proxy.port), RESPONSES, own(proxy.key), f"X-Client-Tag: {tag}", key=KEY) as client:
            client.send(**ASK, metadata={"Stand-In": "chunks=1000; gap=0.05"})
            client.until("response.output_text.delta")
            left = time.time()
        record = eventually(
            lambda tag=tag: next((one for one in stand_in.seen(tag) if one["gone_at"]), None),  # type: ignore[misc]
            "the stand-in sees the end",
        )
        took.append(record["gone_at"] - left)
    assert min(took) < 0.1, took


def test_a_drain_closes_with_1012_when_its_time_is_out(start_proxy: StartProxy) -> None:
    proxy = start_proxy(timeouts={"drain": 1})
    with websocket(Client(proxy.port), RESPONSES, own(proxy.key), key=KEY) as client:
        proxy.signal(signal.SIGTERM)
        eventually(lambda: "draining" in proxy.log_text() or None, "the proxy drains")
        client.send(**ASK)
        assert client.until("response.completed")
        assert client.closed()[0] == 1012
    assert proxy.wait(PATIENCE) == 0
    assert {row["end"] for row in journal(proxy) if row["status"] == 101} == {"drain"}


OFFER = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
CALL = (
    b"--x\r\nContent-Disposition: form-data; name=sdp\r\nContent-Type: application/sdp\r\n\r\n" + OFFER + b"\r\n"
    b"--x\r\nContent-Disposition: form-data; name=session\r\nContent-Type: application/json\r\n\r\n"
    b'{"type": "realtime", "model": "gpt-realtime-mini"}\r\n--x--\r\n'
)


def test_a_call_over_webrtc_is_heard_charged_and_ended_with_its_key(stand_in: StandIn, start_proxy: StartProxy) -> None:
    proxy = start_proxy(server={"workers": 2}, upstreams={"openai": {"meter_calls": True}})
    key = proxy.keystore.add("budget=5.00usd/month max_parallel=1 endpoints=/v1/realtime*")
    proxy.reload()
    client, form = Client(proxy.port), "Content-Type: multipart/form-data; boundary=x"
    begun = client.ask("POST", "/v1/realtime/calls", form, own(key), body=CALL, key=KEY)
    place = begun.header("location")
    assert (begun.status, begun.body[:3]) == (201, b"v=0")
    assert place is not None
    call, spoken = rows_of(proxy, key, 2)
    assert (call["status"], call["transport"], call["cost_usd"]) == (201, "webrtc", None)
    assert (spoken["parent_request_id"], spoken["transport"]) == (call["request_id"], "webrtc")
    assert spoken["model_requested"] == "gpt-realtime-mini"
    assert spoken["cost_usd"] > 0
    assert client.ask("POST", "/v1/realtime/calls", form, own(key), body=CALL, key=KEY).status == 429
    proxy.keystore.remove(key)
    proxy.reload()
    heard = rows_of(proxy, key, 4)[-1]
    assert (heard["status"], heard["end"], heard["error_code"]) == (101, "refused", "flowstack_key_disabled")
    ended = f"/v1/realtime?call_id={place.rpartition('/')[2]}"
    with websocket(Client(stand_in.port), ended, key=KEY) as late:
        while (frame := late.frame()) is not None and frame.opcode is Opcode.TEXT:
            pass  # until the provider ends what hears the call, since the call has ended
    assert frame is not None and frame.opcode is Opcode.CLOSE


@pytest.mark.parametrize("directives", ["ws-masked", "ws-invalid", "ws-fragment=1; ws-invalid"])
def test_an_upstream_that_breaks_the_protocol_is_closed_and_so_is_its_client(proxy: Proxy, directives: str) -> None:
    key = proxy.keystore.add()
    proxy.reload()
    with websocket(Client(proxy.port), RESPONSES, own(key), f"Stand-In: {directives}", key=KEY) as client:
        client.send(**ASK)
        code = None
        while code is None:
            frame = client.frame()
            assert frame is not None
            if isinstance(frame.payload, tuple):
                code = int(frame.payload[0])
        assert code in (1002, 1007)
    row = rows_of(proxy, key, 1)[-1]
    assert (row["end"], row["error_code"]) == ("upstream_lost", "upstream_malformed")


# Both reactors, and TLS on both sides.


@pytest.mark.parametrize("reactor", [None, "epoll"], ids=["uvloop", "epoll"])
def test_over_tls_on_both_sides(reactor: str | None, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, private = authority.issue("server", "localhost", "127.0.0.1")
    secure = f"ssl:0:interface=127.0.0.1:privateKey={private}:certKey={certificate}"
    behind = Process(
        [sys.executable, "-m", "flowstack.testing", "--listen", secure],
        log=tmp_path / "stand-in.log", ready=r"stand-in listening on (https://127\.0\.0\.1:\d+)", cwd=tmp_path,
    )  # fmt: skip
    upstream = {"base_url": f"https://localhost:{behind.port}/v1", "ca_file": str(authority.file)}
    proxy = Proxy(
        tmp_path / "proxy", "http://unused.example/v1", reactor=reactor,
        settings={"server": {"listen": [secure]}, "upstreams": {"openai": upstream}, "timeouts": {"websocket_ping": 1}},
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(authority.file))

    class Secure(Client):
        def connect(self) -> socket.socket:
            return context.wrap_socket(super().connect(), server_hostname="localhost")

    try:
        flood = "Stand-In: ws-flood=2000; ws-bytes=10000"
        with websocket(Secure(proxy.port), REALTIME, own(proxy.key), flood, key=KEY) as client:
            client.send(type="response.create", response={"output_modalities": ["text"]})
            assert len(client.until("response.done")) > 2000
            client.close(3000, "done")
            assert client.closed()[0] == 3000
        row = rows_of(proxy, proxy.key, 2)[-1]
        assert (row["end"], row["close_code"], row["bytes_out"] > 20_000_000) == ("complete", 3000, True)
        left = WebSocket(Secure(proxy.port), RESPONSES, own(proxy.key), key=KEY)
        left.sock.close()
        ends = eventually(lambda: {row["end"] for row in rows_of(proxy, proxy.key, 3)}, "the row of one that left")
        assert ends == {"complete", "client_gone"}
    finally:
        proxy.stop()
        behind.stop()


# What they cost.


def test_a_reader_that_is_slow_with_64_mb_behind_it_keeps_memory_small(start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    client = Client(proxy.port)
    with websocket(client, REALTIME, own(proxy.key), "Stand-In: ws-flood=200; ws-bytes=1000", key=KEY) as warm:
        warm.send(type="response.create", response={"output_modalities": ["text"]})
        warm.until("response.done")
    before, _ = memory(proxy.pid)
    flood = "Stand-In: ws-flood=65536; ws-bytes=1024"
    with websocket(client, REALTIME, own(proxy.key), flood, key=KEY) as slow:
        slow.send(type="response.create", response={"output_modalities": ["text"]})
        peak = 0
        for _ in range(40):
            slow.event()
            time.sleep(0.05)
            peak = max(peak, memory(proxy.pid)[0])
        assert peak - before < 32 * MIB
        assert len(slow.until("response.done")) > 60_000, "and all of it comes"


def test_five_hundred_that_stand_still_take_little_memory(start_proxy: StartProxy) -> None:
    proxy, count = start_proxy(), 500
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert files > count + 500, f"this machine lets a process open {files} files"
    client = Client(proxy.port)
    opened = [WebSocket(client, RESPONSES, own(proxy.key), key=KEY) for _ in range(50)]
    before, _ = memory(proxy.pid)
    opened += [WebSocket(client, RESPONSES, own(proxy.key), key=KEY) for _ in range(count)]
    each = (memory(proxy.pid)[0] - before) / count / 1024
    for one in opened:
        one.sock.close()
    assert each < 30, f"{each:.1f} KiB each"
