"""A reader of event streams that keeps nothing but what it is in the middle of.

The rules are those of the WHATWG HTML standard, §9.2.6 "Interpreting an event stream": lines end in LF, CR or CRLF, a
line that begins with a colon is a comment, several ``data`` lines are one text with LF between, a blank line ends the
event. Pieces may be cut anywhere.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

_END_OF_LINE = re.compile(rb"\r\n?|\n")

_BOM = b"\xef\xbb\xbf"

_NAME_BYTES = 32
"""Longer than any field name that counts, its colon and a space; a line's beginning is held up to here."""

_TYPE_BYTES = 128
"""Kept of an event's type."""

_UNDECIDED, _DATA, _EVENT, _IGNORED = range(4)
"""What the line that is being read is: a name that may go on, or the value of a field."""


class EventReader(ABC):
    """Base of whoever reads events. The data comes in fragments, for an event may be larger than what one would hold.

    :ivar between: whether the last byte read ended an event, or there was none yet: nothing is held, and bytes that
        hold whole events only could be left out without harm to what follows.
    :ivar type: what the ``event`` field of the event in hand says so far.
    """

    __slots__ = ("_cr", "_first", "_has_data", "_head", "_line", "between", "type")

    def __init__(self) -> None:
        self.between = True
        self.type = b""
        self._head = b""  # of a line that is undecided
        self._line = _UNDECIDED
        self._has_data = False
        self._cr = False  # the last byte was CR: an LF would be of the same line end
        self._first = True

    @abstractmethod
    def data(self, fragment: bytes) -> None:
        """Take a part of an event's data, as it came; never empty."""

    @abstractmethod
    def event(self) -> None:
        """Take the end of an event that has a ``data`` field, if an empty one."""

    def read(self, piece: bytes) -> None:
        """Read on."""
        if not piece:
            return
        start = 1 if self._cr and piece.startswith(b"\n") else 0
        size = len(piece)
        for end in _END_OF_LINE.finditer(piece, start):
            at, after = end.span()
            if at > start:
                self._part(piece[start:at])
            self._end_line()
            start = after
        if start < size:
            self._part(piece[start:])
            self.between = False
        self._cr = piece.endswith(b"\r")

    def end(self) -> None:
        """The stream is over: what stands without a blank line after it is shown as an event too.

        The standard has a browser drop it, for it may be cut. A meter wants what was said; whether it is whole shows
        when its JSON is read.
        """
        if self._line or self._head:
            self._end_line()
        if self._has_data:
            self._end_event()

    def _part(self, fragment: bytes) -> None:
        line = self._line
        if line == _DATA:
            self.data(fragment)
        elif line == _UNDECIDED:
            self._decide(self._head + fragment)
        elif line == _EVENT:
            self.type = (self.type + fragment)[:_TYPE_BYTES]

    def _decide(self, head: bytes) -> None:
        """Find out which field a line is as soon as its name and one byte of its value are there."""
        if self._first:
            if len(head) < len(_BOM) and _BOM.startswith(head):
                self._head = head
                return
            head = head.removeprefix(_BOM)
            self._first = False
        name, colon, value = head.partition(b":")
        if not colon or not value:
            if len(name) > _NAME_BYTES or (colon and name not in (b"data", b"event")):
                self._head = b""
                self._line = _IGNORED
            else:
                self._head = head
            return
        self._head = b""
        if name == b"data":
            self._begin_data()
            value = value.removeprefix(b" ")
            if value:
                self.data(value)
        elif name == b"event":
            self._line = _EVENT
            self.type = value.removeprefix(b" ")[:_TYPE_BYTES]
        else:
            self._line = _IGNORED

    def _begin_data(self) -> None:
        self._line = _DATA
        if self._has_data:
            self.data(b"\n")
        self._has_data = True

    def _end_line(self) -> None:
        if self._line == _UNDECIDED:
            head, self._head = self._head, b""
            if self._first:
                head = head.removeprefix(_BOM)
                self._first = False
            if not head:
                self._end_event()
                return
            if head in (b"data", b"data:"):
                self._begin_data()
            elif head in (b"event", b"event:"):
                self.type = b""
        self._line = _UNDECIDED
        self.between = False

    def _end_event(self) -> None:
        if self._has_data:
            self.event()
        self._has_data = False
        self.type = b""
        self.between = True
