"""Some small fields of a ``multipart/form-data`` body (RFC 7578, RFC 2046 §5.1) that comes in pieces.

As with JSON, the upstream reads the same bytes with a parser of its own, and parsers of forms agree on little more than
what the usual clients send. So only that is read, and all else is a fault: another parameter of the Content-Type than
``boundary`` and ``charset``, a preamble, an epilogue, the boundary anywhere but in a delimiter, line ends that are not
CRLF, headers of a part that are folded, repeated or not among the usual four, names with other characters than letters,
digits, ``_``, ``-`` and brackets, more parts than some parsers read, and what may be taken for a wanted field and is
not written as one. Files are skipped by ``find``; what is held of them is shorter than a delimiter.

The push parser of ``multipart`` cannot take the place of this: it tells no offset, by which the last delimiter is held
back; it shows headers only as it understood them; and a preamble, an epilogue and the boundary within a line pass it or
not as the pieces are cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from attrs import field, frozen

from flowstack.usage.members import MAX_VALUE

MAX_HEAD: Final = 4 * 1024
"""Bytes of one part's headers; PHP reads on in a header's middle after 5 KiB."""

MAX_PARTS: Final = 128
"""PHP ignores what follows the 1000th field; others refuse from there on."""

_EPILOGUE = b"\r\n\r\n"  # what may follow the last delimiter, or less of it

_CHARSET = rb"; ?charset=(?:utf-8|UTF-8)"
_content_type = re.compile(
    rb"multipart/form-data(?P<charset>" + _CHARSET + rb")?"
    rb'; ?boundary=(?:([0-9A-Za-z+_.\-]{1,70})|"([0-9A-Za-z+_.=\-]{1,70})")'
    rb"(?(charset)|(?:" + _CHARSET + rb")?)"
).fullmatch
_header = re.compile(rb"([A-Za-z\-]+): ?([^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?)").fullmatch
_HEADERS = (b"content-disposition", b"content-type", b"content-length", b"content-transfer-encoding")
_NAME = rb"[A-Za-z0-9_\-]+(?:\[[A-Za-z0-9_\-]*\])*"
_disposition = re.compile(
    rb'form-data; ?name=(?:"(?P<quoted>%(name)s)"|(?P<plain>[A-Za-z0-9_\-]+))'
    rb'(?P<file>(?:; ?filename=(?:"(?P<filename>(?:[^"\\]|\\(?!"))*)"|[!#$%%&+\-.^_`|~0-9A-Za-z]+))?'
    rb"(?:; ?filename\*=(?:utf-8|UTF-8)''[!#$%%&+\-.^_`|~0-9A-Za-z]+)?)" % {b"name": _NAME}
).fullmatch
_may_name = re.compile(rb"name[*0-9 \t]*=", re.IGNORECASE).search
_may_nest = re.compile(rb"(?:multipart|message)/", re.IGNORECASE).match
_plain_text = re.compile(
    rb'text/plain(?:; ?charset=("?)(?:utf-?8|(?:us-)?ascii|iso-8859-1)\1)?', re.IGNORECASE
).fullmatch  # charsets in which ASCII is ASCII

_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")
_OF_ITS_OWN = ("_charset_", "_method")
"""Fields that change how the others, or the request, are read: RFC 7578 §4.6, and many a framework."""


class _Fault(Exception):
    """Why the bytes are no form."""


@frozen(slots=True)
class Kind:
    """What a wanted field's text may be.

    :ivar shown: that in words.
    """

    pattern: re.Pattern[bytes]
    shown: str


TEXT: Final = Kind(re.compile(rb"(?:[!-~](?:[ -~]*[!-~])?)?"), "printable ASCII without white space around it")
NUMBER: Final = Kind(re.compile(rb"0|[1-9][0-9]{0,11}"), "a whole number in plain digits")
FLAG: Final = Kind(re.compile(rb"[Tt]rue|[Ff]alse|TRUE|FALSE|[01]"), "true or false")


@frozen(slots=True)
class Wanted:
    """The fields that are wanted. Made once.

    :ivar kinds: by name.
    :ivar folded: the names by what is left of them where case and punctuation do not count.
    """

    kinds: Mapping[str, Kind]
    folded: Mapping[str, str] = field(init=False)

    @folded.default
    def _(self) -> Mapping[str, str]:
        return {_folded(name): name for name in self.kinds}

    def meant(self, name: str) -> str | None:
        """The wanted field that some parser may take one of that name for, itself included, or None.

        ``model[]``, ``model[0]``, ``Model`` and ``x[model]`` all are ``model`` somewhere.
        """
        for part in name.split("["):
            wanted = self.folded.get(_folded(part))
            if wanted is not None:
                return wanted
        return None


def _folded(name: str) -> str:
    return name.rstrip("]").replace("_", "").replace("-", "").lower()


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a Content-Type names, or None where it names none, or none that all would read alike."""
    found = _content_type(content_type)
    return None if found is None else found[2] or found[3]


class Fields:
    """Reads the wanted fields of a form as its bytes come.

    :param boundary: of :func:`boundary_of`.
    :param wanted: which, and what they may be.
    :param most: bytes of one field that are kept.
    :ivar values: the fields' text; of a repeated one the last.
    :ivar repeated: the wanted names that came more than once.
    :ivar too_large: the wanted names whose last value was longer than the limit.
    :ivar fault: why this is no form, or None.
    :ivar parts: that have begun.
    :ivar files: of these, the ones that have the name of a file.
    :ivar size: bytes that came.
    :ivar final: the offset of the last delimiter, once it has come.
    :ivar pending: the offset of the first byte that may yet turn out to belong to the last delimiter.
    :ivar spans: the offsets at which the wanted fields' text begins and ends.
    """

    __slots__ = ("_begun", "_delimiter", "_length", "_most", "_name", "_rest", "_seen", "_step", "_text", "_wanted",
                 "fault", "files", "final", "parts", "repeated", "size", "spans", "too_large", "values")  # fmt: skip

    def __init__(self, boundary: bytes, wanted: Wanted, most: int = MAX_VALUE) -> None:
        self._delimiter = b"--" + boundary
        self._wanted = wanted
        self._most = most
        self._step: _Step = Fields._start
        self._rest = b""
        self._seen: set[str] = set()
        self.parts = self.files = 0
        self._name: str | None = None  # of the current part, where it is wanted
        self._length: int | None = None  # of its content, where it says that
        self._begun = 0  # the offset at which its content begins
        self._text = bytearray()
        self.values: dict[str, str] = {}
        self.spans: dict[str, tuple[int, int]] = {}
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

    # Each step takes the data so far and an offset in it, and returns the offset of the next step, or None where more
    # is needed.

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
            self.parts += 1
            if self.parts > MAX_PARTS:
                raise _Fault(f"it has more than {MAX_PARTS} parts")
            self._step = Fields._head
        elif mark == b"--":
            self.final = self.size - len(data) + line
            self._step = Fields._epilogue
        elif len(mark) < 2 and mark in b"\r-":
            return None
        else:
            raise _Fault("its boundary is within a line")
        return after + 2

    def _head(self, data: bytes, at: int) -> int | None:
        end = data.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(data)) - at > MAX_HEAD:
            raise _Fault(f"a part's headers are longer than {MAX_HEAD} bytes")
        if end < 0:
            return None
        self._name = self._field(data[at:end])
        self._begun = self.size - len(data) + end + 4
        self._step = Fields._content
        return end + 4

    def _content(self, data: bytes, at: int) -> int | None:
        found = data.find(self._delimiter, at)
        if found < 0:
            self._take(data, at, self._keep(data, at))
            return None
        line = found - 2
        if line < at or data[line:found] != b"\r\n":
            raise _Fault("its boundary is within a line")
        after = self._delimited(data, line, found)
        if after is None:
            self._take(data, at, self._keep(data, at))
            return None
        self._take(data, at, line)
        self._part_ends(self.size - len(data) + line)
        return after

    def _epilogue(self, data: bytes, at: int) -> int | None:
        if not _EPILOGUE.startswith(data[at:]):
            raise _Fault("something follows its last boundary")
        return None

    # What the steps share.

    def _keep(self, data: bytes, at: int) -> int:
        """From which offset on the data is kept for the next piece."""
        if self._step is not Fields._content:
            return at
        # A line end, the boundary, and the first of the two bytes after it.
        return max(at, len(data) - len(self._delimiter) - 3)

    def _take(self, data: bytes, at: int, end: int) -> None:
        if self._name is None:
            return
        if len(self._text) + end - at > self._most:
            self.too_large.add(self._name)
            self._name = None
            self._text = bytearray()
        else:
            self._text += data[at:end]

    def _part_ends(self, end: int) -> None:
        """:param end: the offset at which its content ends."""
        if self._length is not None and self._length != end - self._begun:
            raise _Fault("a part's Content-Length is not its length")
        name = self._name
        if name is not None:
            kind = self._wanted.kinds[name]
            if not kind.pattern.fullmatch(self._text):
                raise _Fault(f"the field {name} is not {kind.shown}")
            self.values[name] = self._text.decode()
            self.spans[name] = self._begun, end
            self._name = None
            self._text = bytearray()

    def _field(self, head: bytes) -> str | None:
        """The wanted field that a part's headers announce, or None.

        :raises _Fault: they may be read in more than one way.
        """
        if self._delimiter in head:
            raise _Fault("its boundary is within a line")
        lines = head.split(b"\r\n")
        if not head.isascii():
            try:
                plain = len(head.decode().splitlines()) == len(lines)
            except UnicodeDecodeError:
                raise _Fault("a part's headers are no UTF-8") from None
            if not plain:  # some parsers take Unicode's line ends too
                raise _Fault("a part has a header that is no plain one")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            found = _header(line)
            if found is None:
                raise _Fault("a part has a header that is no plain one")
            header = found[1].lower()
            if header not in _HEADERS:
                raise _Fault("a part has another header than the usual ones of a form's parts")
            if header in headers:
                raise _Fault("a part repeats a header")
            headers[header] = found[2]
        disposition = _disposition(headers.pop(b"content-disposition", b""))
        if disposition is None:
            raise _Fault("a part's Content-Disposition is not: form-data; name=…, with or without a filename")
        self.files += bool(disposition["file"])
        if any(map(_may_name, (*headers.values(), disposition["filename"] or b""))):
            raise _Fault("a part's headers name it twice")
        length = headers.get(b"content-length")
        if length is not None and not NUMBER.pattern.fullmatch(length):
            raise _Fault("a part's Content-Length is no number")
        self._length = None if length is None else int(length)
        kind = headers.get(b"content-type", b"text/plain")
        if _may_nest(kind):
            raise _Fault("a part has parts of its own")
        name = (disposition["quoted"] or disposition["plain"]).decode()
        if name in _OF_ITS_OWN:
            raise _Fault("it names a character set or a method of its own")
        meant = self._wanted.meant(name)
        if meant is None:
            return None
        if name != meant:
            raise _Fault(f"one of its fields may be taken for {meant}, and is not called so")
        encoding = headers.get(b"content-transfer-encoding", b"8bit")
        if disposition["file"] or encoding.lower() not in _PLAIN_ENCODINGS or not _plain_text(kind):
            raise _Fault(f"the field {name} is no plain text")
        if name in self._seen:
            self.repeated.add(name)
            self.values.pop(name, None)
            self.too_large.discard(name)
        self._seen.add(name)
        return name


_Step = Callable[[Fields, bytes, int], int | None]
