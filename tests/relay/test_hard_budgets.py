"""A budget holds whatever is asked for, and whether or not the upstream says what was used: in memory."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from flowstack.errors import BudgetExceeded, FlowstackError, ModelNotAllowed
from flowstack.http.headers import ReceivedHeaders
from flowstack.keys import Budget, Key
from flowstack.ledger.row import BLANK, Row
from flowstack.prices.table import load_prices
from flowstack.relay.permission import Permission
from flowstack.usage.operations import operation_of, read_strictly
from flowstack.usage.request_facts import read_request_facts
from tests.limits.lab import NOON, Lab
from tests.relay.spenders import WAYS, Way, dollars, used

PERMISSION = Permission(load_prices(), None, None, False)
JSON = {b"content-type": b"application/json"}
FIELDS = ReceivedHeaders(list(JSON.items()))


class Spender:
    """A key with a budget, which asks in one way again and again."""

    def __init__(self, way: Way, says: bool) -> None:
        self._limiter = Lab(1).limiters[0]
        self._says = says
        self._key = Key("k", b"", budget=Budget(Decimal(str(way.budget)), "total"))
        plan = self._limiter.plan(self._key, "openai")
        assert plan is not None
        self._plan = plan
        document = way.document
        body = json.dumps(document).encode()
        path = way.path.removeprefix("/v1/").encode()
        operation = operation_of(b"POST", path)
        asked = read_request_facts(operation.body, JSON, body)
        assert asked is not None
        terms = PERMISSION.terms(self._key, operation, plan, None, b"POST", way.path.encode(), False)
        self._estimate = terms.judge(asked, len(body), asked.model, FIELDS, NOON)
        self._prompt, self._output = used(way.path, document)
        self.each = dollars(document["model"], self._prompt, self._output)

    def begin(self) -> object:
        """:raises FlowstackError: there is too little left."""
        return self._limiter.reserve(self._plan, *self._estimate)

    def end(self, reservation: object) -> None:
        row: Row = {**BLANK, "status": 200, "attempts": 1}
        if self._says:
            row["usage_source"], row["cost_usd"] = "upstream", self.each
            row["prompt_tokens"], row["completion_tokens"] = self._prompt, self._output
        self._limiter.settle(reservation, row)  # type: ignore[arg-type]


@pytest.mark.parametrize("says", [True, False], ids=["says what it used", "never says what it used"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_budget_pays_for_no_more_than_itself_and_one_request_s_excess(way: Way, says: bool) -> None:
    if way.refused:
        with pytest.raises(ModelNotAllowed, match="must be read, and it cannot be"):
            Spender(way, says)
        return
    spender = Spender(way, says)
    together = []
    for _ in range(24):
        try:
            together.append(spender.begin())
        except FlowstackError:
            break
    assert 0 < len(together) < 24
    assert len(together) * spender.each <= way.budget + spender.each, "at once"
    for reservation in together:
        spender.end(reservation)
    served = len(together)
    for _ in range(100):
        try:
            spender.end(spender.begin())
        except FlowstackError:
            break
        served += 1
    assert served * spender.each <= way.budget + spender.each, "and one after another"
    if says:
        assert served * spender.each >= 0.4 * way.budget, "what was reserved too much is given back"


def test_message_batches_that_are_not_finished_hold_what_they_may_cost() -> None:
    path, of = b"messages/batches", Key("k", b"", budget=Budget(Decimal(5), "total"), endpoints=("/v1/messages/*",))
    limiter = Lab(1).limiters[0]
    plan = limiter.plan(of, "anthropic")
    assert plan is not None
    operation = read_strictly(operation_of(b"POST", path), path)
    params = {"model": "claude-opus-4-5", "max_tokens": 1_000}
    body = json.dumps({"requests": [{"custom_id": str(at), "params": params} for at in range(100)]}).encode()
    asked = read_request_facts(operation.body, JSON, body)
    assert asked is not None
    terms = PERMISSION.terms(of, operation, plan, None, b"POST", b"/v1/messages/batches", False)
    estimate = terms.judge(asked, len(body), asked.model, FIELDS, 1.795e9)  # since when batches have a price
    each = 100 * 1_000 * 25 / 2 / 1e6  # what 100 answers cost as a batch
    open_work = []
    with pytest.raises(BudgetExceeded):
        for _ in range(24):
            reservation = limiter.reserve(plan, *estimate)
            limiter.settle(reservation, {**BLANK, "status": 200, "attempts": 1})
            open_work.append(reservation.kept())
    assert 2 <= len(open_work) <= 4
    assert len(open_work) * each <= 5
    used: Row = {**BLANK, "status": 200, "attempts": 1, "usage_source": "upstream", "cost_usd": 0.01}
    for kept in open_work:
        assert kept is not None
        limiter.settle_later(kept, used)
    limiter.reserve(plan, *estimate)
