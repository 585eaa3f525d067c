"""Flowstack itself, as an operator starts it: default configuration, every check on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from attrs import evolve

from bench import provision
from bench.machine import commit
from bench.procs import ROOT, BenchError
from bench.subjects.base import ENVIRONMENTS, Command, Defaults, Setup

#: Where the compiled build is installed.
ENVIRONMENT = ENVIRONMENTS / "compiled"

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
{more}
"""


LIMITS = (
    "rpm=900000000 tpm=900000000000 max_parallel=100000 budget=900000000.00usd/month models=gpt-4o*,text-embedding-3-*"
)
"""Every kind of limit that costs something for each request, and none that refuses one."""


class Flowstack(Defaults):
    """A tree's Flowstack on one kind of transport.

    :param reactor: the word for ``twistd --reactor``; None means what Flowstack chooses itself.
    :param attributes: further ones of the key.
    :param root: the tree; for a comparison with an earlier state it is another checkout.
    :param more: of its configuration.
    """

    def __init__(
        self, name: str, reactor: str | None = None, attributes: str = "", root: Path = ROOT, more: str = ""
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._attributes = attributes
        self._root = root
        self._more = more

    def install(self) -> None:
        """Nothing: the bench runs in the environment that Flowstack is installed in."""
        if not (self._root / "flowstack" / "tap.py").exists():
            raise BenchError(f"{self._root}/flowstack/tap.py is missing: there is no Flowstack to run")
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
        setup.write("keys", f"{setup.key[4:16]}  sha256:{digest}  owner=bench@example.com {self._attributes}\n")
        path = setup.write(
            "flowstack.toml",
            CONFIGURATION.format(
                port=setup.port,
                directory=setup.directory,
                workers=setup.workers,
                upstream=setup.upstream,
                more=self._more,
                ca_file=f'ca_file = "{setup.authority}"' if setup.authority else "",
            ),
        )
        reactor = (f"--reactor={self._reactor}",) if self._reactor else ()
        return Command(
            (self._twistd(), *reactor, "-n", "--pidfile=", "flowstack", "--config", path),
            {"PYTHONPATH": str(self._root)},
        )

    def _twistd(self) -> Path:
        return Path(sys.executable).with_name("twistd")


class Compiled(Flowstack):
    """The same tree, compiled, in an environment of its own, which is made anew where the tree has changed."""

    def install(self) -> None:
        """Build and install it."""
        built = ENVIRONMENT / "built-from"
        now = commit(ROOT)
        if not built.exists() or built.read_text() != now or now.endswith("+"):
            provision.say(f"bench: compiling Flowstack into {ENVIRONMENT}")
            provision.build(ENVIRONMENT, ROOT, {"FLOWSTACK_COMPILE": "1"})
            built.write_text(now)
        if not any(ENVIRONMENT.glob("lib/python*/site-packages/flowstack/**/*.so")):
            raise BenchError("FLOWSTACK_COMPILE=1 pip install . gave no compiled module")

    def version(self) -> str:
        """As the package says, and that it is compiled."""
        return super().version() + ", compiled"

    def command(self, setup: Setup) -> Command:
        """As the other, from what is installed there."""
        return evolve(super().command(setup), environment={"PYTHONPATH": ""})

    def _twistd(self) -> Path:
        return ENVIRONMENT / "bin" / "twistd"
