"""Money as people read it."""

from __future__ import annotations

from decimal import Decimal

UNKNOWN = "-"


def money(usd: float | Decimal | None) -> str:
    """US dollars: two or four decimals, and of less than 0.0001 the two digits that count, never a 0 that is none."""
    if usd is None:
        return UNKNOWN
    amount = Decimal(str(usd))
    if not amount or abs(amount) >= 1000:
        return f"{amount:,.2f}"
    return f"{amount:.4f}" if abs(amount) >= Decimal("0.0001") else f"{Decimal(f'{amount:.2g}').normalize():f}"
