"""CPU and time for each whole request."""

from __future__ import annotations

import json
import time
from pathlib import Path

from bench import wrk
from bench.lab import DIRECT, Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.procs import BenchError, cpu_by_task, cpu_ns
from bench.scale import Scale
from flowstack.ledger.files import lag_path

#: Seconds that the index of a ledger has to take all rows once the load has ended.
PATIENCE = 60.0

DIRECTLY = (("plain", 1), ("fast", 32))
NAMES = {"fast": "saturated", "plain": "plain upstream", "tls": "tls upstream"}


def measure_requests(lab: Lab, subject: Running, connections: int, scale: Scale) -> dict[str, float]:
    """CPU of the subject for each request, and how its busiest two threads share it, in a window within wrk's run.

    The window begins when connections are open and TLS handshakes done, and ends before any is closed. The upstream
    counts the requests, so that an answer that never came from it would show. What is aside, the index of a ledger, is
    weighed from before the first request until it has taken the last one's row.
    """
    pids, others = subject.pids(), subject.aside()

    def look() -> tuple[float, int, dict[int, int]]:
        return time.monotonic(), lab.upstream_requests(subject.upstream), cpu_by_task(pids)

    began_with, aside = lab.upstream_requests(subject.upstream), cpu_ns(others)
    first, last, counted = wrk.load(lab, subject, connections, scale.http_seconds, scale.http_settle, look)
    ended = time.time()
    came = lab.upstream_requests(subject.upstream) - began_with
    if counted["requests"] > came:
        raise BenchError(f"{counted['requests'] - came:.0f} of {counted['requests']} answers were not the upstream's")
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
        values["smaller_share"] = busiest[1] / max(1, busiest[0] + busiest[1])
        if others and subject.state is not None:
            _await_index(subject.state, ended)
            values["aside_us"] = (cpu_ns(others) - aside) / came / 1000
        values["all_us"] = values["cpu_us"] + values.get("aside_us", 0.0)
    return values


def _await_index(state: Path, since: float) -> None:
    """Wait until the index of the ledger has taken each row of the requests that ended before then.

    :param since: Unix seconds; what the indexer said before that is not believed.
    """
    deadline = time.monotonic() + PATIENCE
    path = lag_path(state)
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime > since + 0.1 and not json.loads(path.read_bytes())["lag_bytes"]:
            return
        time.sleep(0.05)
    raise BenchError(f"the ledger's index was still behind after {PATIENCE:.0f} s")


class Requests(Plain):
    """Keep-alive ``POST /v1/chat/completions``."""

    name = "requests"
    title = "A request: POST /v1/chat/completions, kept alive"
    columns: tuple[Column, ...] = (
        Column("cpu_us", "CPU µs", 1, ratio=True),
        Column("aside_us", "index CPU µs", 1),
        Column("all_us", "all CPU µs", 1, ratio=True),
        Column("rps", "requests/s", 0),
        Column("core_share", "cores used", 2),
        Column("p50_us", "p50 µs", 0),
        Column("p99_us", "p99 µs", 0),
        Column("added_p50_us", "p50 over direct µs", 0),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Each number of connections; with one, and where the proxy is to be the bottleneck, also without a proxy."""
        return [
            Case(f"{NAMES[kind]}, {count} conn.", count, upstream=kind, direct=(kind, count) in DIRECTLY)
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
