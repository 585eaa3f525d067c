"""What a request is charged in the end, once its row is known."""

from __future__ import annotations

from collections.abc import Iterable

from flowstack.ledger.row import Row
from flowstack.limits.money import nano
from flowstack.prices.cost import Prices

SENT = frozenset({
    "upstream_closed", "upstream_malformed", "upstream_timeout", "malformed_request", "request_too_large",
})  # fmt: skip
"""Errors of Flowstack's own after which the upstream may have worked all the same: its own faults, and those of a body
that breaks off on its way there. All others say no to a request before the upstream has the whole of it: it has nothing
to work on, and who is refused again and again must not lock itself out."""


_NO_PRICED_MODEL = "no_price:", "no_model"


def charged_tokens(row: Row, tokens: int) -> int:
    """The upstream's figure, where the answer came to its own end; else nothing, or the larger of estimate and figure.

    Nothing is charged where nothing was sent, where Flowstack refused the request before its end went upstream, and
    for an error of the upstream's that names no usage: OpenAI bills none of these. Where usage is unknown otherwise
    (no usage in the answer, the client gone, a cut, a timeout), the upstream may have billed: the estimate stays. What
    an answer said before it was cut is the least that was used.

    :param tokens: reserved, by estimate.
    """
    source = row["usage_source"]
    if source == "none":
        return tokens if _may_have_worked(row) else 0
    total = row["total_tokens"]
    if total is None:
        asked, answered = row["prompt_tokens"], row["completion_tokens"]
        total = (asked or 0) + (answered or 0)
        if asked is None or answered is None:
            total = max(total, tokens)
    if source == "partial" and total < tokens:
        return tokens
    return total if total > 0 else 0


def charged_nanos(row: Row, nanos: int) -> int:
    """As :func:`charged_tokens`, for money: also where there is usage, but no price, the estimate stays.

    A cost beside ``unpriced`` is assumed. Where it is the model that has no price, it is the charge; where something
    else of what was used has none, it is the least that it may be.

    :param nanos: reserved, by estimate, in billionths of a dollar.
    """
    source, cost = row["usage_source"], row["cost_usd"]
    if source == "none":
        return nanos if _may_have_worked(row) else 0
    if cost is None:
        return nanos
    unpriced = row["unpriced"]
    if source == "partial" or (unpriced is not None and not unpriced.startswith(_NO_PRICED_MODEL)):
        return max(nano(cost), nanos)
    return nano(cost)


def assumed_cost(
    row: Row,
    prices: Prices,
    models: Iterable[str | None],
    tier: str | None,
    when: float,
    default_price: float | None,
    no_output: bool = False,
) -> float | None:
    """What the tokens of a row cost at most, in US dollars, by the dearest of some models and the default price.

    :param models: None counts for nothing, and so does one without a price.
    :param when: Unix time of the request.
    :param default_price: US dollars for a million tokens, or None.
    :param no_output: whether there is none where the row does not say how much.
    :return: None where the tokens or their prices are not known.
    """
    prompt, output, total = row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]
    if row["usage_source"] == "none" or prompt is None or (output is None and total is None and not no_output):
        return None
    output = output or 0
    output += max(0, (total or 0) - prompt - output)
    costs = [prices.estimate(model, prompt, output, tier or "default", when) for model in models if model is not None]
    if default_price is not None:
        costs.append((prompt + output) * default_price / 1_000_000)
    return max((cost for cost in costs if cost is not None), default=None)


def _may_have_worked(row: Row) -> bool:
    """Whether the upstream may have done work that it bills, though no usage is known."""
    if not row["attempts"]:
        return False
    error, status = row["error_code"], row["status"]
    return error in SENT if error is not None else status is None or status < 400
