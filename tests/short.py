"""Paths that are short enough for a UNIX socket's address, which ends at 107 bytes (unix(7))."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for as long as the block lasts; pytest's own may lie deep, below a user's ``TMPDIR``."""
    with tempfile.TemporaryDirectory(prefix="fs-", dir="/tmp") as folder:
        yield Path(folder)
