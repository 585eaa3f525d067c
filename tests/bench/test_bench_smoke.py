"""The bench itself works: bounded loads, real processes, and no figure from a failed request."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bench import traffic
from bench.client.streams import Meter, Stream
from bench.lab import Lab, Running
from bench.measures import MEASURES
from bench.procs import BenchError, tree
from bench.samples import Sample, sum_up
from bench.scale import TINY
from bench.stats import percentile
from bench.subjects import SUBJECTS
from bench.targets import judge


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A bench upstream that is up, without any subject."""
    with Lab("fsk-anything") as one:
        yield one


@pytest.mark.e2e
def test_a_tiny_run_leaves_a_figure_for_every_measure_and_no_process(tmp_path: Path) -> None:
    before = set(tree(os.getpid()))
    command = [sys.executable, "-m", "bench", "--scale", "tiny", "--subjects", "nginx", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (raw,) = tmp_path.glob("*.json")
    document: dict[str, Any] = json.loads(raw.read_text())
    assert [sample["fault"] for sample in document["samples"] if sample["fault"]] == []
    rows = {(row["measure"], row["subject"]): row["figures"] for row in document["rows"]}
    nginx = SUBJECTS["nginx"]
    asked = {name for name, one in MEASURES.items() if any(one.suits(nginx, case) for case in one.cases(TINY))}
    assert {measure for measure, subject in rows if subject == "nginx"} == asked
    assert rows["requests", "nginx"]["cpu_us"]["median"] > 0
    assert rows["sse", "nginx"]["cpu_us"]["ratios"] == {"nginx": 1.0}
    assert rows["leave", "nginx"]["never"]["most"] == 0
    assert "CPU µs" in done.stdout
    assert "nginx" in raw.with_suffix(".rst").read_text()
    cores, pinned = document["machine"]["cores"], document["machine"]["pinned"]
    assert cores == len(os.sched_getaffinity(0))
    assert cores == 1 or not set(pinned["subject"]) & set(pinned["load"]), "the load takes no time of the subject's"
    assert set(tree(os.getpid())) <= before


@pytest.mark.e2e
def test_limits_counted_in_redis_are_measured_beside_local_ones() -> None:
    before = set(tree(os.getpid()))
    command = [sys.executable, "-m", "bench.shared", "--pairs", "1", "--seconds", "2", "--cases", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    (redis,) = (float(line.split()[5]) for line in lines if line.startswith("CPU µs a request, Redis"))
    assert redis > 0
    assert set(tree(os.getpid())) <= before


@pytest.mark.e2e
def test_a_keystore_is_weighed_looked_up_in_and_reloaded(lab: Lab) -> None:
    (case,) = MEASURES["keys"].cases(TINY)
    values = MEASURES["keys"].run(lab, lab.direct(), case, TINY)
    assert {column.key for column in MEASURES["keys"].columns} <= set(values)
    assert 0 < values["again_us"] < values["first_us"]
    assert 0 < values["stall_ms"] <= values["reload_ms"]


@pytest.mark.e2e
def test_a_journal_is_indexed_and_each_report_is_timed(lab: Lab) -> None:
    (case,) = MEASURES["ledger"].cases(TINY)
    values = MEASURES["ledger"].run(lab, lab.direct(), case, TINY)
    assert {column.key for column in MEASURES["ledger"].columns} <= set(values)
    assert all(value > 0 for value in values.values())


@pytest.mark.e2e
def test_a_stream_without_a_proxy_has_figures_of_its_chunks(lab: Lab) -> None:
    (case,) = MEASURES["sse"].cases(TINY)
    values = MEASURES["sse"].run(lab, lab.direct(), case, TINY)
    assert values["chunks"] > 0
    assert 0 < values["delay_p50_ms"] <= values["delay_p99_ms"]
    assert "cpu_us" not in values


@pytest.mark.parametrize("size", [13, 199, 1000, 100_000])
@pytest.mark.parametrize(("numbers", "fault"), [(range(50), None), ([0, 1, 3], "chunk 2 of a stream is missing")])
def test_each_chunk_of_a_stream_counts_once_however_it_comes(
    size: int, numbers: Iterable[int], fault: str | None
) -> None:
    whole = traffic.STREAM_HEAD + b"".join(traffic.stream_chunk(1000, number) for number in numbers)

    async def counted() -> Meter:
        meter = Meter()
        meter.on = True
        stream = Stream(meter, b"")
        stream.connection_made(Mock())
        for start in range(0, len(whole), size):
            stream.data_received(whole[start : start + size])
        return meter

    meter = asyncio.run(counted())
    assert (len(meter.delays), meter.fault) == ((50, None) if fault is None else (2, fault))


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["sse", "idle", "bulk", "leave"])
def test_no_figure_comes_from_an_answer_that_failed(lab: Lab, name: str) -> None:
    refused = Running("nobody", 9, traffic.request_headers("fsk-anything"), 20)
    measure = MEASURES[name]
    with pytest.raises((BenchError, OSError)):
        measure.run(lab, refused, measure.cases(TINY)[0], TINY)


def test_a_request_and_its_answer_have_the_sizes_that_the_readme_names() -> None:
    assert 550 <= len(traffic.request_body()) <= 650
    assert 650 <= len(traffic.ANSWER_BODY) <= 750
    assert len(traffic.stream_chunk(1, 2)) == traffic.EVENT_BYTES + len(b"c8\r\n\r\n")


def test_a_ratio_pairs_the_runs_of_the_same_turn() -> None:
    def sample(subject: str, turn: int, value: float) -> Sample:
        return Sample("requests", "plain upstream, 32 conn.", subject, 1, turn, {"cpu_us": value})

    pairs = [(10.0, 20.0), (30.0, 60.0), (20.0, 100.0)]
    samples = [
        one for turn, (a, b) in enumerate(pairs, 1) for one in (sample("nginx", turn, a), sample("envoy", turn, b))
    ]
    row = next(row for row in sum_up(samples) if row.subject == "envoy")
    assert (row.figures["cpu_us"].median, row.figures["cpu_us"].ratios) == (60.0, {"nginx": 2.0, "envoy": 1.0})


def test_a_target_without_figures_is_neither_met_nor_missed() -> None:
    assert {verdict.met for verdict in judge([])} == {None}


def test_a_target_is_judged_by_its_ratio() -> None:
    def verdict(envoy: float, flowstack: float) -> bool | None:
        samples = [
            Sample("requests", "saturated, 32 conn.", name, 1, 1, {"cpu_us": value, "all_us": value + 10})
            for name, value in (("envoy", envoy), ("flowstack-compiled-limits", flowstack))
        ]
        return judge(sum_up(samples))[0].met

    assert verdict(40.0, 40.0) is True
    assert verdict(40.0, 40.1) is False


@pytest.mark.parametrize(("percent", "wanted"), [(50, 2), (99, 4), (100, 4), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent: float, wanted: int) -> None:
    assert percentile([1, 2, 3, 4], percent) == wanted
