"""A large request body on its way to the upstream, its end withheld until it is known what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from flowstack.policy.usage.inject import Gate


@implementer(IBodyProducer)
class GatedBody:
    """Passes a body on as it comes, and its end only when ``judge`` has seen what it asks for.

    :param body: what is passed on.
    :param gate: reads it.
    :param judge: given the gate at the body's end, tells whether usage is asked for in the client's place.
    :param grows: whether usage may be asked for, which makes the body longer than it was announced; then it is
        chunked.

    The Deferred of :meth:`startProducing` fails with what ``judge`` raises; the upstream then lacks the body's end.
    """

    __slots__ = ("_body", "_consumer", "_gate", "_judge", "length")

    def __init__(
        self, body: IBodyProducer, gate: Gate, judge: Callable[[Gate], bool], grows: bool
    ) -> None:
        self._body = body
        self._gate = gate
        self._judge = judge
        self._consumer: IConsumer | None = None
        self.length: Any = UNKNOWN_LENGTH if grows else body.length

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``."""
        self._consumer = consumer
        done: Deferred[None] = self._body.startProducing(self)
        return done.addCallback(self._ended)

    def write(self, data: bytes) -> None:
        """A piece of the body."""
        passed = self._gate.feed(data)
        if passed and self._consumer is not None:
            self._consumer.write(passed)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Of ``IConsumer``; the producer is the body."""

    def unregisterProducer(self) -> None:
        """Of ``IConsumer``."""

    def _ended(self, _: None) -> None:
        tail = self._gate.tail(self._judge(self._gate))
        if tail and self._consumer is not None:
            self._consumer.write(tail)

    def pauseProducing(self) -> None:
        """See ``IPushProducer``."""
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        """See ``IPushProducer``."""
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest."""
        self._consumer = None
        self._body.stopProducing()
