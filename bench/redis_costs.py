"""``python -m bench.redis_costs``: what the limits of several machines cost Redis, and what a row weighs.

The true functions in a server on a core of its own; what is sent are the commands as a worker packs them, so many in
one write, from another core. CPU is the server's own; a second's calls are those of the whole core divided by it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import click
import hiredis
import redis

from bench.journal import journal
from bench.machine import commit, describe
from bench.procs import ROOT, Cores, cpu_ns
from flowstack.config.settings import Settings, Shared
from flowstack.keys import Budget, Key
from flowstack.ledger.row import BLANK
from flowstack.limits.link import Link, library
from flowstack.limits.remote import RemoteLimiter
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from tests.redis_server import RedisServer

MONTH_ENDS = b"4102444800000"
BIG = b"1000000000000"

LIMITED = Key(id="a", digest=b"", rpm=10**9, tpm=10**12, max_parallel=10**6, budget=Budget(Decimal(10**6), "month"))


WORKER = b"machine/0/0123456789abcdef"
WORKERS = WORKER, b"machine-a/0/0123456789abcdef", b"machine-b/0/0123456789abcdef"

Command = tuple[bytes, ...]


def _limits(name: bytes) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Of each limit: Redis' key, and the words of take and give."""
    key = b"flowstack:{" + name + b"}::"
    bucket = int(time.time()) // 2
    return {
        "rpm": (key + b"r", b"r0" + BIG, b""),
        "max_parallel": (key + b"p", b"p0" + BIG, b"p"),
        "tpm": (key + b"t", b"t0" + BIG, b"t-300 %d" % bucket),
        "budget": (key + b"m:20000005f30", b"m0%b:%b" % (BIG * 2, MONTH_ENDS), b"m500000 2000000 1 " + MONTH_ENDS),
    }


def _commands(names: Sequence[str], key: bytes, worker: bytes) -> tuple[Command, Command | None]:
    """Take of some limits, and settle."""
    limits = _limits(key)
    prefix = library()[0].encode()
    chosen = [limits[name] for name in names]
    take = (b"FCALL", prefix + b"_take", b"%d" % len(chosen), *(one[0] for one in chosen), worker, b"1")
    take += (b"400", b"2000000", b"-1", *(one[1] for one in chosen))
    settled = [one for one in chosen if one[2]]
    if not settled:
        return take, None
    give = (b"FCALL", prefix + b"_give", b"%d" % len(settled), *(one[0] for one in settled), worker, b"1")
    give += tuple(one[2] for one in settled)
    return take, give


class Server:
    """A Redis on the subject's core, and a connection to it."""

    def __init__(self, folder: Path, cores: Cores, *options: str) -> None:
        self._redis = RedisServer(folder, *options).start()
        os.sched_setaffinity(self._redis.pid, cores.subject)
        for task in os.listdir(f"/proc/{self._redis.pid}/task"):
            os.sched_setaffinity(int(task), cores.subject)
        self.client = self._redis.client()
        self.client.execute_command("FUNCTION", "LOAD", library()[1])
        self.know_workers()
        self.port = self._redis.port
        self._sock = socket.create_connection(("127.0.0.1", self.port))
        self._reader = hiredis.Reader()

    def know_workers(self) -> None:
        for worker in WORKERS:
            self.client.fcall(f"{library()[0]}_alive", 0, worker, 1, 86_400_000_000, 1)

    def cpu(self) -> int:
        return cpu_ns([self._redis.pid])

    def ask(self, data: bytes, answers: int) -> int:
        """Send, and wait for all answers; their bytes."""
        self._sock.sendall(data)
        size = 0
        while answers:
            got = self._sock.recv(1 << 18)
            size += len(got)
            self._reader.feed(got)
            while (answer := self._reader.gets()) is not False:
                if isinstance(answer, Exception) or isinstance(answer[-1], list):
                    raise answer if isinstance(answer, Exception) else ValueError(f"refused: {answer}")
                answers -= 1
        return size

    def stop(self) -> None:
        self._sock.close()
        self.client.close()
        self._redis.stop()


def _functions(server: Server, seconds: float, together: Sequence[int]) -> None:
    """CPU of a call, by limits and by how many come in one write."""
    click.echo(f"{'limits':32}{'in one write':>13}{'µs a call':>11}{'calls/s':>9}{'bytes to':>10}{'bytes from':>11}")
    kinds: dict[str, tuple[str, ...]] = {name: (name,) for name in ("rpm", "max_parallel", "tpm", "budget")}
    kinds["rpm, tpm, max_parallel"] = ("rpm", "tpm", "max_parallel")
    kinds["all four"] = ("rpm", "max_parallel", "tpm", "budget")
    for title, names in kinds.items():
        for count in together:
            pairs = [_commands(names, b"key%08d" % number, WORKER) for number in range(count)]
            for what, at in (("take", 0), ("settle", 1)):
                some = [pair[at] for pair in pairs if pair[at] is not None]
                if not some or (count != together[-1] and len(names) != 4):
                    continue
                data = b"".join(hiredis.pack_command(one) for one in some if one is not None)
                server.ask(data, len(some))
                calls, sent, cpu, ends = 0, 0, server.cpu(), time.perf_counter() + seconds
                while time.perf_counter() < ends:
                    sent += server.ask(data, len(some))
                    calls += len(some)
                each = (server.cpu() - cpu) / calls
                click.echo(
                    f"{what + ': ' + title:32}{len(some):>13}{each / 1000:>11.1f}{1e9 / each:>9,.0f}"
                    f"{len(data) / len(some):>10.0f}{sent / calls:>11.0f}"
                )


def _crowd(server: Server, seconds: float) -> None:
    """A key that so many workers have requests of in flight."""
    click.echo()
    take, _ = _commands(("max_parallel",), b"crowd", b"machine/0/0123456789abcdef")
    for workers in (2, 16, 128, 512):
        server.client.delete(take[3])
        server.client.hset(take[3].decode(), mapping={f"machine-{at}/0/0123456789abcdef": 1 for at in range(workers)})
        data = hiredis.pack_command(take) * 50
        calls, cpu, ends = 0, server.cpu(), time.perf_counter() + seconds
        while time.perf_counter() < ends:
            server.ask(data, 50)
            calls += 50
        each = (server.cpu() - cpu) / calls
        title = f"take: max_parallel, {workers} workers"
        click.echo(f"{title:32}{50:>13}{each / 1000:>11.1f}{1e9 / each:>9,.0f}")


def _memory(server: Server, keys: int) -> None:
    """Bytes that Redis holds for a key's limits, whose windows are full, and for a worker in flight."""
    server.client.flushall()
    server.know_workers()
    server.client.config_resetstat()

    def used() -> int:
        return int(server.client.info("memory")["used_memory"])

    click.echo(f"\n{keys:,} keys with all four limits, each in use by two workers")
    before = used()
    for worker in WORKERS[1:]:
        for first in range(0, keys, 500):
            some = [_commands(("rpm", "max_parallel", "tpm", "budget"), b"key%08d" % number, worker)[0]
                    for number in range(first, min(first + 500, keys))]  # fmt: skip
            server.ask(b"".join(hiredis.pack_command(one) for one in some), len(some))
    click.echo(f"{(used() - before) / keys:,.0f} bytes a key, its windows with one bucket")
    # What a minute of use leaves in a window: all 31 buckets.
    for name in _limits(b"key00000000"):
        found = server.client.memory_usage(_limits(b"key00000000")[name][0], samples=0)
        click.echo(f"  {name:14}{found:>7} bytes")
    full = b"flowstack:{full}::t"
    server.client.hset(full, mapping={"b": 900_000_000, "t": 31_000, **{str(at): 1000 + at for at in range(31)}})
    click.echo(f"  {'a full window':14}{server.client.memory_usage(full, samples=0):>7} bytes")
    before = used()
    others = [socket.create_connection(server._sock.getpeername()) for _ in range(500)]
    server.client.ping()
    deadline = time.monotonic() + 10
    while int(server.client.info("clients")["connected_clients"]) < 502 and time.monotonic() < deadline:
        time.sleep(0.01)
    click.echo(f"{(used() - before) / len(others):,.0f} bytes a connection that only stands")
    for one in others:
        one.close()
    click.echo(f"{_of_worker(server.client):,.0f} bytes a worker that is alive")


def _of_worker(client: redis.Redis) -> float:
    before = int(client.info("memory")["used_memory"])
    for number in range(1000):
        client.fcall(f"{library()[0]}_alive", 0, f"machine-{number}/0/0123456789abcdef", 1, 20_000_000, 1)
    return (int(client.info("memory")["used_memory"]) - before) / 1000


def _durable(folder: Path, cores: Cores, seconds: float) -> None:
    """The same with an append-only file, written to the disk each second, as the manual advises."""
    server = Server(folder, cores, "appendonly yes", "appendfsync everysec", "auto-aof-rewrite-percentage 0")
    try:
        click.echo("\nwith appendonly yes, appendfsync everysec")
        names = ("rpm", "max_parallel", "tpm", "budget")
        pairs = [_commands(names, b"key%08d" % number, WORKER) for number in range(50)]
        file = sum(one.stat().st_size for one in folder.glob("appendonlydir/*.incr.aof"))
        for what, at in (("take", 0), ("settle", 1)):
            some = [one for pair in pairs if (one := pair[at]) is not None]
            data = b"".join(hiredis.pack_command(one) for one in some)
            calls, cpu, ends = 0, server.cpu(), time.perf_counter() + seconds
            while time.perf_counter() < ends:
                server.ask(data, len(some))
                calls += len(some)
            each = (server.cpu() - cpu) / calls
            size = sum(one.stat().st_size for one in folder.glob("appendonlydir/*.incr.aof"))
            click.echo(f"{what + ': all four':32}{50:>13}{each / 1000:>11.1f}{1e9 / each:>9,.0f}"
                       f"   {(size - file) / calls:,.0f} bytes a call in the file")  # fmt: skip
            file = size
    finally:
        server.stop()


def _worker(folder: Path, cores: Cores, seconds: float) -> None:
    """CPU of a worker for each request that is held to all four limits in Redis; so many begin and end in each turn."""
    from flowstack.transport.uv import install

    install()
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    server = Server(folder, cores)
    shared = Shared(redis=f"redis://127.0.0.1:{server.port}/0")
    link = Link(shared, reactor, WORKER, time.time, time.monotonic, random.uniform)
    mirror = SharedLimiter(open_counters(None, 1), Settings(), link.clock, link.clock)
    limiter = RemoteLimiter(link, mirror, None, 1.0, Settings())
    plan = limiter.plan(LIMITED, "openai")
    assert plan is not None
    row = cast(Any, BLANK | {"started_at": datetime.now(UTC), "usage_source": "upstream", "total_tokens": 100,
                             "cost_usd": 0.001, "status": 200})  # fmt: skip
    sizes, found = [1, 10, 50], []
    failures: list[Any] = []
    state = {"done": 0, "ends": 0.0, "cpu": 0.0}

    def begin() -> None:
        if not link.up:
            reactor.callLater(0.01, begin)
            return
        if not sizes:
            stopped = link.stop()
            assert stopped is not None
            stopped.addBoth(lambda _: reactor.stop())
            return
        state.update(done=0, ends=time.perf_counter() + seconds, cpu=time.process_time())
        turn(sizes.pop(0))

    def turn(count: int) -> None:
        if time.perf_counter() > state["ends"]:
            found.append((count, 1e6 * (time.process_time() - state["cpu"]) / state["done"]))
            begin()
            return
        left = [count]

        def passed(reservation: Any) -> None:
            limiter.settle(reservation, row)
            left[0] -= 1
            if not left[0]:
                state["done"] += count
                reactor.callLater(0, turn, count)

        def failed(failure: Any) -> None:
            if not failures:
                reactor.stop()
            failures.append(failure)

        for _ in range(count):
            taken: Any = limiter.reserve(plan, 400, 0.002)
            taken.addCallbacks(passed, failed)

    reactor.callWhenRunning(link.start)
    reactor.callWhenRunning(begin)
    reactor.run()
    server.stop()
    if failures:
        failures[0].raiseException()
    local = SharedLimiter(open_counters(None, 1), Settings())
    plan_here = local.plan(LIMITED, "openai")
    assert plan_here is not None
    cpu, done, ends = time.process_time(), 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        for _ in range(100):
            local.settle(local.reserve(plan_here, 400, 0.002), row)
        done += 100
    click.echo("\nCPU of a worker, µs a request (reserve and settle, all four limits)")
    click.echo(f"{'counted by this machine':32}{'':13}{1e6 * (time.process_time() - cpu) / done:>11.1f}")
    for count, each in found:
        click.echo(f"{'counted in Redis':32}{count:>13}{each:>11.1f}")


@click.command()
@click.option("--seconds", type=float, default=3.0, show_default=True, help="For each line.")
@click.option("--keys", type=int, default=10_000, show_default=True, help="Whose memory is weighed.")
def main(seconds: float, keys: int) -> None:
    """Print what the functions cost, what they keep, and what a row of the journal weighs."""
    cores = Cores.of_this_machine()
    machine = describe(cores)
    os.sched_setaffinity(0, cores.load)
    with tempfile.TemporaryDirectory(prefix="flowstack-redis-") as folder:
        server = Server(Path(folder) / "redis", cores)
        try:
            click.echo(
                f"{time.strftime('%Y-%m-%d')}, {machine['processor']}, {machine['cores']} cores"
                f"{' (virtual)' if machine['virtual'] else ''}, {machine['system']}, "
                f"Redis {server.client.info('server')['redis_version']}, commit {commit(ROOT)}"
            )
            _functions(server, seconds, (1, 10, 50))
            _crowd(server, seconds)
            _memory(server, keys)
        finally:
            server.stop()
        _durable(Path(folder) / "durable", cores, seconds)
        _worker(Path(folder) / "worker", cores, seconds)
    lines = [len(line) for _, day in journal(100_000, 1) for line in day]
    click.echo(f"\n{sum(lines) / len(lines):,.0f} bytes a row in the journal, of {len(lines):,} made up")


if __name__ == "__main__":
    sys.exit(main())
