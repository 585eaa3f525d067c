"""How a command has a running service reload, and learns what came of it.

The service writes into ``reload.json`` which process it is. So nothing has to be told where it is but the state
directory, and a number that another process got since then is known by the time of its start.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen

from flowstack.keystore.file import REPORT
from flowstack.keystore.process import started_at

POLL_SECONDS = 0.02


class AskingError(Exception):
    """No service was found, or it did not answer; the text says why, and what to do."""


@frozen(slots=True)
class Service:
    """A running service.

    :ivar pid: the process that takes SIGHUP.
    :ivar started: when it was started, in clock ticks since the boot.
    """

    state: Path
    pid: int
    started: int

    def runs(self) -> bool:
        """Whether it is still there."""
        return started_at(self.pid) == self.started


@frozen(slots=True)
class Answer:
    """What a service made of a reload.

    :ivar faults: why the file was not taken over, a line each; empty where it was.
    """

    pid: int
    generation: int
    keys: int
    faults: tuple[str, ...]


def find_service(state: Path) -> Service:
    """Find the service that uses a state directory.

    :raises AskingError: none does, as far as this process can see.
    """
    path = state / REPORT
    report = _read(path)
    pid, started = report.get("pid"), report.get("pid_started")
    if not isinstance(pid, int) or not isinstance(started, int) or pid <= 1:
        raise AskingError(f"{path} does not say which process wrote it; give the state directory of a running service")
    service = Service(state, pid, started)
    if not service.runs():
        raise AskingError(
            f"no service runs with the state directory {state}: process {pid}, which wrote {path}, is gone, or is in "
            "another container; start the service, or leave --reload out"
        )
    return service


def ask_reload(service: Service, seconds: float) -> Answer:
    """Send SIGHUP, and wait until ``reload.json`` tells of a reload that was begun after that.

    :param seconds: to wait, at most.
    :raises AskingError: it may not be signalled, is gone, or did not answer in time.
    """
    asked = time.time()
    try:
        os.kill(service.pid, signal.SIGHUP)
    except ProcessLookupError:
        raise AskingError(f"the service, process {service.pid}, has just ended") from None
    except PermissionError:
        raise AskingError(
            f"this user may not signal the service, process {service.pid}; run this as the service's user or as root"
        ) from None
    until = time.monotonic() + seconds
    while True:
        report = _read(service.state / REPORT)
        if (report.get("pid"), report.get("pid_started")) != (service.pid, service.started):
            raise AskingError("another service has taken the state directory over meanwhile; ask it again")
        if _seconds(report.get("begun")) >= asked:
            return Answer(service.pid, report["generation"], report["keys"], tuple(report["fault"] or ()))
        if not service.runs():
            raise AskingError(f"the service, process {service.pid}, ended before it had reloaded")
        if time.monotonic() >= until:
            raise AskingError(
                f"the service, process {service.pid}, did not say within {seconds:g} s what came of the reload; it may "
                "be ending, or busy: look into its log"
            )
        time.sleep(POLL_SECONDS)


def _read(path: Path) -> dict[str, Any]:
    try:
        report = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise AskingError(
            f"{path} does not exist, so no service runs with this state directory; start it with --state, or "
            "correct the path"
        ) from None
    except OSError as error:
        reason = f"{path} could not be read: {error.strerror}; run this as the service's user or as root"
        raise AskingError(reason) from None
    except orjson.JSONDecodeError:
        raise AskingError(f"{path} holds no JSON; is it the service's?") from None
    if not isinstance(report, dict):
        raise AskingError(f"{path} holds no JSON object; is it the service's?")
    return report


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
