"""Reads the journal back: for the index, for tests, and for whoever has lost everything else.

A row has the names of :class:`flowstack.ledger.row.Row`, ``started_at`` as text. Later versions (``v``) add names and
change none, so a reader takes what it knows, and leaves the rest as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from flowstack.files import open_regular
from flowstack.ledger.files import files

__all__ = ["BLOCK", "MAX_READ_LINE", "files", "lines", "read"]

BLOCK = 256 * 1024
"""Bytes that are read at once."""

MAX_READ_LINE = 1024 * 1024
"""Bytes of the longest line that is looked at; a longer one is no row of ours, and is not held in memory."""


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Give each whole line as :func:`lines` does, as its row; None where it is damaged."""
    for behind, line in lines(path, offset):
        yield behind, None if line is None else _row(line)


def lines(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """Give each whole line from an offset on: the offset behind it, and itself, or None where it is too long.

    What has no newline yet is left for later: reading on at the last offset given finds it whole. Bounded in memory,
    whatever the size of the file.

    :param offset: 0, or one that was given before.
    :raises OSError: the file cannot be read.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        file.seek(offset)
        rest = b""
        skipped = 0  # bytes of a line that is too long to be held
        while block := file.read(BLOCK):
            whole = (rest + block).split(b"\n")
            rest = whole.pop()
            for line in whole:
                offset += skipped + len(line) + 1
                yield offset, None if skipped else line
                skipped = 0
            if skipped or len(rest) > MAX_READ_LINE:
                skipped += len(rest)
                rest = b""


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "request_id" in row else None
