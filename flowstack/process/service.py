"""What the proxy in one process and the parent of several have in common."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.resource import IResource

from flowstack.admin.health import admin_resource
from flowstack.admin.metrics import Metrics
from flowstack.admin.site import AdminSite
from flowstack.admin.token import Token
from flowstack.config import Settings
from flowstack.config.endpoints import kind_of
from flowstack.errors import ParseError
from flowstack.keystore.file import FileKeystore, KeystoreError, ReloadResult
from flowstack.limits.counters import Counters, CountersError
from flowstack.limits.restore import open_counters
from flowstack.metrics.families import KEYSTORE_AGE, KEYSTORE_GENERATION, KEYSTORE_KEYS, KEYSTORE_RELOADS
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from flowstack.process.lifecycle import Lifecycle, url_of
from flowstack.process.sockets import Bound, bind_sockets
from flowstack.process.systemd import Systemd
from flowstack.wire import uv
from flowstack.wire.descriptors import Descriptors
from flowstack.wire.kernel import keep_alive
from flowstack.wire.server_connection import ServerConnection
from flowstack.wire.site import Site
from flowstack.wire.ticker import Ticker

log = Logger()

PUBLISH_SECONDS = 1.0
"""How old the numbers are, at most, that a process shows of its present state."""


class StartFailed(Exception):
    """A process in the background cannot serve; the text says why."""


class Process(MultiService, ABC):
    """What the proxy in one process and the parent of several have in common: keystore, admin listener, signals.

    :param reporting: whether this process says in ``reload.json`` what became of a reload.
    :param segment: in which it counts.
    :param last_good: the keystore's text as another process of this service has it, for while the file is bad.
    :raises SystemExit: the keystore cannot be used; the text says why.
    """

    def __init__(
        self, settings: Settings, reactor: Any, reporting: bool, segment: Segment, last_good: bytes | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made_by = os.getpid()
        self.settings = settings
        self.reactor = reactor
        self.ticker = Ticker(reactor, Ticker.interval_for(settings.timeouts))
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
        self._publish = LoopingCall(self.publish)
        self._publish.clock = reactor
        self.descriptors = Descriptors(reactor)
        self.systemd = Systemd(os.environ, reactor)
        self.lifecycle = Lifecycle(reactor, self.systemd, self.reload, self.hurry)
        self._token: Token | None = None
        self._admin_site: AdminSite | None = None
        self._admin_ports: list[IListeningPort] = []
        self._pre_drain: Deferred[None] | None = None  # fires when the drain is to begin
        self._bound: list[Bound] = []
        self._unix: dict[IListeningPort, Bound] = {}  # what of them this process itself listens on

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

    def open_counters(self, workers: int) -> Counters:
        """The limits' counters, for so many processes.

        :raises SystemExit: they cannot be kept; the text says why.
        """
        try:
            return open_counters(self.state and self.state / "limits", workers)
        except CountersError as error:
            sys.exit(str(error))

    def reload_keys(self, begun: float | None = None) -> Deferred[ReloadResult]:
        """Read the keystore anew.

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
        """Read the admin listener's token anew."""
        if self._token is not None:
            self._token.reload()

    def _site(
        self, resource: IResource, refuse: Any, connection: Callable[[Site], ServerConnection] = ServerConnection
    ) -> Site:
        server = self.settings.server
        return Site(resource, self.ticker, self.settings.timeouts, refuse, server.max_head_bytes, connection)

    def privilegedStartService(self) -> None:
        """Bind. A failure ends the start with status 1.

        :raises StartFailed: the same, in a process that went into the background.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        with self.starting():
            self.bind()
            if self.settings.server.admin:
                self._admin_site = site = self._make_admin()
                self._admin_ports.append(self.listen(self.settings.server.admin, site))

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Make of the start's end what twistd tells the process that waits in the foreground, if there is one."""
        try:
            yield
        except SystemExit as end:
            for bound in self._bound:
                bound.release()
            if os.getpid() != self._made_by:
                raise StartFailed(str(end.code)) from None
            raise

    def _make_admin(self) -> AdminSite:
        path = self.settings.admin.token_file
        try:
            self._token = None if path is None else Token(path)
        except ParseError as error:
            sys.exit(str(error))
        metrics = Metrics(self.reactor, self.segments, self.processes, self.recorder.publish)
        admin = admin_resource(self.unready, {b"metrics": metrics}, self._token, self.settings.admin.hosts)
        return AdminSite(admin, self.reactor)

    def startService(self) -> None:
        """Serve."""
        super().startService()  # type: ignore[no-untyped-call]
        self.ticker.start()
        self.descriptors.start()
        self._publish.start(PUBLISH_SECONDS)
        self.keystore.announce()  # by the process that serves, which is another than that which loaded it if it forked
        self.reactor.callWhenRunning(self.lifecycle.serve)

    def listen(self, description: str, site: IProtocolFactory, fileno: int | None = None) -> IListeningPort:
        """Listen on what an endpoint string names, at once.

        :raises SystemExit: that cannot be done; the text says why.
        """
        results: list[Any] = []
        bound = None
        try:
            if fileno is None and description.startswith("unix:"):
                bound = bind_sockets(uv.server_endpoint, description, 1)
                self._bound.append(bound)
                fileno = bound.sockets.pop().detach()
            seconds = self.settings.timeouts.request_head + self.ticker.interval  # late like all times, never early
            uv.server_endpoint(self.reactor, description, fileno, seconds).listen(site).addBoth(results.append)
        except Exception as error:
            results.append(error)
        if not results or not IListeningPort.providedBy(results[0]):
            cannot_listen(description, results[0] if results else "it did not say why")
        port: Any = results[0]
        keep_alive(port.socket, self.settings.timeouts.tcp_keepalive)
        self.descriptors.guard(port)
        if bound is not None:
            self._unix[port] = bound
        return cast(IListeningPort, port)

    def unlisten(self, port: IListeningPort) -> None:
        """Accept no more there; what was accepted lives on."""
        port.stopListening()
        if port in self._unix:
            self._unix[port].release()

    def close_admin(self) -> None:
        """The last thing to go: it says that the process drains."""
        if self._admin_site is not None:
            self._admin_site.close()
        for port in self._admin_ports:
            self.unlisten(port)
        self.ticker.stop()
        self.descriptors.stop()
        if self._publish.running:
            self._publish.stop()
        self.systemd.unwatch()

    def admin_urls(self) -> list[str]:
        """Where the admin listener can be reached."""
        return [url_of(port.getHost(), _secure(self.settings.server.admin)) for port in self._admin_ports]

    def urls(self, addresses: Iterable[Any]) -> list[str]:
        """Where the public listeners can be reached, given the address of each."""
        listen = self.settings.server.listen
        return [url_of(address, _secure(description)) for description, address in zip(listen, addresses, strict=True)]

    @abstractmethod
    def segments(self) -> Iterable[Segment]:
        """In which the processes of this service count."""

    @abstractmethod
    def processes(self) -> Mapping[str, int]:
        """The id of each process of this service, by its name."""

    @abstractmethod
    def bind(self) -> None:
        """Bind the public listeners."""

    def stopService(self) -> Deferred[Any]:
        """Serve on for ``pre_drain`` seconds, not ready any more; then drain. Fires when the process may end."""
        self.lifecycle.drain()
        seconds = self.pre_drain
        if not seconds:
            return self.drain()
        log.info("not ready any more; new requests are served for {seconds:g} s yet (pre_drain)", seconds=seconds)
        begin: Deferred[None] = Deferred()
        self._pre_drain = begin
        timer = self.reactor.callLater(seconds, self._begin_drain)
        begin.addCallback(lambda _: timer.cancel() if timer.active() else None)
        return begin.addCallback(lambda _: self.drain())

    def _begin_drain(self) -> None:
        begin, self._pre_drain = self._pre_drain, None
        if begin is not None:
            begin.callback(None)

    def hurry(self) -> None:
        """End at once what is left of the way to the end."""
        self._begin_drain()
        self.cut()

    @property
    def pre_drain(self) -> float:
        """Seconds between SIGTERM and the drain."""
        return self.settings.timeouts.pre_drain

    @abstractmethod
    def drain(self) -> Deferred[Any]:
        """Take no new work, let what is in flight end, up to ``drain`` seconds; fires when the process may end."""

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


def _secure(description: str | None) -> bool:
    return description is not None and kind_of(description) == "ssl"


def cannot_listen(description: str, fault: Any) -> NoReturn:
    """End the start, since an endpoint cannot be listened on.

    :param fault: an exception or a failure.
    """
    why = fault.getErrorMessage() if hasattr(fault, "getErrorMessage") else str(fault) or type(fault).__name__
    sys.exit(f"cannot listen on {description}: {why}")
