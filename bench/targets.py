"""What Flowstack set out to reach, beside what it did. A missed target is printed, and fails nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from bench.samples import Figure, Row, find
from bench.subjects import REFERENCE

SUBJECT = "flowstack"


@frozen(slots=True)
class Verdict:
    """One target.

    :ivar met: None where nothing was measured that could tell.
    """

    target: str
    measured: str
    met: bool | None


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Each target, in order."""
    return [judgement(rows) for judgement in _JUDGEMENTS]


def _figure(rows: Sequence[Row], measure: str, case: str, key: str, subject: str = SUBJECT) -> Figure | None:
    row = find(rows, measure, case, subject)
    return row.figures.get(key) if row else None


def _missing(target: str) -> Verdict:
    return Verdict(target, "not measured", None)


Judgement = Callable[[Sequence[Row]], Verdict]


def _ratio(target: str, measure: str, case: str, key: str, limit: float, *, below_envoy: bool) -> Judgement:
    def judgement(rows: Sequence[Row]) -> Verdict:
        figure = _figure(rows, measure, case, key)
        reference = _figure(rows, measure, case, key, REFERENCE)
        if figure is None or reference is None or figure.ratio is None:
            return _missing(target)
        words = f"{figure.ratio:.2f} × ({figure.median:.1f} µs against {reference.median:.1f})"
        met = figure.ratio <= limit
        envoy = _figure(rows, measure, case, key, "envoy")
        if envoy is not None and envoy.ratio is not None:
            words += f"; Envoy {envoy.ratio:.2f} ×"
            met = met and (not below_envoy or figure.ratio < envoy.ratio)
        return Verdict(target, words, met)

    return judgement


def _limits(
    target: str, measure: str, wanted: Sequence[tuple[str, str, float]], unit: str, *, digits: int = 2
) -> Judgement:
    """All of (case, key, limit) must hold."""

    def judgement(rows: Sequence[Row]) -> Verdict:
        figures = [(_figure(rows, measure, case, key), limit) for case, key, limit in wanted]
        known = [(figure.median, limit) for figure, limit in figures if figure is not None]
        if len(known) < len(wanted):
            return _missing(target)
        words = " and ".join(f"{value:.{digits}f}" for value, _ in known) + f" {unit}"
        return Verdict(target, words, all(value <= limit for value, limit in known))

    return judgement


def _bulk(rows: Sequence[Row]) -> Verdict:
    target = "big upload and download: at least 0.7 × nginx's throughput, RSS growth at most 32 MiB"
    words, met = [], True
    for way in ("upload", "download"):
        speed, growth = _figure(rows, "bulk", way, "mib_s"), _figure(rows, "bulk", way, "growth_mib")
        if speed is None or growth is None or speed.ratio is None:
            return _missing(target)
        words.append(f"{speed.ratio:.2f} ×, {growth.most:.1f} MiB")
        met = met and speed.ratio >= 0.7 and growth.most <= 32
    return Verdict(target, " and ".join(words), met)


def _workers(rows: Sequence[Row]) -> Verdict:
    target = "2 workers: CPU per request at most 1.15 × one worker's, each serves 40 to 60 %"
    one = _figure(rows, "workers", "1 worker", "cpu_us")
    two = _figure(rows, "workers", "2 workers", "cpu_us")
    share = _figure(rows, "workers", "2 workers", "smaller_share")
    if one is None or two is None or share is None:
        return _missing(target)
    factor = two.median / one.median
    return Verdict(
        target, f"{factor:.2f} ×, the smaller share {share.median:.0%}", factor <= 1.15 and share.median >= 0.4
    )


def _leaving(rows: Sequence[Row]) -> Verdict:
    target = "client gone to upstream closed: at most 100 ms, p99, in every state"
    mine = [row for row in rows if row.measure == "leave" and row.subject == SUBJECT]
    if not mine or any(row.faults for row in mine):
        return _missing(target)
    slowest = max(row.figures["p99_ms"].median for row in mine)
    return Verdict(target, f"{slowest:.1f} ms in the slowest state", slowest <= 100)


def _ledger(rows: Sequence[Row]) -> Verdict:
    target = "the ledger's index: at least 20,000 rows/s in, each report under 200 ms"
    case = "1,000,000 rows"
    into, slowest = _figure(rows, "ledger", case, "rows_s"), _figure(rows, "ledger", case, "slowest_ms")
    if into is None or slowest is None:
        return _missing(target)
    return Verdict(
        target,
        f"{into.median:,.0f} rows/s, the slowest report {slowest.median:.0f} ms",
        into.median >= 20_000 and slowest.median < 200,
    )


_JUDGEMENTS: tuple[Judgement, ...] = (
    _ratio(
        "CPU per request, plain upstream: at most 3.0 × nginx; aim below Envoy",
        *("requests", "plain upstream, 32", "cpu_us", 3.0),
        below_envoy=False,
    ),
    _ratio(
        "CPU per request, TLS upstream: at most 3.0 × nginx with a TLS upstream",
        *("requests", "tls upstream, 32", "cpu_us", 3.0),
        below_envoy=False,
    ),
    _ratio(
        "CPU per SSE chunk, 100 streams: at most 1.6 × nginx, and below Envoy",
        *("sse", "100 streams", "cpu_us", 1.6),
        below_envoy=True,
    ),
    _limits(
        "added one-way delay of a chunk, 100 streams: at most 0.3 ms p50 and 3 ms p99 over direct",
        "sse",
        (("100 streams", "added_p50_ms", 0.3), ("100 streams", "added_p99_ms", 3.0)),
        "ms",
    ),
    _limits(
        "memory of an open idle stream: at most 24 KiB with a plain, 80 KiB with a TLS upstream",
        "idle",
        (("plain", "rss_kib", 24.0), ("tls", "rss_kib", 80.0)),
        "KiB",
        digits=1,
    ),
    _bulk,
    _workers,
    _leaving,
    _ledger,
)
