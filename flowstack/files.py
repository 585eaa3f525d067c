"""Files, opened so that none of them can be made to mean another: by descriptor, without waiting, none but regular.

Every file that is not Flowstack's own program is opened here, or by these rules. A name may lead elsewhere than it did
a moment before, where somebody else may write in its folder. So what is asked of a file is asked of its descriptor,
what is replaced is replaced within a folder that is held open, and root does nothing in another user's folder but with
that user's rights.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from flowstack.errors import ParseError
from flowstack.redact import shown

_AT_ONCE = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""A FIFO's other end is not waited for, and no terminal becomes this process's own."""

_MAX_LINKS = 40
"""On one way; the kernel's own bound."""

_NOGROUP = 65534

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegular(OSError):
    """What is there is no regular file; ``strerror`` says what it is."""

    def __init__(self, path: object, mode: int) -> None:
        kind = next((kind for is_it, kind in _KINDS if is_it(mode)), "a device")
        super().__init__(errno.EINVAL, f"{kind}, no regular file", str(path))


class Foreign(OSError):
    """A folder, or a link, on the way of root's is another user's.

    :ivar owner: the user.
    """

    def __init__(self, path: Path, owner: int) -> None:
        super().__init__(errno.EPERM, f"on its way is a folder or link of user {owner}", str(path))
        self.owner = owner


def open_regular(
    path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o600, *, folder: int | None = None, follow: bool = True
) -> int:
    """Open a regular file, and wait for nothing.

    :param folder: the descriptor that a relative path is taken from.
    :param follow: whether a symbolic link counts as what it leads to, and not as what it is.
    :return: a descriptor.
    :raises NotRegular: there is something else; a device was not even opened.
    :raises OSError: as ``open`` does.
    """
    with suppress(FileNotFoundError):
        _check(path, os.stat(path, dir_fd=folder, follow_symlinks=follow))
    descriptor = os.open(path, flags | _AT_ONCE | (0 if follow else os.O_NOFOLLOW), mode, dir_fd=folder)
    try:
        _check(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(path: Path) -> None:
    """See that what has a name, if anything has, is a regular file: for what another library opens by its name.

    :raises NotRegular: it is something else, such as a link.
    """
    with suppress(FileNotFoundError):
        _check(path, os.stat(path, follow_symlinks=False))


def open_at_once(path: Path, flags: int, mode: int) -> int:
    """Open whatever is there, and wait for nothing: for what may be a device, or a FIFO that somebody reads.

    :raises OSError: as ``open`` does; a FIFO that nobody reads cannot be written (ENXIO).
    """
    return os.open(path, flags | _AT_ONCE, mode)


def read_regular(
    path: Path | str, most: int, *, folder: int | None = None, follow: bool = True
) -> tuple[bytes, os.stat_result]:
    """Read a regular file whole, and what is known of it.

    :param most: bytes of the largest file that is one; of a larger one a byte more is given, so that it is noticed.
    :raises NotRegular: there is something else.
    :raises OSError: it cannot be read.
    """
    descriptor = open_regular(path, folder=folder, follow=follow)
    try:
        text = bytearray()
        while len(text) <= most and (piece := os.read(descriptor, min(most + 1 - len(text), 1 << 20))):
            text += piece
        return bytes(text), os.fstat(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path, most: int) -> bytes:
    """Read a file that holds a secret and nothing else; white space around the secret does not count.

    :param most: bytes of the file.
    :raises ParseError: it cannot be read, is no regular file, can be read or written by everybody, is empty or too
        large. It says nothing of the secret.
    """
    name, alone = shown(str(path)), "a file with the secret and nothing else"
    try:
        text, status = read_regular(path, most)
    except NotRegular as error:
        raise ParseError.found(f"{name}, which is {error.strerror}", alone) from None
    except OSError as error:
        found = f"{name}, which cannot be read ({error.strerror})"
        raise ParseError.found(found, "a file with the secret that this user can read") from None
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise ParseError.found(
            f"{name} (mode {mode:04o}), which every user of this machine may read or write",
            f"a file for its owner and group alone: chmod o= {name}",
        )
    if not text or len(text) > most:
        raise ParseError.found(f"{name}, which {'has too many bytes' if text else 'is empty'}", alone)
    return text.strip()


def write(descriptor: int, data: bytes) -> None:
    """Write all of it.

    :raises OSError: a part of it, perhaps, was written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def write_new(path: Path, text: bytes) -> None:
    """Make a file with a text that fits into one write.

    :raises FileExistsError: there is one.
    :raises OSError: it cannot be made, or not whole; then there is none.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, text) < len(text):
            raise OSError(28, "no space for all of it")
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(
    path: Path, mode: int, *, folder: int | None = None, temporary: str | None = None, synced: bool = False
) -> Iterator[int]:
    """Make a file which takes a name when the block ends well: who reads sees the old one or the new one, whole.

    :param path: the name; what it leads to, if it is a link, stays as it is.
    :param mode: less the umask.
    :param folder: the descriptor of the folder that the path's last name is in, open for reading where ``synced``.
    :param temporary: the file's name until then; a file of that name, of a process that was killed, goes.
    :param synced: whether file and name are on the disk when this returns.
    :return: the new file's descriptor, for the block; this process has just made it.
    :raises OSError: the old file is as it was.
    """
    temporary = temporary or f".{path.name}.{os.getpid()}"
    held = open_folder(path.parent, reading=synced) if folder is None else folder
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=held)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode, dir_fd=held)
        try:
            yield descriptor
            if synced:
                os.fsync(descriptor)
            os.rename(temporary, path.name, src_dir_fd=held, dst_dir_fd=held)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=held)
            raise
        finally:
            os.close(descriptor)
        if synced:
            os.fsync(held)
    finally:
        if folder is None:
            os.close(held)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file that takes the name of the old one, if there is one; see :func:`replacing`.

    :raises OSError: the old file is as it was.
    """
    with replacing(path, mode) as descriptor:
        write(descriptor, data)


def open_folder(path: Path | str, *, reading: bool = False, folder: int | None = None, follow: bool = True) -> int:
    """Open a folder, so that what is done in it is done there, whatever becomes of its name.

    :param reading: whether it is to be listed, locked or synced; otherwise no right to read it is asked for.
    """
    kind = os.O_RDONLY if reading else os.O_PATH
    return os.open(path, kind | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = open_folder(path, reading=True)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def way_to(path: Path) -> Iterator[tuple[int, str]]:
    """Go where a path leads, its last name too, links followed: the descriptor of the last folder, and the name in it.

    Root goes through folders and links of root's alone. Nothing need have the last name.

    :raises Foreign: as root; a folder or link is another's.
    :raises OSError: there is no such way.
    """
    at, name = _walk(path, only_root=os.geteuid() == 0)
    try:
        yield at, name
    finally:
        os.close(at)


@contextmanager
def folder_at(path: Path, *, reading: bool = False) -> Iterator[int]:
    """Open the folder that a path leads to, as :func:`way_to` goes there.

    :raises OSError: there is none, or none that may be entered.
    """
    with way_to(path) as (at, name):
        descriptor = open_folder(name, reading=reading, folder=at, follow=False)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def as_owner(path: Path) -> Iterator[None]:
    """Be, as root, the user whose folder or link comes first on the way to a path; be root where all are root's.

    What a path then leads to, and what is made there, is what that user could do. For anybody else nothing changes.
    For commands: the process has one thread, and does one thing.

    :raises OSError: root may not do so here.
    """
    owner = _other_owner(path) if os.geteuid() == 0 else None
    if owner is None:
        yield
        return
    group, groups = _groups_of(owner)
    before = os.getegid(), os.getgroups()
    try:
        os.setgroups(groups)
        os.setegid(group)
        os.seteuid(owner)
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])


def lock(descriptor: int, seconds: float, wait: float = 0.02) -> None:
    """Hold a file's lock (``flock``), for as long as the descriptor is open.

    :param seconds: to wait for who holds it, at most.
    :param wait: seconds between two tries.
    :raises TimeoutError: it is held all the time; ``strerror`` names who holds it.
    :raises OSError: the file system has no locks.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                held = f"its lock is held by {holder(descriptor)}" + (f" for {seconds:g} s" if seconds else "")
                raise TimeoutError(errno.ETIMEDOUT, held) from None
        time.sleep(wait)


def holder(descriptor: int) -> str:
    """Say who holds a file's lock (``flock``), as far as the kernel tells: ``process 123 (twistd)``."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    found = []
    with suppress(OSError):
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 123 fe:00:4711 0 EOF; who waits has an arrow before the kind.
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(status.st_ino):
                found.append((words[5].startswith(f"{device}:"), words[4]))
    if not found or max(found)[1] == "0":
        return "another process"
    process = max(found)[1]
    name = ""
    with suppress(OSError):
        name = Path(f"/proc/{process}/comm").read_bytes().decode("utf-8", "replace").strip()
    return f"process {process} ({name})" if name.isprintable() and name else f"process {process}"


def _check(path: object, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(path, status.st_mode)


def _walk(path: Path, *, only_root: bool) -> tuple[int, str]:
    at, name, links = open_folder("/"), ".", 0
    entry = -1
    try:
        left = deque(path.absolute().parts[1:])
        while left:
            name = left.popleft()
            try:
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except FileNotFoundError:
                if left:
                    raise
                break
            status = os.fstat(entry)
            is_link, is_folder = stat.S_ISLNK(status.st_mode), stat.S_ISDIR(status.st_mode)
            if only_root and status.st_uid and (is_link or is_folder):
                raise Foreign(path, status.st_uid)
            if is_link:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                target = PurePosixPath(os.readlink("", dir_fd=entry))
                if target.is_absolute():
                    at, entry = open_folder("/"), _closed(entry, at)
                left.extendleft(reversed(target.parts[target.is_absolute() :]))
                name = "."
            elif left or name == "..":
                at, entry, name = entry, _closed(at), "."
            if entry >= 0:
                entry = _closed(entry)
        return at, name
    except BaseException:
        _closed(*filter(lambda descriptor: descriptor >= 0, (at, entry)))
        raise


def _closed(*descriptors: int) -> int:
    for descriptor in descriptors:
        os.close(descriptor)
    return -1


def _other_owner(path: Path) -> int | None:
    try:
        with way_to(path):
            return None
    except Foreign as foreign:
        return foreign.owner
    except OSError:
        return None  # it leads nowhere: whoever needs it says so


def _groups_of(owner: int) -> tuple[int, list[int]]:
    try:
        user = pwd.getpwuid(owner)
    except KeyError:  # as in a container; whatever group a folder has, its owner need not be in it
        return _NOGROUP, [_NOGROUP]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)
