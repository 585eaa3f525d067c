"""The row of an exchange that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from flowstack.ledger.row import BLANK, End, Row, put_free, put_usage, text, usual_names, usual_texts
from flowstack.memo import Memo
from flowstack.prices.cost import Prices
from flowstack.relay.admission import Admission
from flowstack.relay.attempt import Attempt, detail_of
from flowstack.relay.failover import Failover
from flowstack.server.request import Request
from flowstack.usage.model import Outcome
from flowstack.usage.request_facts import RequestFacts


class Facts:
    """What a row is made of. Times are on the monotonic clock, but for ``wall_started``: Unix seconds.

    :ivar asked: what the body asks for, as far as it was read.
    :ivar headers: the response's, by lower-case name, or None.
    :ivar status: which the client got, or None.
    :ivar error_code: of an error of Flowstack's own, or None.
    :ivar first_byte: when the answer's head was ready, or None.
    :ivar usage_asked: whether the upstream was asked for usage in the client's place.
    """

    __slots__ = ()

    admission: Admission
    request: Request
    request_id: bytes
    started: float
    wall_started: float
    model: str | None
    asked: RequestFacts
    attempt: Attempt | None
    attempts: list[Attempt]
    failover: Failover | None
    headers: Mapping[bytes, bytes] | None
    status: int | None
    error_code: str | None
    first_byte: float | None
    usage_asked: bool


def row_of(facts: Facts, outcome: Outcome, end: End, sent: int, now: float, prices: Prices) -> Row:
    """Make the row.

    :param outcome: what the answer said of usage.
    :param sent: bytes of the answer's body.
    """
    admission, headers, started, attempts = facts.admission, facts.headers, facts.started, facts.attempts
    model, body, first_byte, wall_started = facts.model, facts.request.body, facts.first_byte, facts.wall_started
    duration = (now - started) * 1e6 // 1.0 / 1e3  # in milliseconds, to the microsecond below
    # Most requests of a connection have the same head: what it says is copied whole. A dict of the rest, merged into
    # it, would be fewer opcodes than these stores, but 5,000 instructions more.
    row = (admission.row or row_of_head(admission, facts.request)).copy()
    row["request_id"] = facts.request_id.decode()
    row["started_at"] = datetime.fromtimestamp(wall_started, UTC)
    if model is not None:
        row["model_requested"] = usual_names[model]
    row["model"] = outcome.model
    row["service_tier"] = outcome.service_tier
    row["status"] = facts.status
    row["error_code"] = facts.error_code
    row["end"] = end
    if first_byte is not None:
        row["first_byte_ms"] = (first_byte - started) * 1e6 // 1.0 / 1e3
    row["duration_ms"] = row["overhead_ms"] = duration
    if attempts:
        row["overhead_ms"] = (attempts[0].sent_at - started) * 1e6 // 1.0 / 1e3
        for attempt in attempts:
            row["attempts"] += attempt.call.attempts
    if facts.failover is not None and facts.failover.several:
        _put_attempts(row, facts, facts.failover, now)
    if body is not None:
        row["bytes_in"] = body.received
    row["bytes_out"] = sent
    if headers is not None:
        row["stream"] = event_streams[headers.get(b"content-type", b"")]
    if headers is not None and (request_id := headers.get(b"x-request-id")) is not None:
        row["upstream_request_id"] = text(request_id)
    if outcome.usage is not None:
        batch, drawn_by = admission.operation.family == "batch", facts.asked.inner.drawn_by
        put_usage(row, outcome.usage, prices, batch, wall_started, outcome.partial, drawn_by)
    elif admission.operation.family == "moderations":
        put_free(row, prices, wall_started)
    if facts.usage_asked:
        row["usage_asked_by"] = "flowstack"
    return row


def _put_attempts(row: Row, facts: Facts, failover: Failover, now: float) -> None:
    """Tell of each attempt; the row is that of the upstream that served."""
    row["attempts_detail"] = detail_of(facts.attempts, now)
    if facts.attempt is not None:
        row["upstream"] = facts.attempt.route.origin.name
    if failover.renamed is not None and row["model"] is None and facts.attempt is facts.attempts[-1]:
        row["model"] = usual_names[failover.renamed]


def row_of_head(admission: Admission, request: Request) -> Row:
    """What a request's head says of its row; it is kept, so copy it."""
    key, route = admission.key, admission.route
    admission.row = row = BLANK.copy()
    row["key_id"] = key.id
    row["owner"] = key.owner
    row["group"] = key.group
    row["attributes"] = admission.attributes
    row["client_addr"] = admission.client_address
    if (user_agent := request.requestHeaders.by_name.get(b"user-agent")) is not None:
        row["user_agent"] = usual_texts[user_agent]
    row["method"] = request.method.decode()
    row["path"] = usual_texts[request.uri.partition(b"?")[0] if route is None else route.path]
    if route is not None:
        row["upstream"] = route.origin.name
    return row


def _is_event_stream(content_type: bytes) -> bool:
    return content_type[:17].lower() == b"text/event-stream"


event_streams: Final = Memo(_is_event_stream)
"""By a Content-Type, whether a body comes as server-sent events."""
