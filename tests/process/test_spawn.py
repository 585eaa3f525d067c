"""How a worker's process is begun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor

import flowstack
from flowstack.process.spawn import child_environ, worker_command

HOME = str(Path(flowstack.__file__).resolve().parent.parent)


@pytest.mark.parametrize(
    ("reactor", "on_uvloop", "name"),
    [
        (SelectReactor, False, "select"),
        (PollReactor, False, "poll"),
        (object, False, "epoll"),
        (object, True, "uvloop"),
    ],
)
def test_a_worker_is_told_to_install_its_parents_reactor(reactor: type, on_uvloop: bool, name: str) -> None:
    command = worker_command(reactor.__new__(reactor), on_uvloop)
    assert command == [sys.executable, "-m", "flowstack.process.worker", name]


@pytest.mark.parametrize(
    ("given", "path"),
    [({}, HOME), ({"PYTHONPATH": ""}, HOME), ({"PYTHONPATH": "/other"}, f"{HOME}{os.pathsep}/other")],
)
def test_a_worker_runs_the_package_that_its_parent_runs(given: dict[str, str], path: str) -> None:
    environ = {"HOME": "/nowhere", **given}
    assert child_environ(environ) == {"HOME": "/nowhere", "PYTHONPATH": path}
