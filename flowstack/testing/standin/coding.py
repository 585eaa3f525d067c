"""Content codings by ``Accept-Encoding`` (RFC 9110 §12.5.3)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

from attrs import evolve

from flowstack.testing.standin.values import JSON, Refused, Reply

Pair = tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]
"""How to compress a piece, how to flush what was held back, and how to end."""

_PACKAGES = {"br": "brotli", "zstd": "zstandard"}
_PREFERENCE = ("zstd", "br", "gzip")


def _coder(coding: str) -> Pair:
    """:raises ImportError: where the package for it is not installed."""
    if coding == "gzip":
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        return deflate.compress, lambda: deflate.flush(zlib.Z_SYNC_FLUSH), deflate.flush
    module = import_module(_PACKAGES[coding])
    if coding == "br":
        brotli = module.Compressor()
        return brotli.process, brotli.flush, brotli.finish
    zstd = module.ZstdCompressor().compressobj()
    return zstd.compress, lambda: zstd.flush(module.COMPRESSOBJ_FLUSH_BLOCK), zstd.flush


def accepted(header: str) -> str | None:
    """The coding to use: the highest weight, and zstd before br before gzip; None for none."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[name] = float(quality)
        except ValueError:
            weights[name] = 0.0
    able = [c for c in _PREFERENCE if weights.get(c, weights.get("*", 0.0)) > 0 and _installed(c)]
    return max(able, key=lambda c: weights.get(c, weights.get("*", 0.0)), default=None)


def _installed(coding: str) -> bool:
    try:
        _coder(coding)
    except ImportError:
        return False
    return True


def _encoded(pieces: Iterable[bytes], coder: Pair) -> Iterator[bytes]:
    """Each piece flushed, so that whoever reads the stream can decode it as it comes."""
    compress, flush, end = coder
    for piece in pieces:
        yield compress(piece) + flush()
    yield end()


def encode(reply: Reply, accept: str | None, forced: str | None) -> Reply:
    """The reply in its content coding: JSON in one that the client accepts, anything in a forced one.

    :raises Refused: 501 where the package for a forced coding is not installed, naming it.
    """
    coding = forced or (accepted(accept) if accept and reply.content_type == JSON else None)
    if coding is None or reply.content_type is None:
        return reply
    try:
        coder = _coder(coding)
    except ImportError:
        package = _PACKAGES[coding]
        raise Refused(
            501, f"Stand-In: coding={coding} needs the Python package {package}: pip install {package}"
        ) from None
    pieces: Iterable[bytes] = _encoded(reply.pieces, coder)
    length = None
    if reply.length is not None:
        body = b"".join(pieces)
        pieces, length = (body,), len(body)
    headers = ((b"Content-Encoding", coding.encode("ascii")), (b"Vary", b"Accept-Encoding"), *reply.headers)
    return evolve(reply, pieces=pieces, length=length, headers=headers)
