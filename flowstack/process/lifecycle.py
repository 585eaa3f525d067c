"""How a process of Flowstack's begins to serve, reloads and ends: signals in, systemd's notices out."""

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
    :param hurry: ends a drain that is under way.
    """

    def __init__(
        self, reactor: Any, systemd: Systemd, reload: Callable[[], Deferred[None]], hurry: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._systemd = systemd
        self._reload = reload
        self._hurry = hurry
        self._reloading = False
        self._again = False
        self._hurried = False
        self._stopping = False
        self.draining = False

    def serve(self) -> None:
        """Take signals from now on; to be called when the reactor runs, since it sets handlers of its own before."""
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

    def _hup(self) -> None:
        if self.draining:
            return
        if self._reloading:
            self._again = True  # the file may have changed after it was read
            return
        self._reloading = True
        self._systemd.reloading()
        self._reload().addBoth(self._reloaded)

    def _reloaded(self, result: Any) -> None:
        if result is not None:
            log.failure("the reload failed", result)
        self._reloading = False
        if not self.draining:
            self._systemd.ready()
        if self._again:
            self._again = False
            self._hup()

    def stop(self) -> None:
        """Begin to end; once, whoever asks."""
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def _term(self) -> None:
        if not self._stopping:
            self.stop()
        elif not self.draining:
            # Two signals in one turn of the reactor: the drain, which the second one is to end, begins in the next.
            self._reactor.callLater(0, self._term)
        elif not self._hurried:
            self._hurried = True
            log.info("told to end a second time: what is under way is cut")
            self._hurry()


def url_of(address: Any, secure: bool) -> str:
    """Where the listener at an address can be reached, as a URL or ``unix:`` and a path.

    :param secure: whether it speaks TLS.
    """
    host = getattr(address, "host", None)
    if host is None:
        return f"unix:{getattr(address, 'name', b'').decode('utf-8', 'replace')}"
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{address.port}" if ":" in host else f"{scheme}://{host}:{address.port}"
