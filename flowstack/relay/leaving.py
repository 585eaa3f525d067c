"""Answers whose clients have left, and that are read on for what they say of usage."""

from __future__ import annotations

from collections.abc import Callable

from flowstack.interfaces import BodyReceiver
from flowstack.transport.ticker import NEVER, Ticker


class Leaving:
    """One such answer: what comes of it goes on to its meter, within bounds of time and bytes.

    :param receiver: what the body went to before.
    :param stop: called once where a bound is reached, or the process ends: nobody wants the rest.
    :param seconds: from now.
    :param most: bytes from now.
    :param among: all of them in this process; it is in there until its end.
    :ivar deadline: on the ticker's clock.
    """

    def __init__(
        self,
        receiver: BodyReceiver,
        stop: Callable[[], None],
        ticker: Ticker,
        seconds: float,
        most: int,
        among: set[Leaving],
    ) -> None:
        self._receiver = receiver
        self._stop = stop
        self._ticker = ticker
        self._left = most
        self._among = among
        self.deadline = ticker.base + seconds
        ticker.members.add(self)
        among.add(self)

    def data(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self._left -= len(piece)
        self._receiver.data(piece)
        if self._left < 0:
            self.expire()

    def last(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self._receiver.last(piece)

    def lost(self, reason: BaseException) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self._receiver.lost(reason)

    def expire(self) -> None:
        """It takes too long, or is too much."""
        if self in self._among:
            self.end()
            self._stop()

    def end(self) -> None:
        """It is over."""
        self.deadline = NEVER
        self._ticker.members.discard(self)
        self._among.discard(self)
