"""Memory of the subject for each open stream that stands still."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from bench.client.streams import Meter, open_streams, the_fault
from bench.procs import BenchError, memory

#: Streams that are opened and closed before memory is read the first time: buffers and code come in with the first.
WARM = 50


def run(order: dict[str, Any]) -> dict[str, float]:
    """Hold ``streams`` streams open on ``port``; ``pids`` are the subject's processes, ``settle`` is in seconds."""
    try:
        return uvloop.run(_run(order))
    except BaseExceptionGroup as group:
        raise the_fault(group) from None


async def _run(order: dict[str, Any]) -> dict[str, float]:
    meter = Meter()
    request = order["request"].encode()
    warm, _ = await open_streams(order["port"], iter([request] * WARM), meter)
    for stream in warm:
        stream.leave()
    await asyncio.sleep(order["settle"])
    before = memory(order["pids"])
    streams, _ = await open_streams(order["port"], iter([request] * order["streams"]), meter)
    await asyncio.sleep(order["settle"])
    after = memory(order["pids"])
    for stream in streams:
        stream.leave()
    if meter.fault:
        raise BenchError(meter.fault)
    count = len(streams)
    return {
        "streams": count,
        "base_mib": before[0] / 2**20,
        "rss_kib": (after[0] - before[0]) / count / 1024,
        "pss_kib": (after[1] - before[1]) / count / 1024,
    }
