"""Content codings taken off a side copy of an answer (RFC 9110 §8.4): gzip, deflate, br, zstd, and chains of them.

What is decoded is only looked at; the client's bytes pass untouched elsewhere. So a decoder may stop at any time: at a
coding that it does not know, at bytes that are none, and at answers which swell beyond all reason. It is asked for a
little at a time, and does no more than that: the caller may go on in a later turn of the reactor.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import brotli  # type: ignore[import-untyped]
import zstandard

from flowstack.http.headers import Pair

STEP_BYTES: Final = 8 * 1024
"""About how much is decoded at once; of br, a few times as much."""

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_RATIO: Final = 64
"""A whole answer may decode to :data:`MAX_BYTES`, and to this many bytes more for each byte of it that came, in all its
codings together."""

MAX_WINDOW: Final = 8 * 1024 * 1024
"""Of zstd; what RFC 9659 §3 allows in HTTP."""

MAX_CODINGS: Final = 3
MAX_MEMBERS: Final = 1000
"""Of a gzip body (RFC 1952 §2.2 allows several, one after the other)."""

_ZSTD_BYTES: Final = 256
MAX_ZSTD_BYTES: Final = 1024 * 1024
"""Bytes to which :data:`_ZSTD_BYTES` of zstd, decoded at once, may grow."""


class TooMuch(Exception):
    """The answer decodes to more than is looked at."""


class _Budget:
    """How many more bytes may come out."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def grant(self, received: int) -> None:
        self._left += received * MAX_RATIO

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooMuch


class _Coder(ABC):
    """Base of those that decode one coding."""

    __slots__ = ("_budget",)

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    @abstractmethod
    def decoded(self, piece: bytes) -> Iterator[bytes]:
        """What a piece decodes to, each part of it decoded when it is asked for."""


class _Gzip(_Coder):
    """RFC 1952."""

    __slots__ = ("_inflate", "_members")

    def __init__(self, budget: _Budget) -> None:
        super().__init__(budget)
        self._members = 1
        self._inflate: Any = zlib.decompressobj(31)

    def decoded(self, piece: bytes) -> Iterator[bytes]:
        inflate = self._inflate
        more = bool(piece)
        while more:
            if inflate.eof:
                if piece[0] != 0x1F:  # bytes after the last member are no part of it
                    return
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise TooMuch
                self._inflate = inflate = zlib.decompressobj(31)
            out = inflate.decompress(piece, STEP_BYTES)
            if out:
                self._budget.take(len(out))
                yield out
            piece = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            more = bool(piece) or (len(out) == STEP_BYTES and not inflate.eof)


class _Deflate(_Coder):
    """RFC 1950, and what some servers send instead (RFC 9110 §8.4.1.2): bare RFC 1951."""

    __slots__ = ("_head", "_inflate")

    def __init__(self, budget: _Budget) -> None:
        super().__init__(budget)
        self._head = b""
        self._inflate: Any = None

    def decoded(self, piece: bytes) -> Iterator[bytes]:
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
                self._budget.take(len(out))
                yield out
            piece = inflate.unconsumed_tail
            more = not inflate.eof and (bool(piece) or len(out) == STEP_BYTES)


class _Brotli(_Coder):
    """RFC 7932."""

    __slots__ = ("_decompressor",)

    def __init__(self, budget: _Budget) -> None:
        super().__init__(budget)
        self._decompressor: Any = brotli.Decompressor()

    def decoded(self, piece: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        more = not decompressor.is_finished()
        while more:
            out = decompressor.process(piece, output_buffer_limit=STEP_BYTES)
            if out:
                self._budget.take(len(out))
                yield out
            # Below the limit nothing is left to come out; at the limit there may be, whatever else it says.
            full = len(out) >= STEP_BYTES or (bool(out) and not decompressor.can_accept_more_data())
            more = full and not decompressor.is_finished()
            piece = b""


class _Zstd(_Coder):
    """RFC 8878. The library pushes, however much there is: so it gets very little at once."""

    __slots__ = ("_out", "_size", "_writer")

    def __init__(self, budget: _Budget) -> None:
        super().__init__(budget)
        self._out: list[bytes] = []
        self._size = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._writer = decompressor.stream_writer(self, write_size=STEP_BYTES)  # type: ignore[arg-type]

    def decoded(self, piece: bytes) -> Iterator[bytes]:
        for at in range(0, len(piece), _ZSTD_BYTES):
            self._writer.write(piece[at : at + _ZSTD_BYTES])
            out, self._out, self._size = self._out, [], 0
            self._budget.take(sum(map(len, out)))
            yield from out

    def write(self, out: bytes) -> None:
        """What the library writes to; an exception from here ends its call."""
        self._size += len(out)
        if self._size > MAX_ZSTD_BYTES:
            raise TooMuch
        self._out.append(out)


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


_ACCEPTED = {*_CODERS, b"identity", b""}


def decodable(pairs: list[Pair]) -> list[Pair]:
    """The same fields, asking for no other codings than are decoded here (RFC 9110 §12.5.3).

    The very same list comes back where they do not.
    """
    changed = [(name, _narrowed(value) if name.lower() == b"accept-encoding" else value) for name, value in pairs]
    return pairs if changed == pairs else changed


def _narrowed(value: bytes) -> bytes:
    wanted = value.split(b",")
    known = [each for each in wanted if each.partition(b";")[0].strip(b" \t").lower() in _ACCEPTED]
    return value if len(known) == len(wanted) else b",".join(known).strip(b" \t") or b"identity"


class Decoder:
    """Takes the codings off.

    :param codings: from :func:`codings_of`, not empty.
    """

    __slots__ = ("_budget", "_further", "_outer")

    def __init__(self, codings: tuple[bytes, ...]) -> None:
        self._budget = budget = _Budget()
        self._outer, *self._further = [_CODERS[name](budget) for name in reversed(codings)]

    def decoded(self, piece: bytes) -> Iterator[bytes]:
        """What a piece of the answer decodes to, in pieces of some :data:`STEP_BYTES`, each decoded when asked for.

        :raises TooMuch: that is more than is looked at.
        :raises Exception: the libraries' own: the bytes are not in these codings. Then there is no more to be had.
        """
        self._budget.grant(len(piece))
        pieces = self._outer.decoded(piece)
        for coder in self._further:
            pieces = chain.from_iterable(map(coder.decoded, pieces))
        return pieces
