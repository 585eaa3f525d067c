"""A thousand mixed exchanges, and SIGKILL for workers, parent and indexer meanwhile: each answer has its one row.

What a client saw end by its framing must be in the journal, once, with the tokens that the upstream itself counted.
What it did not see end may be there or not, but not twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from flowstack.ledger.files import files
from flowstack.ledger.reader import read
from tests.e2e.live import live, until
from tests.e2e.mixed import KEYS, KINDS, POLL, Asked, Client, background, tag_of
from tests.e2e.processes import BIN, PATIENCE, Keystore, Process, StandIn, eventually, invoke, that_run, to_toml
from tests.e2e.test_workers import alive

pytestmark = pytest.mark.e2e

READY = r"flowstack listening on (http://127\.0\.0\.1:\d+)"
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
CLIENTS = 8


@define
class Service:
    """Flowstack as a supervisor runs it: the same command on the same port and state, again and again.

    :ivar orphans: workers whose parent was killed.
    """

    folder: Path
    upstream: str
    keys: dict[str, str] = field(factory=dict)
    port: int = 0
    process: Any = None
    orphans: list[int] = field(factory=list)
    logs: list[Path] = field(factory=list)
    _groups: list[int] = field(factory=list)
    _reserved: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        keystore = Keystore(self.folder / "keys")
        self.keys = {name: keystore.add(f"owner={name} {attributes}") for name, attributes in KEYS.items()}
        # Bound, so that nobody else gets the port between two starts, and never listened on.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.state.mkdir(0o700)
        server = {
            "listen": [f"tcp:{self.port}:interface=127.0.0.1"],
            "keys": str(keystore.path),
            "state": str(self.state),
            "workers": 2,
        }
        tables = {
            "server": server,
            "upstreams": {"openai": {"base_url": self.upstream}},
            "log": {"requests": "none"},
            "ledger": {"refusals_per_minute": 1_000_000},  # which each have a row here, as all others do
        }
        (self.folder / "flowstack.toml").write_text(to_toml(tables))

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.folder / "state"

    def start(self) -> None:
        """Start it; again where the port is still taken, as a supervisor does."""
        for attempt in range(100):
            self.logs.append(self.folder / f"{len(self.logs)}.log")
            command = [sys.executable, str(BIN / "twistd"), "-n", "--pidfile=", "flowstack", "-c", "flowstack.toml"]
            try:
                self.process = Process(command, log=self.logs[-1], ready=READY, cwd=self.folder)
            except AssertionError:
                if attempt == 99 or "Address already in use" not in self.logs[-1].read_text():
                    raise
            else:
                self._groups.append(self.process.pid)
                return

    def child(self, module: str) -> list[int]:
        """The ids of the children that run this module."""
        return that_run(self.process.pid, module)

    def kill_worker(self) -> None:
        """SIGKILL for one worker; the parent starts another."""
        os.kill(self.child("flowstack.process.worker")[0], signal.SIGKILL)

    def kill_indexer(self) -> None:
        """SIGKILL for the indexer, and its database is gone with it."""
        (pid,) = eventually(lambda: self.child("flowstack.process.indexer"), "an indexer runs")
        os.kill(pid, signal.SIGKILL)
        for path in self.state.glob("ledger.sqlite*"):
            path.unlink(missing_ok=True)  # another indexer may run by now, whose journal comes and goes

    def kill_all(self) -> None:
        """SIGKILL for the parent and whatever it started, as systemd does; then the next start."""
        self.process.kill()
        self.start()

    def kill_parent(self) -> None:
        """SIGKILL for the parent alone: its workers drain beside those of the next start."""
        self.orphans += self.child("flowstack.process.worker")
        self.process.signal(signal.SIGKILL)
        self.process.wait()
        self.start()

    def stop(self) -> None:
        """End it in order."""
        self.process.stop()

    def sweep(self) -> None:
        """Leave no process behind, whatever went wrong."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.process is not None:
            with suppress(ChildProcessError):
                self.process.kill()
        self._reserved.close()

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the journal. A line that a kill tore is none."""
        return [row for path in files(self.state / "ledger") for _, row in read(path) if row is not None]

    def usage(self) -> dict[str, Any]:
        """The total that ``flowstack usage`` reports."""
        done = invoke("flowstack", "usage", "--state", self.state, "--format", "json")
        assert done.returncode == 0, done.stderr
        total: dict[str, Any] = json.loads(done.stdout)["total"]
        return total


def mix() -> Iterator[str]:
    """Exchanges of all kinds, in an order that is the same in each run."""
    names, shuffle = list(KINDS), random.Random(4).shuffle
    while True:
        shuffle(names)
        yield from names


async def run(service: Service, most: int, blows: list[tuple[float, Callable[[], None]]]) -> list[Asked]:
    """Have so many exchanges, and let the blows fall meanwhile, each when such a share of them has been begun."""
    done: list[Asked] = []
    todo, numbers = mix(), count()
    clients = [Client(service.port, service.keys, done, numbers) for _ in range(CLIENTS)]

    async def work(client: Client) -> None:
        while len(done) < most:
            name = next(todo)
            await (background(client) if name == "background" else client.ask(KINDS[name]))
        client.close()

    async def strike() -> None:
        for share, blow in blows:
            due = partial(lambda least: len(done) >= least, share * most)
            await until(due, "exchanges are begun", 60)
            await asyncio.to_thread(blow)

    working: list[Awaitable[None]] = [work(client) for client in clients]
    await asyncio.gather(strike(), *working)
    return done


def records(upstream: StandIn, done: list[Asked]) -> dict[int, list[dict[str, Any]]]:
    """What the stand-in saw of each exchange."""
    found = defaultdict(list)
    for tag in {tag_of(asked.number) for asked in done}:
        for seen in upstream.seen(tag):
            found[int(dict(seen["headers"])["X-Exchange"])].append(seen)
    return found


def sums(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens, where there are any."""
    return {name: sum(row[name] or 0 for row in rows) for name in TOKENS}


def of_exchange(row: dict[str, Any]) -> int:
    """The number of the exchange that a row is about."""
    return int(row["attributes"]["exchange"])


def check(service: Service, upstream: StandIn, done: list[Asked]) -> None:
    """Everything that the ledger promises about these exchanges."""
    rows, seen = service.rows(), records(upstream, done)
    # Who is killed between such a row and the next step writes it again, with the same id.
    settled = list({row["request_id"]: row for row in rows if row["parent_request_id"]}.values())
    rows = [row for row in rows if not row["parent_request_id"]]
    ids = Counter(row["request_id"] for row in rows)
    assert max(ids.values()) == 1, "a row is there twice"
    assert max(Counter(map(of_exchange, rows)).values()) == 1, "an exchange has two rows"
    by_id = {row["request_id"]: row for row in rows}
    ended = [asked for asked in done if asked.ended]
    expected = dict.fromkeys(TOKENS, 0)
    theirs = []
    for asked in ended:
        row = by_id.get(asked.request_id or "")
        assert row is not None, f"no row: {asked}"
        theirs.append(row)
        assert (of_exchange(row), row["status"], row["error_code"]) == (asked.number, asked.status, asked.error)
        assert row["end"] in ("complete", "refused", "upstream_lost"), row
        if asked.kind.name == POLL:
            assert row["usage_source"] == "none", "who looks is not charged"
            continue
        counted = [record["usage"] for record in seen[asked.number] if record["usage"] is not None]
        assert len(counted) <= 1
        assert row["usage_source"] == ("upstream" if counted else "none"), (asked, row)
        for name in TOKENS:
            # An embedding has no output; the upstream says nothing of it, rather than 0.
            assert (row[name] or 0) == (counted[0][name] if counted else 0), (asked, row)
            expected[name] += counted[0][name] if counted else 0
        if asked.told is not None:
            assert asked.told["total_tokens"] == row["total_tokens"]
    assert sums([row for row in theirs if row["method"] == "POST"]) == expected
    check_jobs(settled, ended)
    # Whoever saw no end cannot have made the upstream count more than it did.
    total = dict.fromkeys(TOKENS, 0)
    for endpoint in upstream.state()["tokens"].values():
        for name in TOKENS:
            total[name] += endpoint[name]
    assert all(expected[name] <= sums(rows)[name] <= total[name] for name in TOKENS)


def check_jobs(rows: list[dict[str, Any]], ended: list[Asked]) -> None:
    """A background response that was seen finished is charged once, with what its text said."""
    charged = defaultdict(list)
    for row in rows:
        charged[row["attributes"]["job"]].append(row)
    finished = {asked.job: asked.told for asked in ended if asked.kind.name == POLL and asked.told is not None}
    assert finished
    for job, told in finished.items():
        (row,) = charged[job]
        assert told is not None
        assert (row["prompt_tokens"], row["completion_tokens"]) == (told["input_tokens"], told["output_tokens"])
    assert all(len(found) == 1 for found in charged.values())


def check_reports(service: Service) -> None:
    """``flowstack usage`` says the same as the journal, whatever became of the index."""
    rows, total = list({row["request_id"]: row for row in service.rows()}.values()), service.usage()
    assert total["requests"] == sum(row.get("requests", 1) for row in rows)
    assert {name: total[name] for name in TOKENS} == sums(rows)


async def thousand(service: Service, upstream: StandIn, most: int, rounds: int) -> None:
    """Exchanges, with each blow once in each round."""
    blows = [service.kill_worker, service.kill_all, service.kill_indexer, service.kill_parent]
    plan = [(0.9 * (number + 1) / (rounds * len(blows) + 1), blow) for number, blow in enumerate(blows * rounds)]
    done = await run(service, most, plan)
    await until(lambda: not any(map(alive, service.orphans)), "workers without a parent drain and end", PATIENCE)
    # What may only come after an end that no client saw: the rows of those who left.
    await asyncio.to_thread(service.stop)
    assert len(done) >= most
    ended = Counter(asked.kind.name for asked in done if asked.ended)
    for kind in (*KINDS, POLL):
        if kind not in ("cut", "closed", "left", "left early"):
            assert ended[kind], f"no {kind} was seen to its end"
    assert sum(ended.values()) > 0.6 * len(done)
    check(service, upstream, done)
    check_reports(service)
    for log in service.logs:
        assert "Traceback" not in log.read_text(), log.read_text()


@live
async def test_a_thousand_exchanges_have_their_rows_and_tokens_whoever_is_killed_meanwhile(tmp_path: Path) -> None:
    upstream = StandIn(tmp_path)
    service = Service(tmp_path, f"{upstream.url}/v1")
    try:
        await asyncio.to_thread(service.start)
        await thousand(service, upstream, 1000, 3)
    finally:
        service.sweep()
        upstream.stop()
