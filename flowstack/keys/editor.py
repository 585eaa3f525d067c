"""Changes to the keystore file by command: whole or not at all, and never over somebody else's change.

The new text goes to a synced temporary file beside the old one, which then takes its name. So a reader sees either
the old file or the new one, also after a crash.

Editors exclude each other by an flock on the file's directory. The file itself will not do, since each rename puts
another file in its place, and who waited would hold a lock on the old one. A lock file beside it would stay behind,
owned by whoever came first. The directory is always there, and who may rename in it may open it.

All of it is done within that directory, held open, and by descriptors: what a name leads to may change meanwhile. Root
edits with the rights of whoever owns the directory.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from attrs import evolve

from flowstack.errors import ParseError
from flowstack.files import (
    NotRegular,
    as_owner,
    lock,
    open_folder,
    open_regular,
    read_regular,
    replacing,
    way_to,
    write,
)
from flowstack.keys import (
    Group,
    Key,
    KeySet,
    digest,
    expires_text,
    format_group,
    format_key,
    line_id,
    rewrite_line,
    scan,
)
from flowstack.keys.keyfile import MAX_BYTES
from flowstack.keys.reading import KeystoreError, Place, read_keys

LOCK_WAIT = 10.0
"""Seconds that an edit waits for another one."""

HEADER = """\
# Flowstack keys, one a line: id, hash of the secret, attributes. The secrets themselves are not in here. A line that
# begins with @ is a group, whose limits the keys that name it share.
# Change it by `flowstack keys` or in an editor; a running service reloads it on SIGHUP (systemctl reload flowstack).
"""

NAMED_KEYS = 10
"""The most keys that a message names; the rest is counted."""

_NO_XATTR = (errno.EPERM, errno.ENOTSUP, errno.ENODATA, errno.EINVAL, errno.EACCES)
"""What a file system says that has no such attribute, or does not let this user set it."""

Entry = TypeVar("Entry", Key, Group)

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
        return _appended(text, map(format_key, keys))

    edit(path, change, create=True)


def add_group(path: Path, group: Group) -> None:
    """As :func:`add_key`."""
    edit(path, lambda text, _: _appended(text, [format_group(group)]), create=True)


def change_key(path: Path, key_id: str, change: Callable[[Key], Key]) -> tuple[Key, Key]:
    """Rewrite a key's line; a comment on it stays, and so do all other lines.

    :param change: gives the key as it is to be; raises :class:`KeystoreError` to leave the file alone.
    :return: the key before and after.
    :raises KeystoreError: nothing was written, and why.
    """
    return _rewrite(path, lambda keys: (key_id, key_of(path, keys, key_id)), change)


def change_group(path: Path, name: str, change: Callable[[Group], Group]) -> tuple[Group, Group]:
    """As :func:`change_key`."""
    return _rewrite(path, lambda keys: (f"@{name}", group_of(path, keys, name)), change)


def rotate_key(path: Path, key_id: str, secret: bytes, grace: int, now: float) -> tuple[Key, Key]:
    """Give a key a new secret; the old one stays valid for a time of grace.

    :param secret: the new one's SHA-256.
    :param grace: seconds; 0 ends every old secret at once.
    :param now: UTC Unix seconds.
    :return: the key before and after.
    :raises KeystoreError: nothing was written, and why: the grace of a rotation before is not over, or as above.
    """

    def change(key: Key) -> Key:
        if grace and key.previous_until is not None and key.previous_until > now:
            message = (
                f"the key {key_id} was rotated before, and the secret of then is valid through "
                f"{expires_text(key.previous_until)}: rotations may not overlap. Wait until then, or end both old "
                "secrets at once by --grace 0"
            )
            raise KeystoreError((ParseError(message, file=str(path)),))
        previous, until = (key.digest, float(math.ceil(now) + grace)) if grace else (None, None)
        return evolve(key, digest=secret, previous=previous, previous_until=until)

    return change_key(path, key_id, change)


def remove_key(path: Path, key_id: str) -> Key:
    """Take a key's line out; comments on lines of their own stay.

    :return: the key that was removed.
    :raises KeystoreError: nothing was written, and why.
    """
    return _remove(path, lambda keys: (key_id, key_of(path, keys, key_id)))


def remove_group(path: Path, name: str) -> Group:
    """As :func:`remove_key`, for a group that no key names."""

    def find(keys: KeySet) -> tuple[str, Group]:
        group = group_of(path, keys, name)
        if keys.members.get(name):
            raise _error(path, _named(name, [key.id for key in keys if key.group == name]))
        return f"@{name}", group

    return _remove(path, find)


def _named(group: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED_KEYS} more" if len(ids) > NAMED_KEYS else ""
    return (
        f"found {len(ids)} {'key' if len(ids) == 1 else 'keys'} in the group {group}, expected none: "
        f"{', '.join(ids[:NAMED_KEYS])}{more}; move each by `flowstack keys set ID --group OTHER`, or take it out by "
        "`flowstack keys set ID --unset group`"
    )


def _appended(text: str, lines: Iterable[str]) -> str:
    end = "\r\n" if text.endswith("\r\n") else "\n"
    joint = "" if text.endswith("\n") or not text else end
    return text + joint + "".join(f"{line}{end}" for line in lines)


def _rewrite(
    path: Path, find: Callable[[KeySet], tuple[str, Entry]], change: Callable[[Entry], Entry]
) -> tuple[Entry, Entry]:
    """Rewrite the line of what is found.

    :param find: gives how its line begins, and what it is; raises :class:`KeystoreError` where there is none.
    """
    found: list[Entry] = []

    def rewrite(text: str, keys: KeySet) -> str:
        word, old = find(keys)
        found.extend((old, change(old)))
        lines = text.split("\n")
        number = next(number for number, line in enumerate(lines) if line_id(line) == word)
        bare = lines[number].removesuffix("\r")
        lines[number] = rewrite_line(bare, found[1]) + lines[number][len(bare) :]
        return "\n".join(lines)

    edit(path, rewrite)
    return found[0], found[1]


def _remove(path: Path, find: Callable[[KeySet], tuple[str, Entry]]) -> Entry:
    removed: list[Entry] = []

    def change(text: str, keys: KeySet) -> str:
        word, old = find(keys)
        removed.append(old)
        return "\n".join(line for line in text.split("\n") if line_id(line) != word)

    edit(path, change)
    return removed[0]


def key_of(path: Path, keys: KeySet, key_id: str) -> Key:
    """The key with this id.

    :raises KeystoreError: there is none.
    """
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        raise _unknown_id(path, keys, key_id)
    return key


def _unknown_id(path: Path, keys: KeySet, key_id: str) -> KeystoreError:
    """Make the error for an id that no key has; it may be a key of another form, which is not repeated then."""
    key = keys.get(digest(key_id.encode("utf-8", "surrogateescape")))
    if key is not None:
        return _error(path, f"found a whole key, expected its id, which is {key.id}: take the key out of the shell's "
                            "history, too")  # fmt: skip
    return _error(path, f"found no key with the id {key_id!r}; `flowstack keys list` shows the ids")


def group_of(path: Path, keys: KeySet, name: str) -> Group:
    """The group with this name.

    :raises KeystoreError: there is none.
    """
    group = keys.groups.get(name)
    if group is None:
        raise _error(path, f"found no group with the name {name!r}; `flowstack groups list` shows the names")
    return group


def edit(path: Path, change: Change, *, create: bool = False) -> None:
    """Rewrite the file under the lock. Owner, group, mode and extended attributes stay; a symlink stays a symlink.

    :param create: whether a missing file counts as an empty one. A new file gets mode 0600, or 0640 where its directory
        hands its group down (setgid), as one made for the service's group does.
    :raises KeystoreError: the file, as it is or as it would become, has faults, or was changed by somebody else
        meanwhile, or may not be written. Nothing was written then.
    """
    try:
        with as_owner(path), _locked(path) as place:
            if create and not _is_there(place):
                before, keys = None, scan(HEADER.encode(), str(path)).key_set()
            else:
                old = read_keys(path, place=place)
                if old.faults:
                    raise KeystoreError(old.faults)
                before, keys = old.text, old.key_set
            after = change(keys.text.decode(), keys).encode()
            faults = scan(after, f"{path} as it would become").faults
            if faults:
                raise KeystoreError(tuple(faults))
            _replace(path, place, after, before)
    except OSError as error:
        raise _error(path, f"could not be written: {error.strerror}; {_advice(path, error)}") from error


@contextmanager
def _locked(path: Path) -> Iterator[Place]:
    """Hold the lock of the folder that the path leads into, and say where that is."""
    try:
        with way_to(path) as (at, name):
            folder = open_folder(".", reading=True, folder=at)
    except FileNotFoundError:
        missing = Path(os.path.realpath(path)).parent
        raise _error(path, f"its directory {missing} does not exist; make it first, or correct the path") from None
    try:
        lock(folder, LOCK_WAIT)
    except TimeoutError as error:
        os.close(folder)
        where = Path(os.path.realpath(path)).parent
        raise _error(
            path, f"another edit is in progress in the directory {where}: {error.strerror}; try again when it has ended"
        ) from None
    except BaseException:
        os.close(folder)
        raise
    try:
        yield folder, name
    finally:
        os.close(folder)


def _is_there(place: Place) -> bool:
    try:
        os.stat(place[1], dir_fd=place[0], follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _replace(path: Path, place: Place, text: bytes, before: bytes | None) -> None:
    folder, name = place
    with replacing(Path(name), 0o600, folder=folder, synced=True) as new:
        write(new, text)
        if before is None:
            os.fchmod(new, 0o640 if os.fstat(folder).st_mode & stat.S_ISGID else 0o600)
        else:
            _adopt_rights(place, new)
        os.fsync(new)
        _unchanged(path, place, before)


def _adopt_rights(place: Place, new: int) -> None:
    """Give the new file the old one's owner, group, mode, access lists and labels: the service must still read it."""
    try:
        old = open_regular(place[1], folder=place[0], follow=False)
    except (FileNotFoundError, NotRegular):
        return  # somebody changes it meanwhile, which is noticed
    try:
        was, now = os.fstat(old), os.fstat(new)
        if (now.st_uid, now.st_gid) != (was.st_uid, was.st_gid):
            os.fchown(new, was.st_uid, was.st_gid)
        for name in os.listxattr(old):
            if name != "security.capability":
                try:
                    os.setxattr(new, name, os.getxattr(old, name))
                except OSError as error:
                    if error.errno not in _NO_XATTR:
                        raise
        os.fchmod(new, was.st_mode & 0o777)
    finally:
        os.close(old)


def _unchanged(path: Path, place: Place, before: bytes | None) -> None:
    """Catch those who do not know the lock, such as a text editor. What is left is the instant before the rename."""
    try:
        now: bytes | None = read_regular(place[1], MAX_BYTES, folder=place[0], follow=False)[0]
    except FileNotFoundError:
        now = None
    except NotRegular:
        now = b""
    if now != before:
        raise _error(path, "was changed by somebody else meanwhile; nothing was written: look at it, and try again")


def _advice(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError) and os.getuid() == 0:
        return (
            "in a folder of another user's root does what that user may, and no more: give the file to the folder's "
            "owner, or the folder to root"
        )
    return "run this as the file's owner or as root, and check the disk"


def _error(path: Path, message: str) -> KeystoreError:
    return KeystoreError((ParseError(message, file=str(path)),))
