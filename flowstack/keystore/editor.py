"""Changes to the keystore file by command: whole or not at all, and never over somebody else's change.

The new text goes to a synced temporary file beside the old one, which then takes its name. So a reader sees either
the old file or the new one, also after a crash.

Editors exclude each other by an flock on the file's directory. The file itself will not do, since each rename puts
another file in its place, and who waited would hold a lock on the old one. A lock file beside it would stay behind,
owned by whoever came first. The directory is always there, and who may rename in it may open it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowstack.keystore.reading import KeystoreError, read_keys
from flowstack.policy.keys import Fault, Key, KeySet, format_key, line_id, rewrite_line, scan

LOCK_WAIT = 10.0
"""Seconds that an edit waits for another one."""

HEADER = """\
# Flowstack keys, one a line: id, hash of the secret, attributes. The secrets themselves are not in here.
# Change it by `flowstack keys` or in an editor; a running service takes it over on SIGHUP (systemctl reload flowstack).
"""

Change = Callable[[str, KeySet], str]
"""Takes the file's text and its keys, gives its new text; raises :class:`KeystoreError` to leave it alone."""


def add_key(path: Path, key: Key) -> None:
    """Append a key; makes the file if it is missing.

    :raises KeystoreError: nothing was written, and why.
    """
    add_keys(path, [key])


def add_keys(path: Path, keys: Iterable[Key], check: Callable[[KeySet], None] = lambda old: None) -> None:
    """Append keys, all in one write; makes the file if it is missing.

    :param check: is shown the keys that are there; raises :class:`KeystoreError` to leave the file alone.
    :raises KeystoreError: nothing was written, and why.
    """

    def change(text: str, old: KeySet) -> str:
        check(old)
        end = "\r\n" if text.endswith("\r\n") else "\n"
        joint = "" if text.endswith("\n") or not text else end
        return text + joint + "".join(f"{format_key(key)}{end}" for key in keys)

    edit(path, change, create=True)


def change_key(path: Path, key_id: str, change: Callable[[Key], Key]) -> tuple[Key, Key]:
    """Rewrite a key's line; a comment on it stays, and so do all other lines.

    :param change: gives the key as it is to be; raises :class:`KeystoreError` to leave the file alone.
    :return: the key before and after.
    :raises KeystoreError: nothing was written, and why.
    """
    found: list[Key] = []

    def rewrite(text: str, keys: KeySet) -> str:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if line_id(line) == key_id:
                found.append(_key_of(keys, key_id))
                found.append(change(found[0]))
                bare = line.removesuffix("\r")
                lines[number] = rewrite_line(bare, found[1]) + line[len(bare) :]
                return "\n".join(lines)
        raise _unknown_id(path, key_id)

    edit(path, rewrite)
    return found[0], found[1]


def remove_key(path: Path, key_id: str) -> Key:
    """Take a key's line out; comments on lines of their own stay.

    :return: the key that was removed.
    :raises KeystoreError: nothing was written, and why.
    """
    removed: list[Key] = []

    def change(text: str, keys: KeySet) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if line_id(line) != key_id]
        if len(kept) == len(lines):
            raise _unknown_id(path, key_id)
        removed.append(_key_of(keys, key_id))
        return "\n".join(kept)

    edit(path, change)
    return removed[0]


def _key_of(keys: KeySet, key_id: str) -> Key:
    return next(key for key in keys if key.id == key_id)


def _unknown_id(path: Path, key_id: str) -> KeystoreError:
    return _error(path, f"found no key with the id {key_id!r}; `flowstack keys list` shows the ids")


def edit(path: Path, change: Change, *, create: bool = False) -> None:
    """Rewrite the file under the lock. Owner, group, mode and extended attributes stay; a symlink stays a symlink.

    :param create: whether a missing file counts as an empty one. A new file gets mode 0600, or 0640 where its directory
        hands its group down (setgid), as one made for the service's group does.
    :raises KeystoreError: the file, as it is or as it would become, has faults, or was changed by somebody else
        meanwhile, or may not be written. Nothing was written then.
    """
    target = Path(os.path.realpath(path))
    try:
        with _locked(target.parent, path):
            if create and not target.exists():
                before, keys = None, scan(HEADER.encode(), str(path)).key_set()
            else:
                old = read_keys(path)
                if old.faults:
                    raise KeystoreError(old.faults)
                before, keys = old.text, old.key_set
            after = change(keys.text.decode(), keys).encode()
            faults = scan(after, f"{path} as it would become").faults
            if faults:
                raise KeystoreError(tuple(faults))
            _replace(target, after, lambda: _unchanged(path, target, before))
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(target.parent)
        advice = "run this as the file's owner or as root, and check the disk"
        raise _error(path, f"could not be written: {name}: {error.strerror}; {advice}") from error


@contextmanager
def _locked(directory: Path, path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _error(path, f"its directory {directory} does not exist; make it first, or correct the path") from None
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _error(path, f"another edit has held {directory} for {LOCK_WAIT:.0f} s; try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _replace(target: Path, text: bytes, check: Callable[[], None]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            _adopt_rights(target, temporary)
            os.fsync(descriptor)
        check()
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _adopt_rights(target: Path, temporary: str) -> None:
    """Give the new file the old one's owner, group, mode, access lists and labels: the service must still read it."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        shared = os.stat(target.parent).st_mode & stat.S_ISGID
        os.chmod(temporary, 0o640 if shared else 0o600)
        return
    new = os.stat(temporary)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        os.chown(temporary, old.st_uid, old.st_gid)
    shutil.copystat(target, temporary)
    os.utime(temporary)


def _unchanged(path: Path, target: Path, before: bytes | None) -> None:
    """Catch those who do not know the lock, such as a text editor. What is left is the instant before the rename."""
    try:
        now: bytes | None = target.read_bytes()
    except FileNotFoundError:
        now = None
    if now != before:
        raise _error(path, "was changed by somebody else meanwhile; nothing was written: look at it, and try again")


def _error(path: Path, message: str) -> KeystoreError:
    return KeystoreError((Fault(str(path), None, None, message),))
