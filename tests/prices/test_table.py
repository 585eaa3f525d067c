from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

import flowstack.prices.table
from flowstack.config import Price
from flowstack.prices.cost import CONFIG, FEES
from flowstack.prices.table import load_prices
from flowstack.usage.model import Usage

FILE = Path(flowstack.prices.table.__file__).with_name("prices.json")
TABLE: dict[str, Any] = json.loads(FILE.read_text())
BY_HAND = Path(__file__).parents[2] / "scripts/charges.json"
OTHER_NAMES = (
    "claude-2.1", "claude-3-5-haiku", "claude-3-7-sonnet", "claude-opus-4-1", "claude-sonnet-4-5", "claude-opus-5",
    "gemini-2.0-flash", "gpt-4.5-preview",
)  # fmt: skip
"""Names of models that the table has under patterns."""

DOCUMENTED = (Path(__file__).parents[2] / "docs/reference/prices.rst").read_text()


def test_the_table_has_a_day_and_a_source() -> None:
    assert date.fromisoformat(TABLE["date"]) <= datetime.now(UTC).date()
    assert TABLE["source"].startswith("genai-prices ")


def test_no_name_stands_twice_in_the_table() -> None:
    names = [(entry["provider"], name) for entry in TABLE["models"] for name in entry.get("names", ())]
    assert len(names) == len(set(names))
    assert len(names) > 300
    assert all(name == name.lower() for _, name in names)


def test_what_is_kept_by_hand_has_a_day_and_a_source_and_is_in_the_table() -> None:
    by_hand = json.loads(BY_HAND.read_text())
    assert TABLE["models"][: len(by_hand["models"])] == by_hand.pop("models")
    assert {name: TABLE[name] for name in by_hand} == by_hand
    for part in (*by_hand["fees"], by_hand["inference_geo"], by_hand["image_generation"], by_hand["output_tokens"]):
        assert date.fromisoformat(part["date"]) <= datetime.now(UTC).date()
        assert part["source"]


def test_every_fee_is_documented_and_can_be_found() -> None:
    fees = {name for rule in TABLE["fees"] for name in rule["usd"]} - {"answer"}
    for name in fees:
        assert f"``{name}``" in DOCUMENTED
    assert set(FEES) <= fees


@pytest.mark.parametrize("rule", TABLE["output_tokens"]["models"], ids=lambda rule: rule[0])
def test_a_rule_for_the_most_output_is_reached_by_a_model_of_the_table(rule: list[Any]) -> None:
    pattern, tokens = rule
    prices = load_prices()
    names = {name for entry in TABLE["models"] for name in entry.get("names", ())} | {*OTHER_NAMES}
    assert any(re.search(pattern, name) and prices.output_limit(name) == tokens for name in names)


def test_every_provider_of_the_table_is_documented() -> None:
    for provider in {entry["provider"] for entry in TABLE["models"]}:
        assert f"``{provider}``" in DOCUMENTED


@pytest.mark.parametrize("entry", TABLE["models"], ids=lambda entry: (entry.get("names") or entry["patterns"])[0])
def test_an_entry_of_the_table_is_whole(entry: dict[str, Any]) -> None:
    for pattern in entry.get("patterns", ()):
        re.compile(pattern)
    for steps in (entry["rates"], *entry.get("tiers", {}).values()):
        days = [day or "" for day, _ in steps]
        assert days == sorted(set(days))
        for _, rates in steps:
            assert "input" in rates or set(rates) == {"audio_hour"}
            for rate in rates.values():
                base, *above = rate if isinstance(rate, list) else [rate]
                assert 0 <= base < 1000
                assert all(start > 0 and 0 <= price < 2000 for start, price in above)


def test_the_shipped_table_is_read_with_the_configurations_prices_before_it() -> None:
    prices = load_prices([Price("gpt-4o", input=1)])
    usage = Usage(prompt_tokens=1000, completion_tokens=0)
    assert prices.cost("gpt-4o", usage, None, False, 1e10) == (0.001, CONFIG, None)
    assert prices.cost("gpt-4o-mini", usage, None, False, 1e10) == (0.00015, TABLE["date"], None)
