"""The page's files, from the package: one hash for all of them in each path, so that a browser keeps them for good.

A page is not kept: it names the files by the hash of the release that runs.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import brotli  # type: ignore[import-untyped]

from flowstack.http.headers import Pair

FOLDER = Path(__file__).parent / "static"

PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere."""

SAFE: tuple[Pair, ...] = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
)
"""Of every answer."""

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".woff2": b"font/woff2",
}
_PACKED = (".png", ".woff2")

_KEPT = b"public, max-age=31536000, immutable"
_BROTLI_QUALITY = 9
"""A quarter of a megabyte takes some hundredths of a second, once."""


class Asset:
    """One file, as it is sent.

    :ivar body: uncompressed.
    """

    def __init__(self, suffix: str, body: bytes) -> None:
        self.body = body
        self._type = _TYPES[suffix]
        self._packed = suffix in _PACKED

    @cached_property
    def _brotli(self) -> bytes:
        return bytes(brotli.compress(self.body, quality=_BROTLI_QUALITY))

    @cached_property
    def _gzip(self) -> bytes:
        return gzip.compress(self.body, 9, mtime=0)

    def sent(self, accepted: Iterable[bytes], kept: bool) -> tuple[list[Pair], bytes]:
        """Fields and body.

        :param accepted: values of ``Accept-Encoding``.
        :param kept: whether a browser may keep it for good.
        """
        body, coding = self.body, b""
        if not self._packed:
            words = _codings(accepted)
            if b"br" in words:
                body, coding = self._brotli, b"br"
            elif b"gzip" in words:
                body, coding = self._gzip, b"gzip"
        pairs = [
            (b"Content-Type", self._type),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", _KEPT if kept else b"no-store"),
            (b"Content-Security-Policy", PAGE_POLICY),
            (b"Vary", b"Accept-Encoding"),
            *SAFE,
        ]
        if coding:
            pairs.append((b"Content-Encoding", coding))
        return pairs, body


class Assets:
    """All files of the folder.

    :ivar hash: 12 hexadecimal digits of the SHA-256 over names and contents.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES and path.is_file()
        }
        digest = sha256()
        for name, body in files.items():
            digest.update(b"%d %b %d " % (len(name), name.encode(), len(body)) + body)
        self.hash = digest.hexdigest()[:12]
        at = b'"static/' + self.hash.encode("ascii") + b"/"
        self._pages: dict[str, Asset] = {}
        self._files: dict[str, Asset] = {}
        for name, body in files.items():
            suffix = Path(name).suffix
            if suffix == ".html":
                self._pages[name] = Asset(suffix, body.replace(b'"static/', at))
            else:
                self._files[name] = Asset(suffix, body)

    def page(self, name: str, accepted: Iterable[bytes]) -> tuple[list[Pair], bytes] | None:
        """A page, such as ``index.html``; None where this build has none."""
        page = self._pages.get(name)
        return None if page is None else page.sent(accepted, False)

    def file(self, path: str, accepted: Iterable[bytes]) -> tuple[list[Pair], bytes] | None:
        """A file, by a hash and its path behind ``static/``; None where there is none.

        One of another hash is this release's, too: a page that was open during an upgrade goes on. It is not kept.
        """
        of, _, name = path.partition("/")
        file = self._files.get(name)
        return None if file is None else file.sent(accepted, of == self.hash)


def _codings(values: Iterable[bytes]) -> set[bytes]:
    """Codings that a client takes (RFC 9110 §12.5.3), those with ``q=0`` left out."""
    found = set()
    for item in b",".join(values).lower().split(b","):
        word, _, weight = item.partition(b";")
        if weight.strip().removeprefix(b"q=").rstrip(b"0.") or not weight:
            found.add(word.strip())
    return found
