"""Fixtures for tests with real processes, sockets and SDKs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Proxy, StandIn, stop_all
from tests.e2e.sdk_runs import Sdks
from tests.short import short_folder

StartProxy = Callable[..., Proxy]


@pytest.fixture(scope="session", params=[None, "epoll"], ids=["uvloop", "epoll"])
def reactor(request: pytest.FixtureRequest) -> str | None:
    """The reactor under the proxy: None leaves the choice to Flowstack, which takes uvloop.

    A test that needs only one of the two narrows this with ``parametrize("reactor", [None], indirect=True)``.
    """
    chosen: str | None = request.param
    return chosen


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One stand-in upstream for the whole session."""
    process = StandIn(tmp_path_factory.mktemp("stand-in"))
    yield process
    process.stop()


@pytest.fixture(scope="session")
def proxy(reactor: str | None, stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Flowstack in its default configuration before the stand-in; one for all tests of a reactor."""
    folder = tmp_path_factory.mktemp(f"proxy-{reactor or 'uvloop'}")
    process = Proxy(folder, f"{stand_in.url}/v1", reactor=reactor)
    yield process
    process.stop()


@pytest.fixture
def start_proxy(reactor: str | None, stand_in: StandIn, tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy that a test has to itself: ``start_proxy(timeouts={"response_head": 1})``.

    The keyword ``upstream`` is the default upstream's base URL, the stand-in's unless given; the rest are tables of
    the configuration. Whatever still runs at the test's end gets SIGTERM and must exit with status 0.
    """
    started: list[Proxy] = []

    def start(*, upstream: str = f"{stand_in.url}/v1", **settings: Any) -> Proxy:
        started.append(Proxy(tmp_path / f"proxy-{len(started)}", upstream, reactor=reactor, settings=settings))
        return started[-1]

    yield start
    stop_all(started)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for UNIX sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def sdks(tmp_path_factory: pytest.TempPathFactory) -> Sdks:
    """The SDKs in their environments, installed if they are not yet."""
    return Sdks(tmp_path_factory.mktemp("sdks"))
