"""Whether a start would find what it writes to: a start and ``flowstack check`` both ask here; nothing is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from flowstack.config import endpoints
from flowstack.config.settings import Settings
from flowstack.redact import shown

_READ, _WRITE = os.R_OK, os.W_OK
_BELOW = ("ledger", "limits")
"""The folders of the state directory without which there is no start."""

_FILES = (("limits/lock", _READ | _WRITE), ("limits/counters", _READ))


@frozen(slots=True)
class Misplaced:
    """A place that a start could not use.

    :ivar key: the setting of the table, such as ``listen[1]``.
    """

    table: str
    key: str
    found: str
    expected: str


def misplaced(settings: Settings) -> Iterator[Misplaced]:
    """Every place that a start by this user could not use."""
    server = settings.server
    if server.state is not None:
        expected = "a directory in which this user can write, or can make it"
        for found in _state_faults(server.state):
            yield Misplaced("server", "state", found, expected)
    for number, listener in enumerate(server.listen):
        yield from _socket_faults(f"listen[{number}]", listener)
    if server.admin is not None:
        yield from _socket_faults("admin", server.admin)
    if settings.log.requests not in ("-", "none"):
        for found in _file_faults(Path(settings.log.requests)):
            yield Misplaced("log", "requests", found, "a file to which this user can append, or which it can make")


def _state_faults(state: Path) -> Iterator[str]:
    if not os.path.lexists(state):
        yield from _parent_faults(state)
        return
    for folder in (state, *(state / name for name in _BELOW)):
        name = shown(str(folder))
        if folder != state and not os.path.lexists(folder):
            continue
        if not folder.is_dir():
            yield f"{name}, which is no directory"
        elif not _may(folder, _READ | _WRITE | os.X_OK):
            yield f"{name}, {_why_not(folder, 'in which')}"
    for below, right in _FILES:
        file = state / below
        if os.path.exists(file) and not _may(file, right):
            yield f"{shown(str(file))}, which this user ({os.geteuid()}) may not open"


def _socket_faults(key: str, listener: str) -> Iterator[Misplaced]:
    if not listener.startswith("unix:"):
        return
    where = endpoints.address(listener)
    if where is None or where.host.startswith("\0"):
        return
    path = Path(where.host)
    expected = f"a path in a folder in which this user can make a socket, as {endpoints.FORMS['unix']}"
    for found in _parent_faults(path):
        yield Misplaced("server", key, found, expected)
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        yield Misplaced("server", key, f"{shown(str(path))}, at which something lies that is no socket", expected)


def _file_faults(path: Path) -> Iterator[str]:
    if not path.exists():
        yield from _parent_faults(Path(os.path.realpath(path)))
    elif path.is_dir():
        yield f"{shown(str(path))}, which is a directory"
    elif path.is_socket() or path.is_block_device():
        yield f"{shown(str(path))}, which is a socket or a disk"
    elif not _may(path, _WRITE):
        yield f"{shown(str(path))}, {_why_not(path, 'to which')}"


def _parent_faults(path: Path) -> Iterator[str]:
    """What keeps a name from being made in its folder."""
    parent = path.absolute().parent
    if not parent.is_dir():
        yield f"{shown(str(path))}, whose folder {shown(str(parent))} does not exist"
    elif not _may(parent, _WRITE | os.X_OK):
        yield f"{shown(str(path))}, {_why_not(parent, 'in whose folder')}"


def _why_not(path: Path, where: str) -> str:
    """Why nothing can be written to a file or folder that is there."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{where} nobody can write: it is a read-only file system"
    return f"{where} this user ({os.geteuid()}) may not write"


def _may(path: Path, right: int) -> bool:
    return os.access(path, right, effective_ids=True)
