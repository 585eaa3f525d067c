"""What is counted for a row, under which labels, and that it is bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from math import isnan, nan
from typing import Any

import pytest

from flowstack.metrics.families import (
    DURATION,
    FAMILIES,
    IN_FLIGHT,
    KEYSTORE_RELOADS,
    LEDGER_LOST,
    MAX_MODELS,
    OTHER,
    POOL,
    REFUSALS,
    REQUESTS,
    RESTARTS,
    UNAUTHENTICATED,
    UPSTREAM,
    USAGE,
    Family,
)
from flowstack.metrics.recorder import MAX_LABEL, Recorder, clear_gauges, label
from flowstack.metrics.segment import Segment
from tests.metrics.rows import row

GPT = ("chat", "openai", "gpt-4o", "gpt-4o-2024-08-06")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder(Segment.create())
    yield recorder
    recorder.segment.close()


def cells(recorder: Recorder, family: Family, *labels: str, series: int = 0) -> list[float]:
    (found,) = [
        recorder.segment.values(slot)
        for slot in recorder.segment.slots()
        if (slot.kind, slot.labels) == (family.name, labels)
    ]
    start = family.offsets[series]
    return found[start : start + family.series[series].cells]


def value(recorder: Recorder, family: Family, *labels: str, series: int = 0) -> float:
    (found,) = cells(recorder, family, *labels, series=series)
    return found


def labels_of(recorder: Recorder, family: Family) -> set[tuple[str, ...]]:
    """Those under which anything was counted."""
    return {
        slot.labels
        for slot in recorder.segment.slots()
        if slot.kind == family.name and any(recorder.segment.values(slot))
    }


def bucket(counts: list[float]) -> int:
    """The one bucket that counted."""
    (found,) = [index for index, count in enumerate(counts[:-1]) if count]
    return found


def test_an_answer_is_counted_in_each_of_its_numbers(recorder: Recorder) -> None:
    recorder.record(
        row(cached_tokens=5, reasoning_tokens=3, cost_usd=0.25, stream=True, first_byte_ms=30.0), "chat"
    )  # fmt: skip
    assert value(recorder, REQUESTS, "openai", "chat", "200", "complete") == 1
    usage = [cells(recorder, USAGE, *GPT, series=index) for index in range(len(USAGE.series))]
    assert (sum(usage[0][:-1]), usage[0][-1]) == (1, 19)
    assert (sum(usage[1][:-1]), usage[1][-1]) == (1, 10)
    assert (sum(usage[2][:-1]), usage[2][-1]) == (1, 30.0)
    assert usage[3:] == [[5.0], [3.0], [0.25], [0.0], [0.0]]
    duration = cells(recorder, DURATION, *GPT, "")
    assert (sum(duration[:-1]), duration[-1]) == (1, 812.5)
    overhead = cells(recorder, UPSTREAM, "openai")
    assert (sum(overhead[:-1]), overhead[-1]) == (1, 0.25)
    assert value(recorder, UPSTREAM, "openai", series=1) == 100
    assert value(recorder, UPSTREAM, "openai", series=2) == 1000
    assert labels_of(recorder, REFUSALS) == set()


@pytest.mark.parametrize("bound", range(len(DURATION.series[0].bounds)))
def test_a_bucket_holds_its_bound_and_nothing_above(recorder: Recorder, bound: int) -> None:
    series = DURATION.series[0]
    milliseconds = series.bounds[bound] * 1000
    recorder.record(row(duration_ms=milliseconds), "chat")
    assert bucket(cells(recorder, DURATION, *GPT, "")) == bound
    recorder.record(row(duration_ms=milliseconds + 0.001, end="client_gone"), "chat")
    assert bucket(cells(recorder, DURATION, *GPT, "client_gone")) == bound + 1


@pytest.mark.parametrize("bound", range(len(USAGE.series[0].bounds)))
def test_a_bucket_of_tokens_too(recorder: Recorder, bound: int) -> None:
    tokens = int(USAGE.series[0].bounds[bound])
    recorder.record(row(prompt_tokens=tokens, completion_tokens=tokens + 1), "chat")
    assert bucket(cells(recorder, USAGE, *GPT)) == bound
    assert bucket(cells(recorder, USAGE, *GPT, series=1)) == bound + 1


def test_what_is_not_known_is_not_counted_and_zero_is(recorder: Recorder) -> None:
    recorder.record(row(prompt_tokens=None, completion_tokens=None, overhead_ms=None), "chat")
    assert not any(cells(recorder, USAGE, *GPT))
    assert not any(cells(recorder, UPSTREAM, "openai"))
    recorder.record(row(prompt_tokens=0, completion_tokens=None), "chat")
    assert bucket(cells(recorder, USAGE, *GPT)) == 0
    assert not any(cells(recorder, USAGE, *GPT, series=1))


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"cost_usd": 0.25}, (0, 0)),
        ({"cost_usd": 0.0}, (0, 0)),  # free, which is known
        ({"cost_usd": None}, (0, 1)),
        ({"cost_usd": None, "usage_source": "partial"}, (0, 1)),
        ({"usage_source": "none"}, (1, 0)),
        ({"usage_source": "none", "method": "GET"}, (0, 0)),
        ({"usage_source": "none", "status": 429}, (0, 0)),
    ],
)
def test_how_many_requests_the_sums_lack_is_counted(
    recorder: Recorder, changes: dict[str, Any], without: tuple[int, int]
) -> None:
    recorder.record(row(**changes), "chat")
    if changes.get("status", 200) != 200:
        assert labels_of(recorder, USAGE) == set()
        return
    found = [cells(recorder, USAGE, *GPT, series=index)[0] for index in (6, 7)]
    assert tuple(found) == without


def test_the_time_to_the_first_token_is_that_of_streams_only(recorder: Recorder) -> None:
    recorder.record(row(stream=False), "chat")
    recorder.record(row(stream=True, first_byte_ms=None), "chat")
    assert not any(cells(recorder, USAGE, *GPT, series=2))
    recorder.record(row(stream=True), "chat")
    assert sum(cells(recorder, USAGE, *GPT, series=2)[:-1]) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"end": "client_gone"}, "client_gone"),
        ({"end": "client_gone", "status": None}, "client_gone"),
        ({"status": 429}, "429"),
        ({"status": 500, "end": "upstream_lost"}, "500"),
        ({"status": 429, "error_code": "flowstack_budget_exceeded", "end": "refused"}, "flowstack_budget_exceeded"),
        ({"status": 504, "error_code": "upstream_timeout", "end": "timeout"}, "upstream_timeout"),
        ({"end": "drain"}, "drain"),
    ],
)
def test_what_went_wrong_is_the_error_type(recorder: Recorder, changes: dict[str, Any], fault: str) -> None:
    recorder.record(row(), "chat")
    recorder.record(row(model=None, **changes) if changes.get("status", 200) != 200 else row(**changes), "chat")
    assert {labels[-1] for labels in labels_of(recorder, DURATION)} == {"", fault}


def test_a_refusal_is_counted_by_its_code_and_one_of_the_upstream_is_none(recorder: Recorder) -> None:
    refused = row(status=429, error_code="flowstack_rate_limit_exceeded", end="refused", upstream=None, model=None)
    recorder.record(refused, "chat")
    recorder.record(refused, "chat")
    recorder.record(row(status=429, model=None), "chat")
    assert labels_of(recorder, REFUSALS) == {("flowstack_rate_limit_exceeded",)}
    assert value(recorder, REFUSALS, "flowstack_rate_limit_exceeded") == 2
    assert value(recorder, REQUESTS, "", "chat", "429", "refused") == 2
    assert value(recorder, REQUESTS, "openai", "chat", "429", "complete") == 1


def test_unauthenticated_requests_are_counted_by_error_code(recorder: Recorder) -> None:
    for code in ("missing_flowstack_key", "missing_flowstack_key", "misplaced_key"):
        recorder.unauthenticated(code)
    assert value(recorder, UNAUTHENTICATED, "missing_flowstack_key") == 2
    assert value(recorder, UNAUTHENTICATED, "misplaced_key") == 1


# Bounds.


def hostile(number: int) -> str:
    return f'm{number}"}}\n# HELP evil \\ \x00\x1b[31m \ud800 é' + "x" * 1000


def test_ten_thousand_models_that_upstreams_answer_with_stay_within_the_bound(recorder: Recorder) -> None:
    for number in range(10_000):
        recorder.record(row(model_requested=hostile(number), model=hostile(number + 1)), "chat")
    found = labels_of(recorder, USAGE)
    assert len(found) == MAX_MODELS + 1
    assert ("chat", "openai", OTHER, OTHER) in found
    assert value(recorder, REQUESTS, "openai", "chat", "200", "complete") == 10_000
    counted = [cells(recorder, USAGE, *labels) for labels in found]
    assert sum(sum(counts[:-1]) for counts in counted) == 10_000
    assert len(labels_of(recorder, DURATION)) == MAX_MODELS + 1


def test_models_that_clients_make_up_take_no_place_at_all(recorder: Recorder) -> None:
    for number in range(10_000):
        recorder.record(row(model_requested=hostile(number), model=None, status=404, usage_source="none"), "chat")
    assert labels_of(recorder, DURATION) == {("chat", "openai", OTHER, "", "404")}
    recorder.record(row(), "chat")
    assert GPT in labels_of(recorder, USAGE)


def test_an_error_for_a_model_that_answers_is_counted_under_its_name(recorder: Recorder) -> None:
    failed = row(model=None, status=500)
    recorder.record(failed, "chat")
    recorder.record(row(), "chat")
    recorder.record(failed, "chat")
    assert value_of_errors(recorder) == {(OTHER, ""): 1.0, ("gpt-4o", ""): 1.0}


def value_of_errors(recorder: Recorder) -> dict[tuple[str, ...], float]:
    return {
        slot.labels[2:4]: sum(recorder.segment.values(slot)[:-1])
        for slot in recorder.segment.slots()
        if slot.kind == DURATION.name and slot.labels[-1] == "500"
    }


def test_each_family_is_bounded_by_its_limit_and_loses_nothing(recorder: Recorder) -> None:
    for number in range(5000):
        recorder.record(
            row(
                model=f"m{number % 40}", model_requested=f"m{number % 40}", status=200 + number % 100,
                error_code=f"code {number}", upstream=f"up {number}",
            ),
            f"operation {number}",
        )  # fmt: skip
        recorder.unauthenticated(f"code {number}")
    for family in FAMILIES.values():
        assert len(labels_of(recorder, family)) <= family.limit + 1
    for family in (DURATION, REQUESTS, REFUSALS, UNAUTHENTICATED, UPSTREAM, USAGE):
        counted = 0.0
        for slot in recorder.segment.slots():
            if slot.kind == family.name:
                counts = recorder.segment.values(slot)[: family.series[0].cells]
                counted += sum(counts[:-1] if len(counts) > 1 else counts)
        assert counted == 5000
        assert (OTHER,) * len(family.labels) in labels_of(recorder, family)


def test_what_is_remembered_of_rows_is_bounded(recorder: Recorder) -> None:
    for number in range(10_000):
        recorder.record(row(model_requested=f"m{number}"), "chat")
    assert len(recorder._cells) <= 4096
    assert value(recorder, REQUESTS, "openai", "chat", "200", "complete") == 10_000


@pytest.mark.parametrize("given", [hostile(1), "a\rb", "\u2028", "\ud800", "x" * 5000, "\uffff", "\x7f"])
def test_a_label_is_short_and_fit_to_be_printed(given: str) -> None:
    made = label(given)
    assert 0 < len(made) <= MAX_LABEL
    assert made.isprintable()
    made.encode("utf-8")


def test_usual_names_are_labels_as_they_are() -> None:
    for name in ("gpt-4o", "ft:gpt-4o-mini-2024-07-18:acme:sales bot:9aB", "modèle", 'a"b\\c'):
        assert label(name) == name
    assert label(None) == label("") == ""


def test_a_key_sent_as_a_model_is_no_label() -> None:
    key = "fsk-" + "k7Qm2xW9pLz4" + "a" * 46
    assert "k7Qm2xW9pLz4" not in label(key)
    provider = "sk-" + "proj-" + "b" * 60
    assert "bbbb" not in label(provider)


# Over restarts.


def test_the_next_process_goes_on_counting_where_the_last_one_ended() -> None:
    segment = Segment.create()
    first = Recorder(segment)
    for number in range(MAX_MODELS + 10):
        first.record(row(model=f"m{number}", model_requested="m"), "chat")
    first.unauthenticated("missing_flowstack_key")
    before = {slot: segment.values(slot) for slot in segment.slots()}
    second = Recorder(Segment.attach(segment.fileno()))
    assert {slot: segment.values(slot) for slot in segment.slots()}.keys() == before.keys()
    for number in range(MAX_MODELS + 10):
        second.record(row(model=f"m{number}", model_requested="m"), "chat")
    second.unauthenticated("missing_flowstack_key")
    assert value(second, REQUESTS, "openai", "chat", "200", "complete") == 2 * (MAX_MODELS + 10)
    assert value(second, UNAUTHENTICATED, "missing_flowstack_key") == 2
    assert len(labels_of(second, USAGE)) == MAX_MODELS + 1
    assert {slot.labels for slot in segment.slots()} == {slot.labels for slot in before}
    segment.close()


def test_gauges_are_taken_back_when_a_process_is_gone_and_when_one_begins(recorder: Recorder) -> None:
    recorder.watch(IN_FLIGHT, lambda: 3)
    recorder.watch(POOL, lambda: 4, "openai", "idle")
    assert isnan(value(recorder, IN_FLIGHT))
    recorder.publish()
    recorder.record(row(), "chat")
    assert (value(recorder, IN_FLIGHT), value(recorder, POOL, "openai", "idle")) == (3, 4)
    clear_gauges(recorder.segment)
    assert isnan(value(recorder, IN_FLIGHT))
    assert isnan(value(recorder, POOL, "openai", "idle"))
    assert value(recorder, REQUESTS, "openai", "chat", "200", "complete") == 1
    recorder.publish()
    Recorder(recorder.segment)
    assert isnan(value(recorder, IN_FLIGHT))


def test_a_counter_that_is_watched_begins_at_nothing_in_each_process_and_never_goes_down(recorder: Recorder) -> None:
    lost = [0.0]
    recorder.watch(LEDGER_LOST, lambda: lost[0])
    for number, shown in ((0, 0), (5, 5), (5, 5), (3, 5), (6, 6)):
        lost[0] = number
        recorder.publish()
        assert value(recorder, LEDGER_LOST) == shown
    again = Recorder(recorder.segment)
    again.watch(LEDGER_LOST, lambda: lost[0])
    lost[0] = 2
    again.publish()
    assert value(recorder, LEDGER_LOST) == 8


def test_a_number_that_cannot_be_read_hides_itself_and_no_other(recorder: Recorder) -> None:
    numbers: dict[str, float] = {"flight": 1}
    recorder.watch(IN_FLIGHT, lambda: numbers["flight"])
    recorder.watch(RESTARTS, lambda: numbers["restarts"])
    recorder.watch(POOL, lambda: 9, "openai", "idle")
    recorder.publish()
    assert (value(recorder, IN_FLIGHT), value(recorder, RESTARTS)) == (1, 0)
    assert value(recorder, POOL, "openai", "idle") == 9
    del numbers["flight"]
    recorder.publish()
    assert isnan(value(recorder, IN_FLIGHT))
    numbers.update(flight=nan, restarts=nan)
    recorder.publish()
    assert value(recorder, RESTARTS) == 0


def test_counting_by_hand_adds_up(recorder: Recorder) -> None:
    recorder.count(KEYSTORE_RELOADS, "ok")
    recorder.count(KEYSTORE_RELOADS, "ok", by=2)
    recorder.count(KEYSTORE_RELOADS, "failed")
    assert value(recorder, KEYSTORE_RELOADS, "ok") == 3
    assert value(recorder, KEYSTORE_RELOADS, "failed") == 1


@pytest.mark.parametrize("kill", range(5))
def test_a_process_killed_while_it_writes_leaves_a_segment_that_can_be_read_and_gone_on_with(kill: int) -> None:
    segment = Segment.create()
    before = 0.0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.metrics.writer", str(segment.fileno()), "1000"],
            pass_fds=[segment.fileno()], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"counting\n"
            while total(segment) < before + 1000 * (kill + 1):
                assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        # At the kill one request at most was half counted.
        now = total(segment)
        durations = sum(sum(segment.values(slot)[:-1]) for slot in segment.slots() if slot.kind == DURATION.name)
        assert now - 3 <= durations <= now
        assert now > before
        before = now
    segment.close()


def total(segment: Segment) -> float:
    return sum(sum(segment.values(slot)) for slot in segment.slots() if slot.kind == REQUESTS.name)
