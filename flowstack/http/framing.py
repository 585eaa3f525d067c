"""Where a body ends (RFC 9112 §6 and §7). Pure: bytes in; payload, the end, and what is left over out.

Each decoder has ``feed(data) -> (payload, rest)``: ``rest`` is None while the body goes on, otherwise the bytes after
its end. A payload is a slice of what was fed, or one join where several chunks came together.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

# RFC 9112 §7.1: chunk-size [chunk-ext] CRLF. Sixteen digits would be 2^64; white space before ";" is bad white space.
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")

MAX_SIZE_LINE: Final = 1024
"""Bytes of a chunk-size line with its extensions, which are dropped."""

MAX_TRAILERS: Final = 16 * 1024
"""Bytes of the trailer section, which is dropped."""

_SIZE_LINE: Final = -1
_TRAILERS: Final = -2

_HEADS: Final = {len(b"%x\r\n" % size) + size + 2: b"%x\r\n" % size for size in range(1, 1024)}
"""How a whole chunk begins that is alone in its read, by its bytes altogether; an event of a stream is mostly such."""

_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BadFraming(Exception):
    """The body cannot be framed; the message says why."""


class Body(Protocol):
    """A body's framing."""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take bytes from the connection.

        :return: payload, and None or the bytes after the body's end.
        :raises BadFraming: what was fed is no such body.
        """


class LengthBody:
    """A body of known length."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See :class:`Body`."""
        left = self.left - len(data)
        if left > 0:
            self.left = left
            return data, None
        self.left = 0
        if left == 0:
            return data, b""
        return data[:left], data[left:]


class UntilClose:
    """A response body that ends with the connection (RFC 9112 §6.3, rule 8)."""

    __slots__ = ()

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See :class:`Body`."""
        return data, None


class ChunkedBody:
    """A chunked body. Extensions and trailers are dropped; a size line, once begun, must come whole within bounds."""

    __slots__ = ("_buffer", "_left", "_trailer_bytes")

    def __init__(self) -> None:
        self._buffer = b""  # an incomplete line, or the CR of a chunk's end
        self._left = _SIZE_LINE  # bytes of the chunk still to come, its CRLF counted in
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """See :class:`Body`."""
        if self._left == _SIZE_LINE and not self._buffer:
            head = _HEADS.get(len(data))
            if head is not None:
                size = len(head)
                if data[:size] == head and data[-2:] == b"\r\n":
                    return data[size:-2], None
        return self._feed_any(data)

    def _feed_any(self, data: bytes) -> tuple[bytes, bytes | None]:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            left = self._left
            if left > 0:
                at = self._chunk(data, at, left, pieces)
                continue
            cut = data.find(b"\r\n", at)
            if cut < 0:
                self._keep_line(data[at:])
                break
            if left == _SIZE_LINE:
                self._left = self._size(data[at:cut])
                at = cut + 2
                continue
            if cut == at:
                self._left = _SIZE_LINE
                return _joined(pieces), data[cut + 2 :]
            self._trailer(data[at:cut])
            at = cut + 2
        return _joined(pieces), None

    def _chunk(self, data: bytes, at: int, left: int, pieces: list[bytes]) -> int:
        """Take what is there of a chunk's bytes and of the CRLF after them."""
        have = len(data) - at
        if have >= left:
            stop = at + left
            if data[stop - 2 : stop] != b"\r\n":
                raise BadFraming("a chunk's bytes are not followed by CRLF")
            if left > 2:
                pieces.append(data[at : stop - 2])
            self._left = _SIZE_LINE
            return stop
        payload = min(have, left - 2)
        if payload > 0:
            pieces.append(data[at : at + payload])
            at += payload
            left -= payload
            self._left = left
        if at < len(data):  # half of the CRLF
            if data[at] != 13:
                raise BadFraming("a chunk's bytes are not followed by CRLF")
            self._buffer = data[at:]
        return len(data)

    def _keep_line(self, line: bytes) -> None:
        """Hold an incomplete line, unless it can no longer become a good one."""
        limit = MAX_SIZE_LINE if self._left == _SIZE_LINE else MAX_TRAILERS
        if len(line) - line.endswith(b"\r") > limit:
            raise BadFraming(f"a line between chunks is longer than {limit} bytes")
        if b"\n" in line or b"\r" in line[:-1]:
            raise BadFraming("a line between chunks ends with a bare CR or LF")
        if self._left == _SIZE_LINE and not _SIZE.fullmatch(line.rstrip(b"\r") or b"0"):
            raise BadFraming("a chunk size is not hexadecimal")
        self._buffer = line

    def _size(self, line: bytes) -> int:
        match = _SIZE.fullmatch(line)
        if match is None or len(line) > MAX_SIZE_LINE:
            raise BadFraming("a chunk size is not hexadecimal, or its extensions are too long")
        size = int(match[1], 16)
        return size + 2 if size else _TRAILERS

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_TRAILERS:
            raise BadFraming(f"the trailers are longer than {MAX_TRAILERS} bytes")
        if not _TRAILER.fullmatch(line):
            raise BadFraming("a trailer is no header field")


def _joined(pieces: list[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1); never of no bytes, which would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
