"""Rows for the tests of the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.logger import LogEvent, capturedLogs, formatEvent

from flowstack.ledger.row import Row

STARTED = datetime(2026, 11, 23, 7, 8, 9, 123456, tzinfo=UTC)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


def row(number: int = 0, **more: Any) -> Row:
    """A row with every name, as of a chat completion that went well; its ``request_id`` is the number."""
    whole: dict[str, Any] = {
        "v": 2,
        "request_id": str(number),
        "started_at": STARTED,
        "key_id": "k7Qm2xW9pLz4",
        "owner": "alice@example.com",
        "group": None,
        "attributes": {"team": "blue"},
        "client_addr": "192.0.2.7",
        "user_agent": "OpenAI/Python 2.9.0",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model_requested": "gpt-4o",
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "status": 200,
        "error_code": None,
        "end": "complete",
        "stream": True,
        "prompt_tokens": 1234,
        "cached_tokens": 1024,
        "cache_write_tokens": None,
        "completion_tokens": 56,
        "reasoning_tokens": 0,
        "total_tokens": 1290,
        "usage_details": {"prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0}},
        "usage_source": "upstream",
        "cost_usd": 0.0023650,
        "price_date": "2026-11-01",
        "priced_by": "model",
        "unpriced": None,
        "first_byte_ms": 312.004,
        "duration_ms": 2504.25,
        "overhead_ms": 0.211,
        "bytes_in": 4021,
        "bytes_out": 15210,
        "upstream": "openai",
        "upstream_request_id": "req_0123456789abcdef",
        "attempts": 1,
        "attempts_detail": None,
        "usage_asked_by": None,
        "parent_request_id": None,
        "node": None,
    }
    assert set(whole) == set(Row.__annotations__)
    return whole | more  # type: ignore[return-value]


def line(number: int, size: int = 0) -> bytes:
    """A line with that number as its request's id, and with so many bytes if it is not longer anyway."""
    bare = b'{"request_id":"%d","x":"%s"}\n'
    return bare % (number, b"x" * (size - len(bare % (number, b""))))


def ids(*paths: Path) -> list[int]:
    """The request ids of all lines, each of which must be whole."""
    text = b"".join(path.read_bytes() for path in paths)
    assert not text or text.endswith(b"\n")
    return [int(json.loads(one)["request_id"]) for one in text.splitlines()]


@contextmanager
def told() -> Iterator[list[str]]:
    """What is logged meanwhile: level and text of each event, once the block has ended."""
    texts: list[str] = []
    with capturedLogs() as events:
        yield texts
    texts += [f"{event['log_level'].name}: {_text(event)}" for event in events]


def _text(event: LogEvent) -> str:
    return formatEvent(event)
