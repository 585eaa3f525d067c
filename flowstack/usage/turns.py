"""How much of an answer a meter is shown in one turn of the reactor, and how much in all.

An answer is its upstream's, and may be made to cost much: a few kilobytes that decode to megabytes, a line end for
every byte. One upstream must not hold up the others' answers. So work is counted, not timed: in steps, of which each is
some tenths of a microsecond, two at most, so that the same bytes are always treated alike. What is too much for one
turn waits for the next, and so does its sender.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from flowstack.http.codings import Decoder, TooMuch
from flowstack.usage.model import Outcome

SLICE: Final = 4 * 1024
"""Bytes that a meter is shown at once."""

MAX_HELD: Final = 8 * 1024
"""Bytes that are held of an answer, or of one event or object in it; a larger one is read as it comes."""

TURN: Final = 1024
"""Steps of a turn, about: a slice is looked at as a whole."""

MAX_STEPS: Final = 128 * 1024
"""Steps that a content-coded answer may take, in addition to one for each byte of it that came. Without a coding it
cannot take more than it has bytes."""

_DECODED, _RECEIVED = 8, 3
"""So many bytes, as a power of two, are a step of the decoder's: those that come out, and those that go in."""


class Meter(Protocol):
    """Reads one answer.

    :ivar steps: how much work that has been so far.
    """

    steps: int

    def feed(self, piece: bytes) -> None:
        """Look at a piece of the body, without its codings."""

    def finish(self, ended: bool = True) -> Outcome:
        """What was used, once no piece comes any more. Call once.

        :param ended: whether the body came to its end, as HTTP frames it; else it was cut or left.
        """


class InTurns:
    """Shows an answer to its meter. Never raises: a fault leaves the usage unknown.

    :param decoder: where it is content-coded.
    """

    __slots__ = ("_at_once", "_decoder", "_given_up", "_meter", "_received", "_slices", "_waiting")

    def __init__(self, meter: Meter, decoder: Decoder | None = None) -> None:
        self._meter = meter
        self._decoder = decoder
        self._at_once = decoder is None  # and nothing waits
        if not self._at_once:
            self._wait()

    def _wait(self) -> None:
        """From now on something may wait. Most answers never do, and are spared that."""
        self._at_once = False
        self._waiting: deque[bytes] = deque()
        self._slices: Iterator[bytes] | None = None  # of what waits
        self._received = 0
        self._given_up = False

    def feed(self, piece: bytes) -> bool:
        """Take a piece of the body, as it came from the upstream.

        :return: whether work is left for :meth:`work`. Until that is done the caller should have no more sent.
        """
        if self._at_once and len(piece) <= SLICE:
            try:
                self._meter.feed(piece)
            except Exception:
                self._give_up()
            return False
        return self._begin(piece)

    def _begin(self, piece: bytes) -> bool:
        if self._at_once:
            self._wait()
        elif self._given_up:
            return False
        self._received += len(piece)
        self._waiting.append(piece)
        if self._slices is not None:
            return True
        self._slices = self._pieces() if self._decoder is None else self._decoded(self._decoder)
        return self.work()

    def work(self) -> bool:
        """Do a turn's work of what waits.

        :return: whether more is left.
        """
        slices, meter = None if self._at_once else self._slices, self._meter
        if slices is None:
            return False
        until = meter.steps + TURN
        try:
            for piece in slices:
                meter.feed(piece)
                if meter.steps > until:
                    return True
        except Exception:  # it is too much, or the libraries of the codings have their own
            self._give_up()
            return False
        self._slices = None
        self._at_once = self._decoder is None
        return False

    def _give_up(self) -> None:
        """Look at nothing more."""
        self._wait()
        self._given_up = True

    def finish(self, ended: bool = True) -> Outcome:
        """As :meth:`Meter.finish`.

        Where a part of the answer was not looked at its usage is unknown, as the last figures count.
        """
        if self._at_once:
            try:
                return self._meter.finish(ended)
            except Exception:
                return Outcome()
        known = not self._given_up and self._slices is None
        self._give_up()
        try:
            outcome = self._meter.finish(ended)
        except Exception:
            return Outcome()
        if not known:
            outcome.usage = None
            for late in outcome.late:
                late.used = ()
        return outcome

    def _pieces(self) -> Iterator[bytes]:
        """What waits, cut into slices."""
        waiting = self._waiting
        while waiting:
            piece = waiting.popleft()
            if len(piece) <= SLICE:
                yield piece
            else:
                yield from _slices(piece)

    def _decoded(self, decoder: Decoder) -> Iterator[bytes]:
        """The same without its codings.

        :raises TooMuch: it is more than is looked at.
        """
        meter = self._meter
        for piece in self._pieces():
            meter.steps += 1 + (len(piece) >> _RECEIVED)
            for out in decoder.decoded(piece):
                meter.steps += 1 + (len(out) >> _DECODED)
                if meter.steps > MAX_STEPS + self._received:
                    raise TooMuch
                if len(out) <= SLICE:
                    yield out
                else:
                    yield from _slices(out)


def _slices(piece: bytes) -> Iterator[bytes]:
    for at in range(0, len(piece), SLICE):
        yield piece[at : at + SLICE]
