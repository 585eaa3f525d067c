"""What a test asks of files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def state_of(path: Path) -> tuple[int, ...]:
    """All by which a change of a file shows; not when it was read last, which Linux notes in whole seconds, too."""
    found = path.stat()
    return (
        found.st_dev, found.st_ino, found.st_nlink, found.st_mode, found.st_uid, found.st_gid, found.st_size,
        found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


def open_below(directory: Path) -> list[str]:
    """The files below a directory that this process has open.

    Its descriptors are not just counted, as others of them may be closed meanwhile: by the garbage collector, too.
    """
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [path for path in found if Path(path).is_relative_to(directory)]
