"""A slow reader on either side holds the other one back: what it has not read yet is not piled up in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowstack.testing.standin.pattern import pattern
from tests.e2e.live import Wire, beside, live, memory, open_files, wire
from tests.e2e.processes import StandIn, StartProxy

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
SIZE = 200 * MIB
SECONDS = 6
"""Without anyone held back, all of it would be through, or in memory, before."""
PACE = 1_000_000
"""Bytes a second that the slow side reads."""

ALLOWED = 32 * MIB
"""How far the proxy's resident memory may grow, for a download and an upload together."""


async def download_slowly(scene: Wire) -> int:
    """Read at the pace, check each byte, and give how many there were when time was up."""
    whole = next(pattern(65536))
    client = await scene.dial()
    await client.send(scene.request("down", f"Stand-In: size={SIZE}", method="GET", target="/v1/models", body=b""))
    head = await client.head()
    assert (head.status, head.get("content-length")) == (200, str(SIZE))
    body, read, start = client.body(head), 0, time.monotonic()
    while (now := time.monotonic() - start) < SECONDS:
        if read > now * PACE:
            await asyncio.sleep((read - now * PACE) / PACE)
            continue
        assert await body.read(65536) == whole
        read += 65536
    client.reset()
    return read


async def upload_eagerly(scene: Wire) -> None:
    """Send as fast as it is taken, to an upstream that reads at the pace, for as long as it lasts."""
    client = await scene.dial()
    fields = (f"Stand-In: slow-read={PACE}; sink", "X-Client-Tag: slow-upload", f"Content-Length: {SIZE}")
    await client.send(scene.request("up", *fields, target="/v1/files", body=None))
    try:
        for piece in pattern(SIZE):
            await client.send(piece, SECONDS)
    finally:
        client.reset()


def kept_in(state: Path) -> list[Path]:
    """The files of a state directory in which something of a body could be; the index's own come and go."""
    return sorted(path for path in state.iterdir() if not path.name.startswith((".", "ledger.")))


@live
async def test_a_download_to_a_slow_client_and_an_upload_to_a_slow_upstream_stay_out_of_memory_and_off_the_disk(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    async with wire(start_proxy, tmp_path, upstream=f"{stand_in.url}/v1") as scene:
        pid, state = scene.proxy.pid, scene.proxy.state_path
        await warm(scene)
        before, _ = memory(pid)
        files, kept = open_files(pid), kept_in(state)
        peak, seen = 0, set[str]()

        def watch() -> None:
            nonlocal peak
            now, most = memory(pid)
            peak = max(peak, now, most)
            # A journal may begin anew meanwhile, at midnight.
            seen.update(path for path in open_files(pid) - files if Path(path).parent != state / "ledger")
            seen.update(map(str, temporary.iterdir()))

        async with beside(every(0.25, watch)), beside(upload_eagerly(scene)) as uploading:
            read = await download_slowly(scene)
            assert not uploading.done(), uploading
        watch()
        assert read >= 0.5 * SECONDS * PACE, "the client got what it asked for"
        up, down = await scene.row("up"), await scene.row("down")
        assert (up["end"], down["end"]) == ("client_gone", "client_gone")
        # The upstream held the uploading client back, and the client the upstream: neither is far ahead.
        taken = await asyncio.to_thread(stand_in.seen, "slow-upload")
        assert taken[-1]["body_bytes"] >= 0.3 * SECONDS * PACE, "the upstream got what it asked for"
        assert up["bytes_in"] < SIZE / 4
        assert down["bytes_out"] < SIZE / 4
        grown = peak - before
        assert grown <= ALLOWED, f"{grown / MIB:.1f} MiB more than the {before / MIB:.1f} MiB before"
        assert not seen, "files that came meanwhile"
        assert kept_in(state) == kept


async def warm(scene: Wire) -> None:
    """Let the proxy do once what it does later, so that growth is not first use."""
    client = await scene.dial()
    await client.send(scene.request("", f"Stand-In: size={MIB}", method="GET", target="/v1/models", body=b""))
    assert len((await client.message())[1]) == MIB
    await client.send(scene.request("", "Stand-In: sink", target="/v1/files", body=bytes(MIB)))
    assert (await client.message())[0].status == 200
    client.close()


async def every(seconds: float, act: Callable[[], None]) -> None:
    """Do it again and again."""
    while True:
        act()
        await asyncio.sleep(seconds)
