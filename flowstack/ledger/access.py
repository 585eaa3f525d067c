"""The access log: one line a request, buffered, as a logger's event would cost more than the rest of the row."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from pathlib import Path
from typing import Final, cast

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from flowstack.config.settings import Log
from flowstack.files import open_at_once
from flowstack.ledger.row import FoldedRow, Row
from flowstack.memo import Memo

log = Logger()

FLUSH_SECONDS = 0.5
FLUSH_BYTES = 64 * 1024
KEEP_BYTES = 8 * 1024 * 1024
"""The most that waits while it cannot be written; what is more is counted and dropped."""

STOP_STALL_MS = 10
STOP_STALLS = 100
"""How often, and how long each time, a reader may take nothing at the end of the process."""

_NO_NOWAIT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""What a kernel, or a filter before it, says that does not know ``RWF_NOWAIT`` here."""

_PLAIN = re.compile(r"[!#-\[\]-~]+", re.ASCII).fullmatch
"""Visible ASCII without the space, the quote and the backslash."""


class AccessLog:
    """Writes a line for each row to a file or to standard output.

    Nothing waits for a reader: what a pipe or socket (journald's) does not take waits here, up to :data:`KEEP_BYTES`.

    :ivar lost: lines dropped because they could not be written.
    :ivar off: whether nothing is to be written.
    """

    def __init__(self, settings: Log, clock: IReactorTime) -> None:
        target = settings.requests
        self._path = None if target in ("-", "none") else Path(target)
        self._text = settings.format == "text"
        self._descriptor = 1
        self._waits = False  # whether a write might wait for a reader
        # One buffer, not the lines: to keep these and let go of them all at once has the allocator give memory back to
        # the system and ask for it again, which costs more than all else here.
        self._waiting = bytearray()
        self._stuck = False  # whether the last write failed, or would have had to wait
        self._told = False  # whether what lasts was told of
        self._lost_before = 0  # when that began
        self.off = target == "none"
        self.lost = 0
        self._loop = LoopingCall(self.flush)
        self._loop.clock = clock

    def start(self) -> None:
        """Open the file and begin to flush.

        :raises OSError: the file cannot be opened for appending.
        """
        if self.off:
            return
        if self._path is not None:
            self._descriptor = _opened(self._path)
        self._waits = _may_wait(self._descriptor)
        self._loop.start(FLUSH_SECONDS, now=False)

    def stop(self) -> None:
        """Flush, and close. A reader who stalls is waited for, but not for long."""
        if self._loop.running:
            self._loop.stop()
        self.flush()
        if self._waiting and self._waits:
            self._wait_for_reader()
        if self._waiting:
            self.lost += self._waiting.count(b"\n")
            log.error("the request log could not be written to its end; {lost} lines were lost", lost=self.lost)
            self._waiting.clear()
        if self._descriptor > 2:
            os.close(self._descriptor)
            self._descriptor = 1
        self.off = True

    def reopen(self) -> None:
        """Open the file anew, after it was renamed; the old one is kept where that fails."""
        self.flush()
        if self._path is None or self.off:
            return
        try:
            descriptor = _opened(self._path)
        except OSError as error:
            log.error("the request log cannot be reopened, the old file stays in use: {error}", error=str(error))
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._waits = _may_wait(descriptor)
        self.flush()

    def record(self, row: Row, line: bytes) -> None:
        """Take a row.

        :param line: the row as JSON, newline included: what is written, unless the format is ``text``.
        """
        waiting = self._waiting
        if len(waiting) >= KEEP_BYTES:
            self.lost += 1
            self._tell("its reader stalls, and no more can wait: LINES ARE LOST")
            return
        waiting += text_line(row) if self._text else line
        if len(waiting) >= FLUSH_BYTES and not self._stuck:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as it goes; keep the rest."""
        waiting = self._waiting
        try:
            while waiting:
                del waiting[: self._write()]
        except BlockingIOError:
            self._stuck = True
        except OSError as error:
            self._stuck = True
            self._tell(error.strerror or str(error))
        else:
            if self._told:
                log.warn("the request log is written again; {lost} lines were lost", lost=self.lost - self._lost_before)
            self._stuck = self._told = False
            self._lost_before = self.lost

    def _write(self) -> int:
        """Write some of what waits, and say how many bytes it was.

        :raises BlockingIOError: nothing can be written without waiting.
        """
        if self._waits:
            # What is not longer than this comes out of a pipe in one piece (POSIX write), whoever else writes to it:
            # lines of several workers do not run into each other.
            end = self._waiting.rfind(b"\n", 0, select.PIPE_BUF) + 1 or self._waiting.index(b"\n") + 1
            try:
                return os.pwritev(self._descriptor, [self._waiting[:end]], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NO_NOWAIT:
                    raise
                self._waits = False
        return os.write(self._descriptor, self._waiting)

    def _wait_for_reader(self) -> None:
        """Let a reader who is slow have the rest; one who stalls is not waited for long."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        stalls = 0
        while self._waiting and stalls < STOP_STALLS:
            before = len(self._waiting)
            poll.poll(STOP_STALL_MS)
            self.flush()
            stalls += len(self._waiting) == before

    def _tell(self, why: str) -> None:
        """Log what is the matter, once for as long as it lasts."""
        if not self._told:
            self._told = True
            log.error("the request log cannot be written, lines wait: {why}", why=why)


def text_line(row: Row) -> bytes:
    """One line of the format ``text``: seven words, then names and values; ``-`` stands for what is not known. One that
    stands for several requests, or for none as it settles an earlier one's work, says last how many.

    Its bytes are visible ASCII. What is not in a client's words, and spaces, quotes and backslashes, is written as
    Python would escape it (``\\x20``, ``\\u4e2d``), so that a word is a word to ``awk`` and harmless to a terminal.
    """
    return (
        f"{row['started_at'].isoformat(timespec='milliseconds')[:23]}Z {row['client_addr'] or '-'} {row['key_id']} "
        f"{_word(row['method'])} {_word(row['path'])} {_number(row['status'])} {row['end']} "
        f"error_code={_word(row['error_code'])} model={_word(row['model'] or row['model_requested'])} "
        f"prompt_tokens={_number(row['prompt_tokens'])} completion_tokens={_number(row['completion_tokens'])} "
        f"cost_usd={_number(row['cost_usd'])} first_byte_ms={_number(row['first_byte_ms'])} "
        f"duration_ms={_number(row['duration_ms'])} overhead_ms={_number(row['overhead_ms'])} "
        f"request_id={row['request_id']}{_many(row)}\n"
    ).encode("ascii")


def _many(row: Row) -> str:
    requests = cast(FoldedRow, row)["requests"] if "requests" in row else 1
    return f" requests={requests}" if requests != 1 else ""


def _number(value: float | None) -> float | str:
    return "-" if value is None else value


def _word(text: str | None) -> str:
    return _words[text] if text else "-"


def _one_word(text: str) -> str:
    if _PLAIN(text):
        return text
    return "".join(character if _PLAIN(character) else _escaped(character) for character in text)


_words: Final = Memo(_one_word)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _opened(path: Path) -> int:
    return open_at_once(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def _may_wait(descriptor: int) -> bool:
    """Whether a write may wait for a reader, and can be told not to."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return hasattr(os, "RWF_NOWAIT") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))
