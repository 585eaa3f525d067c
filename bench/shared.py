"""``python -m bench.shared``: what limits cost that several machines count in one Redis, beside those of one machine.

The same Flowstack with the same limits, once with counters of its own and once with a Redis on loopback, by turns: each
turn is a pair, and the figures are medians over pairs. The Redis has its core in common with the load, as other
machines would be its clients; Flowstack has one of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median

import click
from attrs import evolve

from bench import machine, provision, wrk
from bench.lab import Lab, Running, ask
from bench.measures.requests import measure_requests
from bench.procs import ROOT, BenchError, Child, cpu_ns, running
from bench.scale import FULL, Scale
from bench.subjects.flowstack import LIMITS, Flowstack
from flowstack.keys import make_token
from tests.ports import free_port

LOCAL, SHARED = "local counters", "counted in Redis"
CASES = (("plain", 1), ("plain", 32), ("fast", 32))
FIGURES = {
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "all_us": "CPU µs a request, all of Flowstack's processes",
    "cpu_us": "  of it on the request's way",
    "core_share": "cores used",
}
PINGS = 2000


@contextlib.contextmanager
def redis_server(lab: Lab) -> Iterator[tuple[Child, int]]:
    """A Redis as the manual has it, and its port."""
    port, directory = free_port(), lab.directory / "redis"
    directory.mkdir()
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction")
    argv = (
        provision.debian("redis-server", "redis-server"),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", directory, *options),
    )
    with running("redis", argv, cores=lab.cores.load, log=lab.directory / "redis.log") as child:
        deadline = time.monotonic() + 10
        while True:
            try:
                round_trips(port, 1)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchError(f"Redis did not start:\n{child.tail()}") from None
                time.sleep(0.02)
        yield child, port


SPARE = 4
"""Pairs that may fail beside as many as were asked for."""


def round_trips(port: int, count: int) -> list[float]:
    """How long ``PING`` takes a client that does nothing else, in µs."""
    found = []
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begun = time.perf_counter_ns()
            sock.sendall(b"PING\r\n")
            if sock.recv(64) != b"+PONG\r\n":
                raise OSError("no answer")
            found.append((time.perf_counter_ns() - begun) / 1000)
    return found


def awake(subject: Running) -> None:
    """Return when it serves: one that stood still for long connects to its Redis anew."""
    deadline, good = time.monotonic() + 10, 0
    while good < 20:
        good = good + 1 if ask(subject.port, subject.headers)[0] == 200 else 0
        if time.monotonic() > deadline:
            raise BenchError(f"{subject.name} does not serve")


def pair(
    lab: Lab, subjects: Sequence[Running], redis: Child, upstream: str, connections: int, scale: Scale
) -> dict[str, dict[str, float]]:
    """Measure each once, in this order."""
    found = {}
    for subject in subjects:
        with subject.turn():
            awake(subject)
            before, came = cpu_ns([redis.pid]), lab.upstream_requests(upstream)
            found[subject.name] = measure_requests(lab, subject, connections, scale)
            spent = cpu_ns([redis.pid]) - before
            found[subject.name]["redis_us"] = spent / 1000 / (lab.upstream_requests(upstream) - came)
    return found


def show(upstream: str, connections: int, pairs: Sequence[dict[str, dict[str, float]]]) -> None:
    """Print the medians, and between which values the pairs lie."""
    click.echo(f"\n{upstream} upstream, {connections} conn., {len(pairs)} pairs")
    click.echo(f"  {'':50}{'local':>9}{'Redis':>9}{'more':>9}{'least':>9}{'most':>9}{'ratio':>8}")
    for name, title in FIGURES.items():
        local, shared = ([one[which][name] for one in pairs] for which in (LOCAL, SHARED))
        more = [there - here for here, there in zip(local, shared, strict=True)]
        ratio = median(there / here for here, there in zip(local, shared, strict=True))
        digits = 2 if name == "core_share" else 1
        figures = (median(local), median(shared), median(more), min(more), max(more))
        click.echo(f"  {title:50}" + "".join(f"{one:>9.{digits}f}" for one in figures) + f"{ratio:>8.2f}")
    redis = [one[SHARED]["redis_us"] for one in pairs]
    click.echo(f"  {'CPU µs a request, Redis':50}{'':9}{median(redis):>9.1f}{'':9}{min(redis):>9.1f}{max(redis):>9.1f}")


@click.command()
@click.option("--pairs", "count", type=click.IntRange(1), default=7, show_default=True, help="Of each case.")
@click.option("--seconds", type=click.IntRange(2), default=4, show_default=True, help="Of load, each time.")
@click.option("--cases", type=click.IntRange(1, len(CASES)), default=len(CASES), help="How many of them.")
def main(count: int, seconds: int, cases: int) -> None:
    """Print what a limited request costs with local counters and with a Redis, and the differences."""
    scale = evolve(FULL, http_seconds=seconds)
    try:
        wrk.install()
        with Lab(make_token(os.urandom)[1]) as lab, redis_server(lab) as (redis, port):
            about = machine.describe(lab.cores)
            click.echo(
                f"{about['processor']}, {about['cores']} cores, Python {about['python']}, {machine.commit(ROOT)}"
            )
            os.sched_setaffinity(0, lab.cores.load)
            shared = Flowstack(SHARED, attributes=LIMITS, more=f'[shared]\nredis = "redis://127.0.0.1:{port}/0"')
            for upstream, connections in CASES[:cases]:
                with contextlib.ExitStack() as stack:
                    subjects = []
                    for subject in (Flowstack(LOCAL, attributes=LIMITS), shared):
                        subjects.append(stack.enter_context(lab.start(subject, upstream)))
                        subjects[-1].pause()
                    click.echo(f"others use {machine.others_busy(1.0):.2f} cores", err=True)
                    times = round_trips(port, PINGS)
                    found, failed = [], 0
                    while len(found) < count:
                        order = subjects if len(found) % 2 == 0 else subjects[::-1]
                        try:
                            found.append(pair(lab, order, redis, upstream, connections, scale))
                        except BenchError as fault:  # where others keep Redis from its core for 100 ms
                            failed += 1
                            click.echo(str(fault), err=True)
                            if failed > count + SPARE:
                                raise
                    show(upstream, connections, found)
                    click.echo(
                        f"  a round trip of PING: {median(times):.0f} µs; pairs left out as one failed: {failed}"
                    )
    except BenchError as fault:
        raise click.ClickException(str(fault)) from None


if __name__ == "__main__":
    sys.exit(main())
