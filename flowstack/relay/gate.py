"""A request body that is read on its way to the upstream, since it was not at hand as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import classImplements

from flowstack.server.request_body import RequestBody, WholeBody
from flowstack.usage.inject import ADDED, FILLING
from flowstack.usage.request_facts import BodyReader, RequestFacts


class Reading(Protocol):
    """What a body is read by: :class:`flowstack.usage.inject.Gate`, which withholds its end, or :class:`Tap`."""

    passed: int
    grown: int
    asks: bool

    @property
    def injectable(self) -> bool:
        """Whether usage can be asked for in the body's end."""

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what may go on now."""

    def so_far(self) -> RequestFacts:
        """What the body asks for, as far as it came."""

    def finish(self) -> RequestFacts:
        """The body has ended: what it asks for."""

    def tail(self, inject: bool = False) -> bytes:
        """What was withheld."""


class Tap:
    """Reads a body of which nothing need be withheld: the row is to say what was asked for, whatever it was.

    :ivar passed: bytes that were let through.
    """

    __slots__ = ("_reader", "passed")

    injectable = False
    asks = False
    grown = 0

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self.passed = 0

    def feed(self, piece: bytes) -> bytes:
        """Read a piece; all of it may go on."""
        self._reader.feed(piece)
        self.passed += len(piece)
        return piece

    def so_far(self) -> RequestFacts:
        """What the body asks for, as far as it came."""
        return self._reader.so_far()

    def finish(self) -> RequestFacts:
        """The body has ended: what it asks for."""
        return self._reader.finish()

    def tail(self, inject: bool = False) -> bytes:
        """Nothing was withheld."""
        return b""


class ReadBody:
    """Passes a body on as it comes, and what is withheld of it when ``judge`` has seen what it asks for.

    :param body: what is passed on.
    :param reading: by what it is read.
    :param check: given that after each piece, and before any of the piece goes on, raises where the body may not pass,
        whatever follows. None where nothing can be wrong with it.
    :param judge: given it at the body's end, tells whether usage is asked for in the client's place, or raises; now, or
        by a Deferred.
    :param grows: whether usage may be asked for. A length is then announced that holds for both: where nothing is asked
        for, white space behind the body fills it up.
    :ivar length: bytes that will go on, or ``UNKNOWN_LENGTH`` where the body is chunked.
    :ivar whole: all that goes on, where all of the body had come when it was read ahead.
    :ivar due: whether it may still turn out that it may not pass.

    The Deferred of :meth:`startProducing` fails with what ``check`` or ``judge`` raises, and with what is wrong with
    the body itself; the upstream then lacks the body's end, and gets no more of it.
    """

    __slots__ = ("_ahead", "_body", "_check", "_consumer", "_done", "_filling", "_judge", "due", "length", "reading",
                 "whole")  # fmt: skip

    def __init__(
        self,
        body: RequestBody | WholeBody,
        reading: Reading,
        check: Callable[[Reading], None] | None,
        judge: Callable[[Reading], bool | Deferred[bool]],
        grows: bool,
    ) -> None:
        self._body = body
        self.reading = reading
        self._check = check
        self._judge = judge
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] | None = None
        self._ahead = b""
        self._filling = b""
        self.length: Any = body.length
        self.whole: bytes | None = None
        self.due = check is not None
        if grows and body.length is not UNKNOWN_LENGTH:
            self._filling = FILLING
            self.length = body.length + ADDED

    def read_ahead(self) -> Deferred[None] | None:
        """Read what has come already, before an upstream hears of it.

        :return: fires when it may, where ``judge`` answers later.
        :raises FlowstackError: as ``check`` does, and ``judge`` where all of the body has come.
        """
        self._ahead = self._read(self._body.take())
        return self._end(self._end_ahead) if self._body.complete else None

    def _end_ahead(self, tail: bytes) -> None:
        self.whole, self._ahead = self._ahead + tail, b""
        self.due = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``."""
        self._consumer = consumer
        done: Deferred[None] = Deferred()
        self._done = done
        if self._ahead:
            consumer.write(self._ahead)
            self._ahead = b""
        self._body.startProducing(self).addCallbacks(self._ended, self._fail)
        return done

    def write(self, data: bytes) -> None:
        """A piece of the body."""
        if self._consumer is None:
            return
        try:
            passed = self._read(data)
        except Exception:
            self._fail(Failure())
            return
        if passed:
            self._consumer.write(passed)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Of ``IConsumer``; the producer is the body."""

    def unregisterProducer(self) -> None:
        """Of ``IConsumer``."""

    def _read(self, data: bytes) -> bytes:
        passed = self.reading.feed(data)
        if self._check is not None:
            self._check(self.reading)
        return passed

    def _end(self, then: Callable[[bytes], None]) -> Deferred[None] | None:
        """Have the body judged, and give on what was withheld of it."""

        def judged(inject: bool) -> None:
            tail = self.reading.tail(inject)
            then(tail if inject else tail + self._filling[self.reading.grown :])

        inject = self._judge(self.reading)
        if isinstance(inject, Deferred):
            return inject.addCallback(judged)
        judged(inject)
        return None

    def _ended(self, _: None) -> None:
        if self._consumer is None:
            return
        try:
            ending = self._end(self._finish)
        except Exception:
            self._fail(Failure())
        else:
            if ending is not None:
                ending.addErrback(self._fail)

    def _finish(self, tail: bytes) -> None:
        if self._consumer is None:
            return
        if tail:
            self._consumer.write(tail)
        done, self._done, self._consumer = self._done, None, None
        if done is not None:
            done.callback(None)

    def _fail(self, failure: Failure) -> None:
        done, self._done = self._done, None
        if done is not None:
            self.stopProducing()
            done.errback(failure)

    def pauseProducing(self) -> None:
        """See ``IPushProducer``."""
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        """See ``IPushProducer``."""
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest."""
        self._consumer = self._done = None
        self._body.stopProducing()


classImplements(ReadBody, IBodyProducer, IConsumer)
