"""What a test asks of files."""

from __future__ import annotations

from pathlib import Path


def state_of(path: Path) -> tuple[int, ...]:
    """All by which a change of a file shows; not when it was read last, which Linux notes in whole seconds, too."""
    found = path.stat()
    return (
        found.st_dev, found.st_ino, found.st_nlink, found.st_mode, found.st_uid, found.st_gid, found.st_size,
        found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip
