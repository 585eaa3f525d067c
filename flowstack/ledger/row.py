"""The row of the ledger: one for each request that showed a valid key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from flowstack.memo import CUT, Memo, cut
from flowstack.tokens import hide_keys
from flowstack.usage.model import Usage

if TYPE_CHECKING:
    from flowstack.prices.cost import Prices

End = Literal["complete", "refused", "client_gone", "upstream_lost", "timeout", "drain"]
"""How an exchange ended. ``complete``: its last byte was handed to the transport."""

UsageSource = Literal["upstream", "partial", "none"]
"""Where the tokens come from. ``upstream``: the answer's own final figures. ``partial``: the last that an answer said
before it was cut or left; there may have been more. ``none``: nothing is known."""

MAX_TEXT: Final = 512
"""Characters kept of any text that a client sent."""


class Row(TypedDict):
    """What is known of one request. None is what is not known, and never 0.

    What stands under each member is the manual's page of rows (``scripts/reference.py``).
    """

    v: int
    """2, the version of this format. Rows of version 1 lack some fields, and are read and reported as before."""
    request_id: str
    """As in ``Flowstack-Request-Id``. No two rows share one."""
    started_at: datetime
    """When the request's head had come: UTC, as ``2026-11-23T07:08:09.123456Z``. On the very second there is no
    fraction."""
    key_id: str
    """From the key's line."""
    owner: str | None
    """From the key's line; null where it names none."""
    group: str | None
    """The key's group, or null."""
    attributes: dict[str, str] | None
    """The ``Flowstack-Attribute-*`` headers as an object, names in lower case, or null."""
    client_addr: str | None
    """The client's address, without the port; ``unix`` for a UNIX socket. Behind another proxy it is that proxy's,
    unless ``trusted_proxies`` or ``proxy_protocol`` in ``[server]`` say where the client's stands."""
    user_agent: str | None
    """At most 512 bytes of it, or null."""
    method: str | None
    """As the client sent it."""
    path: str | None
    """As the client sent it, without the query; at most 512 bytes."""
    model_requested: str | None
    """The model that the request's body names, or null."""
    model: str | None
    """The model that the answer names, or null. The price goes by it."""
    service_tier: str | None
    """As the answer says, or null."""
    status: int | None
    """What the client was sent; null if nothing was."""
    error_code: str | None
    """The code of Flowstack's own error, or null. An upstream's error is ``complete``, with its status and null
    here."""
    end: End
    """How the exchange ended: ``complete`` (the last byte was handed to the transport), ``refused``, ``client_gone``,
    ``upstream_lost``, ``timeout`` (also of an upload that stalled) or ``drain``."""
    stream: bool
    """Whether the answer was an event stream (``text/event-stream``)."""
    prompt_tokens: int | None
    """All tokens of the input, the cached ones included."""
    cached_tokens: int | None
    """Those of the input that came from the upstream's cache."""
    cache_write_tokens: int | None
    """Those of the input that were written to the upstream's cache."""
    completion_tokens: int | None
    """All tokens of the output, the reasoning ones included."""
    reasoning_tokens: int | None
    """Those of the output that were reasoning."""
    total_tokens: int | None
    """As the upstream gives it; where several choices are counted separately, their sum."""
    usage_details: dict[str, Any] | None
    """All else that the answer says was used, as the upstream named and nested it, or null (see below)."""
    usage_source: UsageSource
    """``upstream``: the figures are the upstream's own, and final. ``partial``: they are its own, but the answer broke
    off, so more may have been used (see below). ``none``: there are no figures. The answer gave none, or was cut before
    it did; or the request only began work that goes on, or looked after such work; or the answer decompressed to more
    than is read; or its figures cannot be right (275 billion tokens and more). Figures are never guessed."""
    cost_usd: float | None
    """What that cost, in US dollars, by the table of prices or your own (:doc:`/reference/prices`), calls of tools
    included; null where not all of it is known."""
    price_date: str | None
    """The day from which that price holds; a later price changes no row."""
    priced_by: Literal["model", "model_requested"] | None
    """``model`` or ``model_requested``: by which of the two names the price was found; null without a cost."""
    unpriced: str | None
    """Why there is no cost though there is usage: a short word, and the name that has no price
    (:doc:`/reference/prices`); else null."""
    first_byte_ms: float | None
    """Milliseconds from the request's head to the head of the answer; null if there was none."""
    duration_ms: float
    """Milliseconds from the request's head to the end."""
    overhead_ms: float | None
    """Milliseconds from the request's head until the upstream was asked: Flowstack's own share."""
    bytes_in: int
    """Bytes of the request's body that came from the client, without chunk framing."""
    bytes_out: int
    """Bytes of the answer's body that were handed to the client's transport, without chunk framing."""
    upstream: str | None
    """The upstream's name in the configuration; null if the request was refused before it had one."""
    upstream_request_id: str | None
    """The upstream's ``x-request-id``, or null."""
    attempts: int
    """How many times the request was sent to an upstream; 0 if never."""
    attempts_detail: list[dict[str, Any]] | None
    """Each attempt, where more than one was made, or one at one of several targets: an object with ``target``, the
    ``status`` of its answer or null, ``fault`` (``connect``, ``reset``, ``timeout``, or null), ``ms`` that it took, and
    ``may_be_billed``, which is true if it was given up although the upstream may have done the work. Otherwise
    null."""
    usage_asked_by: Literal["flowstack"] | None
    """``flowstack``: Flowstack added ``stream_options`` to the request (:doc:`/reference/behaviour`, Asking for usage).
    Null: it did not, whether or not the client did."""
    parent_request_id: str | None
    """In a row for work that an earlier request began: that request's ``request_id``; else null."""
    node: str | None
    """The machine on which the request was served, as ``[server] node`` calls it, or null."""


_A_TOKEN_EACH: Final = Usage(prompt_tokens=1, completion_tokens=1)


class SocketFacts(TypedDict):
    """What the row of a WebSocket's connection has besides; ``bytes_in`` and ``bytes_out`` are of messages there."""

    transport: Literal["websocket", "webrtc"]
    """Only where something else than HTTP carries what a request is for. ``websocket``: in the row of a WebSocket's
    connection, and of each response on it. ``webrtc``: in the row of a Realtime call that was begun, whose media go
    between client and provider without Flowstack, and of each response that was heard in it (``meter_calls``)."""
    close_code: int | None
    """Only in the row of a WebSocket's connection: the code of the first Close frame, or null if there was none."""
    messages_in: int
    """Only there: messages of the client."""
    messages_out: int
    """Only there: messages of the upstream."""


class FoldedRow(Row):
    """A row that stands for several refused requests of one key with one code: the first one's id and start, the sum of
    their bytes and attempts, the mean of their times."""

    requests: int
    """Only in a row that stands for several refused requests: how many; and 0 in one that settles work which an earlier
    request began (:doc:`/reference/ledger`), or tells of a call that could not be heard."""


BLANK: Final[Row] = {
    "v": 2, "request_id": "", "started_at": datetime.fromtimestamp(0, UTC), "key_id": "", "owner": None, "group": None,
    "attributes": None, "client_addr": "", "user_agent": None, "method": "", "path": "", "model_requested": None,
    "model": None, "service_tier": None, "status": None, "error_code": None, "end": "complete", "stream": False,
    "prompt_tokens": None, "cached_tokens": None, "cache_write_tokens": None, "completion_tokens": None,
    "reasoning_tokens": None, "total_tokens": None, "usage_details": None, "usage_source": "none", "cost_usd": None,
    "price_date": None, "priced_by": None, "unpriced": None, "first_byte_ms": None, "duration_ms": 0.0,
    "overhead_ms": None, "bytes_in": 0, "bytes_out": 0, "upstream": None, "upstream_request_id": None, "attempts": 0,
    "attempts_detail": None,
    "usage_asked_by": None, "parent_request_id": None, "node": None,
}  # fmt: skip
"""A row of which nothing is known yet, to be copied: that costs far less than to fill a new dict."""


def name_node(node: str | None) -> None:
    """Say once which machine this is: all rows that this process makes from now on tell it."""
    BLANK["node"] = node


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
    answered = row["model"]
    model = row["model_requested"] if answered is None else answered
    cost, date, unpriced = prices.cost(model, usage, row["service_tier"], batch, when)
    row["prompt_tokens"] = usage.prompt_tokens
    row["cached_tokens"] = usage.cached_tokens
    row["cache_write_tokens"] = usage.cache_write_tokens
    row["completion_tokens"] = usage.completion_tokens
    row["reasoning_tokens"] = usage.reasoning_tokens
    row["total_tokens"] = usage.total_tokens
    row["usage_details"] = usage.details
    row["usage_source"] = "partial" if partial else "upstream"
    row["cost_usd"] = cost
    row["price_date"] = date
    row["unpriced"] = unpriced
    if unpriced is None:
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
