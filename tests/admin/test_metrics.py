"""``/metrics``, read by the parsers that Prometheus' own client has for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from flowstack import __version__
from flowstack.admin.health import admin_resource
from flowstack.admin.metrics import PIECE, Metrics
from flowstack.build import BUILD
from flowstack.metrics.exposition import Processes
from flowstack.metrics.families import (
    DURATION,
    FAMILIES,
    IN_FLIGHT,
    KEYSTORE_AGE,
    KEYSTORE_KEYS,
    LEDGER_LOST,
    MAX_MODELS,
    POOL,
    WORKERS,
)
from flowstack.metrics.recorder import Recorder, clear_gauges
from flowstack.metrics.segment import Segment
from tests.admin.lab import AdminListener
from tests.harness import Timeouts, Turns
from tests.metrics.rows import row

OPENMETRICS = b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def segments() -> Iterator[list[Segment]]:
    segments = [Segment.create() for _ in range(3)]
    yield segments
    for segment in segments:
        segment.close()


class Scraper:
    """Who asks."""

    def __init__(self, segments: Sequence[Segment], **options: Any) -> None:
        self.turns = Turns(Timeouts())
        self.calls: list[Callable[[], None]] = []
        self.metrics = Metrics(self, lambda: segments, **options)  # type: ignore[arg-type]
        self.listener = AdminListener(admin_resource(lambda: None, {b"metrics": self.metrics}), turns=self.turns)

    def callLater(self, seconds: float, call: Callable[[], None]) -> None:
        """The reactor's, as far as it is asked here."""
        assert seconds == 0
        self.calls.append(call)

    def turn(self) -> None:
        """One turn of the reactor."""
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        self.turns.settle()

    def ask(self, accept: bytes = b"", method: bytes = b"GET") -> tuple[bytes, bytes]:
        """The head and the body of the answer."""
        client = self.listener.connect()
        client.send(method + b" /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: " + accept + b"\r\n\r\n")
        self.turns.settle()
        while not client.got:
            assert self.calls, "it hangs"
            self.turn()
        head, _, body = client.take().partition(b"\r\n\r\n")
        return head, body

    def parsed(self) -> dict[str, Metric]:
        """Both formats, parsed, once it is sure that they say the same."""
        head, plain = self.ask()
        assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8" in head
        head, open_ = self.ask(OPENMETRICS)
        assert b"\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8" in head
        first = list(parser.text_string_to_metric_families(plain.decode()))
        second = list(openmetrics_parser.text_string_to_metric_families(open_.decode()))
        assert samples(first) == samples(second)
        assert len({metric.name for metric in second}) == len(second)
        return {metric.name: metric for metric in second}

    def samples(self) -> Samples:
        return samples(self.parsed().values())

    def samples_now(self) -> Samples:
        """For numbers that change meanwhile, so that two readings cannot say the same."""
        return samples(openmetrics_parser.text_string_to_metric_families(self.ask(OPENMETRICS)[1].decode()))


def samples(metrics: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for metric in metrics:
        for sample in metric.samples:
            key = (sample.name, frozenset((name, value) for name, value in sample.labels.items() if value))
            assert key not in found
            found[key] = sample.value
    return found


def one(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


MODEL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-4o",
    "gen_ai_response_model": "gpt-4o-2024-08-06",
}


def test_what_all_segments_hold_is_summed(segments: list[Segment]) -> None:
    for number, segment in enumerate(segments, 1):
        recorder = Recorder(segment)
        for _ in range(number):
            recorder.record(row(stream=True, cost_usd=0.5, cached_tokens=7), "chat")
    found = Scraper(segments).samples()
    assert one(found, "flowstack_requests_total", upstream="openai", operation="chat", status="200",
               end="complete") == 6  # fmt: skip
    usage = "gen_ai_client_token_usage"
    assert one(found, usage + "_count", **MODEL, gen_ai_token_type="input") == 6
    assert one(found, usage + "_sum", **MODEL, gen_ai_token_type="input") == 6 * 19
    assert one(found, usage + "_sum", **MODEL, gen_ai_token_type="output") == 6 * 10
    assert one(found, usage + "_bucket", **MODEL, gen_ai_token_type="output", le="4.0") == 0
    assert one(found, usage + "_bucket", **MODEL, gen_ai_token_type="output", le="16.0") == 6
    duration = "gen_ai_server_request_duration_seconds"
    assert one(found, duration + "_sum", **MODEL) == 6 * 0.8125
    assert one(found, duration + "_bucket", **MODEL, le="0.64") == 0
    assert one(found, duration + "_bucket", **MODEL, le="1.28") == 6
    assert one(found, duration + "_bucket", **MODEL, le="+Inf") == 6
    assert one(found, "gen_ai_server_time_to_first_token_seconds_sum", **MODEL) == 3.0
    assert one(found, "flowstack_overhead_seconds_sum", upstream="openai") == 6 * 0.00025
    assert one(found, "flowstack_cost_usd_total", **MODEL) == 3.0
    assert one(found, "flowstack_cached_tokens_total", **MODEL) == 42
    assert one(found, "flowstack_response_body_bytes_total", upstream="openai") == 6000


def test_all_metrics_are_named_with_type_and_unit_before_anything_was_counted(segments: list[Segment]) -> None:
    found = Scraper(segments).parsed()
    for family in FAMILIES.values():
        for series in family.series:
            metric = found[series.name.removesuffix("_total")]
            assert metric.type == series.kind
            assert metric.documentation == series.text
    assert found["gen_ai_server_request_duration_seconds"].unit == "seconds"
    assert found["flowstack_request_body_bytes"].unit == "bytes"
    labels = frozenset({("version", __version__), ("build", BUILD)})
    assert samples(found.values()) == {("flowstack_build_info", labels): 1.0}


def test_a_counter_without_labels_is_shown_at_nothing_since_an_alert_wants_its_beginning(
    segments: list[Segment],
) -> None:
    recorder = Recorder(segments[0])
    recorder.watch(LEDGER_LOST, lambda: 0)
    assert one(Scraper(segments).samples(), "flowstack_ledger_lost_rows_total") == 0


def test_gauges_are_summed_or_the_highest_is_shown_and_those_of_the_gone_are_left_out(segments: list[Segment]) -> None:
    for number, segment in enumerate(segments, 1):
        recorder = Recorder(segment)
        recorder.watch(IN_FLIGHT, lambda number=number: number)
        recorder.watch(KEYSTORE_AGE, lambda number=number: number * 10)
        recorder.watch(POOL, lambda number=number: number, "openai", "idle")
        recorder.publish()
    recorder.watch(KEYSTORE_KEYS, lambda: 100)
    recorder.publish()
    scraper = Scraper(segments)
    found = scraper.samples()
    assert one(found, "flowstack_requests_in_flight") == 6
    assert one(found, "flowstack_keystore_age_seconds") == 30
    assert one(found, "flowstack_keystore_keys") == 100
    assert one(found, "flowstack_pool_connections", upstream="openai", state="idle") == 6
    clear_gauges(segments[2])
    found = scraper.samples()
    assert one(found, "flowstack_requests_in_flight") == 3
    assert one(found, "flowstack_keystore_age_seconds") == 20
    assert ("flowstack_keystore_keys", frozenset()) not in found


def test_what_this_process_shows_is_of_now(segments: list[Segment]) -> None:
    recorder = Recorder(segments[0])
    ready = [1]
    recorder.watch(WORKERS, lambda: ready[0], "ready")
    scraper = Scraper(segments, before=recorder.publish)
    for number in (1, 2, 1):
        ready[0] = number
        assert one(scraper.samples(), "flowstack_workers", state="ready") == number


def test_hostile_names_of_models_are_escaped_and_bounded(segments: list[Segment]) -> None:
    recorder = Recorder(segments[0])
    for number in range(10_000):
        name = f'{number}"}} 1\n# EOF\nevil{{a="b"}} 7\\'
        recorder.record(row(model=name, model_requested=name), "chat")
    found = Scraper(segments[:1]).parsed()
    assert "evil" not in found
    metric = found["gen_ai_server_request_duration_seconds"]
    models = {sample.labels["gen_ai_response_model"] for sample in metric.samples}
    assert len(models) == MAX_MODELS + 1
    assert {model for model in models if model != "other"} == {
        f'{number}"}} 1\ufffd# EOF\ufffdevil{{a="b"}} 7\\' for number in range(MAX_MODELS)
    }
    counts = [sample.value for sample in metric.samples if sample.name.endswith("_count")]
    assert sum(counts) == 10_000


Counting = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def counting() -> Iterator[Counting]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(segment: Segment, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.metrics.writer", str(segment.fileno()), "7", *arguments],
            pass_fds=[segment.fileno()], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"counting\n"
        process.stdout.close()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def requests(found: Samples) -> float:
    return sum(value for (name, _), value in found.items() if name == "flowstack_requests_total")


def test_what_other_processes_counted_is_seen_whole(segments: list[Segment], counting: Counting) -> None:
    processes = [counting(segment, "1000") for segment in segments]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = Scraper(segments).samples()
    assert requests(found) == 3000
    counted = [value for (name, _), value in found.items() if name == "flowstack_unauthenticated_requests_total"]
    assert sum(counted) == 3000
    assert one(found, "flowstack_requests_in_flight") == 21


def falls(before: Samples, after: Samples) -> list[Any]:
    """The counters that went down."""
    return [
        key
        for key, value in before.items()
        if key[0].endswith(("_total", "_count", "_bucket", "_sum")) and after.get(key, -1.0) < value
    ]


def test_no_counter_goes_down_when_a_worker_is_killed_and_another_takes_its_place(
    segments: list[Segment], counting: Counting
) -> None:
    scraper = Scraper(segments[:2])
    steady = counting(segments[0], "1000")
    assert steady.wait() == 0
    before = scraper.samples_now()
    for _ in range(3):
        process = counting(segments[1])
        reached = requests(before) + 2000
        while requests(after := scraper.samples_now()) < reached:
            assert falls(before, after) == []
            assert process.poll() is None
            before = after
        process.send_signal(signal.SIGKILL)
        process.wait()
        clear_gauges(segments[1])
        after = scraper.samples_now()
        assert falls(before, after) == []
        assert one(after, "flowstack_requests_in_flight") == 7
        before = after


STANDING = """
import os, signal, time
while time.process_time() < 0.05:
    pass
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def standing() -> Iterator[int]:
    """The id of a process that has had its share of the processor and is stopped, so that nothing of it changes."""
    process = subprocess.Popen([sys.executable, "-c", STANDING])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_each_process_s_own_cost_is_shown_and_one_that_is_gone_is_left_out(
    segments: list[Segment], standing: int
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    scraper = Scraper(segments, processes=lambda: {"parent": standing, "worker 0": gone.pid, "worker 1": standing})
    found = scraper.parsed()
    cpu = found["process_cpu_seconds"].samples
    assert [sample.labels for sample in cpu] == [{"process": "parent"}, {"process": "worker 1"}]
    assert cpu[0].value >= 0.03  # the system counts two kinds of it, each in whole hundredths
    assert found["process_resident_memory_bytes"].samples[0].value > 1e6


def test_it_is_shown_too_where_the_system_hides_all_but_processes(tmp_path: Path) -> None:
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        found = {metric.name: metric for metric in Processes(lambda: {"one": process.pid}, str(tmp_path)).collect()}
        process.communicate(b"\n")
    assert len(found) == 6
    (started,) = found["process_start_time_seconds"].samples
    assert started.labels == {"process": "one"}
    assert before - 2 < started.value < time.time() + 2


def test_a_metric_of_more_samples_than_a_piece_holds_is_whole_and_between_pieces_others_have_their_turn(
    segments: list[Segment],
) -> None:
    recorder = Recorder(segments[0])
    for number in range(60):
        recorder.record(row(model=f"m{number}"), "chat")
    scraper = Scraper(segments)
    metric = scraper.parsed()["gen_ai_server_request_duration_seconds"]
    assert len(metric.samples) == 60 * (len(DURATION.series[0].bounds) + 3) > 5 * PIECE
    client = scraper.listener.connect()
    client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    turns = 0
    while not client.got:
        turns += 1
        scraper.turn()
    assert turns > len(metric.samples) / PIECE


def test_who_leaves_before_the_answer_is_forgotten(segments: list[Segment]) -> None:
    scraper = Scraper(segments)
    client = scraper.listener.connect()
    client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    scraper.turn()
    assert scraper.calls
    client.fall_over()
    for _ in range(3):
        scraper.turn()
    assert scraper.calls == []
    assert scraper.ask()[0].startswith(b"HTTP/1.1 200 ")


def test_head_gets_the_same_head_and_no_body(segments: list[Segment]) -> None:
    scraper = Scraper(segments)
    head, body = scraper.ask()
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    same, body = scraper.ask(method=b"HEAD")
    assert body == b""
    dateless = [line for line in head.split(b"\r\n") if not line.startswith(b"Date:")]
    assert [line for line in same.split(b"\r\n") if not line.startswith(b"Date:")] == dateless


def test_another_method_is_refused(segments: list[Segment]) -> None:
    assert Scraper(segments).ask(method=b"POST")[0].startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "accept",
    [
        b"application/openmetrics-text; version=abc",
        b"application/openmetrics-text; version=1.0.0.\xe9",
        b"text/plain; version==;escaping=zz",
        b"\xff",
        b",;,=,;;" * 100,
    ],
)
def test_a_scraper_that_asks_for_nonsense_gets_plain_text(segments: list[Segment], accept: bytes) -> None:
    head, body = Scraper(segments).ask(accept)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nContent-Type: text/plain; version=0.0.4" in head
    assert list(parser.text_string_to_metric_families(body.decode()))


def test_a_failure_is_said_and_logged_and_does_not_hang(segments: list[Segment]) -> None:
    failing: list[Callable[[], None]] = [lambda: 1 / 0, lambda: None]  # type: ignore[list-item, return-value]
    scraper = Scraper(segments, before=lambda: failing.pop(0)())
    head, body = scraper.ask()
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"ZeroDivisionError" not in body
    assert scraper.ask()[0].startswith(b"HTTP/1.1 200 ")
