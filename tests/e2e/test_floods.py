"""What a client can make Flowstack write down is bounded, whatever it sends and however often."""

from __future__ import annotations

import json
import os
import resource
import socket
from contextlib import ExitStack

import pytest
from click.testing import CliRunner

from flowstack.cli.main import main
from flowstack.ledger.files import files
from tests.e2e.processes import Proxy, StartProxy, eventually
from tests.e2e.raw import Client, request
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

GET = b"GET /v1/models HTTP/1.1"
AUTH = b"Authorization: Bearer sk-test"
TOLD = "CLIENTS ARE TURNED AWAY"


def journal(proxy: Proxy) -> bytes:
    return b"".join(path.read_bytes() for path in files(proxy.state_path / "ledger"))


def test_a_key_that_is_told_no_fills_neither_the_journal_nor_the_request_log(start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        log={"requests": "requests.jsonl"},
        server={"admin": "tcp:0:interface=127.0.0.1"},
        ledger={"refusals_per_minute": 60},
    )
    key = proxy.keystore.add("rpm=1")
    proxy.reload()
    refused = 1000
    with Client(proxy.port) as client:
        for number in range(1 + refused):
            fresh = f"{number} ".ljust(4000, "x").encode()
            fields = (AUTH, b"Flowstack-Attribute-A: " + fresh, b"User-Agent: " + fresh[:400])
            answer = client.ask(request(key, GET, *fields))
            assert answer.status == (429 if number else 200)
    assert len(journal(proxy)) < 62 * 6000, "the first 60, and none of those beyond so far"
    with Client(admin_port(proxy)) as admin:
        metrics = admin.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body
    assert b'flowstack_refusals_total{code="flowstack_rate_limit_exceeded"} %d.0\n' % refused in metrics
    proxy.stop()
    rows = [json.loads(line) for line in journal(proxy).splitlines()]
    assert [row.get("requests", 1) for row in rows] == [1] * 61 + [refused - 60]
    assert (proxy.folder / "requests.jsonl").read_bytes() == journal(proxy)
    shown = CliRunner().invoke(main, ["usage", "--state", str(proxy.state_path), "--by", "error", "--format", "json"])
    groups = {group["error"]: group["requests"] for group in json.loads(shown.stdout)["groups"]}
    assert groups == {None: 1, "flowstack_rate_limit_exceeded": refused}


def test_out_of_descriptors_the_log_says_that_clients_are_turned_away_and_not_each_client(
    start_proxy: StartProxy,
) -> None:
    proxy = start_proxy()
    before = len(proxy.log_text())
    soft, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{proxy.pid}/fd")))
    with ExitStack() as stack:
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (highest + 10, hard))
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        eventually(lambda: TOLD in proxy.log_text(), "the log tells of it")
        said = proxy.log_text()[before:]
        assert f"all {highest + 10} descriptors" in said
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (soft, hard))
    with Client(proxy.port) as client:
        assert client.ask(request(proxy.key, GET, AUTH)).status == 200
    said = proxy.log_text()[before:]
    assert said.count(TOLD) <= 2
    assert len(said.splitlines()) < 20, said
    assert "Traceback" not in said
