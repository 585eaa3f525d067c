"""Moments as people write them, all in UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

EXPECTED = (
    "expected a month (2026-11), a date (2026-11-01), a time with its zone (2026-11-01T09:30:00Z), a length of time "
    "back from now (90m, 24h, 7d, 4w), or today, yesterday or month; all in UTC"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BACK = re.compile(r"([0-9]{1,6})([mhdw])", re.ASCII).fullmatch
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})", re.ASCII).fullmatch
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, now: datetime) -> int:
    """Read a moment: whole microseconds since 1970.

    :param now: with its zone; what is relative counts from here.
    :raises ValueError: it is none; the text says what was expected.
    """
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        found = _read(text.strip(), now, today)
        microseconds = (found - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(f"found {text!r}, {EXPECTED}") from None
    if microseconds < 0:
        raise ValueError(f"found {text!r}, expected a time after 1970")
    return microseconds


def _read(text: str, now: datetime, today: datetime) -> datetime:
    named = {
        "now": now,
        "today": today,
        "yesterday": today - timedelta(days=1),
        "month": today.replace(day=1),
    }.get(text.lower())
    if named is not None:
        return named
    if back := _BACK(text):
        return now - timedelta(**{_UNITS[back[2]]: int(back[1])})
    if month := _MONTH(text):
        return datetime(int(month[1]), int(month[2]), 1, tzinfo=UTC)
    if len(text) == len("2026-11-01"):
        return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
