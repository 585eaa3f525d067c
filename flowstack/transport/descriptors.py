"""Out of descriptors, a process turns clients away: the log says so now and then, whoever knocks and however often.

Twisted's ports close what they cannot take, and would log each client; uvloop closes it without a word.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import tcp
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, Logger

from flowstack.util import Throttle

log = Logger()

_reserve: Any = tcp._reservedFD
"""Of Twisted's: a descriptor that is let go of so that clients can be taken, and closed."""

LOOK_SECONDS = 1.0

TELL_SECONDS = 10.0
"""The log has a line at most once in this time."""

_SHORT = {"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"}
"""Of the reasons why a client cannot be taken, those that are not its own."""


def _try_to_open() -> None:
    os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


class Descriptors:
    """Tells of clients that are turned away as this process can open nothing more.

    :param try_to_open: opens something, and closes it.
    """

    def __init__(self, clock: IReactorTime, try_to_open: Callable[[], None] = _try_to_open) -> None:
        self._clock = clock
        self._try_to_open = try_to_open
        self._throttle = Throttle(clock.seconds, TELL_SECONDS)
        self._closed = 0  # clients that were turned away since the log said so, as far as they were seen
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock
        self._logger = Logger("flowstack.transport.descriptors", observer=cast(ILogObserver, self._said))

    def start(self) -> None:
        """Look once a second."""
        self._loop.start(LOOK_SECONDS, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def guard(self, port: Any) -> None:
        """Take the word from a listening port of Twisted's, and from what it keeps in reserve to turn clients away."""
        port._logger = self._logger
        _reserve._log = self._logger

    def _look(self) -> None:
        try:
            self._try_to_open()
        except OSError as error:
            self._tell(errno.errorcode.get(error.errno or 0, ""), error.strerror or str(error))
        else:
            _reserve.reserve()

    def _said(self, event: LogEvent) -> None:
        """What Twisted would have logged of clients that it could not take."""
        if "address" in event:
            self._closed += 1
        elif event.get("acceptError", "EMFILE") in _SHORT:
            name = event.get("acceptError", "EMFILE")
            self._tell(name, os.strerror(getattr(errno, name)))

    def _tell(self, name: str, why: str) -> None:
        if not self._throttle.ready():
            return
        closed, self._closed = self._closed, 0
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        advice = (
            f"all {limit} descriptors that this process may have are open; raise LimitNOFILE= in the unit (ulimit -n "
            "elsewhere), or limit connections in front of Flowstack"
            if name == "EMFILE"
            else f"the machine is short of what a connection takes ({why})"
        )
        log.error(
            "CLIENTS ARE TURNED AWAY: {advice}; at least {closed} connections were closed since the last such line",
            advice=advice,
            closed=closed,
        )
