"""The service's side of the indexer: it is started, watched, started again, and ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.process import reapAllProcesses
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

COMMAND = (sys.executable, "-m", "flowstack.process.indexer")

BACK_OFF = 1.0
MOST_BACK_OFF = 60.0
STEADY = 60.0
"""Seconds before an indexer that died is started again: doubled at each death, up to the most; back to the first after
one has lived for ``STEADY``."""

LAST_SECONDS = 5.0
"""Seconds in which it may end before it is killed, which does no harm."""

WATCH = 0.5
"""Seconds between two looks whether it has ended."""


class IndexerProcess(ProcessProtocol):
    """The process; its standard input stays open as long as the service lives."""

    def __init__(self, service: IndexerService) -> None:
        self._service = service
        self._pieces: dict[int, bytes] = {}  # the beginnings of lines, by descriptor

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803
        """Lines for the log."""
        *lines, self._pieces[childFD] = (self._pieces.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            log.info("{line}", line=line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        """It ended: on purpose, or it is started again."""
        for rest in filter(None, self._pieces.values()):
            log.info("{line}", line=rest.decode("utf-8", "replace"))
        self._service.ended(reason)


class IndexerService:
    """Keeps one indexer running.

    :param state: the state directory, of which the indexer reads ``ledger/`` and writes ``ledger.sqlite``.
    :param environ: the process's environment, in which this very package is the first on the path.
    :param command: what is run, the state directory added.
    """

    def __init__(
        self, reactor: Any, state: Path, environ: Mapping[str, str], command: tuple[str, ...] = COMMAND
    ) -> None:
        self._reactor = reactor
        self._command = [*command, str(state)]
        self._environ = dict(environ)
        self._transport: Any = None
        self._started_at = 0.0
        self._back_off = BACK_OFF
        self._restart: Any = None
        self._stopped: Deferred[None] | None = None
        self._ending = False
        self._watch = LoopingCall(reapAllProcesses)  # uvloop takes for itself how Twisted hears of a child's end
        self._watch.clock = reactor

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._transport is not None

    def start(self) -> None:
        """Start it."""
        self._watch.start(WATCH, now=False)
        self._spawn()

    def stop(self) -> Deferred[None]:
        """End it; fires when it is gone. What it has not indexed yet, the next one will."""
        self._ending = True
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        if self._transport is None:
            self._rest()
            return succeed(None)
        self._stopped = Deferred()
        kill = self._reactor.callLater(LAST_SECONDS, self._signal, signal.SIGKILL)
        self._stopped.addCallback(lambda _: kill.cancel() if kill.active() else None)
        self._transport.closeStdin()
        self._signal(signal.SIGTERM)
        return self._stopped

    def ended(self, reason: Failure) -> None:
        """The process is gone."""
        self._transport = None
        if self._ending:
            self._rest()
            stopped, self._stopped = self._stopped, None
            if stopped is not None:
                stopped.callback(None)
            return
        now = self._reactor.seconds()
        delay = BACK_OFF if now - self._started_at >= STEADY else self._back_off
        self._back_off = min(MOST_BACK_OFF, delay * 2)
        log.error(
            "the indexer ended, it is started again in {delay:.0f} s: {why}", delay=delay, why=reason.getErrorMessage()
        )
        self._restart = self._reactor.callLater(delay, self._spawn)

    def _spawn(self) -> None:
        self._started_at = self._reactor.seconds()
        try:
            self._transport = self._reactor.spawnProcess(
                IndexerProcess(self), self._command[0], self._command, env=self._environ,
                childFDs={0: "w", 1: "r", 2: "r"},
            )  # fmt: skip
        except OSError:  # no memory, or too many processes, for the moment
            self.ended(Failure())

    def _rest(self) -> None:
        if self._watch.running:
            self._watch.stop()

    def _signal(self, number: int) -> None:
        try:
            if self._transport is not None:
                self._transport.signalProcess(number)
        except ProcessExitedAlready:
            pass
