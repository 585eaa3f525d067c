"""Refused requests beyond some a minute: one row stands for many, so that nobody fills a disk by being told no."""

from __future__ import annotations

from typing import cast

from flowstack.ledger.row import FoldedRow, Row

MINUTE = 60.0
"""Seconds after which what was counted together is written down."""

MOST_ROWS = 4096
"""Rows that grow at once; for one more the oldest is written down early."""

MOST_KEYS = 65_536
"""Keys whose refusals are counted at once; then counting begins anew, and some more rows are whole."""

_SHARED = ("attributes", "client_addr", "user_agent", "method", "path", "model_requested")
"""What the row says if all that it stands for have it in common, and is null otherwise."""

_Alike = tuple[str, str | None, int | None, str | None]


class Refusals:
    """Lets the first refusals of each key in a minute through as they are, and adds up those that follow: each key's by
    the error's code (or, without one, the path), its status and the upstream that was asked for.

    :param most: rows of a key that are let through in a minute.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._passed: dict[str, int] = {}
        self._rows: dict[_Alike, FoldedRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, row: Row) -> Row | None:
        """Take a refused request's row; return what is to be written down now, or None."""
        key = row["key_id"]
        passed = self._passed.get(key, 0)
        if passed < self._most:
            if len(self._passed) >= MOST_KEYS:
                self._passed.clear()
            self._passed[key] = passed + 1
            return row
        # What is no refusal, and has no error, is of one of Flowstack's own paths.
        alike = key, row["error_code"] or row["path"], row["status"], row["upstream"]
        folded = self._rows.get(alike)
        if folded is not None:
            _add(folded, row)
            return None
        self._rows[alike] = cast(FoldedRow, {**row, "requests": 1})
        return None if len(self._rows) <= MOST_ROWS else _ended(self._rows.pop(next(iter(self._rows))))

    def end(self) -> list[Row]:
        """The minute is over: what is to be written down of it."""
        rows = [_ended(row) for row in self._rows.values()]
        self._rows.clear()
        self._passed.clear()
        return rows


def _add(folded: FoldedRow, row: Row) -> None:
    folded["requests"] += 1
    for name in _SHARED:
        if folded[name] is not None and folded[name] != row[name]:  # type: ignore[literal-required]
            folded[name] = None  # type: ignore[literal-required]
    folded["duration_ms"] += row["duration_ms"]
    folded["bytes_in"] += row["bytes_in"]
    folded["bytes_out"] += row["bytes_out"]
    folded["attempts"] += row["attempts"]


def _ended(folded: FoldedRow) -> Row:
    requests = folded["requests"]
    if requests > 1:
        folded["duration_ms"] = round(folded["duration_ms"] / requests, 3)
        folded["first_byte_ms"] = folded["overhead_ms"] = None
    return folded
