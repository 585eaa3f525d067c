"""``twistd flowstack``: its command line, and the service that it runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from flowstack.build import BROKEN, BUILD

if BUILD == "broken":
    sys.exit(BROKEN)

from flowstack.transport import uv

uv.install()  # before anything imports the reactor; where one is installed (twistd --reactor=epoll), that one stays

from twisted.application.service import MultiService  # noqa: E402
from twisted.logger import Logger  # noqa: E402
from twisted.python import usage  # noqa: E402

from flowstack import __version__  # noqa: E402
from flowstack.config import ConfigError, Settings, load  # noqa: E402
from flowstack.keys.reading import read_keys  # noqa: E402
from flowstack.process.parent import ParentService  # noqa: E402
from flowstack.process.proxy import ProxyService  # noqa: E402

log = Logger()


class Options(usage.Options):
    """The command line of ``twistd flowstack``; each flag has its key in the config file, and wins over it."""

    synopsis = "[options]"
    longdesc = (
        "Run Flowstack, the proxy in front of the OpenAI API. Clients replace their base URL by this proxy's and add "
        "the header 'Flowstack-Auth: Bearer <key>'. Keys are made with 'flowstack keys add'. Flags override the config "
        "file, of which etc/flowstack.toml is a commented example (installed as share/flowstack/etc/flowstack.toml)."
    )
    optParameters = [
        ["config", "c", None, "The config file (TOML). [default: none]"],
        ["upstream", "u", None, "Base URL of the default upstream. [default: https://api.openai.com/v1]"],
        ["keys", "k", None, "The keystore file. [default: keys]"],
        ["state", "s", None, "The state directory: ledger, budgets spent, reload.json. [default: none]"],
        ["workers", "w", None, "Processes; 0 means one for each core. [default: 0]"],
        ["admin", "a", None, "Endpoint of the admin listener: /healthz, /readyz, /metrics. [default: none]"],
    ]
    _overrides = ("upstream", "keys", "state", "workers", "admin")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Endpoint to listen on; repeatable: tcp:, ssl:, unix: or systemd:. [default: tcp:8080:interface=127.0.0.1]"""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def getUsage(self, width: int | None = None) -> str:
        """The help text, with an example that is not wrapped."""
        example = "twistd -n flowstack --keys keys --upstream https://api.openai.com/v1"
        return f"{super().getUsage(width)}\nExample:\n  {example}\n"

    def opt_version(self) -> None:
        """Print Flowstack's version, which build it is, and exit."""
        print(f"flowstack {__version__} ({BUILD} build)")
        sys.exit(0)

    def postOptions(self) -> None:
        """Read the configuration; its faults and the keystore's go to standard error, and the start ends with 1."""
        given = {name: self[name] for name in ("listen", *self._overrides)}
        try:
            self["settings"] = load(Path(self["config"]) if self["config"] else None, given, starting=True)
        except ConfigError as error:
            keystore = [] if error.keys is None else read_keys(error.keys, time.time()).faults
            sys.exit("\n".join(map(str, (*error.faults, *keystore))))

    def settings(self) -> Settings:
        """The configuration as a whole."""
        return cast(Settings, self["settings"])


def makeService(options: Options) -> MultiService:
    """Build the service: the proxy in this process, or the parent of several workers.

    :raises SystemExit: the keystore or a certificate cannot be used; the text says why.
    """
    from twisted.internet import reactor

    log.info("flowstack {version} starts, the {build} build", version=__version__, build=BUILD)
    settings = options.settings()
    count = settings.server.workers or len(os.sched_getaffinity(0))
    twistd: Mapping[str, object] = options.parent or {}
    # Where twistd's own log is standard output, workers may write there too.
    inherit = bool(twistd.get("nodaemon")) and not twistd.get("logfile") and not twistd.get("syslog")
    if settings.log.requests == "-" and count == 1 and not twistd.get("nodaemon"):
        log.warn("requests are not logged: a daemon has no standard output. Name a file in [log] requests, or use -n.")
    if count == 1:
        return ProxyService(settings, reactor)
    return ParentService(settings, reactor, count, inherit)
