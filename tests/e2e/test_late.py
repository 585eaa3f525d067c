"""Work in the background and budgets, with two workers over sockets: charged to who began it, once, whoever looks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import field, frozen

from tests.e2e.crowd import codes, crowd, journal, once
from tests.e2e.processes import PATIENCE, Proxy, StandIn, eventually
from tests.e2e.raw import Answer, assert_own_error, request
from tests.e2e.test_limits_outlive import restart, workers_of

pytestmark = pytest.mark.e2e

KEYS = {
    "one": "budget=1.00usd/month",
    "large": "budget=1.00usd/month",
    "many": "budget=1.00usd/month",
    "kept": "budget=1.00usd/month",
    "batches": "budget=1.00usd/month endpoints=/v1/batches,/v1/files,/v1/responses",
    "other": "",
}
AUTH = b"Authorization: Bearer sk-any"
PROMPT = " ".join(["word"] * 1000)
DEAR = b"Stand-In: chunks=1; reasoning=99999"
"""1,000 tokens in and 100,000 out: with gpt-5 at 1.25 and 10 dollars for a million, 1.00125."""
COST = 1.00125


@frozen
class House:
    """A proxy with two workers before the stand-in, and a key for each thing to show."""

    proxy: Proxy
    keys: dict[str, str] = field(repr=False)

    def ask(self, key: str, line: bytes, document: Any = None, *fields: bytes) -> Answer:
        """Ask on a connection of its own, so that any worker may get it."""
        body = b"" if document is None else orjson.dumps(document)
        head = (AUTH, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *fields)
        return once(self.proxy.port, request(self.keys[key], line + b" HTTP/1.1", *head, body=body))

    def begin(self, key: str, *fields: bytes, **more: Any) -> Answer:
        """Begin a response in the background."""
        document = {"model": "gpt-5", "input": PROMPT, "background": True, "max_output_tokens": 1000} | more
        document["service_tier"] = "default"  # the others' prices, which may be dearer, are not reserved
        return self.ask(key, b"POST /v1/responses", document, *fields)

    def finish(self, key: str, identity: str) -> None:
        """Ask until it is finished, and a few times more, so that each worker sees it."""

        def completed() -> bool:
            answer = self.ask(key, b"GET /v1/responses/" + identity.encode())
            return bool(orjson.loads(answer.body)["status"] == "completed")

        eventually(completed, "the response is completed", PATIENCE)
        crowd(6, lambda _: self.ask(key, b"GET /v1/responses/" + identity.encode()))

    def spent(self, key: str) -> float:
        """What a key's rows cost together."""
        return float(sum(row["cost_usd"] or 0.0 for row in journal(self.proxy, self.keys[key])))


@pytest.fixture(scope="module")
def house(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    proxy = Proxy(tmp_path_factory.mktemp("late"), f"{stand_in.url}/v1", settings={"server": {"workers": 2}})
    keys = {name: proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
    assert proxy.reload()["fault"] is None
    yield House(proxy, keys)
    proxy.stop()


def identity_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    identity: str = orjson.loads(answer.body)["id"]
    return identity


def test_a_budget_is_used_up_once_background_work_is_seen_finished_by_whichever_key(house: House) -> None:
    first = house.begin("one", DEAR, max_output_tokens=1)
    identity = identity_of(first)
    assert house.spent("one") == 0
    house.finish("other", identity)
    assert_own_error(house.begin("one", DEAR, max_output_tokens=1), 429, "flowstack_budget_exceeded")
    assert house.spent("one") == pytest.approx(COST)
    assert house.spent("other") == 0
    (row,) = [row for row in journal(house.proxy, house.keys["one"]) if row["parent_request_id"]]
    assert row["parent_request_id"] == (first.one(b"flowstack-request-id") or b"").decode()
    assert (row["prompt_tokens"], row["completion_tokens"], row["requests"]) == (1000, 100_000, 0)
    assert list((house.proxy.state_path / "open").iterdir()) == []


def test_a_small_answer_to_a_large_declared_maximum_gives_the_rest_back(house: House) -> None:
    small = b"Stand-In: chunks=10"
    identity = identity_of(house.begin("large", small, max_output_tokens=95_000))
    assert_own_error(house.begin("large", small, max_output_tokens=95_000), 429, "flowstack_budget_exceeded")
    house.finish("large", identity)
    assert house.begin("large", small, max_output_tokens=95_000).status == 200


def test_of_many_dear_works_at_once_those_pass_that_were_begun_before_one_was_seen(house: House) -> None:
    answers = crowd(6, lambda _: house.begin("many", DEAR, max_output_tokens=30_000))
    said = sorted(codes(answers))
    assert said == ["200"] * 3 + ["flowstack_budget_exceeded"] * 3, "0.3 of 1.00 dollars is reserved for each"
    works = [identity_of(answer) for answer in answers if answer.status == 200]
    for identity in works:
        house.finish("many", identity)
    assert house.spent("many") == pytest.approx(3 * COST)
    assert_own_error(house.begin("many", DEAR, max_output_tokens=1), 429, "flowstack_budget_exceeded")


def test_a_batch_is_charged_to_who_created_it_where_a_list_or_a_look_shows_its_end(house: House) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses"}
    body = {"model": "gpt-5", "input": PROMPT, "metadata": {"stand-in": "chunks=1; reasoning=299999"}}
    data = orjson.dumps(line | {"body": body}) + b"\n"
    parts = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: '
    parts += b'form-data; name="file"; filename="a.jsonl"\r\n\r\n' + data + b"\r\n--b--\r\n"
    head = (AUTH, b"Content-Type: multipart/form-data; boundary=b", b"Content-Length: %d" % len(parts))
    made = once(house.proxy.port, request(house.keys["batches"], b"POST /v1/files HTTP/1.1", *head, body=parts))
    wish = {"input_file_id": identity_of(made), "endpoint": "/v1/responses", "completion_window": "24h"}
    created = house.ask("batches", b"POST /v1/batches", wish)
    path = b"GET /v1/batches/" + identity_of(created).encode()
    assert [orjson.loads(house.ask("other", path).body)["status"] for _ in range(2)] == ["in_progress", "completed"]
    crowd(4, lambda _: house.ask("other", b"GET /v1/batches"))
    # Half of what 1,000 and 300,000 tokens cost otherwise.
    assert house.spent("batches") == pytest.approx((1000 * 1.25 + 300_000 * 10) / 2 / 1e6)
    assert house.spent("other") == 0
    assert_own_error(house.begin("batches"), 429, "flowstack_budget_exceeded")


def test_what_was_begun_before_a_restart_is_settled_after_it_though_all_was_killed(
    stand_in: StandIn, tmp_path: Path
) -> None:
    first = Proxy(tmp_path, f"{stand_in.url}/v1", settings={"server": {"workers": 2}})
    token = first.keystore.add("budget=1.00usd/month")
    assert first.reload()["fault"] is None
    identity = identity_of(House(first, {"k": token}).begin("k", DEAR, max_output_tokens=1))
    (work,) = (first.state_path / "open").iterdir()
    claimed = work.rename(work.with_name(f"{work.name}.0"))  # as if worker 0 were about to settle it
    os.kill(workers_of(first)[0], signal.SIGKILL)
    eventually(work.exists, "what a killed worker claimed is given back")
    claimed = work.rename(claimed)
    first.kill()
    (first.state_path / "charged").mkdir()  # of an older version
    (first.state_path / "charged" / "0123").touch()
    second = restart(first, token, "budget=1.00usd/month", 2)
    house = House(second, {"k": token, "other": second.key})
    house.finish("other", identity)
    assert house.spent("k") == pytest.approx(COST)
    assert_own_error(house.begin("k", DEAR, max_output_tokens=1), 429, "flowstack_budget_exceeded")
    eventually(lambda: not (second.state_path / "charged").exists(), "what nobody needs any more is removed")
    second.stop()


def test_work_that_nobody_looks_at_is_settled_by_asking_the_upstream_with_the_operator_s_key(
    stand_in: StandIn, tmp_path: Path
) -> None:
    secret = tmp_path / "provider-key"
    secret.touch(0o600)
    secret.write_text("sk-the-operator-s-own")
    settings = {
        "server": {"workers": 2},
        "reconcile": {"enabled": True, "every": 0.2},
        "upstreams": {"openai": {"api_key_file": str(secret)}},
    }
    proxy = Proxy(tmp_path / "proxy", f"{stand_in.url}/v1", settings=settings)
    token = proxy.keystore.add("budget=1.00usd/month")
    assert proxy.reload()["fault"] is None
    house = House(proxy, {"k": token})
    assert house.begin("k", DEAR, max_output_tokens=1).status == 200
    eventually(lambda: house.spent("k") > 0, "the response is settled")
    assert house.spent("k") == pytest.approx(COST)
    assert_own_error(house.begin("k", DEAR, max_output_tokens=1), 429, "flowstack_budget_exceeded")
    proxy.stop()
    proxy.assert_no_secrets([secret.read_text()])
    assert "1 had ended and were settled" in proxy.log_text()
