"""How a command has a running service reload, and learns what came of it.

The service writes into ``reload.json`` which process it is. So nothing has to be told where it is but the state
directory, and a number that another process got since then is known by the time of its start. Whoever can write the
file can name any process in it: a process is signalled only if it is of the user to whom the file belongs.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import orjson
from attrs import frozen

from flowstack.files import NotRegular, as_owner, folder_at, read_regular
from flowstack.keys.process import started_at, users_of
from flowstack.keys.store import MAX_REPORT, REPORT
from flowstack.redact import shown

POLL_SECONDS = 0.02

_MAX_PID = 1 << 22
"""The kernel's own bound (proc(5), pid_max)."""


class AskingError(Exception):
    """No service was found, or it did not answer; the text says why, and what to do."""


@frozen(slots=True)
class Service:
    """A running service.

    :ivar pid: the process that takes SIGHUP.
    :ivar started: when it was started, in clock ticks since the boot.
    :ivar owner: the user whom ``reload.json`` belongs to.
    """

    state: Path
    pid: int
    started: int
    owner: int

    def runs(self) -> bool:
        """Whether it is still there."""
        return started_at(self.pid) == self.started


@frozen(slots=True)
class Answer:
    """What a service made of a reload.

    :ivar faults: why the file was not reloaded, a line each; empty where it was.
    """

    pid: int
    generation: int
    keys: int
    faults: tuple[str, ...]


@frozen(slots=True)
class _Report:
    """What ``reload.json`` says, and whose it is.

    :ivar begun: UTC Unix seconds.
    """

    owner: int
    pid: int
    started: int
    begun: float
    generation: int
    keys: int
    faults: tuple[str, ...]


def find_service(state: Path) -> Service:
    """Find the service that uses a state directory.

    :raises AskingError: none does, as far as this process can see.
    """
    path = state / REPORT
    report = _read(path)
    service = Service(state, report.pid, report.started, report.owner)
    if not service.runs():
        raise AskingError(
            f"no service runs with the state directory {state}: process {report.pid}, which wrote {path}, is gone, or "
            "is in another container; start the service, or leave --reload out"
        )
    if report.pid == os.getpid():
        raise AskingError(f"{path} names the process of this very command, {report.pid}: no service wrote it")
    _check_owner(service)
    return service


def ask_reload(service: Service, seconds: float) -> Answer:
    """Send SIGHUP, and wait until ``reload.json`` tells of a reload that was begun after that.

    :param seconds: to wait, at most.
    :raises AskingError: it may not be signalled, is gone, or did not answer in time.
    """
    asked = time.time()
    _signal(service)
    until = time.monotonic() + seconds
    while True:
        report = _read(service.state / REPORT)
        if (report.pid, report.started, report.owner) != (service.pid, service.started, service.owner):
            raise AskingError("another service has taken the state directory over meanwhile; ask it again")
        if report.begun >= asked:
            return Answer(service.pid, report.generation, report.keys, report.faults)
        if not service.runs():
            raise AskingError(f"the service, process {service.pid}, ended before it had reloaded")
        if time.monotonic() >= until:
            raise AskingError(
                f"the service, process {service.pid}, did not report on the reload within {seconds:g} s; it may be "
                "shutting down, or busy: see its log"
            )
        time.sleep(POLL_SECONDS)


def _signal(service: Service) -> None:
    """Send SIGHUP to what was looked at, and to nothing that has its number since.

    :raises AskingError: it may not be done.
    """
    gone = AskingError(f"the service, process {service.pid}, has just ended")
    try:
        process = os.pidfd_open(service.pid)
    except ProcessLookupError:
        raise gone from None
    except OSError as error:
        raise AskingError(f"process {service.pid} cannot be signalled: {error.strerror}") from None
    try:
        # What is looked at from here on is the process held, or that is gone, and then no signal arrives.
        if not service.runs():
            raise gone
        _check_owner(service)
        signal.pidfd_send_signal(process, signal.SIGHUP)
    except ProcessLookupError:
        raise gone from None
    except PermissionError:
        raise AskingError(
            f"this user may not signal the service, process {service.pid}; run this as the service's user or as root"
        ) from None
    finally:
        os.close(process)


def _check_owner(service: Service) -> None:
    """Refuse a process that is not wholly of the user who could have written its number.

    :raises AskingError: so it is, or it is gone.
    """
    users = users_of(service.pid)
    if users is None:
        raise AskingError(f"the service, process {service.pid}, has just ended")
    if users != {service.owner}:
        named = " and ".join(map(str, sorted(users)))
        raise AskingError(
            f"{service.state / REPORT} belongs to user {service.owner}, and names process {service.pid}, which is of "
            f"user {named}: it was not signalled. The service's own user must own its state directory and run it"
        )


def _read(path: Path) -> _Report:
    """Read what the service wrote, and doubt it.

    :raises AskingError: it is not there, or not such a file; the text says what was found.
    """
    try:
        with as_owner(path.parent), folder_at(path.parent) as folder:
            text, status = read_regular(path.name, MAX_REPORT, folder=folder, follow=False)
    except FileNotFoundError:
        raise AskingError(
            f"{path} does not exist, so no service runs with this state directory; start it with --state, or "
            "correct the path"
        ) from None
    except NotRegular as error:
        raise AskingError(f"{path} is {error.strerror}, so that no service wrote it: remove it") from None
    except OSError as error:
        reason = f"{path} could not be read: {error.strerror}; run this as the service's user or as root"
        raise AskingError(reason) from None
    if len(text) > MAX_REPORT or status.st_nlink > 1:
        found = f"more than {MAX_REPORT} bytes" if len(text) > MAX_REPORT else "a file with other names (hard links)"
        raise AskingError(f"{path}: found {found}, expected what a service writes there; remove it")
    try:
        report = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise AskingError(f"{path} holds no JSON; is it the service's?") from None
    if not isinstance(report, dict):
        raise AskingError(f"{path} holds no JSON object; is it the service's?")
    return _report_of(report, status.st_uid, path)


def _report_of(report: dict[str, object], owner: int, path: Path) -> _Report:
    pid, started = _whole(report.get("pid")), _whole(report.get("pid_started"))
    if pid is None or started is None or not 1 <= pid <= _MAX_PID:  # 1 is the service in a container of its own
        raise AskingError(
            f"{path} does not say which process wrote it: found pid {shown(report.get('pid'))} and pid_started "
            f"{shown(report.get('pid_started'))}, expected two numbers; give the state directory of a running service"
        )
    generation, keys, fault = _whole(report.get("generation")), _whole(report.get("keys")), report.get("fault") or []
    if generation is None or keys is None or not isinstance(fault, list):
        raise AskingError(
            f"{path} does not say what came of a reload: found generation {shown(report.get('generation'))}, keys "
            f"{shown(report.get('keys'))} and fault {shown(fault)}, expected two numbers and an array or null"
        )
    return _Report(owner, pid, started, _seconds(report.get("begun")), generation, keys, tuple(map(str, fault)))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
