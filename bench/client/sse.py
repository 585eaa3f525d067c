"""CPU of the subject for each chunk, and what it adds to a chunk's way, with many streams at once."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import uvloop

from bench.client.streams import Meter, open_streams, the_fault
from bench.procs import BenchError, cpu_ns
from bench.stats import percentile


def run(order: dict[str, Any]) -> dict[str, float]:
    """Open ``streams`` streams on ``port`` with ``request``, wait ``settle`` s, then measure for ``window`` s.

    ``pids`` are the subject's processes, ``interval`` the ms between a stream's chunks, ``share`` the part of the
    chunks due in the window that must have come.
    """
    try:
        return uvloop.run(_run(order))
    except BaseExceptionGroup as group:
        raise the_fault(group) from None


async def _run(order: dict[str, Any]) -> dict[str, float]:
    meter = Meter()
    request = order["request"].encode()
    streams, first = await open_streams(order["port"], iter([request] * order["streams"]), meter)
    await asyncio.sleep(order["settle"])
    loop = asyncio.get_running_loop()
    before, began = cpu_ns(order["pids"]), loop.time()
    meter.on = True
    await asyncio.sleep(order["window"])
    meter.on = False
    spent, took = cpu_ns(order["pids"]) - before, loop.time() - began
    for stream in streams:
        stream.leave()
    if meter.fault:
        raise BenchError(meter.fault)
    due = order["streams"] * took * 1000 / order["interval"]
    if not meter.delays or len(meter.delays) < order["share"] * due:
        raise BenchError(f"only {len(meter.delays)} of {due:.0f} chunks came in time: overloaded")
    delays = sorted(meter.delays)
    weighed = {"cpu_us": spent / len(delays) / 1000, "core_share": spent / took / 1e9} if order["pids"] else {}
    return {
        "chunks": len(delays),
        **weighed,
        "delay_p50_ms": percentile(delays, 50) / 1e6,
        "delay_p99_ms": percentile(delays, 99) / 1e6,
        "delay_mean_ms": statistics.fmean(delays) / 1e6,
        "first_p50_ms": percentile(sorted(first), 50) / 1e6,
        "first_p99_ms": percentile(sorted(first), 99) / 1e6,
    }
