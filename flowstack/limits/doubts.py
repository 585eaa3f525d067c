"""Limits that can be written down but cannot work as they are meant, for ``check`` and for whoever sets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowstack.config import Estimates, Limits, Settings
from flowstack.keys import ATTRIBUTES, Budget, Group, Key
from flowstack.limits.money import budget_nano, nano
from flowstack.prices.cost import Prices
from flowstack.prices.dollars import money, money_of
from flowstack.usage.estimate import OUTPUT_TOKENS

SHORT_PROMPT = 16
"""Tokens of the shortest body that asks for anything: a model, a role, a word, and the JSON around them, 64 bytes."""


_LENGTHS = {"day": 1, "month": 2, "total": 3}


def usual_output(estimates: Estimates) -> int:
    """Tokens of an answer of which no most is declared, as ``tpm`` counts them and a budget must hold at least."""
    return OUTPUT_TOKENS if estimates.output_tokens is None else estimates.output_tokens


def doubts_of_tokens(what: str, tpm: int | None, settings: Settings) -> Iterator[str]:
    """Say where a limit of tokens lets no usual request pass.

    :param what: whose limit it is.
    """
    least = SHORT_PROMPT + usual_output(settings.estimates)
    if tpm is not None and tpm < least:
        yield (
            f"{what} has tpm={tpm}, less than {_undeclared(settings)}, so that each such request is refused; raise it, "
            f"lower [estimates] output_tokens, or have clients declare max_completion_tokens: that and the prompt may "
            f"be {tpm} then"
        )


def doubts_of_key(what: str, key: Key, settings: Settings, prices: Callable[[], Prices]) -> Iterator[str]:
    """Say which limits of a key let no usual request pass.

    :param what: whose they are, such as ``the key k7Qm2xW9pLz4``.
    :param prices: gives the table, which takes long to read where nobody needs it.
    """
    yield from doubts_of_tokens(what, key.tpm, settings)
    group = key.shared
    budgets = [key.budget or budget_of(settings.limits), group.budget if group is not None else None]
    budget = min(filter(None, budgets), key=lambda each: each.amount, default=None)
    scoped = settings.upstreams and all(upstream.limits.budget for upstream in settings.upstreams)
    for model in key.models if budget or scoped else ():
        if "*" in model:
            continue
        cost = prices().estimate(model, SHORT_PROMPT, usual_output(settings.estimates))
        if cost is None and settings.estimates.price is None:
            yield (
                f"{what} names the model {model}, which has no price, so that its budget refuses it; add it to "
                "[prices], or set [estimates] price"
            )
        elif cost is not None and budget is not None and nano(cost) > budget_nano(budget):
            yield (
                f"{what} has budget={ATTRIBUTES['budget'].write(budget)}, less than the {money_of(nano(cost))} USD "
                f"that {model} may cost for {_undeclared(settings)}, so that each such request is refused; raise it, "
                "or have clients declare max_completion_tokens"
            )
    if group is not None:
        yield from _never_reached(what, key, group)


def _never_reached(what: str, key: Key, group: Group) -> Iterator[str]:
    """Limits that are looser than those of the key's group, which stand too."""
    for name in ("rpm", "tpm", "max_parallel", "budget"):
        own, shared = getattr(key, name), getattr(group, name)
        if own is None or shared is None:
            continue
        if name == "budget":
            looser = own.amount > shared.amount and _LENGTHS[own.period] <= _LENGTHS[shared.period]
        else:
            looser = own > shared
        if looser:
            write = ATTRIBUTES[name].write
            yield f"{what} has {name}={write(own)}, which is never reached: its group {group.name} has {write(shared)}"


def budget_of(limits: Limits) -> Budget | None:
    """The budget of a table ``limits``."""
    if limits.budget is None:
        return None
    budget: Budget = ATTRIBUTES["budget"].read(limits.budget)
    return budget


def begins_anew(before: Budget | None, after: Budget | None) -> str | None:
    """Say that a budget which is changed so begins at nothing, as its period is another; None where it goes on."""
    if before is None or after is None or before.period == after.period:
        return None
    return (
        f"the budget's period was {before.period} and is {after.period} now: it begins at zero, and the whole of "
        f"{money(after.amount)} USD may be spent"
    )


def _undeclared(settings: Settings) -> str:
    output = usual_output(settings.estimates)
    return (
        f"the {SHORT_PROMPT + output} tokens that are reserved for a short request which does not declare its most "
        f"output ({output} of [estimates] output_tokens)"
    )
