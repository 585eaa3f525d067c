"""Open work: what was begun, and whose usage is known later; a small file for each, until it is settled once.

A file's name is a hash of the work. Whoever sees the work finished claims the file by renaming it: that of several who
try at once one succeeds is the kernel's promise (POSIX, ``rename``). The new name says which worker claimed it, so that
what a killed one has not settled is given back.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from flowstack.files import read_regular, write_new
from flowstack.ledger.late import WAIT_SECONDS, Begun, name_of
from flowstack.usage.operations import Work
from flowstack.util import Throttle

log = Logger()

KEEP_IN_MEMORY = 10_000
"""Works that are remembered without a directory; then the oldest goes."""

MOST_OPEN = 1_000_000
"""Files, each an inode; beyond that the oldest go, by whole hours, before their time."""

MOST_BYTES = 64 * 1024
"""Of a file; a row's texts and attributes are far fewer."""

SHOUT_SECONDS = 60.0

_HOUR = 3600.0
_NAME = re.compile(r"[0-9a-f]{32}").fullmatch
_CLAIMED = re.compile(r"([0-9a-f]{32})\.([0-9]+)").fullmatch


def open_path(state: Path) -> Path:
    """Where open work lies."""
    return state / "open"


class OpenWork:
    """What is waited for, among all workers and across restarts. Without a directory each process remembers by itself.

    :param directory: made when it is first needed, for this user alone; or None.
    :param worker: the number of this process among those that share the directory.
    :param now: seconds on any clock, for how often a failure is told of.
    :ivar failures: works that could not be written down, or not be claimed.
    """

    def __init__(self, directory: Path | None, worker: int, now: Callable[[], float]) -> None:
        self._directory = directory
        self._worker = worker
        self._now = now
        self._memory: dict[str, Begun] = {}
        self._throttle = Throttle(now, SHOUT_SECONDS)
        self.failures = 0

    def begin(self, begun: Begun) -> None:
        """Of ``OpenWork``; of two beginnings of the same the first counts.

        Where it cannot be written down (a full disk), it is not waited for: its estimate stays the charge.
        """
        if self._directory is None:
            self._memory.setdefault(begun.name, begun)
            if len(self._memory) > KEEP_IN_MEMORY:
                del self._memory[next(iter(self._memory))]
            return
        path = self._directory / begun.name
        try:
            try:
                write_new(path, begun.written())
            except FileNotFoundError:
                self._directory.mkdir(0o700, exist_ok=True)
                write_new(path, begun.written())
        except FileExistsError:
            pass
        except OSError as error:
            self._failed("work cannot be written down, and its estimate STAYS CHARGED", error)

    def claim(self, upstream: str, kind: Work, identity: str) -> Begun | None:
        """Of ``OpenWork``."""
        name = name_of(upstream, kind, identity)
        if self._directory is None:
            return self._memory.pop(name, None)
        claimed = self._claimed(name)
        try:
            os.rename(self._directory / name, claimed)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed("finished work cannot be claimed, and its estimate STAYS CHARGED for now", error)
            return None
        try:
            begun = Begun.read(read_regular(claimed, MOST_BYTES, follow=False)[0])
        except OSError as error:
            self._failed("open work cannot be read, and its estimate STAYS CHARGED", error)
            return None
        if begun is None:  # its writer was killed
            self._remove(claimed)
        return begun

    def done(self, begun: Begun) -> bool:
        """Of ``OpenWork``. What is not forgotten may be claimed again after a restart."""
        return self._directory is None or self._remove(self._claimed(begun.name))

    def _claimed(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{name}.{self._worker}"

    def _remove(self, path: Path) -> bool:
        try:
            os.unlink(path)
        except OSError as error:
            self._failed("settled work cannot be removed", error)
            return False
        return True

    def open(self) -> list[Begun]:
        """What is waited for, in no order; to be called in a thread where there is a directory.

        :raises OSError: the directory cannot be read.
        """
        if self._directory is None:
            return list(self._memory.values())
        found = []
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                if not _NAME(entry.name):
                    continue
                with suppress(OSError):  # somebody claimed it meanwhile
                    begun = Begun.read(read_regular(entry.path, MOST_BYTES, follow=False)[0])
                    if begun is not None and begun.name == entry.name:
                        found.append(begun)
        return found

    def _failed(self, what: str, error: OSError) -> None:
        self.failures += 1
        if self._throttle.ready():
            log.error(
                "{what}: {directory}: {error}; {count} so far",
                what=what,
                directory=str(self._directory),
                error=error.strerror or str(error),
                count=self.failures,
            )


def give_back(directory: Path, worker: int | None = None) -> int:
    """Have work waited for again that a process claimed and did not settle; that process must be gone.

    :param worker: its number; None means all that there were.
    :return: how many works. What cannot be given back is logged, and its estimate stays charged.
    """
    given, fault = 0, None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                claimed = _CLAIMED(entry.name)
                if claimed is None or worker not in (None, int(claimed[2])):
                    continue
                try:
                    os.rename(entry.path, directory / claimed[1])
                    given += 1
                except OSError as error:
                    fault = error
    except FileNotFoundError:
        pass
    except OSError as error:
        fault = error
    if fault is not None:
        log.error("a claim on open work cannot be released, and its estimate stays charged: {error}", error=str(fault))
    return given


def prune_open(directory: Path, now: float) -> int:
    """Wait no more for what was begun too long ago, nor for the oldest of more than :data:`MOST_OPEN`: their estimates
    stay the charge. To be called by one process, in a thread.

    :param now: UTC Unix seconds.
    :return: how many works. What cannot be removed is logged once, and tried again at the next call.
    """
    hours: Counter[int] = Counter()
    removed, fault = _forget(directory, now - WAIT_SECONDS, hours)
    if hours.total() > MOST_OPEN:
        kept = 0
        for hour in sorted(hours, reverse=True):
            kept += hours[hour]
            if kept > MOST_OPEN:
                more, fault = _forget(directory, min((hour + 1) * _HOUR, now - now % _HOUR), Counter())
                removed += more
                log.warn("too much open work: removed the oldest {count}, whose estimates stay charged", count=more)
                break
    if fault is not None:
        log.error("old open work cannot be removed: {error}", error=str(fault))
    return removed


def _forget(directory: Path, before: float, hours: Counter[int]) -> tuple[int, OSError | None]:
    """Remove what was begun before a time; count what stays by the hour.

    :return: how many were removed, and why one could not be.
    """
    removed, fault = 0, None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    begun = entry.stat(follow_symlinks=False).st_mtime
                    if begun < before:
                        os.unlink(entry.path)
                        removed += 1
                    else:
                        hours[int(begun // _HOUR)] += 1
                except FileNotFoundError:
                    pass
                except OSError as error:
                    fault = error
    except FileNotFoundError:
        pass
    except OSError as error:
        fault = error
    return removed, fault
