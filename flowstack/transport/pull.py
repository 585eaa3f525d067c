"""Pull producers on uvloop's transports, which know push producers only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Pulled:
    """A pull producer, asked for more each time that all it wrote was sent.

    :param connection: a :class:`flowstack.transport.connection.Connection`, whose ``write`` this takes the place of.
    """

    __slots__ = ("_asking", "_connection", "_producer")

    def __init__(self, connection: Any, producer: Any) -> None:
        self._connection = connection
        self._producer = producer
        self._asking = False

    def __repr__(self) -> str:
        return repr(self._producer)

    def start(self) -> None:
        """Take the place of the connection's producer, and ask for the first piece."""
        connection = self._connection
        connection.producer = self
        connection.write = self._write
        connection.writeSequence = self._write_sequence
        connection._uv.set_write_buffer_limits(*connection._drain_limits)
        self._producer.resumeProducing()

    def pauseProducing(self) -> None:
        """Nothing: a pull producer writes only when it is asked."""

    def resumeProducing(self) -> None:
        """Ask for more."""
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """Pass on that nothing will be taken any more."""
        self._producer.stopProducing()

    def _write(self, data: bytes) -> None:
        self._connection._uv.write(data)
        self._ask_soon()

    def _write_sequence(self, pieces: Iterable[bytes]) -> None:
        self._connection._uv.writelines(pieces)
        self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._asking and not self._connection._full:
            self._asking = True
            self._connection._loop.call_soon(self._ask)

    def _ask(self) -> None:
        self._asking = False
        if self._connection.producer is self and not self._connection._full:
            self._producer.resumeProducing()
