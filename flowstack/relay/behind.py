"""Answers whose meters are behind: they wait for their turn, and whoever sends them waits too.

All of a worker's wait in one queue, of which one turn of the reactor takes one turn's work, however many there are. So
no number of answers that are made to cost much holds up the others' for longer than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from flowstack.policy.usage.turns import InTurns
from flowstack.wire.request import Request


class Backlog:
    """The queue.

    :param later: has a function called in a later turn of the reactor.
    """

    def __init__(self, later: Callable[[Callable[[], None]], Any]) -> None:
        self._later = later
        self._queue: deque[Behind] = deque()

    def add(self, answer: Behind) -> None:
        """Work on this answer until its meter has seen all that came."""
        self._queue.append(answer)
        if len(self._queue) == 1:
            self._later(self._turn)

    def _turn(self) -> None:
        queue = self._queue
        answer = queue[0]
        more = answer.meter.work()
        queue.rotate(-1)
        if not more:
            queue.pop()
        if queue:
            self._later(self._turn)
        if not more:
            answer.caught_up()


@implementer(IPushProducer)
class Behind:
    """One answer of the queue. To the client's side it is the answer's producer: the real one is paused meanwhile.

    :param then: called once the meter has seen all that came.
    :ivar meter: the answer's.
    """

    def __init__(self, request: Request, meter: InTurns, then: Callable[[], None]) -> None:
        self.meter = meter
        self._request = request
        self._then = then
        self._producer = request.producer
        self._wanted = not request.channel.output_full
        if self._producer is not None:
            request.producer = self
            self._producer.pauseProducing()

    def end(self, then: Callable[[], None]) -> None:
        """No more comes: its producer may be at work for others already."""
        self._then = then
        self._producer = self._request.producer = None

    def caught_up(self) -> None:
        """The meter has seen all that came."""
        producer, request = self._producer, self._request
        if producer is not None and request.producer is not None:  # neither the answer nor its request has ended
            request.producer = producer
            if self._wanted:
                producer.resumeProducing()
        self._then()

    def pauseProducing(self) -> None:
        """The client takes no more."""
        self._wanted = False

    def resumeProducing(self) -> None:
        """The client takes more."""
        self._wanted = True

    def stopProducing(self) -> None:
        """Nobody wants the rest."""
        if self._producer is not None:
            self._producer.stopProducing()
