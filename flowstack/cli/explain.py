"""``flowstack check --explain MODEL``: where a request for a model goes, and what follows when that fails."""

from __future__ import annotations

from collections.abc import Iterator

from flowstack.config import Settings, Upstream
from flowstack.config.settings import Fallback, Retry
from flowstack.keys.patterns import fitting, in_order


def explained(settings: Settings, model: str) -> Iterator[str]:
    """Lines that say it, for a request whose ``Host`` selects no upstream."""
    by_name = {one.name: one for one in settings.upstreams}
    default = next((one for one in settings.upstreams if one.default), settings.upstreams[0])
    selected = fitting(in_order((pattern, one) for one in settings.upstreams for pattern in one.models), model)
    upstream, why = (default, "the default upstream") if selected is None else (selected, "by its models")
    yield f"A request for {model} whose Host selects no upstream goes:"
    yield f"  1. to {upstream.name} ({why}){_places(upstream)}"
    yield from _attempts(upstream)
    number, asks = 1, model
    while (rule := upstream.fallback) is not None:
        number += 1
        upstream = by_name[rule.to]
        renamed = fitting(in_order(rule.models), asks)
        yield f"  {number}. to {upstream.name}, if {_reasons(rule)}{_places(upstream)}"
        asks = asks if renamed is None else renamed
        yield f"     asked for {asks}{'' if renamed is None else f' in place of {model}'}"
        yield from _attempts(upstream)
    for one in settings.upstreams:
        if one.hosts:
            yield f"  A Host of {', '.join(one.hosts)} selects {one.name} before the model does."


def _places(upstream: Upstream) -> str:
    if not upstream.targets:
        return f": {upstream.base_url}"
    return ": " + ", ".join(f"{one.name} {one.base_url} (weight {one.weight})" for one in upstream.targets)


def _attempts(upstream: Upstream) -> Iterator[str]:
    retry = upstream.retry
    if retry is None or retry.attempts == 1:
        yield "     one attempt"
    else:
        yield (
            f"     up to {retry.attempts} attempts within {retry.within:g} s, on {_listed(retry)}"
            f"{'' if len(upstream.targets) < 2 else '; another target at once'}"
        )
    if upstream.first_byte is not None:
        yield f"     the first byte of the answer's body within {upstream.first_byte:g} s"


def _reasons(rule: Fallback) -> str:
    too_long = ", or the request is too long for the model" if rule.context_length else ""
    return f"the last attempt ended with {_listed(rule)}, or all targets are down{too_long}"


def _listed(rule: Retry | Fallback) -> str:
    return ", ".join(map(str, rule.on)) or "nothing"
