"""Starts child processes, starts them again when they die, and ends them.

A child's standard input is a pipe from here: first comes its greeting, and its end says that this process is gone. A
child with a heartbeat has a second pipe, :data:`WORDS`, on which it writes a word a line: ``ready``, ``alive`` (each
second) or ``reloaded``. One that is asked reads questions behind its greeting, and answers on :data:`ANSWERS`. Other
descriptors are handed down as they are.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from attrs import frozen
from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.process import reapAllProcesses
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

WORDS = 3
"""A child's descriptor for its words."""

ANSWERS = 4
"""A child's descriptor for what it answers, where it is asked anything."""

WATCH = 0.25
"""Seconds between two looks at the children."""

START: Final = 4
"""On a busy machine an interpreter alone takes many seconds until it runs."""

backoff = partial(backoffPolicy, factor=2.0, jitter=lambda: 0.0)
"""Makes the seconds before a start of the number of deaths in a row: the first delay, doubled up to the maximum."""


@frozen(kw_only=True)
class ChildSpec:
    """How a child is started.

    :ivar name: what the log calls it.
    :ivar descriptors: gives, by the child's number for each, the descriptors of this process that it gets.
    :ivar greeting: gives the beginning of its standard input.
    :ivar answers: is given what the child writes on :data:`ANSWERS`, in any pieces; None for one that is asked nothing.
    :ivar heartbeat: seconds without a word after which it is killed; None for a child that says none. Before its first
        word it has :data:`START` times as long. A child with a heartbeat must have been ready, or another one, before
        it is started again.
    :ivar backoff: gives the seconds before it is started again, of the number of deaths in a row before this one.
    :ivar steady: seconds of life after which those are forgotten.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    descriptors: Callable[[], Mapping[int, int]] = dict
    greeting: Callable[[], bytes] = bytes
    answers: Callable[[bytes], None] | None = None
    heartbeat: float | None = None
    backoff: Callable[[int], float]
    steady: float


class Child(ProcessProtocol):
    """One child process, and the ones that take its place when it dies."""

    transport: Any

    def __init__(self, supervisor: Supervisor, spec: ChildSpec) -> None:
        self.spec = spec
        self.ready = False
        self.running = False
        self._has_spoken = False
        self._supervisor = supervisor
        self._reactor = supervisor.reactor
        self._started_at = self._heard_at = 0.0
        self._deaths = 0  # in a row
        self._restart: Any = None
        self._gone: Deferred[None] | None = None
        self._reloads: list[Deferred[None]] = []
        self._pieces: dict[int, bytes] = {}  # the beginnings of lines, by descriptor

    @property
    def pid(self) -> int | None:
        """The process's id, while it runs."""
        return self.transport.pid if self.running else None

    @property
    def state(self) -> str:
        """``ready``, ``starting``, or ``gone`` until it is started again."""
        return "ready" if self.ready else "starting" if self.running else "gone"

    def start(self) -> None:
        """Start the process."""
        spec = self.spec
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", **spec.descriptors()}
        if spec.heartbeat is not None:
            descriptors[WORDS] = "r"
        if spec.answers is not None:
            descriptors[ANSWERS] = "r"
        self._started_at = self._heard_at = self._reactor.seconds()
        self._has_spoken = False
        try:
            self._reactor.spawnProcess(
                self, spec.command[0], list(spec.command), env=dict(spec.environ), childFDs=descriptors
            )
        except OSError:  # no memory, or too many processes, for the moment
            self.processEnded(Failure())

    def connectionMade(self) -> None:
        """The process runs."""
        self.running = True
        greeting = self.spec.greeting()
        if greeting:  # to write nothing would have Twisted look out no more for the pipe's end, and so for the child's
            self.transport.writeToChild(0, greeting)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803
        """Words and answers on their pipes; lines for the log on the others."""
        if childFD == ANSWERS and self.spec.answers is not None:
            self.spec.answers(data)
            return
        *lines, self._pieces[childFD] = (self._pieces.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            if childFD == WORDS:
                self._hear(line)
            else:
                log.info("{line}", line=line.decode("utf-8", "replace"))

    def _hear(self, word: bytes) -> None:
        self._heard_at = self._reactor.seconds()
        self._has_spoken = True
        if word == b"ready":
            self.ready = True
            if self._reloads:
                self.signal(signal.SIGHUP)
            self._supervisor.child_ready()
        elif word == b"reloaded":
            self._answer_reloads()

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        """The process is gone: on purpose, or it is started again."""
        self.running = self.ready = False
        pieces, self._pieces = self._pieces, {}
        pieces.pop(WORDS, None)
        for rest in filter(None, pieces.values()):
            log.info("{line}", line=rest.decode("utf-8", "replace"))
        self._answer_reloads()
        gone, self._gone = self._gone, None
        if self._supervisor.child_ended(self, reason.getErrorMessage()):
            self._start_again(reason.getErrorMessage())
        if gone is not None:
            gone.callback(None)

    def _start_again(self, why: str) -> None:
        if self._reactor.seconds() - self._started_at >= self.spec.steady:
            self._deaths = 0
        delay = self.spec.backoff(self._deaths)
        self._deaths += 1
        log.error(
            "{name} ended and is restarted in {delay:.1f} s: {why}", name=self.spec.name, delay=delay, why=why
        )
        self._restart = self._reactor.callLater(delay, self.start)

    def _answer_reloads(self) -> None:
        waiting, self._reloads = self._reloads, []
        for reload in waiting:
            reload.callback(None)

    def send(self, data: bytes) -> None:
        """Write to its standard input, if it lives."""
        if self.running:
            self.transport.writeToChild(0, data)

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        try:
            if self.running:
                self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def kill(self, why: str) -> None:
        """End it at once, if it lives."""
        if self.running:
            log.error("{name} {why}: killed", name=self.spec.name, why=why)
            self.signal(signal.SIGKILL)

    def check(self) -> None:
        """Kill it if it is stuck."""
        if self.spec.heartbeat is None or not self.running:
            return
        silent = self._reactor.seconds() - self._heard_at
        if silent > self.spec.heartbeat * (1 if self._has_spoken else START):
            self._heard_at += silent
            self.kill(f"has not said a word for {silent:.0f} s")

    def reload(self) -> Deferred[None]:
        """Have it reload; fires when it has, or is gone."""
        if not self.running:
            return succeed(None)  # the one that takes its place reads everything when it starts
        done: Deferred[None] = Deferred()
        self._reloads.append(done)
        if self.ready:
            self.signal(signal.SIGHUP)
        # Otherwise it may have read the old keystore, and cannot take a signal yet: it gets one when it is ready.
        return done

    def end(self) -> Deferred[None]:
        """Have it end, and start it no more; fires when it is gone."""
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        if not self.running:
            return succeed(None)
        self._gone = Deferred()
        self.signal(signal.SIGTERM)
        return self._gone


class Supervisor(Service):
    """Keeps children running.

    :param kill_time: seconds that children have for their end before they are killed.
    :param all_ready: called once, when each child has said that it is ready.
    :param child_gone: called with a child's place among the specs whenever its process is gone, before another takes
        its place.
    :ivar failed: why no child ever became ready; nothing is started again then.
    :ivar restarts: how many children died and were started again.
    """

    def __init__(
        self,
        reactor: Any,
        specs: Sequence[ChildSpec],
        kill_time: float,
        all_ready: Callable[[], None] = lambda: None,
        child_gone: Callable[[int], None] = lambda index: None,
    ) -> None:
        self.reactor = reactor
        self.children = [Child(self, spec) for spec in specs]
        self.failed: str | None = None
        self.restarts = 0
        self._kill_time = kill_time
        self._all_ready = all_ready
        self._child_gone = child_gone
        self._any_was_ready = self._all_were_ready = False
        self._force = False
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor

    @property
    def ready(self) -> bool:
        """Whether any child is."""
        return any(child.ready for child in self.children)

    def startService(self) -> None:
        """Start each child."""
        super().startService()  # type: ignore[no-untyped-call]
        for child in self.children:
            child.start()
        self._watch.start(WATCH, now=False)

    def stopService(self) -> Deferred[Any]:
        """Have each child end; fires when all are gone."""
        super().stopService()  # type: ignore[no-untyped-call]
        timer = self.reactor.callLater(self._kill_time, self._kill)

        def gone(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            self._watch.stop()
            return result

        return DeferredList([child.end() for child in self.children]).addCallback(gone)

    def force_stop(self) -> None:
        """Have children cut what they are still at; only while they end."""
        self._force = True
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send each child a signal."""
        for child in self.children:
            child.signal(number)

    def reload(self) -> Deferred[Any]:
        """Have each child reload; fires when all have."""
        return DeferredList([child.reload() for child in self.children])

    def child_ready(self) -> None:
        """A child says that it is ready."""
        self._any_was_ready = True
        if not self._all_were_ready and all(child.ready for child in self.children):
            self._all_were_ready = True
            self._all_ready()

    def child_ended(self, child: Child, why: str) -> bool:
        """A child's process is gone. Returns whether it is to be started again."""
        self._child_gone(self.children.index(child))
        if not self.running or self.failed:
            return False
        if child.spec.heartbeat is not None and not self._any_was_ready:
            # What ails it ails the next one too.
            self.failed = f"{child.spec.name} ended before it could serve: {why}"
            return False
        self.restarts += 1
        return True

    def _look(self) -> None:
        # Twisted hears of a child's end by the signal wake-up descriptor, which uvloop takes for itself.
        reapAllProcesses()
        for child in self.children:
            child.check()
        if self._force:
            self.signal(signal.SIGTERM)  # the kernel makes one of two signals where the first was not taken yet

    def _kill(self) -> None:
        for child in self.children:
            child.kill("did not end in time")
