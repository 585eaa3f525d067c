"""What a service tells systemd: sd_notify(3), a datagram to the socket that systemd names."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()


class Systemd:
    """Tells systemd about this process; does nothing where systemd did not ask.

    :param environ: read once, and what is for this process only is removed, so that no child takes it for its own.
    """

    def __init__(self, environ: MutableMapping[str, str], reactor: IReactorTime) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watchdog = environ.pop("WATCHDOG_USEC", "")
        if environ.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            watchdog = ""
        self._seconds = int(watchdog) / 2_000_000 if watchdog.isdigit() else 0.0  # twice in each interval
        self._loop: LoopingCall | None = None
        self._reactor = reactor

    def ready(self) -> None:
        """Everything is bound, the keystore is read: what is ordered after this service may start."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Draining."""
        self._send("STOPPING=1")

    def watch(self, healthy: Callable[[], bool]) -> None:
        """Answer the watchdog's question for as long as ``healthy()`` is true."""
        if not self._seconds or not self._address:
            return
        self._loop = LoopingCall(lambda: self._send("WATCHDOG=1") if healthy() else None)
        self._loop.clock = self._reactor
        self._loop.start(self._seconds)

    def unwatch(self) -> None:
        """Stop answering: the process ends."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notice:
                notice.sendto(state.encode("ascii"), address)
        except OSError as error:
            log.warn("cannot notify systemd of {state}: {error}", state=state.partition("\n")[0], error=str(error))
