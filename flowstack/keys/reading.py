"""One look at the keystore file, in pieces of bounded work."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from attrs import frozen

from flowstack.errors import ParseError
from flowstack.files import NotRegular, open_regular
from flowstack.keys import Key, KeySet, Scan, scan
from flowstack.keys.keyfile import MAX_BYTES

_READ_BYTES = 1024 * 1024

T = TypeVar("T")

Place = tuple[int, str]
"""A folder's descriptor, and a name in it."""

Pieces = Generator[None, None, T]
"""Each step is a piece of work; the last one gives the result."""


class KeystoreError(Exception):
    """The keystore file cannot be used; its text has a line for each reason.

    :ivar faults: the reasons.
    """

    def __init__(self, faults: tuple[ParseError, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@frozen(slots=True)
class Reading:
    """What one look at the file gave.

    :ivar key_set: to be used only if there are no faults.
    :ivar warnings: what is unwise but no reason to refuse the file.
    :ivar sha256: of the file's bytes, in hexadecimal; empty where it could not be read.
    """

    key_set: KeySet
    faults: tuple[ParseError, ...]
    warnings: tuple[ParseError, ...]
    sha256: str = ""

    @property
    def text(self) -> bytes:
        """The file's bytes; empty where it could not be read."""
        return bytes(self.key_set.text)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every key, parsed again at each use."""
        return tuple(self.key_set)


def finished(pieces: Pieces[T]) -> T:
    """Do all of the work at one go."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def read_keys(path: Path, now: float | None = None, place: Place | None = None) -> Reading:
    """Read and judge the file, once, at one go; see :func:`pieces_of_reading`."""
    return finished(pieces_of_reading(path, now, place))


def pieces_of_reading(path: Path, now: float | None = None, place: Place | None = None) -> Pieces[Reading]:
    """Read and judge the file, once, by what was opened: the file at that name may change meanwhile.

    Never raises for what it finds: a missing, unreadable or unsafe file is a fault like one in a line.

    :param now: UTC Unix seconds; keys that have expired by then draw warnings.
    :param place: where the path leads, if that is known; what is there must be no link any more.
    """
    name = str(path)
    try:
        descriptor = open_regular(path) if place is None else open_regular(place[1], folder=place[0], follow=False)
    except NotRegular as error:
        return _unread(name, f"found {error.strerror}, expected the keystore file; give the file's path")
    except OSError as error:
        return _unread(name, _why_unopened(path, error))
    try:
        return (yield from _read_open(descriptor, name, now))
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, name: str, now: float | None) -> Pieces[Reading]:
    before = os.fstat(descriptor)
    mode = before.st_mode
    if mode & stat.S_IWOTH:
        return _unread(
            name,
            f"found mode {stat.S_IMODE(mode):04o}, with which everyone on this machine may add a key, expected one "
            f"with which only its owner or group may write; run `chmod o-rwx {name}`, and check its keys",
        )
    if before.st_size > MAX_BYTES:
        return _unread(name, f"found {before.st_size} bytes, expected at most {MAX_BYTES}; is this the keystore?")
    try:
        text, digest = yield from _read_text(descriptor, before.st_size)
    except OSError as error:
        return _unread(name, f"could not be read: {error.strerror}")
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns) or len(text) != after.st_size:
        return _unread(name, "was written to while it was read; reload again when it is whole, or write it by rename")
    judged = Scan(text, name, now)
    yield from judged.pieces()
    warnings = []
    if mode & stat.S_IROTH:
        warnings.append(
            f"found mode {stat.S_IMODE(mode):04o}, with which everyone on this machine may read who has a key; "
            f"run `chmod o-rwx {name}`, with the service's user as its owner or in its group"
        )
    keys = judged.key_set()
    if not keys.count and not judged.faults:
        warnings.append("holds no keys, so that each request is refused; `flowstack keys add` makes one")
    about_all = (ParseError(warning, file=name) for warning in warnings)
    return Reading(keys, tuple(judged.faults), (*about_all, *judged.warnings), digest)


def _read_text(descriptor: int, most: int) -> Pieces[tuple[bytearray, str]]:
    """Read up to one byte more than *most*, so that a longer file is noticed; give its SHA-256 too."""
    # It grows as it is filled: to make room for all of it at once would also write zeros to all of it at once.
    text, seen = bytearray(), sha256()
    while len(text) <= most and (piece := os.read(descriptor, min(_READ_BYTES, most + 1 - len(text)))):
        text += piece
        seen.update(piece)
        yield
    return text, seen.hexdigest()


def _unread(name: str, message: str) -> Reading:
    return Reading(scan(b"", name).key_set(), (ParseError(message, file=name),), ())


def _why_unopened(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        if path.is_symlink():
            return f"found a link to {os.readlink(path)}, which does not exist; correct the link"
        return f"does not exist; make it with its first key: `flowstack keys add --keys {path}`"
    if error.errno == errno.EACCES:
        return (
            f"may not be read by this process (user {os.geteuid()}, groups {_groups()}); give it and its directory "
            "to a group that the service's user is in, and let that group read, such as by "
            f"`chgrp flowstack {path} && chmod 0640 {path}`"
        )
    return f"could not be opened: {error.strerror}"


def _groups() -> str:
    return " ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
