"""How a child process is started: its command line and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flowstack


def worker_command(reactor: Any, on_uvloop: bool) -> list[str]:
    """The command line of :mod:`flowstack.process.worker` but for the index: it installs the same reactor as runs here.

    :param on_uvloop: whether the reactor runs on uvloop; its class does not say so.
    """
    module = type(reactor).__module__
    name = {"twisted.internet.selectreactor": "select", "twisted.internet.pollreactor": "poll",
            "twisted.internet.asyncioreactor": "asyncio"}.get(module, "epoll")  # fmt: skip
    return [sys.executable, "-m", "flowstack.process.worker", "uvloop" if on_uvloop else name]


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: this process's, with this very package first on the path."""
    home = str(Path(flowstack.__file__).resolve().parent.parent)
    path = environ.get("PYTHONPATH", "")
    return {**environ, "PYTHONPATH": f"{home}{os.pathsep}{path}" if path else home}
