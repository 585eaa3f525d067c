"""Processes: start them on given cores, weigh them, end them whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import field, frozen

PROC = Path("/proc")
ROOT = Path(__file__).resolve().parents[1]


class BenchError(Exception):
    """A figure cannot be had; the text says why, for a person."""


@frozen(slots=True)
class Cores:
    """Which cores the parts of a run are pinned to.

    :ivar subject: the proxy under test with one worker.
    :ivar load: the bench upstream and the load client.
    :ivar pair: the proxy with two workers.
    """

    subject: tuple[int, ...]
    load: tuple[int, ...]
    pair: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Core 1 for the subject and the others for load, where there are two or more."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) == 1:
            return cls(tuple(cores), tuple(cores), tuple(cores))
        load = tuple(cores[:1] + cores[3:5])
        return cls((cores[1],), load, tuple(cores[1:3]) if len(cores) > 3 else tuple(cores[:2]))


@frozen(slots=True, eq=False)
class Child:
    """A process that the bench started, with a session of its own.

    :ivar log: where its standard error, and mostly its output, went.
    """

    process: subprocess.Popen[bytes]
    log: Path
    name: str = field(default="child")

    @property
    def pid(self) -> int:
        """The id of the process that was started; :func:`tree` gives its children too."""
        return self.process.pid

    def tail(self) -> str:
        """The last lines of its log; nothing in them says where on this machine the project lies."""
        text = self.log.read_text(errors="replace").replace(str(ROOT), "…")
        return "\n".join(text.splitlines()[-8:])

    def pause(self) -> None:
        """Let it and all its children stand still, so that what they have left to do takes nobody else's time."""
        _signal(tree(self.pid), signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        _signal(tree(self.pid), signal.SIGCONT)

    def end(self) -> None:
        """Ask it to end, then make it; returns once it and all its children are gone."""
        pids = tree(self.pid)
        for sign, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
            _signal(pids, sign)
            _signal(pids, signal.SIGCONT)  # who stands still hears nothing
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                self.process.poll()
                pids = [pid for pid in pids if _alive(pid)]
                if not pids:
                    self.process.wait()
                    return
                time.sleep(0.01)
        raise BenchError(f"{self.name}: processes {pids} do not end")


@contextlib.contextmanager
def running(
    name: str,
    argv: Sequence[str | Path],
    *,
    cores: Iterable[int],
    log: Path,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    piped: bool = False,
) -> Iterator[Child]:
    """Run a command pinned to ``cores`` until the block is left; it dies with the bench even if that is killed.

    :param piped: whether its standard output is a pipe to the bench; it goes to ``log`` otherwise.
    """
    pinned = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", ",".join(map(str, cores)), *map(str, argv)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    child = Child(process, log, name)
    try:
        yield child
    finally:
        child.end()
        if process.stdout is not None:
            process.stdout.close()


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found.extend(children.get(parent, ()))
    return found


def aside(pid: int) -> bool:
    """Whether a process does work for which no request waits: the indexer of Flowstack's ledger. It is told apart."""
    with contextlib.suppress(OSError):
        return b"flowstack.process.indexer" in (PROC / str(pid) / "cmdline").read_bytes()
    return False


def cpu_by_task(pids: Iterable[int]) -> dict[int, int]:
    """User and system CPU time of every thread of ``pids`` so far, in ns, by thread id.

    The scheduler's own sum (``schedstat``) is exact to the nanosecond for a thread that does not run just then, and
    at most a tick behind for one that does; the clock ticks in ``stat`` are too coarse.
    """
    spent: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(PROC / str(pid) / "task"):
                with contextlib.suppress(OSError):
                    text = (PROC / str(pid) / "task" / task / "schedstat").read_text()
                    spent[int(task)] = int(text.split()[0])
    return spent


def cpu_ns(pids: Iterable[int]) -> int:
    """User and system CPU time of ``pids`` so far, in ns."""
    return sum(cpu_by_task(pids).values())


def _smaps(pid: int, name: str) -> int:
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"no {name} of process {pid}")


def memory(pids: Iterable[int]) -> tuple[int, int]:
    """Resident and proportional set sizes of ``pids``, in bytes."""
    pids = tuple(pids)
    return sum(_smaps(pid, "Rss") for pid in pids), sum(_smaps(pid, "Pss") for pid in pids)


def reset_peak(pids: Iterable[int]) -> int:
    """Forget the peak of resident memory so far; returns what is resident now, in bytes."""
    now = 0
    for pid in pids:
        (PROC / str(pid) / "clear_refs").write_text("5")
        now += _status_bytes(pid, "VmHWM")
    return now


def peak(pids: Iterable[int]) -> int:
    """The sum of the processes' peaks of resident memory since :func:`reset_peak`, in bytes."""
    return sum(_status_bytes(pid, "VmHWM") for pid in pids)


def _status_bytes(pid: int, name: str) -> int:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"no {name} of process {pid}")
