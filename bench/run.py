"""The order in which things are run: rounds, and within a round the subjects in turn at each case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from bench.lab import Lab, Running
from bench.machine import others_busy
from bench.measures import Case, Measure
from bench.procs import BenchError
from bench.samples import Sample
from bench.scale import Scale
from bench.subjects.base import Subject

#: Cores that others may use unnoticed.
CALM = 0.1


class Run:
    """One whole run.

    :param tell: gets each sample as soon as there is one.
    :param warn: gets what a person should know about the run.
    :ivar others_busy: cores that others used at the begin of each round; with more than a little, caches are not the
        subject's own and its CPU time grows.
    """

    def __init__(
        self,
        lab: Lab,
        subjects: Sequence[Subject],
        measures: Sequence[Measure],
        scale: Scale,
        tell: Callable[[Sample], None],
        warn: Callable[[str], None],
    ) -> None:
        self._lab = lab
        self._subjects = subjects
        self._measures = measures
        self._scale = scale
        self._tell = tell
        self._warn = warn
        self.others_busy: list[float] = []
        self.samples: list[Sample] = []

    def go(self) -> None:
        """Every round: each measure; each group of cases that the same subjects can serve, one of them at a time."""
        for number in range(1, self._scale.rounds + 1):
            self.others_busy.append(round(busy := others_busy(), 2))
            if busy > CALM:
                self._warn(f"others use {busy:.2f} cores of this machine: figures will be too high")
            for measure in self._measures:
                cases = [case for case in measure.cases(self._scale) if number == 1 or not case.once]
                for (upstream, workers, wide, fresh), group in groupby(
                    cases, key=lambda case: (case.upstream, case.workers, case.wide, case.fresh)
                ):
                    if fresh:
                        self._fresh(measure, list(group), number)
                    else:
                        self._in_turn(measure, list(group), number, upstream, workers=workers, wide=wide)

    def _fresh(self, measure: Measure, cases: Sequence[Case], number: int) -> None:
        for case in cases:
            for subject in self._subjects:
                if not measure.suits(subject, case):
                    continue
                with self._start(measure, [case], subject, number, case.upstream, workers=case.workers) as up:
                    if up is not None:
                        self._sample(measure, case, up, number, 1)

    def _in_turn(
        self, measure: Measure, cases: Sequence[Case], number: int, upstream: str, *, workers: int, wide: bool
    ) -> None:
        with contextlib.ExitStack() as stack:
            up: list[tuple[Subject | None, Running]] = []
            for subject in self._subjects:
                able = [case for case in cases if measure.suits(subject, case)]
                if able:
                    started = stack.enter_context(
                        self._start(measure, able, subject, number, upstream, workers=workers, wide=wide)
                    )
                    if started is not None:
                        started.pause()
                        up.append((subject, started))
            if any(case.direct for case in cases):
                up.insert(0, (None, self._lab.direct(upstream)))
            for case in cases:
                for turn in range(1, 2 if case.once else self._scale.passes + 1):
                    for candidate, one in up:
                        if case.direct if candidate is None else measure.suits(candidate, case):
                            with one.turn():
                                self._sample(measure, case, one, number, turn)

    @contextlib.contextmanager
    def _start(
        self,
        measure: Measure,
        cases: Sequence[Case],
        subject: Subject,
        number: int,
        upstream: str,
        *,
        workers: int,
        wide: bool = False,
    ) -> Iterator[Running | None]:
        with contextlib.ExitStack() as stack:
            try:
                up = stack.enter_context(self._lab.start(subject, upstream, workers=workers, wide=wide))
            except BenchError as fault:
                for case in cases:
                    self._keep(Sample(measure.name, case.label, subject.name, number, 1, fault=str(fault)))
                yield None
            else:
                yield up

    def _sample(self, measure: Measure, case: Case, subject: Running, number: int, turn: int) -> None:
        values: dict[str, float] = {}
        fault = None
        try:
            values = measure.run(self._lab, subject, case, self._scale)
        except (BenchError, OSError) as raised:
            fault = f"{raised}" or type(raised).__name__
        self._keep(Sample(measure.name, case.label, subject.name, number, turn, values, fault))

    def _keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._tell(sample)
