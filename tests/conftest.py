"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
from hypothesis import settings

# Hypothesis fails an example that took 200 ms, and a test whose data took a second to make. Both say how busy the
# machine is, and nothing of the code: what is to be quick has a test of its own, in processor time.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")

# Whatever the mask of who runs the tests, files and directories get the modes that these expect, and other users can
# read what they are given to read.
os.umask(0o022)

# Interpreters start here by the hundred: without compiled modules each would compile all of Flowstack, and pytest the
# tests, however the machine is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell's background job ignores SIGINT, and all that it starts would: some of it is ended by Ctrl-C here.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    "tests/e2e/", "tests/packaging/", "tests/bench/", "tests/transport/test_uv.py", "tests/limits/test_processes.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes long, so that no process is left with it while the others have nothing to do."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker("long")
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests/packaging in one process, as a file is: its tests share an environment that takes long to make."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "tests/packaging" if nodeid.startswith("tests/packaging/") else str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
