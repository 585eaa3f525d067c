"""The real SDKs at a limit: they come back when they were told to, and leave alone what no wait makes possible."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from attrs import field, frozen

from tests.e2e.crowd import chat, journal
from tests.e2e.processes import Proxy, StandIn, eventually
from tests.e2e.raw import Client
from tests.e2e.sdk_runs import HERE, OPENAI_KEY, Attempt, Outcome, Sdks, once
from tests.e2e.test_sdk_errors import FAMILIES

pytestmark = [
    pytest.mark.e2e,
]

RETRYING = {
    "python-openai": "python-openai/retries.py",
    "node-openai": "node-openai/retries.mjs",
    "node-openai-4": "node-openai/retries.mjs",
}
"""The scripts of the SDKs that try again by themselves."""

FINAL = {
    "budget=0.00001usd/month": (429, "flowstack_budget_exceeded"),
    "tpm=100": (429, "flowstack_rate_limit_exceeded"),
    "models=o1,o3*": (403, "model_not_allowed"),
    "endpoints=/v1/embeddings": (403, "endpoint_not_allowed"),
    "allow_ip=192.0.2.0/24": (403, "address_not_allowed"),
    "upstreams=another": (403, "upstream_not_allowed"),
}
"""What a key has, and the refusal to which it leads whenever it is tried."""


@frozen
class Front:
    """A proxy, and for each SDK and each kind of refusal a key of its own."""

    proxy: Proxy
    keys: dict[tuple[str, str], str] = field(repr=False)

    def attempt(self, sdk: str, attributes: str) -> Attempt:
        headers = {"Flowstack-Auth": f"Bearer {self.keys[sdk, attributes]}"}
        return Attempt(name=attributes, base_url=self.proxy.base_url, headers=headers)

    def rows(self, sdk: str, attributes: str) -> list[dict[str, Any]]:
        return journal(self.proxy, self.keys[sdk, attributes])


@pytest.fixture(scope="module")
def limited(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    proxy = Proxy(tmp_path_factory.mktemp("limited"), f"{stand_in.url}/v1")
    try:
        keys = {
            (sdk, attributes): proxy.keystore.add(attributes)
            for sdk in (*RETRYING, "python-openai-0.28")
            for attributes in (*FINAL, "max_parallel=1")
        }
        assert proxy.reload()["fault"] is None
        yield Front(proxy, keys)
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def outcomes(sdks: Sdks, limited: Front) -> Callable[[str], dict[str, Outcome]]:
    """Makes all the calls of this file by one SDK, in one run of its script."""

    @once
    def run(sdk: str) -> dict[str, Outcome]:
        final = [limited.attempt(sdk, attributes) for attributes in FINAL]
        if sdk not in RETRYING:
            return sdks.attempts(sdk, final)
        job = {"attempts": [attempt.as_job() for attempt in (*final, limited.attempt(sdk, "max_parallel=1"))]}
        text = (HERE / "sdks" / RETRYING[sdk]).read_text("utf-8")
        with Client(limited.proxy.port) as held, ThreadPoolExecutor(1) as thread:
            fields = (b"Stand-In: hang", b"Authorization: Bearer " + OPENAI_KEY.encode())
            held.send(chat(limited.keys[sdk, "max_parallel=1"], *fields))
            assert held.head()[1] == b"HTTP/1.1 200 OK"
            lines = thread.submit(sdks.program, sdk, text, stdin=json.dumps(job), harness=True)
            eventually(lambda: lines.done() or limited.rows(sdk, "max_parallel=1"), "the SDK is refused", 120)
            held.abort()
            reports = [json.loads(line) for line in lines.result().splitlines() if line.startswith('{"case"')]
        return {report.pop("case"): Outcome(**report) for report in reports}

    return run


@pytest.mark.parametrize("sdk", RETRYING)
def test_an_sdk_that_is_told_to_wait_comes_back_as_late_as_it_was_told_and_succeeds(
    sdk: str, limited: Front, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    outcome = outcomes(sdk)["max_parallel=1"]
    assert outcome.raised is None, outcome.raised
    rows = [row for row in limited.rows(sdk, "max_parallel=1") if row["end"] != "client_gone"]
    assert [row["error_code"] for row in rows] == ["flowstack_concurrency_exceeded", None]
    first, second = (datetime.fromisoformat(row["started_at"]) for row in rows)
    assert 1.0 <= (second - first).total_seconds() < 10, "by itself it would have come back within half a second"


@pytest.mark.parametrize(("sdk", "attributes"), [(sdk, attributes) for sdk in RETRYING for attributes in FINAL])
def test_an_sdk_does_not_try_again_what_no_wait_makes_possible(
    sdk: str, attributes: str, limited: Front, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    assert_raised(sdk, attributes, outcomes(sdk)[attributes])
    assert [row["error_code"] for row in limited.rows(sdk, attributes)] == [FINAL[attributes][1]]


@pytest.mark.parametrize("attributes", FINAL)
def test_the_sdk_of_2023_raises_its_own_exception(
    attributes: str, limited: Front, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    assert_raised("python-openai-0.28", attributes, outcomes("python-openai-0.28")[attributes])
    assert len(limited.rows("python-openai-0.28", attributes)) == 1


def assert_raised(sdk: str, attributes: str, outcome: Outcome) -> None:
    """The SDK raised what it documents for the status, with Flowstack's code in it."""
    status, code = FINAL[attributes]
    assert outcome.raised is not None, "the call succeeded"
    assert FAMILIES[sdk][status] in outcome.raised["types"], outcome.raised
    assert (outcome.raised["status"], outcome.raised["code"]) == (status, code), outcome.raised
    assert outcome.raised["headers"]["flowstack-error"] == code
