from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

import flowstack.ledger.prices
from flowstack.config import Price
from flowstack.ledger.prices import load_prices
from flowstack.policy.pricing import CONFIG
from flowstack.policy.usage.model import Usage

FILE = Path(flowstack.ledger.prices.__file__).with_name("prices.json")
TABLE: dict[str, Any] = json.loads(FILE.read_text())
DOCUMENTED = (Path(__file__).parents[2] / "docs/prices.rst").read_text()


def test_the_table_has_a_day_and_a_source() -> None:
    assert date.fromisoformat(TABLE["date"]) <= datetime.now(UTC).date()
    assert TABLE["source"].startswith("genai-prices ")


def test_no_name_stands_twice_in_the_table() -> None:
    names = [(entry["provider"], name) for entry in TABLE["models"] for name in entry.get("names", ())]
    assert len(names) == len(set(names))
    assert len(names) > 300
    assert all(name == name.lower() for _, name in names)


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
            assert "input" in rates
            for rate in rates.values():
                base, *above = rate if isinstance(rate, list) else [rate]
                assert 0 <= base < 1000
                assert all(start > 0 and 0 <= price < 2000 for start, price in above)


def test_the_shipped_table_is_read_with_the_configurations_prices_before_it() -> None:
    prices = load_prices([Price("gpt-4o", input=1)])
    usage = Usage(prompt_tokens=1000, completion_tokens=0)
    assert prices.cost("gpt-4o", usage, None, False, 1e10) == (0.001, CONFIG)
    assert prices.cost("gpt-4o-mini", usage, None, False, 1e10) == (0.00015, TABLE["date"])
