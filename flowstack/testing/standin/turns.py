"""Who of several speaks next over one WebSocket: what is due at once, then each speaker in turn, an event each time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from flowstack.testing.standin.values import Said


class Turns:
    """Events that are due, and speakers that have more to say.

    A speaker works only as far as it is heard: what it does between two events happens when its turn comes.
    """

    def __init__(self) -> None:
        self._due: deque[Said] = deque()
        self._speakers: deque[Iterator[Said]] = deque()

    def now(self, said: Said) -> None:
        """Have this said before all else."""
        self._due.append(said)

    def add(self, speaker: Iterator[Said]) -> None:
        """Have this one speak in turn with the others, to its end."""
        self._speakers.append(speaker)

    def say(self) -> Said | None:
        """The next event, or None where nobody has one."""
        while not self._due and self._speakers:
            speaker = self._speakers.popleft()
            said = next(speaker, None)
            if said is not None:  # behind what became due while it thought
                self._due.append(said)
                self._speakers.append(speaker)
        return self._due.popleft() if self._due else None
