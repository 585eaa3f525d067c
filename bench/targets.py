"""What Flowstack set out to reach, beside what it did. A missed target is printed, and fails nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from bench.samples import Figure, Row, find

PURE = "flowstack"
LIMITED = "flowstack-limits"
COMPILED = "flowstack-compiled"
COMPILED_LIMITED = "flowstack-compiled-limits"


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


def _figure(rows: Sequence[Row], measure: str, case: str, key: str, subject: str = PURE) -> Figure | None:
    row = find(rows, measure, case, subject)
    return row.figures.get(key) if row else None


def _missing(target: str) -> Verdict:
    return Verdict(target, "not measured", None)


Judgement = Callable[[Sequence[Row]], Verdict]


def _ratio(target: str, measure: str, case: str, key: str, subject: str, reference: str, most: float) -> Judgement:
    def judgement(rows: Sequence[Row]) -> Verdict:
        figure, other = (_figure(rows, measure, case, key, name) for name in (subject, reference))
        if figure is None or other is None or reference not in figure.ratios:
            return _missing(target)
        ratio = figure.ratios[reference]
        words = f"{ratio:.2f} × ({figure.median:.1f} against {other.median:.1f})"
        whole = _figure(rows, measure, case, "all_us", subject) if key == "cpu_us" else None
        if whole is not None and reference in whole.ratios and whole.median != figure.median:
            words += f"; with its index {whole.ratios[reference]:.2f} ×"
        return Verdict(target, words, ratio <= most)

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
        if speed is None or growth is None or "nginx" not in speed.ratios:
            return _missing(target)
        words.append(f"{speed.ratios['nginx']:.2f} ×, {growth.most:.1f} MiB")
        met = met and speed.ratios["nginx"] >= 0.7 and growth.most <= 32
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
    mine = [row for row in rows if row.measure == "leave" and row.subject == PURE]
    if not mine or any(row.faults for row in mine):
        return _missing(target)
    slowest = max(row.figures["p99_ms"].median for row in mine)
    return Verdict(target, f"{slowest:.1f} ms in the slowest state", slowest <= 100)


def _ledger(rows: Sequence[Row]) -> Verdict:
    target = "the ledger's index: at most 10 µs a row, each report under 200 ms, at a million rows"
    case = "1,000,000 rows"
    row, slowest = _figure(rows, "ledger", case, "us_row"), _figure(rows, "ledger", case, "slowest_ms")
    if row is None or slowest is None:
        return _missing(target)
    return Verdict(
        target,
        f"{row.median:.1f} µs, the slowest report {slowest.median:.0f} ms",
        row.median <= 10 and slowest.median < 200,
    )


_SATURATED = "requests", "saturated, 32", "cpu_us"

_JUDGEMENTS: tuple[Judgement, ...] = (
    _ratio(
        "saturated, compiled, all limits: at most 1.0 × Envoy's CPU (aim: 0.85)",
        *_SATURATED, COMPILED_LIMITED, "envoy", 1.0,
    ),
    _ratio("saturated, compiled, without limits: at most 0.75 × Envoy's CPU", *_SATURATED, COMPILED, "envoy", 0.75),
    _ratio("saturated, pure, all limits: at most 1.35 × Envoy's CPU", *_SATURATED, LIMITED, "envoy", 1.35),
    _ratio(
        "TLS upstream, all limits: at most 4.0 × nginx's CPU",
        *("requests", "tls upstream, 32", "cpu_us", LIMITED, "nginx", 4.0),
    ),
    _ratio("SSE chunk, 100 streams: at most 1.3 × nginx's CPU", "sse", "100 streams", "cpu_us", PURE, "nginx", 1.3),
    _ratio(
        "100 streams opened at once, first chunk p50: at most 2.0 × nginx's",
        *("sse", "100 streams", "first_p50_ms", PURE, "nginx", 2.0),
    ),
    _limits(
        "added one-way delay of a chunk, 100 streams: at most 0.3 ms p50 and 3 ms p99 over direct",
        "sse",
        (("100 streams", "added_p50_ms", 0.3), ("100 streams", "added_p99_ms", 3.0)),
        "ms",
    ),
    _limits(
        "memory of an open idle stream: at most 15 KiB with a plain, 55 KiB with a TLS upstream",
        "idle",
        (("plain", "rss_kib", 15.0), ("tls", "rss_kib", 55.0)),
        "KiB",
        digits=1,
    ),
    _bulk,
    _workers,
    _leaving,
    _ledger,
)  # fmt: skip
