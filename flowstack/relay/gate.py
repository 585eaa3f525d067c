"""A request body that is read on its way to the upstream, since it was not at hand as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from flowstack.policy.usage.asked import Asked, BodyReader


class Reading(Protocol):
    """What a body is read by: :class:`flowstack.policy.usage.inject.Gate`, which withholds its end, or :class:`Tap`."""

    @property
    def injectable(self) -> bool:
        """Whether usage can be asked for in the body's end."""

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what may go on now."""

    def finish(self) -> Asked:
        """The body has ended: what it asks for."""

    def tail(self, inject: bool = False) -> bytes:
        """What was withheld."""


class Tap:
    """Reads a body of which nothing need be withheld: the row is to say what was asked for, whatever it was."""

    __slots__ = ("_reader",)

    injectable = False

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader

    def feed(self, piece: bytes) -> bytes:
        """Read a piece; all of it may go on."""
        self._reader.feed(piece)
        return piece

    def finish(self) -> Asked:
        """The body has ended: what it asks for."""
        return self._reader.finish()

    def tail(self, inject: bool = False) -> bytes:
        """Nothing was withheld."""
        return b""


@implementer(IBodyProducer)
class ReadBody:
    """Passes a body on as it comes, and what is withheld of it when ``judge`` has seen what it asks for.

    :param body: what is passed on.
    :param reading: by what it is read.
    :param judge: given that at the body's end, tells whether usage is asked for in the client's place.
    :param grows: whether usage may be asked for, which makes the body longer than it was announced; then it is
        chunked.

    The Deferred of :meth:`startProducing` fails with what ``judge`` raises; the upstream then lacks the body's end.
    """

    __slots__ = ("_body", "_consumer", "_judge", "_reading", "length")

    def __init__(self, body: IBodyProducer, reading: Reading, judge: Callable[[Reading], bool], grows: bool) -> None:
        self._body = body
        self._reading = reading
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
        passed = self._reading.feed(data)
        if passed and self._consumer is not None:
            self._consumer.write(passed)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Of ``IConsumer``; the producer is the body."""

    def unregisterProducer(self) -> None:
        """Of ``IConsumer``."""

    def _ended(self, _: None) -> None:
        tail = self._reading.tail(self._judge(self._reading))
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
