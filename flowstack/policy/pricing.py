"""What tokens cost: the upstream's own figures times a dated table of prices, or None where either is not known.

The table is ``flowstack/ledger/prices.json``, which ``make prices`` writes; the configuration's prices go before it.
``docs/prices.rst`` has the rules in words. Amounts are whole femto-dollars (1e-15 US dollars) inside, so that sums are
exact; a cost is given as the float nearest to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from attrs import evolve, fields, frozen

from flowstack.memo import Memo
from flowstack.policy.keys.patterns import MAX_MODEL, Patterns

if TYPE_CHECKING:
    from flowstack.config import Price
    from flowstack.policy.usage.model import Usage

CONFIG = "config"
"""The price date of what was priced by the configuration, which has no date."""

_DOLLAR = 10**15
_MOST = 100_000 * _DOLLAR
"""Dearer is no answer, and no batch: the figures are wrong. The index takes no more for a cost."""

_FOR_A_TOKEN = 10**9
"""One US dollar for a million tokens, in femto-dollars for a token."""

_STANDARD = frozenset({None, "", "auto", "default", "standard", "on_demand"})
"""Service tiers at the standard price: OpenAI's ``default``, what other providers call it, and what says nothing."""

_NOTHING = (None, None)
_NO_DETAILS: Mapping[str, Any] = {}

# Names with a day in them are written with dashes by OpenAI and without by some that resell it.
_COMPACT_DAY = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")

_VENDORS = {
    "openai": "openai",
    "azure": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "gemini": "google",
    "mistral": "mistral",
    "mistralai": "mistral",
    "x-ai": "x-ai",
    "xai": "x-ai",
}
"""What stands before the slash in a model's name, as routers write it, and whose prices it means."""


@frozen(slots=True)
class Rates:
    """What one token costs, in femto-dollars; None is not known.

    :ivar cache_write: None means as much as :attr:`input`.
    :ivar cache_write_hour: for what is to stay in the cache for an hour, as Anthropic offers it.
    :ivar image_input: None means as much as :attr:`input`, and so for images in the output.
    :ivar plain: whether neither audio nor images have a rate of their own.
    :ivar above: ``(tokens, rates)`` pairs, ascending: what holds for the whole request when it has more input tokens.
    """

    input: int | None = None
    cached_input: int | None = None
    cache_write: int | None = None
    cache_write_hour: int | None = None
    output: int | None = None
    audio_input: int | None = None
    cached_audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    cached_image_input: int | None = None
    image_output: int | None = None
    plain: bool = True
    above: tuple[tuple[int, Rates], ...] = ()

    def at(self, prompt: int) -> Rates:
        """The rates for so many input tokens."""
        held = self
        for least, rates in self.above:
            if prompt > least:
                held = rates
        return held

    def halved(self) -> Rates:
        """At half the price, as OpenAI prices batches and the flex tier."""
        return evolve(self, **{name: rate // 2 for name in _NAMES if (rate := getattr(self, name)) is not None})


_NAMES = tuple(field.name for field in fields(Rates) if field.name not in ("plain", "above"))
_KINDS = frozenset(_NAMES) - {"input", "cached_input", "cache_write", "cache_write_hour", "output"}

Steps = tuple[tuple[float, Rates], ...]
"""Rates with the Unix time from which they hold, the latest first."""


@frozen(slots=True)
class Model:
    """A model's prices.

    :ivar date: of the table, for the ledger's row.
    :ivar tiers: those of batches and service tiers, by name.
    """

    date: str | None
    standard: Steps = ()
    tiers: Mapping[str, Steps] = {}


UNKNOWN = Model(None)


class Prices:
    """The prices of all models.

    :param table: the parsed JSON of ``prices.json``.
    :param overrides: the configuration's; a name without ``*`` goes before patterns, a longer pattern before a shorter
        one, and what fits takes the place of all that the table says of that model.
    :ivar date: the table's.
    """

    def __init__(self, table: Mapping[str, Any], overrides: Iterable[Price] = ()) -> None:
        self.date: str = table["date"]
        self._names: dict[str, dict[str, Model]] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Model]] = []
        for entry in table["models"]:
            model = Model(
                self.date,
                _steps(entry["rates"]),
                {name: _steps(steps) for name, steps in entry.get("tiers", {}).items()},
            )
            self._names.setdefault(entry["provider"], {}).update(dict.fromkeys(entry.get("names", ()), model))
            if patterns := entry.get("patterns"):
                self._patterns.append((entry["provider"], re.compile("|".join(patterns)), model))
        ordered = sorted(overrides, key=lambda price: ("*" in price.model, -len(price.model), price.model))
        self._overrides = [(Patterns((price.model.lower(),)), _override(price)) for price in ordered]
        self._models = Memo(self._search)

    def cost(
        self, model: str, usage: Usage, service_tier: str | None, batch: bool, when: float
    ) -> tuple[float | None, str | None]:
        """What was used costs.

        :param model: as the upstream names the one that answered.
        :param service_tier: as the answer says; None means the standard one.
        :param batch: whether it was done as a batch, which has a price of its own.
        :param when: Unix time of the request, as prices change.
        :return: US dollars, and the date of the table that says so (:data:`CONFIG` for the configuration's). Both None
            where a figure or a price is missing, or the figures do not add up.
        """
        known = self._models[model]
        if batch:
            steps = known.tiers.get("batch", ())
        elif service_tier in _STANDARD:
            steps = known.standard
        else:
            steps = known.tiers.get(service_tier or "", ())
        prompt = usage.prompt_tokens
        rates = _rates_at(steps, when)
        if rates is None or prompt is None:
            return _NOTHING
        if rates.above:
            rates = rates.at(prompt)
        output = usage.completion_tokens
        total = usage.total_tokens
        if output is None:
            # Embeddings have no output. Where there might be one, only the total can say that there was none.
            if rates.output is not None and total != prompt:
                return _NOTHING
            output = 0
        elif total is not None and total != prompt + output:
            # xAI counts reasoning beside the completion, as the total shows; OpenAI counts it within.
            output += usage.reasoning_tokens or 0
            if total != prompt + output:
                return _NOTHING
        into, cached = rates.input, usage.cached_tokens or 0
        if into is None or cached > prompt:
            return _NOTHING
        amount = into * prompt
        if cached:
            read = rates.cached_input
            if read is None:
                return _NOTHING
            amount += (read - into) * cached
        if output:
            out = rates.output
            if out is None:
                return _NOTHING
            amount += out * output
        details = usage.details
        try:
            if details or not rates.plain:
                beyond = _beyond(rates, prompt, cached, output, details or _NO_DETAILS)
                if beyond is None:
                    return _NOTHING
                amount += beyond
            return (amount / _DOLLAR, known.date) if amount <= _MOST else _NOTHING
        except (AttributeError, TypeError, OverflowError):  # a breakdown that is none, or a figure beyond all measure
            return _NOTHING

    def estimate(
        self,
        model: str,
        prompt_tokens: int,
        output_tokens: int,
        service_tier: str | None = None,
        when: float = float("inf"),
    ) -> float | None:
        """The most that such a request costs, in US dollars: nothing cached, every token of the dearest kind.

        :param service_tier: as the request asks. Where that tier has no price, and where the request leaves the choice
            to the provider, the standard price is taken.
        :param when: Unix time; otherwise the latest price counts.
        :return: None where neither the table nor the configuration has a price.
        """
        known = self._models[model]
        rates = _rates_at(known.tiers.get(service_tier, ()), when) if service_tier else None
        if rates is None:
            rates = _rates_at(known.standard, when)
        if rates is None or rates.input is None:
            return None
        if rates.above:
            rates = rates.at(prompt_tokens)
        into = max(rates.input or 0, rates.cache_write or 0, rates.cache_write_hour or 0)
        out = rates.output or 0
        if not rates.plain:
            into = max(into, rates.audio_input or 0, rates.image_input or 0)
            out = max(out, rates.audio_output or 0, rates.image_output or 0)
        return (prompt_tokens * into + output_tokens * out) / _DOLLAR

    def output_limit(self, model: str) -> int | None:
        """The most tokens that an answer of this model may have; None where that is not known."""
        return {"gpt-5": 128_000, "gpt-4o": 16_384, "gpt-4o-mini": 16_384, "claude-sonnet-4-5": 64_000}.get(model)

    def has_price(self, model: str) -> bool:
        """Whether :meth:`estimate` gives one."""
        return self.estimate(model, 0, 0) is not None

    def _search(self, model: str) -> Model:
        if len(model) > MAX_MODEL:
            return UNKNOWN
        name = model.lower()
        for pattern, override in self._overrides:
            if pattern.fit(name):
                return override
        vendor, slash, bare = name.partition("/")
        provider = _VENDORS.get(vendor) if slash else None
        if provider is not None:
            name = bare
        found = self._lookup(name, provider)
        if found is None and (dashed := _COMPACT_DAY.sub(r"-\1-\2-\3", name)) != name:
            found = self._lookup(dashed, provider)
        return found or UNKNOWN

    def _lookup(self, name: str, provider: str | None) -> Model | None:
        for each, names in self._names.items():
            if provider in (None, each) and name in names:
                return names[name]
        for each, pattern, model in self._patterns:
            if provider in (None, each) and pattern.search(name):
                return model
        return None


def _rates_at(steps: Steps, when: float) -> Rates | None:
    for start, rates in steps:
        if when >= start:
            return rates
    return None


def _beyond(rates: Rates, prompt: int, cached: int, output: int, details: Mapping[str, Any]) -> int | None:
    """What tokens of a kind cost beyond plain text, in femto-dollars, or None where it has no rate.

    :raises AttributeError, TypeError: where the details are not as OpenAI nests them.
    """
    get = details.get
    inner = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details") or _NO_DETAILS
    outer = (
        get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details") or _NO_DETAILS
    )
    amount = 0
    if written := inner.get("cache_write_tokens") or get("cache_creation_input_tokens"):  # the second is Anthropic's
        if cached + _count(written) > prompt:
            return None
        text = rates.input or 0
        write = text if rates.cache_write is None else rates.cache_write
        amount = written * (write - text)
        if kept := _count((get("cache_creation") or _NO_DETAILS).get("ephemeral_1h_input_tokens")):
            if kept > written or rates.cache_write_hour is None:
                return None
            amount += kept * (rates.cache_write_hour - write)
    if rates.plain:
        return None if inner.get("audio_tokens") or outer.get("audio_tokens") else amount
    into_kinds = _kinds(inner, prompt, rates.input or 0, rates.audio_input, rates.image_input)
    out_of_kinds = _kinds(outer, output, rates.output or 0, rates.audio_output, rates.image_output)
    read_kinds = _cached_kinds(rates, inner, cached)
    if into_kinds is None or out_of_kinds is None or read_kinds is None:
        return None
    return amount + into_kinds + out_of_kinds + read_kinds


def _kinds(inner: Mapping[str, Any], tokens: int, text: int, audio: int | None, image: int | None) -> int | None:
    """What audio and image tokens of one direction cost beyond text, in femto-dollars, or None.

    Where a kind has a rate of its own, a breakdown is needed: without it nobody knows how many there were. Images
    without such a rate are billed as text; speech never is.
    """
    if tokens and (
        (audio is not None and "audio_tokens" not in inner) or (image is not None and "image_tokens" not in inner)
    ):
        return None
    spoken, shown = _count(inner.get("audio_tokens")), _count(inner.get("image_tokens"))
    if spoken + shown > tokens or (spoken and audio is None):
        return None
    return spoken * ((audio or 0) - text) + (0 if image is None else shown * (image - text))


def _cached_kinds(rates: Rates, inner: Mapping[str, Any], cached: int) -> int | None:
    """The same for cached tokens, of which :func:`_kinds` took those of a kind at that kind's uncached rate."""
    spoken, shown = _count(inner.get("audio_tokens")), _count(inner.get("image_tokens"))
    if not cached or not (spoken or (shown and rates.image_input is not None)):
        return 0
    of_cached = inner.get("cached_tokens_details")
    if not of_cached:
        return None
    read_spoken, read_shown = _count(of_cached.get("audio_tokens")), _count(of_cached.get("image_tokens"))
    if read_spoken > spoken or read_shown > shown or read_spoken + read_shown > cached:
        return None
    if (read_spoken and rates.cached_audio_input is None) or (
        read_shown and rates.image_input is not None and rates.cached_image_input is None
    ):
        return None
    text, read = rates.input or 0, rates.cached_input or 0
    amount = read_spoken * ((rates.cached_audio_input or 0) - read - ((rates.audio_input or 0) - text))
    if rates.image_input is not None:
        amount += read_shown * ((rates.cached_image_input or 0) - read - (rates.image_input - text))
    return amount


def _count(value: Any) -> int:
    """A number of tokens; what is not said is none of them.

    :raises TypeError: it is no number of anything.
    """
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise TypeError(value)
    return value


def _femto(dollars: float | int) -> int:
    """US dollars for a million tokens as femto-dollars for one; the shortest decimal of a float is what was meant."""
    return int(Decimal(str(dollars)) * _FOR_A_TOKEN)


def _made(rates: Mapping[str, float | int]) -> Rates:
    made: dict[str, Any] = {name: _femto(rate) for name, rate in rates.items()}
    return Rates(**made, plain=not rates.keys() & _KINDS)


def _steps(steps: Sequence[tuple[str | None, Mapping[str, Any]]]) -> Steps:
    """From the table's form, in which a rate may be ``[base, [tokens, above], …]``."""
    made: list[tuple[float, Rates]] = []
    for day, rates in steps:
        edges = sorted({edge[0] for rate in rates.values() if isinstance(rate, list) for edge in rate[1:]})
        flat = [
            _made({name: _rate_above(rate, edge) if isinstance(rate, list) else rate for name, rate in rates.items()})
            for edge in (-1, *edges)
        ]
        start = float("-inf") if day is None else datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        made.append((start, evolve(flat[0], above=tuple(zip(edges, flat[1:], strict=True)))))
    assert all(one[0] < other[0] for one, other in pairwise(made)), steps
    return tuple(reversed(made))


def _rate_above(rate: Sequence[Any], edge: int) -> float:
    held: float = rate[0]
    for start, above in rate[1:]:
        if start <= edge:
            held = above
    return held


def _override(price: Price) -> Model:
    """A price of the configuration. Batches and the flex tier cost half of it, other tiers are not known."""
    known = {name: rate for name in _NAMES if (rate := getattr(price, name, None)) is not None}
    rates = _made(known)
    half = ((float("-inf"), rates.halved()),)
    return Model(CONFIG, ((float("-inf"), rates),), {"batch": half, "flex": half})
