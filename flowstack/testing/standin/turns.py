"""What is said over one WebSocket: a client's event, and who of several speaks next, what is due at once first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from flowstack.testing.standin.values import Refused, Said


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


def event_of(message: str | bytes) -> dict[str, Any]:
    """The event that a client's message is.

    :raises Refused: it is none.
    """
    try:
        event = orjson.loads(message) if isinstance(message, str) else None
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        raise Refused(400, "Invalid event: expected a text message that is a JSON object.", code="invalid_json")
    return event
