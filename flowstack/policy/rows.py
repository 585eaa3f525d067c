"""The row of the ledger: one for each request that showed a valid key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from flowstack.memo import CUT, Memo, cut
from flowstack.policy.keys import hide_keys
from flowstack.policy.usage.model import Usage

if TYPE_CHECKING:
    from flowstack.policy.pricing import Prices

End = Literal["complete", "refused", "client_gone", "upstream_lost", "timeout", "drain"]
"""How an exchange ended. ``complete``: its last byte was handed to the transport."""

UsageSource = Literal["upstream", "partial", "none"]
"""Where the tokens come from. ``upstream``: the answer's own final figures. ``partial``: the last that an answer said
before it was cut or left; there may have been more. ``none``: nothing is known."""

MAX_TEXT = 512
"""Characters kept of any text that a client sent."""


class Row(TypedDict):
    """The contract's row. Times in milliseconds, sizes in bytes; None is what is not known, and never 0.

    :ivar priced_by: which of the two names the cost was worked out from.
    :ivar unpriced: why there is no cost though there is usage: a short word, and a name where it has one.
    :ivar parent_request_id: of a row that stands for work which an earlier request began: that request's id.
    """

    v: int
    request_id: str
    started_at: datetime
    key_id: str
    owner: str | None
    group: str | None
    attributes: dict[str, str] | None
    client_addr: str | None
    user_agent: str | None
    method: str | None
    path: str | None
    model_requested: str | None
    model: str | None
    service_tier: str | None
    status: int | None
    error_code: str | None
    end: End
    stream: bool
    prompt_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    usage_details: dict[str, Any] | None
    usage_source: UsageSource
    cost_usd: float | None
    price_date: str | None
    priced_by: Literal["model", "model_requested"] | None
    unpriced: str | None
    first_byte_ms: float | None
    duration_ms: float
    overhead_ms: float | None
    bytes_in: int
    bytes_out: int
    upstream: str | None
    upstream_request_id: str | None
    attempts: int
    usage_asked_by: Literal["flowstack"] | None
    parent_request_id: str | None


_A_TOKEN_EACH: Final = Usage(prompt_tokens=1, completion_tokens=1)


class FoldedRow(Row):
    """A row that stands for several refused requests, all of one key and with one code: it began with the first of
    them, has the first one's id, their bytes and attempts together, and the mean of their times.

    :ivar requests: how many. A row without it stands for one; one that settles an earlier request's work for none.
    """

    requests: int


BLANK: Final[Row] = {
    "v": 2, "request_id": "", "started_at": datetime.fromtimestamp(0, UTC), "key_id": "", "owner": None, "group": None,
    "attributes": None, "client_addr": "", "user_agent": None, "method": "", "path": "", "model_requested": None,
    "model": None, "service_tier": None, "status": None, "error_code": None, "end": "complete", "stream": False,
    "prompt_tokens": None, "cached_tokens": None, "cache_write_tokens": None, "completion_tokens": None,
    "reasoning_tokens": None, "total_tokens": None, "usage_details": None, "usage_source": "none", "cost_usd": None,
    "price_date": None, "priced_by": None, "unpriced": None, "first_byte_ms": None, "duration_ms": 0.0,
    "overhead_ms": None, "bytes_in": 0, "bytes_out": 0, "upstream": None, "upstream_request_id": None, "attempts": 0,
    "usage_asked_by": None, "parent_request_id": None,
}  # fmt: skip
"""A row of which nothing is known yet, to be copied: that costs far less than to fill a new dict."""


def put_free(row: Row, prices: Prices, when: float) -> None:
    """Put the cost into the row of an answer that does not say what it used, where the model that it names is free.

    :param when: Unix time from which prices count.
    """
    cost, date, _ = prices.cost(row["model"], _A_TOKEN_EACH, None, False, when)
    if cost == 0:
        row["cost_usd"], row["price_date"], row["priced_by"] = cost, date, "model"


def put_usage(
    row: Row,
    usage: Usage,
    prices: Prices,
    batch: bool,
    when: float,
    partial: bool = False,
    drawn_by: str | None = None,
) -> None:
    """Put what was used, and what it costs, into a row that has the models and the tier.

    :param batch: whether it was done as a batch.
    :param when: Unix time from which prices count.
    :param partial: whether more may have been used.
    :param drawn_by: the model that the request's tool names for pictures: it counts where the answer names none.
    """
    if drawn_by is not None and (details := usage.details) is not None and "tool_usage" in details:
        details["tool_models"] = {"image_generation": hide_keys(drawn_by)} | details.get("tool_models", {})
    row["prompt_tokens"] = usage.prompt_tokens
    row["cached_tokens"] = usage.cached_tokens
    row["cache_write_tokens"] = usage.cache_write_tokens
    row["completion_tokens"] = usage.completion_tokens
    row["reasoning_tokens"] = usage.reasoning_tokens
    row["total_tokens"] = usage.total_tokens
    row["usage_details"] = usage.details
    row["usage_source"] = "partial" if partial else "upstream"
    answered = row["model"]
    model = row["model_requested"] if answered is None else answered
    row["cost_usd"], row["price_date"], row["unpriced"] = prices.cost(model, usage, row["service_tier"], batch, when)
    if row["unpriced"] is None:
        row["priced_by"] = "model_requested" if answered is None else "model"


def text(value: bytes) -> str:
    """Bytes from outside as text of bounded length, in which no key stands."""
    if len(value) > MAX_TEXT:
        return hide_keys(value[: MAX_TEXT - len(CUT)].decode(errors="replace")) + CUT
    return hide_keys(value.decode(errors="replace"))


def _name(value: str) -> str:
    return hide_keys(cut(value, MAX_TEXT))


usual_texts: Final = Memo(text)
"""The same, remembered, for what is sent again and again."""

usual_names: Final = Memo(_name)
"""The same for what is text already."""
