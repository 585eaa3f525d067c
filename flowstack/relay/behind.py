"""Answers whose meters are behind: they wait for their turn, and whoever sends them waits too.

One turn of the reactor takes one turn's work, however many answers of a worker's wait. The upstreams take turns too: so
no number of answers that one of them makes to cost much holds up what others answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from flowstack.server.request import Request
from flowstack.usage.turns import InTurns


class Backlog:
    """The queues, one for each upstream whose answers wait.

    :param later: has a function called in a later turn of the reactor.
    """

    def __init__(self, later: Callable[[Callable[[], None]], Any]) -> None:
        self._later = later
        self._queues: dict[str, deque[Behind]] = {}  # whose turn is next comes first

    def add(self, answer: Behind, upstream: str) -> None:
        """Work on this answer of an upstream's until its meter has seen all that came."""
        queue = self._queues.get(upstream)
        if queue is None:
            queue = self._queues[upstream] = deque()
            if len(self._queues) == 1:
                self._later(self._turn)
        queue.append(answer)

    def _turn(self) -> None:
        upstream = next(iter(self._queues))
        queue = self._queues.pop(upstream)
        answer = queue.popleft()
        more = answer.meter.work()
        if more:
            queue.append(answer)
        if queue:
            self._queues[upstream] = queue
        if self._queues:
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
