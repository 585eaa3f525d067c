"""Bytes that are made on the fly, the same each time."""

from __future__ import annotations

from collections.abc import Iterator

_BLOCK = bytes((n * n // 251 + n // 256) % 256 for n in range(65536))


def pattern(size: int, piece: int = 65536) -> Iterator[bytes]:
    """The first ``size`` bytes of a fixed endless pattern that repeats every 64 KiB.

    :param piece: bytes at a time, at most 65536; the bytes are the same whatever it is.
    """
    at = 0
    while at < size:
        start = at % 65536
        part = _BLOCK[start : start + min(piece, size - at)]
        yield part
        at += len(part)
