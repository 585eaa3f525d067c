"""``/metrics`` of two workers says what the ledger's rows say, over the wire, in both of Prometheus' formats."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from flowstack.ledger.files import files
from flowstack.ledger.reader import read
from tests.e2e.live import live
from tests.e2e.mixed import KEYS, KINDS, Asked, Client, background
from tests.e2e.processes import Proxy, StandIn, eventually, that_run
from tests.e2e.raw import Answer, request
from tests.e2e.raw import Client as Connection
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TOKEN = "a-token-of-the-tests-0123456789"


@frozen
class Scrape:
    """What one scrape said: each sample's value by its name and labels."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, families: Iterable[Metric]) -> Scrape:
        values: dict[Any, float] = {}
        for family in families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in values, f"twice: {key}"
                values[key] = sample.value
        return cls(values)

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by these labels; what was not counted is left out."""
        found: Counter[tuple[str, ...]] = Counter()
        for (other, pairs), value in self.values.items():
            if other == name:
                found[tuple(dict(pairs).get(label, "") for label in labels)] += value  # type: ignore[assignment]
        return {key: value for key, value in found.items() if value}

    def sum(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels."""
        wanted = labels.items()
        return sum(value for (other, found), value in self.values.items() if other == name and wanted <= set(found))

    def counters(self) -> dict[Any, float]:
        """All that may never go down."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.values.items() if key[0].endswith(ends) and "process_" not in key[0]}


@contextmanager
def running(folder: Path, stand_in: StandIn, **settings: Any) -> Iterator[Proxy]:
    """A proxy with two workers."""
    tables = {
        "server": {"workers": 2, "admin": "tcp:0:interface=127.0.0.1"},
        "log": {"requests": "none"},
        **settings,
    }
    proxy = Proxy(folder, f"{stand_in.url}/v1", settings=tables)
    try:
        yield proxy
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
    assert "Traceback" not in proxy.log_text(), proxy.log_text()


def get(proxy: Proxy, path: str, *fields: str, method: str = "GET") -> Answer:
    """Ask the admin listener."""
    with Connection(admin_port(proxy)) as client:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""])
        return client.ask(head.encode(), method=method)


def scrape(proxy: Proxy) -> Scrape:
    """The metrics as text; the same as OpenMetrics has them."""
    text = get(proxy, "/metrics")
    assert (text.status, (text.one(b"content-type") or b"").partition(b";")[0]) == (200, b"text/plain")
    return Scrape.of(plain_text(text.body.decode()))


def rows_of(proxy: Proxy) -> list[dict[str, Any]]:
    return [row for path in files(proxy.state_path / "ledger") for _, row in read(path) if row is not None]


def requests_of(proxy: Proxy) -> list[dict[str, Any]]:
    """The rows but for those that settle what an earlier request began."""
    return [row for row in rows_of(proxy) if row.get("requests") != 0]


async def traffic(proxy: Proxy, keys: dict[str, str], times: int) -> list[Asked]:
    """Every kind of exchange, some times, from several connections; returns when each has its row."""
    before, numbers = len(requests_of(proxy)), count()
    done: list[Asked] = []

    async def work(client: Client) -> None:
        for kind in KINDS.values():
            await (background(client) if kind.name == "background" else client.ask(kind))
        client.close()

    await asyncio.gather(*(work(Client(proxy.port, keys, done, numbers)) for _ in range(times)))
    await asyncio.to_thread(eventually, lambda: len(requests_of(proxy)) - before >= len(done), "each has its row")
    rows = len(requests_of(proxy))
    assert rows - before == len(done)
    # A worker writes a row and then counts it.
    await asyncio.to_thread(eventually, lambda: scrape(proxy).sum("flowstack_requests_total") == rows, "all count")
    return done


def assert_equal(found: Scrape, rows: list[dict[str, Any]]) -> None:
    """The metrics are those of the rows."""

    def total(name: str, among: list[dict[str, Any]] = rows) -> float:
        return sum(row[name] or 0 for row in among)

    requests = [row for row in rows if row.get("requests") != 0]
    counted = Counter((row["upstream"] or "", str(row["status"] or ""), row["end"]) for row in requests)
    assert found.by("flowstack_requests_total", "upstream", "status", "end") == counted
    assert found.sum("gen_ai_server_request_duration_seconds_count") == len(requests)
    assert found.sum("gen_ai_server_request_duration_seconds_sum") == pytest.approx(total("duration_ms") / 1000)
    assert found.sum("flowstack_overhead_seconds_sum") == pytest.approx(total("overhead_ms") / 1000)
    for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        known = [row[name] for row in rows if row[name] is not None]
        assert found.sum("gen_ai_client_token_usage_sum", gen_ai_token_type=kind) == sum(known)
        assert found.sum("gen_ai_client_token_usage_count", gen_ai_token_type=kind) == len(known)
        by_model = Counter[str]()
        for row in rows:
            by_model[row["model"] or ""] += row[name] or 0
        metrics = found.by("gen_ai_client_token_usage_sum", "gen_ai_token_type", "gen_ai_response_model")
        assert {model: value for (token_type, model), value in metrics.items() if token_type == kind} == +by_model
    assert found.sum("flowstack_cached_tokens_total") == total("cached_tokens") > 0
    assert found.sum("flowstack_reasoning_tokens_total") == total("reasoning_tokens") > 0
    assert found.sum("flowstack_cost_usd_total") == pytest.approx(total("cost_usd"))
    assert total("cost_usd") > 0
    assert found.sum("flowstack_request_body_bytes_total") == total("bytes_in")
    assert found.sum("flowstack_response_body_bytes_total") == total("bytes_out")
    refused = Counter((row["error_code"],) for row in rows if row["error_code"])
    assert found.by("flowstack_refusals_total", "code") == refused
    streams = [row for row in rows if row["stream"] and row["first_byte_ms"] is not None and row["status"] == 200]
    assert found.sum("gen_ai_server_time_to_first_token_seconds_count") == len(streams)


@live
async def test_two_workers_metrics_equal_the_rows_in_both_formats(stand_in: StandIn, tmp_path: Path) -> None:
    with running(tmp_path / "proxy", stand_in) as proxy:
        keys = {name: proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
        await asyncio.to_thread(proxy.reload)
        await traffic(proxy, keys, 3)
        for _ in range(5):
            with Connection(proxy.port) as client:
                assert client.ask(request("fsk-nobody")).status == 401
        rows = rows_of(proxy)
        found = await asyncio.to_thread(scrape, proxy)
        assert_equal(found, rows)
        assert found.sum("flowstack_unauthenticated_requests_total", code="invalid_flowstack_key") == 5
        assert found.sum("flowstack_keystore_keys") == 4
        assert found.sum("flowstack_keystore_generation") == 2
        assert found.by("flowstack_keystore_reloads_total", "outcome") == {("ok",): 1}
        assert found.by("flowstack_workers", "state") == {("ready",): 2}
        assert found.sum("flowstack_ledger_lost_rows_total") == found.sum("flowstack_ledger_queued_bytes") == 0
        eventually(lambda: not scrape(proxy).sum("flowstack_requests_in_flight"), "nothing is under way")
        eventually(lambda: scrape(proxy).sum("flowstack_ledger_lag_bytes") == 0, "the index has all rows")
        named = {process for (process,) in found.by("process_resident_memory_bytes", "process")}
        assert named == {"parent", "worker 0", "worker 1"}

        other = get(proxy, "/metrics", f"Accept: {OPENMETRICS}")
        assert (other.one(b"content-type") or b"").startswith(b"application/openmetrics-text")
        families = openmetrics(other.body.decode())  # type: ignore[no-untyped-call]
        assert_equal(Scrape.of(families), rows)
        head = get(proxy, "/metrics", method="HEAD")
        assert (head.status, head.body) == (200, b"")


@live
async def test_no_counter_goes_down_when_a_worker_is_killed_and_its_successor_counts_on(
    stand_in: StandIn, tmp_path: Path
) -> None:
    with running(tmp_path / "proxy", stand_in) as proxy:
        keys = {name: proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
        await asyncio.to_thread(proxy.reload)
        await traffic(proxy, keys, 3)
        before = scrape(proxy)
        for worker in workers(proxy):
            await asyncio.to_thread(replaced, proxy, worker)
            after = scrape(proxy).counters()
            assert [key for key, value in before.counters().items() if after.get(key, 0) < value] == []
        assert scrape(proxy).sum("flowstack_worker_restarts_total") == 2
        await traffic(proxy, keys, 2)
        assert_equal(scrape(proxy), rows_of(proxy))


def workers(proxy: Proxy) -> list[int]:
    """The workers' process ids."""
    return that_run(proxy.pid, "flowstack.process.worker")


def replaced(proxy: Proxy, worker: int) -> None:
    """Kill a worker, and wait until another is ready in its place."""
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: worker not in workers(proxy) and len(workers(proxy)) == 2, "another is started")
    eventually(lambda: scrape(proxy).by("flowstack_workers", "state") == {("ready",): 2}, "it is ready")


def test_the_token_guards_the_metrics_and_not_the_health(stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN + "\n")
    with running(tmp_path / "proxy", stand_in, admin={"token_file": str(path)}) as proxy:
        for health in ("/healthz", "/readyz"):
            assert (get(proxy, health).status, get(proxy, health).body) == (200, b"ok\n")
        for fields in ((), ("Authorization: Bearer wrong-token-0123456789",), (f"Authorization: Basic {TOKEN}",)):
            refused = get(proxy, "/metrics", *fields)
            assert refused.status == 401
            assert b"flowstack_requests" not in refused.body
            assert (refused.one(b"www-authenticate") or b"").startswith(b"Bearer")
        assert b"flowstack_requests" in get(proxy, "/metrics", f"Authorization: Bearer {TOKEN}").body
        path.write_text(TOKEN[::-1])
        proxy.reload()
        assert get(proxy, "/metrics", f"Authorization: Bearer {TOKEN}").status == 401
        assert get(proxy, "/metrics", f"Authorization: bearer {TOKEN[::-1]}").status == 200
        assert TOKEN not in proxy.log_text()
