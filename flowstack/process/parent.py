"""The proxy in several processes: the workers, and their parent, which serves no request itself."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.config import Settings
from flowstack.ledger.open_work import give_back, open_path
from flowstack.limits.counters import Counters, CountersError
from flowstack.metrics.families import RESTARTS, WORKERS
from flowstack.metrics.recorder import clear_gauges
from flowstack.metrics.segment import Segment
from flowstack.process.courses import SharedHealth, labels_of
from flowstack.process.listener import Sockets
from flowstack.process.proxy import ProxyService
from flowstack.process.service import Part, Process
from flowstack.process.spawn import child_environ, worker_command
from flowstack.process.supervisor import WORDS, ChildSpec, Supervisor, backoff
from flowstack.process.upkeep import Upkeep
from flowstack.transport import uv

log = Logger()

METRICS, LIMITS, HEALTH = 4, 5, 6
"""A worker's descriptors for the memory in which it alone counts, for that in which all hold the limits, and for that
in which all know the targets' health."""

FIRST_SOCKET = 7
"""A worker's sockets begin here."""

HEARTBEAT = 30.0
"""Seconds without a word after which a worker is taken for stuck, and killed."""

KILL_TIME = 10.0
"""Seconds beyond ``drain`` in which workers may end before they are killed."""


class ParentService(Process):
    """The parent of several workers. It checks what they will need, so that a fault ends the start here.

    :param count: workers.
    :param inherit: whether workers share standard output; otherwise their lines go to this process's log.
    """

    def __init__(self, settings: Settings, reactor: Any, count: int, inherit: bool) -> None:
        super().__init__(settings, reactor, True, Segment.create())
        self.add_admin()
        self._upkeep = Upkeep(reactor, self.state, settings) if self.state is not None else None
        if self._upkeep is not None:
            self.add(self._upkeep)
        self.counters = self.open_counters(count)
        self.add(Part(stop=self.counters.close))
        if self.state is not None:
            give_back(open_path(self.state))
        self._segments = [Segment.create() for _ in range(count)]
        self.health = SharedHealth(labels_of(settings))
        self._sockets = Sockets(settings.server.listen, count)
        self.listeners.append(self._sockets)
        command = worker_command(reactor, uv.uv_loop(reactor) is not None)
        environ = child_environ(os.environ)
        specs = [
            ChildSpec(
                name=f"worker {index}",
                command=[*command, str(index)],
                environ=environ,
                descriptors=partial(self._descriptors_of, index, inherit),
                greeting=self._greeting,
                heartbeat=HEARTBEAT,
                backoff=backoff(0.1, 10.0),
                steady=30.0,
            )
            for index in range(count)
        ]
        all_ready = partial(reactor.callWhenRunning, self._serving)
        self._workers = Supervisor(reactor, specs, settings.timeouts.drain + KILL_TIME, all_ready, self._gone)
        self.add(self._workers)
        self.add(self._sockets)
        self._watch_workers()

    def _descriptors_of(self, index: int, inherit: bool) -> dict[int, int]:
        output = {1: 1, 2: 2} if inherit else {}
        memory = {
            METRICS: self._segments[index].fileno(),
            LIMITS: self.counters.fileno(),
            HEALTH: self.health.fileno(),
        }
        return output | memory | dict(enumerate(self._sockets.of(index), FIRST_SOCKET))

    def _greeting(self) -> bytes:
        # The settings go this way, since a config file that was edited meanwhile must not reach the one worker that is
        # started again.
        return pickle.dumps((self.settings, self.keystore.text))

    def _watch_workers(self) -> None:
        watch, workers = self.recorder.watch, self._workers
        for state in ("ready", "starting", "gone"):
            watch(WORKERS, partial(_in_state, workers, state), state)
        watch(RESTARTS, lambda: workers.restarts)
        if self._upkeep is not None:
            self._upkeep.watch(watch)

    def _gone(self, index: int) -> None:
        """A worker's process is gone, and with it what it had in flight."""
        clear_gauges(self._segments[index])
        self.counters.clear(index)
        if self.state is not None:
            give_back(open_path(self.state), index)

    def segments(self) -> Iterable[Segment]:
        """Its own, and each worker's."""
        return (self.recorder.segment, *self._segments)

    def processes(self) -> Mapping[str, int]:
        """Itself and its workers."""
        named = {child.spec.name: child.pid for child in self._workers.children}
        return {"parent": os.getpid()} | {name: pid for name, pid in named.items() if pid is not None}

    def started(self) -> None:
        """Wait for the first worker: what ails all of them must end the start, which it can only here.

        :raises SystemExit: a worker ended before any was ready.
        """
        while not (self._workers.ready or self._workers.failed or self.lifecycle.stopping):
            self.reactor.iterate(0.02)
        if self._workers.failed:
            self._workers.signal(signal.SIGTERM)
            sys.exit(self._workers.failed)

    def _serving(self) -> None:
        self.say_ready(self._sockets.urls(), lambda: self._workers.ready)

    def reload(self) -> Deferred[Any]:
        """Have each worker reload; then read the keystore here too, which writes down what became of it."""
        begun = time.time()
        self.reload_token()
        reloaded = self._workers.reload()
        return reloaded.addCallback(lambda _: self.reload_keys(begun)).addCallback(self.count_reload)

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        if self.lifecycle.draining:
            return "draining"
        return None if self._workers.ready else "no worker is ready"

    def cut(self) -> None:
        """End the workers' drains."""
        self._workers.force_stop()


def _in_state(workers: Supervisor, state: str) -> int:
    return sum(child.state == state for child in workers.children)


class WorkerService(ProxyService):
    """The proxy in one of several processes: on sockets that the parent bound; it reports its state to the parent."""

    waits_before_drain = False  # the parent waits for all its workers

    def __init__(self, settings: Settings, last_good: bytes, reactor: Any, index: int) -> None:
        try:
            counters = Counters.attach(LIMITS, index)
        except CountersError as error:
            sys.exit(str(error))
        health = SharedHealth(labels_of(settings), HEALTH)
        super().__init__(settings, reactor, last_good, index, Segment.attach(METRICS), counters, health)
        self._link = ParentLink(reactor, self._orphaned)

    def sockets(self) -> Iterable[int]:
        """The parent's."""
        return range(FIRST_SOCKET, FIRST_SOCKET + len(self.settings.server.listen))

    def serving(self) -> None:
        """The reactor runs: tell the parent."""
        self._link.start()
        self._link.say("ready")

    def reload(self) -> Deferred[Any]:
        """Reload, and tell the parent."""

        def report(result: Any) -> Failure | None:
            self._link.say("reloaded")
            return result if isinstance(result, Failure) else None

        self.reload_files()
        return self.reload_keys().addBoth(report)

    def _orphaned(self) -> None:
        if not self.lifecycle.draining:
            log.error("the parent process is gone: this worker drains and exits")
            self.lifecycle.stop()


def read_greeting() -> tuple[Settings, bytes]:
    """In a worker, once and before all else: what the parent has for it."""
    try:
        with open(0, "rb", buffering=0, closefd=False) as pipe:
            settings, last_good = pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):
        sys.exit("the parent process was gone before it had said what to serve")
    return settings, last_good


class ParentLink:
    """A worker's side of the two pipes.

    :param gone: called when the parent is gone.
    """

    def __init__(self, reactor: Any, gone: Callable[[], None]) -> None:
        self._reactor = reactor
        self._gone = gone
        self._beat = LoopingCall(self.say, "alive")
        self._beat.clock = reactor

    def start(self) -> None:
        """Begin to say ``alive``, and to look out for the parent's end."""
        os.set_blocking(WORDS, False)
        self._reactor.addReader(self)
        self._beat.start(1.0)

    def say(self, word: str) -> None:
        """Write a word; where the parent is gone or stuck, nothing."""
        with suppress(OSError):
            os.write(WORDS, word.encode("ascii") + b"\n")

    # IReadDescriptor, for the pipe that ends with the parent.

    def fileno(self) -> int:
        """The pipe: standard input."""
        return 0

    def doRead(self) -> Exception:  # noqa: N802
        """It ended, since nothing more is ever written to it."""
        return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        """It ended. The epoll reactor says so without :meth:`doRead`."""
        self._gone()

    def logPrefix(self) -> str:
        """Of ``IReadDescriptor``."""
        return "parent"
