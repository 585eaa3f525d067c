"""What the limiter promises, with real processes on one table. Their logs are judged, not their counters."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowstack.config.settings import Settings
from flowstack.errors import ConcurrencyExceeded
from flowstack.limits.counters import Counters
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter

from .hammer import BEYOND, KEYS, PARALLEL, key_of
from .lab import key, reserve, row

ROOT = Path(__file__).parents[2]
WORKERS = 4


class Fleet:
    """Worker processes on one table."""

    def __init__(self, directory: Path, counters: Counters) -> None:
        self.counters = counters
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.successors: list[subprocess.Popen[str]] = []
        self._logs = directory
        self._lives = 0

    def start(self, worker: int, mode: str, seconds: float, rate: float = 1.0) -> None:
        self.processes[worker] = self._spawn(worker, mode, seconds, rate)

    def _spawn(self, worker: int, mode: str, seconds: float, rate: float = 1.0) -> subprocess.Popen[str]:
        self._lives += 1
        fd, log = self.counters.fileno(), self._logs / f"{worker}-{self._lives}"
        arguments = map(str, (fd, worker, mode, self._lives, seconds, rate, log))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.limits.hammer", *arguments],
            cwd=ROOT, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def go(self) -> None:
        """Have them begin, all at once, when the successors have been started as well."""
        for process in [*self.processes.values(), *self.successors]:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes.values():
            begin(process)

    def prepare(self, worker: int, mode: str, seconds: float) -> None:
        """Start who is to take a killed worker's place, in their order, while nobody takes all of the processor."""
        self.successors.append(self._spawn(worker, mode, seconds))

    def replace(self, worker: int) -> None:
        """Have the next of the successors begin."""
        self.processes[worker] = self.successors.pop(0)
        begin(self.processes[worker])

    def wait(self) -> None:
        for process in self.processes.values():
            assert process.wait(120) == 0

    def run(self, mode: str, seconds: float, rate: float = 1.0) -> list[dict[str, Any]]:
        for worker in range(WORKERS):
            self.start(worker, mode, seconds, rate)
        self.go()
        self.wait()
        return self.log()

    def log(self) -> list[dict[str, Any]]:
        lines = [line for path in self._logs.iterdir() for line in path.read_bytes().split(b"\n")[:-1]]
        return [json.loads(line) for line in lines]

    def kill(self, worker: int) -> None:
        process = self.processes.pop(worker)
        process.kill()
        process.wait(120)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def end(self) -> None:
        for process in [*self.processes.values(), *self.successors]:
            process.kill()
            process.wait(120)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def limiter(self, worker: int = 0) -> SharedLimiter:
        return SharedLimiter(Counters.attach(self.counters.fileno(), worker), Settings())


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


OF = pytest.mark.parametrize("of", ["", "@"], ids=["of a key", "of a group"])
"""Whose limit it is."""


def charged(limiter: SharedLimiter, mode: str) -> int:
    """What counts of a budget, in billionths of a dollar."""
    plan = limiter._plans.make(key_of(mode), "openai")
    held = plan.group or plan
    assert held.money is not None
    return limiter._spent(held.money.columns, limiter._period(held).label)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "logs").mkdir()
    fleet = Fleet(tmp_path / "logs", open_counters(tmp_path / "limits", WORKERS))
    yield fleet
    fleet.end()


@pytest.mark.parametrize("mode", ["parallel", "one", "@parallel"])
def test_at_no_moment_do_all_workers_together_have_more_under_way_than_max_parallel(fleet: Fleet, mode: str) -> None:
    limit = KEYS[mode.removeprefix("@")].max_parallel
    assert limit is not None
    spans = [(entry["began"], entry["ended"]) for entry in fleet.run(mode, 0.5)]
    assert len(spans) > 1000
    most = now = 0
    for _, change in sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans]):
        now += change
        most = max(most, now)
    assert most == limit  # not more; and as all wanted more, not less


@OF
def test_no_60_seconds_hold_more_admissions_of_all_workers_than_rpm(fleet: Fleet, of: str) -> None:
    limit = KEYS["rpm"].rpm
    assert limit is not None
    log = sorted(fleet.run(f"{of}rpm", 0.8, rate=625.0), key=lambda entry: float(entry["before"]))
    begins = [entry["before"] for entry in log]
    for first, begin in enumerate(begins):
        later = log[first : bisect_left(begins, begin + 60)]
        assert sum(entry["after"] <= begin + 60 for entry in later) <= limit
    # 500 seconds of the limiter's clock: the window fills at once, and each 62 seconds anew, eight times where there is
    # nothing else to do.
    assert len(log) >= 4 * limit


@OF
def test_no_60_seconds_hold_more_tokens_of_all_workers_than_tpm_by_more_than_the_bound(fleet: Fleet, of: str) -> None:
    limit = KEYS["tokens"].tpm
    assert limit is not None
    log = sorted(fleet.run(f"{of}tokens", 0.8, rate=625.0), key=lambda entry: float(entry["before"]))
    begins = [entry["before"] for entry in log]
    for first, begin in enumerate(begins):
        later = log[first : bisect_left(begins, begin + 60)]
        assert sum(entry["tokens"] for entry in later if entry["after"] <= begin + 60) <= limit
    assert sum(entry["tokens"] for entry in log) >= 3 * limit


@OF
def test_all_workers_together_spend_no_more_than_the_budget_and_what_those_under_way_cost_beyond_their_estimates(
    fleet: Fleet, of: str
) -> None:
    log = fleet.run(f"{of}money", 0.5)
    reserved = sum(entry.get("reserved", 0) for entry in log)
    settled = sum(entry.get("more", 0) for entry in log)
    budget = 4000
    assert reserved + settled >= budget - 20  # it was used up
    assert reserved + settled <= budget + WORKERS * PARALLEL * BEYOND
    assert charged(fleet.limiter(), f"{of}money") == (reserved + settled) * 10_000_000


@OF
def test_a_killed_worker_leaks_nothing_once_its_columns_are_cleared_and_its_money_stays_charged(
    fleet: Fleet, of: str
) -> None:
    chance = random.Random(1)
    killed = [chance.randrange(WORKERS) for _ in range(5)]
    for worker in range(WORKERS):
        fleet.start(worker, f"{of}all", 600.0)
    for worker in killed:
        fleet.prepare(worker, f"{of}all", 600.0)
    fleet.go()
    for worker in killed:
        time.sleep(chance.random() / 20)
        fleet.kill(worker)
        fleet.counters.clear(worker)
        assert all(process.poll() is None for process in fleet.processes.values())
        fleet.replace(worker)
    time.sleep(0.05)
    for worker in range(WORKERS):
        fleet.kill(worker)
        fleet.counters.clear(worker)
    limiter = fleet.limiter()
    for _ in range(7):  # as many as max_parallel
        reserve(limiter, key_of(f"{of}all"))
    with pytest.raises(ConcurrencyExceeded):
        reserve(limiter, key_of(f"{of}all"))
    paid = sum(entry["paid"] for entry in fleet.log())
    lives = 5 + WORKERS  # each may be killed between a claim and its line in the log
    assert paid <= charged(limiter, f"{of}all") // 10_000_000 <= paid + lives


def test_money_charged_by_killed_workers_survives_the_service_s_restart(fleet: Fleet, tmp_path: Path) -> None:
    for worker in range(WORKERS):
        fleet.start(worker, "all", 600.0)
    fleet.go()
    while sum(entry["paid"] for entry in fleet.log()) < 500:
        time.sleep(0.01)
    for worker in range(WORKERS):
        fleet.kill(worker)
    (tmp_path / "limits" / "lock").unlink()  # as its holder is this process, which goes on
    limiter = SharedLimiter(open_counters(tmp_path / "limits", 1), Settings())
    paid = sum(entry["paid"] for entry in fleet.log())
    assert paid <= charged(limiter, "all") // 10_000_000 <= paid + WORKERS
    assert not list((tmp_path / "limits").glob("counters.damaged-*"))


HOLD = """
import sys, time
from tests.limits.lab import key, reserve
from flowstack.limits.counters import Counters
from flowstack.limits.shared import SharedLimiter
from flowstack.config.settings import Settings
counters = Counters.attach(int(sys.argv[1]), 1)
plan = SharedLimiter(counters, Settings())._plans.make(key("k", max_parallel=1), "openai")
with counters.locked(plan.lock):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_worker_killed_while_it_holds_a_lock_locks_nobody_out(fleet: Fleet) -> None:
    fd = fleet.counters.fileno()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(fd)], cwd=ROOT, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    fleet.processes[1] = holder
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    limiter, limited = fleet.limiter(), key("k", max_parallel=1)
    held = reserve(limiter, limited)  # the first look takes no lock
    started = time.monotonic()
    waiting = os.fork()
    if not waiting:  # a refusal does; it waits for the holder, which this process kills meanwhile
        try:
            reserve(SharedLimiter(Counters.attach(fd, 2), Settings()), limited)
        except ConcurrencyExceeded:
            os._exit(7)
        os._exit(1)
    while os.waitpid(waiting, os.WNOHANG) == (0, 0) and time.monotonic() < started + 0.2:
        time.sleep(0.01)
    fleet.kill(1)
    assert os.waitstatus_to_exitcode(os.waitpid(waiting, 0)[1]) == 7
    limiter.settle(held, row())
    reserve(limiter, limited)


def test_workers_that_make_slots_at_once_make_one_for_each_key(fleet: Fleet) -> None:
    script = """
import sys
from tests.limits.lab import key, reserve
from flowstack.limits.counters import Counters
from flowstack.limits.shared import SharedLimiter
from flowstack.config.settings import Settings
limiter = SharedLimiter(Counters.attach(int(sys.argv[1]), int(sys.argv[2])), Settings())
for number in range(700):
    reserve(limiter, key(f"k{number}", rpm=4))
"""
    fd = fleet.counters.fileno()
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(fd), str(worker)], cwd=ROOT, pass_fds=[fd])
        for worker in range(WORKERS)
    ]
    assert [worker.wait(120) for worker in workers] == [0] * WORKERS
    assert fleet.counters.count == 700
