"""The request log has one line for each request with a valid key, which says what came of it, and none for others."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowstack.ledger.row import Row
from tests.e2e.live import PROVIDER_KEY, Wire, Wires, live, until, wire
from tests.e2e.processes import StandIn, StartProxy

pytestmark = pytest.mark.e2e

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-Id: req_upstream\r\n\r\nok"


@live
async def test_a_row_says_who_asked_for_what_and_what_came_of_it(wires: Wires) -> None:
    async with wires() as scene:
        before = datetime.now(UTC)
        fields = ("User-Agent: tests/1.0", "Flowstack-Attribute-Team: Blue", "Content-Type: application/json")
        target = "/v1/chat/completions?api_version=7&secret=query"
        client, upstream, _ = await scene.ask("facts", *fields, target=target, body=b'{"model": "gpt-4o"}')
        await asyncio.sleep(0.05)
        await upstream.send(OK)
        head, _ = await client.message()
        row = await scene.row("facts")
        assert set(row) == set(Row.__annotations__)
        started = datetime.fromisoformat(row["started_at"])
        assert before <= started <= datetime.now(UTC)
        assert started.utcoffset() is not None
        assert 50 <= row["first_byte_ms"] <= row["duration_ms"] < 60_000
        expected = {
            "v": 2,
            "request_id": head.get("flowstack-request-id"),
            "key_id": scene.proxy.key[4:16],
            "owner": "alice@example.com",
            "attributes": {"tag": "facts", "team": "Blue"},
            "client_addr": "127.0.0.1",
            "user_agent": "tests/1.0",
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "error_code": None,
            "end": "complete",
            "stream": False,
            "bytes_in": 19,
            "bytes_out": 2,
            "upstream": "openai",
            "upstream_request_id": "req_upstream",
            "attempts": 1,
        }
        assert {name: row[name] for name in expected} == expected
        text = scene.rows_path.read_text()
        assert "secret=query" not in text
        assert PROVIDER_KEY not in text
        assert scene.proxy.key[16:] not in text


@live
async def test_bytes_are_those_of_the_body_whatever_its_framing_and_a_head_has_none(wires: Wires) -> None:
    async with wires() as scene:
        chunks = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        client = await scene.dial()
        await client.send(scene.request("chunked", "Transfer-Encoding: chunked", body=None) + chunks)
        upstream = await scene.accept()
        assert (await upstream.message())[1] == b"abcdefg"
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await upstream.send(answer + b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n")
        assert (await client.message())[1] == b"hello!"
        row = await scene.row("chunked")
        assert (row["bytes_in"], row["bytes_out"], row["stream"]) == (7, 6, True)

        await client.send(scene.request("head", method="HEAD", target="/v1/models", body=b""))
        await upstream.message()
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        await client.head()
        await client.send(scene.request("empty", method="DELETE", target="/v1/files/f", body=b""))
        await upstream.message()
        await upstream.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert (await client.head()).status == 204
        for tag, status in (("head", 200), ("empty", 204)):
            row = await scene.row(tag)
            assert (row["status"], row["end"], row["bytes_in"], row["bytes_out"]) == (status, "complete", 0, 0)


@live
async def test_an_error_of_the_upstreams_is_complete_and_one_of_flowstacks_is_refused(
    wires: Wires, stand_in: StandIn
) -> None:
    server = {"max_request_bytes": 1000}
    async with wires(upstream=f"{stand_in.url}/v1", server=server) as scene:
        requests = (
            scene.request("", "Stand-In: status=429", method="GET", target="/v1/models/429", body=b""),
            scene.request("", "Stand-In: status=500", method="GET", target="/v1/models/500", body=b""),
            scene.request(method="GET", target="/v1/a/../b", body=b""),
            scene.request(method="GET", target="/v2/models", body=b""),
            scene.request(method="TRACE", target="/v1/models", body=b""),
            scene.request(body=bytes(2000)),
        )
        for request in requests:
            client = await scene.dial()
            await client.send(request)
            await client.message()
        await until(lambda: len(scene.rows()) >= len(requests), "each request has its row")
        facts = ("method", "path", "status", "end", "error_code", "attempts")
        assert [tuple(row[name] for name in facts) for row in scene.rows()] == [
            ("GET", "/v1/models/429", 429, "complete", None, 1),
            ("GET", "/v1/models/500", 500, "complete", None, 1),
            ("GET", "/v1/a/../b", 400, "refused", "malformed_request", 0),
            ("GET", "/v2/models", 404, "refused", "unknown_path", 0),
            ("TRACE", "/v1/models", 405, "refused", "method_not_allowed", 0),
            ("POST", "/v1/chat/completions", 413, "refused", "request_too_large", 0),
        ]


@live
async def test_an_upstream_that_fails_before_its_head_is_lost_and_the_attempts_are_counted(wires: Wires) -> None:
    async with wires() as scene:
        client, upstream, _ = await scene.ask("closed")
        upstream.close()
        assert (await client.message())[0].get("flowstack-error") == "upstream_closed"
        client, upstream, _ = await scene.ask("garbage")
        await upstream.send(b"no HTTP at all\r\n\r\n")
        assert (await client.message())[0].get("flowstack-error") == "upstream_malformed"

        # A connection that dies when it is used again: an idempotent request goes out once more, on another one.
        client, upstream, _ = await scene.ask()
        await upstream.send(OK)
        await client.message()
        await client.send(scene.request("again", method="GET", target="/v1/models", body=b""))
        await upstream.message()
        upstream.reset()
        upstream = await scene.accept()
        await upstream.message()
        await upstream.send(OK)
        assert (await client.message())[1] == b"ok"
        # A POST does not.
        await client.send(scene.request("once"))
        await upstream.message()
        upstream.reset()
        assert (await client.message())[0].get("flowstack-error") == "upstream_closed"
        expected = {
            "closed": (502, "upstream_lost", "upstream_closed", 1),
            "garbage": (502, "upstream_lost", "upstream_malformed", 1),
            "again": (200, "complete", None, 2),
            "once": (502, "upstream_lost", "upstream_closed", 1),
        }
        for tag, facts in expected.items():
            row = await scene.row(tag)
            assert (row["status"], row["end"], row["error_code"], row["attempts"]) == facts, tag
        assert scene.nothing_came()


@live
async def test_an_upstream_that_nobody_listens_at_is_lost_without_an_attempt(wires: Wires) -> None:
    async with wires(upstream="http://127.0.0.1:1/v1") as scene:
        client = await scene.dial()
        await client.send(scene.request("nobody"))
        assert (await client.message())[0].get("flowstack-error") == "upstream_unreachable"
        row = await scene.row("nobody")
        facts = (row["status"], row["end"], row["error_code"], row["attempts"])
        assert facts == (502, "upstream_lost", "upstream_unreachable", 0)


@live
async def test_strangers_and_what_is_no_request_have_no_row(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path) as scene:
        expired = scene.proxy.keystore.add("expires=2020-01-01")
        disabled = scene.proxy.keystore.add("disabled")
        await asyncio.to_thread(scene.proxy.reload)
        valid = scene.request()
        key = f"Flowstack-Auth: Bearer {scene.proxy.key}\r\n".encode()
        strangers = {
            "no key": (401, valid.replace(key, b"")),
            "a wrong key": (401, scene.request(key="fsk-nobody")),
            "a wrong scheme": (401, valid.replace(b"Bearer fsk", b"Basic fsk")),
            "the key twice": (400, valid.replace(key, key + key)),
            "an expired key": (401, scene.request(key=expired)),
            "a disabled key": (401, scene.request(key=disabled)),
            "a key in the wrong place": (401, valid.replace(PROVIDER_KEY.encode(), scene.proxy.key.encode())),
            "two lengths": (400, scene.request("", "Content-Length: 3")),
            "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
        }
        for name, (status, request) in strangers.items():
            client = await scene.dial()
            await client.send(request)
            head, _ = await client.message()
            assert head.status == status, name
            client.close()
        silent = await scene.dial()
        silent.reset()
        client, upstream, _ = await scene.ask("friend")
        await upstream.send(OK)
        await client.message()
        await scene.row("friend")
        # Rows are written in order: whatever there is of the others would be there by now.
        assert [row["attributes"] for row in scene.rows()] == [{"tag": "friend"}]
        assert "refused without a valid key" in scene.proxy.log_text()


@live
async def test_each_of_many_requests_has_exactly_one_row_with_the_id_that_its_client_got(
    wires: Wires, stand_in: StandIn
) -> None:
    async def ask(scene: Wire, number: int) -> dict[str, str | None]:
        client, ids = await scene.dial(), dict[str, str | None]()
        for turn in range(20):
            tag = f"{number}-{turn}"
            await client.send(scene.request(tag, method="GET", target="/v1/models", body=b""))
            head, _ = await client.message()
            ids[tag] = head.get("flowstack-request-id")
        return ids

    async with wires(upstream=f"{stand_in.url}/v1") as scene:
        ids: dict[str, str | None] = {}
        for found in await asyncio.gather(*(ask(scene, number) for number in range(20))):
            ids |= found
        assert len(set(ids.values())) == 400
        rows = await scene.all_rows(400)
        assert {row["attributes"]["tag"]: row["request_id"] for row in rows} == ids


@live
async def test_pipelined_requests_have_a_row_each_in_order(wires: Wires) -> None:
    async with wires() as scene:
        client = await scene.dial()
        await client.send(b"".join(scene.request(f"p{number}") for number in range(5)))
        upstream = await scene.accept()
        for _ in range(5):
            await upstream.message()
            await upstream.send(OK)
            assert (await client.message())[1] == b"ok"
        rows = await scene.all_rows(5)
        assert [row["attributes"]["tag"] for row in rows] == [f"p{number}" for number in range(5)]


@live
async def test_rows_go_to_standard_output_where_no_file_is_named_and_nowhere_where_none_are_wanted(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    for target, lines in (("-", 1), ("none", 0)):
        log = {"requests": target}
        async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1", log=log) as scene:
            client = await scene.dial()
            await client.send(scene.request(target, method="GET", target="/v1/models", body=b""))
            head, _ = await client.message()
            client.close()
            # The end of the process writes what waits.
            await asyncio.to_thread(scene.proxy.stop)
            rows = [json.loads(line) for line in scene.proxy.log_text().splitlines() if line.startswith("{")]
            assert len(rows) == lines
            assert all(row["request_id"] == head.get("flowstack-request-id") for row in rows)


@live
async def test_rows_that_waited_are_written_when_the_process_ends(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path) as scene:
        for number in range(3):
            client, upstream, _ = await scene.ask(f"r{number}")
            await upstream.send(OK.replace(b"X-Request-Id: req_upstream", b"Connection: close"))
            await client.message()
        await asyncio.to_thread(scene.proxy.stop)
        assert [row["attributes"]["tag"] for row in scene.rows()] == ["r0", "r1", "r2"]
