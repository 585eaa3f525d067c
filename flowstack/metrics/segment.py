"""One worker's counts, in memory that it shares with whoever reads them.

A segment is anonymous memory behind a file descriptor. It belongs to the process that made it, the parent, and is
handed down to a worker; the worker that takes a dead one's place goes on with the same segment, so that no counter
ever goes down. There is one writer and any number of readers, and no lock:

- **cells**, 8 bytes each, aligned, hold a double: the processor stores one whole or not at all, so that neither a
  reader nor SIGKILL meets half a number. Counts stay exact up to 2 ** 53.
- the **directory** says what stands in which cells: for each slot a kind and its labels' values. It only grows. An
  entry is written first and counted in after, and carries a checksum, so that one that a killed worker left half
  written is not seen, and is written over by the next.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from zlib import crc32

import orjson
from attrs import frozen
from twisted.logger import Logger

from flowstack.metrics.families import LAYOUT

log = Logger()

MAGIC = b"FLOWMET1"
HEADER = struct.Struct("<8sQQQ")  # magic, layout, bytes of the directory in use, cells in use
ENTRY = struct.Struct("<II")  # bytes of the entry's text, their CRC32

DIRECTORY_AT = 64
DIRECTORY_BYTES = 512 * 1024 - DIRECTORY_AT
CELLS_AT = DIRECTORY_AT + DIRECTORY_BYTES
CELLS = 64 * 1024
SIZE = CELLS_AT + 8 * CELLS
"""1 MiB, of which only the pages that are in use take memory."""

_USED_AT = 16
_CELLS_USED_AT = 24
_NUMBER = struct.Struct("<Q")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@frozen(slots=True)
class Slot:
    """Cells that belong together.

    :ivar kind: what is counted there.
    :ivar labels: the values of that kind's labels.
    :ivar start: the first cell's index.
    :ivar size: how many cells.
    """

    kind: str
    labels: tuple[str, ...]
    start: int
    size: int


class Segment:
    """See the module. Made by :meth:`create` or :meth:`attach`.

    :ivar cells: all cells, as doubles by index.
    """

    def __init__(self, descriptor: int, owns: bool) -> None:
        self._descriptor = descriptor
        self._owns = owns
        self._memory = mmap.mmap(descriptor, SIZE)
        self.cells: memoryview[float] = memoryview(self._memory)[CELLS_AT:].cast("d")

    @classmethod
    def create(cls, layout: int = LAYOUT) -> Segment:
        """Make an empty one.

        :param layout: a number that stands for the kinds and their cells; who attaches must mean the same.
        :raises OSError: the system gives no memory or no descriptor.
        """
        descriptor = os.memfd_create("flowstack-metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SIZE)
        # Whoever holds the descriptor could cut the memory off under the others, which would then die of SIGBUS.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        segment = cls(descriptor, True)
        HEADER.pack_into(segment._memory, 0, MAGIC, layout, 0, 0)
        return segment

    @classmethod
    def attach(cls, descriptor: int, layout: int = LAYOUT) -> Segment:
        """Go on with one that was handed down.

        Where it is none, or of another release of Flowstack (the package was changed beneath a running parent), a new
        one takes its place: the log says that what is counted there is not seen; requests are served all the same.

        :param descriptor: may be closed afterwards.
        :raises OSError: the system gives no memory or no descriptor.
        """
        try:
            segment = cls(descriptor, False)
            magic, found, _, _ = HEADER.unpack_from(segment._memory)
            if magic == MAGIC and found == layout:
                return segment
            segment.close()
            fault = "it is of another release of Flowstack"
        except (OSError, ValueError) as error:
            fault = str(error)
        log.error(
            "metrics: the memory on descriptor {descriptor} cannot be used, {fault}; what this process counts is not "
            "seen until the service is restarted",
            descriptor=descriptor,
            fault=fault,
        )
        return cls.create(layout)

    def fileno(self) -> int:
        """The descriptor, to be handed down."""
        return self._descriptor

    def close(self) -> None:
        """Let go of the memory."""
        self.cells.release()
        self._memory.close()
        if self._owns:
            os.close(self._descriptor)

    # The writer's side.

    def add(self, kind: str, labels: tuple[str, ...], size: int) -> Slot | None:
        """Take cells, all 0, for a kind and labels that have none yet.

        :return: None where the segment is full.
        """
        memory = self._memory
        (used,) = _NUMBER.unpack_from(memory, _USED_AT)
        (start,) = _NUMBER.unpack_from(memory, _CELLS_USED_AT)
        text = orjson.dumps((kind, labels, start, size))
        at = DIRECTORY_AT + used
        end = at + ENTRY.size + len(text)
        if end > CELLS_AT or start + size > CELLS:
            return None
        memory[at + ENTRY.size : end] = text
        ENTRY.pack_into(memory, at, len(text), crc32(text))
        # First the cells: a worker that is killed between the two lines leaves a gap, never two slots on one cell.
        _NUMBER.pack_into(memory, _CELLS_USED_AT, start + size)
        _NUMBER.pack_into(memory, _USED_AT, end - DIRECTORY_AT)
        return Slot(kind, labels, start, size)

    # The readers' side.

    def slots(self) -> list[Slot]:
        """All slots, in the order in which they were taken."""
        memory, found = self._memory, []
        (used,) = _NUMBER.unpack_from(memory, _USED_AT)
        at, end = DIRECTORY_AT, DIRECTORY_AT + min(used, DIRECTORY_BYTES)
        while at + ENTRY.size <= end:
            size, checksum = ENTRY.unpack_from(memory, at)
            at += ENTRY.size
            text = memory[at : at + size]
            if at + size > end or crc32(text) != checksum:
                break  # another processor's stores are not all seen yet; the next reading has them
            kind, labels, start, count = orjson.loads(text)
            found.append(Slot(kind, tuple(labels), start, count))
            at += size
        return found

    def values(self, slot: Slot) -> list[float]:
        """What stands in a slot's cells."""
        return list(self.cells[slot.start : slot.start + slot.size])
