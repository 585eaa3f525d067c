from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from flowstack.limits.restore import LOCK


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a service keeps open for as long as it lives, of which a test makes hundreds.

    A thousand descriptors are all that many a system gives a process.
    """
    kept: list[tuple[int, os.stat_result]] = []

    def noted(make: Callable[..., int]) -> Callable[..., int]:
        def make_and_note(what: Any, *args: Any, **options: Any) -> int:
            fd = make(what, *args, **options)
            # Not what is closed again: by that number a mapping may then have the file, for itself.
            if isinstance(what, int) or os.path.basename(what) in (LOCK, "flowstack-limits"):
                kept.append((fd, os.fstat(fd)))
            return fd

        return make_and_note

    with monkeypatch.context() as watched:
        watched.setattr(os, "open", noted(os.open))
        watched.setattr(os, "dup", noted(os.dup))
        watched.setattr(os, "memfd_create", noted(os.memfd_create))
        yield
    for fd, made in kept:
        with suppress(OSError):  # it is closed already
            if os.path.samestat(os.fstat(fd), made):  # and not another by that number
                os.close(fd)
