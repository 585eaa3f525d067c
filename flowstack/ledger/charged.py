"""What was charged once: the ids of batches and background responses, which several calls may report as finished."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from twisted.logger import Logger

log = Logger()

KEEP_DAYS = 60
"""How long an id is remembered; what is asked for again after that is charged again. OpenAI promises to keep a stored
response for 30 days, and ends a batch within one."""

KEEP_IN_MEMORY = 10_000
"""Ids that are remembered without a directory; then the oldest goes."""

MOST_IDS = 1_000_000
"""Ids that are remembered on disk, each an inode; beyond that the oldest go, by whole hours, before their time."""

SHOUT_SECONDS = 60.0

_HOUR, _DAY = 3600.0, 86400.0


class Charged:
    """Says who is the first to see a piece of work finished, among all workers and across restarts.

    An id is an empty file whose name is a hash of it; that the first to make it is told is the kernel's promise
    (``O_EXCL``). Without a directory each process remembers by itself.

    :param directory: ``<state>/charged``, made when it is first needed, or None.
    :param now: seconds on any clock, for how often a failure is told of.
    :ivar failures: ids that could not be written down.
    """

    def __init__(self, directory: Path | None, now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self._memory: dict[str, None] = {}
        self._quiet_until = float("-inf")
        self.failures = 0

    def claim(self, charge_id: str) -> bool:
        """Whether the caller is the first, and so the one to charge. Never raises.

        Where it cannot be written down (a full disk), nobody is the first: twice would be a wrong bill, and whoever
        asks later, when it can be written again, is told that he is.
        """
        name = sha256(charge_id.encode("utf-8", "replace")).hexdigest()[:32]
        if self._directory is None:
            return self._claim_in_memory(name)
        try:
            try:
                return _made(self._directory / name)
            except FileNotFoundError:
                self._directory.mkdir(0o750, exist_ok=True)
                return _made(self._directory / name)
        except OSError as error:
            self._failed(error)
            return False

    def _claim_in_memory(self, name: str) -> bool:
        memory = self._memory
        if name in memory:
            return False
        memory[name] = None
        if len(memory) > KEEP_IN_MEMORY:
            del memory[next(iter(memory))]
        return True

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        now = self._now()
        if now >= self._quiet_until:
            self._quiet_until = now + SHOUT_SECONDS
            log.error(
                "finished work is NOT CHARGED, its id cannot be written down in {directory}: {error}; {count} so far",
                directory=str(self._directory),
                error=error.strerror or str(error),
                count=self.failures,
            )


def _made(path: Path) -> bool:
    """Make an empty file; False where there is one.

    :raises OSError: it cannot be made.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
    except FileExistsError:
        return False
    return True


def prune_charged(directory: Path, now: float) -> int:
    """Forget the ids that were claimed more than :data:`KEEP_DAYS` ago, and the oldest where there are more than
    :data:`MOST_IDS`; to be called by one process, in a thread.

    :param now: UTC Unix seconds.
    :return: how many were forgotten. What cannot be removed is logged once, and tried again at the next call.
    """
    hours: Counter[int] = Counter()
    removed, fault = _forget(directory, now - KEEP_DAYS * _DAY, hours)
    if hours.total() > MOST_IDS:
        kept = 0
        for hour in sorted(hours, reverse=True):
            kept += hours[hour]
            if kept > MOST_IDS:
                more, fault = _forget(directory, min((hour + 1) * _HOUR, now - now % _HOUR), Counter())
                removed += more
                log.warn("{count} ids of finished work were forgotten before their time, of too many", count=more)
                break
    if fault is not None:
        log.error("old ids of finished work cannot be removed: {error}", error=str(fault))
    return removed


def _forget(directory: Path, before: float, hours: Counter[int]) -> tuple[int, OSError | None]:
    """Remove what was claimed before a time; count what stays by the hour.

    :return: how many were removed, and why one could not be.
    """
    removed, fault = 0, None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    claimed = entry.stat(follow_symlinks=False).st_mtime
                    if claimed < before:
                        os.unlink(entry.path)
                        removed += 1
                    else:
                        hours[int(claimed // _HOUR)] += 1
                except FileNotFoundError:
                    pass
                except OSError as error:
                    fault = error
    except FileNotFoundError:
        pass
    except OSError as error:
        fault = error
    return removed, fault
