"""What the shipper says of itself in a file, for metrics, and for whoever would remove old files of the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import orjson
from attrs import asdict, evolve, field, fields, frozen

from flowstack.files import read_regular, replace
from flowstack.ledger.files import shipped_path

_MAX_BYTES = 16 * 1024 * 1024
"""Of the longest such file."""


@frozen(slots=True, kw_only=True)
class Shipped:
    """How far it is.

    :ivar rows: that it sent and PostgreSQL did not have, since there is this file.
    :ivar failures: looks that failed, likewise.
    :ivar lag_bytes: of the journal that are not in PostgreSQL; None before the first look that went well.
    :ivar succeeded_at: when a look last went well, in UTC Unix seconds, or None.
    :ivar files: the size up to which all that is whole in a journal file is in PostgreSQL, by its name.
    """

    rows: int = 0
    failures: int = 0
    lag_bytes: int | None = None
    succeeded_at: float | None = None
    files: Mapping[str, int] = field(factory=dict)

    def succeeded(self, rows: int, lag_bytes: int, files: Mapping[str, int], now: float) -> Self:
        """After a look that went well."""
        return evolve(self, rows=self.rows + rows, lag_bytes=lag_bytes, succeeded_at=now, files=files)

    def failed(self) -> Self:
        """After one that did not."""
        return evolve(self, failures=self.failures + 1)


def read_shipped(state: Path) -> Shipped | None:
    """What the file says; None where there is none, or it says nothing."""
    try:
        told = orjson.loads(read_regular(shipped_path(state), _MAX_BYTES)[0])
        found = Shipped(**{each.name: told[each.name] for each in fields(Shipped)})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if _is_sound(found) else None


def write_shipped(state: Path, shipped: Shipped) -> None:
    """Write it, whole or not at all.

    :raises OSError: it cannot be written.
    """
    replace(shipped_path(state), orjson.dumps(asdict(shipped), option=orjson.OPT_APPEND_NEWLINE), 0o640)


def _is_sound(found: Shipped) -> bool:
    counts: list[Any] = [found.rows, found.failures, 0 if found.lag_bytes is None else found.lag_bytes]
    sizes = list(found.files.values()) if isinstance(found.files, dict) else [None]
    moment = found.succeeded_at is None or isinstance(found.succeeded_at, int | float)
    return moment and all(type(count) is int and count >= 0 for count in (*counts, *sizes))
