from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config import Price
from flowstack.keys.patterns import Patterns
from flowstack.prices.cost import CONFIG, Prices
from flowstack.prices.table import load_prices
from flowstack.usage.model import Usage

DATE = "2026-01-02"

TABLE: dict[str, Any] = {
    "date": DATE,
    "models": [
        {
            "provider": "openai",
            "names": ["m", "m-2026-05-06"],
            "patterns": ["^ft:m-2026-"],
            "rates": [[None, {"input": 2.5, "cached_input": 1.25, "output": 10}]],
            "tiers": {
                "batch": [[None, {"input": 1.25, "cached_input": 1.25, "output": 5}]],
                "flex": [["2026-10-12", {"input": 1.25, "cached_input": 0.625, "output": 5}]],
                "priority": [[None, {"input": 5, "cached_input": 2.5, "output": 20}]],
            },
        },
        {"provider": "openai", "names": ["uncached"], "rates": [[None, {"input": 30, "output": 60}]]},
        {"provider": "openai", "names": ["embedding"], "rates": [[None, {"input": 0.02}]]},
        {
            "provider": "openai",
            "names": ["cut"],
            "rates": [[None, {"input": 10, "output": 40}], ["2025-06-10", {"input": 2, "output": 8}]],
        },
        {
            "provider": "openai",
            "names": ["long"],
            "rates": [
                [
                    None,
                    {
                        "input": [5, [272000, 10], [500000, 20]],
                        "cached_input": 0.5,
                        "cache_write": [6.25, [272000, 12.5]],
                        "output": [30, [272000, 45]],
                    },
                ]
            ],
        },
        {
            "provider": "openai",
            "names": ["voice"],
            "rates": [
                [
                    None,
                    {
                        "input": 4,
                        "cached_input": 0.4,
                        "output": 16,
                        "audio_input": 32,
                        "cached_audio_input": 0.8,
                        "audio_output": 64,
                    },
                ]
            ],
        },
        {
            "provider": "openai",
            "names": ["picture"],
            "rates": [[None, {"input": 5, "output": 10, "image_input": 8, "image_output": 32}]],
        },
        {"provider": "x-ai", "names": ["grok"], "rates": [[None, {"input": 3, "cached_input": 0.75, "output": 15}]]},
        {
            "provider": "anthropic",
            "patterns": ["^claude-9"],
            "rates": [
                [None, {"input": 1, "cached_input": 0.1, "cache_write": 1.25, "cache_write_hour": 2, "output": 5}]
            ],
        },
        {"provider": "openai", "patterns": ["^claude-9-of-openai"], "rates": [[None, {"input": 7, "output": 7}]]},
    ],
}
PRICES = Prices(TABLE)
NOW = datetime(2026, 11, 23, tzinfo=UTC).timestamp()


def chat(prompt: int, output: int, cached: int | None = None, **kinds: int) -> Usage:
    """Chat completions: ``audio``, ``image`` and ``written`` of the input, ``said`` and ``drawn`` of the output."""
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=output,
        total_tokens=prompt + output,
        details={
            "prompt_tokens_details": {
                "audio_tokens": kinds.get("audio", 0),
                "image_tokens": kinds.get("image", 0),
                "cache_write_tokens": kinds.get("written", 0),
            },
            "completion_tokens_details": {
                "audio_tokens": kinds.get("said", 0),
                "image_tokens": kinds.get("drawn", 0),
            },
        },
    )


def cost(model: str, usage: Usage, tier: str | None = None, batch: bool = False, when: float = NOW) -> float | None:
    amount, date, reason = PRICES.cost(model, usage, tier, batch, when)
    assert date == (None if amount is None else DATE)
    assert (reason is None) == (amount is not None)
    return amount


WORKED = {
    "uncached": (("m", chat(1000, 200)), 0.0025 + 0.002),
    "cached input at its rate": (("m", chat(1000, 200, 600)), 0.001 + 0.00075 + 0.002),
    "all of it cached": (("m", chat(1000, 0, 1000)), 0.00125),
    "nothing at all": (("m", chat(0, 0)), 0.0),
    "one token": (("embedding", chat(1, 0)), 0.00000002),
    "the default tier by name": (("m", chat(1000, 200), "default"), 0.0045),
    "the tier left to the provider": (("m", chat(1000, 200), "auto"), 0.0045),
    "flex": (("m", chat(1000, 200, 600), "flex"), 0.0005 + 0.000375 + 0.001),
    "priority": (("m", chat(1000, 200, 600), "priority"), 0.002 + 0.0015 + 0.004),
    "a batch, whose cached input is not cheaper here": (("m", chat(1000, 200, 600), None, True), 0.00125 + 0.001),
    "a batch, whatever its tier": (("m", chat(1000, 200), "priority", True), 0.00225),
    "as long as the short prompt's price holds": (("long", chat(272_000, 100)), 1.36 + 0.003),
    "one token longer, and all of it costs more": (("long", chat(272_001, 100)), 2.72001 + 0.0045),
    "longer than the second edge": (("long", chat(500_001, 0)), 10.00002),
    "cache writes at theirs": (("long", chat(1000, 0, 100, written=400)), 0.0025 + 0.00005 + 0.0025),
    "cache writes without a rate of their own": (("m", chat(1000, 0, 0, written=400)), 0.0025),
    "speech both ways": (("voice", chat(100, 50, audio=60, said=30)), 0.00016 + 0.00192 + 0.00032 + 0.00192),
    "images in and out": (("picture", chat(100, 50, image=60, drawn=40)), 0.0002 + 0.00048 + 0.0001 + 0.00128),
    "images billed as text": (("m", chat(1000, 0, image=400)), 0.0025),
}


@pytest.mark.parametrize("name", WORKED)
def test_a_cost_is_the_sum_of_its_tokens_each_at_its_rate(name: str) -> None:
    asked, expected = WORKED[name]
    assert cost(*asked) == pytest.approx(expected, abs=1e-15)


UNPRICED: dict[str, tuple[tuple[Any, ...], str]] = {
    "an unknown model": (("llama", chat(1, 1)), "no_price:llama"),
    "an unknown tier": (("m", chat(1, 1), "scale"), "no_price_for:tier"),
    "a tier that the model has no price for": (("uncached", chat(1, 1), "priority"), "no_price_for:tier"),
    "a batch of a model without a batch price": (("uncached", chat(1, 1), None, True), "no_price_for:batch"),
    "a tier before the first day on which its price is known": (
        ("m", chat(1, 1), "flex", False, 1760000000.0),
        "no_price_for:tier",
    ),
    "no figures": (("m", Usage()), "figures:input_tokens"),
    "no input tokens": (("m", Usage(completion_tokens=5)), "figures:input_tokens"),
    "no output tokens where there may be some": (("m", Usage(prompt_tokens=5)), "figures:output_tokens"),
    "no output tokens, and a total that has some": (
        ("m", Usage(prompt_tokens=5, total_tokens=6)),
        "figures:output_tokens",
    ),
    "output of a model that has none": (("embedding", chat(5, 1)), "no_price_for:output"),
    "cached tokens without a cached rate": (("uncached", chat(5, 1, 1)), "no_price_for:cached_input"),
    "more tokens than a number can hold": (("m", chat(10**400, 1)), "figures"),
    "more cached than there were": (("m", chat(5, 1, 6)), "figures:cached_tokens"),
    "more cached and written than there were": (("long", chat(5, 1, 3, written=3)), "figures:cached_tokens"),
    "a total that does not add up": (
        ("m", Usage(prompt_tokens=5, completion_tokens=5, total_tokens=11)),
        "figures:total_tokens",
    ),
    "speech in without a rate": (("m", chat(5, 1, audio=1)), "no_price_for:audio_input"),
    "speech out without a rate": (("m", chat(5, 1, said=1)), "no_price_for:audio_output"),
    "more speech than tokens": (("voice", chat(5, 1, audio=6)), "figures:audio_input"),
    "no breakdown where speech has a rate": (("voice", Usage(5, None, 5, None, 10)), "figures:audio_input"),
    "no breakdown of the output where speech has a rate": (
        ("voice", Usage(5, None, 5, None, 10, {"prompt_tokens_details": {"audio_tokens": 0}})),
        "figures:audio_output",
    ),
    "no breakdown where images have a rate": (
        ("picture", Usage(5, None, 5, None, 10, {"input_tokens_details": {}})),
        "figures:image_input",
    ),
    "speech, and cached tokens of which kind nobody says": (
        ("voice", chat(50, 0, 10, audio=20)),
        "figures:cached_tokens",
    ),
    "no model at all": ((None, chat(1, 1)), "no_model"),
    "a key for a model's name": (("x fsk-0123456789", chat(1, 1)), "no_price:x fsk-..."),
}


@pytest.mark.parametrize("name", UNPRICED)
def test_there_is_no_cost_and_it_is_said_why_for(name: str) -> None:
    asked, reason = UNPRICED[name]
    model, usage, tier, batch, when = (*asked, *(None, False, NOW)[len(asked) - 2 :])
    assert PRICES.cost(model, usage, tier, batch, when) == (None, None, reason)


BROKEN_DETAILS: list[Any] = [
    {"prompt_tokens_details": "x"},
    {"prompt_tokens_details": [1]},
    {"completion_tokens_details": 5},
    {"prompt_tokens_details": {"cache_write_tokens": "4"}},
    {"prompt_tokens_details": {"cache_write_tokens": -4}},
    {"prompt_tokens_details": {"cache_write_tokens": 1.5}},
    {"prompt_tokens_details": {"cache_write_tokens": True}},
    {"prompt_tokens_details": {"cache_write_tokens": {}, "audio_tokens": []}, "completion_tokens_details": True},
    {"prompt_tokens_details": {"audio_tokens": -1}},
]


@pytest.mark.parametrize("details", BROKEN_DETAILS)
@pytest.mark.parametrize("model", ["m", "long", "voice", "picture"])
def test_a_breakdown_that_is_none_gives_no_cost_and_raises_nothing(model: str, details: Any) -> None:
    amount, _, _ = PRICES.cost(model, Usage(10, 0, 10, 0, 20, details), None, False, NOW)
    spoken = details.get("prompt_tokens_details")
    harmless = model in ("m", "long") and spoken == {"cache_write_tokens": {}, "audio_tokens": []}
    assert amount is None or harmless


def test_what_a_usage_object_does_not_mention_was_not_there() -> None:
    assert cost("m", Usage(1000, None, 200, None, None)) == pytest.approx(0.0045)


@pytest.mark.parametrize(
    ("into", "out"),
    [
        ("prompt_tokens_details", "completion_tokens_details"),
        ("input_tokens_details", "output_tokens_details"),
        ("input_token_details", "output_token_details"),
    ],
)
def test_a_breakdown_is_found_under_every_apis_name_for_it(into: str, out: str) -> None:
    usage = Usage(100, None, 50, None, 150, {into: {"audio_tokens": 60}, out: {"audio_tokens": 30}})
    assert cost("voice", usage) == pytest.approx(0.00432)


def test_cached_speech_costs_its_own_rate() -> None:
    usage = chat(100, 0, 50, audio=60)
    assert usage.details is not None
    usage.details["prompt_tokens_details"]["cached_tokens_details"] = {"audio_tokens": 40, "text_tokens": 10}
    # 30 of text and 20 of speech anew, 10 and 40 from the cache
    assert cost("voice", usage) == pytest.approx(0.00012 + 0.00064 + 0.000004 + 0.000032)


def test_anthropics_cache_writes_cost_by_how_long_they_are_kept() -> None:
    def of(written: int, hour: int | None) -> float | None:
        creation = {} if hour is None else {"cache_creation": {"ephemeral_1h_input_tokens": hour}}
        return cost(
            "claude-9-x", Usage(1000, 100, 10, None, None, {"cache_creation_input_tokens": written, **creation})
        )

    assert of(400, None) == pytest.approx(0.0005 + 0.00001 + 0.0005 + 0.00005)
    assert of(400, 0) == of(400, None)
    assert of(400, 300) == pytest.approx(0.0005 + 0.00001 + 0.000125 + 0.0006 + 0.00005)
    assert of(400, 401) is None
    assert of(901, 0) is None
    details = {"cache_creation_input_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 1}}
    assert cost("m", Usage(10, 0, 0, None, None, details)) is None


def test_reasoning_is_part_of_the_output_unless_the_total_counts_it_beside() -> None:
    assert cost("grok", Usage(100, 0, 50, 30, 150)) == pytest.approx(0.0003 + 0.00075)
    assert cost("grok", Usage(100, 0, 50, 30, 180)) == pytest.approx(0.0003 + 0.0012)
    assert cost("grok", Usage(100, 0, 50, 30, 170)) is None


def test_a_price_begins_on_its_day_in_utc() -> None:
    day = datetime(2025, 6, 10, tzinfo=UTC).timestamp()
    assert cost("cut", chat(1000, 0), when=day - 0.001) == pytest.approx(0.01)
    assert cost("cut", chat(1000, 0), when=day) == pytest.approx(0.002)


NAMES = {
    "m": 2.5,
    "M-2026-05-06": 2.5,
    "m-20260506": 2.5,
    "ft:m-2026-05-06:acme::abc": 2.5,
    "openai/m": 2.5,
    "azure/M": 2.5,
    "xai/grok": 3.0,
    "x-ai/grok": 3.0,
    "claude-9-of-openai": 1.0,
    "openai/claude-9-of-openai": 7.0,
    "anthropic/m": None,
    "elsewhere/m": None,
    "m-2026-05-07": None,
    "m-20261399": None,
    "m ": None,
    "mm": None,
    "": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_found_by(name: str) -> None:
    expected = NAMES[name]
    got = cost(name, chat(1_000_000, 0))
    assert got == (None if expected is None else pytest.approx(expected))
    assert PRICES.has_price(name) == (expected is not None)


@pytest.mark.parametrize("name", ["m" + "x" * 512, "M" * 16_000, "x" * 16_000 + "m"])
def test_a_name_longer_than_any_model_s_has_no_price_whatever_the_patterns_are(name: str) -> None:
    prices = Prices(TABLE, [Price("*", input=1, output=2), Price("*m", input=1, output=2)])
    assert prices.cost("m" + "x" * 511, chat(1, 1), None, False, NOW)[1] == CONFIG
    assert prices.cost(name, chat(1, 1), None, False, NOW) == (None, None, f"no_price:{name[:255]}\u2026")
    assert prices.estimate(name, 1, 1) is None


def test_the_configurations_patterns_are_matched_as_a_key_s_are() -> None:
    prices = Prices(TABLE, [Price("*a*b*c*", input=1, output=2)])
    assert [type(pattern) for pattern, _ in prices._overrides] == [Patterns]
    assert prices.has_price("xAxxBxxCx")
    assert not prices.has_price("xCxxBxxAx")


OVERRIDES = Prices(
    TABLE,
    [
        Price("m*", input=1, output=2),
        Price("m-2026*", input=3, output=4),
        Price("m", input=5, cached_input=1, output=6, audio_input=7, audio_output=8, cache_write=9),
        Price("In-House/*:x", input=0, output=0),
    ],
)


@pytest.mark.parametrize(
    ("name", "price"),
    {"m": 5, "mm": 1, "m-2026-05-06": 3, "uncached": 30, "in-house/A/b:X": 0, "in-house": None}.items(),
)
def test_the_configurations_prices_win_the_exact_one_and_the_longer_pattern_first(name: str, price: float) -> None:
    amount, date, _ = OVERRIDES.cost(name, chat(1_000_000, 0), None, False, NOW)
    assert amount == price
    assert date == {"uncached": DATE, "in-house": None}.get(name, CONFIG)


def test_the_configurations_prices_are_all_that_is_known_of_a_model() -> None:
    def of(model: str, usage: Usage, tier: str | None = None, batch: bool = False) -> float | None:
        return OVERRIDES.cost(model, usage, tier, batch, NOW)[0]

    assert of("mm", chat(10, 10, 1)) is None
    assert of("mm", chat(10, 10, audio=1)) is None
    assert of("mm", chat(1000, 0, written=500)) == pytest.approx(0.001)
    assert of("m", chat(1000, 0, 200, written=300)) == pytest.approx(0.0025 + 0.0002 + 0.0027)
    assert of("m", chat(1000, 100, audio=400, said=50)) == pytest.approx(0.003 + 0.0028 + 0.0003 + 0.0004)
    assert of("mm", chat(1000, 100), "priority") is None
    for tier, batch in (("flex", False), (None, True)):
        assert of("mm", chat(1000, 100), tier, batch) == pytest.approx((0.001 + 0.0002) / 2)


def test_an_estimate_takes_the_dearest_rate_of_each_direction_and_no_cache() -> None:
    assert PRICES.estimate("uncached", 1000, 100) == pytest.approx(0.036)
    assert PRICES.estimate("voice", 1000, 100) == pytest.approx(0.032 + 0.0064)
    assert PRICES.estimate("long", 300_000, 0) == pytest.approx(3.75)
    assert PRICES.estimate("embedding", 1000, 100) == pytest.approx(0.00002)
    assert PRICES.estimate("cut", 1000, 0) == pytest.approx(0.002)
    assert PRICES.estimate("cut", 1000, 0, when=0.0) == pytest.approx(0.01)
    assert PRICES.estimate("claude-9", 1000, 0) == pytest.approx(0.002)
    assert PRICES.estimate("llama", 1, 1) is None


def test_an_estimate_takes_the_dearest_tier_that_the_provider_may_choose() -> None:
    standard, priority = pytest.approx(0.0035), pytest.approx(0.007)
    asked = (None, "auto", "scale", "priority", "default", "standard_only", "flex")
    of = {tier: PRICES.estimate("m", 1000, 100, tier) for tier in asked}
    assert of.pop("default") == standard
    assert of.pop("standard_only") == standard  # Anthropic's word for it
    assert of.pop("flex") == standard  # which may be served as usual
    assert of == dict.fromkeys((None, "auto", "scale", "priority"), priority)


COUNTS = st.integers(0, 10**7)
MODELS = st.sampled_from(["m", "long", "uncached", "voice", "picture", "grok", "cut"])


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, output = draw(COUNTS), draw(COUNTS)
    audio, said = draw(st.integers(0, prompt)), draw(st.integers(0, output))
    image, drawn = draw(st.integers(0, prompt - audio)), draw(st.integers(0, output - said))
    cached = draw(st.integers(0, prompt) | st.none())
    written = draw(st.integers(0, prompt - (cached or 0)))
    return chat(prompt, output, cached, audio=audio, image=image, written=written, said=said, drawn=drawn)


@given(MODELS, usages(), st.sampled_from([None, "auto", "flex", "priority", "scale"]),
       st.sampled_from([None, "flex", "priority", "scale", "default"]), st.booleans())  # fmt: skip
def test_a_cost_is_never_negative_and_never_above_the_estimate(
    model: str, usage: Usage, tier: str | None, served: str | None, batch: bool
) -> None:
    amount = cost(model, usage, served if tier in (None, "auto") else tier, batch)
    if amount is not None:
        most = PRICES.estimate(model, usage.prompt_tokens or 0, usage.completion_tokens or 0, tier)
        assert most is not None
        assert 0 <= amount <= most


@given(st.tuples(COUNTS, COUNTS, COUNTS), st.tuples(COUNTS, COUNTS, COUNTS))
def test_the_cost_of_two_requests_is_the_cost_of_both_together(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    def exactly(fresh: int, cached: int, output: int) -> Fraction:
        got = cost("m", chat(fresh + cached, output, cached))
        assert got is not None
        exact = Fraction(fresh * 25 + cached * Fraction(25, 2) + output * 100, 10_000_000)
        assert got == float(exact)  # the float nearest to it
        return exact

    together = [one + other for one, other in zip(a, b, strict=True)]
    assert exactly(*a) + exactly(*b) == exactly(*together)


@given(usages(), st.sampled_from(["prompt_tokens", "completion_tokens"]), st.integers(1, 1000))
def test_more_tokens_never_cost_less(usage: Usage, which: str, more: int) -> None:
    before = cost("m", chat(usage.prompt_tokens or 0, usage.completion_tokens or 0))
    setattr(usage, which, getattr(usage, which) + more)
    after = cost("m", chat(usage.prompt_tokens or 0, usage.completion_tokens or 0))
    assert before is not None
    assert after is not None
    assert after > before


@given(st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(
    st.sampled_from(["prompt_tokens_details", "output_tokens_details", "audio_tokens", "cached_tokens_details"]), inner
)))  # fmt: skip
def test_no_name_and_no_breakdown_makes_it_raise(name: str, details: Any) -> None:
    usage = Usage(10, 1, 10, 0, 20, details if isinstance(details, dict) else None)
    for model in (name, "m", "voice", "picture"):
        amount, _, _ = PRICES.cost(model, usage, name, False, NOW)
        assert amount is None or amount >= 0
        amount, _, _ = PRICES.cost(model, usage, None, False, NOW)
        assert amount is None or amount >= 0


SHIPPED = load_prices()


@pytest.mark.parametrize(
    ("model", "usage", "tier", "expected"),
    [
        # $2.50, $1.25 cached, $10.00
        ("gpt-4o-2024-08-06", chat(1000, 200, 600), "default", 0.001 + 0.00075 + 0.002),
        # $1.25, $0.125 cached, $10.00; half of each in the flex tier
        ("gpt-5", chat(2048, 1000, 1024), None, 0.00128 + 0.000128 + 0.01),
        ("gpt-5-2025-08-07", chat(2048, 1000, 1024), "flex", 0.00064 + 0.000064 + 0.005),
        # $0.02
        ("text-embedding-3-small", Usage(prompt_tokens=500, total_tokens=500), None, 0.00001),
        # fine-tuned: $3.75 and $15.00
        ("ft:gpt-4o-2024-08-06:acme::8a7b", chat(1000, 100), None, 0.00375 + 0.0015),
        # $2.50, $6.00 for speech, $10.00
        (
            "gpt-4o-transcribe",
            Usage(100, None, 20, None, 120, {"input_token_details": {"text_tokens": 10, "audio_tokens": 90}}),
            None,
            0.000025 + 0.00054 + 0.0002,
        ),
        ("gpt-35-turbo", chat(1000, 1000), None, 0.0005 + 0.0015),
    ],
)
def test_the_shipped_table_gives_openais_published_prices(
    model: str, usage: Usage, tier: str | None, expected: float
) -> None:
    amount, date, _ = SHIPPED.cost(model, usage, tier, False, NOW)
    assert amount == pytest.approx(expected)
    assert date == SHIPPED.date


@pytest.mark.parametrize("model", ["gpt-oss-120b", "tts-1", "dall-e-3", "gpt-4o-2099-01-01"])
def test_the_shipped_table_has_no_price_for_what_it_cannot_know(model: str) -> None:
    assert not SHIPPED.has_price(model)
