"""What event streams cost: while chunks come, and while they stand still."""

from __future__ import annotations

from bench import traffic
from bench.lab import Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.scale import Scale
from bench.subjects.base import Subject


def stream_request(subject: Running, mode: str) -> str:
    """A request for a stream, as text; ``mode`` is one of :mod:`bench.traffic`'s."""
    return traffic.request_bytes(subject.headers, traffic.request_body(mode, stream=True)).decode()


class Streams(Plain):
    """CPU for each chunk, and its way."""

    name = "sse"
    title = "An event stream's chunk: 200 bytes, a chunk each 20 ms a stream"
    columns: tuple[Column, ...] = (
        Column("cpu_us", "CPU µs/chunk", 1, ratio=True),
        Column("core_share", "cores used", 2),
        Column("delay_p50_ms", "way p50 ms", 3),
        Column("delay_p99_ms", "way p99 ms", 3),
        Column("added_p50_ms", "p50 over direct", 3),
        Column("added_p99_ms", "p99 over direct", 3),
        Column("first_p50_ms", "first chunk p50 ms", 2, ratio=True),
        Column("first_p99_ms", "first chunk p99 ms", 2),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Each number of streams, from a plain upstream."""
        return [Case(f"{count} streams", count, direct=True) for count in scale.streams]

    def suits(self, subject: Subject, case: Case) -> bool:
        """Those that bear so many streams."""
        return case.size <= subject.streams

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.sse`."""
        return lab.client(
            "sse",
            port=subject.port,
            request=self.request(subject, case),
            streams=case.size,
            interval=subject.chunk_interval,
            settle=0.3,
            window=scale.stream_seconds,
            share=scale.stream_share,
            pids=subject.pids(),
            patience=scale.stream_seconds + 60,
        )

    def request(self, subject: Running, case: Case) -> str:
        """What is sent to open a stream."""
        return stream_request(subject, f"bench-sse-{subject.chunk_interval}-0")

    def derive(self, values: dict[str, float], direct: dict[str, float] | None) -> dict[str, float]:
        """The delay that the subject adds."""
        if direct is None:
            return {}
        return {f"added_{p}_ms": values[f"delay_{p}_ms"] - direct[f"delay_{p}_ms"] for p in ("p50", "p99")}


class Idle(Plain):
    """Memory for each stream that is open."""

    name = "idle"
    title = "An open stream that stands still"
    columns: tuple[Column, ...] = (
        Column("pss_kib", "PSS KiB/stream", 1, ratio=True),
        Column("rss_kib", "RSS KiB/stream", 1),
        Column("base_mib", "RSS MiB before", 1),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """From a plain upstream and by TLS, each on a new process."""
        count = scale.idle_streams
        return [
            Case(f"{kind} upstream, {count} open", count, upstream=kind, fresh=True, once=True)
            for kind in ("plain", "tls")
        ]

    def suits(self, subject: Subject, case: Case) -> bool:
        """Those that bear so many streams."""
        return case.size <= subject.streams

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.idle`."""
        return lab.client(
            "idle",
            port=subject.port,
            request=self.request(subject, case),
            streams=case.size,
            settle=0.5,
            pids=subject.pids(),
        )

    def request(self, subject: Running, case: Case) -> str:
        """What is sent to open a stream."""
        return stream_request(subject, "bench-idle-0-0")
