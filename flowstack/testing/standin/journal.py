"""What the stand-in saw, bounded, for tests to ask about.

The records hold every header as it came, credentials included: a test asks whether they passed unchanged. They are
given to whoever can reach the stand-in, and written nowhere.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from attrs import asdict, define, field

from flowstack.testing.standin.values import Usage

PRIVATE = "/stand-in/"
"""Where the questions are asked; requests below it, and connections that carry nothing else, are not counted."""

_RECORDS, _TAGS = 64, 256
_MESSAGES, _KEPT = 1000, 1 << 20


@define
class Seen:
    """One request, as far as it came. Times are in seconds since the epoch.

    :ivar connection: the connection's number; equal where it was used again.
    :ivar head: the head's bytes as they came, up to and with its blank line, as Latin-1.
    :ivar end: ``open`` while under way; then ``complete``, ``client_gone``, ``framing_fault``, for a WebSocket
        ``closed``, or the directive that ended it: ``cut``, ``close``, ``drop``, ``garbage``, ``ws-close`` and so on.
    :ivar body_bytes: of a WebSocket, with ``body_sha256``, all bytes that came behind the handshake.
    :ivar body_complete: whether the request's body came to its end; of a WebSocket, whether a Close frame came.
    :ivar gone_at: when the peer closed the connection before the answer's end, or None.
    :ivar usage: the tokens that were counted for this answer, or None; of a WebSocket, their sums.
    :ivar messages: what a WebSocket's client sent, the last thousand: ``kind`` is ``text``, ``binary``, ``ping``,
        ``pong`` or ``close``, ``data`` the payload (a text as it is, all else as Latin-1, None where more than a
        MiB is held already), ``frames`` in how many it came.
    :ivar events_out: how many events a WebSocket's client was sent.
    """

    number: int
    connection: int
    method: str
    target: str
    http_version: str
    headers: list[tuple[str, str]] = field(repr=False)
    head: str = field(repr=False)
    started_at: float
    body_bytes: int = 0
    body_sha256: str | None = None
    body_complete: bool = False
    trailers: list[tuple[str, str]] = field(factory=list, repr=False)
    status: int | None = None
    bytes_out: int = 0
    end: str = "open"
    gone_at: float | None = None
    usage: dict[str, int] | None = None
    messages: deque[dict[str, Any]] = field(factory=lambda: deque(maxlen=_MESSAGES), repr=False)
    events_out: int = 0


class Journal:
    """Counters, and the last records.

    :param now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._connections = 0
        self._numbers = 0
        self._open: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Forget all but the connections that are open."""
        self.requests = 0
        self.connections_total = len(self._open)
        self.framing_faults: list[str] = []
        self.framing_fault_count = 0
        self.incomplete_bodies = 0
        self.client_aborts = 0
        self.tokens: dict[str, dict[str, int]] = {}
        self._last: deque[Seen] = deque(maxlen=_RECORDS)
        self._tagged: OrderedDict[str, deque[Seen]] = OrderedDict()

    def opened(self) -> int:
        """A connection came; its number."""
        self._connections += 1
        self.connections_total += 1
        self._open.add(self._connections)
        return self._connections

    def private(self, connection: int) -> None:
        """The connection turned out to be a question to the journal itself: take it out of the counts."""
        if connection in self._open:
            self._open.remove(connection)
            self.connections_total -= 1

    def closed(self, connection: int) -> None:
        """A connection ended."""
        self._open.discard(connection)

    def number(self) -> int:
        """The next request's number; never used twice, also after a reset."""
        self._numbers += 1
        return self._numbers

    def begin(self, seen: Seen, tag: str | None) -> None:
        """A request's head came."""
        self.requests += 1
        self._last.append(seen)
        if tag is not None:
            self._tagged.setdefault(tag, deque(maxlen=_RECORDS)).append(seen)
            while len(self._tagged) > _TAGS:
                self._tagged.popitem(last=False)

    def complete(self, seen: Seen, endpoint: str, usage: Usage | None) -> None:
        """The answer was sent to its end: what it told the client to have used is counted."""
        seen.end = "complete"
        if usage is not None:
            self.count(seen, endpoint, usage)

    def count(self, seen: Seen, endpoint: str, usage: Usage) -> None:
        """The client was told this usage."""
        counts = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.total,
        }
        seen.usage = seen.usage or dict.fromkeys(counts, 0)
        for sums in (seen.usage, self.tokens.setdefault(endpoint, dict.fromkeys(counts, 0))):
            for name, count in counts.items():
                sums[name] += count

    def heard(self, seen: Seen, kind: str, data: bytes, **more: int) -> None:
        """A WebSocket's client sent a message, or a control frame."""
        held = sum(len(message["data"] or "") for message in seen.messages)
        encoding = "utf-8" if kind in ("text", "close") else "latin-1"
        text = data.decode(encoding) if held + len(data) <= _KEPT else None
        told = {"kind": kind, "at": self.now(), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        seen.messages.append({**told, "data": text, **more})

    def client_gone(self, seen: Seen) -> None:
        """The peer closed the connection before the answer's end."""
        seen.end = "client_gone"
        seen.gone_at = self.now()
        self.client_aborts += 1
        if not seen.body_complete:
            self.incomplete_bodies += 1

    def framing_fault(self, seen: Seen | None, fault: str) -> None:
        """What came was not strict HTTP/1.1; the last 64 are kept in words."""
        if seen is not None:
            seen.end = "framing_fault"
        self.framing_fault_count += 1
        self.framing_faults = [*self.framing_faults, fault][-_RECORDS:]

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "requests": self.requests,
            "open_connections": len(self._open),
            "connections_total": self.connections_total,
            "framing_faults": self.framing_fault_count,
            "framing_fault_messages": self.framing_faults,
            "incomplete_bodies": self.incomplete_bodies,
            "client_aborts": self.client_aborts,
            "tokens": self.tokens,
            "last": [_told(seen) for seen in self._last],
        }

    def seen(self, tag: str) -> list[dict[str, Any]]:
        """The records of the requests with this ``X-Client-Tag``, oldest first."""
        return [_told(seen) for seen in self._tagged.get(tag, ())]


def _told(seen: Seen) -> dict[str, Any]:
    return asdict(seen) | {"messages": list(seen.messages)}
