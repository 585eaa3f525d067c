"""Which limits stand for a key's requests to an upstream, and what each of them counts."""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import frozen

from flowstack.config.settings import UpstreamLimits
from flowstack.keys import ATTRIBUTES, Budget, Group, Key

T = TypeVar("T")


@frozen(slots=True)
class Bound(Generic[T]):
    """One limit.

    :ivar value: the most.
    :ivar scope: the upstream whose requests alone count towards it; empty where all of the key's requests do.
    """

    value: T
    scope: str


@frozen(slots=True)
class Bounds:
    """The limits that stand together; None is no limit."""

    rpm: Bound[int] | None
    tpm: Bound[int] | None
    max_parallel: Bound[int] | None
    budget: Bound[Budget] | None

    @property
    def limited(self) -> bool:
        """Whether there is one at all."""
        return any(bound is not None for bound in (self.rpm, self.tpm, self.max_parallel, self.budget))


def bounds_of(
    key: Key | Group | UpstreamLimits, upstream: str, of_upstream: UpstreamLimits, of_all: UpstreamLimits
) -> Bounds:
    """Each limit by itself: the key's own; else the upstream's; else that of ``[limits]``.

    The key's own and ``[limits]`` count all requests of the key together. An upstream's counts those to it alone.

    :param key: or limits of which none is set, for what stands where a key sets nothing.
    :raises ValueError: a budget in the settings is none; the text says why.
    """

    def pick(own: T | None, upstreams: T | None, alls: T | None) -> Bound[T] | None:
        if own is not None:
            return Bound(own, "")
        if upstreams is not None:
            return Bound(upstreams, upstream)
        return None if alls is None else Bound(alls, "")

    return Bounds(
        pick(key.rpm, of_upstream.rpm, of_all.rpm),
        pick(key.tpm, of_upstream.tpm, of_all.tpm),
        pick(key.max_parallel, of_upstream.max_parallel, of_all.max_parallel),
        pick(_budget(key.budget), _budget(of_upstream.budget), _budget(of_all.budget)),
    )


def bounds_of_group(group: Group) -> Bounds:
    """A group's limits: its own, which count all requests of its keys together."""
    return bounds_of(group, "", UpstreamLimits(), UpstreamLimits())


def _budget(value: Budget | str | None) -> Budget | None:
    if isinstance(value, str):
        budget: Budget = ATTRIBUTES["budget"].read(value)
        return budget
    return value
