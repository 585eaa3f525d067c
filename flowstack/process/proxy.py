"""The proxy in one process."""

from __future__ import annotations

import gc
import os
import random
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flowstack.addresses import Networks
from flowstack.admin.holder import Holder
from flowstack.config import Settings, Target, Upstream
from flowstack.config.ways import way_of
from flowstack.errors import ParseError
from flowstack.http.date import Date
from flowstack.http.replies import Cors
from flowstack.interfaces import Limiter
from flowstack.keys.client_secrets import ClientSecrets, secrets_path
from flowstack.keys.provider import ProviderKeys
from flowstack.ledger.access import AccessLog
from flowstack.ledger.files import journal_path
from flowstack.ledger.journal import Journal
from flowstack.ledger.ledger import RowLedger
from flowstack.ledger.open_work import OpenWork, give_back, open_path
from flowstack.ledger.shared_work import SharedOpenWork
from flowstack.limits.counters import Counters
from flowstack.limits.link import Link
from flowstack.limits.remote import RemoteLimiter
from flowstack.limits.remote_memory import RemoteMemory
from flowstack.limits.restore import open_counters
from flowstack.limits.share import settings_shared_out
from flowstack.limits.shared import SharedLimiter
from flowstack.metrics.families import (
    ATTEMPTS,
    EJECTED,
    EJECTIONS,
    FAILED_ATTEMPTS,
    IN_FLIGHT,
    LEDGER_LOST,
    LEDGER_QUEUED,
    LIMITS_WITHOUT_REDIS,
    NOT_HELD,
    POOL,
    REDIS_FAILURES,
    REDIS_UP,
    RESCUED,
    RETRY_BYTES,
    SOCKET_BYTES,
    SOCKET_ENDS,
    SOCKET_MESSAGES,
    SOCKETS,
    STREAMS,
)
from flowstack.metrics.segment import Segment
from flowstack.prices.table import load_prices
from flowstack.process.courses import SharedHealth, courses_of, labels_of
from flowstack.process.service import Part, Process
from flowstack.process.upkeep import Upkeep
from flowstack.relay.behind import Backlog
from flowstack.relay.client import RelayClient
from flowstack.relay.heard import Heard
from flowstack.relay.holding import Room
from flowstack.relay.ids import request_ids
from flowstack.relay.late import LateWork
from flowstack.relay.leaving import Leaving
from flowstack.relay.permission import Permission
from flowstack.relay.reconciler import Asked, Reconciler
from flowstack.relay.resource import Relay
from flowstack.relay.services import Services
from flowstack.relay.sideband import Calls
from flowstack.relay.tunnel import Sockets
from flowstack.server.connection import ServerConnection
from flowstack.server.proxied import ProxiedConnection, Proxies
from flowstack.server.site import Site
from flowstack.transport import uv
from flowstack.transport.resolver import Resolver
from flowstack.upstream.pool import Pool, UpstreamAgent
from flowstack.upstream.routes import Origin, Routes
from flowstack.upstream.targets import Notes

log = Logger()

CLOSE_SECONDS = 1.0
"""For connections to close in order when a drain is ended before its time; then they are cut."""


class Public(MultiService):
    """The public listeners. To stop them is to drain: new work is refused, what is in flight may end.

    :param drain: seconds for that; then it is cut.
    """

    def __init__(self, reactor: Any, site: Site, relay: Relay, drain: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._site = site
        self._relay = relay
        self._seconds = drain
        self._drained: Deferred[None] | None = None
        self._closing = False
        self._timer: Any = None

    def stopService(self) -> Deferred[None]:
        """Drain; fires when the last connection is gone, with all that was written to it."""
        self._relay.draining = True
        self._site.drain()
        super().stopService()  # type: ignore[no-untyped-call]
        drained: Deferred[None] = Deferred()
        self._drained = drained
        self._site.when_idle = self._perhaps_drained
        self._timer = self._reactor.callLater(self._seconds, self.cut)
        log.info("draining, {count} requests in flight", count=self._site.busy)
        self._perhaps_drained()
        return drained

    def _perhaps_drained(self) -> None:
        """Once nothing is in flight, close the connections; once these are gone, end."""
        if not self._closing and not self._site.busy:
            self._closing = True
            self._site.close()
        if self._closing and not self._site.connections:
            drained, self._drained = self._drained, None
            if drained is not None:
                if self._timer.active():
                    self._timer.cancel()
                drained.callback(None)

    def cut(self) -> None:
        """End a drain before its time: what still streams is cut, and so is what then does not close at once."""
        if self._drained is None:
            return
        self._closing = True
        if self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(CLOSE_SECONDS, self._site.cut)
        self._site.close()
        self._perhaps_drained()


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
        health: SharedHealth | None = None,
    ) -> None:
        alone = worker is None
        super().__init__(settings, reactor, alone, segment or Segment.create(), last_good)
        server, state = settings.server, self.state
        if alone:
            self.add_admin()
        self._upkeep = Upkeep(reactor, state, settings) if alone and state is not None else None
        if self._upkeep is not None:
            self.add(self._upkeep)
        self.ledger = RowLedger(
            self._journal(worker or 0), AccessLog(settings.log, reactor), settings.ledger.refusals_per_minute, reactor
        )
        self.pools = {
            Origin.of(upstream, target).label: self._pool(upstream, target)
            for upstream in settings.upstreams
            for target in upstream.targets or (None,)
        }
        self.provider_keys = self._read_provider_keys()
        clients = {label: RelayClient(UpstreamAgent(pool)) for label, pool in self.pools.items()}
        self.health = SharedHealth(labels_of(settings)) if health is None else health
        self.courses = courses_of(settings, clients, self.provider_keys.rings, self.health)
        if self.courses:
            self._notes = Notes(self.courses.values(), self.ticker, time.monotonic)
        self._leaving: set[Leaving] = set()
        self.streams: set[Any] = set()
        self.room = Room(server.retry_body_bytes, server.retry_memory_bytes)
        self.counters = self.open_counters(1) if counters is None else counters
        if alone and state is not None:
            give_back(open_path(state))
        prices = load_prices(settings.prices)
        self.link: Link | None = None
        limiter = self._limiter(worker or 0)
        memory = None if self.link is None else RemoteMemory(self.link)
        waiting = state and open_path(state), worker or 0, time.monotonic
        self.open_work = OpenWork(*waiting) if memory is None else SharedOpenWork(*waiting, memory)
        estimates = settings.estimates
        late = LateWork(self.open_work, limiter, self.ledger, prices, self.recorder.settled, time.time, estimates.price)
        next_id = request_ids(os.urandom, time.monotonic, time.time).__next__
        self.websockets = Sockets(
            ticker=self.ticker,
            timeouts=settings.timeouts,
            keystore=self.keystore,
            max_message=server.websocket_message_bytes,
            room=Room(server.websocket_message_bytes, server.websocket_memory_bytes),
            wall_clock=time.time,
            next_id=next_id,
            random=os.urandom,
            observe_end=partial(self.recorder.count, SOCKET_ENDS),
        )
        services = Services(
            limiter=limiter,
            ledger=self.ledger,
            clients={name: clients[label] for name, label in self._first_labels().items()},
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
            ticker=self.ticker,
            room=self.room,
            later=reactor.callLater,
            uniform=random.uniform,
            observe_failed_attempt=partial(self.recorder.count, FAILED_ATTEMPTS),
            courses=self.courses,
            on_client_gone={one.name: one for one in settings.upstreams if one.on_client_gone == "drain"} or None,
            leaving=self._leaving,
            streams=self.streams,
            next_id=next_id,
            sockets=self.websockets,
            calls=Calls(
                {one.name for one in settings.upstreams if one.meter_calls},
                clients,
                self.provider_keys.keys,
                {one.name: one.api_key_header.encode("ascii") for one in settings.upstreams},
                Heard(state and secrets_path(state)),
                os.urandom,
            ),
            secrets=ClientSecrets(state and secrets_path(state), time.time, time.monotonic, memory),
            trusted=Networks(() if server.proxy_protocol else server.trusted_proxies),
            server_timing=server.server_timing,
            docs_url=server.docs_url,
            holder=Holder(self.queries.ask),
        )
        self.relay = Relay(settings, self.keystore, services)
        self.relay.provider_keys = self.provider_keys.keys
        self.reconciler = self._make_reconciler(late) if settings.reconcile.enabled and not worker else None
        self._proxies = Proxies(Networks(server.trusted_proxies), time.monotonic)
        connection = partial(ProxiedConnection, self._proxies) if server.proxy_protocol else ServerConnection
        self.site = Site(
            self.relay, self.ticker, settings.timeouts, self.relay.refusal, server.max_head_bytes, connection
        )
        self._watch_service()
        self.add(Part(stop=self.counters.close))
        self.add(Part(self._start_ledger, self.ledger.stop))
        self.add(Part(stop=self._close_pools))
        self.add(Part(stop=self._leave))
        self.add(Part(stop=partial(self._tell, at_once=True)))
        self._public = Public(reactor, self.site, self.relay, settings.timeouts.drain)
        for fileno, description in zip(self.sockets(), server.listen, strict=True):
            self.listener(description, self.site, fileno).setServiceParent(self._public)  # type: ignore[no-untyped-call]
        self.add(self._public)
        if self.reconciler is not None:
            self.add(Part(self.reconciler.start, self.reconciler.stop))

    def _limiter(self, worker: int) -> Limiter:
        """The limiter of this machine, or of all; with the latter its link to Redis is a part of the service."""
        settings = self.settings
        shared = settings.shared
        if shared.redis is None:
            return SharedLimiter(self.counters, settings)
        name = f"{socket.gethostname()}/{worker}/{os.urandom(8).hex()}".encode("utf-8", "surrogateescape")
        try:
            link = Link(shared, self.reactor, name, time.time, time.monotonic, random.uniform)
        except ParseError as error:
            sys.exit(f"[shared] redis_password_file: {error}")
        except ImportError:
            sys.exit("[shared] redis needs a package that is not installed: pip install 'flowstack[redis]'")
        self.link = link
        mirror = SharedLimiter(open_counters(None, 1), settings, link.clock, link.clock)
        local = None
        if shared.on_failure == "local" and shared.share > 0:
            local = SharedLimiter(self.counters, settings_shared_out(settings, shared.share))
        limiter = RemoteLimiter(link, mirror, local, shared.share, settings)
        self.add(Part(link.start, link.stop))
        self.recorder.watch(REDIS_UP, lambda: int(link.up))
        self.recorder.watch(REDIS_FAILURES, lambda: link.failures)
        self.recorder.watch(LIMITS_WITHOUT_REDIS, lambda: limiter.failed)
        return limiter

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
            self.in_thread,
            uv.before_writes(reactor),
        )

    def _read_provider_keys(self) -> ProviderKeys:
        files: dict[str, Path] = {}
        for one in self.settings.upstreams:
            for target in one.targets:
                if target.api_key_file is not None:
                    files[f"{one.name}/{target.name}"] = target.api_key_file
            if one.api_key_file is not None:
                files[one.name] = one.api_key_file
        try:
            return ProviderKeys(files)
        except ParseError as error:
            sys.exit(str(error))

    def _first_labels(self) -> dict[str, str]:
        """By the upstream's name, the label of its first target."""
        return {one.name: Origin.all_of(one)[0].label for one in self.settings.upstreams}

    def _make_reconciler(self, late: LateWork) -> Reconciler:
        """What asks about open work; in one of the processes."""
        reactor, keys = self.reactor, self.provider_keys.keys
        asked: dict[str, Asked] = {}
        for one in self.settings.upstreams:
            if one.name not in keys:
                log.warn("[reconcile] the upstream {name} is not asked: it has no api_key_file", name=one.name)
                continue
            pool = self.pools[self._first_labels()[one.name]]
            key, client = partial(keys.__getitem__, one.name), HTTPClient(UpstreamAgent(pool))
            asked[one.name] = Asked(one.base_url, key, one.api_key_header.encode("ascii"), client)
        return Reconciler(
            reactor,
            self.settings.reconcile.every,
            lambda: self.in_thread(self.open_work.open),
            asked,
            late,
            time.time,
        )

    def _watch_service(self) -> None:
        watch, ledger = self.recorder.watch, self.ledger
        watch(IN_FLIGHT, lambda: self.site.busy)
        watch(STREAMS, lambda: len(self.streams))
        sockets = self.websockets
        watch(SOCKETS, lambda: len(sockets.current))
        for from_client, name in ((True, "client"), (False, "upstream")):
            watch(SOCKET_MESSAGES, partial(sockets.messages, from_client), name)
            watch(SOCKET_BYTES, partial(sockets.payload, from_client), name)
        watch(LEDGER_LOST, lambda: ledger.lost)
        watch(LEDGER_QUEUED, lambda: ledger.waiting)
        for name, pool in self.pools.items():
            watch(POOL, partial(_open, pool), name, "open")
            watch(POOL, partial(_idle, pool), name, "idle")
            watch(POOL, partial(_waiting, pool), name, "waiting")
        if self._upkeep is not None:
            self._upkeep.watch(watch)
        self._watch_courses()

    def _watch_courses(self) -> None:
        watch = self.recorder.watch
        if self.courses:
            watch(RETRY_BYTES, lambda: self.room.held)
            watch(NOT_HELD, lambda: self.room.refused)
        for name, course in self.courses.items():
            watch(RESCUED, partial(getattr, course, "rescued"), name)
            for target in course.targets:
                label = target.origin.label
                watch(EJECTED, partial(getattr, target.health, "down"), label)
                watch(ATTEMPTS, partial(getattr, target.health, "requests"), label)
                watch(EJECTIONS, partial(getattr, target, "ejections"), label)

    def segments(self) -> Iterable[Segment]:
        """Its own."""
        return (self.recorder.segment,)

    def processes(self) -> Mapping[str, int]:
        """This one."""
        return {"flowstack": os.getpid()}

    def _pool(self, upstream: Upstream, target: Target | None) -> Pool:
        origin = Origin.of(upstream, target)
        limit = self.settings.timeouts.connect + 30.0  # the pool's own limit comes first, and says what it was
        way = way_of(upstream, target)
        endpoint = uv.client_endpoint(self.reactor, origin.host, origin.port, origin.tls, way, limit)
        return Pool(origin, upstream, endpoint, self.ticker, self.settings.timeouts, time.monotonic)

    def publish(self) -> None:
        """Show the numbers as of now, and say in the log what waited for its time; called once a second."""
        super().publish()
        self._tell()

    def _tell(self, at_once: bool = False) -> None:
        self._proxies.tell(at_once)
        self.relay.unauthenticated.tell(at_once)

    def sockets(self) -> Iterable[int | None]:
        """Descriptors to listen on, in the order of ``listen``; None for one that is yet to be bound."""
        return [None] * len(self.settings.server.listen)

    def _start_ledger(self) -> None:
        try:
            self.ledger.start()
        except OSError as error:
            sys.exit(f"[log] requests: {error}")

    def _leave(self) -> None:
        """What is read on for its usage alone ends with the process, and has its row."""
        for answer in list(self._leaving):
            answer.expire()

    def _close_pools(self) -> None:
        for pool in self.pools.values():
            pool.close()

    def started(self) -> None:
        """Put the resolver in place; say that requests may come as soon as the reactor runs."""
        self.reactor.installNameResolver(Resolver(self.reactor, self.settings.timeouts.connect))
        gc.collect()
        gc.freeze()  # what the start made is not looked at again by the garbage collector
        self.reactor.callWhenRunning(self.serving)

    def serving(self) -> None:
        """The reactor runs."""
        self.say_ready([url for listener in self._public for url in listener.urls()], lambda: True)

    def reload(self) -> Deferred[Any]:
        """Reload the keystore, TLS certificates, provider keys and the token; open the request log again."""
        self.reload_files()
        self.reload_token()
        return self.reload_keys().addCallback(self.count_reload)

    def reload_files(self) -> None:
        """Reload what each process that serves reads, besides the keystore."""
        self.ledger.reopen()
        self.provider_keys.reload()
        if self.link is not None:
            try:
                self.link.reload()
            except ParseError as error:
                log.error("the password of Redis was not reloaded, the old one stays in use: {fault}", fault=str(error))
        for label, ring in self.provider_keys.rings.items():
            if len(ring.keys) > 1 and label.partition("/")[0] not in self.courses:
                log.warn("the {count} provider keys of {place} are used in turn from the next start on; until then the "
                         "first is used alone", count=len(ring.keys), place=label)  # fmt: skip
        for fault in uv.reload_certificates():
            log.error("a TLS certificate was not reloaded, the old one stays in use: {fault}", fault=fault)
        for fault in uv.reload_ways():
            log.error("the files of a way to an upstream were not reloaded, the old stay in use: {fault}", fault=fault)

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        return "draining" if self.lifecycle.draining else None

    def cut(self) -> None:
        """End a drain before its time, if there is one."""
        self._public.cut()


def _open(pool: Pool) -> int:
    return pool.size


def _idle(pool: Pool) -> int:
    return len(pool.idle)


def _waiting(pool: Pool) -> int:
    return len(pool.waiting)
