"""What a measure is."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from bench.lab import Lab, Running
from bench.scale import Scale
from bench.subjects.base import Subject


@frozen(slots=True)
class Column:
    """One figure of a table.

    :ivar key: its name in the raw data.
    :ivar digits: after the decimal point.
    :ivar ratio: whether its ratio to the reference subject is shown beside it.
    """

    key: str
    heading: str
    digits: int = 1
    ratio: bool = False


@frozen(slots=True)
class Case:
    """One row's circumstances.

    :ivar upstream: plain, tls or fast: see :class:`bench.lab.Running`.
    :ivar workers: of the subject.
    :ivar wide: whether the subject gets the cores for two workers.
    :ivar direct: whether the same is measured without a proxy too.
    :ivar fresh: whether the subject is started anew for each run of it.
    :ivar once: whether it is run in the first round only, since it takes long and repeats well.
    :ivar size: connections, streams, bytes or trials: what the measure says.
    :ivar kind: a word that the measure understands.
    """

    label: str
    size: int
    kind: str = ""
    upstream: str = "plain"
    workers: int = 1
    wide: bool = False
    direct: bool = False
    fresh: bool = False
    once: bool = False


class Measure(Protocol):
    """One kind of figure.

    :ivar name: on the command line and in the raw data.
    :ivar title: above its table.
    :ivar columns: of its table.
    """

    name: str
    title: str
    columns: tuple[Column, ...]

    def cases(self, scale: Scale) -> list[Case]:
        """What is run, in this order."""

    def suits(self, subject: Subject, case: Case) -> bool:
        """Whether the subject can do this at all."""

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """Run the case once; raises :exc:`bench.procs.BenchError` rather than return a figure of failed requests."""

    def derive(self, values: dict[str, float], direct: dict[str, float] | None) -> dict[str, float]:
        """Figures that follow from a run and from the same run without a proxy."""


class Plain:
    """The ordinary answers of a :class:`Measure`."""

    def suits(self, subject: Subject, case: Case) -> bool:
        """Every subject."""
        return True

    def derive(self, values: dict[str, float], direct: dict[str, float] | None) -> dict[str, float]:
        """None."""
        return {}
