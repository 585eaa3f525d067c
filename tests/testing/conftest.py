from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.wire import Client, Process


@pytest.fixture(scope="session")
def standin_process() -> Iterator[Process]:
    with Process("--listen", "tcp:0") as process:
        yield process
        assert process.stop() == (0, "")


@pytest.fixture
def client(standin_process: Process) -> Client:
    """A client of a stand-in that has seen nothing yet."""
    client = Client(standin_process.port)
    client.reset()
    return client
