"""What all processes counted, summed, and what each takes of the machine, as prometheus_client's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isnan

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from flowstack import __version__
from flowstack.build import BUILD
from flowstack.metrics.families import FAMILIES, Family, Series
from flowstack.metrics.segment import Segment

Totals = dict[tuple[str, tuple[str, ...]], list[float]]
"""Cells by a family's name and its labels' values."""

UNITS = ("seconds", "bytes")


def totals(segments: Iterable[Segment]) -> Totals:
    """Add up what several processes counted. A gauge that nobody shows now stays NaN."""
    found: Totals = {}
    for segment in segments:
        for slot in segment.slots():
            values = segment.values(slot)
            before = found.get((slot.kind, slot.labels))
            if before is not None:
                highest = FAMILIES[slot.kind].series[0].merge == "max"
                values = [_merged(a, b, highest) for a, b in zip(before, values, strict=True)]
            found[slot.kind, slot.labels] = values
    return found


def _merged(a: float, b: float, highest: bool) -> float:
    if isnan(a) or isnan(b):
        return b if isnan(a) else a
    return max(a, b) if highest else a + b


class Counted(Collector):
    """What stands in the segments.

    :param segments: gives those of all processes.
    """

    def __init__(self, segments: Callable[[], Iterable[Segment]]) -> None:
        self._segments = segments

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry is not to ask for a whole collection before the first is due."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Each metric with its samples; those that have none are named all the same."""
        yield InfoMetricFamily(
            "flowstack_build", "The release that runs, and its build.", {"version": __version__, "build": BUILD}
        )
        by_family: dict[str, list[tuple[tuple[str, ...], list[float]]]] = {name: [] for name in FAMILIES}
        for (name, values), cells in sorted(totals(self._segments()).items()):
            by_family[name].append((values, cells))
        for family in FAMILIES.values():
            metrics: dict[str, Metric] = {}
            for series, start in zip(family.series, family.offsets, strict=True):
                metric = metrics.setdefault(series.name, _metric(family, series))
                fixed = tuple(value for _, value in series.fixed)
                for values, cells in by_family[family.name]:
                    _add(metric, series, (*values, *fixed), cells[start : start + series.cells])
            yield from metrics.values()


def _metric(family: Family, series: Series) -> Metric:
    labels = (*family.labels, *(name for name, _ in series.fixed))
    unit = series.name.removesuffix("_total").rpartition("_")[2]
    unit = unit if unit in UNITS else ""
    if series.kind == "histogram":
        return HistogramMetricFamily(series.name, series.text, labels=labels, unit=unit)
    if series.kind == "counter":
        return CounterMetricFamily(series.name, series.text, labels=labels, unit=unit)
    return GaugeMetricFamily(series.name, series.text, labels=labels, unit=unit)


def _add(metric: Metric, series: Series, values: tuple[str, ...], cells: list[float]) -> None:
    """One set of labels. Where nothing was counted under it, as with most of what is bound to ``other``, nothing."""
    if isinstance(metric, HistogramMetricFamily):
        *counts, total = cells
        if not any(counts):
            return
        buckets, count = [], 0.0
        for bound, more in zip((*series.bounds, float("inf")), counts, strict=True):
            count += more
            buckets.append((floatToGoString(bound), count))  # type: ignore[no-untyped-call]
        metric.add_metric(values, buckets, total / series.scale)
    elif isinstance(metric, CounterMetricFamily):
        if cells[0] or not values:
            metric.add_metric(values, cells[0])
    elif isinstance(metric, GaugeMetricFamily) and not isnan(cells[0]):
        metric.add_metric(values, cells[0])


class _Process(ProcessCollector):
    """One process."""

    def _boot_time(self) -> float:
        # Prometheus' own looks into /proc/stat, which a service under systemd's ProcSubset=pid does not see; it would
        # then show nothing at all.
        return float(round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)))


class Processes(Collector):
    """CPU time, memory and descriptors of each process, under Prometheus' usual names.

    :param processes: gives the id of each by its name: ``parent``, ``worker 0`` …
    :param proc: where the system shows them.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]], proc: str = "/proc") -> None:
        self._processes = processes
        self._proc = proc

    def describe(self) -> Iterable[Metric]:
        """Nothing, as above."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Each metric, with a label that says whose it is. A process that is gone meanwhile is left out."""
        found: dict[str, Metric] = {}
        for name, pid in self._processes().items():
            collector = _Process("", lambda pid=pid: pid, self._proc, None)  # type: ignore[misc]
            for metric in collector.collect():
                kept = found.setdefault(metric.name, metric)
                samples = [sample._replace(labels={**sample.labels, "process": name}) for sample in metric.samples]
                kept.samples = samples if kept is metric else kept.samples + samples
        return found.values()
