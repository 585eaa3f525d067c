"""The targets of all upstreams, and the memory in which the workers share what they know of their health."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, MutableSequence, Sequence
from typing import cast

from flowstack.config import Settings, Upstream
from flowstack.interfaces import UpstreamClient
from flowstack.keys.provider import KeyRing
from flowstack.upstream.health import CELLS, Health, is_down
from flowstack.upstream.routes import Origin
from flowstack.upstream.targets import Course, Target

_CELL = 8  # bytes


class SharedHealth:
    """Memory for the health of all targets: a file without a name, which the workers inherit.

    It lives as long as a process has it open. A worker that dies leaves in it what all know.

    :param labels: of the targets.
    :param fileno: of the file; this object owns it. None: it is made.
    """

    def __init__(self, labels: Sequence[str], fileno: int | None = None) -> None:
        self._labels = labels
        size = len(labels) * CELLS * _CELL
        if fileno is None:
            fileno = os.memfd_create("flowstack-health", os.MFD_CLOEXEC)
            os.ftruncate(fileno, size)
        self._fileno = fileno
        self._cells = memoryview(mmap.mmap(fileno, size)).cast("d")

    def fileno(self) -> int:
        """For a worker to inherit."""
        return self._fileno

    def of(self, label: str) -> MutableSequence[float]:
        """The cells of one target."""
        number = self._labels.index(label)
        return cast("MutableSequence[float]", self._cells[number * CELLS : (number + 1) * CELLS])

    def down(self) -> list[str]:
        """The targets that count as down."""
        return [label for label in self._labels if is_down(self.of(label))]


def labels_of(settings: Settings) -> list[str]:
    """Every place at which an upstream is served, in the order of the configuration."""
    return [origin.label for upstream in settings.upstreams for origin in Origin.all_of(upstream)]


def courses_of(
    settings: Settings,
    clients: Mapping[str, UpstreamClient],
    rings: Mapping[str, KeyRing],
    health: SharedHealth,
) -> dict[str, Course]:
    """By the upstream's name, how attempts follow each other; not of those at which there is one attempt, as ever.

    :param clients: by the label of each place.
    :param rings: by label, the operator's keys, of those that have some.
    """
    courses: dict[str, Course] = {}
    wanted = {one.fallback.to for one in settings.upstreams if one.fallback is not None}
    for upstream in settings.upstreams:
        targets = []
        weights = [target.weight for target in upstream.targets] or [1]
        for origin, weight in zip(Origin.all_of(upstream), weights, strict=True):
            ring = rings.get(origin.label) or rings.get(upstream.name)
            known = Health(upstream.health, health.of(origin.label))
            targets.append(Target(origin, weight, clients[origin.label], known, ring))
        if upstream.name in wanted or _may_repeat(upstream, targets):
            courses[upstream.name] = Course(upstream, targets)
    for course in courses.values():
        if course.rule is not None:
            course.fallback = courses[course.rule.to]
    return courses


def _may_repeat(upstream: Upstream, targets: list[Target]) -> bool:
    configured = upstream.targets or upstream.retry or upstream.fallback or upstream.first_byte is not None
    return bool(configured) or any(one.keys is not None and len(one.keys.keys) > 1 for one in targets)
