"""The composition root: what a process of Flowstack's consists of. Nothing else builds collaborators."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.web.resource import IResource

from flowstack.admin.health import admin_resource
from flowstack.config import Settings, Upstream
from flowstack.keystore.file import FileKeystore, KeystoreError
from flowstack.ledger.events import EventLedger
from flowstack.limits.null import NullLimiter
from flowstack.policy.replies import Cors, error_reply
from flowstack.policy.routes import Origin
from flowstack.relay.client import RelayClient
from flowstack.relay.exchange import Services
from flowstack.relay.resource import Relay
from flowstack.wire import uv
from flowstack.wire.channel import Channel
from flowstack.wire.date import Date
from flowstack.wire.pool import Pool, UpstreamAgent
from flowstack.wire.site import Site
from flowstack.wire.ticker import Ticker
from flowstack.workers.lifecycle import Lifecycle, url_of
from flowstack.workers.parent import FIRST_SOCKET, ParentLink, Workers
from flowstack.workers.sockets import bind_sockets
from flowstack.workers.spawn import worker_command, worker_environ
from flowstack.workers.systemd import Systemd

log = Logger()

CLOSE_SECONDS = 1.0
"""For connections to close in order when a drain is ended before its time; then they are cut."""


class Process(MultiService, ABC):
    """What the proxy in one process and the parent of several have in common: keystore, admin listener, signals.

    :param last_good: the keystore's text as another process of this service has it, for while the file is bad.
    :raises SystemExit: the keystore cannot be used; the text says why.
    """

    def __init__(self, settings: Settings, reactor: Any, state: Path | None, last_good: bytes | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.settings = settings
        self.reactor = reactor
        self.ticker = Ticker(reactor, Ticker.interval_for(settings.timeouts))
        if state is not None and not state.is_dir():
            sys.exit(f"[server] state: {state} is no directory. Create it, writable for the service's user.")
        self.keystore = FileKeystore(settings.server.keys, state, time.time)
        try:
            self.keystore.load(last_good)
        except KeystoreError as error:
            sys.exit(str(error))
        self.systemd = Systemd(os.environ, reactor)
        self.lifecycle = Lifecycle(reactor, self.systemd, self.reload, self.hurry)
        self.admin_site = self._site(admin_resource(self.unready), error_reply)
        self._admin_ports: list[IListeningPort] = []

    def _site(self, resource: IResource, refuse: Any) -> Site:
        server = self.settings.server
        return Site(resource, self.ticker, self.settings.timeouts, refuse, server.max_head_bytes, Channel)

    def privilegedStartService(self) -> None:
        """Bind. A failure ends the start with status 1."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self.bind()
        if self.settings.server.admin:
            self._admin_ports.append(self.listen(self.settings.server.admin, self.admin_site))

    def startService(self) -> None:
        """Serve."""
        super().startService()  # type: ignore[no-untyped-call]
        self.ticker.start()
        self.reactor.callWhenRunning(self.lifecycle.serve)

    def listen(self, description: str, site: Site, fileno: int | None = None) -> IListeningPort:
        """Listen on what an endpoint string names, at once.

        :raises SystemExit: that cannot be done; the text says why.
        """
        results: list[Any] = []
        try:
            uv.server_endpoint(self.reactor, description, fileno).listen(site).addBoth(results.append)
        except Exception as error:
            results.append(error)
        if not results or not IListeningPort.providedBy(results[0]):
            _cannot_listen(description, results[0] if results else "it did not say why")
        port: IListeningPort = results[0]
        return port

    def close_admin(self) -> None:
        """The last thing to go: it says that the process drains."""
        self.admin_site.close()
        for port in self._admin_ports:
            port.stopListening()
        self.ticker.stop()
        self.systemd.unwatch()

    def admin_urls(self) -> list[str]:
        """Where the admin listener can be reached."""
        return [url_of(port.getHost(), _secure(self.settings.server.admin)) for port in self._admin_ports]

    def urls(self, addresses: Iterable[Any]) -> list[str]:
        """Where the public listeners can be reached, given the address of each."""
        listen = self.settings.server.listen
        return [url_of(address, _secure(description)) for description, address in zip(listen, addresses, strict=True)]

    @abstractmethod
    def bind(self) -> None:
        """Bind the public listeners."""

    @abstractmethod
    def reload(self) -> Deferred[Any]:
        """Carry out a SIGHUP."""

    @abstractmethod
    def hurry(self) -> None:
        """End a drain that is under way."""

    @abstractmethod
    def unready(self) -> str | None:
        """Why no new request should come here, or None."""


class ProxyService(Process):
    """The proxy in one process."""

    def __init__(self, settings: Settings, reactor: Any, last_good: bytes | None = None) -> None:
        super().__init__(settings, reactor, self.state_directory(settings), last_good)
        server = settings.server
        self.ledger = EventLedger(settings.log.requests, reactor)
        self.pools = {upstream.name: self._pool(upstream) for upstream in settings.upstreams}
        services = Services(
            limiter=NullLimiter(),
            ledger=self.ledger,
            clients={name: RelayClient(UpstreamAgent(pool)) for name, pool in self.pools.items()},
            cors=Cors.of(server.cors_origins),
            wall=time.time,
            monotonic=time.monotonic,
            date=Date(time.time),
            server_timing=server.server_timing,
        )
        self.relay = Relay(settings, self.keystore, services)
        self.site = self._site(self.relay, self.relay.refusal)
        self._ports: list[IListeningPort] = []
        self._drained: Deferred[None] | None = None
        self._closing = False
        self._timer: Any = None

    @staticmethod
    def state_directory(settings: Settings) -> Path | None:
        """Where ``reload.json`` is written."""
        return settings.server.state

    def _pool(self, upstream: Upstream) -> Pool:
        origin = Origin.of(upstream)
        limit = self.settings.timeouts.connect + 30.0  # the pool's own limit comes first, and says what it was
        endpoint = uv.client_endpoint(self.reactor, origin.host, origin.port, origin.tls, upstream.ca_file, limit)
        return Pool(origin, upstream, endpoint, self.ticker, self.settings.timeouts)

    def bind(self) -> None:
        """Bind each listener."""
        for description in self.settings.server.listen:
            self._ports.append(self.listen(description, self.site))

    def startService(self) -> None:
        """Serve."""
        super().startService()
        try:
            self.ledger.start()
        except OSError as error:
            sys.exit(f"[log] requests: {error}")
        gc.collect()
        gc.freeze()  # what the start made is not looked at again by the garbage collector
        self.reactor.callWhenRunning(self.serving)

    def serving(self) -> None:
        """The reactor runs: say that requests may come."""
        self.lifecycle.ready(self.urls(port.getHost() for port in self._ports), self.admin_urls())
        self.systemd.watch(lambda: True)

    def reload(self) -> Deferred[Any]:
        """Read the keystore and the TLS certificates anew, and open the request log's file again."""
        self.keystore.reload()
        self.ledger.reopen()
        for fault in uv.reload_certificates():
            log.error("a TLS certificate was not taken over, the old one is used on: {fault}", fault=fault)
        return succeed(None)

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        return "draining" if self.lifecycle.draining else None

    def stopService(self) -> Deferred[Any]:
        """Drain: take no new work, let what is under way end, up to ``drain`` seconds."""
        self.lifecycle.drain()
        self.relay.draining = True
        self.site.drain()
        for port in self._ports:
            port.stopListening()
        drained: Deferred[None] = Deferred()
        self._drained = drained
        self.site.when_idle = self._perhaps_drained
        self._timer = self.reactor.callLater(self.settings.timeouts.drain, self.hurry)
        log.info("draining, {count} requests are under way", count=self.site.busy)
        drained.addCallback(lambda _: self._timer.cancel() if self._timer.active() else None)
        drained.addCallback(lambda _: self._close())
        self._perhaps_drained()
        return drained

    def _close(self) -> Any:
        for pool in self.pools.values():
            pool.close()
        self.ledger.stop()
        self.close_admin()
        return MultiService.stopService(self)

    def _perhaps_drained(self) -> None:
        """Once nothing is under way, close the connections; once these are gone, with all that was written, end."""
        if not self._closing and not self.site.busy:
            self._closing = True
            self.site.close()
        if self._closing and not self.site.channels:
            drained, self._drained = self._drained, None
            if drained is not None:
                drained.callback(None)

    def hurry(self) -> None:
        """End a drain that is under way: what still streams is cut, and so is what then does not close at once."""
        if self._drained is None:
            return
        self._closing = True
        if self._timer.active():
            self._timer.cancel()
        self._timer = self.reactor.callLater(CLOSE_SECONDS, self.site.cut)
        self.site.close()
        self._perhaps_drained()


class WorkerService(ProxyService):
    """The proxy in one of several processes: on sockets that the parent bound, with the parent told of its state."""

    def __init__(self, settings: Settings, last_good: bytes, reactor: Any) -> None:
        super().__init__(settings, reactor, last_good)
        self._link = ParentLink(reactor, self._orphaned)

    @staticmethod
    def state_directory(settings: Settings) -> Path | None:
        """None: ``reload.json`` speaks for all workers, so the parent writes it."""
        return None

    def privilegedStartService(self) -> None:
        """Listen on the parent's sockets; the admin listener is the parent's."""
        MultiService.privilegedStartService(self)
        self.bind()

    def bind(self) -> None:
        """Listen on each of the parent's sockets."""
        for fileno, description in enumerate(self.settings.server.listen, FIRST_SOCKET):
            self._ports.append(self.listen(description, self.site, fileno))

    def serving(self) -> None:
        """The reactor runs: tell the parent."""
        self._link.start()
        self._link.say("ready")

    def reload(self) -> Deferred[Any]:
        """Reload, and tell the parent."""

        def told(result: Any) -> Any:
            self._link.say("reloaded")
            return result

        return super().reload().addBoth(told)

    def _orphaned(self) -> None:
        if not self.lifecycle.draining:
            log.error("the parent process is gone: this worker drains, and ends")
            self.lifecycle.stop()


class ParentService(Process):
    """The parent of several workers. It checks what they will need, so that a fault ends the start here.

    :param count: workers.
    :param inherit: whether workers share standard output.
    """

    def __init__(self, settings: Settings, reactor: Any, count: int, inherit: bool) -> None:
        super().__init__(settings, reactor, settings.server.state)
        self._count = count
        self._inherit = inherit
        self._workers: Workers | None = None
        self._addresses: list[Any] = []
        self._failed = False

    def bind(self) -> None:
        """Bind a socket for each worker and listener."""
        sockets = []
        for description in self.settings.server.listen:
            try:
                bound, address = bind_sockets(uv.server_endpoint, description, self._count)
            except Exception as error:
                _cannot_listen(description, error)
            sockets.append(bound)
            self._addresses.append(address)
        self._workers = Workers(
            self.reactor,
            self._count,
            worker_command(self.reactor, uv.uv_loop(self.reactor) is not None),
            worker_environ(os.environ),
            lambda: (self.settings, self.keystore.text),
            sockets,
            self._inherit,
            self._serving,
            self._hopeless,
        )

    def startService(self) -> None:
        """Start the workers."""
        super().startService()
        assert self._workers is not None
        self.reactor.callWhenRunning(self._workers.start)

    def _serving(self) -> None:
        self.lifecycle.ready(self.urls(self._addresses), self.admin_urls())
        self.systemd.watch(lambda: self._workers is not None and self._workers.ready)

    def reload(self) -> Deferred[Any]:
        """Have each worker reload; then read the keystore here too, which writes down what became of it."""
        assert self._workers is not None
        return self._workers.reload().addCallback(lambda _: self._reload_here())

    def _reload_here(self) -> None:
        self.keystore.reload()

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        if self.lifecycle.draining:
            return "draining"
        return None if self._workers is not None and self._workers.ready else "no worker is ready"

    def stopService(self) -> Deferred[Any]:
        """Drain each worker."""
        self.lifecycle.drain()
        for description, address in zip(self.settings.server.listen, self._addresses, strict=True):
            if description.startswith("unix:"):
                with suppress(OSError):
                    os.unlink(address.name)
        assert self._workers is not None
        ended = self._workers.end(self.settings.timeouts.drain)
        return ended.addCallback(lambda _: self._close())

    def _close(self) -> Any:
        self.close_admin()
        if self._failed:
            # twistd ends with status 0 whatever ended the reactor; a supervisor must see that this start failed.
            atexit.register(os._exit, 1)
        return MultiService.stopService(self)

    def hurry(self) -> None:
        """End the workers' drains."""
        if self._workers is not None:
            self._workers.hurry()

    def _hopeless(self) -> None:
        self._failed = True
        self.lifecycle.stop()


def _secure(description: str | None) -> bool:
    return description is not None and description.startswith("ssl:")


def _cannot_listen(description: str, fault: Any) -> NoReturn:
    why = fault.getErrorMessage() if hasattr(fault, "getErrorMessage") else str(fault) or type(fault).__name__
    sys.exit(f"cannot listen on {description}: {why}")
