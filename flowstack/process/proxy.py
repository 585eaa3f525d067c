"""The proxy in one process."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from treq.client import HTTPClient
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from flowstack.config import Settings, Upstream
from flowstack.errors import ParseError
from flowstack.keystore.provider import ProviderKeys
from flowstack.ledger.access import AccessLog
from flowstack.ledger.files import journal_path
from flowstack.ledger.journal import Journal
from flowstack.ledger.ledger import RowLedger
from flowstack.ledger.open_work import OpenWork, give_back, open_path
from flowstack.ledger.prices import load_prices
from flowstack.limits.counters import Counters
from flowstack.limits.shared import SharedLimiter
from flowstack.metrics.families import IN_FLIGHT, LEDGER_LAG, LEDGER_LOST, LEDGER_QUEUED, POOL
from flowstack.metrics.segment import Segment
from flowstack.policy.keys.addresses import Networks
from flowstack.policy.replies import Cors
from flowstack.policy.routes import Origin, Routes
from flowstack.process.service import Process
from flowstack.process.upkeep import Upkeep
from flowstack.relay.behind import Backlog
from flowstack.relay.client import RelayClient
from flowstack.relay.late import LateWork
from flowstack.relay.permission import Permission
from flowstack.relay.reconciler import Asked, Reconciler
from flowstack.relay.resource import Relay
from flowstack.relay.services import Services
from flowstack.wire import uv
from flowstack.wire.date import Date
from flowstack.wire.pool import Pool, UpstreamAgent
from flowstack.wire.proxied import ProxiedConnection, Proxies
from flowstack.wire.resolver import Resolver
from flowstack.wire.server_connection import ServerConnection

log = Logger()

CLOSE_SECONDS = 1.0
"""For connections to close in order when a drain is ended before its time; then they are cut."""


class ProxyService(Process):
    """The proxy in one process."""

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        last_good: bytes | None = None,
        worker: int | None = None,
        segment: Segment | None = None,
        counters: Counters | None = None,
    ) -> None:
        alone = worker is None
        super().__init__(settings, reactor, alone, segment or Segment.create(), last_good)
        server, state = settings.server, self.state
        self.upkeep = Upkeep(reactor, state, settings.ledger) if alone and state is not None else None
        self.ledger = RowLedger(
            self._journal(worker or 0), AccessLog(settings.log, reactor), settings.ledger.refusals_per_minute, reactor
        )
        self.pools = {upstream.name: self._pool(upstream) for upstream in settings.upstreams}
        self.counters = self.open_counters(1) if counters is None else counters
        if alone and state is not None:
            give_back(open_path(state))
        self.open_work = OpenWork(state and open_path(state), worker or 0, time.monotonic)
        prices = load_prices(settings.prices)
        limiter = SharedLimiter(self.counters, settings)
        estimates = settings.estimates
        late = LateWork(self.open_work, limiter, self.ledger, prices, self.recorder.settled, time.time, estimates.price)
        services = Services(
            limiter=limiter,
            ledger=self.ledger,
            clients={name: RelayClient(UpstreamAgent(pool)) for name, pool in self.pools.items()},
            cors=Cors.of(server.cors_origins),
            wall_clock=time.time,
            monotonic=time.monotonic,
            date=Date(time.time),
            prices=prices,
            permission=Permission(prices, estimates.output_tokens, estimates.price, settings.ledger.inject_usage),
            backlog=Backlog(partial(reactor.callLater, 0)),
            late=late,
            observers=(self.ledger.record, self.recorder.record),
            observe_unauthenticated=self.recorder.unauthenticated,
            upstream=next((one.name for one in settings.upstreams if one.default), settings.upstreams[0].name),
            routes=Routes.of(server.prefixes, settings.upstreams),
            trusted=Networks(() if server.proxy_protocol else server.trusted_proxies),
            server_timing=server.server_timing,
            docs_url=server.docs_url,
        )
        self.relay = Relay(settings, self.keystore, services)
        self.provider_keys = self._read_provider_keys()
        self.relay.provider_keys = self.provider_keys.keys
        self.reconciler = self._make_reconciler(late) if settings.reconcile.enabled and not worker else None
        self._proxies = Proxies(Networks(server.trusted_proxies), time.monotonic)
        channel = partial(ProxiedConnection, self._proxies) if server.proxy_protocol else ServerConnection
        self.site = self._site(self.relay, self.relay.refusal, channel)
        self._watch_service()
        self._ports: list[IListeningPort] = []
        self._drained: Deferred[None] | None = None
        self._closing = False
        self._timer: Any = None

    def _journal(self, worker: int) -> Journal | None:
        if self.state is None:
            return None
        directory = journal_path(self.state)
        reactor = self.reactor
        return Journal(
            directory,
            worker,
            self.settings.ledger,
            reactor,
            time.time,
            lambda function: deferToThreadPool(reactor, reactor.getThreadPool(), function),
            uv.before_writes(reactor),
        )

    def _read_provider_keys(self) -> ProviderKeys:
        files = {one.name: one.api_key_file for one in self.settings.upstreams if one.api_key_file is not None}
        try:
            return ProviderKeys(files)
        except ParseError as error:
            sys.exit(str(error))

    def _make_reconciler(self, late: LateWork) -> Reconciler:
        """What asks about open work; in one of the processes."""
        reactor, keys = self.reactor, self.provider_keys.keys
        asked: dict[str, Asked] = {}
        for one in self.settings.upstreams:
            if one.name not in keys:
                log.warn("[reconcile] the upstream {name} is not asked: it has no api_key_file", name=one.name)
                continue
            key, client = partial(keys.__getitem__, one.name), HTTPClient(UpstreamAgent(self.pools[one.name]))
            asked[one.name] = Asked(one.base_url, key, one.api_key_header.encode("ascii"), client)
        return Reconciler(
            reactor,
            self.settings.reconcile.every,
            lambda: deferToThreadPool(reactor, reactor.getThreadPool(), self.open_work.open),
            asked,
            late,
            time.time,
        )

    def _watch_service(self) -> None:
        watch, ledger = self.recorder.watch, self.ledger
        watch(IN_FLIGHT, lambda: self.site.busy)
        watch(LEDGER_LOST, lambda: ledger.lost)
        watch(LEDGER_QUEUED, lambda: ledger.waiting)
        for name, pool in self.pools.items():
            watch(POOL, partial(_open, pool), name, "open")
            watch(POOL, partial(_idle, pool), name, "idle")
            watch(POOL, partial(_waiting, pool), name, "waiting")
        if self.upkeep is not None:
            watch(LEDGER_LAG, self.upkeep.lag)

    def segments(self) -> Iterable[Segment]:
        """Its own."""
        return (self.recorder.segment,)

    def processes(self) -> Mapping[str, int]:
        """This one."""
        return {"flowstack": os.getpid()}

    def _pool(self, upstream: Upstream) -> Pool:
        origin = Origin.of(upstream)
        limit = self.settings.timeouts.connect + 30.0  # the pool's own limit comes first, and says what it was
        endpoint = uv.client_endpoint(self.reactor, origin.host, origin.port, origin.tls, upstream.ca_file, limit)
        return Pool(origin, upstream, endpoint, self.ticker, self.settings.timeouts, time.monotonic)

    def publish(self) -> None:
        """Show the numbers as of now, and say in the log what waited for its time; called once a second."""
        super().publish()
        self._tell()

    def _tell(self, at_once: bool = False) -> None:
        self._proxies.tell(at_once)
        self.relay.unauthenticated.tell(at_once)

    def bind(self) -> None:
        """Bind each listener."""
        for description in self.settings.server.listen:
            self._ports.append(self.listen(description, self.site))

    def startService(self) -> None:
        """Serve."""
        super().startService()
        self.reactor.installNameResolver(Resolver(self.reactor, self.settings.timeouts.connect))
        with self.starting():
            try:
                self.ledger.start()
            except OSError as error:
                sys.exit(f"[log] requests: {error}")
        if self.reconciler is not None:
            self.reconciler.start()
        gc.collect()
        gc.freeze()  # what the start made is not looked at again by the garbage collector
        self.reactor.callWhenRunning(self.serving)

    def serving(self) -> None:
        """The reactor runs: say that requests may come."""
        if self.upkeep is not None:
            self.upkeep.start()
        self.lifecycle.ready(self.urls(port.getHost() for port in self._ports), self.admin_urls())
        self.systemd.watch(lambda: True)

    def reload(self) -> Deferred[Any]:
        """Read the keystore, the TLS certificates, provider keys and the token anew; open the request log again."""
        self.reload_files()
        self.reload_token()
        return self.reload_keys().addCallback(self.count_reload)

    def reload_files(self) -> None:
        """What each process that serves reads anew, beside the keystore."""
        self.ledger.reopen()
        self.provider_keys.reload()
        for fault in uv.reload_certificates():
            log.error("a TLS certificate was not taken over, the old one is used on: {fault}", fault=fault)

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        return "draining" if self.lifecycle.draining else None

    def drain(self) -> Deferred[Any]:
        """Take no new work, let what is in flight end, up to ``drain`` seconds."""
        self.relay.draining = True
        if self.reconciler is not None:
            self.reconciler.stop()
        self.site.drain()
        for port in self._ports:
            self.unlisten(port)
        drained: Deferred[None] = Deferred()
        self._drained = drained
        self.site.when_idle = self._perhaps_drained
        self._timer = self.reactor.callLater(self.settings.timeouts.drain, self.cut)
        log.info("draining, {count} requests are under way", count=self.site.busy)
        drained.addCallback(lambda _: self._timer.cancel() if self._timer.active() else None)
        drained.addCallback(lambda _: self._close())
        self._perhaps_drained()
        return drained

    def _close(self) -> Any:
        self._tell(at_once=True)
        for pool in self.pools.values():
            pool.close()
        self.ledger.stop()
        self.counters.close()
        self.close_admin()
        ended = maybeDeferred(self.upkeep.stop) if self.upkeep is not None else succeed(None)
        return ended.addBoth(lambda _: MultiService.stopService(self))

    def _perhaps_drained(self) -> None:
        """Once nothing is under way, close the connections; once these are gone, with all that was written, end."""
        if not self._closing and not self.site.busy:
            self._closing = True
            self.site.close()
        if self._closing and not self.site.connections:
            drained, self._drained = self._drained, None
            if drained is not None:
                drained.callback(None)

    def cut(self) -> None:
        """End a drain before its time: what still streams is cut, and so is what then does not close at once."""
        if self._drained is None:
            return
        self._closing = True
        if self._timer.active():
            self._timer.cancel()
        self._timer = self.reactor.callLater(CLOSE_SECONDS, self.site.cut)
        self.site.close()
        self._perhaps_drained()


def _open(pool: Pool) -> int:
    return pool.size


def _idle(pool: Pool) -> int:
    return len(pool.idle)


def _waiting(pool: Pool) -> int:
    return len(pool.waiting)
