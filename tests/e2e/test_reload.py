"""SIGHUP takes over a new keystore, whole or not at all, and no request notices."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.live import Wire, error_of, live, read_rows, until, wire
from tests.e2e.processes import PATIENCE, StandIn, StartProxy

pytestmark = pytest.mark.e2e

RELOADS = 8
CLIENTS = 8


async def keep_asking(scene: Wire, number: int, stop: asyncio.Event) -> int:
    """Send one request after the other on one connection, every other one a stream; give how many there were."""
    client, count = await scene.dial(), 0
    while not stop.is_set():
        if (number + count) % 2:
            body = b'{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
            field = ("Content-Type: application/json", "Stand-In: chunks=10; gap=0.01")
            await client.send(scene.request(f"{number}-{count}", *field, body=body))
            head, answer = await client.message()
            assert answer.endswith(b"data: [DONE]\n\n"), answer
        else:
            await client.send(scene.request(f"{number}-{count}", method="GET", target="/v1/models", body=b""))
            head, answer = await client.message()
            assert answer.endswith(b"}\n")
        assert head.status == 200, answer
        count += 1
    client.close()
    return count


async def status_of(scene: Wire, key: str) -> int:
    """The status that a request with this key gets, on a new connection."""
    client = await scene.dial()
    await client.send(scene.request(method="GET", target="/v1/models", body=b"", key=key))
    head, _ = await client.message()
    client.close()
    return head.status


async def reload(scene: Wire) -> dict[str, Any]:
    """SIGHUP, and ``reload.json`` as soon as it is written."""
    return await asyncio.to_thread(scene.proxy.reload)


@live
async def test_no_request_fails_while_the_keystore_is_rewritten_and_reloaded(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        keystore, stop = scene.proxy.keystore, asyncio.Event()
        clients = [asyncio.create_task(keep_asking(scene, number, stop)) for number in range(CLIENTS)]
        for turn in range(RELOADS):
            key = keystore.add(f"owner=turn-{turn}")
            assert await status_of(scene, key) == 401, "a key that is not reloaded yet"
            report = await reload(scene)
            assert (report["generation"], report["keys"], report["fault"]) == (2 + 2 * turn, 2, None)
            assert await status_of(scene, key) == 200
            keystore.remove(key)
            assert await status_of(scene, key) == 200, "a key whose removal is not reloaded yet"
            report = await reload(scene)
            assert (report["generation"], report["keys"], report["fault"]) == (3 + 2 * turn, 1, None)
            assert await status_of(scene, key) == 401
            assert not any(client.done() for client in clients), clients
        stop.set()
        counts = await asyncio.gather(*clients)
        assert min(counts) > 0
        rows = await scene.all_rows(sum(counts))
        assert {(row["status"], row["end"]) for row in rows} == {(200, "complete")}


@live
async def test_a_removed_key_is_refused_on_its_next_request_and_its_stream_in_flight_lives_on(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path) as scene:
        keystore = scene.proxy.keystore
        key = keystore.add("owner=leaver")
        await reload(scene)
        idle, upstream, _ = await scene.ask(key=key)
        await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await idle.message()
        client, upstream, _ = await scene.ask("stream", key=key)
        await upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        head = await client.head()
        body = client.body(head)
        keystore.remove(key)
        await reload(scene)
        for link in (idle, await scene.dial()):
            await link.send(scene.request(key=key))
            head, answer = await link.message()
            assert (head.status, head.get("flowstack-error")) == (401, "invalid_flowstack_key")
            assert key not in answer.decode()
        for _ in range(3):
            await upstream.send(b"6\r\ndata:\n\r\n")
            assert await body.read(6) == b"data:\n"
        await upstream.send(b"0\r\n\r\n")
        assert await body.rest() == b""
        row = await scene.row("stream")
        assert (row["end"], row["owner"]) == ("complete", "leaver")
        await client.send(scene.request(key=key))
        assert (await client.message())[0].status == 401
        assert scene.nothing_came()


@live
async def test_disabling_a_key_takes_hold_at_the_reload(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        key = scene.proxy.keystore.add()
        await reload(scene)
        assert await status_of(scene, key) == 200
        scene.proxy.keystore.put(key[4:16], key, "disabled")
        await reload(scene)
        client = await scene.dial()
        await client.send(scene.request(key=key))
        head, answer = await client.message()
        assert (head.status, error_of(answer)["code"]) == (401, "flowstack_key_disabled")


@live
async def test_a_bad_file_keeps_the_old_keys_and_the_log_and_reload_json_name_file_and_line(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        proxy, path = scene.proxy, scene.proxy.keys_path
        good = path.read_text()
        fresh = proxy.keystore.add()
        broken = path.read_text() + "k7Qm2xW9pLz4  sha256:nonsense  owner=x\n"
        line = len(broken.splitlines())
        proxy.keystore.replace(broken)
        report = await reload(scene)
        assert (report["generation"], report["keys"]) == (1, 1)
        assert len(report["fault"]) == 1
        assert report["fault"][0].startswith(f"{path}:{line}:"), report
        await until(lambda: "was not reloaded" in proxy.log_text(), "the log says so")
        log = proxy.log_text()
        assert f"{path}:{line}:" in log
        assert "nonsense" not in log, "what may be a secret is not shown"
        assert await status_of(scene, proxy.key) == 200
        assert await status_of(scene, fresh) == 401, "no part of a bad file is in force"

        path.unlink()
        report = await reload(scene)
        assert (report["generation"], report["keys"]) == (1, 1)
        assert "does not exist" in report["fault"][0]
        assert await status_of(scene, proxy.key) == 200

        proxy.keystore.replace(good)
        report = await reload(scene)
        assert (report["generation"], report["keys"], report["fault"]) == (2, 1, None)
        assert await status_of(scene, proxy.key) == 200


@live
async def test_a_burst_of_sighups_leaves_the_last_file_in_force(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        for _ in range(50):
            key = scene.proxy.keystore.add()
            scene.proxy.signal(signal.SIGHUP)
        client = await scene.dial()

        async def known() -> None:
            while True:
                await client.send(scene.request(method="GET", target="/v1/models", body=b"", key=key))
                if (await client.message())[0].status == 200:
                    return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(known(), PATIENCE)
        report = await reload(scene)
        assert (report["keys"], report["fault"]) == (51, None)


@live
async def test_the_request_log_is_opened_anew_after_it_was_renamed_and_no_row_is_lost(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        stop, turns = asyncio.Event(), 5
        clients = [asyncio.create_task(keep_asking(scene, number, stop)) for number in range(4)]
        old = [tmp_path / f"requests.jsonl.{turn}" for turn in range(turns)]
        for renamed in old:
            await until(scene.rows, "rows are written into the new file")
            scene.rows_path.rename(renamed)
            await reload(scene)
            await until(scene.rows_path.exists, "the log has its file again")
        stop.set()
        counts = await asyncio.gather(*clients)

        def tags() -> list[str]:
            return [row["attributes"]["tag"] for path in [*old, scene.rows_path] for row in read_rows(path)]

        await until(lambda: len(tags()) >= sum(counts), "every request has its row")
        asked = [f"{number}-{turn}" for number, count in enumerate(counts) for turn in range(count)]
        assert sorted(tags()) == sorted(asked)
