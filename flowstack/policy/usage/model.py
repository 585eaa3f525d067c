"""What an answer says was used."""

from __future__ import annotations

from typing import Any

from attrs import define


@define(slots=True)
class Usage:
    """The upstream's own figures, in tokens; None is what it did not say, and 0 is what it said.

    :ivar prompt_tokens: all tokens of the input, the cached ones included.
    :ivar completion_tokens: all tokens of the output, the reasoning ones included.
    :ivar details: all else that the answer says was used, as the upstream named and nested it.
    :ivar cache_write_tokens: those of the input that were written to the upstream's cache.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    details: dict[str, Any] | None = None
    cache_write_tokens: int | None = None


@define(slots=True)
class Outcome:
    """What a meter found in an answer.

    :ivar model: the model that answered, as the upstream names it.
    :ivar service_tier: as the answer says.
    :ivar usage: None where the answer does not say, or where this call is not what caused the work.
    :ivar charge_id: for work that other calls may report too (a batch, a background response): its id, under which it
        is charged once only.
    :ivar partial: whether the answer broke off: more may have been used than the usage says.
    """

    model: str | None = None
    service_tier: str | None = None
    usage: Usage | None = None
    charge_id: str | None = None
    partial: bool = False
