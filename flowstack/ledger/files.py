"""The journal's files: what they are called, how one is opened, and which are old enough to go.

``2026-11-23.w0.jsonl`` is what worker 0 wrote on that day (UTC); ``2026-11-23.w0.1.jsonl`` is where it went on. Each
has one writer at a time, which holds a lock (``flock``) on it: a second Flowstack on the same directory, such as a new
one that starts while the old one still drains, writes files of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable
from datetime import date
from pathlib import Path

from attrs import frozen
from twisted.logger import Logger

from flowstack.files import open_at_once, sync_folder

log = Logger()

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640

_NAME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})\.w([0-9]{1,6})(?:\.([0-9]{1,9}))?\.jsonl", re.ASCII).fullmatch


def journal_path(state: Path) -> Path:
    """Where the journal's files lie below the state directory."""
    return state / "ledger"


def lag_path(state: Path) -> Path:
    """Where the indexer says how far it is, for the metrics."""
    return state / "ledger.lag.json"


def shipped_path(state: Path) -> Path:
    """Where the shipper says which rows are in PostgreSQL."""
    return state / "ledger.shipped.json"


@frozen(slots=True, order=True)
class Name:
    """What a file's name says; these are in the order in which the files were begun.

    :ivar day: of the writing, UTC, as ``2026-11-23``.
    :ivar worker: whose file it is.
    :ivar part: 0, and 1 and up for what the day's first file had no room for.
    """

    day: str
    worker: int
    part: int = 0

    def __str__(self) -> str:
        return f"{self.day}.w{self.worker}{f'.{self.part}' if self.part else ''}.jsonl"

    @classmethod
    def of(cls, text: str) -> Name | None:
        """Read a name; None where it is not a journal file's."""
        match = _NAME(text)
        return match and cls(match[1], int(match[2]), int(match[3] or 0))


def files(directory: Path) -> list[Path]:
    """The journal's files, by day, worker and part; none where there is no such directory.

    :raises OSError: the directory cannot be read.
    """
    return [directory / str(name) for name in _names(directory)]


def _names(directory: Path) -> list[Name]:
    try:
        return sorted(filter(None, map(Name.of, os.listdir(directory))))
    except FileNotFoundError:
        return []


def prepare(directory: Path) -> None:
    """Make the directory where it is missing, and see that files can be made in it.

    To be called at the start, by the parent or the only process, so that a state directory of which the service may
    make nothing ends the start. Later nothing ends for it.

    :raises OSError: the directory cannot be made or not be written to.
    """
    directory.mkdir(DIRECTORY_MODE, exist_ok=True)
    probe = directory / f".probe.{os.getpid()}"
    try:
        probe.unlink(missing_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        probe.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a disk can be full at the start as well as later
            raise


def prune(directory: Path, today: date, days: int, may_go: Callable[[Path], bool] = lambda path: True) -> int:
    """Remove the files whose day ended at least ``days`` days before today began.

    To be called by one process, once a day or more often. Today's and yesterday's files are never removed.

    :param today: UTC.
    :param days: 0 removes nothing.
    :param may_go: whether a file that is old enough is needed no more.
    :return: how many were removed. What cannot be removed is logged, and tried again at the next call.
    """
    if days <= 0:
        return 0
    removed = 0
    try:
        names = _names(directory)
    except OSError as error:
        log.error("the journal's old files cannot be listed: {error}", error=str(error))
        return 0
    for name in names:
        try:
            age = (today - date.fromisoformat(name.day)).days
        except ValueError:  # no such day
            continue
        if age <= days or not may_go(directory / str(name)):
            continue
        try:
            (directory / str(name)).unlink()
            removed += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            log.error("an old file of the journal cannot be removed: {error}", error=str(error))
    return removed


@frozen(slots=True)
class OpenFile:
    """A file that is open for appending, and locked.

    :ivar descriptor: its owner closes it.
    """

    path: Path
    descriptor: int

    def size(self) -> int:
        """Bytes in it."""
        return os.fstat(self.descriptor).st_size

    def removed(self) -> bool:
        """Whether no name leads to it any more."""
        return os.fstat(self.descriptor).st_nlink == 0

    def in_place(self) -> bool:
        """Whether its name still leads to it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    def since(self, offset: int) -> bytes:
        """What is in it from an offset on."""
        pieces = []
        while piece := os.pread(self.descriptor, 1 << 20, offset):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)


def open_file(directory: Path, day: str, worker: int, limit: int, *, empty: bool, durable: bool) -> OpenFile:
    """Open the file that a worker is to write on a day: its last one of that day, or the one that follows.

    A last line without an end, which a killed process or a dead machine left, is ended, so that the next line stands
    alone.

    :param limit: a file of so many bytes is gone on from in another.
    :param empty: whether it must hold nothing yet.
    :param durable: whether a new file's name is synced to the disk.
    :raises OSError: there is none that can be opened or ended.
    """
    directory.mkdir(DIRECTORY_MODE, exist_ok=True)
    part = max((name.part for name in _names(directory) if (name.day, name.worker) == (day, worker)), default=0)
    while True:
        path = directory / str(Name(day, worker, part))
        descriptor = open_at_once(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, FILE_MODE)
        try:
            if _usable(descriptor, 1 if empty else limit):
                if durable:
                    sync_folder(directory)
                return OpenFile(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        part += 1


def _usable(descriptor: int, limit: int) -> bool:
    """Lock it, and end its last line; False where it is another's, or full."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):  # a device behind a link would be locked for everyone
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks: then the operator sees to it that there is one Flowstack
    size = os.fstat(descriptor).st_size
    if size >= limit:
        return False
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        try:
            os.write(descriptor, b"\n")
        except OSError as error:
            if error.errno == errno.EFBIG:  # no room in this one, whatever the limit says
                return False
            raise
    return True
