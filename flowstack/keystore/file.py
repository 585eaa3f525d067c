"""The keystore that the service looks keys up in: a flat file, read whole, taken over in one step."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import orjson
from attrs import frozen
from twisted.logger import Logger
from zope.interface import implementer

from flowstack.interfaces import IKeystore
from flowstack.policy.keys import Fault, Key, parse_keys

log = Logger()

SHOWN_FAULTS = 20
"""The most faults of one reading that the log and ``reload.json`` name; the rest is counted."""


class KeystoreError(Exception):
    """The keystore file cannot be used; its text has a line for each reason.

    :ivar faults: the reasons.
    """

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@frozen(slots=True)
class Reading:
    """What one look at the file gave.

    :ivar text: the file's bytes; empty where it could not be read.
    :ivar keys: to be used only if there are no faults.
    :ivar warnings: what is unwise but no reason to refuse the file.
    """

    text: bytes
    keys: tuple[Key, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]


@frozen(slots=True)
class ReloadResult:
    """What became of a reload.

    :ivar generation: of the set that is in force now.
    :ivar keys: how many keys are in force now.
    :ivar faults: why the file was not taken over; empty where it was.
    :ivar time: UTC Unix seconds.
    """

    generation: int
    keys: int
    faults: tuple[Fault, ...]
    time: float

    @property
    def ok(self) -> bool:
        """Whether the file as it is now is in force."""
        return not self.faults


def read_keys(path: Path) -> Reading:
    """Read and parse the file, once, and judge it by what was opened: the file at that name may change meanwhile.

    Never raises for what it finds: a missing, unreadable or unsafe file is a fault like one in a line.
    """
    name = str(path)
    try:
        # O_NONBLOCK, so that a FIFO at this name does not hold up the service; it does nothing to a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _unread(name, _why_unopened(path, error))
    try:
        return _read_open(descriptor, name)
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, name: str) -> Reading:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        return _unread(name, f"found {kind}, expected the keystore file; give the file's path")
    if mode & stat.S_IWOTH:
        return _unread(
            name,
            f"found mode {stat.S_IMODE(mode):04o}, with which everyone on this machine may add a key, expected one "
            f"with which only its owner or group may write; run `chmod o-rwx {name}`, and check its keys",
        )
    try:
        with open(descriptor, "rb", closefd=False) as file:
            text = file.read()
    except OSError as error:
        return _unread(name, f"could not be read: {error.strerror}")
    keys, faults = parse_keys(text, name)
    warnings = []
    if mode & stat.S_IROTH:
        warnings.append(
            f"found mode {stat.S_IMODE(mode):04o}, with which everyone on this machine may read who has a key; "
            f"run `chmod o-rwx {name}`, with the service's user as its owner or in its group"
        )
    if not keys and not faults:
        warnings.append("holds no keys, so that each request is refused; `flowstack keys add` makes one")
    return Reading(text, tuple(keys), tuple(faults), tuple(Fault(name, None, None, warning) for warning in warnings))


@implementer(IKeystore)
class FileKeystore:
    """The keys of a file, as of its last good reading.

    :param path: the file.
    :param state: the directory for ``reload.json``; None means that none is written.
    :param now: gives UTC Unix seconds.
    :ivar generation: how many times a set was taken over; 0 before :meth:`load`.
    :ivar text: the file's bytes at its last good reading.
    """

    def __init__(self, path: Path, state: Path | None, now: Callable[[], float]) -> None:
        self._path = path
        self._state = state
        self._now = now
        self._keys: dict[bytes, Key] = {}
        self.generation = 0
        self.text = b""

    @property
    def count(self) -> int:
        """How many keys are in force."""
        return len(self._keys)

    def lookup(self, digest: bytes) -> Key | None:
        """Return the key whose token has this SHA-256, or None."""
        return self._keys.get(digest)

    def load(self, last_good: bytes | None = None) -> None:
        """Read the file for the first time.

        :param last_good: the ``text`` of another process of this service, to be in force while the file has faults.
        :raises KeystoreError: it has faults, and there is no such text; nothing is in force.
        """
        result = self.reload()
        if result.ok:
            return
        if last_good is None:
            raise KeystoreError(result.faults)
        self._take(last_good, parse_keys(last_good, str(self._path))[0])
        self._log_kept(result.faults)

    def _take(self, text: bytes, keys: Iterable[Key]) -> None:
        self._keys = {key.digest: key for key in keys}
        self.text = text
        self.generation += 1

    def reload(self) -> ReloadResult:
        """Read the file anew: whole and valid it takes the old set's place in one step, otherwise the old set stays.

        Logs what became of it, and writes it to ``reload.json`` in the state directory. Never raises.
        """
        reading = read_keys(self._path)
        for warning in reading.warnings:
            log.warn("keystore: {warning}", warning=str(warning))
        if not reading.faults:
            self._take(reading.text, reading.keys)
            log.info(
                "keystore: {path} is in force: {keys} keys, generation {generation}",
                path=str(self._path),
                keys=self.count,
                generation=self.generation,
            )
        elif self.generation:
            self._log_kept(reading.faults)
        result = ReloadResult(self.generation, self.count, reading.faults, self._now())
        self._report(result)
        return result

    def _log_kept(self, faults: tuple[Fault, ...]) -> None:
        for line in _lines(faults):
            log.error("keystore: {line}", line=line)
        log.error(
            "keystore: {path} was not taken over; the {keys} keys of generation {generation} stay in force",
            path=str(self._path),
            keys=self.count,
            generation=self.generation,
        )

    def _report(self, result: ReloadResult) -> None:
        """Write ``reload.json``, so that whoever sent SIGHUP can see what came of it."""
        if self._state is None:
            return
        report = {
            "generation": result.generation,
            "time": datetime.fromtimestamp(result.time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "keys": result.keys,
            "fault": list(_lines(result.faults)) or None,
        }
        path = self._state / "reload.json"
        # Not synced: it tells of this process only, and a sync would hold up its requests.
        temporary = self._state / f".reload.json.{os.getpid()}"
        try:
            temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
            temporary.replace(path)
        except OSError as error:
            log.error(
                "keystore: could not write {path}: {reason}; make its directory writable for this service's user",
                path=str(path),
                reason=error.strerror,
            )


def _lines(faults: tuple[Fault, ...]) -> list[str]:
    lines = [str(fault) for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        more = len(faults) - SHOWN_FAULTS
        lines.append(f"and {more} more faults; `flowstack check` names them all")
    return lines


def _unread(name: str, message: str) -> Reading:
    return Reading(b"", (), (Fault(name, None, None, message),), ())


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
