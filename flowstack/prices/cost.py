"""What an answer costs: the upstream's own figures times a dated table of prices, or why that is not known.

The table is ``flowstack/prices/table.json``, which ``make prices`` writes; the configuration's prices go before it.
``docs/reference/prices.rst`` has the rules in words. Amounts are whole femto-dollars (1e-15 US dollars) inside, so that
sums are exact; a cost is given as the float nearest to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, fields, frozen

from flowstack.keys.patterns import MAX_MODEL, fitting, in_order
from flowstack.memo import Memo, cut
from flowstack.tokens import hide_keys
from flowstack.usage.model import Usage

if TYPE_CHECKING:
    from flowstack.config import Price


Cost = tuple[float | None, str | None, str | None]
"""What an answer costs, as a plain tuple, since one is made for every request: US dollars; the date of the table that
says so (:data:`CONFIG` for the configuration's); and, where those two are None, why: ``no_model``,
``no_price:<model>``, ``no_price_for:<what>``, or ``figures:<what>`` where these are missing or do not add up.
``docs/reference/prices.rst`` lists them."""

CONFIG = "config"
"""The price date of what was priced by the configuration, which has no date."""

NO_MODEL: Final[Cost] = (None, None, "no_model")

_DOLLAR: Final = 10**15
_MAX_COST: Final = 100_000 * _DOLLAR
"""Dearer is no answer, and no batch: the figures are wrong. The index takes no more for a cost."""

_FOR_A_TOKEN = 10**9
"""One US dollar for a million tokens, in femto-dollars for a token."""

_HOUR: Final = 3600

_TOKENS_A_SECOND = 18
"""As a recording is estimated, 25 tokens for 1,000 bytes, of sound that has at least 750 bytes a second."""

_STANDARD = frozenset({None, "", "auto", "default", "standard", "standard_only", "on_demand"})
"""Service tiers at the standard price: OpenAI's ``default``, what other providers call it, and what says nothing."""

_OPEN = frozenset({None, "", "auto"})
"""What leaves the tier to the provider: OpenAI's projects and Anthropic's workspaces have one of their own."""

_MORE: Final = frozenset((
    "speed", "inference_geo", "iterations", "type", "seconds", "server_tool_use", "tool_usage", "output_items",
    "svg_usage", "container", "num_sources_used", "num_server_side_tools_used", "prompt_audio_seconds",
    "fallback_credit",
))  # fmt: skip
"""Members of the details that may say more than what kinds the tokens are of."""

_BESIDE = _MORE - {"speed", "inference_geo", "iterations", "type", "seconds", "server_tool_use", "container"}

_UNSAID = frozenset({None, "", "standard", "global", "not_available"})
"""Anthropic's ``speed`` and ``inference_geo`` where they change no price."""

_FREE = frozenset(("web_fetch_requests", "tool_search_requests"))
"""What Anthropic counts of its own tools and does not charge for but in tokens (Anthropic reference, pricing)."""

_OF_TEXT: Final = frozenset((
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
))  # fmt: skip
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


class Unpriced(Exception):
    """There is no cost; the argument is why."""


@frozen(slots=True)
class Rates:
    """What one token costs, in femto-dollars; None is not known.

    :ivar cache_write: None means as much as :attr:`input`.
    :ivar cache_write_hour: for what is to stay in the cache for an hour, as Anthropic offers it.
    :ivar image_input: None means as much as :attr:`input`, and so for images in the output.
    :ivar audio_hour: what an hour of sound costs, where that is billed and not its tokens.
    :ivar plain: whether neither audio nor images have a rate of their own.
    :ivar dearest_input: the highest of all rates of the input, and so for the output.
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
    audio_hour: int | None = None
    plain: bool = True
    dearest_input: int = 0
    dearest_output: int = 0
    above: tuple[tuple[int, Rates], ...] = ()

    def at(self, prompt: int) -> Rates:
        """The rates for a prompt of this many tokens."""
        held = self
        for least, rates in self.above:
            if prompt > least:
                held = rates
        return held


_NAMES = tuple(field.name for field in fields(Rates) if field.default is None)
_KINDS = frozenset(_NAMES) - {"input", "cached_input", "cache_write", "cache_write_hour", "output", "audio_hour"}
_OUTPUTS = frozenset(("output", "audio_output", "image_output"))

_Line = tuple[str, int, int, int]
"""The table's date; what a token of input costs, how much more where it was cached, and what one of output costs."""

Steps = tuple[tuple[float, Rates], ...]
"""Rates with the Unix time from which they hold, the latest first."""


@frozen(slots=True)
class Model:
    """A model's prices.

    :ivar date: of the table, for the ledger's row.
    :ivar tiers: those of batches and service tiers, by name.
    :ivar rivals: of the tiers, those that may be dearer than the standard one.
    :ivar fees: what is charged in addition to tokens, each time, in femto-dollars, by name.
    :ivar fee: that for every answer.
    :ivar missing: the answer where there are no prices.
    :ivar bills_excess: whether what the total has beyond input and output is thinking, billed as output.
    :ivar factor: the dearest of the factors that an answer may name (:class:`Prices`).
    """

    date: str
    provider: str | None = None
    standard: Steps = ()
    tiers: Mapping[str, Steps] = {}
    rivals: tuple[Steps, ...] = ()
    fees: Mapping[str, int] = {}
    fee: int = 0
    missing: Cost = NO_MODEL
    bills_excess: bool = False
    factor: Fraction | None = None


class Prices:
    """The prices of all models.

    :param table: the parsed JSON of ``prices.json``.
    :param overrides: the configuration's; a name without ``*`` goes before patterns, a longer pattern before a shorter
        one, and what fits takes the place of all that the table says of that model's tokens.
    :ivar date: the table's.
    """

    def __init__(self, table: Mapping[str, Any], overrides: Iterable[Price] = ()) -> None:
        self.date: str = table["date"]
        self._names: dict[str, dict[str, Model]] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Model]] = []
        for entry in table["models"]:
            model = _model(
                self.date,
                entry["provider"],
                _steps(entry["rates"]),
                {name: _steps(steps) for name, steps in entry.get("tiers", {}).items()},
            )
            names = self._names.setdefault(entry["provider"], {})
            for name in entry.get("names", ()):
                names.setdefault(name, model)
            if patterns := entry.get("patterns"):
                self._patterns.append((entry["provider"], re.compile("|".join(patterns)), model))
        self._fees = [
            (rule["provider"], re.compile(rule.get("models", "")), {fee: _usd(usd) for fee, usd in rule["usd"].items()})
            for rule in table.get("fees", ())
        ]
        self._geos = {geo: Fraction(str(by)) for geo, by in table.get("inference_geo", {}).get("factors", {}).items()}
        self._image_model: str | None = table.get("image_generation", {}).get("model")
        self._outputs = [
            (re.compile(pattern), tokens) for pattern, tokens in table.get("output_tokens", {}).get("models", ())
        ]
        self._overrides = in_order((price.model.lower(), _override(price)) for price in overrides)
        self._models = Memo(self._search)
        self._lines = Memo(self._line, size=lambda question: len(question[0]) + len(question[1] or ""))
        self._limits = Memo(self._limit)

    def cost(self, model: str | None, usage: Usage, service_tier: str | None, batch: bool, when: float) -> Cost:
        """What an answer costs.

        :param model: as the upstream names the one that answered, or else as the client named it.
        :param service_tier: as the answer says; None means the standard one.
        :param batch: whether it was done as a batch, which has a price of its own.
        :param when: Unix time of the request, as prices change.
        """
        if model is None:
            return NO_MODEL
        details = usage.details
        try:
            if (line := self._lines[model, service_tier, batch, when // _HOUR]) is not None:
                date, into, read, out = line
                prompt, cached, output = usage.prompt_tokens, usage.cached_tokens or 0, usage.completion_tokens
                if (
                    prompt is not None
                    and output is not None
                    and cached <= prompt
                    and prompt + output == usage.total_tokens
                    and _is_text(details)
                ):
                    amount = into * prompt + read * cached + out * output
                    return (amount / _DOLLAR, date, None) if amount <= _MAX_COST else _FIGURES
            known = self._models[model]
            if not known.standard:
                return known.missing
            if not details or _MORE.isdisjoint(details):
                amount = _tokens(known, service_tier, batch, usage, when)
            else:
                amount = self._all_of_it(known, service_tier, batch, usage, when, details)
            if known.fee:
                amount += known.fee
            if amount > _MAX_COST:
                return _FIGURES
            return amount / _DOLLAR, known.date, None
        except Unpriced as unpriced:
            return None, None, unpriced.args[0]
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
            # A breakdown that is none, or a figure beyond all measure.
            return _FIGURES

    def _line(self, question: tuple[str, str | None, bool, float]) -> _Line | None:
        """What a model's tokens cost within an hour, where that is all that matters of them."""
        model, tier, batch, hour = question
        known = self._models[model]
        try:
            rates = _rates_of(known, tier, batch, hour * _HOUR)
        except Unpriced:
            return None
        into, read, out = rates.input, rates.cached_input, rates.output
        if into is None or read is None or out is None or known.fee or rates.above or not rates.plain:
            return None
        return known.date, into, read - into, out

    def estimate(
        self,
        model: str,
        prompt_tokens: int,
        output_tokens: int,
        service_tier: str | None = None,
        when: float = float("inf"),
        batch: bool = False,
    ) -> float | None:
        """The most that such a request costs, in US dollars: nothing cached, every token of the dearest kind.

        :param service_tier: as the request asks. A tier that was asked for may be served at the standard price, and
            where the choice is left to the provider, or the tier has no price, the dearest tier counts.
        :param when: Unix time; otherwise the latest price counts.
        :param batch: whether it is done as a batch: where that has no price of its own, the standard one counts.
        :return: None where neither the table nor the configuration has a price.
        """
        known = self._models[model]
        rates = (_rates_at(known.tiers.get("batch", ()), when) if batch else None) or _rates_at(known.standard, when)
        if rates is None:
            return None
        if rates.input is None and rates.audio_hour is None:
            return None
        amount = _most_of(rates, prompt_tokens, output_tokens)
        if not batch and (service_tier in _OPEN or service_tier not in _STANDARD):
            own = known.tiers.get(service_tier or "")
            for steps in known.rivals if own is None else (own,):
                rates = _rates_at(steps, when)
                if rates is not None:
                    amount = max(amount, _most_of(rates, prompt_tokens, output_tokens))
        if known.factor is not None:
            amount = int(amount * known.factor)
        return (amount + known.fee) / _DOLLAR

    def has_price(self, model: str) -> bool:
        """Whether :meth:`estimate` gives one."""
        return self.estimate(model, 0, 0) is not None

    def output_limit(self, model: str) -> int | None:
        """The most output tokens that a model gives, or None where its provider does not say."""
        return self._limits[model]

    def _all_of_it(
        self, known: Model, tier: str | None, batch: bool, usage: Usage, when: float, details: Mapping[str, Any]
    ) -> int:
        """What is billed in all, in femto-dollars, where more is than one kind of work.

        :raises Unpriced, AttributeError, TypeError, ValueError, OverflowError: see :meth:`cost`.
        """
        get = details.get
        if (speed := get("speed")) not in _UNSAID:
            if batch or tier not in _STANDARD or _text(speed) not in known.tiers:
                raise Unpriced("no_price_for:speed")
            tier = speed
        if entries := get("iterations"):
            amount = self._entries(known, tier, batch, usage, when, entries)
        elif get("type") == "duration" or (usage.prompt_tokens is None and "seconds" in details):
            amount = _sound(known, tier, batch, when, get("seconds"))
        else:
            amount = _tokens(known, tier, batch, usage, when)
        if (geo := get("inference_geo")) not in _UNSAID:
            if geo not in self._geos:
                raise Unpriced("no_price_for:inference_geo")
            amount = int(amount * self._geos[geo])
        tools = get("tool_usage") or _NO_DETAILS
        used = get("server_tool_use")
        if tools or (used and any(used.values())) or get("output_items") or get("container"):
            for name, times in _calls(details, tools):
                fee = known.fees.get(name)
                if fee is None:  # under whatever name the upstream chose
                    word = name if len(name) <= 64 and name.isidentifier() else "tool"
                    raise Unpriced(f"no_price_for:{word}")
                amount += times * fee
        if not _BESIDE.isdisjoint(details):
            amount += self._others(details, tools, batch, when)
        return amount

    def _others(self, details: Mapping[str, Any], tools: Mapping[str, Any], batch: bool, when: float) -> int:
        """What other models did for an answer; and no cost where something is billed that has no price at all.

        :raises Unpriced, AttributeError, LookupError, TypeError: see :meth:`cost`.
        """
        get = details.get
        amount = 0
        drawn = tools.get("image_gen") or _NO_DETAILS
        if drawn.get("input_tokens") or drawn.get("output_tokens") or drawn.get("total_tokens"):
            model = (get("tool_models") or _NO_DETAILS).get("image_generation") or self._image_model
            amount += self._beside("image_gen", model, _drawn(drawn), batch, when)
        elif (get("output_items") or _NO_DETAILS).get("image_generation_call"):
            raise Unpriced("figures:image_gen")
        if authored := get("svg_usage"):
            amount += self._beside("svg", authored.get("model"), _plain(authored), batch, when)
        if get("num_sources_used") or get("num_server_side_tools_used"):  # in live searches (xAI reference)
            raise Unpriced("no_price_for:live_search")
        if get("prompt_audio_seconds"):  # in addition to its tokens (Mistral reference)
            raise Unpriced("no_price_for:audio_input")
        if (credit := get("fallback_credit")) and credit["status"]["type"] != "not_applied":
            raise Unpriced("no_price_for:fallback_credit")
        return amount

    def _entries(
        self, known: Model, tier: str | None, batch: bool, usage: Usage, when: float, entries: Sequence[Any]
    ) -> int:
        """An Anthropic answer's iterations, each at the price of the model that did it, by its own prompt's length.

        (Anthropic reference, messages: what is billed is the sum of all entries.)
        """
        amount = prompt = output = 0
        for entry in entries:
            part = _iteration(entry)
            prompt += part.prompt_tokens or 0
            output += part.completion_tokens or 0
            model = entry.get("model")
            its = known if model is None else self._models[_text(model)]
            if not its.standard:
                raise Unpriced(its.missing[2])
            amount += _tokens(its, tier, batch, part, when)
        if prompt < (usage.prompt_tokens or 0) or output < (usage.completion_tokens or 0):
            raise Unpriced("figures:iterations")
        return amount

    def _beside(self, what: str, model: Any, usage: Usage, batch: bool, when: float) -> int:
        """What another model did for an answer. Only batches are known to make it cheaper."""
        known = self._models[model] if type(model) is str else _UNKNOWN
        if not known.standard:
            raise Unpriced(f"no_price_for:{what}")
        try:
            return _tokens(known, None, batch, usage, when)
        except Unpriced as unpriced:
            kind = unpriced.args[0].partition(":")[0]
            raise Unpriced(f"{kind}:{what}") from None

    def _search(self, model: str) -> Model:
        if len(model) > MAX_MODEL:
            return evolve(_UNKNOWN, missing=_no_price(model))
        name = model.lower()
        provider, bare = _sold_by(name)
        found = self._lookup(bare, provider)
        if found is None and (dashed := _COMPACT_DAY.sub(r"-\1-\2-\3", bare)) != bare:
            found = self._lookup(dashed, provider)
        found = found or _UNKNOWN
        fees: dict[str, int] = {}
        for seller, models, usd in self._fees:
            if seller == (found.provider or provider or "openai") and models.search(bare):
                fees |= usd
        if (override := fitting(self._overrides, name)) is not None:
            found = evolve(override[0], provider=found.provider)
            fees |= override[1]
        return evolve(
            found,
            fees=fees,
            fee=fees.get("answer", 0),
            missing=NO_MODEL if found.standard else _no_price(model),
            bills_excess=found.provider == "google",
            factor=max(self._geos.values(), default=None) if found.provider == "anthropic" else None,
        )

    def _limit(self, model: str) -> int | None:
        if len(model) > MAX_MODEL:
            return None
        name = _sold_by(model.lower())[1].removeprefix("ft:")
        return next((tokens for pattern, tokens in self._outputs if pattern.search(name)), None)

    def _lookup(self, name: str, provider: str | None) -> Model | None:
        for each, names in self._names.items():
            if provider in (None, each) and name in names:
                return names[name]
        for each, pattern, model in self._patterns:
            if provider in (None, each) and pattern.search(name):
                return model
        return None


def _sold_by(name: str) -> tuple[str | None, str]:
    """Whose prices a name asks for, where it says so, and what they call the model."""
    vendor, slash, bare = name.partition("/")
    provider = _VENDORS.get(vendor) if slash else None
    return (None, name) if provider is None else (provider, bare)


def _rates_at(steps: Steps, when: float) -> Rates | None:
    for start, rates in steps:
        if when >= start:
            return rates
    return None


def _rates_of(known: Model, tier: str | None, batch: bool, when: float) -> Rates:
    """:raises Unpriced: the tier has no price, or had none then."""
    if batch:
        steps = known.tiers.get("batch", ())
    elif tier in _STANDARD:
        steps = known.standard
    else:
        steps = known.tiers.get(tier or "", ())
    rates = _rates_at(steps, when)
    if rates is None:
        raise Unpriced("no_price_for:batch" if batch else "no_price_for:tier")
    return rates


def _most_of(rates: Rates, prompt: int, output: int) -> int:
    """What tokens cost at the dearest rates, in femto-dollars."""
    if rates.above:
        rates = rates.at(prompt)
    amount = prompt * rates.dearest_input + output * rates.dearest_output
    if rates.audio_hour is not None:
        amount += prompt * rates.audio_hour // (_TOKENS_A_SECOND * _HOUR)
    return amount


def _tokens(known: Model, tier: str | None, batch: bool, usage: Usage, when: float) -> int:
    """What tokens cost, in femto-dollars.

    :raises Unpriced, AttributeError, TypeError: see :meth:`Prices.cost`.
    """
    rates = _rates_of(known, tier, batch, when)
    prompt = usage.prompt_tokens
    if prompt is None:
        raise Unpriced("figures:input_tokens")
    if rates.above:
        rates = rates.at(prompt if usage.longest is None else usage.longest)
    output = usage.completion_tokens
    total = usage.total_tokens
    if output is None:
        # Embeddings have no output. Where there might be one, only the total can say that there was none.
        if rates.output is not None and total != prompt:
            raise Unpriced("figures:output_tokens")
        output = 0
    elif total is not None and total != prompt + output:
        # xAI counts reasoning apart from the completion, as the total shows; OpenAI counts it within.
        output += usage.reasoning_tokens or 0
        if total != prompt + output:
            # Google's OpenAI endpoint counts thinking in the total alone.
            if not known.bills_excess or total < prompt + output:
                raise Unpriced("figures:total_tokens")
            output = total - prompt
    into, cached = rates.input, usage.cached_tokens or 0
    if into is None:
        raise Unpriced("no_price_for:input")
    if cached > prompt:
        raise Unpriced("figures:cached_tokens")
    amount = into * prompt
    if cached:
        read = rates.cached_input
        if read is None:
            raise Unpriced("no_price_for:cached_input")
        amount += (read - into) * cached
    if output:
        out = rates.output
        if out is None:
            raise Unpriced("no_price_for:output")
        amount += out * output
    details = usage.details
    if details or not rates.plain:
        amount += _beyond(rates, prompt, cached, output, details or _NO_DETAILS)
    return amount


def _is_text(details: dict[str, Any] | None) -> bool:
    """Whether no token has a price of its own by what the details say."""
    if not details:
        return True
    if not _OF_TEXT.issuperset(details):
        return False
    for inner in details.values():  # noqa: SIM110 - a generator costs as much as the loop
        if inner.get("audio_tokens") or inner.get("cache_write_tokens"):
            return False
    return True


def _beyond(rates: Rates, prompt: int, cached: int, output: int, details: Mapping[str, Any]) -> int:
    """What tokens of a kind cost beyond plain text, in femto-dollars.

    :raises Unpriced, AttributeError, TypeError: see :meth:`Prices.cost`.
    """
    get = details.get
    inner = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details") or _NO_DETAILS
    outer = (
        get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details") or _NO_DETAILS
    )
    amount = 0
    if written := inner.get("cache_write_tokens") or get("cache_creation_input_tokens"):  # the second is Anthropic's
        if cached + _count(written) > prompt:
            raise Unpriced("figures:cached_tokens")
        text = rates.input or 0
        write = text if rates.cache_write is None else rates.cache_write
        amount = written * (write - text)
        if kept := _count((get("cache_creation") or _NO_DETAILS).get("ephemeral_1h_input_tokens")):
            if kept > written:
                raise Unpriced("figures:cache_write_tokens")
            if rates.cache_write_hour is None:
                raise Unpriced("no_price_for:cache_write_hour")
            amount += kept * (rates.cache_write_hour - write)
        if _count((inner.get("cache_write_tokens_details") or _NO_DETAILS).get("ttl_12h_tokens")):
            raise Unpriced("no_price_for:cache_write_12h")
    if rates.plain:
        if inner.get("audio_tokens"):
            raise Unpriced("no_price_for:audio_input")
        if outer.get("audio_tokens"):
            raise Unpriced("no_price_for:audio_output")
        return amount
    return (
        amount
        + _kinds("input", inner, prompt, rates.input or 0, rates.audio_input, rates.image_input)
        + _kinds("output", outer, output, rates.output or 0, rates.audio_output, rates.image_output)
        + _cached_kinds(rates, inner, cached)
    )


def _kinds(way: str, inner: Mapping[str, Any], tokens: int, text: int, audio: int | None, image: int | None) -> int:
    """What audio and image tokens of one direction cost beyond text, in femto-dollars.

    Where a kind has a rate of its own, a breakdown is needed: without it their number is unknown. Images
    without such a rate are billed as text; speech never is.
    """
    if tokens:
        if audio is not None and "audio_tokens" not in inner and not _all_told(inner, "audio_tokens", tokens):
            raise Unpriced(f"figures:audio_{way}")
        if image is not None and "image_tokens" not in inner and not _all_told(inner, "image_tokens", tokens):
            raise Unpriced(f"figures:image_{way}")
    spoken, shown = _count(inner.get("audio_tokens")), _count(inner.get("image_tokens"))
    if spoken + shown > tokens:
        raise Unpriced(f"figures:audio_{way}" if spoken else f"figures:image_{way}")
    if spoken and audio is None:
        raise Unpriced(f"no_price_for:audio_{way}")
    return spoken * ((audio or 0) - text) + (0 if image is None else shown * (image - text))


def _all_told(inner: Mapping[str, Any], missing: str, tokens: int) -> bool:
    """Whether the other kinds make up all tokens, so that there were none of the one that is not mentioned."""
    others = (inner.get(name) for name in ("text_tokens", "audio_tokens", "image_tokens") if name != missing)
    return sum(map(_count, others)) == tokens


def _cached_kinds(rates: Rates, inner: Mapping[str, Any], cached: int) -> int:
    """The same for cached tokens, of which :func:`_kinds` took those of a kind at that kind's uncached rate."""
    spoken, shown = _count(inner.get("audio_tokens")), _count(inner.get("image_tokens"))
    if not cached or not (spoken or (shown and rates.image_input is not None)):
        return 0
    of_cached = inner.get("cached_tokens_details")
    if not of_cached:
        raise Unpriced("figures:cached_tokens")
    read_spoken, read_shown = _count(of_cached.get("audio_tokens")), _count(of_cached.get("image_tokens"))
    if read_spoken > spoken or read_shown > shown or read_spoken + read_shown > cached:
        raise Unpriced("figures:cached_tokens")
    if read_spoken and rates.cached_audio_input is None:
        raise Unpriced("no_price_for:cached_audio_input")
    if read_shown and rates.image_input is not None and rates.cached_image_input is None:
        raise Unpriced("no_price_for:cached_image_input")
    text, read = rates.input or 0, rates.cached_input or 0
    amount = read_spoken * ((rates.cached_audio_input or 0) - read - ((rates.audio_input or 0) - text))
    if rates.image_input is not None:
        amount += read_shown * ((rates.cached_image_input or 0) - read - (rates.image_input - text))
    return amount


def _sound(known: Model, tier: str | None, batch: bool, when: float, seconds: Any) -> int:
    """What sound costs that is billed by its length."""
    hour = _rates_of(known, tier, batch, when).audio_hour
    if hour is None:
        raise Unpriced("no_price_for:audio_seconds")
    if type(seconds) not in (int, float) or seconds < 0:
        raise Unpriced("figures:seconds")
    return int(hour * Fraction(seconds) / _HOUR)


def _calls(details: Mapping[str, Any], tools: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What is charged for each time in addition to tokens: the fee's name, and how many times."""
    for name, times in (details.get("server_tool_use") or _NO_DETAILS).items():
        if times and name not in _FREE:
            yield f"{name.removesuffix('_requests')}_call", _count(times)
    items = details.get("output_items") or _NO_DETAILS
    named = details.get("tool_models") or _NO_DETAILS
    searches = tools.get("web_search")
    searches = items.get("web_search_call") if searches is None else searches.get("num_requests")
    if searches:
        preview = (named.get("web_search") or "").startswith("web_search_preview")
        yield "web_search_preview_call" if preview else "web_search_call", _count(searches)
    if sought := items.get("file_search_call"):
        yield "file_search_call", _count(sought)
    containers = _count(items.get("containers")) or (1 if items.get("code_interpreter_call") else 0)
    if containers:
        size = named.get("code_interpreter")
        yield "container" if size in (None, "1g") else f"container_{size}", containers
    if details.get("container"):  # Anthropic's
        yield "container", 1


def _iteration(entry: Mapping[str, Any]) -> Usage:
    """An entry of an Anthropic answer's iterations, which counts what was read from and written to the cache apart."""
    read, written = _count(entry.get("cache_read_input_tokens")), _count(entry.get("cache_creation_input_tokens"))
    prompt, output = entry["input_tokens"], entry["output_tokens"]
    return Usage(_count(prompt) + read + written, read, _count(output), details=dict(entry))


def _drawn(figures: Mapping[str, Any]) -> Usage:
    """The pictures of a response's tool; what was cached is named as nowhere else."""
    inner: dict[str, Any] = dict(figures.get("input_tokens_details") or _NO_DETAILS)
    if cached := figures.get("cached_tokens_details"):
        inner["cached_tokens_details"] = {
            name: cached.get(f"cached_{name}") for name in ("text_tokens", "image_tokens")
        }
    details = {"input_tokens_details": inner, "output_tokens_details": figures.get("output_tokens_details")}
    usage = _plain(figures)
    usage.cached_tokens = _count(figures.get("cached_tokens"))
    usage.details = details
    return usage


def _plain(figures: Mapping[str, Any]) -> Usage:
    total = figures.get("total_tokens")
    return Usage(
        _count(figures.get("input_tokens")),
        completion_tokens=_count(figures.get("output_tokens")),
        reasoning_tokens=_count(figures.get("reasoning_tokens")),
        total_tokens=None if total is None else _count(total),
    )


def _no_price(model: str) -> Cost:
    """The reason names the model, but no key, as somebody may have sent one for a model's name."""
    return None, None, f"no_price:{hide_keys(cut(model, 256))}"


def _count(value: Any) -> int:
    """A number of tokens; what is not said is none of them.

    :raises TypeError: it is no number of anything.
    """
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    """:raises TypeError: it is no text."""
    if type(value) is not str:
        raise TypeError(value)
    return value


def _usd(dollars: float | int) -> int:
    """US dollars in femto-dollars."""
    return int(Decimal(str(dollars)) * _DOLLAR)


def _femto(dollars: float | int) -> int:
    """US dollars for a million tokens as femto-dollars for one; the shortest decimal of a float is what was meant."""
    return int(Decimal(str(dollars)) * _FOR_A_TOKEN)


def _made(dollars: Mapping[str, float | int]) -> Rates:
    return _rates({name: _usd(rate) if name == "audio_hour" else _femto(rate) for name, rate in dollars.items()})


def _rates(known: Mapping[str, int]) -> Rates:
    rates: dict[str, Any] = dict(known)
    return Rates(
        **rates,
        plain=not known.keys() & _KINDS,
        dearest_input=max((rate for name, rate in known.items() if name not in _OUTPUTS | {"audio_hour"}), default=0),
        dearest_output=max((rate for name, rate in known.items() if name in _OUTPUTS), default=0),
    )


def _steps(steps: Sequence[Sequence[Any]]) -> Steps:
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


def _model(date: str, provider: str | None, standard: Steps, tiers: Mapping[str, Steps]) -> Model:
    latest = [rates for _, rates in standard]
    rivals = []
    for steps in tiers.values():
        if steps not in rivals and any(_may_be_dearer(rates, others) for _, rates in steps for others in latest):
            rivals.append(steps)
    return Model(date, provider, standard, tiers, tuple(rivals))


def _may_be_dearer(one: Rates, other: Rates) -> bool:
    return any(
        getattr(rates, way) > getattr(against, way)
        for rates, against in zip(_all_of(one), _all_of(other), strict=False)
        for way in ("dearest_input", "dearest_output")
    )


def _all_of(rates: Rates) -> tuple[Rates, ...]:
    return rates, *(above for _, above in rates.above)


def _override(price: Price) -> tuple[Model, dict[str, int]]:
    """A price of the configuration, and its fees. Batches and flex cost half of it; other tiers are not known."""
    known = {name: _femto(rate) for name in _NAMES if (rate := getattr(price, name, None)) is not None}
    if price.audio_minute is not None:
        known["audio_hour"] = 60 * _usd(price.audio_minute)
    always = float("-inf")
    half = ((always, _rates({name: rate // 2 for name, rate in known.items()})),)
    fees = {name: _usd(fee) for name in FEES if (fee := getattr(price, name)) is not None}
    return _model(CONFIG, None, ((always, _rates(known)),), {"batch": half, "flex": half}), fees


FEES = ("web_search_call", "file_search_call", "container")
"""What the configuration may state of what is charged each time."""

_UNKNOWN = Model("")
_FIGURES: Final[Cost] = (None, None, "figures")
