"""What happens now, summed over the processes that count it."""

from __future__ import annotations

from typing import Any

import pytest

from flowstack.admin.live import WINDOW, Live
from flowstack.errors import ParseError
from flowstack.keys.store import ReloadResult
from flowstack.metrics.families import (
    EJECTED,
    IN_FLIGHT,
    LEDGER_LAG,
    LEDGER_LOST,
    LEDGER_QUEUED,
    POOL,
    RESCUED,
    SOCKETS,
    STREAMS,
    WORKERS,
)
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from tests.ledger.samples import row


class Lab:
    """Two workers' counts, and their parent's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.result: ReloadResult | None = None
        self.recorders = [Recorder(Segment.create()) for _ in range(3)]
        self.parent, *self.workers = self.recorders
        self.live = Live(
            lambda: [recorder.segment for recorder in self.recorders], lambda: self.result,
            {"openai": ["openai"], "azure": ["azure/eu", "azure/us"]},
            lambda: ["http://127.0.0.1:8080"], lambda: self.now,
        )  # fmt: skip

    def count(self, worker: int, times: int, **more: Any) -> None:
        for _ in range(times):
            self.workers[worker].record(row(**more), "chat")

    def ask(self) -> dict[str, Any]:
        for recorder in self.recorders:
            recorder.publish()
        return self.live()

    def upstream(self, name: str = "openai") -> dict[str, Any]:
        (found,) = [one for one in self.ask()["upstreams"] if one["name"] == name]
        return dict(found)


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_gauges_of_all_processes_are_summed(lab: Lab) -> None:
    for worker in lab.workers:
        worker.watch(IN_FLIGHT, lambda: 3)
        worker.watch(STREAMS, lambda: 2)
        worker.watch(SOCKETS, lambda: 5)
        worker.watch(LEDGER_QUEUED, lambda: 10)
        worker.watch(LEDGER_LOST, lambda: 1)
        for state, value in (("open", 4), ("idle", 2), ("waiting", 0)):
            worker.watch(POOL, lambda value=value: value, "openai", state)  # type: ignore[misc]
    lab.parent.watch(LEDGER_LAG, lambda: 77)
    for state, value in (("ready", 2), ("starting", 0), ("gone", 1)):
        lab.parent.watch(WORKERS, lambda value=value: value, state)  # type: ignore[misc]
    lab.now += 60
    found = lab.ask()
    assert (found["in_flight"], found["streams_open"], found["websockets_open"]) == (6, 4, 10)
    assert found["ledger"] == {"bytes_behind": 77, "queued_bytes": 20, "lost_rows": 2}
    assert found["workers"] == {"ready": 2, "starting": 0, "gone": 1}
    assert found["upstreams"][0]["connections"] == {"open": 8, "idle": 4, "waiting": 0}
    assert (found["uptime_seconds"], found["listening"]) == (60.0, ["http://127.0.0.1:8080"])


def test_what_nobody_knows_is_null_and_not_0(lab: Lab) -> None:
    found = lab.ask()
    assert found["ledger"]["bytes_behind"] is None
    assert found["upstreams"][1] == {
        "name": "azure", "state": "unknown", "requests_1m": None, "errors_1m": None, "rescued_1m": None,
        "down": [], "seconds": 0.0,
        "connections": {"open": None, "idle": None, "waiting": None},
    }  # fmt: skip
    assert found["workers"] == {"ready": 1, "starting": 0, "gone": 0}


def test_an_upstream_is_judged_by_its_last_minute(lab: Lab) -> None:
    lab.count(0, 50, status=500)
    lab.ask()
    lab.now += 10
    lab.count(0, 6)
    lab.count(1, 3, status=503)
    lab.count(1, 1, status=429)
    got = lab.upstream()
    assert (got["state"], got["requests_1m"], got["errors_1m"], got["seconds"]) == ("ok", 10, 3, 10.0)
    lab.count(0, 10, status=None, end="upstream_lost")
    assert lab.upstream()["state"] == "failing"
    for _ in range(4):
        lab.now += WINDOW / 2
        got = lab.upstream()
    assert (got["state"], got["requests_1m"], got["seconds"]) == ("unknown", 0, WINDOW)


def test_an_upstream_with_targets_tells_of_them_together_and_of_those_that_are_down(lab: Lab) -> None:
    for worker, count in zip(lab.workers, (2, 3), strict=True):
        for label in ("azure/eu", "azure/us"):
            worker.watch(POOL, lambda count=count: count, label, "open")  # type: ignore[misc]
            worker.watch(EJECTED, lambda label=label: label == "azure/us", label)  # type: ignore[misc]
    lab.ask()
    lab.now += 10
    lab.workers[0].count(RESCUED, "azure")
    lab.workers[1].count(RESCUED, "azure")
    got = lab.upstream("azure")
    assert got["connections"]["open"] == 10
    assert (got["down"], got["state"], got["rescued_1m"]) == (["azure/us"], "failing", 2)


def test_the_last_reload_is_told_with_its_faults(lab: Lab) -> None:
    lab.result = ReloadResult(3, 7, (ParseError("found x, expected y", file="keys", line=2),), 0.0, 0.0)
    assert lab.ask()["reload"] == {
        "at": "1970-01-01T00:00:00.000000Z", "generation": 3, "keys": 7, "fault": ["keys:2: found x, expected y"],
    }  # fmt: skip
