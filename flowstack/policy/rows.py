"""The row of the ledger: one for each request that showed a valid key."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypedDict

from flowstack.policy.keys import hide_keys

End = Literal["complete", "refused", "client_gone", "upstream_lost", "timeout", "drain"]
"""How an exchange ended. ``complete``: its last byte was handed to the transport."""

MAX_TEXT = 512
"""Characters kept of any text that a client sent."""


class Row(TypedDict):
    """The contract's row, as far as it is known without reading bodies. Times in milliseconds, sizes in bytes."""

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
    status: int | None
    error_code: str | None
    end: End
    stream: bool
    first_byte_ms: float | None
    duration_ms: float
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
