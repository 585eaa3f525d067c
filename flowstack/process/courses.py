"""The targets of all upstreams, and the memory in which the workers share what they know of their health."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, MutableSequence
from typing import cast

from flowstack.config import Settings, Upstream
from flowstack.interfaces import UpstreamClient
from flowstack.keys.provider import KeyRing
from flowstack.upstream.health import CELLS, Health
from flowstack.upstream.routes import Origin
from flowstack.upstream.targets import Course, Target

_CELL = 8  # bytes


class SharedHealth:
    """Memory for the health of all targets: a file without a name, which the workers inherit.

    It lives as long as a process has it open. A worker that dies leaves in it what all know.

    :param fileno: of the file; this object owns it.
    """

    def __init__(self, fileno: int, targets: int) -> None:
        self._fileno = fileno
        self._cells = memoryview(mmap.mmap(fileno, max(1, targets) * CELLS * _CELL)).cast("d")

    @classmethod
    def create(cls, targets: int) -> SharedHealth:
        """Make it."""
        fileno = os.memfd_create("flowstack-health", os.MFD_CLOEXEC)
        os.ftruncate(fileno, max(1, targets) * CELLS * _CELL)
        return cls(fileno, targets)

    def fileno(self) -> int:
        """For a worker to inherit."""
        return self._fileno

    def of(self, number: int) -> MutableSequence[float]:
        """The cells of one target.

        :param number: in the order of :func:`origins_of`.
        """
        return cast("MutableSequence[float]", self._cells[number * CELLS : (number + 1) * CELLS])


def origins_of(settings: Settings) -> list[Origin]:
    """Every place at which an upstream is served, in the order of the configuration."""
    return [origin for upstream in settings.upstreams for origin in Origin.all_of(upstream)]


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
    number = 0
    for upstream in settings.upstreams:
        targets = []
        weights = [target.weight for target in upstream.targets] or [1]
        for origin, weight in zip(Origin.all_of(upstream), weights, strict=True):
            ring = rings.get(origin.label) or rings.get(upstream.name)
            known = Health(upstream.health, health.of(number))
            targets.append(Target(origin, weight, clients[origin.label], known, ring))
            number += 1
        if upstream.name in wanted or _may_repeat(upstream, targets):
            courses[upstream.name] = Course(upstream, targets)
    for course in courses.values():
        if course.rule is not None:
            course.fallback = courses[course.rule.to]
    return courses


def _may_repeat(upstream: Upstream, targets: list[Target]) -> bool:
    configured = upstream.targets or upstream.retry or upstream.fallback or upstream.first_byte is not None
    return bool(configured) or any(one.keys is not None and len(one.keys.keys) > 1 for one in targets)
