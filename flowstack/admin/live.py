"""What happens now, in all processes together, from what they count."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from typing import Any

from flowstack.keys.store import ReloadResult
from flowstack.metrics.exposition import Totals, totals
from flowstack.metrics.families import (
    EJECTED,
    IN_FLIGHT,
    LEDGER_LAG,
    LEDGER_LOST,
    LEDGER_QUEUED,
    POOL,
    REQUESTS,
    RESCUED,
    SOCKETS,
    STREAMS,
    WORKERS,
    Family,
)
from flowstack.metrics.segment import Segment
from flowstack.util import instant

WINDOW = 60.0
"""Seconds over which an upstream's requests are looked at."""

SHOWN_FAULTS = 20

_FAILED_ENDS = frozenset(("upstream_lost", "timeout"))

_Counts = dict[str, tuple[float, float, float]]

_NONE = 0.0, 0.0, 0.0


class Live:
    """See the module.

    :param segments: those of all processes.
    :param reload: gives what came of the last reload of the keystore.
    :param upstreams: by their names, the labels of their targets; of one without any, its name.
    :param listening: gives the URLs of the proxy's listeners.
    :param clock: seconds, on a clock that never steps.
    """

    def __init__(
        self,
        segments: Callable[[], Iterable[Segment]],
        reload: Callable[[], ReloadResult | None],
        upstreams: Mapping[str, Sequence[str]],
        listening: Callable[[], list[str]],
        clock: Callable[[], float],
    ) -> None:
        self._segments = segments
        self._reload = reload
        self._upstreams = dict(upstreams)
        self._listening = listening
        self._clock = clock
        self._started = clock()
        self._before: deque[tuple[float, _Counts]] = deque()

    def __call__(self) -> dict[str, Any]:
        """As the API's ``live`` has it. An upstream's requests are those since it was asked last, a minute at most."""
        now, found = self._clock(), totals(self._segments())
        counts = _by_upstream(found)
        while len(self._before) > 1 and now - self._before[1][0] >= WINDOW:
            self._before.popleft()
        at, earlier = self._before[0] if self._before else (now, counts)
        if not self._before or now - self._before[-1][0] >= 1.0:
            self._before.append((now, counts))
        lag = _gauge(found, LEDGER_LAG)
        return {
            "in_flight": _whole(_gauge(found, IN_FLIGHT)) or 0,
            "streams_open": _whole(_gauge(found, STREAMS)) or 0,
            "websockets_open": _whole(_gauge(found, SOCKETS)) or 0,
            "upstreams": [
                self._upstream(name, found, counts, earlier, min(now - at, WINDOW)) for name in self._upstreams
            ],
            "reload": _reloaded(self._reload()),
            "ledger": {
                "bytes_behind": _whole(lag),
                "queued_bytes": _whole(_gauge(found, LEDGER_QUEUED)),
                "lost_rows": _whole(_gauge(found, LEDGER_LOST)),
            },
            "workers": {
                state: _whole(found[WORKERS.name, (state,)][0]) or 0
                for state in ("ready", "starting", "gone")
                if (WORKERS.name, (state,)) in found
            }
            or {"ready": 1, "starting": 0, "gone": 0},
            "uptime_seconds": round(now - self._started, 1),
            "listening": self._listening(),
        }

    def _upstream(self, name: str, found: Totals, counts: _Counts, earlier: _Counts, seconds: float) -> dict[str, Any]:
        many, bad, rescued = (
            int(now - then) for now, then in zip(counts.get(name, _NONE), earlier.get(name, _NONE), strict=True)
        )
        known, labels = seconds >= 1.0, self._upstreams[name]
        pool = {
            state: _sum(_gauge(found, POOL, label, state) for label in labels)
            for state in ("open", "idle", "waiting")
        }
        down = [label for label in labels if _gauge(found, EJECTED, label)]
        state = "failing" if down or bad * 2 >= many > 0 else "ok"
        if not known or not (many or down):
            state = "unknown"
        return {
            "name": name,
            "state": state,
            "requests_1m": many if known else None,
            "errors_1m": bad if known else None,
            "rescued_1m": rescued if known else None,
            "down": down,
            "seconds": round(seconds, 1),
            "connections": pool,
        }


def _by_upstream(found: Totals) -> _Counts:
    """Requests, those of them that the upstream failed, and those that it failed and another attempt served."""
    counts: _Counts = {}
    for (family, labels), (cell, *_) in found.items():
        if family == REQUESTS.name:
            upstream, _, status, end = labels
            requests, errors, rescued = counts.get(upstream, _NONE)
            failed = status.startswith("5") or end in _FAILED_ENDS
            counts[upstream] = requests + cell, errors + (cell if failed else 0.0), rescued
        elif family == RESCUED.name:
            requests, errors, rescued = counts.get(labels[0], _NONE)
            counts[labels[0]] = requests, errors, rescued + cell
    return counts


def _sum(values: Iterable[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(sum(known)) if known else None


def _gauge(found: Totals, family: Family, *labels: str) -> float | None:
    cells = found.get((family.name, labels))
    return None if cells is None or isnan(cells[0]) else cells[0]


def _whole(value: float | None) -> int | None:
    return None if value is None or isnan(value) else int(value)


def _reloaded(result: ReloadResult | None) -> dict[str, Any]:
    if result is None:
        return {"at": None, "generation": 0, "keys": 0, "fault": None}
    faults = [str(fault) for fault in result.faults[:SHOWN_FAULTS]]
    return {
        "at": instant(result.time), "generation": result.generation, "keys": result.keys, "fault": faults or None,
    }  # fmt: skip
