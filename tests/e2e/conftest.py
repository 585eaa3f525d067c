"""Fixtures for tests with real processes, sockets and SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.live import Wires
from tests.e2e.processes import Proxy, StandIn, StartProxy, stop_all
from tests.e2e.sdk_runs import Sdks
from tests.short import short_folder


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One stand-in upstream for the whole session."""
    process = StandIn(tmp_path_factory.mktemp("stand-in"))
    yield process
    process.stop()


@pytest.fixture(scope="session")
def proxy(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Flowstack in its default configuration before the stand-in; one for all tests."""
    process = Proxy(tmp_path_factory.mktemp("proxy"), f"{stand_in.url}/v1")
    yield process
    process.stop()


@pytest.fixture
def start_proxy(stand_in: StandIn, tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy that a test has to itself: ``start_proxy(timeouts={"response_head": 1})``.

    The keyword ``upstream`` is the default upstream's base URL, the stand-in's unless given; the rest are tables of
    the configuration. Whatever still runs at the test's end gets SIGTERM and must exit with status 0.
    """
    started: list[Proxy] = []

    def start(*, upstream: str = f"{stand_in.url}/v1", **settings: Any) -> Proxy:
        started.append(Proxy(tmp_path / f"proxy-{len(started)}", upstream, settings=settings))
        return started[-1]

    yield start
    stop_all(started)


@pytest.fixture(scope="module")
def wires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wires]:
    """Wires whose proxies last for a module: for tests that neither end nor reload them."""
    with Wires(tmp_path_factory.mktemp("wires")) as found:
        yield found


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for UNIX sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def sdks(tmp_path_factory: pytest.TempPathFactory) -> Sdks:
    """The SDKs in their environments, installed if they are not yet."""
    return Sdks(tmp_path_factory.mktemp("sdks"))
