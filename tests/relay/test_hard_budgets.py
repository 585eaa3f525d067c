"""A budget holds whatever is asked for, and whether or not the upstream says what was used: in memory."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from flowstack.errors import FlowstackError, ModelNotAllowed
from flowstack.ledger.prices import load_prices
from flowstack.policy.headers import ReceivedHeaders
from flowstack.policy.keys import Budget, Key
from flowstack.policy.operations import operation_of
from flowstack.policy.rows import BLANK, Row
from flowstack.policy.usage.asked import asked_of
from flowstack.relay.permission import Permission
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
        asked = asked_of(operation.body, JSON, body)
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
