"""Open work of several machines: whichever of them sees it finished charges it, and one alone does.

Each keeps a file for what it began itself, and asks about that alone. Who may charge it is said elsewhere, where all
machines remember together; while that does not answer, nobody charges, and work is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from twisted.internet.defer import Deferred

from flowstack.files import read_regular
from flowstack.ledger.late import WAIT_SECONDS, Begun, name_of
from flowstack.ledger.open_work import MOST_BYTES, OpenWork
from flowstack.usage.operations import Work


class Memory(Protocol):
    """See :class:`flowstack.limits.remote_memory.RemoteMemory`."""

    def begin(self, name: str, text: bytes, seconds: float) -> None:
        """Remember work."""

    def claim(self, name: str, text: bytes, seconds: float) -> Deferred[bytes | bool]:
        """Claim it."""

    def charged(self, name: str) -> Deferred[bool]:
        """It was charged."""


class SharedOpenWork(OpenWork):
    """As :class:`flowstack.ledger.open_work.OpenWork`, among all machines.

    :param memory: what they remember together.
    """

    def __init__(self, directory: Path | None, worker: int, now: Callable[[], float], memory: Memory) -> None:
        super().__init__(directory, worker, now)
        self._shared = memory

    def begin(self, begun: Begun) -> None:
        """Of ``OpenWork``."""
        super().begin(begun)
        self._shared.begin(begun.name, begun.written(), WAIT_SECONDS)

    def claim(self, upstream: str, kind: Work, identity: str) -> Deferred[Begun | None]:  # type: ignore[override]
        """Of ``OpenWork``."""
        name = name_of(upstream, kind, identity)
        return self._shared.claim(name, self._own(name), WAIT_SECONDS).addCallback(self._taken, name)

    def _taken(self, found: bytes | bool, name: str) -> Begun | None:
        if isinstance(found, bytes):
            begun = Begun.read(found)
            return None if begun is None or begun.name != name else begun
        if found:  # another machine has charged what was begun here
            self._forget(name)
        return None

    def done(self, begun: Begun) -> Deferred[bool]:  # type: ignore[override]
        """Of ``OpenWork``."""
        return self._shared.charged(begun.name).addCallback(self._charged, begun.name)

    def _charged(self, ours: bool, name: str) -> bool:
        self._forget(name)
        return ours

    def _own(self, name: str) -> bytes:
        """What is written here of work."""
        if self._directory is None:
            begun = self._memory.get(name)
            return b"" if begun is None else begun.written()
        with suppress(OSError):
            return read_regular(self._directory / name, MOST_BYTES, follow=False)[0]
        return b""

    def _forget(self, name: str) -> None:
        self._memory.pop(name, None)
        if self._directory is not None:
            with suppress(OSError):
                (self._directory / name).unlink()
