"""What works beside the proxy, in a process of its own that gives way to it: it looks again and again for work.

No worker waits for it. It ends when its standard input does, or on SIGTERM.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import ClassVar

from twisted.logger import Logger, globalLogBeginner, textFileLogObserver

from flowstack.ledger.database import Unavailable
from flowstack.util import Throttle

log = Logger()

TROUBLE_SECONDS = 5.0
"""Before another try, after one that failed."""

LOG_SECONDS = 60.0
"""The same trouble is logged at most once in this time."""

NICE = 10


class Background(ABC):
    """Looks for work until it is to end.

    :param stop: a descriptor; once it is readable and has ended, or :attr:`stopping` is set, this ends too.
    """

    what: ClassVar[str]
    """What is not done when a look fails, for the log."""

    def __init__(self, stop: int) -> None:
        self._stop = stop
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._throttle = Throttle(time.monotonic, LOG_SECONDS)
        self.stopping = False

    @abstractmethod
    def look(self) -> float:
        """Do some of what there is to do.

        :return: seconds until the next look.
        """

    @abstractmethod
    def close(self) -> None:
        """End."""

    @abstractmethod
    def failed(self) -> None:
        """A look failed, and another one follows."""

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: end after the current transaction."""
        self.stopping = True
        with suppress(OSError):
            os.write(self._wake, b".")

    def run(self) -> None:
        """Look until it is to end. Trouble is logged, and tried again."""
        while not self.stopping:
            try:
                wait = self.look()
            except (OSError, sqlite3.Error, Unavailable) as error:
                wait = self._after(f"{self.what}, Flowstack tries again: {error}")
            except Exception as error:
                wait = self._after(f"{self.what}, for a fault of Flowstack's own: {error!r}")
            self._rest(wait)
        self.close()

    def trouble(self, text: str) -> None:
        """Log it, once in a while."""
        if self._throttle.ready(text):
            log.error("{text}", text=text)

    def _after(self, text: str) -> float:
        self.trouble(text)
        self.failed()
        return TROUBLE_SECONDS

    def _rest(self, seconds: float) -> None:
        ready, _, _ = select.select([self._stop, self._woken], [], [], seconds)
        if self._stop in ready and not os.read(self._stop, 4096):
            self.stopping = True


def run(make: Callable[[], Background], nice: int) -> None:
    """Be the process.

    :param make: makes what works in it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # from a terminal they go to the parent too, which says what to do
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    one = make()
    signal.signal(signal.SIGTERM, one.stop)
    with suppress(OSError):
        os.nice(nice)
    one.run()
