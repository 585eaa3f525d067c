"""What the tests of workers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.conftest import postgres, shared
from tests.short import short_folder

__all__ = ["postgres", "shared", "short_path"]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for UNIX sockets."""
    with short_folder() as folder:
        yield folder
