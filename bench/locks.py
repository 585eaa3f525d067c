"""``python -m bench.locks``: a limit's counters in a column a worker, beside the same under a file lock.

Workers take of one key's limits and settle as fast as they can. One of them is stopped for a while, as by a debugger or
a memory limit: under the lock where it holds the lock, without one wherever it is.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson

from flowstack.config import Settings
from flowstack.keys import Budget, Key
from flowstack.ledger.row import BLANK
from flowstack.limits.counters import Counters
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter

ROOT = Path(__file__).resolve().parent.parent
SECONDS, STOPPED = 3.0, 0.5
WORKERS = (2, 8)

LIMITS = Key(id="a", digest=b"", rpm=10**9, tpm=10**12, max_parallel=10**6, budget=Budget(Decimal(10**6), "month"))


def child(descriptor: int, worker: int, locked: bool, holds: bool) -> None:
    """Take and settle until the time is over; print the times that a request took, in µs.

    :param holds: the lock is taken first, and kept until the process has been stopped and goes on.
    """
    counters = Counters.attach(descriptor, worker)
    limiter = SharedLimiter(counters, Settings())
    limiter.lock_first = locked
    plan = limiter.plan(LIMITS, "openai")
    assert plan is not None
    row = BLANK | {"started_at": datetime.now(UTC), "end": "complete", "status": 200}
    print("ready", flush=True)
    sys.stdin.readline()
    if holds:
        with counters.locked(plan.lock):
            print("holds", flush=True)
            sys.stdin.readline()
    clock, times = time.perf_counter_ns, []
    ends = clock() + int(SECONDS * 1e9)
    begun = 0
    while begun < ends:
        begun = clock()
        taken = limiter.reserve(plan, 100, 0.001)
        limiter.settle(taken, row)
        times.append(clock() - begun)
    times.sort()
    at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    figures = {name: times[int(len(times) * share)] / 1000 for name, share in at.items()}
    print(orjson.dumps(figures | {"max": times[-1] / 1000, "requests": len(times)}).decode(), flush=True)


def measure(workers: int, locked: bool, stops: bool) -> dict[str, float]:
    """Of all workers but the one that is stopped, the worst of each figure; of the requests, the sum."""
    counters = open_counters(None, workers)
    descriptor = counters.fileno()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.locks", str(descriptor), str(number), str(int(locked)),
             str(int(stops and locked and number == 0))],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[descriptor],
        )
        for number in range(workers)
    ]  # fmt: skip

    def say(one: subprocess.Popen[str]) -> None:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()

    def hear(one: subprocess.Popen[str]) -> str:
        assert one.stdout is not None
        return one.stdout.readline()

    try:
        for one in children:
            assert hear(one) == "ready\n"
        first, *others = children
        say(first)
        if stops and locked:
            assert hear(first) == "holds\n"
        for one in others:
            say(one)
        if stops:
            time.sleep(SECONDS / 3)
            os.kill(first.pid, signal.SIGSTOP)
            time.sleep(STOPPED)
            os.kill(first.pid, signal.SIGCONT)
            say(first)
        found = [orjson.loads(hear(one)) for one in (others if stops else children)]
        return {
            name: sum(one[name] for one in found) if name == "requests" else max(one[name] for one in found)
            for name in found[0]
        }
    finally:
        for one in children:
            one.kill()
            one.wait()


def main() -> None:
    """See the module."""
    print(f"{platform.python_version()}, {len(os.sched_getaffinity(0))} cores; µs to take and settle, the worst worker")
    print(f"{'workers':>7}  {'how':<24}{'p50':>8}{'p99':>9}{'p99.9':>10}{'max':>12}{'requests/s':>12}")
    for workers in WORKERS:
        for stops in (False, True):
            for locked in (False, True):
                found = measure(workers, locked, stops)
                how = ("file lock" if locked else "columns") + (f", one stopped {STOPPED:g} s" if stops else "")
                print(
                    f"{workers:>7}  {how:<24}{found['p50']:>8.1f}{found['p99']:>9.1f}{found['p99.9']:>10.1f}"
                    f"{found['max']:>12.0f}{found['requests'] / SECONDS:>12,.0f}"
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4] == "1")
    else:
        main()
