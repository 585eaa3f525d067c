"""The SQLite index over the journal, which reports read. The journal is the truth: this is built from it at any time.

A row is taken over in the same transaction as the place in its file up to which the file was taken, so that a crash
between two rows costs nothing but time. The row's id, which is unique, is a second guard: a journal file that was
restored or replaced is read again, and no row counts twice. Rows of journal files that were removed stay.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from attrs import define, evolve, frozen
from twisted.logger import Logger

from flowstack.files import lock, open_regular
from flowstack.ledger.files import files
from flowstack.ledger.intake import Intake
from flowstack.ledger.reader import lines
from flowstack.ledger.schema import Unusable, create, is_damage, open_for_writing, set_aside
from flowstack.ledger.upgrades import carry_over

log = Logger()

_KEEP = "INSERT OR REPLACE INTO files (name, taken, seal, bad) VALUES (?, ?, ?, ?)"

BATCH_ROWS = 50_000
"""Rows in one transaction, about."""

LOCK_SECONDS = 30.0
"""For which another writer is waited for: it lets go after a transaction, unless it stands still."""

SEAL = 1024
"""Bytes before the place reached whose checksum tells whether the file is still the one that was read."""


@frozen(slots=True)
class Progress:
    """What :meth:`Index.catch_up` did, and what is left.

    :ivar rows: taken over now.
    :ivar bad_lines: found now, and skipped.
    :ivar torn: journal files that end in the middle of a line, as after a crash, or cannot be read; these wait until
        they grow.
    :ivar behind: bytes of the journal that are still to be taken over, without torn lines.
    :ivar last_row: when the youngest row taken over now had begun, in microseconds since 1970.
    """

    rows: int = 0
    bad_lines: int = 0
    torn: int = 0
    behind: int = 0
    last_row: int | None = None


class Taker(Protocol):
    """Takes rows.

    :ivar count: how many it holds.
    """

    @property
    def count(self) -> int:
        """See above."""

    def add(self, line: bytes, /) -> None:
        """Take a line of the journal.

        :raises ValueError: it is no row.
        """


@define(slots=True)
class Taken:
    """A journal file, and how far it was taken over.

    :ivar taken: bytes.
    :ivar seal: checksum of the last of them.
    :ivar bad: lines that are no rows, so far.
    :ivar torn: its size, if it is not to be looked at again before it has another one; otherwise 0.
    """

    name: str
    taken: int = 0
    seal: int = 0
    bad: int = 0
    torn: int = 0

    def is_of(self, path: Path) -> bool:
        """Whether what was taken still stands in a file, and not other bytes.

        :raises OSError: it cannot be read.
        """
        return _seal(path, self.taken) == self.seal

    def read(self, journal: Path, size: int, intake: Taker, most: int) -> None:
        """Hand rows over until ``most`` of them wait or no whole line is left.

        Where the file is shorter than it was, or another, it is read from its beginning.

        :param size: that of the file as it was just seen; it may have grown since.
        :raises OSError: it cannot be read.
        """
        path = journal / self.name
        if not self.is_of(path):
            self.taken = 0  # it is shorter than it was, or another: each row's id says whether it is known
        for self.taken, line in lines(path, self.taken):  # noqa: B020 - where to read on is what it gives
            try:
                if line is None:
                    raise ValueError("too long")
                intake.add(line)
            except ValueError:
                self.bad += 1
            if intake.count >= most:
                break
        else:
            self.torn = size if self.taken < size else 0
        self.seal = _seal(path, self.taken)


def index_path(state: Path) -> Path:
    """Where the index lies below the state directory."""
    return state / "ledger.sqlite"


def bytes_behind(connection: sqlite3.Connection, journal: Path) -> int:
    """Bytes of the journal that the index has not taken over, torn lines included."""
    return bytes_beyond(dict(connection.execute("SELECT name, taken FROM files")), journal)


def bytes_beyond(taken: Mapping[str, int], journal: Path) -> int:
    """Bytes of the journal's files beyond what was taken of each, torn lines included."""
    return sum(max(0, path.stat().st_size - taken.get(path.name, 0)) for path in files(journal))


def changed(journal: Path, taken: Mapping[str, int], torn: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The journal's files that are not as they were left, in order, each with its size and the bytes to read of it.

    :param torn: the sizes of files that wait until they grow.
    """
    found = {}
    for path in files(journal):
        with suppress(FileNotFoundError):  # removed since it was seen
            size, known = path.stat().st_size, taken.get(path.name, 0)
            if size not in (known, torn.get(path.name)):
                found[path.name] = size, size - known if size > known else size
    return found


class Index:
    """The writer's side of the index. Several may be there, also in several processes: they take turns.

    :param path: the database, made where it is missing, set aside where it is damaged or of another version.
    :param journal: the directory of the journal's files.
    :raises OSError: the database cannot be made.
    :raises sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path, journal: Path) -> None:
        self.path = path
        self._journal = journal
        self._lock = create(path.with_name(f"{path.name}.lock"))
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._torn: dict[str, int] = {}  # the sizes of files that wait until they grow
        try:
            with self._turn():
                pass
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._disconnect()
        os.close(self._lock)

    def catch_up(self, limit_rows: int | None = None) -> Progress:
        """Take over what the journal has and the index has not, in transactions of bounded size.

        :param limit_rows: stop after so many rows; what is then left is in :attr:`Progress.behind`.
        :raises sqlite3.Error: the database cannot be written now. Nothing is lost: try again.
        :raises OSError: the journal's directory cannot be read, or another writer lets nobody in.
        """
        progress = Progress()
        damaged = False
        while True:
            most = BATCH_ROWS if limit_rows is None else min(BATCH_ROWS, limit_rows - progress.rows)
            with self._turn() as connection:
                try:
                    behind = self._behind(connection)
                    if not behind or most <= 0:
                        return evolve(progress, torn=len(self._torn), behind=sum(left for _, left in behind.values()))
                    with _no_collection():
                        batch = self._take(connection, behind, most)
                except sqlite3.Error as error:
                    if damaged or not is_damage(error):
                        raise
                    damaged = True  # twice in a row it is the disk
                    self._set_aside("it is damaged")
                    continue
            progress = evolve(
                progress,
                rows=progress.rows + batch.rows,
                bad_lines=progress.bad_lines + batch.bad_lines,
                last_row=max(filter(None, (progress.last_row, batch.last_row)), default=None),
            )

    # The database, and whose turn it is

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """Wait for the one writer's lock; the connection is to the file that now has the name."""
        try:
            lock(self._lock, LOCK_SECONDS)
        except TimeoutError as error:
            raise OSError(f"{error.strerror}, which may be stopped or busy: look at it, or end it") from None
        try:
            yield self._connected()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and _identity(self.path) == self._identity:
            return self._connection
        self._disconnect()  # it was deleted, or set aside by another
        if not self.path.exists():
            for suffix in ("-wal", "-shm"):  # of a database that was deleted: the next would be damaged by them
                with suppress(FileNotFoundError):
                    os.unlink(f"{self.path}{suffix}")
        try:
            self._connection = open_for_writing(self.path, carry_over)
        except Unusable as error:
            self._set_aside(str(error))
            self._connection = open_for_writing(self.path, carry_over)
        self._identity = _identity(self.path)
        self._intake = Intake(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _set_aside(self, why: str) -> None:
        self._disconnect()
        aside = set_aside(self.path)
        log.warn("the index {path} is rebuilt: {why}. The old one is {aside}", path=self.path, why=why, aside=aside)

    # The journal's files

    def _behind(self, connection: sqlite3.Connection) -> dict[str, tuple[int, int]]:
        return changed(self._journal, dict(connection.execute("SELECT name, taken FROM files")), self._torn)

    def _take(self, connection: sqlite3.Connection, sizes: dict[str, tuple[int, int]], most: int) -> Progress:
        """Take over about ``most`` rows of these files in one transaction."""
        intake = self._intake
        connection.execute("BEGIN IMMEDIATE")
        try:
            known = {row[0]: Taken(*row) for row in connection.execute("SELECT name, taken, seal, bad FROM files")}
            read = []
            bad = 0
            for name, (size, _) in sizes.items():
                if intake.count >= most:
                    break
                file = known.get(name) or Taken(name)
                bad -= file.bad
                try:
                    file.read(self._journal, size, intake, most)
                except FileNotFoundError:
                    pass  # removed since it was seen; what was read of it stays
                except OSError as error:
                    log.error("left out the journal file {name}: {error}", name=name, error=str(error))
                    file.torn = size
                bad += file.bad
                read.append(file)
            last_row = intake.last_row
            rows = intake.store(behind=intake.count >= most)
            connection.executemany(_KEEP, ((file.name, file.taken, file.seal, file.bad) for file in read))
            connection.execute("COMMIT")
        except BaseException:
            intake.forget()
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        self._torn = {name: size for name, size in self._torn.items() if name not in sizes}
        self._torn |= {file.name: file.torn for file in read if file.torn}
        return Progress(rows, bad, last_row=last_row)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector: of what rows are made into nothing is a cycle, and looking for some is a sixth of
    the work."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _seal(path: Path, offset: int) -> int:
    """The checksum of what stands before an offset."""
    length = min(SEAL, offset)
    with open(open_regular(path), "rb", buffering=0) as file:
        file.seek(offset - length)
        return zlib.crc32(file.read(length))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
