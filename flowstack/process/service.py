"""What every process that serves, or has workers that do, consists of."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.internet import TimerService
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from flowstack.admin.access import Access, access_of
from flowstack.admin.health import admin_resource
from flowstack.admin.metrics import Metrics
from flowstack.admin.site import AdminSite
from flowstack.config import Settings, node_of
from flowstack.errors import ParseError
from flowstack.keys.store import FileKeystore, KeystoreError, ReloadResult
from flowstack.ledger.row import name_node
from flowstack.limits.counters import Counters, CountersError
from flowstack.limits.restore import open_counters
from flowstack.metrics.families import (
    KEYSTORE_AGE,
    KEYSTORE_GENERATION,
    KEYSTORE_HASH,
    KEYSTORE_KEYS,
    KEYSTORE_RELOADS,
)
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from flowstack.process.courses import SharedHealth
from flowstack.process.lifecycle import Lifecycle
from flowstack.process.listener import Listener, Sockets
from flowstack.process.queries import Queries
from flowstack.process.systemd import Systemd
from flowstack.process.watch import Watch
from flowstack.transport.descriptors import Descriptors
from flowstack.transport.kernel import keep_alive
from flowstack.transport.ticker import Ticker
from flowstack.upstream.routes import Origin

log = Logger()

T = TypeVar("T")

PUBLISH_SECONDS = 1.0
"""How old the numbers are, at most, that a process shows of its present state."""


class StartFailed(Exception):
    """A process in the background cannot serve; the text says why."""


class Part(Service):
    """A service of two calls.

    :param start: starts it.
    :param stop: stops it; may return a Deferred.
    """

    def __init__(self, start: Callable[[], Any] = lambda: None, stop: Callable[[], Any] = lambda: None) -> None:
        self._start = start
        self._stop = stop

    def startService(self) -> None:
        """Start it."""
        super().startService()  # type: ignore[no-untyped-call]
        self._start()

    def stopService(self) -> Any:
        """Stop it."""
        super().stopService()  # type: ignore[no-untyped-call]
        return self._stop()


class Process(MultiService, ABC):
    """What the proxy in one process and the parent of several have in common: keystore, admin listener, signals.

    All else is its children. They start in their order and stop in the opposite one, each when the one before is gone:
    first what takes requests, which drains, last the admin listener, which says so meanwhile. A fault of a start is a
    SystemExit of :meth:`privilegedStartService` or :meth:`startService`, with which twistd ends with status 1: once the
    reactor runs, twistd has no status but 0.

    :param reporting: whether this process says in ``reload.json`` what became of a reload.
    :param segment: in which it counts.
    :param last_good: the keystore's text as another process of this service has it, for while the file is bad.
    :raises SystemExit: the keystore cannot be used; the text says why.
    """

    health: SharedHealth
    """What is known of the upstreams' targets."""

    waits_before_drain = True
    """Whether ``pre_drain`` is this process's to wait."""

    def __init__(
        self, settings: Settings, reactor: Any, reporting: bool, segment: Segment, last_good: bytes | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made_by = os.getpid()
        self.settings = settings
        name_node(node_of(settings))
        self.reactor = reactor
        self.ticker = Ticker(reactor, Ticker.interval_for(settings.timeouts))
        self._watch_of_keys: Watch | None = None
        if settings.server.watch_keys and reporting:
            # Before the file is read: what changes it from now on is seen.
            self._watch_of_keys = Watch(settings.server.keys, self._reload_changed, self.in_thread, reactor)
        self.state = state = settings.server.state
        if state is not None and not state.is_dir():
            _make_state(state)
        self.keystore = FileKeystore(settings.server.keys, state if reporting else None, time.time, reactor)
        try:
            self.keystore.load(last_good)
        except KeystoreError as error:
            sys.exit(str(error))
        self._keys_read_at = time.time()
        self.recorder = Recorder(segment)
        self._watch(reporting)
        self._descriptors = Descriptors(reactor)
        self.systemd = Systemd(os.environ, reactor)
        self.lifecycle = Lifecycle(reactor, self.systemd, self._begin_reload, self.force_stop)
        self.listeners: list[Listener | Sockets] = []
        self._access: Access | None = None
        self._admin: Listener | None = None
        self._urls: list[str] = []
        self.queries = Queries(reactor, settings)
        self._pre_drain: Deferred[None] | None = None  # fires when the drain is to begin
        self.add(Part(stop=self.systemd.unwatch))
        self.add(Part(self.ticker.start, self.ticker.stop))
        self.add(Part(self._descriptors.start, self._descriptors.stop))
        self.add(self.queries)
        publish = TimerService(PUBLISH_SECONDS, self.publish)
        publish.clock = reactor
        self.add(publish)
        if self._watch_of_keys is not None:
            self.add(self._watch_of_keys)

    def add(self, child: Service) -> None:
        """Have a child that starts after all others, and stops before them."""
        child.setServiceParent(self)

    def add_admin(self) -> None:
        """Have the admin listener, if there is to be one."""
        if not self.settings.server.admin:
            return
        # Only here: workers have no such listener, and would hold what it is made of for nothing.
        from flowstack.admin.api import House, page_of
        from flowstack.admin.live import Live

        try:
            self._access = access_of(self.settings.admin, time.monotonic)
        except ParseError as error:
            sys.exit(str(error))
        upstreams = {one.name: [place.label for place in Origin.all_of(one)] for one in self.settings.upstreams}
        live = Live(self.segments, lambda: self.keystore.last, upstreams, lambda: self._urls, time.monotonic)
        metrics = Metrics(self.reactor, self.segments, self.processes, self.recorder.publish)
        house = House(self.queries.ask, live, self._reload_for_page)
        page = page_of(self._access, house)
        root = admin_resource(
            self.unready, {b"metrics": metrics}, self._access, page, self.settings.admin.hosts, self.detail
        )
        site = AdminSite(root, self.reactor)
        self._admin = self.listener(self.settings.server.admin, site)
        self.add(Part(stop=site.close))
        self.add(self._admin)

    def _reload_for_page(self) -> Deferred[dict[str, Any]]:
        """Reload, as SIGHUP does; fires with what came of the keystore."""

        def outcome(_: None) -> dict[str, Any]:
            last = self.keystore.last
            assert last is not None
            faults = "\n".join(map(str, last.faults))
            message = "the service is ending, and reloads nothing" if self.lifecycle.draining else faults
            return {"ok": not message, "generation": last.generation, "keys": last.keys, "message": message}

        return self.lifecycle.reload().addCallback(outcome)

    def in_thread(self, function: Callable[[], T]) -> Deferred[T]:
        """Call a function that may block."""
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function)

    def _begin_reload(self) -> Deferred[Any]:
        if self._watch_of_keys is not None:
            self._watch_of_keys.taken()
        return self.reload()

    def _reload_changed(self) -> Deferred[Any]:
        return self.lifecycle.reload()

    def detail(self) -> Iterable[str]:
        """Which keys are in force; and what is wrong, but does not keep new requests away: the targets that count as
        down."""
        keystore = self.keystore
        yield f"keystore sha256:{keystore.sha256}, {keystore.count} keys, generation {keystore.generation}"
        for label in self.health.down():
            yield f"target {label}: down"

    def publish(self) -> None:
        """Show the numbers as of now; called once a second."""
        self.recorder.publish()

    def _watch(self, reporting: bool) -> None:
        """Show the keystore in the metrics; its generation and reloads in one process only, or each would count."""
        keystore, watch = self.keystore, self.recorder.watch
        watch(KEYSTORE_AGE, lambda: time.time() - self._keys_read_at)
        if reporting:
            watch(KEYSTORE_GENERATION, lambda: keystore.generation)
            watch(KEYSTORE_KEYS, lambda: keystore.count)
            watch(KEYSTORE_HASH, lambda: int(keystore.sha256[:12], 16))

    def open_counters(self, workers: int) -> Counters:
        """The limits' counters, shared by this many processes.

        :raises SystemExit: they cannot be kept; the text says why.
        """
        try:
            return open_counters(self.state and self.state / "limits", workers)
        except CountersError as error:
            sys.exit(str(error))

    def reload_keys(self, begun: float | None = None) -> Deferred[ReloadResult]:
        """Reload the keystore.

        :param begun: UTC Unix seconds, when the service began to reload.
        """

        def read(result: ReloadResult) -> ReloadResult:
            if result.ok:
                self._keys_read_at = result.time
            return result

        return self.keystore.reload(begun).addCallback(read)

    def count_reload(self, result: ReloadResult) -> None:
        """Count a reload of the service in the metrics; its one process that speaks for all does."""
        self.recorder.count(KEYSTORE_RELOADS, "ok" if result.ok else "failed")

    def reload_token(self) -> None:
        """Reload the admin listener's tokens."""
        if self._access is not None:
            self._access.reload()

    def listener(self, description: str, factory: IProtocolFactory, fileno: int | None = None) -> Listener:
        """A listener.

        :param fileno: a socket that the parent bound for it.
        """
        seconds = self.settings.timeouts.request_head + self.ticker.interval  # late like all times, never early
        made = Listener(self.reactor, description, factory, seconds, self._opened, fileno)
        self.listeners.append(made)
        return made

    def _opened(self, port: Any) -> None:
        keep_alive(port.socket, self.settings.timeouts.tcp_keepalive)
        self._descriptors.guard(port)

    def privilegedStartService(self) -> None:
        """Bind.

        :raises SystemExit: that cannot be done; the text says why.
        :raises StartFailed: the same, in a process that went into the background.
        """
        with self._starting():
            super().privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Serve.

        :raises SystemExit: as above.
        :raises StartFailed: as above.
        """
        self.keystore.announce()  # by the process that serves, which is another than that which loaded it if it forked
        self.lifecycle.start()
        with self._starting():
            super().startService()  # type: ignore[no-untyped-call]
            self.started()

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Make of the start's end what twistd tells the process that waits in the foreground, if there is one."""
        try:
            yield
        except SystemExit as end:
            for listener in self.listeners:
                listener.release()
            if os.getpid() != self._made_by:
                log.error("{why}", why=end.code)
                raise StartFailed(str(end.code)) from None
            raise

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Serve on for ``pre_drain`` seconds, not ready any more; then stop the children. Fires when all have."""
        self.lifecycle.drain()
        seconds = self.settings.timeouts.pre_drain
        if seconds and self.waits_before_drain:
            log.info(
                "not ready any more; new requests are served for another {seconds:g} s (pre_drain)", seconds=seconds
            )
            begin: Deferred[None] = Deferred()
            self._pre_drain = begin
            timer = self.reactor.callLater(seconds, self._begin_drain)
            yield begin
            if timer.active():
                timer.cancel()
        for child in reversed(list(self)):
            stopped = maybeDeferred(child.disownServiceParent)
            yield stopped.addErrback(lambda failure: log.failure("a part of the service did not stop cleanly", failure))
        yield super().stopService()  # type: ignore[no-untyped-call]

    def _begin_drain(self) -> None:
        begin, self._pre_drain = self._pre_drain, None
        if begin is not None:
            begin.callback(None)

    def force_stop(self) -> None:
        """Begin the drain now if it has not begun, and cut it."""
        self._begin_drain()
        self.cut()

    def say_ready(self, public: Iterable[str], healthy: Callable[[], bool]) -> None:
        """Say that requests may come.

        :param public: where to.
        :param healthy: whether systemd's watchdog is to be answered.
        """
        self._urls = list(public)
        self.lifecycle.ready(self._urls, self._admin.urls() if self._admin is not None else ())
        self.systemd.watch(healthy)

    @abstractmethod
    def started(self) -> None:
        """All children have started; the reactor does not run yet.

        :raises SystemExit: the start has failed; the text says why.
        """

    @abstractmethod
    def segments(self) -> Iterable[Segment]:
        """In which the processes of this service count."""

    @abstractmethod
    def processes(self) -> Mapping[str, int]:
        """The id of each process of this service, by its name."""

    @abstractmethod
    def reload(self) -> Deferred[Any]:
        """Carry out a SIGHUP."""

    @abstractmethod
    def cut(self) -> None:
        """End a drain before its time, if there is one."""

    @abstractmethod
    def unready(self) -> str | None:
        """Why no new request should come here, or None."""


def _make_state(state: Path) -> None:
    """Make the state directory, for this user alone.

    :raises SystemExit: it cannot be made; the text says why.
    """
    try:
        state.mkdir(0o700)
    except OSError as error:
        sys.exit(
            f"[server] state: {state} is no directory, and cannot be made one: {error.strerror}. Create it, writable "
            "for the service's user."
        )
    log.info("made the state directory {state}, for this user alone", state=str(state))
