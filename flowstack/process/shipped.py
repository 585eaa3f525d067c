"""What the shipper says of itself in a file, for metrics, and for whoever would remove old files of the journal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import orjson
from attrs import asdict, evolve, field, fields, frozen

from flowstack.files import open_regular, read_regular, replace
from flowstack.ledger.files import shipped_path

_MAX_BYTES = 16 * 1024 * 1024
"""Of the longest such file."""

_LEAST_BYTES = 16 * 1024
"""Of the shortest: room for some hundred files of the journal."""


@frozen(slots=True, kw_only=True)
class Shipped:
    """How far it is.

    :ivar rows: that it sent and PostgreSQL did not have, since there is this file.
    :ivar failures: looks that failed, likewise.
    :ivar lag_bytes: of the journal that are not in PostgreSQL, as far as is known; None before the first look.
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

    def failed(self, lag_bytes: int) -> Self:
        """After one that did not."""
        return evolve(self, failures=self.failures + 1, lag_bytes=lag_bytes)


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

    Where there is no room for another file it is written over the old one, which is longer than it need be: on a disk
    that ran full while PostgreSQL was away, files of the journal may go only when this says that they were sent.

    :raises OSError: it cannot be written.
    """
    path, told = shipped_path(state), orjson.dumps(asdict(shipped))
    data = told.ljust(_LEAST_BYTES - 1) + b"\n"
    try:
        replace(path, data, 0o640)
    except OSError:
        descriptor = open_regular(path, os.O_WRONLY, follow=False)
        try:
            if os.fstat(descriptor).st_size < len(data):
                raise
            for piece, at in ((b" ", 0), (data[1:], 1), (data[:1], 0)):  # until the last of them it says nothing
                os.pwrite(descriptor, piece, at)
        finally:
            os.close(descriptor)


def _is_sound(found: Shipped) -> bool:
    counts: list[Any] = [found.rows, found.failures, 0 if found.lag_bytes is None else found.lag_bytes]
    sizes = list(found.files.values()) if isinstance(found.files, dict) else [None]
    moment = found.succeeded_at is None or isinstance(found.succeeded_at, int | float)
    return moment and all(type(count) is int and count >= 0 for count in (*counts, *sizes))
