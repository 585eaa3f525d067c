"""Rows as the relay makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from flowstack.ledger.row import Row


def row(**changes: Any) -> Row:
    """An answered chat completion, changed."""
    values: dict[str, Any] = {
        "v": 2,
        "request_id": "0" * 32,
        "started_at": datetime(2027, 1, 1, tzinfo=UTC),
        "key_id": "k7Qm2xW9pLz4",
        "owner": "alice@example.com",
        "group": None,
        "attributes": None,
        "client_addr": "192.0.2.7",
        "user_agent": None,
        "method": "POST",
        "path": "/v1/chat/completions",
        "model_requested": "gpt-4o",
        "model": "gpt-4o-2024-08-06",
        "service_tier": None,
        "status": 200,
        "error_code": None,
        "end": "complete",
        "stream": False,
        "prompt_tokens": 19,
        "cached_tokens": None,
        "cache_write_tokens": None,
        "completion_tokens": 10,
        "reasoning_tokens": None,
        "total_tokens": 29,
        "usage_details": None,
        "usage_source": "upstream",
        "cost_usd": None,
        "price_date": None,
        "priced_by": None,
        "unpriced": None,
        "first_byte_ms": 500.0,
        "duration_ms": 812.5,
        "overhead_ms": 0.25,
        "bytes_in": 100,
        "bytes_out": 1000,
        "upstream": "openai",
        "upstream_request_id": None,
        "attempts": 1,
        "usage_asked_by": None,
        "parent_request_id": None,
    }
    assert changes.keys() <= values.keys()
    return cast(Row, values | changes)
