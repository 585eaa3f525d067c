"""The proxy in several processes: the workers, and their parent."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.config import Settings
from flowstack.ledger.open_work import give_back, open_path
from flowstack.limits.counters import Counters, CountersError
from flowstack.metrics.families import LEDGER_LAG, RESTARTS, WORKERS
from flowstack.metrics.recorder import clear_gauges
from flowstack.metrics.segment import Segment
from flowstack.process.proxy import ProxyService
from flowstack.process.service import Process, cannot_listen
from flowstack.process.sockets import Bound, bind_sockets
from flowstack.process.spawn import worker_command, worker_environ
from flowstack.process.supervisor import FIRST_SOCKET, LIMITS, METRICS, ParentLink, Workers
from flowstack.process.upkeep import Upkeep
from flowstack.wire import uv

log = Logger()


class WorkerService(ProxyService):
    """The proxy in one of several processes: on sockets that the parent bound, with the parent told of its state."""

    def __init__(self, settings: Settings, last_good: bytes, reactor: Any, index: int) -> None:
        try:
            counters = Counters.attach(LIMITS, index)
        except CountersError as error:
            sys.exit(str(error))
        super().__init__(settings, reactor, last_good, index, Segment.attach(METRICS), counters)
        self._link = ParentLink(reactor, self._orphaned)

    def privilegedStartService(self) -> None:
        """Listen on the parent's sockets; the admin listener is the parent's."""
        MultiService.privilegedStartService(self)
        self.bind()

    def bind(self) -> None:
        """Listen on each of the parent's sockets."""
        for fileno, description in enumerate(self.settings.server.listen, FIRST_SOCKET):
            self._ports.append(self.listen(description, self.site, fileno))

    @property
    def pre_drain(self) -> float:
        """None: the parent waits for all its workers."""
        return 0.0

    def serving(self) -> None:
        """The reactor runs: tell the parent."""
        self._link.start()
        self._link.say("ready")

    def reload(self) -> Deferred[Any]:
        """Reload, and tell the parent."""

        def told(result: Any) -> Failure | None:
            self._link.say("reloaded")
            return result if isinstance(result, Failure) else None

        self.reload_files()
        return self.reload_keys().addBoth(told)

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
        super().__init__(settings, reactor, True, Segment.create())
        self.counters = self.open_counters(count)
        if self.state is not None:
            give_back(open_path(self.state))
        self._segments = [Segment.create() for _ in range(count)]
        self.upkeep = Upkeep(reactor, self.state, settings.ledger) if self.state is not None else None
        self._count = count
        self._inherit = inherit
        self._workers: Workers | None = None
        self._public: list[Bound] = []
        self._failed = False

    def bind(self) -> None:
        """Bind a socket for each worker and listener."""
        for description in self.settings.server.listen:
            try:
                bound = bind_sockets(uv.server_endpoint, description, self._count)
            except Exception as error:
                cannot_listen(description, error)
            self._bound.append(bound)
            self._public.append(bound)
        self._workers = Workers(
            self.reactor,
            self._count,
            worker_command(self.reactor, uv.uv_loop(self.reactor) is not None),
            worker_environ(os.environ),
            lambda: (self.settings, self.keystore.text),
            [bound.sockets for bound in self._public],
            self._inherit,
            self._serving,
            self._hopeless,
            self._gone,
            lambda index: (self._segments[index].fileno(), self.counters.fileno()),
        )
        self._watch_workers(self._workers)

    def _watch_workers(self, workers: Workers) -> None:
        watch = self.recorder.watch
        for state in ("ready", "starting", "gone"):
            watch(WORKERS, partial(_in_state, workers, state), state)
        watch(RESTARTS, lambda: workers.restarts)
        if self.upkeep is not None:
            watch(LEDGER_LAG, self.upkeep.lag)

    def _gone(self, index: int) -> None:
        """A worker's process is gone, and with it what it had under way."""
        clear_gauges(self._segments[index])
        self.counters.clear(index)
        if self.state is not None:
            give_back(open_path(self.state), index)

    def segments(self) -> Iterable[Segment]:
        """Its own, and each worker's."""
        return (self.recorder.segment, *self._segments)

    def processes(self) -> Mapping[str, int]:
        """Itself and its workers."""
        workers = self._workers.workers if self._workers is not None else []
        named = {f"worker {worker.index}": worker.pid for worker in workers}
        return {"parent": os.getpid()} | {name: pid for name, pid in named.items() if pid is not None}

    def startService(self) -> None:
        """Start the workers."""
        super().startService()
        assert self._workers is not None
        self.reactor.callWhenRunning(self._workers.start)

    def _serving(self) -> None:
        if self.upkeep is not None:
            self.upkeep.start()
        self.lifecycle.ready(self.urls(bound.address for bound in self._public), self.admin_urls())
        self.systemd.watch(lambda: self._workers is not None and self._workers.ready)

    def reload(self) -> Deferred[Any]:
        """Have each worker reload; then read the keystore here too, which writes down what became of it."""
        assert self._workers is not None
        begun = time.time()
        self.reload_token()
        reloaded = self._workers.reload()
        return reloaded.addCallback(lambda _: self.reload_keys(begun)).addCallback(self.count_reload)

    def unready(self) -> str | None:
        """Why no new request should come here, or None."""
        if self.lifecycle.draining:
            return "draining"
        return None if self._workers is not None and self._workers.ready else "no worker is ready"

    @property
    def pre_drain(self) -> float:
        """As configured; none where no worker could begin to serve."""
        return 0.0 if self._failed else super().pre_drain

    def drain(self) -> Deferred[Any]:
        """Drain each worker."""
        for bound in self._public:
            bound.release()
        assert self._workers is not None
        ended = self._workers.end(self.settings.timeouts.drain)
        return ended.addCallback(lambda _: self._close())

    def _close(self) -> Any:
        self.counters.close()
        self.close_admin()
        if self._failed:
            # twistd ends with status 0 whatever ended the reactor; a supervisor must see that this start failed.
            atexit.register(os._exit, 1)
        ended = maybeDeferred(self.upkeep.stop) if self.upkeep is not None else succeed(None)
        return ended.addBoth(lambda _: MultiService.stopService(self))

    def cut(self) -> None:
        """End the workers' drains."""
        if self._workers is not None:
            self._workers.hurry()

    def _hopeless(self) -> None:
        self._failed = True
        self.lifecycle.stop()


def _in_state(workers: Workers, state: str) -> int:
    return sum(worker.state == state for worker in workers.workers)
