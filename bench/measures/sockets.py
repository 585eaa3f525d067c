"""What WebSockets cost: while events come, and while they stand still."""

from __future__ import annotations

from bench import traffic
from bench.lab import Running
from bench.measures.base import Case
from bench.measures.streams import Idle, Streams
from bench.scale import Scale
from bench.subjects.base import Subject

PATHS = {"Realtime": "/v1/realtime?model=gpt-4o-mini&x=", "any other": "/v1/live/bench?x="}
"""By what they carry: events that are read for their usage, and frames of which nothing is known."""


def socket_request(subject: Running, kind: str, mode: str) -> str:
    """A handshake, as text; ``mode`` is one of :mod:`bench.traffic`'s."""
    return traffic.socket_bytes(subject.headers, PATHS[kind] + mode).decode()


def _suits(subject: Subject, case: Case) -> bool:
    """Those that bear so many; a key with limits may open none but what is known."""
    return case.size <= subject.streams and (case.kind == "Realtime" or "limits" not in subject.name)


class Sockets(Streams):
    """CPU for each event, and its way."""

    name = "sockets"
    title = "A WebSocket's event: 200 bytes, an event each 20 ms a socket"

    def cases(self, scale: Scale) -> list[Case]:
        """Of each kind, from a plain upstream."""
        return [
            Case(f"{kind}, {count} sockets", count, kind, direct=True) for kind in PATHS for count in scale.streams[:1]
        ]

    def suits(self, subject: Subject, case: Case) -> bool:
        """See :func:`_suits`."""
        return _suits(subject, case)

    def request(self, subject: Running, case: Case) -> str:
        """The handshake."""
        return socket_request(subject, case.kind, f"bench-sse-{subject.chunk_interval}-0")


class IdleSockets(Idle):
    """Memory for each WebSocket that is open."""

    name = "idle-sockets"
    title = "An open WebSocket that stands still"

    def cases(self, scale: Scale) -> list[Case]:
        """From a plain upstream, on a new process."""
        count = scale.idle_streams
        return [Case(f"{count} open", count, "Realtime", fresh=True, once=True)]

    def request(self, subject: Running, case: Case) -> str:
        """The handshake."""
        return socket_request(subject, case.kind, "bench-idle-0-0")
