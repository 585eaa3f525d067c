"""Flowstack does on Twisted's epoll reactor what it does on uvloop; tests/transport/uv_cases.py compares both."""

from __future__ import annotations

import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.crowd import CHAT, STREAM, Gauge, chat, chunk, journal, once
from tests.e2e.processes import PATIENCE, Proxy, children, eventually
from tests.e2e.raw import Client, Closed, assert_own_error
from tests.e2e.raw_upstream import Front, Seen, reply, upstream
from tests.e2e.troubles import hold
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

JSON = b'{"object":"chat.completion","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
OK_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(JSON), JSON)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("epoll")
    authority = Authority(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("good", "localhost"))
    with upstream() as behind, upstream(context) as secure:
        named = {"hosts": ["tls.example"], "base_url": f"https://localhost:{secure.port}/v1"}
        settings = {
            "server": {"workers": 2},
            "timeouts": {"response_head": 1},
            "upstreams": {"openai": {"default": True}, "tls": named | {"ca_file": str(authority.file)}},
        }
        proxy = Proxy(folder / "proxy", f"http://127.0.0.1:{behind.port}/v1", reactor="epoll", settings=settings)
        try:
            yield Front(proxy, behind, b"/v1")
        finally:
            proxy.stop()
        assert "Traceback" not in proxy.log_text(), proxy.log_text()
        assert behind.faults == secure.faults == []


@pytest.fixture
def ends(shared: Front) -> Front:
    shared.upstream.forget()
    return shared


def post(ends: Front, body: bytes, *fields: bytes) -> bytes:
    return ends.request(CHAT, b"Content-Length: %d" % len(body), *fields, body=body)


def test_parent_and_workers_run_on_epoll(ends: Front) -> None:
    workers = children(ends.proxy.pid)
    assert len(workers) == 2
    for pid in workers:
        assert b"\x00epoll\x00" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_json_answer_is_relayed_untouched_and_its_row_counts_its_tokens(ends: Front) -> None:
    key = ends.proxy.keystore.add()
    assert ends.proxy.reload()["fault"] is None
    ends.upstream.script = reply(OK_JSON)
    answer = once(ends.proxy.port, chat(key))
    assert (answer.status, answer.body) == (200, JSON)
    (row,) = eventually(lambda: journal(ends.proxy, key), "the row")
    assert (row["status"], row["end"], row["prompt_tokens"], row["completion_tokens"]) == (200, "complete", 3, 4)


def test_each_event_of_a_stream_reaches_the_client_before_the_next_is_sent(ends: Front) -> None:
    read = threading.Semaphore(0)

    def stream(seen: Seen) -> None:
        seen.read_body()
        seen.link.send(STREAM)
        for number in range(20):
            seen.link.send(chunk(b"data: %d\n\n" % number))
            assert read.acquire(timeout=PATIENCE)
        seen.link.send(b"0\r\n\r\n")

    ends.upstream.script = stream
    with Client(ends.proxy.port) as client:
        client.send(post(ends, b"{}"))
        client.until(b"\r\n\r\n")
        for number in range(20):
            assert client.until(b"\n\n\r\n") == chunk(b"data: %d\n\n" % number)
            read.release()
        assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_arrives_byte_for_byte_in_its_framing(ends: Front, framing: str) -> None:
    body = os.urandom(3_000_000)
    if framing == "length":
        raw = post(ends, body)
    else:
        chunks = b"".join(chunk(body[at : at + 65536]) for at in range(0, len(body), 65536)) + b"0\r\n\r\n"
        raw = ends.request(CHAT, b"Transfer-Encoding: chunked", body=chunks)
    assert once(ends.proxy.port, raw).status == 200
    assert ends.upstream.last().body == body


def test_a_client_that_leaves_takes_its_upstream_request_along(ends: Front) -> None:
    def wait(seen: Seen) -> None:
        seen.read_body()
        seen.link.send(STREAM + chunk(b"data: 0\n\n"))
        seen.link.to_the_end()
        seen.link.close()

    ends.upstream.script = wait
    with Client(ends.proxy.port) as client:
        client.send(post(ends, b"{}"))
        client.until(b"data: 0")
        client.abort()
    eventually(lambda: ends.upstream.last().link.closed, "the upstream connection is closed")


def test_a_stream_that_the_upstream_cuts_is_cut_for_the_client(ends: Front) -> None:
    ends.upstream.script = reply(STREAM + chunk(b"data: 0\n\n"), close=True)
    with Client(ends.proxy.port) as client, pytest.raises(Closed):
        client.ask(post(ends, b"{}"))


def test_a_silent_upstream_is_answered_for_with_504(ends: Front) -> None:
    ends.upstream.script = hold
    assert_own_error(once(ends.proxy.port, post(ends, b"{}")), 504, "upstream_timeout")


def test_two_workers_hold_one_limit(ends: Front) -> None:
    key = ends.proxy.keystore.add("rpm=5")
    assert ends.proxy.reload()["fault"] is None
    ends.upstream.script = Gauge().script(1, 1)
    answers = [once(ends.proxy.port, chat(key)) for _ in range(20)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 15
    assert_own_error(answers[-1], 429, "flowstack_rate_limit_exceeded")


def test_a_request_that_two_parsers_could_read_differently_is_refused(ends: Front) -> None:
    smuggled = b"0\r\n\r\n" + ends.request(b"GET /v1/smuggled HTTP/1.1")
    raw = ends.request(CHAT, b"Transfer-Encoding: chunked", b"Content-Length: 5", body=smuggled)
    with Client(ends.proxy.port) as client:
        client.offer(raw)
        assert_own_error(client.answer(), 400, "malformed_request")
        assert client.to_the_end()[0] == b""
    assert ends.upstream.requests == []


def test_a_reload_takes_a_removed_key_away(ends: Front) -> None:
    key = ends.proxy.keystore.add()
    assert ends.proxy.reload()["fault"] is None
    assert once(ends.proxy.port, chat(key)).status == 200
    ends.proxy.keystore.remove(key)
    assert ends.proxy.reload()["fault"] is None
    assert_own_error(once(ends.proxy.port, chat(key)), 401, "invalid_flowstack_key")


def test_an_upstream_with_tls_is_verified_and_answers(ends: Front) -> None:
    raw = post(ends, b"{}").replace(b"flowstack.example", b"tls.example")
    with Client(ends.proxy.port) as client:
        assert [client.ask(raw).body for _ in range(2)] == [b"ok"] * 2


def test_a_killed_worker_is_replaced_and_sigterm_lets_a_stream_finish(ends: Front) -> None:
    proxy, before = ends.proxy, children(ends.proxy.pid)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(set(children(proxy.pid)) | set(before)) == 3, "another worker")

    def stream(seen: Seen) -> None:
        seen.read_body()
        seen.link.send(STREAM + chunk(b"data: 0\n\n"))
        eventually(lambda: "draining" in proxy.log_text(), "the proxy drains")
        seen.link.send(chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    ends.upstream.script = stream
    with Client(proxy.port) as client:
        client.send(post(ends, b"{}"))
        client.until(b"data: 0\n\n")
        proxy.signal(signal.SIGTERM)
        client.until(b"data: 1\n\n\r\n0\r\n\r\n")
    assert proxy.wait(PATIENCE) == 0
