"""``twistd flowstack``: the composition root. Nothing else builds collaborators."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

from flowstack.wire import uv

uv.install()

from twisted.application.service import MultiService  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.internet.interfaces import IListeningPort  # noqa: E402
from twisted.logger import Logger  # noqa: E402
from twisted.python import usage  # noqa: E402
from twisted.web.resource import IResource  # noqa: E402

from flowstack import __version__  # noqa: E402
from flowstack.admin.health import admin_resource  # noqa: E402
from flowstack.config import ConfigError, Settings, load  # noqa: E402
from flowstack.keystore.file import FileKeystore, KeystoreError  # noqa: E402
from flowstack.ledger.events import EventLedger  # noqa: E402
from flowstack.limits.null import NullLimiter  # noqa: E402
from flowstack.policy.replies import Cors  # noqa: E402
from flowstack.policy.routes import Origin  # noqa: E402
from flowstack.relay.client import RelayClient  # noqa: E402
from flowstack.relay.exchange import Services  # noqa: E402
from flowstack.relay.resource import Relay  # noqa: E402
from flowstack.wire.channel import Channel  # noqa: E402
from flowstack.wire.pool import Pool, UpstreamAgent  # noqa: E402
from flowstack.wire.site import Site  # noqa: E402
from flowstack.wire.ticker import Ticker  # noqa: E402

log = Logger()


class Options(usage.Options):
    """The command line of ``twistd flowstack``; each flag has its key in the config file, and wins over it."""

    synopsis = "[options]"
    longdesc = """\
Run Flowstack, the proxy in front of the OpenAI API. Clients replace their base URL by this proxy's and add the header
'Flowstack-Auth: Bearer <key>'. Keys are made with 'flowstack keys add'.

Example: twistd -n flowstack --keys keys --listen tcp:8080:interface=127.0.0.1 --upstream https://api.openai.com/v1
"""
    optParameters = [
        ["config", "c", None, "The config file (TOML); see etc/flowstack.toml. Default: built-in settings."],
        ["upstream", "u", None, "Base URL of the default upstream, with its path."],
        ["keys", "k", None, "The keystore file."],
        ["state", "s", None, "Directory for what must outlive a process."],
        ["workers", "w", None, "Processes; 0 means one for each core.", int],
        ["admin", "a", None, "Endpoint of the admin listener: /healthz, /readyz. Default: none."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self.settings: Settings | None = None

    def opt_listen(self, endpoint: str) -> None:
        """Endpoint to listen on, as Twisted writes them (tcp:8080:interface=127.0.0.1, ssl:…, unix:…, systemd:…).
        May be given several times."""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_version(self) -> None:
        """Print Flowstack's version and end."""
        print(f"flowstack {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Read the configuration; all its faults go to standard error, and the start ends with status 1."""
        names = ("listen", "upstream", "keys", "state", "workers", "admin")
        overrides = {name: self[name] for name in names if self[name] not in (None, [])}
        try:
            self.settings = load(Path(self["config"]) if self["config"] else None, overrides)
        except ConfigError as error:
            sys.exit(str(error))


def makeService(options: Options) -> MultiService:
    """Build the service from the command line.

    :raises SystemExit: the keystore cannot be used; the text says why.
    """
    from twisted.internet import reactor

    assert options.settings is not None
    service = FlowstackService(options.settings, reactor)
    try:
        service.keystore.load()
    except KeystoreError as error:
        sys.exit(str(error))
    return service


class FlowstackService(MultiService):
    """The proxy in one process."""

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        self._transports = uv.uv_reactor(reactor)
        server = settings.server
        self.ticker = Ticker(reactor, Ticker.interval_for(settings.timeouts))
        self.keystore = FileKeystore(server.keys, server.state, time.time)
        self.ledger = EventLedger(settings.log.requests, reactor)
        self.pools = {
            upstream.name: self._pool(Origin.of(upstream), upstream) for upstream in settings.upstreams
        }
        services = Services(
            limiter=NullLimiter(),
            ledger=self.ledger,
            clients={name: RelayClient(UpstreamAgent(pool)) for name, pool in self.pools.items()},
            cors=Cors.of(server.cors_origins),
            wall=time.time,
            monotonic=time.monotonic,
            date=_Date(time.time),
            server_timing=server.server_timing,
        )
        self.relay = Relay(settings, self.keystore, services)
        self.site = self._site(self.relay)
        self.admin_site = self._site(admin_resource(self._unready))
        self._ports: list[IListeningPort] = []
        self._admin_ports: list[IListeningPort] = []
        self._drained: Deferred[None] | None = None

    def _site(self, resource: IResource) -> Site:
        head_limit = self.settings.server.max_head_bytes
        return Site(resource, self.ticker, self.settings.timeouts, self.relay.refusal, head_limit, Channel)

    def _pool(self, origin: Origin, upstream: Any) -> Pool:
        endpoint = uv.client_endpoint(self._reactor, origin.host, origin.port, origin.tls, upstream.ca_file)
        return Pool(origin, upstream, endpoint, self.ticker, self.settings.timeouts)

    def privilegedStartService(self) -> None:
        """Bind. A failure ends the start."""
        super().privilegedStartService()
        for description in self.settings.server.listen:
            self._ports.append(self._bind(description, self.site))
        if self.settings.server.admin is not None:
            self._admin_ports.append(self._bind(self.settings.server.admin, self.admin_site))

    def startService(self) -> None:
        """Serve."""
        super().startService()
        self.ledger.start()
        self.ticker.start()
        gc.collect()
        gc.freeze()
        self._reactor.callWhenRunning(self._running)

    def _running(self) -> None:
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._reactor.stop))
        for port in self._ports:
            log.info("flowstack listening on {address}", address=_shown(port))
        for port in self._admin_ports:
            log.info("flowstack admin listening on {address}", address=_shown(port))

    def _bind(self, description: str, site: Site) -> IListeningPort:
        listening = uv.server_endpoint(self._reactor, description).listen(site)
        results: list[Any] = []
        listening.addBoth(results.append)
        port = results[0]
        if not IListeningPort.providedBy(port):
            sys.exit(f"cannot listen on {description}: {port.getErrorMessage()}")
        return port

    def reload(self) -> None:
        """Read the keystore anew (SIGHUP); also the TLS certificates, and the request log's file."""
        self.keystore.reload()
        self.ledger.reopen()
        for fault in uv.reload_certificates():
            log.error("a TLS certificate was not taken over, the old one is used on: {fault}", fault=fault)

    def _unready(self) -> str | None:
        if self.relay.draining:
            return "draining"
        return None

    def stopService(self) -> Deferred[None]:
        """Drain: take no new work, let what is under way end, up to ``drain`` seconds; a second SIGTERM ends it now."""
        self.relay.draining = True
        self.site.drain()
        for port in self._ports:
            port.stopListening()
        drained = self._drained = Deferred()
        self.site.when_idle = self._perhaps_drained
        timer = self._reactor.callLater(self.settings.timeouts.drain, self._end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._end))

        def ended(_: None) -> Any:
            if timer.active():
                timer.cancel()
            self.site.close()
            self.admin_site.close()
            for pool in self.pools.values():
                pool.close()
            self.ledger.stop()
            self.ticker.stop()
            for port in self._admin_ports:
                port.stopListening()
            return MultiService.stopService(self)

        drained.addCallback(ended)
        log.info("draining, {count} requests under way", count=self.site.busy)
        self._perhaps_drained()
        return drained

    def _perhaps_drained(self) -> None:
        if not self.site.busy:
            self._end()

    def _end(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)


class _Date:
    """The ``Date`` field's value, made once a second (RFC 9110 §6.6.1)."""

    def __init__(self, wall: Any) -> None:
        self._wall = wall
        self._second = -1
        self._text = b""

    def __call__(self) -> bytes:
        second = int(self._wall())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True).encode("ascii")
        return self._text


def _shown(port: IListeningPort) -> str:
    address = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        return f"unix:{os.fsdecode(getattr(address, 'name', b'') or b'')}"
    return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"
