"""A report as programs get it: CSV and JSON.

Owners, models and attributes are other people's text: whatever could drive a terminal is escaped in each format, and
what a spreadsheet would take for a formula is made text in CSV.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from decimal import Decimal
from io import StringIO
from typing import Any

from attrs import asdict, frozen

from flowstack.prices.dollars import NANO
from flowstack.redact import visible

Figures = dict[str, int | float | None]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet may take for a formula (OWASP, CSV Injection)."""


@frozen(slots=True)
class Entry:
    """One line: the values that its rows share, and its figures; no group is the total."""

    group: tuple[str | None, ...]
    figures: Figures


@frozen(slots=True)
class Gap:
    """Rows without a price, or without usage, of one model (or endpoint, where they name no model)."""

    model: str | None
    endpoint: str | None
    reason: str | None
    rows: int

    @property
    def of(self) -> str:
        """Whose rows these are."""
        return self.model or self.endpoint or "(no model named)"


@frozen(slots=True)
class Gaps:
    """All of them, those with most rows first."""

    no_price: Sequence[Gap] = ()
    no_usage: Sequence[Gap] = ()


def usd(figures: Figures) -> Decimal | None:
    """The cost in US dollars, exactly."""
    nano = figures["cost_nano_usd"]
    return None if nano is None else int(nano) * NANO


def flat(entry: Entry) -> dict[str, Any]:
    """A line's figures as programs get them: unknown is None, times are rounded to the microsecond."""
    found: dict[str, Any] = {}
    for name, value in entry.figures.items():
        if name == "cost_nano_usd":
            found["cost_usd"] = usd(entry.figures)
        else:
            found[name] = round(value, 3) if isinstance(value, float) else value
    return found


def as_csv(by: Sequence[str], entries: Sequence[Entry], total: Entry) -> str:
    """RFC 4180 with a header, without a total, so that a column can be summed. Unknown is empty."""
    out = StringIO()
    writer = csv.writer(out)
    names = list(flat(total))
    writer.writerow([*map(defused, by), *names])
    for entry in entries:
        group = ["" if value is None else defused(value) for value in entry.group]
        values = flat(entry)
        writer.writerow([*group, *("" if values[name] is None else _plain(values[name]) for name in names)])
    return out.getvalue()


def defused(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, and that drives no terminal."""
    shown = visible(text)
    return f"'{shown}" if text.startswith(FORMULA) else shown


def _plain(value: Any) -> str:
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)


def as_json(by: Sequence[str], entries: Sequence[Entry], total: Entry, gaps: Gaps, about: dict[str, Any]) -> str:
    """One object. Unknown is null."""
    return json.dumps(document(by, entries, total, gaps, about), indent=2).replace("\x7f", "\\u007f") + "\n"


def document(
    by: Sequence[str], entries: Sequence[Entry], total: Entry, gaps: Gaps, about: dict[str, Any]
) -> dict[str, Any]:
    """The same, not yet text."""
    return {
        **about,
        "by": list(by),
        "groups": [{**dict(zip(by, entry.group, strict=True)), **_numbers(entry)} for entry in entries],
        "total": _numbers(total),
        "no_price": [asdict(gap) for gap in gaps.no_price],
        "no_usage": [asdict(gap) for gap in gaps.no_usage],
    }


def _numbers(entry: Entry) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, Decimal) else value for name, value in flat(entry).items()}
