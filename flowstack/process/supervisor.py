"""The parent of several workers: it binds, starts them, watches them, passes signals on, and serves no request.

Between parent and worker run two pipes. On the first the worker gets its greeting, and nothing more; that it ends says
that the parent is gone. On the second the worker writes a word a line: ``ready``, ``alive`` (each second) or
``reloaded``. Further descriptors are handed down as they are: memory that they share, and the bound sockets.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.process import reapAllProcesses
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

PARENT, WORDS = 3, 4
"""A worker's descriptors for the two pipes."""

METRICS, LIMITS = 5, 6
"""A worker's descriptors for the memory in which it alone counts, and for that in which all hold the limits."""

FIRST_SOCKET = 7
"""A worker's sockets begin here."""

BACK_OFF = 0.1
MOST_BACK_OFF = 10.0
STEADY = 30.0
"""Seconds before a worker that died is started again: doubled at each death, up to the most; back to the first after
a worker has lived for ``STEADY``."""

SILENT = 30.0
"""Seconds without a word after which a worker is taken for stuck, and killed."""

WATCH = 0.25
"""Seconds between two looks at the workers."""

LAST_SECONDS = 10.0
"""Seconds beyond ``drain`` in which workers may end before they are killed."""


class Worker(ProcessProtocol):
    """One worker process, and the one that takes its place when it dies."""

    def __init__(self, parent: Workers, index: int) -> None:
        self._parent = parent
        self.index = index
        self.ready = False
        self.running = False
        self.started_at = 0.0
        self.heard_at = 0.0
        self.back_off = BACK_OFF
        self.ended: Deferred[None] | None = None
        self._reloaded: list[Deferred[None]] = []
        self._pieces: dict[int, bytes] = {}  # the beginnings of lines, by descriptor

    def connectionMade(self) -> None:
        """The process runs."""
        self.running = True
        self.ready = False
        self.started_at = self.heard_at = self._parent.reactor.seconds()
        self._pieces = {}
        assert self.transport is not None
        self.transport.writeToChild(PARENT, pickle.dumps(self._parent.greeting()))

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803
        """Words on their pipe; on the others, where they are pipes, lines for the log."""
        *lines, self._pieces[childFD] = (self._pieces.get(childFD, b"") + data).split(b"\n")
        if childFD == WORDS:
            self.heard_at = self._parent.reactor.seconds()
        for line in lines:
            if childFD == WORDS:
                self._heard(line)
            else:
                log.info("{line}", line=line.decode("utf-8", "replace"))

    def _heard(self, word: bytes) -> None:
        if word == b"ready":
            self.ready = True
            if self._reloaded:
                self.signal(signal.SIGHUP)
            self._parent.worker_ready()
        elif word == b"reloaded":
            self._answer_reloads()

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        """It ended: on purpose, or it is started again."""
        self.running = False
        self.ready = False
        for descriptor, rest in self._pieces.items():
            if rest and descriptor != WORDS:
                log.info("{line}", line=rest.decode("utf-8", "replace"))
        self._answer_reloads()
        ended, self.ended = self.ended, None
        if ended is not None:
            ended.callback(None)
        self._parent.worker_ended(self, reason)

    def _answer_reloads(self) -> None:
        waiting, self._reloaded = self._reloaded, []
        for reload in waiting:
            reload.callback(None)

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        try:
            if self.transport is not None and self.running:
                self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def reload(self) -> Deferred[None]:
        """Have it reload; fires when it has, or is gone."""
        if not self.running:
            return succeed(None)  # it reads the keystore when it starts, which is yet to come
        done: Deferred[None] = Deferred()
        self._reloaded.append(done)
        if self.ready:
            self.signal(signal.SIGHUP)
        # Otherwise it may have read the old keystore, and cannot take a signal yet: it is told once it is ready.
        return done

    @property
    def pid(self) -> int | None:
        """The process's id, while it runs."""
        return self.transport.pid if self.transport is not None and self.running else None

    @property
    def state(self) -> str:
        """``ready``, ``starting``, or ``gone`` until it is started again."""
        return "ready" if self.ready else "starting" if self.running else "gone"

    def end(self) -> Deferred[None]:
        """Have it drain; fires when it is gone."""
        if not self.running:
            return succeed(None)
        self.ended = Deferred()
        self.signal(signal.SIGTERM)
        return self.ended


class Workers:
    """All of them.

    :param command: what a worker is started with; its index is added.
    :param greeting: gives what :func:`read_greeting` then gives in the worker. Settings go this way, since a config
        file that was edited meanwhile must not reach the one worker that is started again.
    :param sockets: for each endpoint, a socket for each worker, or one that they share.
    :param inherit: whether workers write to the parent's own standard output and error; otherwise their lines go to
        its log.
    :param all_ready: called once, when each has said that it is ready.
    :param hopeless: called if a worker ends before any was ever ready: what ails it ails the next one too.
    :param gone: called with a worker's index whenever its process is gone, before another takes its place.
    :param descriptors: gives, for a worker's index, what it gets as :data:`METRICS` and :data:`LIMITS`.
    :ivar restarts: how many workers died while they were to serve, and were started again.
    """

    def __init__(
        self,
        reactor: Any,
        count: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        greeting: Callable[[], object],
        sockets: Sequence[Sequence[socket.socket]],
        inherit: bool,
        all_ready: Callable[[], None],
        hopeless: Callable[[], None],
        gone: Callable[[int], None] = lambda index: None,
        descriptors: Callable[[int], Sequence[int]] = lambda index: (),
    ) -> None:
        self.reactor = reactor
        self.greeting = greeting
        self.workers = [Worker(self, index) for index in range(count)]
        self._command = list(command)
        self._environ = dict(environ)
        self._descriptors = descriptors
        self._sockets = sockets
        self._inherit = inherit
        self._all_ready: Callable[[], None] | None = all_ready
        self._hopeless = hopeless
        self._gone = gone
        self.restarts = 0
        self._any_ready = False
        self._ending = False
        self._hurried = False
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor

    def start(self) -> None:
        """Start them."""
        for worker in self.workers:
            self._spawn(worker)
        self._watch.start(WATCH, now=False)

    def reload(self) -> Deferred[Any]:
        """Have each reload; fires when all have."""
        return DeferredList([worker.reload() for worker in self.workers])

    def end(self, seconds: float) -> Deferred[Any]:
        """Have each drain; kill those that live on after ``seconds`` and a little. Fires when all are gone."""
        self._ending = True
        timer = self.reactor.callLater(seconds + LAST_SECONDS, self._kill)
        for shared in self._sockets:
            for bound in shared:
                bound.close()  # or connections would still be queued here, with nobody left to accept them

        def gone(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if self._watch.running:
                self._watch.stop()
            return result

        return DeferredList([worker.end() for worker in self.workers]).addCallback(gone)

    def hurry(self) -> None:
        """End drains that are under way."""
        self._hurried = True
        for worker in self.workers:
            worker.signal(signal.SIGTERM)

    @property
    def ready(self) -> bool:
        """Whether any worker serves."""
        return any(worker.ready for worker in self.workers)

    def worker_ready(self) -> None:
        """A worker says that it serves."""
        self._any_ready = True
        if self._all_ready is not None and all(worker.ready for worker in self.workers):
            all_ready, self._all_ready = self._all_ready, None
            all_ready()

    def worker_ended(self, worker: Worker, reason: Failure) -> None:
        """A worker's process is gone."""
        self._gone(worker.index)
        if self._ending:
            return
        why = reason.getErrorMessage()
        if not self._any_ready:
            log.error("worker {index} ended before it could serve: {why}", index=worker.index, why=why)
            self._ending = True
            self._hopeless()
            return
        now = self.reactor.seconds()
        delay = BACK_OFF if now - worker.started_at >= STEADY else worker.back_off
        worker.back_off = min(MOST_BACK_OFF, delay * 2)
        log.error(
            "worker {index} ended, it is started again in {delay:.1f} s: {why}",
            index=worker.index, delay=delay, why=why,
        )  # fmt: skip
        self.restarts += 1
        self.reactor.callLater(delay, self._spawn, worker)

    def _spawn(self, worker: Worker) -> None:
        if self._ending:
            return
        mine = [shared[worker.index % len(shared)] for shared in self._sockets]
        descriptors: dict[int, Any] = {PARENT: "w", WORDS: "r"}
        descriptors |= {0: 0, 1: 1, 2: 2} if self._inherit else {0: 0, 1: "r", 2: "r"}
        descriptors |= zip((METRICS, LIMITS), self._descriptors(worker.index))  # noqa: B905, fewer may do
        for number, bound in enumerate(mine, FIRST_SOCKET):
            descriptors[number] = bound.fileno()
        self.reactor.spawnProcess(
            worker, self._command[0], [*self._command, str(worker.index)], env=self._environ, childFDs=descriptors
        )

    def _look(self) -> None:
        # Twisted hears of a child's end by the signal wake-up descriptor, which uvloop takes for itself.
        reapAllProcesses()
        now = self.reactor.seconds()
        for worker in self.workers:
            if worker.running and now - worker.heard_at > SILENT:
                log.error("worker {index} has not said a word for {seconds:.0f} s: killed", index=worker.index,
                          seconds=now - worker.heard_at)  # fmt: skip
                worker.heard_at = now
                worker.signal(signal.SIGKILL)
        if self._hurried:
            self.hurry()  # the kernel makes one of two signals where the first was not taken yet

    def _kill(self) -> None:
        for worker in self.workers:
            if worker.running:
                log.error("worker {index} did not end in time: killed", index=worker.index)
                worker.signal(signal.SIGKILL)


def read_greeting() -> Any:
    """In a worker, once and before all else: what the parent has for it."""
    with open(PARENT, "rb", buffering=0, closefd=False) as pipe:
        return pickle.load(pipe)


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
        """The pipe."""
        return PARENT

    def doRead(self) -> Exception:  # noqa: N802
        """It ended, since nothing more is ever written to it."""
        return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        """It ended. The epoll reactor says so without :meth:`doRead`."""
        self._gone()

    def logPrefix(self) -> str:
        """Of ``IReadDescriptor``."""
        return "parent"
