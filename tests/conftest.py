"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings
from twisted.logger import globalLogPublisher

from tests.redis_server import PROGRAMS, RedisServer

# Hypothesis fails an example that took 200 ms, and a test whose data took a second to make. Both say how busy the
# machine is, and nothing of the code: what is to be quick has a test of its own, in processor time.
#
# How many examples a property gets is said here for all: enough to see a plain fault at each run, and with
# ``--hypothesis-profile=thorough`` as many as whoever changed a reader wants once.
settings.register_profile("quick", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("quick")

# Whatever the mask of who runs the tests, files and directories get the modes that these expect, and other users can
# read what they are given to read.
os.umask(0o022)

# Interpreters start here by the hundred: without compiled modules each would compile all of Flowstack, and pytest the
# tests, however the machine is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Until all tests are collected nothing is garbage, and there is ever more to look through.
gc.disable()

# A shell's background job ignores SIGINT, and all that it starts would: some of it is ended by Ctrl-C here.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    "tests/e2e/", "tests/packaging/", "tests/bench/", "tests/transport/test_uv.py", "tests/limits/test_processes.py",
    "tests/limits/test_link", "tests/limits/test_storm.py", "tests/process/test_indexer.py",
    "tests/process/test_shipper.py", "tests/ledger/test_shipping.py", "tests/cli/test_check_redis.py",
    "tests/cli/test_ledger.py", "tests/cli/test_reconcile.py", "tests/cli/test_keys_changes.py",
    "tests/cli/test_main.py", "tests/admin/test_metrics.py", "tests/metrics/test_recorder.py",
    "tests/testing/test_standin_server.py", "tests/testing/test_standin_directives.py",
)  # fmt: skip
"""What starts processes by the dozen, or waits."""

SERVERS = {"postgres", "redis_of", "redis_server", "standin_process"}
"""Fixtures that are processes: who asks for one takes long, too; so does a case that is a server's."""

SHARING = {
    "an installed wheel": ("tests/packaging/",),
    "SDKs that are imported once": tuple(
        f"tests/e2e/test_{name}.py"
        for name in ("budget_status", "examples", "limits_sdks", "one_key", "one_string", "redirects", "sdk_answers",
                     "sdk_errors", "sdk_sockets", "usage_injection")
    ),
}  # fmt: skip
"""What files share that takes long to make, and the files."""


def scope_of(nodeid: str) -> str | None:
    """What a test shares with those of other files."""
    return next((name for name, files in SHARING.items() if nodeid.startswith(files)), None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what takes long where it is not to run."""
    quick = config.getoption("markexpr") == "not long"
    return True if quick and collection_path.relative_to(config.rootpath).as_posix().startswith(LONG) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes long, so that no process is left with it while the others have nothing to do."""
    for item in items:
        case = item.callspec.params.values() if hasattr(item, "callspec") else ()
        asked = {*getattr(item, "fixturenames", ()), *(value for value in case if isinstance(value, str))}
        if item.nodeid.startswith(LONG) or not asked.isdisjoint({*SERVERS, *PROGRAMS}):
            item.add_marker("long")
    items.sort(key=lambda item: (scope_of(item.nodeid) is None, not item.nodeid.startswith(LONG)))
    # None of what was made until now goes before the end: it need not be looked at again and again.
    gc.enable()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep those files in one process that share what takes long to make."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid) or str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile, as text."""
    texts: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        texts.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


@pytest.fixture(scope="session")
def redis_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """Gives the server of each of :data:`tests.redis_server.PROGRAMS`, started when it is first asked for."""
    started: dict[str, RedisServer] = {}

    def server(name: str) -> RedisServer:
        if name not in started:
            started[name] = RedisServer(tmp_path_factory.mktemp(name), program=PROGRAMS[name]()).start()
        return started[name]

    yield server
    for one in started.values():
        one.stop()


@pytest.fixture(scope="session", params=PROGRAMS)
def redis_server(request: pytest.FixtureRequest, redis_of: Callable[[str], RedisServer]) -> RedisServer:
    return redis_of(request.param)


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of an empty Redis or Valkey."""
    with redis_server.emptied() as client:
        yield client
