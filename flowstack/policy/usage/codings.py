"""Content codings taken off a side copy of an answer (RFC 9110 §8.4): gzip, deflate, br, zstd, and chains of them.

What is decoded is only looked at; the client's bytes pass untouched elsewhere. So a decoder may stop at any time: at a
coding that it does not know, at bytes that are none, and at answers which swell beyond all reason.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import brotli  # type: ignore[import-untyped]
import zstandard

Sink = Callable[[bytes], None]

STEP_BYTES = 64 * 1024
"""About how much is decoded at once."""

MAX_BYTES_A_PIECE = 4 * 1024 * 1024
"""One piece of an answer may decode to no more, in all its codings together: decoding blocks every other request."""

MAX_BYTES = 8 * 1024 * 1024
MAX_RATIO = 64
"""A whole answer may decode to :data:`MAX_BYTES`, and to so many bytes more for each byte of it that came."""

MAX_WINDOW = 8 * 1024 * 1024
"""Of zstd; what RFC 9659 §3 allows in HTTP."""

MAX_CODINGS = 3
MAX_MEMBERS = 1000
"""Of a gzip body (RFC 1952 §2.2 allows several, one after the other)."""


class _TooMuch(Exception):
    """The answer decodes to more than is looked at."""


class _Budget:
    """How many more bytes may come out, now and altogether."""

    __slots__ = ("_now", "_total")

    def __init__(self) -> None:
        self._now = 0
        self._total = MAX_BYTES

    def grant(self, received: int) -> None:
        self._now = MAX_BYTES_A_PIECE
        self._total += received * MAX_RATIO

    def take(self, size: int) -> None:
        self._now -= size
        self._total -= size
        if self._now < 0 or self._total < 0:
            raise _TooMuch


class _Coder(ABC):
    """Base of those that decode one coding and hand on what comes out."""

    __slots__ = ("_budget", "_sink")

    def __init__(self, budget: _Budget, sink: Sink) -> None:
        self._budget = budget
        self._sink = sink

    @abstractmethod
    def write(self, piece: bytes) -> None:
        """Decode."""

    def _emit(self, out: bytes) -> None:
        self._budget.take(len(out))
        self._sink(out)


class _Gzip(_Coder):
    """RFC 1952."""

    __slots__ = ("_inflate", "_members")

    def __init__(self, budget: _Budget, sink: Sink) -> None:
        super().__init__(budget, sink)
        self._members = 1
        self._inflate: Any = zlib.decompressobj(31)

    def write(self, piece: bytes) -> None:
        inflate = self._inflate
        more = bool(piece)
        while more:
            if inflate.eof:
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise _TooMuch
                self._inflate = inflate = zlib.decompressobj(31)
            out = inflate.decompress(piece, STEP_BYTES)
            if out:
                self._emit(out)
            piece = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            more = bool(piece) or (len(out) == STEP_BYTES and not inflate.eof)


class _Deflate(_Coder):
    """RFC 1950, and what some servers send in its stead (RFC 9110 §8.4.1.2): bare RFC 1951."""

    __slots__ = ("_head", "_inflate")

    def __init__(self, budget: _Budget, sink: Sink) -> None:
        super().__init__(budget, sink)
        self._head = b""
        self._inflate: Any = None

    def write(self, piece: bytes) -> None:
        inflate = self._inflate
        if inflate is None:
            piece = self._head = self._head + piece
            if len(piece) < 2:
                return
            # RFC 1950 §2.2: method 8 in the low bits, and the two bytes a multiple of 31.
            whole = piece[0] & 0x0F == 8 and (piece[0] << 8 | piece[1]) % 31 == 0
            self._inflate = inflate = zlib.decompressobj(15 if whole else -15)
            self._head = b""
        more = not inflate.eof
        while more:
            out = inflate.decompress(piece, STEP_BYTES)
            if out:
                self._emit(out)
            piece = inflate.unconsumed_tail
            more = not inflate.eof and (bool(piece) or len(out) == STEP_BYTES)


class _Brotli(_Coder):
    """RFC 7932."""

    __slots__ = ("_decompressor",)

    def __init__(self, budget: _Budget, sink: Sink) -> None:
        super().__init__(budget, sink)
        self._decompressor: Any = brotli.Decompressor()

    def write(self, piece: bytes) -> None:
        decompressor = self._decompressor
        if decompressor.is_finished():
            return
        while True:
            out = decompressor.process(piece, output_buffer_limit=STEP_BYTES)
            if out:
                self._emit(out)
            # Below the limit nothing is left to come out; at the limit there may be, whatever else it says.
            if decompressor.is_finished() or (len(out) < STEP_BYTES and decompressor.can_accept_more_data()):
                return
            piece = b""


class _Zstd(_Coder):
    """RFC 8878. The library pushes: this object is also what its writer writes to."""

    __slots__ = ("_writer",)

    def __init__(self, budget: _Budget, sink: Sink) -> None:
        super().__init__(budget, sink)
        output = _ZstdOutput(budget, sink)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._writer = decompressor.stream_writer(output, write_size=STEP_BYTES)  # type: ignore[arg-type]

    def write(self, piece: bytes) -> None:
        self._writer.write(piece)


class _ZstdOutput(_Coder):
    """What the library writes to. Its own output call has no limit; an exception from here ends one."""

    __slots__ = ()

    def write(self, piece: bytes) -> None:
        self._emit(piece)


_CODERS: dict[bytes, type[_Coder]] = {
    b"gzip": _Gzip,
    b"x-gzip": _Gzip,
    b"deflate": _Deflate,
    b"br": _Brotli,
    b"zstd": _Zstd,
}


def codings_of(value: bytes | None) -> tuple[bytes, ...] | None:
    """The codings that a Content-Encoding field names, in the order in which they were applied.

    :return: empty for no coding or ``identity``; None where one of them cannot be taken off here.
    """
    if not value:
        return ()
    names = [name.strip(b" \t").lower() for name in value.split(b",")]
    codings = tuple(name for name in names if name not in (b"", b"identity"))
    return codings if len(codings) <= MAX_CODINGS and all(name in _CODERS for name in codings) else None


class Decoder:
    """Takes the codings off, and hands on what comes out, in pieces of bounded size.

    :param codings: from :func:`codings_of`, not empty.
    :param sink: gets the decoded bytes as soon as they can be decoded; must not raise.
    """

    __slots__ = ("_budget", "_outer")

    def __init__(self, codings: tuple[bytes, ...], sink: Sink) -> None:
        self._budget = budget = _Budget()
        outer: _Coder | None = None
        for name in codings:
            outer = _CODERS[name](budget, sink)
            sink = outer.write
        self._outer = outer

    def feed(self, piece: bytes) -> bool:
        """Decode a piece of the answer. Never raises.

        :return: False once it has stopped: the bytes are not in these codings, or decode to more than is looked at.
        """
        outer = self._outer
        if outer is None:
            return False
        budget = self._budget
        budget.grant(len(piece))
        try:
            outer.write(piece)
        except Exception:  # the libraries each have their own, and a hostile answer may find more
            self._outer = None
            return False
        return True
