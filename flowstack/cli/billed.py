"""The ledger beside what a provider says: pure comparison, and the reading of the provider's pages.

The pages are those of OpenAI's ``/organization/usage/*`` and ``/organization/costs`` (OpenAI reference: usage, costs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from attrs import field, frozen

By = Literal["day", "model", "project"]

DAY = 86_400

WITH_MODEL = ("completions", "embeddings", "moderations", "images", "audio_speeches", "audio_transcriptions")
"""Kinds of usage that are told apart by the model."""

KINDS = (*WITH_MODEL, "vector_stores", "code_interpreter_sessions")

_TOKENS = ("input_tokens", "output_tokens")
_REQUESTS = "num_model_requests"
_OTHERS = ("images", "characters", "seconds", "usage_bytes", "num_sessions")
"""What is counted in something else than tokens."""

_MOST = Decimal(10) ** 15


class Malformed(Exception):
    """What came is no page of the provider's; the text says what is wrong with it."""


@frozen(slots=True)
class Used:
    """One result of a usage page: what a model was used for on a day, by a project."""

    day: str
    model: str | None
    project: str | None
    tokens: int
    requests: int


@frozen(slots=True)
class Charge:
    """One result of a costs page."""

    day: str
    line_item: str | None
    project: str | None
    usd: Decimal

    @property
    def model(self) -> str | None:
        """The model that a line item names, as in ``gpt-4o-2024-08-06, cached input``; else the line item itself."""
        return None if self.line_item is None else self.line_item.partition(",")[0].strip()


@frozen(slots=True)
class Billed:
    """All that the provider said.

    :ivar others: what has no tokens, such as ``images``, by its name.
    :ivar absent: kinds of usage that the provider does not tell.
    """

    used: Sequence[Used] = ()
    charges: Sequence[Charge] = ()
    others: Mapping[str, int] = field(factory=dict)
    absent: Sequence[str] = ()


@frozen(slots=True)
class Ledger:
    """What the ledger says. None is unknown.

    :ivar without_usage: requests that told no usage; the other three as in a report of ``flowstack usage``.
    """

    requests: int = 0
    tokens: int | None = None
    usd: Decimal | None = None
    without_usage: int = 0
    without_price: int = 0
    partial_usage: int = 0

    def plus(self, other: Ledger) -> Ledger:
        """Both together."""
        return Ledger(
            self.requests + other.requests,
            _sum(self.tokens, other.tokens),
            _sum(self.usd, other.usd),
            self.without_usage + other.without_usage,
            self.without_price + other.without_price,
            self.partial_usage + other.partial_usage,
        )


@frozen(slots=True)
class Ours:
    """The ledger's figures of a day and model."""

    day: str
    model: str | None
    project: str | None
    figures: Ledger


@frozen(slots=True)
class Theirs:
    """What the provider says. None is nothing said."""

    requests: int = 0
    tokens: int | None = None
    usd: Decimal | None = None


@frozen(slots=True)
class Pair:
    """One line of the comparison.

    :ivar name: of the day, model or project; None where there is none.
    :ivar ledger: None where the ledger cannot tell, as of a project whose name stands in no attribute.
    """

    name: str | None
    ledger: Ledger | None
    provider: Theirs

    @property
    def captured_tokens(self) -> float | None:
        """The ledger's share of the provider's tokens."""
        return None if self.ledger is None else _share(self.ledger.tokens, self.provider.tokens)

    @property
    def captured_cost(self) -> float | None:
        """The ledger's share of the provider's dollars."""
        return None if self.ledger is None else _share(self.ledger.usd, self.provider.usd)

    @property
    def drift_usd(self) -> Decimal | None:
        """How much more the ledger says than the provider."""
        if self.ledger is None or (self.ledger.usd is None and self.provider.usd is None):
            return None
        return (self.ledger.usd or Decimal()) - (self.provider.usd or Decimal())

    @property
    def drift_share(self) -> float | None:
        """The same, as a share of what the provider says."""
        captured = self.captured_cost
        return None if captured is None else captured - 1

    @property
    def captured(self) -> float | None:
        """The smaller of the two shares; None where the provider says nothing that could be shared in."""
        shares = [share for share in (self.captured_tokens, self.captured_cost) if share is not None]
        return min(shares, default=None)

    def enough(self, least: float) -> bool:
        """Whether the ledger has captured so much. Of what the provider says nothing, and the ledger something, nobody
        can know that."""
        captured = self.captured
        if captured is not None:
            return captured >= least
        return self.ledger is None or not (self.ledger.tokens or self.ledger.usd)


def compared(by: By, ours: Iterable[Ours], billed: Billed, projects_told: bool = True) -> tuple[list[Pair], Pair]:
    """Set both beside each other: a line for each name, in the names' order, and the total.

    Models are the same whatever the case of their letters.

    :param projects_told: whether the ledger's figures say their project.
    """
    ledger: dict[str | None, Ledger] = {}
    tokens: dict[str | None, int] = {}
    requests: Counter[str | None] = Counter()
    usd: dict[str | None, Decimal] = {}
    name: Callable[[Any], str | None] = {
        "day": lambda one: one.day,
        "model": lambda one: None if one.model is None else one.model.lower(),
        "project": lambda one: one.project,
    }[by]
    everything = Ledger()
    for one in ours:
        ledger[name(one)] = ledger.get(name(one), Ledger()).plus(one.figures)
        everything = everything.plus(one.figures)
    for used in billed.used:
        tokens[name(used)] = tokens.get(name(used), 0) + used.tokens
        requests[name(used)] += used.requests
    for charge in billed.charges:
        usd[name(charge)] = usd.get(name(charge), Decimal()) + charge.usd
    if by == "project" and not projects_told:
        ledger.clear()
    pairs = [
        Pair(
            one,
            ledger.get(one, Ledger()) if by != "project" or projects_told else None,
            Theirs(requests[one], tokens.get(one), usd.get(one)),
        )
        for one in sorted({*ledger, *tokens, *usd}, key=lambda one: (one is None, one or ""))
    ]
    provider = Theirs(
        sum(requests.values()),
        sum(tokens.values()) if tokens else None,
        sum(usd.values(), Decimal()) if usd else None,
    )
    return pairs, Pair(None, everything, provider)


def _sum(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


def _share(ours: int | Decimal | None, theirs: int | Decimal | None) -> float | None:
    return float(Decimal(ours or 0) / Decimal(theirs)) if theirs and theirs > 0 else None


# The provider's pages


def results_of(page: Any, first: int, last: int) -> tuple[list[tuple[str, Mapping[str, Any]]], str | None]:
    """A page's results, each with its day, and the cursor of the next page or None.

    :param first: Unix time of the first day's beginning; buckets of other days are left out.
    :param last: that of the day behind the last.
    :raises Malformed: it is no such page.
    """
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise Malformed("expected a page with `data`, a list of buckets")
    found = []
    for bucket in page["data"]:
        start: Any = bucket.get("start_time") if isinstance(bucket, dict) else None
        results: Any = bucket.get("results") if isinstance(bucket, dict) else None
        if not _is_whole(start) or not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            raise Malformed("expected buckets, each with `start_time` and `results`")
        if first <= start < last:
            day = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d")
            found += [(day, one) for one in results]
    cursor = page.get("next_page")
    if not page.get("has_more"):
        return found, None
    if not isinstance(cursor, str) or not cursor:
        raise Malformed("it says that there is more, and not where (`next_page`)")
    return found, cursor


def used_of(day: str, result: Mapping[str, Any]) -> Used:
    """What a result of a usage page says.

    :raises Malformed: a count is none.
    """
    tokens = sum(_count(result, name) for name in _TOKENS)
    return Used(day, _name(result, "model"), _name(result, "project_id"), tokens, _count(result, _REQUESTS))


def others_of(result: Mapping[str, Any]) -> dict[str, int]:
    """What it says that has no tokens.

    :raises Malformed: a count is none.
    """
    return {name: count for name in _OTHERS if (count := _count(result, name))}


def charge_of(day: str, result: Mapping[str, Any]) -> Charge:
    """What a result of a costs page says.

    :raises Malformed: it is no amount in US dollars.
    """
    amount = result.get("amount")
    value, currency = (amount.get("value"), amount.get("currency")) if isinstance(amount, dict) else (None, None)
    if not isinstance(currency, str) or currency.lower() != "usd":
        raise Malformed("expected amounts in `usd`, found another currency or none")
    try:
        usd = Decimal(value) if isinstance(value, int | str | Decimal) and not isinstance(value, bool) else None
    except InvalidOperation:
        usd = None
    if usd is None or not usd.is_finite() or abs(usd) > _MOST:
        raise Malformed("expected an amount's `value` to be a number")
    return Charge(day, _name(result, "line_item"), _name(result, "project_id"), usd)


def _count(result: Mapping[str, Any], name: str) -> int:
    value = result.get(name)
    if value is None:
        return 0
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if not _is_whole(value):
        raise Malformed(f"expected `{name}` to be a whole number")
    return int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _name(result: Mapping[str, Any], name: str) -> str | None:
    value = result.get(name)
    return value if isinstance(value, str) and value else None
