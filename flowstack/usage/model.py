"""What an answer says was used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowstack.usage.operations import Work


@dataclass
class Usage:
    """The upstream's own figures, in tokens; None is what it did not say, and 0 is what it said.

    :ivar prompt_tokens: all tokens of the input, the cached ones included.
    :ivar completion_tokens: all tokens of the output, the reasoning ones included.
    :ivar details: all else that the answer says was used, as the upstream named and nested it.
    :ivar cache_write_tokens: those of the input that were written to the upstream's cache.
    :ivar longest: the largest input of a single request, where these are the figures of several and that is known: a
        long one has prices of its own.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    details: dict[str, Any] | None = None
    cache_write_tokens: int | None = None
    longest: int | None = None


@dataclass
class Used:
    """What one model used of some work."""

    usage: Usage
    model: str | None = None
    service_tier: str | None = None


@dataclass
class Late:
    """Work whose usage is known later than its beginning, as one answer shows it.

    :ivar id: the upstream's; None where the request's path has it.
    :ivar finished: whether nothing more is done.
    :ivar used: what it used; empty where that is not known, be it finished or not.
    """

    kind: Work
    id: str | None
    finished: bool = False
    used: Sequence[Used] = ()


@dataclass
class Outcome:
    """What a meter found in an answer.

    :ivar model: the model that answered, as the upstream names it.
    :ivar service_tier: as the answer says.
    :ivar usage: None where the answer does not say, or where this call is not what caused the work.
    :ivar partial: whether the answer broke off: more may have been used than the usage says.
    :ivar late: work that this answer shows, charged to the call that began it.
    :ivar secret: a client secret that was made, and when it expires, in Unix seconds, where that is said.
    """

    model: str | None = None
    service_tier: str | None = None
    usage: Usage | None = None
    partial: bool = False
    late: Sequence[Late] = ()
    secret: tuple[str, float | None] | None = None
