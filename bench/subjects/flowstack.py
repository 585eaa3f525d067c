"""Flowstack itself, as an operator starts it: default configuration, every check on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from bench.procs import ROOT, BenchError
from bench.subjects.base import Command, Defaults, Setup

#: What departs from the defaults, and why: 5,000 streams need as many upstream connections; a gibibyte is more than the
#: default's half; the rest says where things are.
CONFIGURATION = """\
[server]
listen = ["tcp:{port}:interface=127.0.0.1"]
keys = "{directory}/keys"
state = "{directory}/state"
workers = {workers}
max_request_bytes = 4294967296

[upstreams.openai]
base_url = "{upstream}/v1"
max_connections = 16384
{ca_file}
"""


class Flowstack(Defaults):
    """The working tree's Flowstack on one kind of transport.

    :param reactor: the word for ``twistd --reactor``; None means what Flowstack chooses itself.
    """

    def __init__(self, name: str, reactor: str | None = None) -> None:
        self.name = name
        self._reactor = reactor

    def install(self) -> None:
        """Nothing: the bench runs in the environment that Flowstack is installed in."""
        if not (ROOT / "flowstack" / "tap.py").exists():
            raise BenchError("flowstack/tap.py is missing: there is no Flowstack to run yet")
        if not self._twistd().exists():
            raise BenchError(
                f"{self._twistd()} is missing: run the bench with the Python that Flowstack is installed in"
            )

    def version(self) -> str:
        """The package's version, Python's, and the transports."""
        from flowstack import __version__

        python = ".".join(map(str, sys.version_info[:3]))
        return f"flowstack {__version__}, CPython {python}, {self._reactor or 'uvloop'}"

    def command(self, setup: Setup) -> Command:
        """``twistd flowstack`` in the foreground."""
        (setup.directory / "state").mkdir(exist_ok=True)
        digest = hashlib.sha256(setup.key.encode()).hexdigest()
        setup.write("keys", f"{setup.key[4:16]}  sha256:{digest}  owner=bench@example.com\n")
        path = setup.write(
            "flowstack.toml",
            CONFIGURATION.format(
                port=setup.port,
                directory=setup.directory,
                workers=setup.workers,
                upstream=setup.upstream,
                ca_file=f'ca_file = "{setup.authority}"' if setup.authority else "",
            ),
        )
        reactor = (f"--reactor={self._reactor}",) if self._reactor else ()
        return Command(
            (self._twistd(), *reactor, "-n", "--pidfile=", "flowstack", "--config", path),
            {"PYTHONPATH": str(ROOT)},
        )

    def _twistd(self) -> Path:
        return Path(sys.executable).with_name("twistd")
