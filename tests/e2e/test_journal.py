"""The journal has the row of each answer that a client saw end, whatever becomes of the proxy in the next instant."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowstack.ledger.files import files
from flowstack.ledger.reader import read
from tests.e2e.live import Wire, live, until, wire
from tests.e2e.processes import StandIn, StartProxy

pytestmark = pytest.mark.e2e

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def journal(directory: Path) -> list[dict[str, Any]]:
    """All rows in all files; none of them may be damaged."""
    rows = [row for path in files(directory) for _, row in read(path)]
    assert None not in rows
    return [row for row in rows if row is not None]


def directory_of(scene: Wire) -> Path:
    return scene.proxy.state_path / "ledger"


@live
async def test_an_answer_that_a_client_saw_end_has_its_row_after_sigkill(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async def ask(scene: Wire, number: int, seen: set[str]) -> None:
        client = await scene.dial()
        for turn in range(1000):
            await client.send(scene.request(f"{number}-{turn}", method="GET", target="/v1/models", body=b""))
            head, _ = await client.message()
            seen.add(head.get("flowstack-request-id") or "")

    scene = wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1")
    seen: set[str] = set()
    async with scene:
        clients = [asyncio.ensure_future(ask(scene, number, seen)) for number in range(8)]
        await until(lambda: len(seen) > 100, "100 answers have come")
        scene.proxy.kill()
        await asyncio.gather(*clients, return_exceptions=True)
        written = [row["request_id"] for row in journal(directory_of(scene))]
        assert len(seen) > 100
        assert seen <= set(written)
        assert len(written) == len(set(written))


@live
async def test_journal_and_request_log_have_the_same_lines(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path) as scene:
        client, upstream, _ = await scene.ask("one")
        await upstream.send(OK)
        await client.message()
        (row,) = journal(directory_of(scene))
        assert row["attributes"] == {"tag": "one"}
        assert row == await scene.row("one")
        (path,) = files(directory_of(scene))
        assert path.read_bytes() == scene.rows_path.read_bytes()
        assert path.stat().st_mode & 0o027 == 0


@live
async def test_without_a_state_directory_there_is_a_request_log_and_no_journal(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, server={"state": ""}) as scene:
        client, upstream, _ = await scene.ask("one")
        await upstream.send(OK)
        await client.message()
        await scene.row("one")
        assert not directory_of(scene).exists()


@live
async def test_the_request_log_may_be_text(start_proxy: StartProxy, tmp_path: Path) -> None:
    log = {"requests": str(tmp_path / "requests.txt"), "format": "text"}
    async with wire(start_proxy, tmp_path, log=log) as scene:
        client, upstream, _ = await scene.ask("one", body=b'{"model": "gpt\\n4 \\""}')
        await upstream.send(OK)
        await client.message()
        await asyncio.to_thread(scene.proxy.stop)
    line = (tmp_path / "requests.txt").read_text()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 127\.0\.0\.1 \w{12} POST /v1/chat/completions 200 complete "
        r"error_code=- model=gpt\\x0a4\\x20\\x22 prompt_tokens=- completion_tokens=- cost_usd=- first_byte_ms=[\d.]+ "
        r"duration_ms=[\d.]+ overhead_ms=[\d.]+ request_id=\S+\n",
        line,
    )


@live
@pytest.mark.parametrize("policy", ["serve", "refuse"])
async def test_a_full_disk_costs_no_row_and_refuses_requests_only_where_the_operator_wants_that(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path, policy: str
) -> None:
    directory = tmp_path / "state" / "ledger"
    directory.mkdir(parents=True)
    days = [datetime.now(UTC) + timedelta(days) for days in (0, 1)]
    full = [directory / f"{day:%Y-%m-%d}.w0.jsonl" for day in days]
    for path in full:
        path.symlink_to("/dev/full")  # each write to it fails with ENOSPC (full(4))
    settings: dict[str, Any] = {"server": {"state": str(tmp_path / "state")}, "ledger": {"on_ledger_failure": policy}}

    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1", **settings) as scene:

        async def ask(tag: str) -> tuple[int, str | None]:
            client = await scene.dial()
            await client.send(scene.request(tag, method="GET", target="/v1/models", body=b""))
            head, _ = await client.message()
            client.close()
            return head.status, head.get("flowstack-error")

        assert await ask("first") == (200, None)
        second = await ask("second")
        assert second == ((503, "ledger_unavailable") if policy == "refuse" else (200, None))
        assert "rows wait" in scene.proxy.log_text()
        for path in full:
            path.unlink()
        await until(lambda: "written again" in scene.proxy.log_text(), "the journal is written again")
        assert await ask("third") == (200, None)
        assert [row["attributes"]["tag"] for row in journal(directory)] == ["first", "second", "third"]
        assert [row["status"] for row in journal(directory)] == [200, second[0], 200]
