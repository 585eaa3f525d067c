"""Clients that leave before the end."""

from __future__ import annotations

from bench import traffic
from bench.client.leave import NUMBER
from bench.lab import Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.scale import Scale

#: What the upstream does, whether the request asks for a stream, chunks awaited before leaving.
STATES = {
    "a stream before its head": ("hold", True, 0),
    "a stream after two chunks": ("sse", True, 2),
    "not a stream": ("hold", False, 0),
}


class Leaving(Plain):
    """From the client's close to the upstream's seeing it."""

    name = "leave"
    title = "The client leaves: until the upstream's connection is closed"
    columns: tuple[Column, ...] = (
        Column("p50_ms", "p50 ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("max_ms", "worst ms", 2),
        Column("never", "never in 2 s", 0),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Each state that a request can be left in."""
        return [Case(label, scale.leave_trials, once=True) for label in STATES]

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.leave`."""
        mode, stream, chunks = STATES[case.label]
        body = traffic.request_body(f"bench-{mode}-20-{NUMBER}", stream=stream)
        return lab.client(
            "leave",
            port=subject.port,
            upstream=lab.ports["plain"],
            request=traffic.request_bytes(subject.headers, body).decode(),
            trials=case.size,
            first=lab.numbers(case.size).start,
            chunks=chunks,
            patience=30 + 3.0 * case.size,
        )
