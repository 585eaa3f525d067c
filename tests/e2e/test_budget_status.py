"""A used-up budget, with each status that the operator may choose: which clients try again, and which never do.

Each client has the retries that it makes by default. The rows are the requests that came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from attrs import field, frozen

from tests.e2e.crowd import journal
from tests.e2e.processes import Proxy, StandIn
from tests.e2e.sdk_runs import HERE, Attempt, Outcome, Sdks, once

pytestmark = [
    pytest.mark.e2e,
]

STATUSES = (429, 402, 403, 422)
BUDGET = "budget=0.00001usd/month"

CLIENTS = {
    "python-openai": "python-openai/retries.py",
    "python-openai-0.28": "python-openai-0.28/cases.py",
    "node-openai": "node-openai/retries.mjs",
    "node-openai-4": "node-openai/retries.mjs",
    "langchain": "langchain/retries.py",
    "llamaindex": "llamaindex/retries.py",
    "node-ai-sdk": "node-ai-sdk/retries.mjs",
}

INSISTENT = {"llamaindex": 3, "node-ai-sdk": 3}
"""Clients that try any 429 again, whatever it says, and how often they ask in all."""

PATIENT = {f"{sdk}, told not to retry": sdk for sdk in INSISTENT}


@frozen
class Fronts:
    """A proxy for each status, and at each of them a key for each client."""

    proxies: dict[int, Proxy]
    keys: dict[tuple[int, str], str] = field(repr=False)

    def attempt(self, sdk: str, status: int) -> Attempt:
        headers = {"Flowstack-Auth": f"Bearer {self.keys[status, sdk]}"}
        return Attempt(name=str(status), base_url=self.proxies[status].base_url, headers=headers)

    def rows(self, sdk: str, status: int) -> list[tuple[int, str]]:
        found = journal(self.proxies[status], self.keys[status, sdk])
        assert all("requests" not in row for row in found), "each stands for one request"
        return [(row["status"], row["error_code"]) for row in found]


@pytest.fixture(scope="module")
def fronts(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronts]:
    proxies, keys = {}, {}
    with ExitStack() as stack:
        for status in STATUSES:
            settings = {} if status == 429 else {"limits": {"budget_status": status}}
            folder = tmp_path_factory.mktemp(f"budget-{status}")
            proxies[status] = proxy = Proxy(folder, f"{stand_in.url}/v1", settings=settings)
            stack.callback(proxy.stop)
            keys |= {(status, sdk): proxy.keystore.add(BUDGET) for sdk in (*CLIENTS, *PATIENT)}
            assert proxy.reload()["fault"] is None
        yield Fronts(proxies, keys)


@pytest.fixture(scope="module")
def outcomes(sdks: Sdks, fronts: Fronts) -> Callable[[str], dict[str, Outcome]]:
    """Makes one client's calls, one of each status, in one run of its script."""

    @once
    def run(sdk: str) -> dict[str, Outcome]:
        job = {"attempts": [fronts.attempt(sdk, status).as_job() for status in STATUSES]}
        text = (HERE / "sdks" / CLIENTS[sdk]).read_text("utf-8")
        lines = sdks.program(sdk, text, stdin=json.dumps(job), harness=True).splitlines()
        reports = [json.loads(line) for line in lines if line.startswith('{"case"')]
        return {report.pop("case"): Outcome(**report) for report in reports}

    return run


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("sdk", CLIENTS)
def test_a_used_up_budget_is_asked_once_but_by_clients_that_try_any_429_again(
    sdk: str, status: int, fronts: Fronts, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    raised = outcomes(sdk)[str(status)].raised
    assert raised is not None, "the call succeeded"
    assert (raised["status"], raised["code"]) == (status, "flowstack_budget_exceeded"), raised
    assert raised["type"] == "insufficient_quota"
    assert raised["headers"]["x-should-retry"] == "false"
    assert "retry-after" not in raised["headers"]
    asked = INSISTENT.get(sdk, 1) if status == 429 else 1
    assert fronts.rows(sdk, status) == [(status, "flowstack_budget_exceeded")] * asked


@pytest.mark.parametrize("name", PATIENT)
def test_they_ask_once_where_they_are_told_not_to_retry(name: str, sdks: Sdks, fronts: Fronts) -> None:
    outcome = sdks.attempts(PATIENT[name], [fronts.attempt(name, 429)])["429"]
    assert outcome.raised is not None and outcome.raised["code"] == "flowstack_budget_exceeded"
    assert fronts.rows(name, 429) == [(429, "flowstack_budget_exceeded")]
