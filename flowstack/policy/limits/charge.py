"""What a request is charged in the end, once its row is known."""

from __future__ import annotations

from flowstack.policy.limits.money import nano
from flowstack.policy.rows import Row

SENT = frozenset({
    "upstream_closed", "upstream_malformed", "upstream_timeout", "malformed_request", "request_too_large",
})  # fmt: skip
"""Errors of Flowstack's own after which the upstream may have worked all the same: its own faults, and those of a body
that breaks off on its way there. All others say no to a request before the upstream has the whole of it: it has nothing
to work on, and who is refused again and again must not lock itself out."""


def charged_tokens(row: Row, tokens: int) -> int:
    """The upstream's figure, where there is one; else nothing, or the estimate.

    Nothing is charged where nothing was sent, where Flowstack refused the request before its end went upstream, and
    for an error of the upstream's that names no usage: OpenAI bills none of these. Where usage is unknown otherwise
    (no usage in the answer, the client gone, a cut, a timeout), the upstream may have billed: the estimate stays.

    :param tokens: reserved, by estimate.
    """
    if row["usage_source"] != "upstream":
        return tokens if _may_have_worked(row) else 0
    total = row["total_tokens"]
    if total is None:
        asked, answered = row["prompt_tokens"], row["completion_tokens"]
        total = tokens if asked is None or answered is None else asked + answered
    return total if total > 0 else 0


def charged_nanos(row: Row, nanos: int) -> int:
    """As :func:`charged_tokens`, for money: also where there is usage, but no price, the estimate stays.

    :param nanos: reserved, by estimate, in billionths of a dollar.
    """
    if row["usage_source"] != "upstream":
        return nanos if _may_have_worked(row) else 0
    cost = row["cost_usd"]
    return nanos if cost is None else nano(cost)


def _may_have_worked(row: Row) -> bool:
    """Whether the upstream may have done work that it bills, though no usage is known."""
    if not row["attempts"]:
        return False
    error, status = row["error_code"], row["status"]
    return error in SENT if error is not None else status is None or status < 400
