"""The counters of all keys, in memory that the processes of one machine share.

A file that each process maps (or, without a state directory, a nameless one in memory), of 64-bit cells: a head, then
slots of one size. A slot belongs to one key and scope; in it each worker has its own column for each kind of counter::

    slot    = tag, check, then the columns
    columns = in flight (a cell a worker), rpm windows, tpm windows, money records (one a worker, one the operator's)

Only a worker itself writes its columns, all workers read them: so nothing needs a lock but the making of a slot, and a
worker that is killed at any instruction leaves nothing locked. Cells are written and read whole (aligned 64-bit moves).
The last money record is for whoever resets a budget beside the running service.

Slots are never moved or given to another key while a process runs; each start begins with a new file, into which
:mod:`flowstack.limits.restore` carries what still counts. The file's blocks are reserved when it grows, as a write into
a hole of a full disk would kill the process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from twisted.logger import Logger

from flowstack.limits.windows import CELLS as WINDOW

log = Logger()

CELL: Final = 8
MAGIC = int.from_bytes(b"fsklimit", "big")
VERSION = 2
"""Of the layout. A file of version 1 is carried over."""
HEAD: Final = 4096 // CELL
"""Cells before the first slot."""
_MAGIC, _VERSION, _WORKERS, _BOOT, _CHECK, COUNT = range(6)

TAG, TAG_CHECK, COLUMNS = range(3)
"""Where things lie in a slot."""

LATEST: Final = 0
SEEN: Final = 1
USED: Final = 2
BEFORE: Final = 3
AFTER: Final = 4
RESET: Final = 5
SEQUENCE: Final = 6
COPIES: Final = 7
COPY: Final = 5
MONEY: Final = COPIES + 2 * COPY
"""A money record: what :mod:`flowstack.limits.money` knows; what was used, written once before ``USED`` and once
after it; when the operator reset the budget (microseconds since 1970, 0 for never; in the operator's record alone); a
sequence number; and two copies in turn, each with sequence, latest, seen, used and check.

A restart believes the newer copy that is whole of the periods, and of what was used in them the live cells: whenever a
process is killed, ``USED`` equals one of its two neighbours. Where it does not, something else wrote there. A period
begins in a copy, and nothing is charged in it before the live cells have followed."""

_OLD_COPIES, _OLD_MONEY = 4, 4 + 2 * COPY
"""Of a file of version 1, in which only the copies are kept."""

FIRST_SLOTS = 64
GROWTH = 1 << 20
"""Bytes by which the table grows: few enough that the space is found in no time."""

MAX_WORKERS = 1024
_LOCKS = 1 << 40
_SLOTS_LOCK = _LOCKS - 1
_OPERATORS_LOCK = _LOCKS - 2


_PACKS = [Struct(f"{count}q").pack for count in range(6)]


class CountersError(Exception):
    """The counters cannot be used; the text says why, and what to do."""


def checksum(*values: int) -> int:
    """Tells whether cells are what was written; never 0, which is what an empty cell holds."""
    return crc32(_PACKS[len(values)](*values)) + 1


def boot_id() -> int:
    """A number that is another after each start of the machine; 0 where the kernel gives none."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        return 0
    return _number(text.encode())


def tag_of(name: str) -> int:
    """A slot's mark: 63 bits, never 0, such that no two names have the same."""
    return _number(name.encode("utf-8", "surrogatepass"))


def _number(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1 or 1


class Layout:
    """Where a slot's columns lie, in cells from its beginning on, for a number of workers.

    :ivar records: money records.
    :ivar record: cells of one, of which the copies begin at ``copies``.
    """

    def __init__(self, workers: int, version: int = VERSION) -> None:
        self.workers = workers
        self.parallel = COLUMNS
        self.rpm = self.parallel + workers
        self.tpm = self.rpm + workers * WINDOW
        self.money = self.tpm + workers * WINDOW
        old = version == 1
        self.records = workers if old else workers + 1
        self.record, self.copies = (_OLD_MONEY, _OLD_COPIES) if old else (MONEY, COPIES)
        self.cells = self.money + self.records * self.record


class Counters:
    """A mapping of the shared cells. Made by :meth:`create` in the first process, by :meth:`attach` in workers.

    :ivar cells: all of them; another object after the table has grown, with the same offsets.
    :ivar worker: which columns are this process's own.
    """

    def __init__(self, fd: int, workers: int, worker: int) -> None:
        self.layout = Layout(workers)
        self.worker = worker
        self._fd = fd
        self._slots: dict[int, int] = {}
        self._known = 0
        self._maps: list[mmap.mmap] = []
        self.cells: memoryview[int]
        self._map()

    @classmethod
    def new(cls, fd: int, workers: int, boot: int) -> Counters:
        """Make an empty table of an empty file."""
        if not 1 <= workers <= MAX_WORKERS:
            raise CountersError(f"found {workers} workers, expected 1 to {MAX_WORKERS}")
        _reserve(fd, (HEAD + FIRST_SLOTS * Layout(workers).cells) * CELL)
        counters = cls(fd, workers, 0)
        static = (MAGIC, VERSION, workers, boot)
        for place, value in enumerate((*static, checksum(*static))):
            counters.cells[place] = value
        return counters

    @classmethod
    def attach(cls, fd: int, worker: int) -> Counters:
        """In a worker: take over the columns of ``worker``, in which nothing is in flight yet.

        :param fd: what the parent's :meth:`fileno` is here.
        :raises CountersError: that is no table of this version, or not for so many workers.
        """
        workers = _workers_of(fd)
        if not 0 <= worker < workers:
            raise CountersError(f"descriptor {fd} holds no counters for worker {worker} of this version")
        counters = cls(fd, workers, worker)
        counters.clear(worker)
        with counters._lock(_SLOTS_LOCK):
            counters._catch_up()  # here, as with 100,000 slots it would keep a request waiting for 40 ms
        return counters

    @classmethod
    def beside(cls, fd: int) -> Counters:
        """For the operator, beside the service: to read all of it, and to write the operator's money records.

        :raises CountersError: as :meth:`attach`.
        """
        workers = _workers_of(fd)
        return cls(fd, workers, workers)

    def fileno(self) -> int:
        """The descriptor to hand down to workers."""
        return self._fd

    @property
    def count(self) -> int:
        """Slots in use."""
        return self.cells[COUNT]

    def slot_at(self, number: int) -> int:
        """Where a slot begins, in cells."""
        return HEAD + number * self.layout.cells

    def slot(self, name: str) -> int:
        """Where the slot of a name begins, in cells; it is made if there is none yet.

        :raises OSError: it cannot be made: no space is left.
        """
        tag = tag_of(name)
        number = self._slots.get(tag)
        if number is None:
            with self._lock(_SLOTS_LOCK):
                self._catch_up()
                number = self._slots.get(tag)
                if number is None:
                    return self.append(tag)
        return self.slot_at(number)

    def clear(self, worker: int) -> None:
        """Forget what a worker had in flight: it is gone. Its tokens and money stay charged.

        For the parent, when a worker's process has ended; :meth:`attach` does so too.
        """
        count, cells = self.count, self.layout.cells  # before the map, which then holds all of these
        self._map()
        if count:
            first = HEAD + self.layout.parallel + worker
            column = self.cells[first : first + (count - 1) * cells + 1 : cells]
            column[:] = memoryview(bytes(count * CELL)).cast("q")

    def check(self) -> None:
        """See that all slots which are said to be there are: for whoever reads a file that nobody may have looked at.

        :raises CountersError: they are not.
        """
        count = self.count
        self._map()
        if not 0 <= count <= (len(self.cells) - HEAD) // self.layout.cells:
            raise CountersError(f"found {count} slots, expected as many as the file has room for")

    def find(self, name: str) -> int | None:
        """Where the slot of a name begins, in cells; None where there is none. Takes no lock: slots are only added."""
        tag = tag_of(name)
        number = self._slots.get(tag)
        if number is None and self.count > self._known:
            self._catch_up()
            number = self._slots.get(tag)
        return None if number is None else self.slot_at(number)

    @contextmanager
    def operators_lock(self) -> Iterator[None]:
        """Hold off whoever else would write the operator's records."""
        with self._lock(_OPERATORS_LOCK):
            yield

    @contextmanager
    def locked(self, at: int) -> Iterator[None]:
        """Hold the lock of a slot against the other workers; the kernel frees it if this process dies."""
        with self._lock(_LOCKS + at):
            yield

    def write_money(self, at: int, tag: int, wall: float, latest: int, seen: int, used: int) -> None:
        """Bring a money record to a period: first the older of the copies for a restart, then what is read meanwhile.

        :param at: where the record begins.
        :param wall: UTC Unix seconds, by which a restart knows which worker's record is the newest.
        """
        cells = self.cells
        following = cells[at + SEQUENCE] + 1
        sequence = max(following, int(wall) * 2 + (following & 1))  # odd and even take turns
        place = at + COPIES + (sequence & 1) * COPY
        cells[place + 4] = 0  # no check: a copy that is not finished yet
        for offset, value in enumerate((sequence, latest, seen, used)):
            cells[place + offset] = value
        cells[place + 4] = checksum(tag, sequence, latest, seen, used)
        cells[at + SEQUENCE] = sequence
        # What was used first: until the labels follow, a reader takes it for the old period's.
        cells[at + BEFORE] = cells[at + USED] = cells[at + AFTER] = used
        cells[at + SEEN], cells[at + LATEST] = seen, latest

    def close(self) -> None:
        """Have the kernel write all of it to the disk."""
        self._maps[-1].flush()

    @contextmanager
    def _lock(self, byte: int) -> Iterator[None]:
        # A POSIX record lock belongs to the process. flock would belong to the open file, which all workers share.
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, byte)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
            if len(self._maps) > 1:
                del self._maps[:-1]  # not before: to close one drops each lock that this process holds on the file

    def _map(self) -> None:
        size = os.fstat(self._fd).st_size
        if not self._maps or len(self._maps[-1]) < size:
            self._maps.append(mmap.mmap(self._fd, size))
            self.cells = memoryview(self._maps[-1]).cast("q")

    def _catch_up(self) -> None:
        """Learn of the slots that others have made. Under the lock."""
        count = self.count
        if count > self._known:
            self._map()
            step = self.layout.cells
            first = self.slot_at(self._known)
            tags = self.cells[first : self.slot_at(count - 1) + 1 : step].tolist()
            self._slots.update(zip(tags, range(self._known, count), strict=True))
            self._known = count

    def append(self, tag: int) -> int:
        """Make a slot, and say where. Under the lock, or before any other process has the table."""
        number = self._known
        at = self.slot_at(number)
        if at + self.layout.cells > len(self.cells):
            slots = GROWTH // (self.layout.cells * CELL) + 1
            _reserve(self._fd, self.slot_at(number + slots) * CELL)
            self._map()
        cells = self.cells
        cells[at + TAG_CHECK] = checksum(tag)
        cells[at + TAG] = tag
        cells[COUNT] = self._known = number + 1
        self._slots[tag] = number
        return at


def _workers_of(fd: int) -> int:
    """For how many workers the table of a descriptor is.

    :raises CountersError: it is none of this version.
    """
    try:
        workers = head_workers(memoryview(os.pread(fd, HEAD * CELL, 0)).cast("q"))
    except (OSError, TypeError) as error:
        raise CountersError(f"descriptor {fd} holds no counters: {error}") from None
    if workers is None:
        raise CountersError(f"descriptor {fd} holds no counters of this version")
    return workers


def is_earlier(fd: int) -> bool:
    """Whether the table of a descriptor is of a version that a start carries over."""
    try:
        return head_workers(memoryview(os.pread(fd, HEAD * CELL, 0)).cast("q"), range(1, VERSION)) is not None
    except (OSError, TypeError):
        return False


def head_version(head: memoryview[int]) -> int:
    """The version of a table, if it is one."""
    return head[_VERSION] if len(head) >= HEAD else 0


def head_workers(head: memoryview[int], versions: Container[int] = (VERSION,)) -> int | None:
    """For how many workers a table is made; None if it is none of these versions, or damaged."""
    if head_version(head) not in versions or head[_MAGIC] != MAGIC:
        return None
    if head[_CHECK] != checksum(*head[:_CHECK].tolist()) or not 1 <= head[_WORKERS] <= MAX_WORKERS:
        return None
    return head[_WORKERS]


def head_boot(head: memoryview[int]) -> int:
    """The boot in which a table was made."""
    return head[_BOOT]


def _reserve(fd: int, size: int) -> None:
    old = os.fstat(fd).st_size
    try:
        os.posix_fallocate(fd, old, size - old)
    except OSError as error:
        raise OSError(error.errno, f"no space for the limits' counters ({size} bytes): {error.strerror}") from None
