"""The measures, by name."""

from __future__ import annotations

from collections.abc import Iterable

from bench.measures.base import Case, Column, Measure
from bench.measures.bulk import Bulk
from bench.measures.keys import Keys
from bench.measures.leaving import Leaving
from bench.measures.ledger import Ledger
from bench.measures.requests import Requests, Workers
from bench.measures.sockets import IdleSockets, Sockets
from bench.measures.streams import Idle, Streams
from bench.procs import BenchError

_ALL: tuple[Measure, ...] = (
    Requests(), Streams(), Idle(), Sockets(), IdleSockets(), Bulk(), Workers(), Leaving(), Keys(), Ledger(),
)  # fmt: skip
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}


def choose(names: Iterable[str]) -> list[Measure]:
    """The measures of those names, each once.

    :raises BenchError: for a name that is none.
    """
    chosen = list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in MEASURES]
    if unknown or not chosen:
        raise BenchError(f"no such measure: {', '.join(unknown) or '(none named)'}; there are {', '.join(MEASURES)}")
    return [MEASURES[name] for name in chosen]


__all__ = ["MEASURES", "Case", "Column", "Measure", "choose"]
