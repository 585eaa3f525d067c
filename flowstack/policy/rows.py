"""The row of the ledger: one for each request that showed a valid key."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypedDict

from flowstack.policy.keys import hide_keys

End = Literal["complete", "refused", "client_gone", "upstream_lost", "timeout", "drain"]
"""How an exchange ended. ``complete``: its last byte was handed to the transport."""

MAX_TEXT = 512
"""Characters kept of any text that a client sent."""


class Row(TypedDict):
    """The contract's row. Times in milliseconds, sizes in bytes; None is what is not known, and never 0."""

    v: int
    request_id: str
    started_at: datetime
    key_id: str
    owner: str | None
    attributes: dict[str, str] | None
    client_addr: str
    user_agent: str | None
    method: str
    path: str
    model_requested: str | None
    model: str | None
    service_tier: str | None
    status: int | None
    error_code: str | None
    end: End
    stream: bool
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    usage_details: dict[str, Any] | None
    usage_source: Literal["upstream", "none"]
    cost_usd: float | None
    price_date: str | None
    first_byte_ms: float | None
    duration_ms: float
    overhead_ms: float | None
    bytes_in: int
    bytes_out: int
    upstream: str | None
    upstream_request_id: str | None
    attempts: int


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds, to the microsecond."""
    return int(seconds * 1_000_000) / 1000


def text(value: bytes | None) -> str | None:
    """Client-sent bytes as text of bounded length, in which no key stands."""
    return None if value is None else hide_keys(value[:MAX_TEXT].decode(errors="replace"))


_text = lru_cache(1024)(text)


def usual_text(value: bytes | None) -> str | None:
    """The same as :func:`text`, remembered, for what is sent again and again."""
    return text(value) if value is not None and len(value) > MAX_TEXT else _text(value)


def bounded(value: str | None) -> str | None:
    """Text from a body, of bounded length, in which no key stands."""
    return None if value is None else hide_keys(value[:MAX_TEXT])
