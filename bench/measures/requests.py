"""CPU and time for each whole request."""

from __future__ import annotations

import time

from bench import wrk
from bench.lab import DIRECT, Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.procs import BenchError, cpu_by_task
from bench.scale import Scale


def measure_requests(lab: Lab, subject: Running, connections: int, scale: Scale) -> dict[str, float]:
    """CPU of the subject for each request, and how its busiest two threads share it, in a window within wrk's run.

    The window begins when connections are open and TLS handshakes done, and ends before any is closed. The upstream
    counts the requests, so that an answer that never came from it would show.
    """
    pids, others = subject.pids(), subject.aside()

    def look() -> tuple[float, int, dict[int, int], int]:
        return time.monotonic(), lab.upstream_requests(), cpu_by_task(pids), sum(cpu_by_task(others).values())

    began_with = lab.upstream_requests()
    first, last, counted = wrk.load(lab, subject, connections, scale.http_seconds, scale.http_settle, look)
    missing = counted["requests"] - (lab.upstream_requests() - began_with)
    if missing > 0:
        raise BenchError(f"{missing:.0f} of {counted['requests']} answers did not come from the upstream")
    took, requests = last[0] - first[0], last[1] - first[1]
    spent = {task: ns - first[2].get(task, 0) for task, ns in last[2].items()}
    if requests < 20:
        raise BenchError(f"only {requests} requests in {took:.1f} s")
    values = {
        "requests": requests,
        "rps": requests / took,
        "p50_us": counted["p50_us"],
        "p99_us": counted["p99_us"],
    }
    if subject.name != DIRECT:
        total = sum(spent.values())
        busiest = [*sorted(spent.values(), reverse=True), 0, 0]
        values["cpu_us"] = total / requests / 1000
        values["core_share"] = total / took / 1e9
        if others:
            values["aside_us"] = (last[3] - first[3]) / requests / 1000
        values["smaller_share"] = busiest[1] / max(1, busiest[0] + busiest[1])
    return values


class Requests(Plain):
    """Keep-alive ``POST /v1/chat/completions``."""

    name = "requests"
    title = "A request: POST /v1/chat/completions, kept alive"
    columns: tuple[Column, ...] = (
        Column("cpu_us", "CPU µs", 1, ratio=True),
        Column("aside_us", "index CPU µs", 1),
        Column("rps", "requests/s", 0, ratio=True),
        Column("core_share", "cores used", 2),
        Column("p50_us", "p50 µs", 0),
        Column("p99_us", "p99 µs", 0),
        Column("added_p50_us", "p50 over direct µs", 0),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Each number of connections; with one, also without a proxy."""
        return [
            Case(f"{kind} upstream, {count} conn.", count, tls=kind == "tls", direct=count == 1 and kind == "plain")
            for kind, count in scale.connections
        ]

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :func:`measure_requests`."""
        return measure_requests(lab, subject, case.size, scale)

    def derive(self, values: dict[str, float], direct: dict[str, float] | None) -> dict[str, float]:
        """The latency that the subject adds."""
        return {"added_p50_us": values["p50_us"] - direct["p50_us"]} if direct else {}


class Workers(Plain):
    """One worker against two, on the same cores."""

    name = "workers"
    title = "Workers: the same with one and with two, both on the same cores as the load"
    columns: tuple[Column, ...] = (
        Column("cpu_us", "CPU µs", 1, ratio=True),
        Column("rps", "requests/s", 0, ratio=True),
        Column("smaller_share", "smaller worker's share", 2),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """256 connections."""
        most = max(count for _, count in scale.connections)
        return [
            Case(f"{workers} worker{'s' * (workers > 1)}, {most} conn.", most, workers=workers, wide=True)
            for workers in (1, 2)
        ]

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :func:`measure_requests`; a single worker shares with nobody."""
        values = measure_requests(lab, subject, case.size, scale)
        if case.workers == 1:
            del values["smaller_share"]
        return values
