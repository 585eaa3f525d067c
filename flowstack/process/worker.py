"""``python -m flowstack.process.worker``: one of several workers, which only their parent starts."""

from __future__ import annotations

import signal
import sys

from twisted.application.reactors import installReactor

from flowstack.transport import uv


def main(arguments: list[str]) -> None:
    """Serve on the sockets that the parent bound.

    :param arguments: ``uvloop`` or the name of a Twisted reactor; the worker's index, for lists of processes.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # from a terminal they go to the parent too, which says what to do
    name, index = arguments
    if name == "uvloop":
        uv.install()
    else:
        installReactor(name)
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner, textFileLogObserver

    from flowstack.process.parent import WorkerService, read_greeting

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings, last_good = read_greeting()
    service = WorkerService(settings, last_good, reactor, int(index))
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.callWhenRunning(signal.signal, signal.SIGINT, signal.SIG_IGN)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
