"""How money is shown."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

NANO = Decimal(10) ** -9
"""US dollars in a billionth of one."""

UNKNOWN = "-"

_SIGNIFICANT = 3
_FEWEST, _FEWEST_OF_MUCH, _MUCH = 4, 2, 1000


def money(usd: float | Decimal | None) -> str:
    """US dollars without their sign of currency, to the nearest figure that is shown.

    Four decimals, or as many more as three significant digits take: what was spent is never shown as nothing. From a
    thousand dollars on, and for nothing at all, two.
    """
    if usd is None:
        return UNKNOWN
    amount = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    if not amount:
        return "0.00"
    places = max(_FEWEST, _SIGNIFICANT - 1 - amount.adjusted())
    if abs(amount) >= _MUCH:
        places = _FEWEST_OF_MUCH
    whole, _, decimals = f"{amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN):,f}".partition(".")
    fewest = min(places, _FEWEST)
    return f"{whole}.{decimals[:fewest]}{decimals[fewest:].rstrip('0')}"


def money_of(nanos: int | None) -> str:
    """The same of billionths of a dollar."""
    return money(None if nanos is None else nanos * NANO)
