"""A group's limits hold for all its keys together, across workers and restarts, and its keys' holders can see them."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crowd import Gauge, chat, codes, cost, crowd, journal, once, writers
from tests.e2e.processes import Proxy
from tests.e2e.raw import Answer, assert_own_error, request
from tests.e2e.raw_upstream import front, upstream
from tests.e2e.test_keys_reload import reloaded
from tests.e2e.test_limits_outlive import restart

pytestmark = pytest.mark.e2e

GROUPS = {
    "parallel": "max_parallel=5",
    "rpm": "rpm=20",
    "tpm": "tpm=10000",
    "budget": "budget=0.01usd/total",
}


def told(port: int, key: str) -> dict[str, Any]:
    """What the key's holder is told."""
    answer = once(port, request(key, b"GET /flowstack/v1/key HTTP/1.1"))
    assert answer.status == 200, answer
    assert answer.one(b"cache-control") == b"no-store"
    value: dict[str, Any] = json.loads(answer.body)
    return value


def test_no_limit_of_a_group_is_exceeded_by_its_keys_together_across_workers(tmp_path: Path) -> None:
    with front(tmp_path, base="/v1", server={"workers": 2}) as ends:
        proxy = ends.proxy
        keys: dict[str, list[str]] = {}
        for name, attributes in GROUPS.items():
            proxy.keystore.group(name, attributes)
            keys[name] = [proxy.keystore.add(f"group={name} rpm=100000") for _ in range(4)]
        assert proxy.reload()["fault"] is None

        def drain(name: str, turns: int, **members: Any) -> list[Answer]:
            def client(number: int) -> list[Answer]:
                return [once(proxy.port, chat(keys[name][number % 4], **members)) for _ in range(turns)]

            return [answer for answers in crowd(16, client) for answer in answers]

        gauge = Gauge()
        ends.upstream.script = gauge.script(10, 10, pause=0.1)
        said = Counter(codes(drain("parallel", 8, stream=True)))
        assert set(said) == {"200", "flowstack_concurrency_exceeded"}, said
        assert gauge.most == 5
        shared = [limit for limit in told(proxy.port, keys["parallel"][0])["limits"] if limit["of"] == "group"]
        assert [(limit["name"], limit["used"]) for limit in shared] == [("max_parallel", 0)]

        ends.upstream.script = Gauge().script(10, 10)
        answers = drain("rpm", 3)
        assert Counter(codes(answers)) == {"200": 20, "flowstack_rate_limit_exceeded": 28}
        assert sum(writers(proxy, key) for key in keys["rpm"]) > 4, "both workers served the group"
        refused = once(proxy.port, chat(keys["rpm"][0]))
        assert_own_error(refused, 429, "flowstack_rate_limit_exceeded")
        assert b"The group rpm, to which this Flowstack key belongs, may begin 20 requests" in refused.body
        assert refused.one(b"flowstack-ratelimit-limit-requests") == b"20"
        assert refused.one(b"flowstack-ratelimit-remaining-requests") == b"0"
        own = [limit for limit in told(proxy.port, keys["rpm"][0])["limits"] if limit["of"] == "key"]
        passed = sum(row["status"] == 200 and row["upstream"] is not None for row in journal(proxy, keys["rpm"][0]))
        assert own[0]["used"] == passed, "what the group refused does not count for the key"

        ends.upstream.script = Gauge().script(0, 1000)
        said = Counter(codes(drain("tpm", 2, max_completion_tokens=1000)))
        assert said["200"] == 9, said  # what is asked counts too: ten do not fit
        answers = drain("budget", 2, max_completion_tokens=100)
        assert Counter(codes(answers)).keys() == {"200", "flowstack_budget_exceeded"}
        assert all(row["group"] == "budget" for key in keys["budget"] for row in journal(proxy, key))


def test_a_group_s_money_outlives_restarts_and_sigkill_and_a_reload_changes_its_limits(tmp_path: Path) -> None:
    with upstream() as behind, ExitStack() as stack:
        settings = {"server": {"workers": 2}}
        proxy = Proxy(tmp_path, f"http://127.0.0.1:{behind.port}/v1", settings=settings)
        stack.callback(lambda: proxy.kill())
        behind.script = Gauge().script(0, 100)
        proxy.keystore.group("team", "budget=0.005usd/total")
        token = proxy.keystore.add("group=team")
        assert proxy.reload()["fault"] is None
        raw = chat(token, max_completion_tokens=100)
        assert codes(once(proxy.port, raw) for _ in range(6)) == ["200"] * 4 + ["flowstack_budget_exceeded"] * 2
        (budget,) = told(proxy.port, token)["budgets"]
        assert (budget["of"], budget["limit_usd"], budget["period"]) == ("group", 0.005, "total")
        assert budget["reset_at"] is None
        assert budget["spent_usd"] == pytest.approx(cost(0, 400))

        reloaded(proxy, "set", token[4:16], "--owner", "alice", of="keys")
        reloaded(proxy, "set", "team", "--budget", "0.007usd/total", of="groups")
        assert codes(once(proxy.port, raw) for _ in range(4)) == ["200"] * 2 + ["flowstack_budget_exceeded"] * 2
        proxy.kill()
        proxy = restart(proxy, token, "group=team", workers=1, groups={"team": "budget=0.007usd/total"})
        assert codes([once(proxy.port, raw)]) == ["flowstack_budget_exceeded"]
        (budget,) = told(proxy.port, token)["budgets"]
        assert budget["spent_usd"] == pytest.approx(cost(0, 600))
        proxy.stop()
