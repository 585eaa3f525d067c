"""Some small fields of a ``multipart/form-data`` body (RFC 7578, RFC 2046 §5.1) that comes in pieces.

As with JSON, the upstream reads the same bytes with a parser of its own, and what the two might take differently is a
fault: a preamble, an epilogue, the boundary anywhere but in a delimiter, line ends that are not CRLF, folded or
repeated part headers, escapes in a field's name, transfer encodings and character sets. No client that is known sends
any of these. Files are skipped by ``find``; what is held of them is shorter than a delimiter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Final

from flowstack.policy.usage.members import MOST

MOST_HEAD: Final = 8 * 1024
"""Bytes of one part's headers."""

_EPILOGUE = 8  # bytes of line ends after the last delimiter that are let pass

_PARAMETER = rb"""[ \t]*;[ \t]*([A-Za-z*]+)=("[^"\r\n]*"|[!#$%&'*+\-.^_`|~0-9A-Za-z]+)"""
_parameters = re.compile(_PARAMETER).findall
_content_type = re.compile(rb"multipart/form-data((?:" + _PARAMETER + rb")+)[ \t]*", re.IGNORECASE).fullmatch
_boundary = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? !#$%&*^`|~]{0,69}[0-9A-Za-z'()+_,\-./:=?!#$%&*^`|~]").fullmatch
_disposition = re.compile(rb"form-data((?:" + _PARAMETER + rb")+)[ \t]*", re.IGNORECASE).fullmatch
_header = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)").fullmatch
_plain_text = re.compile(rb'text/plain(?:[ \t]*;[ \t]*charset="?(?:utf-?8|us-ascii)"?)?[ \t]*', re.IGNORECASE).fullmatch

_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")
_PARAMETERS = ({b"name"}, {b"name", b"filename"}, {b"name", b"filename", b"filename*"})


class _Fault(Exception):
    """Why the bytes are no form."""


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a Content-Type names, or None where it names none, or none that all would read alike."""
    found = _content_type(content_type)
    if found is None:
        return None
    named = [value for name, value in _parameters(found[1]) if name.lower().startswith(b"boundary")]
    if len(named) != 1 or b"\\" in named[0]:
        return None
    value: bytes = named[0].strip(b'"')
    return value if _boundary(value) else None


class Fields:
    """Reads the wanted fields of a form as its bytes come.

    :param boundary: of :func:`boundary_of`.
    :param names: of the fields that are wanted.
    :param most: bytes of one field that are kept.
    :ivar values: the fields' text; of a repeated one the last.
    :ivar repeated: the wanted names that came more than once.
    :ivar too_large: the wanted names whose last value was longer than the limit.
    :ivar fault: why this is no form, or None.
    :ivar size: bytes that came.
    :ivar final: the offset of the last delimiter, once it has come.
    :ivar pending: the offset of the first byte that may yet turn out to belong to the last delimiter.
    """

    __slots__ = ("_delimiter", "_most", "_names", "_rest", "_seen", "_step", "_text", "_wanted", "fault", "final",
                 "repeated", "size", "too_large", "values")  # fmt: skip

    def __init__(self, boundary: bytes, names: Set[str], most: int = MOST) -> None:
        self._delimiter = b"--" + boundary
        self._names = names
        self._most = most
        self._step: _Step = Fields._start
        self._rest = b""
        self._seen: set[str] = set()
        self._wanted: str | None = None  # the field of the part at hand
        self._text = bytearray()
        self.values: dict[str, str] = {}
        self.repeated: set[str] = set()
        self.too_large: set[str] = set()
        self.fault: str | None = None
        self.size = 0
        self.final: int | None = None

    @property
    def pending(self) -> int:
        """See the class."""
        if self.final is not None and self.fault is None:
            return self.final
        return self.size - len(self._rest)

    def feed(self, piece: bytes) -> None:
        """Read on. After a fault nothing more is read."""
        self.size += len(piece)
        if self.fault is not None:
            return
        data = self._rest + piece if self._rest else piece
        at: int | None = 0
        start = 0
        try:
            while at is not None:
                start = at
                at = self._step(self, data, start)
        except _Fault as fault:
            self.fault = str(fault)
            self._rest = b""
            self._text = bytearray()
        else:
            self._rest = data[self._keep(data, start) :]

    def finish(self) -> None:
        """The end has come."""
        if self.fault is None and self.final is None:
            self.fault = "it ends before its last boundary"

    # Each step takes what is at hand and an offset in it, and returns the offset at which the next begins, or None
    # where more is needed.

    def _start(self, data: bytes, at: int) -> int | None:
        size = len(self._delimiter)
        if data[:size] != self._delimiter[: len(data)]:
            raise _Fault("it does not begin with its boundary")
        return self._delimited(data, 0, 0)

    def _delimited(self, data: bytes, line: int, at: int) -> int | None:
        """What follows the delimiter.

        :param line: where the delimiter begins, with its line end.
        :param at: where its boundary begins.
        """
        after = at + len(self._delimiter)
        mark = data[after : after + 2]
        if mark == b"\r\n":
            self._step = Fields._head
        elif mark == b"--":
            self.final = self.size - len(data) + line
            self._step = Fields._epilogue
        elif len(mark) < 2 and mark in b"\r-":
            return None
        else:
            raise _Fault("its boundary stands within a line")
        return after + 2

    def _head(self, data: bytes, at: int) -> int | None:
        end = data.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(data)) - at > MOST_HEAD:
            raise _Fault(f"a part's headers are longer than {MOST_HEAD} bytes")
        if end < 0:
            return None
        self._wanted = self._field(data[at:end])
        self._step = Fields._content
        return end + 4

    def _content(self, data: bytes, at: int) -> int | None:
        found = data.find(self._delimiter, at)
        if found < 0:
            self._take(data, at, self._keep(data, at))
            return None
        line = found - 2
        if line < at or data[line:found] != b"\r\n":
            raise _Fault("its boundary stands within a line")
        after = self._delimited(data, line, found)
        if after is None:
            self._take(data, at, self._keep(data, at))
            return None
        self._take(data, at, line)
        self._part_ends()
        return after

    def _epilogue(self, data: bytes, at: int) -> int | None:
        if data[at:].strip(b"\r\n") or len(data) - at > _EPILOGUE:
            raise _Fault("something follows its last boundary")
        return None

    # What the steps share.

    def _keep(self, data: bytes, at: int) -> int:
        """From where on the data must be at hand when more comes."""
        if self._step is not Fields._content:
            return at
        # A line end, the boundary, and the first of the two bytes after it.
        return max(at, len(data) - len(self._delimiter) - 3)

    def _take(self, data: bytes, at: int, end: int) -> None:
        if self._wanted is None:
            return
        if len(self._text) + end - at > self._most:
            self.too_large.add(self._wanted)
            self._wanted = None
            self._text = bytearray()
        else:
            self._text += data[at:end]

    def _part_ends(self) -> None:
        name, self._wanted = self._wanted, None
        if name is not None:
            try:
                self.values[name] = self._text.decode()
            except UnicodeDecodeError:
                raise _Fault(f"the field {name} is no UTF-8") from None
            self._text = bytearray()

    def _field(self, head: bytes) -> str | None:
        """The wanted field that a part's headers announce, or None.

        :raises _Fault: they may be read in more than one way.
        """
        if self._delimiter in head:
            raise _Fault("its boundary stands within a line")
        headers: dict[bytes, bytes] = {}
        for line in head.split(b"\r\n"):
            found = _header(line)
            if found is None:
                raise _Fault("a part has a header that is no header")
            name = found[1].lower()
            if name in headers:
                raise _Fault("a part repeats a header")
            headers[name] = found[2]
        disposition = _disposition(headers.get(b"content-disposition", b""))
        parameters = [] if disposition is None else _parameters(disposition[1])
        named: dict[bytes, bytes] = {name.lower(): value for name, value in parameters}
        if len(named) != len(parameters) or named.keys() not in _PARAMETERS:
            raise _Fault("a part's Content-Disposition is not: form-data; name=…, with or without a filename")
        raw = named[b"name"].strip(b'"')
        if b"\\" in raw or b"%" in raw or any(b'\\"' in value for value in named.values()):
            raise _Fault("a part's Content-Disposition has escapes")
        try:
            field = raw.decode()
        except UnicodeDecodeError:
            raise _Fault("a field's name is no UTF-8") from None
        if field == "_charset_":  # RFC 7578 §4.6: it would change how the others are read
            raise _Fault("it names a character set of its own")
        if field not in self._names:
            return None
        if (
            len(named) > 1
            or headers.get(b"content-transfer-encoding", b"8bit").strip().lower() not in _PLAIN_ENCODINGS
            or not _plain_text(headers.get(b"content-type", b"text/plain"))
        ):
            raise _Fault(f"the field {field} is no plain text in UTF-8")
        if field in self._seen:
            self.repeated.add(field)
            self.values.pop(field, None)
            self.too_large.discard(field)
        self._seen.add(field)
        return field


_Step = Callable[[Fields, bytes, int], int | None]
