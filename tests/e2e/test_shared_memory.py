"""Two machines with one Redis: work in the background is charged once, to who began it, whichever of them is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from tests.e2e.crowd import crowd, journal, once
from tests.e2e.processes import PATIENCE, Proxy, StandIn, eventually
from tests.e2e.raw import Answer, assert_own_error, request
from tests.redis_server import RedisServer

pytestmark = pytest.mark.e2e

COST = 1.00125
DEAR = b"Stand-In: chunks=1; reasoning=99999"
BODY = orjson.dumps({
    "model": "gpt-5", "input": " ".join(["word"] * 1000), "background": True, "max_output_tokens": 1,
    "service_tier": "default",
})  # fmt: skip


@pytest.fixture
def machines(stand_in: StandIn, redis_server: RedisServer, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Any]:
    settings: dict[str, Any] = {"server": {"workers": 2}, "shared": {"redis": redis_server.url}}
    pair = [Proxy(tmp_path / name, f"{stand_in.url}/v1", settings=settings) for name in ("a", "b")]
    one, other = pair
    key = one.keystore.add("budget=1.00usd/month")
    other.keystore.tokens |= one.keystore.tokens
    other.keystore.replace(one.keys_path.read_text())
    for proxy in pair:
        assert proxy.reload()["fault"] is None
    yield one, other, key
    for proxy in pair:
        proxy.stop()


def ask(proxy: Proxy, key: str, line: bytes, body: bytes = b"", *fields: bytes) -> Answer:
    head = (b"Authorization: Bearer sk-any", b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    return once(proxy.port, request(key, line + b" HTTP/1.1", *head, *fields, body=body))


def test_work_that_one_machine_began_is_charged_once_by_whichever_is_asked(
    machines: Any, redis_client: redis.Redis
) -> None:
    one, other, key = machines

    def begun() -> Answer:
        return ask(one, key, b"POST /v1/responses", BODY, DEAR)

    eventually(lambda: ask(one, key, b"GET /v1/responses/resp_none").status != 503, "Redis answers", PATIENCE)
    eventually(lambda: ask(other, key, b"GET /v1/responses/resp_none").status != 503, "Redis answers", PATIENCE)
    first = begun()
    assert first.status == 200, first.body
    path = b"GET /v1/responses/" + orjson.loads(first.body)["id"].encode()

    def completed() -> bool:
        return bool(orjson.loads(ask(other, key, path).body)["status"] == "completed")

    eventually(completed, "the response is completed", PATIENCE)
    crowd(8, lambda number: ask(machines[number % 2], key, path))

    def rows() -> list[Any]:
        return [row for proxy in (one, other) for row in journal(proxy, key) if row["parent_request_id"]]

    eventually(rows, "it is settled", PATIENCE)
    (row,) = rows()
    assert row["cost_usd"] == pytest.approx(COST)
    assert row["parent_request_id"] == (first.one(b"flowstack-request-id") or b"").decode()
    for proxy in (one, other):
        refused = ask(proxy, key, b"POST /v1/responses", BODY, DEAR)
        assert_own_error(refused, 429, "flowstack_budget_exceeded")
    assert list((one.state_path / "open").iterdir()) == [], "who began it has seen that it was charged"
    reads: dict[bytes, Any] = {
        b"string": redis_client.get,
        b"hash": redis_client.hgetall,
        b"zset": lambda name: redis_client.zrange(name, 0, -1),
    }
    found = "".join(f"{name!r} {reads[redis_client.type(name)](name)!r}" for name in redis_client.scan_iter())
    assert "flowstack:work:" in found
    for secret in (key, key.removeprefix("fsk-")[12:], "sk-any"):
        assert secret not in found
