"""Write ``flowstack/prices/table.json`` from the ``genai-prices`` package, and prove that it gives the same costs.

What the package does not know (what is charged each time, fine-tuned models, the most output of a model) is kept by
hand in ``scripts/charges.json``, each with its day and source, and goes into the table as it is; its models go first.

Run by ``make prices``, in an environment of its own: the package is a tool of this script and of nothing else. What the
table cannot say the way the package does is left out, so that such a model costs null and nothing wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "flowstack/prices/table.json"
BY_HAND = ROOT / "scripts/charges.json"

PROVIDERS = ("openai", "anthropic", "google", "mistral", "x-ai")
"""Who serves models of their own under names of their own. What many serve, each at a price of its own, is not here."""

RATES = {
    "input_mtok": "input",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_hour",
    "output_mtok": "output",
    "input_audio_mtok": "audio_input",
    "cache_audio_read_mtok": "cached_audio_input",
    "output_audio_mtok": "audio_output",
    "input_image_mtok": "image_input",
    "cache_image_read_mtok": "cached_image_input",
    "output_image_mtok": "image_output",
    "audio_hours": "audio_hour",
}
BESIDE_TOKENS = {"web_searches_kcount", "storage_searches_kcount"}
"""Charges that are kept by hand, as they are the same for all models of a provider. Any other that is not known here
keeps a model out of the table."""

TIERS = {("processing", "batch"): "batch", ("service_tier", "flex"): "flex", ("service_tier", "priority"): "priority",
         ("service_tier", "fast"): "fast", ("speed", "fast"): "fast"}  # fmt: skip
UNVERIFIED = re.compile(r"(?:Imported from|Seen on) OpenRouter(?!.*Verified)", re.DOTALL)


class LeftOut(Exception):
    """A model that the table cannot describe."""


def number(value: Decimal) -> int | float:
    """A price as JSON has it; the shortest float stands for the same decimal."""
    return int(value) if value == int(value) else float(value)


def rates_of(prices: Any) -> dict[str, Any]:
    """One set of prices: a number for each rate, or a list of it and of what holds above so many input tokens."""
    rates = {}
    for key, value in vars(prices).items():
        if value is None or key in BESIDE_TOKENS or (key == "input_audio_hours" and value == prices.audio_hours):
            continue
        if key not in RATES:
            raise LeftOut(f"priced by {key}")
        tiers = [[tier.start, number(tier.price)] for tier in getattr(value, "tiers", ())]
        rates[RATES[key]] = [number(value.base), *tiers] if tiers else number(getattr(value, "base", value))
    return rates


def steps_of(model: Any, constraints: list[Any], context: dict[str, str] | None = None) -> list[list[Any]]:
    """What holds from each day on which a price begins, as ``[day or null, rates]``; the package says what that is."""
    if any(constraint is not None and not hasattr(constraint, "start_date") for constraint in constraints):
        raise LeftOut("priced by the time of day")
    days = sorted({constraint.start_date for constraint in constraints if constraint is not None})
    steps: list[list[Any]] = []
    for day in ([date(1970, 1, 1)] if None in constraints else []) + days:
        rates = rates_of(model.get_prices(datetime(day.year, day.month, day.day, tzinfo=UTC), context))
        if not steps or steps[-1][1] != rates:
            steps.append([str(day) if day.year > 1970 else None, rates])
    return steps


def standard_of(model: Any) -> list[Any]:
    """The conditions of the standard prices. Of several the first stands where none fits, so it has none here."""
    return [None, *(each.constraint for each in model.prices[1:])] if isinstance(model.prices, list) else [None]


def tiers_of(model: Any) -> dict[str, list[list[Any]]]:
    """The prices of batches and of service tiers, none of which is known before the first day that the package has."""
    tiers: dict[str, list[list[Any]]] = {}
    for context, name in TIERS.items():
        own = [each.constraint for each in model.price_variants or () if each.when == dict([context])]
        if own:
            first = None if None in own else min(str(each.start_date) for each in own)
            standard = [each for each in standard_of(model) if first is None or (each and str(each.start_date) > first)]
            tiers[name] = steps_of(model, own + standard, dict([context]))
    return tiers


def leaves(clause: Any) -> Iterator[Any]:
    """The alternatives of a match."""
    alternatives = getattr(clause, "or_", None)
    if alternatives is None:
        yield clause
    else:
        for each in alternatives:
            yield from leaves(each)


def pattern(clause: Any) -> str:
    """A clause as a regular expression, to be searched in a name in lower case."""
    kind, value = next(iter(vars(clause).items()))
    match kind:
        case "equals":
            return f"^{re.escape(value.lower())}$"
        case "starts_with":
            return f"^{re.escape(value.lower())}"
        case "ends_with":
            return f"{re.escape(value.lower())}$"
        case "contains":
            return str(re.escape(value.lower()))
        case "regex":
            return str(value)
        case "and_":
            return "^" + "".join(f"(?=.*?(?:{pattern(each)}))" for each in value)
        case "or_":
            return "|".join(map(pattern, value))
    raise LeftOut(f"matched by {kind}")


def entry_of(provider: Any, model: Any) -> dict[str, Any]:
    """A model. The package takes the first that matches a name, so each name goes to that one."""
    if UNVERIFIED.match(model.price_comments or ""):
        raise LeftOut("a reseller's price")
    if provider.id == "google" and not model.id.startswith("gemini"):
        raise LeftOut("another's model")
    standard = steps_of(model, standard_of(model))
    if not all("input" in rates or rates.keys() == {"audio_hour"} for _, rates in standard):
        raise LeftOut("no price for input tokens")
    if any("audio_hour" in rates and len(rates) > 1 for _, rates in standard):
        raise LeftOut("priced by tokens and hours")
    alternatives = list(leaves(model.match))
    names = sorted({each.equals.lower() for each in alternatives if hasattr(each, "equals")})
    return {
        "provider": provider.id,
        "names": [name for name in names if provider.find_model(name) is model],
        "patterns": [pattern(each) for each in alternatives if not hasattr(each, "equals")],
        "rates": standard,
        "tiers": tiers_of(model),
    }


def entries_of(provider: Any) -> Iterator[dict[str, Any]]:
    """A provider's models, in the package's order."""
    for model in provider.models:
        try:
            entry = entry_of(provider, model)
        except LeftOut as reason:
            print(f"left out: {provider.id} {model.id}: {reason}", file=sys.stderr)
            # Its names must not fall to a later entry's pattern.
            entry = {"provider": provider.id, "patterns": [pattern(model.match)], "rates": []}
        yield {key: value for key, value in entry.items() if value or key == "rates"}


def table(providers: list[Any]) -> dict[str, Any]:
    """The whole of it."""
    by_hand = json.loads(BY_HAND.read_text("utf-8"))
    chosen = [next(each for each in providers if each.id == name) for name in PROVIDERS]
    return {
        "date": str(datetime.now(UTC).date()),
        "source": f"genai-prices {version('genai-prices')} (MIT)",
        "unit": "US dollars for a million tokens",
        **{name: part for name, part in by_hand.items() if name != "models"},
        "models": by_hand["models"] + [entry for provider in chosen for entry in entries_of(provider)],
    }


def written(data: dict[str, Any]) -> str:
    """JSON with a line for each model, so that a diff shows what changed."""
    head = "".join(f" {json.dumps(key)}: {json.dumps(part)},\n" for key, part in data.items() if key != "models")
    lines = ",\n".join(f"  {json.dumps(entry, separators=(',', ':'))}" for entry in data["models"])
    return f'{{\n{head} "models": [\n{lines}\n ]\n}}\n'


SIZES = ((1000, 0, 0, 77), (128_001, 5, 0, 5), (200_000, 1500, 100, 1), (200_001, 0, 0, 50_000), (272_001, 9, 9, 9))
"""Prompts, what of them was cached and written to the cache, and outputs: on both sides of each long prompt's price."""

SECONDS = 90.5
"""Of sound, where that is billed."""

DAYS = [date(year, month, day) for year in (2025, 2026, 2027) for month in range(1, 13) for day in (1, 20)]


def names_of(model: Any) -> Iterator[str]:
    """Names that a model may have and names that come close."""
    for leaf in leaves(model.match):
        text = next(iter(vars(leaf).values()))
        for name in (text,) if isinstance(text, str) and "^" not in text else ("x", model.id):
            yield from (name, name.upper(), f"{name}-2026-01-31", f"{name}-20260131", f"{name}-x", f"x{name}")
            yield f"ft:{name}:acme::1"


def disagreements(providers: list[Any], data: dict[str, Any]) -> Iterator[str]:
    """Where our costs are not those of the package, over every name, size of prompt, tier and day that matters."""
    sys.path.insert(0, str(ROOT))
    from flowstack.prices.cost import Prices

    ours = Prices(data)
    by_hand = re.compile("|".join(f"(?:{each})" for entry in json.loads(BY_HAND.read_text("utf-8"))["models"]
                                  for each in entry["patterns"]))  # fmt: skip
    for provider in (each for each in providers if each.id in PROVIDERS):
        known: dict[str, dict[str, Any] | None] = {}
        for model in provider.models:
            try:
                known[model.id] = entry_of(provider, model)
            except LeftOut:
                known[model.id] = None
        for name in sorted({name for model in provider.models for name in names_of(model)}):
            model = provider.find_model(name)
            entry = model and known[model.id]
            asked = f"{provider.id}/{name}"
            if provider.id == "openai" and by_hand.search(name.lower()):
                continue
            if entry is None:
                if ours.has_price(asked):
                    yield f"{asked}: a price, but the package knows none that holds"
                continue
            exact = name in entry["names"]
            for tier, size, day in product((None, *entry["tiers"]), SIZES[: None if exact else 1], DAYS):
                first = tier and entry["tiers"][tier][0][0]
                if (
                    first is None or str(day) >= first
                ):  # before that the package takes the standard price; we say nothing
                    yield from disagreement(ours, provider, model, asked, tier, size, day)


def disagreement(
    ours: Any, provider: Any, model: Any, name: str, tier: str | None, size: tuple[int, ...], day: date
) -> Iterator[str]:
    """Where one cost is not the package's."""
    from flowstack.usage.model import Usage

    prompt, cached, write, output = size
    when = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    context = None if tier is None else {"processing" if tier == "batch" else "service_tier": tier}
    if tier == "fast" and provider.id == "anthropic":
        context = {"speed": tier}
    prices = model.get_prices(when, context)
    hour = 0 if prices.cache_write_1h_mtok is None else write // 2
    kinds = {"audio_tokens": 0, "image_tokens": 0}
    details: dict[str, Any] = {
        "cache_creation": {"ephemeral_1h_input_tokens": hour},
        "prompt_tokens_details": {"cache_write_tokens": write, **kinds},
        "completion_tokens_details": kinds,
    }
    usage = Usage(prompt, cached, output, 0, prompt + output, details)
    if prices.audio_hours is not None:
        prompt = output = cached = write = 0
        usage = Usage(details={"type": "duration", "seconds": SECONDS})
    elif context and "speed" in context:
        details["speed"] = tier
    named = None if tier == "batch" or (context and "speed" in context) else tier
    mine = ours.cost(name, usage, named, tier == "batch", when.timestamp())[0]
    if mine is not None:
        mine = float(Decimal(str(mine)) - Decimal(str(ours._models[name].fee)) / 10**15)
    if prices.audio_hours is None and ((cached and prices.cache_read_mtok is None) or prices.output_mtok is None):
        if mine is not None:
            yield f"{name} {tier} {day}: {mine} where a rate is missing"
        return
    usage_of_theirs = import_module("genai_prices").Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=cached,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        audio_seconds=SECONDS if prices.audio_hours is not None else None,
    )
    theirs = model.calc_price(usage_of_theirs, provider, genai_request_timestamp=when, price_context=context)
    if mine is None or abs(Decimal(str(mine)) - theirs.total_price) > Decimal("1e-15"):
        yield f"{name} {size} {tier} {day}: {mine}, but the package says {theirs.total_price}"


def main() -> None:
    """Write the table, unless it says something else than the package does."""
    providers: list[Any] = import_module("genai_prices.data").providers
    data = json.loads(written(table(providers)))
    wrong = list(disagreements(providers, data))
    if wrong:
        raise SystemExit("\n".join([*wrong[:20], f"{len(wrong)} costs differ from the package's; nothing was written"]))
    if TARGET.exists() and json.loads(TARGET.read_text("utf-8")) | {"date": data["date"]} == data:
        print("no price has changed")
        return
    TARGET.write_text(written(data), "utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(data['models'])} models, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
