"""What a large keystore costs the process that holds it: no traffic, one process, Flowstack's own reactor."""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.procs import BenchError, memory

KINDS = (
    "owner=user{0}@example.com expires=2127-06-30 models=gpt-4o*,text-embedding-3-* rpm=600 tpm=200000",
    "owner=user{0}@example.com rpm=600 max_parallel=20 budget=50.00usd/month allow_ip=10.0.0.0/8",
    'owner="User {0}" rpm=600 note="for the nightly batch"',
)
"""Attributes of three sorts, by turns."""

LOOKUPS = 2000
REPEATS = 50
WITHIN = 300.0
"""Seconds that a reload may take before it counts as failed."""


def run(order: dict[str, Any]) -> dict[str, float]:
    """Load ``keys`` keys, look some up, and reload them while the loop's turns are timed."""
    gc.enable()
    from flowstack.transport import uv

    uv.install()
    from twisted.internet import reactor

    from flowstack.keys.store import FileKeystore

    count = order["keys"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keys")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.writelines(_lines(count))
        store = FileKeystore(path, None, time.time, reactor)
        gc.collect()
        gc.freeze()  # as the service does, so that the collector's time below is that of the keys
        small = memory([os.getpid()])[0]
        began = time.process_time()
        store.load()
        values = {"load_ms": (time.process_time() - began) * 1e3}
        values["rss_mib"] = (memory([os.getpid()])[0] - small) / 2**20
        values |= _lookups(store.lookup, count)
        gc.collect()
        began = time.process_time()
        gc.collect()
        values["gc_ms"] = (time.process_time() - began) * 1e3
        values |= _reload(reactor, store)
        values["peak_mib"] = (_most_memory() - small) / 2**20
    return values


def _most_memory() -> int:
    """The most that this process ever had in memory at once, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/self/status has no VmHWM")


def _lines(count: int) -> Iterator[str]:
    for number in range(count):
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        yield f"{digest[:12]}  sha256:{digest}  {KINDS[number % len(KINDS)].format(number)}\n"


def _lookups(lookup: Callable[[bytes], Any], count: int) -> dict[str, float]:
    step = max(1, count // LOOKUPS)
    known = [hashlib.sha256(b"%d" % number).digest() for number in range(0, count, step)][:LOOKUPS]
    strangers = [hashlib.sha256(b"no-%d" % number).digest() for number in range(LOOKUPS)]

    def microseconds(digests: list[bytes], expected: bool) -> float:
        began = time.process_time()
        for digest in digests:
            if (lookup(digest) is not None) != expected:
                raise BenchError("a key was not found, or a stranger was")
        return (time.process_time() - began) * 1e6 / len(digests)

    first = microseconds(known, True)
    return {
        "first_us": first,
        "again_us": min(microseconds(known, True) for _ in range(REPEATS)),
        "stranger_us": min(microseconds(strangers, False) for _ in range(REPEATS)),
    }


def _reload(reactor: Any, store: Any) -> dict[str, float]:
    turns: list[float] = []
    spent_in: list[float] = []
    found: dict[str, float] = {}
    last = began = time.monotonic()
    last_spent = spent = time.process_time()

    def mark() -> None:
        nonlocal last, last_spent
        now, by_now = time.monotonic(), time.process_time()
        turns.append(now - last)
        spent_in.append(by_now - last_spent)
        last, last_spent = now, by_now

    def turn() -> None:
        if "reload_ms" not in found:
            mark()
            reactor.callLater(0, turn)

    def end(result: Any) -> None:
        mark()  # the last one; what holds the process up from here on is nothing of the reload's
        if not getattr(result, "ok", False):
            found["failed"] = 1.0
        found["reload_ms"] = (last - began) * 1e3
        found["reload_cpu_ms"] = (last_spent - spent) * 1e3
        reactor.callLater(0, reactor.stop)

    def begin() -> None:
        nonlocal last, last_spent, began, spent
        last = began = time.monotonic()
        last_spent = spent = time.process_time()
        reactor.callLater(0, turn)
        store.reload().addBoth(end)

    reactor.callWhenRunning(begin)
    reactor.callLater(WITHIN, reactor.stop)
    reactor.run(installSignalHandlers=False)
    if "reload_ms" not in found or "failed" in found:
        raise BenchError("the keystore could not be reloaded")
    found["stall_ms"] = max(turns) * 1e3
    found["stall_cpu_ms"] = max(spent_in) * 1e3
    found["stall_p99_ms"] = sorted(turns)[int(len(turns) * 0.99)] * 1e3
    return found
