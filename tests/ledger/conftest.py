"""What the tests of the ledger share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowstack.config.settings import Shared
from tests.ledger.servers import Server, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL that stays: who ends it has one of its own."""
    with server() as one:
        yield one


@pytest.fixture
def shared(postgres: Server, tmp_path: Path) -> Shared:
    """An empty database on it."""
    return postgres.database(tmp_path)


@pytest.fixture
def another(postgres: Server, tmp_path: Path) -> Callable[[], Shared]:
    """Makes further ones."""
    return lambda: postgres.database(tmp_path)
