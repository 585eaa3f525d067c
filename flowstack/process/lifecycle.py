"""How a process becomes ready, reloads and ends: signals in, systemd's notices out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flowstack.process.systemd import Systemd

log = Logger()


class Lifecycle:
    """Binds SIGHUP, SIGTERM and SIGINT to what the service does on them.

    Twisted's own handler lets the process die of SIGTERM after the shutdown; a clean drain ends with status 0 here.

    :param reload: carries out a reload; fires when it is done.
    :param force_stop: ends a drain before its time.
    :ivar stopping: whether the process is to end.
    :ivar draining: whether it has begun to.
    """

    def __init__(
        self, reactor: Any, systemd: Systemd, reload: Callable[[], Deferred[None]], force_stop: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._systemd = systemd
        self._reload = reload
        self._force_stop = force_stop
        self._reloading = False
        self._asked: list[Deferred[None]] = []  # who waits for a reload that has not begun
        self._again = False
        self._forced = False
        self.stopping = False
        self.draining = False

    def start(self) -> None:
        """Take signals from now on."""
        self._take_signals()
        self._reactor.callWhenRunning(self._take_signals)  # the reactor sets its own handlers as it starts

    def _take_signals(self) -> None:
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hup))
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._term))
        signal.signal(signal.SIGINT, lambda *_: self._reactor.callFromThread(self._term))

    def ready(self, public: Iterable[str], admin: Iterable[str]) -> None:
        """Say that the process serves.

        :param public: URLs of the listeners.
        """
        if self.draining:
            return
        for url in public:
            log.info("flowstack listening on {url}", url=url)
        for url in admin:
            log.info("flowstack admin listening on {url}", url=url)
        self._systemd.ready()

    def drain(self) -> None:
        """The process has begun to end."""
        self.draining = True
        self._systemd.stopping()

    def reload(self) -> Deferred[None]:
        """Do what SIGHUP has done; fires when a reload that began after this call is over, or the process ends."""
        done: Deferred[None] = Deferred()
        self._asked.append(done)
        self._hup()
        return done

    def _hup(self) -> None:
        if self.draining:
            self._answer(self._taken())
            return
        if self._reloading:
            self._again = True  # the file may have changed after it was read
            return
        self._reloading = True
        self._systemd.reloading()
        self._reload().addBoth(self._reloaded, self._taken())

    def _taken(self) -> list[Deferred[None]]:
        taken, self._asked = self._asked, []
        return taken

    @staticmethod
    def _answer(asked: list[Deferred[None]]) -> None:
        for done in asked:
            done.callback(None)

    def _reloaded(self, result: Any, asked: list[Deferred[None]]) -> None:
        if result is not None:
            log.failure("the reload failed", result)
        self._reloading = False
        self._answer(asked)
        if not self.draining:
            self._systemd.ready()
        if self._again:
            self._again = False
            self._hup()

    def stop(self) -> None:
        """Begin to end; does nothing the second time."""
        if not self.stopping:
            self.stopping = True
            self._reactor.callWhenRunning(self._reactor.stop)

    def _term(self) -> None:
        if not self.stopping:
            self.stop()
        elif not self.draining:
            # Two signals in one turn of the reactor: the drain, which the second one is to end, begins in the next.
            self._reactor.callLater(0, self._term)
        elif not self._forced:
            self._forced = True
            log.info("second signal: requests in flight are cut")
            self._force_stop()
