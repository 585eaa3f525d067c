"""What of a key's limits outlives a worker, a restart and SIGKILL, and the limits that stand for keys without any."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import orjson
import pytest

from tests.e2e.crowd import STREAM, Gauge, chat, chunk, codes, cost, journal, once
from tests.e2e.processes import Proxy, eventually, that_run
from tests.e2e.raw import Client, assert_own_error, request
from tests.e2e.raw_upstream import Front, Seen, front, upstream
from tests.e2e.test_workers import served_by

pytestmark = pytest.mark.e2e

BUDGET = "budget=0.012usd/total"


def workers_of(proxy: Proxy) -> list[int]:
    """The process ids of the workers, which are not the proxy's only children."""
    return that_run(proxy.pid, "flowstack.process.worker")


def hold(seen: Seen) -> None:
    """Begin a stream, and send no more until the other side leaves."""
    seen.read_body()
    seen.link.offer(STREAM + chunk(b"data: x\n\n"))
    seen.link.to_the_end()


def begin(ends: Front, stack: ExitStack, key: str) -> Client | None:
    """Begin a stream that lasts; None where a limit does not let it."""
    client = stack.enter_context(ends.client())
    client.send(chat(key, stream=True))
    if client.head()[1].startswith(b"HTTP/1.1 200"):
        client.until(b"data: x")
        return client
    return None


def test_a_killed_worker_gives_back_what_it_had_under_way_and_nothing_else(tmp_path: Path) -> None:
    with front(tmp_path, base="/v1", server={"workers": 2}) as ends, ExitStack() as stack:
        key = ends.proxy.keystore.add("max_parallel=6")
        assert ends.proxy.reload()["fault"] is None
        ends.upstream.script = hold
        held = [client for _ in range(6) if (client := begin(ends, stack, key))]
        assert len(held) == 6
        assert begin(ends, stack, key) is None
        served = served_by(ends.proxy.port, workers_of(ends.proxy))
        first = served[held[0].sock.getsockname()[1]]
        lost = [client for client in held if served[client.sock.getsockname()[1]] == first]
        others = set(workers_of(ends.proxy)) - {first}
        os.kill(first, signal.SIGKILL)
        for client in lost:
            client.to_the_end()
        eventually(lambda: len(workers_of(ends.proxy)) == 2 and first not in workers_of(ends.proxy), "a new worker")
        assert others <= set(workers_of(ends.proxy))
        again = [begin(ends, stack, key) for _ in range(len(lost) + 2)]
        assert [client is None for client in again] == [False] * len(lost) + [True, True]


def restart(
    proxy: Proxy,
    token: str,
    attributes: str,
    workers: int,
    groups: Mapping[str, str] = MappingProxyType({}),
) -> Proxy:
    """Start another proxy with the same state, and the same key and groups."""
    upstream = orjson.loads(proxy.config_path.read_text().split("base_url = ")[1].split("\n")[0])
    settings = {"server": {"workers": workers}}
    proxy.log_path.rename(proxy.log_path.with_name(f"ended-{proxy.pid}.log"))
    fresh = Proxy(proxy.folder, upstream, settings=settings)
    for name, limits in groups.items():
        fresh.keystore.group(name, limits)
    fresh.keystore.put(token[4:16], token, attributes)
    assert fresh.reload()["fault"] is None
    return fresh


def test_what_was_spent_of_a_budget_outlives_a_restart_sigkill_and_another_number_of_workers(tmp_path: Path) -> None:
    with upstream() as behind, ExitStack() as stack:
        settings = {"server": {"workers": 2}}
        proxy = Proxy(tmp_path, f"http://127.0.0.1:{behind.port}/v1", settings=settings)
        stack.callback(lambda: proxy.kill())
        token = proxy.keystore.add(BUDGET)
        assert proxy.reload()["fault"] is None
        behind.script = Gauge().script(0, 100)
        raw = chat(token, max_completion_tokens=100)
        assert [once(proxy.port, raw).status for _ in range(4)] == [200] * 4
        proxy.stop()
        proxy = restart(proxy, token, BUDGET, workers=2)
        assert [once(proxy.port, raw).status for _ in range(2)] == [200] * 2
        # One more is under way when all of them are killed: it was charged when it was let in.
        behind.script = hold
        with Client(proxy.port) as client:
            client.send(chat(token, stream=True, max_completion_tokens=200))
            client.until(b"data: x")
            proxy.kill()
        proxy = restart(proxy, token, BUDGET, workers=1)
        behind.script = Gauge().script(0, 100)
        answers = [once(proxy.port, raw) for _ in range(4)]
        assert codes(answers) == ["200", *["flowstack_budget_exceeded"] * 3]
        spent = sum(row["cost_usd"] for row in journal(proxy, token) if row["cost_usd"] is not None)
        assert spent == pytest.approx(cost(0, 700))
        proxy.stop()


def test_a_damaged_file_of_counters_is_set_aside_loudly_and_nobody_is_locked_out(tmp_path: Path) -> None:
    with upstream() as behind, ExitStack() as stack:
        proxy = Proxy(tmp_path, f"http://127.0.0.1:{behind.port}/v1")
        stack.callback(lambda: proxy.kill())
        token = proxy.keystore.add(BUDGET)
        assert proxy.reload()["fault"] is None
        behind.script = Gauge().script(0, 100)
        assert once(proxy.port, chat(token, max_completion_tokens=100)).status == 200
        proxy.stop()
        counters = proxy.state_path / "limits" / "counters"
        counters.write_bytes(b"\xff" * counters.stat().st_size)
        proxy = restart(proxy, token, BUDGET, workers=1)
        assert once(proxy.port, chat(token, max_completion_tokens=100)).status == 200
        assert "are damaged" in proxy.log_text()
        assert [path.name for path in counters.parent.glob("*damaged*")] != []
        proxy.stop()


def test_the_limits_of_the_configuration_stand_for_keys_without_their_own(tmp_path: Path) -> None:
    with upstream() as other:
        settings = {
            "limits": {"rpm": 6, "max_parallel": 4},
            "upstreams": {
                "openai": {"default": True},
                "other": {
                    "base_url": f"http://127.0.0.1:{other.port}/v1",
                    "hosts": ["other.example"],
                    "default": False,
                    "limits": {"rpm": 3},
                },
            },
        }
        with front(tmp_path, base="/v1", server={"workers": 2}, **settings) as ends:
            own, second = ends.proxy.keystore.add("rpm=8"), ends.proxy.keystore.add()
            assert ends.proxy.reload()["fault"] is None
            ok = Gauge()
            ends.upstream.script = other.script = ok.script(1, 1)

            def burst(key: str, host: bytes, count: int = 10) -> Counter[str]:
                raw = chat(key).replace(b"Host: flowstack.example", b"Host: " + host)
                return Counter(codes(once(ends.proxy.port, raw) for _ in range(count)))

            refused = "flowstack_rate_limit_exceeded"
            assert burst(ends.proxy.key, b"openai.example") == {"200": 6, refused: 4}
            assert burst(ends.proxy.key, b"other.example") == {"200": 3, refused: 7}, "the upstream's counts by itself"
            assert burst(own, b"other.example", 5) + burst(own, b"openai.example", 5) == {"200": 8, refused: 2}, (
                "a key's own counts all of its requests"
            )
            answer = once(ends.proxy.port, request(ends.proxy.key))
            assert_own_error(answer, 429, refused)
            ends.upstream.script = hold
            with ExitStack() as stack:
                assert [begin(ends, stack, second) is None for _ in range(5)] == [False] * 4 + [True]
