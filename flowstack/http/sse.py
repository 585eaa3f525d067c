"""A reader of event streams that keeps nothing but what it is in the middle of.

The rules are those of the WHATWG HTML standard, §9.2.6 "Interpreting an event stream": lines end in LF, CR or CRLF, a
line that begins with a colon is a comment, several ``data`` lines are one text with LF between, a blank line ends the
event. Pieces may be cut anywhere. Each byte is looked at once, and runs of lines are taken by one expression: a stream
of nothing but line ends costs no more for each byte than one of long events.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Final

LINE_END: Final = rb"(?>\r\n|[\r\n])"
DATA: Final = rb"data[:\r\n]"
"""How a line of data begins; any other field's name is longer, or another."""

# Of CRLF the LF is enough to go by; a CR before a line end that is no LF is one itself.
blank_line: Final = re.compile(rb"\n(?:\r\n?|\n)|\r\r\n?").search
"""Between events, with the end of the line before it."""

_line_end = re.compile(LINE_END).search
_one_line_end = re.compile(LINE_END).match
_idle_lines = re.compile(rb"(?:[\r\n]++|(?!" + DATA + rb")[^\r\n]++" + LINE_END + rb")++").match
_other_lines = re.compile(rb"(?:(?!" + DATA + rb")[^\r\n]++" + LINE_END + rb")++").match
_data_lines = re.compile(rb"(?:data(?::[^\r\n]*+)?+" + LINE_END + rb")++").match
_values = re.compile(rb"data(?:: ?([^\r\n]*+))?+" + LINE_END).findall
_whole_event = re.compile(rb"data: ?([^\r\n]*+)(?:\n\n|\r\n\r\n|\r\r\n?+)").match
"""As nearly all upstreams write theirs, of one line."""

_BOM = b"\xef\xbb\xbf"

_BEGUN, _UNDECIDED, _DATA, _OTHER = range(4)
"""Where the reader is: before a line, in the first bytes of one, in a line of data, or in one that does not matter."""


def after_blank(piece: bytes, start: int, end: int) -> int:
    """The offset after the last blank line that begins between these; ``start`` where there is none."""
    last = max(piece.rfind(b"\n\n", start, end), piece.rfind(b"\n\r", start, end), piece.rfind(b"\r\r", start, end))
    if last < 0:
        return start
    blank = blank_line(piece, last)
    return start if blank is None else blank.end()


class EventReader(ABC):
    """Base class of readers. The data comes in fragments, as an event may be too large to hold.

    :ivar between: whether nothing is held, so that whole events could be left out without harm to what follows.
    :ivar steps: how much work was done so far; each step is some tenths of a microsecond, at most two.
    """

    __slots__ = ("_cr", "_first", "_has_data", "_head", "_line", "between", "steps")

    def __init__(self) -> None:
        self.between = True
        self.steps = 0
        self._head = b""  # of a line, or of the stream, that is undecided
        self._line = _BEGUN
        self._has_data = False
        self._cr = False  # the last byte was CR: an LF would be of the same line end
        self._first = True

    @abstractmethod
    def data(self, fragment: bytes) -> None:
        """Take a part of an event's data, as it came; never empty."""

    @abstractmethod
    def event(self) -> None:
        """Take the end of an event that has a ``data`` field, if an empty one."""

    def whole(self, data: bytes) -> None:
        """Take all of an event at once, in place of the other two."""
        if data:
            self.data(data)
        self.event()

    def read(self, piece: bytes) -> None:
        """Read on."""
        if self._first:
            piece = self._without_mark(piece)
        if not piece:
            return
        at, end = 1 if self._cr and piece[0] == 0x0A else 0, len(piece)
        self._cr = piece[-1] == 0x0D
        if self._line != _BEGUN:
            at = self._go_on(piece, at)
        while at < end:
            at = self._in_event(piece, at) if self._has_data else self._outside(piece, at)
        self.between = self._line == _BEGUN and not self._has_data

    def end(self) -> None:
        """The stream is over: what stands without a blank line after it is shown as an event too.

        The standard has a browser drop it, for it may be cut. A meter wants what was said; whether it is whole shows
        when its JSON is read.
        """
        if self._line == _UNDECIDED:
            self._take_line(self._head)
        if self._has_data:
            self._end_event()

    def _without_mark(self, piece: bytes) -> bytes:
        """The stream's first bytes without a byte order mark; empty while it may be one."""
        piece = self._head + piece
        self._head = b""
        if len(piece) < len(_BOM) and _BOM.startswith(piece):
            self._head = piece
            self.between = not piece
            return b""
        self._first = False
        return piece.removeprefix(_BOM)

    # Each of these takes the piece and an offset in it, and returns the offset of what it left.

    def _outside(self, piece: bytes, at: int) -> int:
        """Before a line, and of no event is any data in hand."""
        run = _idle_lines(piece, at)
        if run is not None:
            self.steps += 1 + (run.end() - at >> 5)
            return run.end()
        event = _whole_event(piece, at)
        if event is not None:
            self.steps += 1
            self.whole(event[1])
            return event.end()
        return self._take_data(piece, at)

    def _in_event(self, piece: bytes, at: int) -> int:
        """Before a line, and within an event."""
        blank = _one_line_end(piece, at)
        if blank is not None:
            self.steps += 1
            self._end_event()
            return blank.end()
        run = _other_lines(piece, at)
        if run is not None:
            self.steps += 1 + (run.end() - at >> 5)
            return run.end()
        return self._take_data(piece, at)

    def _take_data(self, piece: bytes, at: int) -> int:
        """Lines of data, or a line that the piece does not end."""
        run = _data_lines(piece, at)
        if run is None:
            self._decide(piece[at:])
            return len(piece)
        values = _values(piece, at, run.end())
        self.steps += 1 + (len(values) >> 1)
        if self._has_data:
            self.data(b"\n" + b"\n".join(values))
        elif text := b"\n".join(values):
            self.data(text)
        self._has_data = True
        return run.end()

    def _go_on(self, piece: bytes, at: int) -> int:
        """Within a line that an earlier piece began."""
        self.steps += 1
        found = _line_end(piece, at)
        stop, after = (len(piece), len(piece)) if found is None else found.span()
        if self._line == _UNDECIDED:
            line, self._head = self._head + piece[at:stop], b""
            if found is None:
                self._decide(line)
                return after
            self._take_line(line)
        elif self._line == _DATA and stop > at:
            self.data(piece[at:stop])
        if found is not None:
            self._line = _BEGUN
        return after

    def _decide(self, line: bytes) -> None:
        """Find out what a line is as soon as the bytes are there that tell, and one of its value."""
        if line == b"data:" or b"data".startswith(line):
            self._head = line
            self._line = _UNDECIDED
        elif line.startswith(b"data:"):
            self._take_line(line)
            self._line = _DATA
        else:
            self._line = _OTHER

    def _take_line(self, line: bytes) -> None:
        """Take a line of which more than nothing is there, without its end."""
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
        elif line == b"data":
            value = b""
        else:
            return
        if self._has_data:
            value = b"\n" + value
        self._has_data = True
        if value:
            self.data(value)

    def _end_event(self) -> None:
        self._has_data = False
        self.event()
