from __future__ import annotations

from typing import Any

import pytest

from flowstack.errors import FlowstackError
from flowstack.ledger.row import Row
from flowstack.limits.charge import SENT, charged_nanos, charged_tokens


def row(**values: Any) -> Row:
    base = {
        "usage_source": "none", "total_tokens": None, "prompt_tokens": None, "completion_tokens": None,
        "cost_usd": None, "unpriced": None, "status": 200, "error_code": None, "attempts": 1, "end": "complete",
    }  # fmt: skip
    return base | values  # type: ignore[return-value]


USED = {"usage_source": "upstream", "total_tokens": 30, "prompt_tokens": 10, "completion_tokens": 20}
CUT = USED | {"usage_source": "partial", "end": "upstream_lost"}


@pytest.mark.parametrize(
    ("why", "values", "tokens", "nanos"),
    [
        ("the upstream's figures", USED | {"cost_usd": 0.5}, 30, 500_000_000),
        ("its zero is a figure", USED | {"total_tokens": 0, "cost_usd": 0.0}, 0, 0),
        ("no total, but its parts", USED | {"total_tokens": None, "cost_usd": 0.5}, 30, 500_000_000),
        ("a part that is more than the estimate", USED | {"total_tokens": None, "prompt_tokens": 5000,
         "completion_tokens": None}, 5000, 2000),
        ("an assumed cost, for the model has no price", USED | {"cost_usd": 1e-7, "unpriced": "no_price:x"}, 30, 100),
        ("an assumed cost, for a tier has none", USED | {"cost_usd": 1e-7, "unpriced": "no_price_for:tier"}, 30, 2000),
        ("the same, and more than that", USED | {"cost_usd": 0.5, "unpriced": "no_price_for:tier"}, 30, 500_000_000),
        ("figures of an answer that was cut", CUT | {"cost_usd": 1e-7}, 1000, 2000),
        ("the same, and more than that", CUT | {"total_tokens": 3000, "cost_usd": 0.5}, 3000, 500_000_000),
        ("zeros of an answer that was cut", CUT | {"total_tokens": 0, "cost_usd": 0.0}, 1000, 2000),
        ("figures of one that was cut, without a price", CUT, 1000, 2000),
        ("parts of one that was cut", CUT | {"total_tokens": None, "completion_tokens": 2000}, 2010, 2000),
        ("parts that are not known", USED | {"total_tokens": None, "prompt_tokens": None}, 1000, 2000),
        ("tokens without a price", USED, 30, 2000),
        ("figures though the client left", USED | {"end": "client_gone", "cost_usd": 0.5}, 30, 500_000_000),
        ("a nonsense figure", USED | {"total_tokens": -5, "cost_usd": -1.0}, 0, 0),
        ("no usage in the answer", {}, 1000, 2000),
        ("the client left amid the answer", {"end": "client_gone"}, 1000, 2000),
        ("the client left before it", {"end": "client_gone", "status": None}, 1000, 2000),
        ("the upstream was lost amid it", {"end": "upstream_lost"}, 1000, 2000),
        ("the drain cut it", {"end": "drain"}, 1000, 2000),
        ("the upstream said nothing", {"end": "upstream_lost", "status": 502, "error_code": "upstream_closed"},
         1000, 2000),
        ("the upstream talked nonsense", {"status": 502, "error_code": "upstream_malformed"}, 1000, 2000),
        ("the upstream was too slow", {"end": "timeout", "status": 504, "error_code": "upstream_timeout"}, 1000, 2000),
        ("no connection in time", {"status": 504, "error_code": "upstream_timeout", "attempts": 0}, 0, 0),
        ("no connection", {"status": 502, "error_code": "upstream_unreachable"}, 0, 0),
        ("an error of the upstream's", {"status": 400}, 0, 0),
        ("its overload", {"status": 529, "end": "client_gone"}, 0, 0),
        ("an error of the upstream's that says usage", USED | {"status": 500, "cost_usd": 0.5}, 30, 500_000_000),
        ("refused before the end went upstream", {"end": "refused", "status": 403, "error_code": "model_not_allowed"},
         0, 0),
        ("the client stalled amid its body", {"end": "timeout", "status": 400, "error_code": "malformed_request"},
         1000, 2000),
        ("a body that was malformed at once", {"status": 400, "error_code": "malformed_request", "attempts": 0},
         0, 0),
        ("a body that grew too large on its way", {"end": "refused", "status": 413, "error_code": "request_too_large"},
         1000, 2000),
        ("refused by another limit", {"status": 429, "error_code": "flowstack_rate_limit_exceeded"}, 0, 0),
        ("never sent", {"status": None, "end": "client_gone", "attempts": 0}, 0, 0),
    ],
)  # fmt: skip
def test_what_is_charged(why: str, values: dict[str, Any], tokens: int, nanos: int) -> None:
    assert charged_tokens(row(**values), 1000) == tokens, why
    assert charged_nanos(row(**values), 2000) == nanos, why


def test_the_errors_after_which_the_upstream_may_have_worked_exist() -> None:
    def codes(kind: type[FlowstackError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    assert codes(FlowstackError) >= SENT
