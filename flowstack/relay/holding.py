"""What is held of requests and answers as long as another attempt may follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.interfaces import BodyReceiver, UpstreamResponse

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer's body that are kept while another attempt is made."""


class Room:
    """How many bytes of requests' bodies are held in this process.

    :param each: of one body.
    :param most: of all together.
    :ivar held: of them.
    :ivar refused: bodies that were not held, since they were too large or there was no room.
    """

    __slots__ = ("each", "held", "most", "refused")

    def __init__(self, each: int, most: int) -> None:
        self.each = each
        self.most = most
        self.held = self.refused = 0

    def has(self, size: int) -> bool:
        """Whether a body of this size could be held now; one that could not is counted."""
        fits = size <= self.each and self.held + size <= self.most
        if not fits:
            self.refused += 1
        return fits

    def take(self, size: int) -> bool:
        """Hold a body; or do not, where it is too large or there is no room."""
        held = self.held + size
        if size > self.each or held > self.most:
            self.refused += 1
            return False
        self.held = held
        return True

    def give_back(self, size: int) -> None:
        """What was taken is held no longer."""
        self.held -= size


class HeldAnswer:
    """An answer whose head waits for the first byte of its body. It is the receiver until then.

    :param began: called once there is a byte, or the body ended without one.
    :param failed: called in its place with the reason, where the body broke off before.
    """

    def __init__(
        self,
        response: UpstreamResponse,
        began: Callable[[HeldAnswer], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._response = response
        self._began = began
        self._failed = failed
        self._piece = b""
        self._ended = False
        self.code = response.code
        self.phrase = response.phrase
        self.headers = response.headers
        self.length: Any = response.length
        self.connection: IPushProducer | None = response.connection

    def data(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        if piece:
            self._piece = piece
            self._began(self)

    def last(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self._piece, self._ended = piece, True
        self.connection = None  # the pool has it back
        self._began(self)

    def lost(self, reason: BaseException) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        if isinstance(reason, PotentialDataLoss):
            self.last(b"")
        else:
            self._failed(reason)

    def deliver(self, receiver: BodyReceiver) -> None:
        """Of :class:`flowstack.interfaces.UpstreamResponse`."""
        if self._ended:
            receiver.last(self._piece)
        else:
            self._response.redirect(receiver)
            receiver.data(self._piece)

    def redirect(self, receiver: BodyReceiver) -> None:
        """Of :class:`flowstack.interfaces.UpstreamResponse`."""
        self._response.redirect(receiver)


class KeptAnswer:
    """An answer that is set aside, so that the client can get it where no better one comes; a short one, that is.

    :param known: called with it when all of it has come, or what came is of no use.
    :ivar body: all of it; None as long as it has not come, and where it is too long.
    """

    def __init__(self, response: UpstreamResponse, known: Callable[[KeptAnswer], None] | None = None) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._known = known
        self._source: IPushProducer | None = response.connection
        self.body: bytes | None = None
        self.code = response.code
        self.phrase = response.phrase
        self.headers = response.headers
        self.length: Any = response.length
        self.connection: IPushProducer | None = None
        if self.length is not UNKNOWN_LENGTH and self.length > MAX_ANSWER:
            self.drop()
        else:
            response.deliver(self)

    def data(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MAX_ANSWER:
            self.drop()

    def last(self, piece: bytes) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        self.body = b"".join((*self._pieces, piece))
        self._end()

    def lost(self, reason: BaseException) -> None:
        """See :class:`flowstack.interfaces.BodyReceiver`."""
        if isinstance(reason, PotentialDataLoss):
            self.last(b"")
        else:
            self._end()

    def drop(self) -> None:
        """Take no more of it."""
        source, self._source = self._source, None
        if source is not None:
            source.stopProducing()
            self._end()

    def _end(self) -> None:
        self._source = None
        self._pieces = []
        known, self._known = self._known, None
        if known is not None:
            known(self)

    def deliver(self, receiver: BodyReceiver) -> None:
        """Of :class:`flowstack.interfaces.UpstreamResponse`."""
        receiver.last(self.body or b"")

    def redirect(self, receiver: BodyReceiver) -> None:
        """Of :class:`flowstack.interfaces.UpstreamResponse`; all of it is here."""
