"""What a start makes of the counters that the last process left, and what of a damaged file.

Money is carried over always. The windows of rpm and tpm are carried over if the machine has not been started anew
since, as their times count from then, and if there are as many workers as before. What was in flight is not.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import define, frozen
from twisted.logger import Logger

from flowstack.files import lock, open_regular, replacing
from flowstack.limits.counters import (
    AFTER,
    BEFORE,
    CELL,
    COLUMNS,
    COPY,
    COUNT,
    FIRST_SLOTS,
    HEAD,
    LATEST,
    RESET,
    SEEN,
    SEQUENCE,
    TAG,
    TAG_CHECK,
    USED,
    VERSION,
    Counters,
    CountersError,
    Layout,
    boot_id,
    checksum,
    head_boot,
    head_version,
    head_workers,
)
from flowstack.limits.money import MAX, ended, roll
from flowstack.limits.windows import BUCKETS, TOTAL, bucket_of, sound
from flowstack.limits.windows import CELLS as WINDOW

log = Logger()

NAME, LOCK = "counters", "lock"

Money = tuple[int, int, int, int, int]
"""Sequence, latest, seen, used, and when the operator reset it."""


@frozen
class Now:
    """The time of a start, on the windows' clock and on the budgets'."""

    bucket: int
    wall: float


@define
class Found:
    """What became of the slots of an old file.

    :ivar carried: slots that were taken over.
    :ivar damaged: slots in which something was not as it was written.
    """

    carried: int = 0
    damaged: int = 0


def open_counters(
    directory: Path | None,
    workers: int,
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    boot: int | None = None,
) -> Counters:
    """Make the counters, with what still counts of those that the last process left.

    :param directory: where the file ``counters`` is, for as long as the process lives; None for memory that ends with
        the processes. It is made if it is not there.
    :param workers: how many processes will write, each its own columns.
    :param wall: the clock of the budgets' periods, UTC Unix seconds.
    :param monotonic: the clock of the windows, seconds since the machine's start.
    :param boot: a number that is another after each start of the machine; 0 carries no window over.
    :raises CountersError: another process uses the directory, or it cannot be written. A damaged file is none: it is
        set aside, and what its checksums vouch for is carried over.
    """
    boot = boot_id() if boot is None else boot
    if directory is None:
        return Counters.new(os.memfd_create("flowstack-limits"), workers, boot)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        _claim(directory)
        path = directory / NAME
        with replacing(path, 0o600, temporary=f"{NAME}.new", synced=True) as descriptor:
            counters = Counters.new(os.dup(descriptor), workers, boot)
            if os.path.lexists(path):
                _take_over(path, counters, Now(bucket_of(monotonic()), wall()), boot)
            counters.close()
    except OSError as error:
        raise CountersError(
            f"the limits' counters cannot be kept in {directory}: {error.strerror or error}. The service's user must "
            "be able to write there."
        ) from None
    return counters


def _claim(directory: Path) -> None:
    """Keep a second service out for as long as this process lives; workers do not inherit the descriptor."""
    fd = open_regular(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600, follow=False)
    try:
        lock(fd, 0)  # it survives the fork of a process that goes into the background
    except TimeoutError as error:
        os.close(fd)
        raise CountersError(
            f"the limits' counters in {directory} are in use by another process: {error.strerror}. Two services need "
            "a state directory each; end the other one, or give this one its own."
        ) from None


def _take_over(path: Path, counters: Counters, now: Now, boot: int) -> None:
    found = None
    with open(open_regular(path, follow=False), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= HEAD * CELL:
            with (
                mmap.mmap(file.fileno(), size // CELL * CELL, prot=mmap.PROT_READ) as mapped,
                memoryview(mapped).cast("q") as old,
            ):
                found = carry(old, counters, now, boot)
    if found is not None and not found.damaged:
        return
    aside = _free_name(path)
    path.replace(aside)
    if found is None:
        log.critical(
            "the limits' counters in {path} are damaged, or another version's, and are not used: every budget begins "
            "at zero. The file was set aside as {aside}.",
            path=str(path), aside=aside.name,
        )  # fmt: skip
    else:
        log.critical(
            "the limits' counters in {path} are damaged: {damaged} of {all} records do not have their checksum, and "
            "begin at zero or at what was charged some seconds before. The others are kept. The file was set "
            "aside as {aside}.",
            path=str(path), damaged=found.damaged, all=found.damaged + found.carried, aside=aside.name,
        )  # fmt: skip


def _free_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (path.with_name(f"{path.name}.damaged-{stamp}{suffix}") for suffix in ("", *(f"-{n}" for n in range(1000))))
    return next(name for name in names if not name.exists())


def carry(old: memoryview[int], counters: Counters, now: Now, boot: int) -> Found | None:
    """Copy what still counts into a new table.

    :return: None if the old table as a whole cannot be believed.
    """
    workers = head_workers(old, (1, VERSION))
    if workers is None:
        return None
    layout = Layout(workers, head_version(old))
    same = workers == counters.layout.workers and boot == head_boot(old) != 0
    found = Found()
    slots = (len(old) - HEAD) // layout.cells
    if slots < max(old[COUNT], FIRST_SLOTS) or HEAD + slots * layout.cells != len(old):
        found.damaged += 1  # it was cut short
    for number in range(slots):
        at = HEAD + number * layout.cells
        tag = old[at + TAG]
        if old[at + TAG_CHECK] != checksum(tag):
            if number < old[COUNT] or any(old[at + COLUMNS : at + layout.cells]):
                found.damaged += 1  # one that was being made has nothing in its columns
            continue
        whole, money = _money(old, at, tag, layout)
        if money is not None and ended(money[1], now.wall):
            money = None
        windows = list(_live_windows(old, at, layout, now.bucket)) if same else []
        if None in windows:
            whole = False
        if money or windows:
            slot = counters.append(tag)
            _put(counters, slot, tag, money, old[at : at + layout.cells], [w for w in windows if w is not None])
        if whole:
            found.carried += 1
        else:
            found.damaged += 1
    return found


def _money(old: memoryview[int], at: int, tag: int, layout: Layout) -> tuple[bool, Money | None]:
    """A slot's money records as one, and whether all were as they were written."""
    whole, best, reset = True, list[Money](), 0
    for number in range(layout.records):
        record = old[at + layout.money + number * layout.record :][: layout.record].tolist()
        both = record[layout.copies :]
        if not any(both):
            continue
        copies = [both[:COPY], both[COPY:]]
        good = [copy for copy in copies if copy[4] == checksum(tag, *copy[:4])]
        # A check of 0 is a copy that was being written, or none yet.
        whole = whole and all(copy in good or copy[4] == 0 for copy in copies)
        if good:
            newest = max(good)
            sequence, latest, seen, used, _ = newest
            if layout.copies > RESET:
                other = copies[copies[0] is newest]
                older = other if other in good or not any(other) else newest
                sound, used = _live(record, newest, older)
                whole = whole and sound
                reset = max(reset, record[RESET])
            best.append((sequence, latest, seen, used, reset))
    if not best:
        return whole, None
    now = max(best)[2]  # the label of the last write; records in a later one were not used since the clock was set back
    used = sum(roll(latest, seen, used, now)[2] for _, latest, seen, used, _ in best)
    latest = max(latest for _, latest, _, _, _ in best if latest >> 40 == now >> 40)
    return whole, (max(best)[0], latest, now, min(max(used, 0), MAX), reset)


def _live(record: list[int], newest: list[int], older: list[int]) -> tuple[bool, int]:
    """Whether the live cells of a record are as they were written, and what was used by them, or else by the copy.

    :param newest: the copies; ``older``: the same one where there is no other.
    """
    _, latest, seen, used, _ = newest
    value, before, after = record[USED], record[BEFORE], record[AFTER]
    if (record[LATEST], record[SEEN]) != (latest, seen):
        # Killed between a period's first copy and the live cells' last, its writer had charged nothing in it.
        return record[LATEST] in (latest, older[1]) and record[SEEN] in (seen, older[2]), used
    if value in (before, after):
        return True, value
    return False, before if before == after else used


def _live_windows(old: memoryview[int], at: int, layout: Layout, bucket: int) -> Iterator[int | None]:
    """Where in a slot the windows begin in which something counts still; None for one that cannot be."""
    for place in range(layout.rpm, layout.money, WINDOW):
        head = old[at + place]
        if 0 <= head <= bucket - BUCKETS or not (head or old[at + place + TOTAL]):
            continue  # what was in it is over, or it was never used
        yield place if sound(old, at + place, bucket) else None


def _put(
    counters: Counters, slot: int, tag: int, money: Money | None, old: memoryview[int], windows: list[int]
) -> None:
    cells = counters.cells
    for place in windows:
        cells[slot + place : slot + place + WINDOW] = old[place : place + WINDOW]
    if money is not None:
        sequence, latest, seen, used, reset = money
        at = slot + counters.layout.money
        cells[at + SEQUENCE] = sequence  # goes on, whatever the clock shows now
        counters.write_money(at, tag, 0.0, latest, seen, used)
        if reset:
            at += counters.layout.workers * counters.layout.record
            cells[at + RESET], cells[at + SEQUENCE] = reset, sequence
            counters.write_money(at, tag, 0.0, latest, seen, 0)
