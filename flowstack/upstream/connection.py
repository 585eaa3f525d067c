"""One connection to an upstream, and the exchange on it.

A connection carries one call at a time. What comes back is framed here; it is given on in the same call in which it
came, one piece a read. A connection is reused only after a clean end on both sides. A body that streams to the
upstream is :mod:`flowstack.upstream.upload`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface import classImplements

from flowstack.config import Timeouts, Upstream
from flowstack.errors import UpstreamClosed, UpstreamMalformed, UpstreamTimeout
from flowstack.http.framing import BadFraming, Body, ChunkedBody, LengthBody, UntilClose
from flowstack.http.head_cache import ResponseHeads
from flowstack.http.heads import malformed_response
from flowstack.interfaces import BodyReceiver
from flowstack.states import IllegalMove
from flowstack.transport.kernel import heed_remains, keep_alive, socket_of
from flowstack.transport.ticker import NEVER, Ticker
from flowstack.upstream.call import Call, Response
from flowstack.upstream.routes import Origin
from flowstack.upstream.upload import Upload


class Pool(Protocol):
    """What a connection asks of its pool."""

    ticker: Ticker
    timeouts: Timeouts
    upstream: Upstream
    origin: Origin
    heads: ResponseHeads
    seconds: Callable[[], float]

    def submit(self, call: Call) -> None:
        """Try this call on another connection."""

    def release(self, connection: UpstreamConnection) -> None:
        """This connection is idle."""

    def gone(self, connection: UpstreamConnection) -> None:
        """This connection is closed, about to be, or another's."""

    def ages(self) -> float:
        """Seconds after which a new connection is used no more."""


MAX_HEAD_BYTES: Final = 64 * 1024

SHORT: Final = 16 * 1024
"""Bytes of a request that are written at once, so that no write of them can meet an upstream that has answered."""

MAX_INTERIM: Final = 32
"""Interim (1xx) responses that are dropped before the final one."""


class StreamIdle(Exception):
    """No byte of the answer's body came for ``stream_idle`` seconds."""


class UpstreamLost(Exception):
    """The upstream closed, or broke its framing, in the middle of the answer's body."""


class State(IntEnum):
    """Where a connection to an upstream is. It carries a call in all but IDLE and the last two."""

    IDLE = 0  # waits for a call
    WAITING = 1  # the request is sent or on its way, and no byte of an answer has come: it may be sent again
    HEAD = 2  # bytes of an answer have come, but not yet its final head
    ANSWERED = 3  # the final head has come and is given on; whoever gets it asks for the body in the same call
    UNTAKEN = 4  # or later: until then the socket is not read
    BODY = 5  # the body goes to its receiver as it comes
    CLOSED = 6  # closed by the upstream, or cut
    TAKEN_OVER = 7  # the transport is another's


IDLE, WAITING, HEAD, ANSWERED, UNTAKEN, BODY, CLOSED, TAKEN_OVER = State

MOVES: Final[dict[State, tuple[State, ...]]] = {
    IDLE: (WAITING, CLOSED),
    WAITING: (IDLE, HEAD, ANSWERED, CLOSED),  # to IDLE: all of a short answer came in one read
    HEAD: (IDLE, ANSWERED, CLOSED),
    ANSWERED: (UNTAKEN, BODY, CLOSED, TAKEN_OVER),
    UNTAKEN: (BODY, CLOSED, TAKEN_OVER),
    BODY: (IDLE, CLOSED),
    CLOSED: (),
    TAKEN_OVER: (),
}

_UNTIL_CLOSE = UntilClose()


class UpstreamConnection:
    """A connection of a pool; of the response's body it is the push producer.

    :ivar state: see :data:`MOVES`.
    :ivar used: how many calls it has carried.
    :ivar fresh_until: on the pool's clock, when it is used no more: an upstream may be about to close it, since it was
        idle for so long, or it has come of age.
    """

    transport: Any

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # What each call asks for is one look-up.
        self._ticker, self._seconds, self._idle = pool.ticker, pool.seconds, pool.upstream.idle
        self._stream_idle, self._response_head = pool.timeouts.stream_idle, pool.timeouts.response_head
        self._handshake = pool.timeouts.websocket_handshake
        self.state = IDLE
        self._call: Call | None = None
        self._held = b""  # came and was not read: part of a head, or what nobody has asked for yet
        self._interim = 0  # 1xx responses to the call so far
        self._keep_alive = False  # whether the upstream lets the connection live on after this answer
        self._decoder: Body = _UNTIL_CLOSE
        self._receiver: BodyReceiver | None = None  # in BODY, and only there
        self._upload: Upload | None = None  # while the request's body is on its way, in any state that carries a call
        self._reading = True  # apart from the state: the client may be slow in each of them
        self._heeding = False  # an answer is looked for that came before the request could be written; costs a call
        self.used = 0
        self.fresh_until = 0.0
        self._old_at = pool.seconds() + pool.ages()  # on the pool's clock
        self.deadline = NEVER

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(self.state, state)
        self.state = state

    # Twisted's side.

    def makeConnection(self, transport: Any) -> None:
        """Join the pool's clock."""
        self.transport = transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            keep_alive(socket_of(transport), self._pool.timeouts.tcp_keepalive)
        self._ticker.members.add(self)

    def connectionMade(self) -> None:
        """See ``IProtocol``."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the upstream."""
        receiver = self._receiver
        if receiver is None:
            self._take_other(data)
            return
        try:
            payload, rest = self._decoder.feed(data)
        except BadFraming:
            self._lose(UpstreamLost())
            return
        if rest is not None:
            self._take_end(receiver, payload, rest)
            return
        if self._reading:
            self.deadline = self._ticker.base + self._stream_idle
        if payload:
            receiver.data(payload)

    def _take_other(self, data: bytes) -> None:
        """Take what is no piece of a body that somebody asked for."""
        state = self.state
        if state is WAITING or state is HEAD:
            self._take_head(data)
        elif state is UNTAKEN:
            self._held += data  # in spite of the pause: TLS may hold some
        else:
            self.close()  # bytes after an answer's end, or before any request

    def connectionLost(self, reason: Failure) -> None:
        """The upstream, or we, closed the connection."""
        self._ticker.members.discard(self)
        self._heed(False)  # transport and connection are not to hold each other
        state = self.state
        if state is CLOSED:
            return
        self._move(CLOSED)
        call, receiver = self._call, self._receiver
        self._call = self._receiver = None
        self._stop_upload()
        self._pool.gone(self)
        if receiver is not None:
            clean = self._decoder is _UNTIL_CLOSE and reason.check(ConnectionDone) is not None
            receiver.lost(PotentialDataLoss() if clean else UpstreamLost())
        elif call is not None and state < ANSWERED:
            call.connection = None
            if state is WAITING and self.used > 1 and call.may_repeat(self._pool.upstream.retry_post):
                self._pool.submit(call)
            else:
                call.fail(UpstreamClosed(f"The upstream {self._pool.origin.name!r} closed the connection before it "
                                         "answered. The request may have been carried out; sending it again can bill "
                                         "twice."))  # fmt: skip

    def pauseProducing(self) -> None:
        """Read no more: the client is slow."""
        if self._reading:
            self._reading = False
            self._arm()
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if not self._reading:
            self._reading = True
            self._arm()
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest: close at once."""
        if self._call is not None:
            self._call.cancelled = True
        self.close()

    # The request.

    def send(self, call: Call) -> None:
        """Carry this call; the connection must be idle."""
        self._move(WAITING)
        self._call = call
        call.connection = self
        call.attempts += 1
        self.used += 1
        self._interim = 0
        body = call.body
        if body is not None or len(call.head) > SHORT:
            self._heed(True)
        self.transport.write(call.head)
        if body is None:
            self.deadline = self._ticker.base + (self._handshake if call.upgrades else self._response_head)
            return
        self._upload = upload = Upload(self, body)
        self._arm()
        upload.start()

    def upload_turned(self) -> None:
        """The upstream takes no more of the request's body, or takes more again."""
        self._arm()

    def upload_sent(self) -> None:
        """The request is complete."""
        self._upload = None
        self._arm()

    def upload_failed(self, fault: BaseException | None) -> None:
        """The rest of the request's body cannot be had."""
        self._upload = None
        if self.state < ANSWERED:
            self._fail(fault or UpstreamClosed("The request's body could not be read."))
        else:
            self._lose(UpstreamLost())

    def _stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.stop()

    # The response.

    def _take_head(self, data: bytes) -> None:
        call, pool = self._call, self._pool
        assert call is not None
        known = 0  # bytes that were searched before: a head may come byte by byte
        if self._held:
            known = max(0, len(self._held) - 3)
            data = self._held + data
            self._held = b""
        while True:
            cut = data.find(b"\r\n\r\n", known)
            if cut < 0 or cut > MAX_HEAD_BYTES:
                fault = malformed_response(data, MAX_HEAD_BYTES, known)
                if fault is not None:
                    self._malformed(fault)
                    return
                self._held = data
                if self.state is WAITING:
                    self._move(HEAD)
                return
            cut += 4
            try:
                head = pool.heads.read(data[:cut], call.method)
            except UpstreamMalformed as bad:
                self._malformed(bad.message)
                return
            data, known = data[cut:], 0
            if head.status >= 200 or (head.status == 101 and call.upgrades):
                break
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._malformed(f"The upstream sent more than {MAX_INTERIM} interim (1xx) responses.")
                return
            if head.status == 101:
                self._malformed("The upstream switched protocols although nobody asked for it.")
                return
            if self.state is WAITING:
                self._move(HEAD)
            # RFC 9110 §15.2: interim responses may precede the final one; without end they would be a way to hold on.
        call.head = b""  # a response has begun, so nothing is sent again
        length: Any = head.length
        if head.status == 101:
            length = None  # what follows is another protocol's
        elif length is not None and len(data) == length and head.keep_alive and self._upload is None:
            # The usual short answer: the pool has the connection back before the client reads the end and asks again.
            call.connection = None
            self._rest()
            call.callback(Response(head, None, length, call.attempts, data))
            return
        self._keep_alive = head.keep_alive
        if head.chunked:
            self._decoder, length = ChunkedBody(), UNKNOWN_LENGTH
        elif length is None:
            self._decoder, length = _UNTIL_CLOSE, UNKNOWN_LENGTH
        else:
            self._decoder = LengthBody(length)
        self._held = data
        self._move(ANSWERED)
        self._arm()
        call.callback(Response(head, self, length, call.attempts))
        if self.state is ANSWERED:
            self._move(UNTAKEN)
            self.pauseProducing()

    def deliver(self, receiver: BodyReceiver) -> None:
        """See :meth:`flowstack.upstream.call.Response.deliver`."""
        late = self.state is UNTAKEN
        if self.state is CLOSED:  # before anybody asked
            receiver.lost(UpstreamLost())
            return
        self._move(BODY)
        self._receiver = receiver
        data, self._held = self._held, b""
        if late:
            self.resumeProducing()
        if not data and not (isinstance(self._decoder, LengthBody) and self._decoder.left == 0):
            receiver.data(b"")
            return
        try:
            payload, rest = self._decoder.feed(data)
        except BadFraming:
            self._lose(UpstreamLost())
            return
        if rest is not None:
            self._take_end(receiver, payload, rest)
        else:
            receiver.data(payload)

    def redirect(self, receiver: BodyReceiver) -> None:
        """See :meth:`flowstack.upstream.call.Response.redirect`."""
        if self.state is BODY:
            self._receiver = receiver

    def _take_end(self, receiver: BodyReceiver, payload: bytes, rest: bytes) -> None:
        """Take the body's last piece."""
        self._receiver = None
        if not rest and self._keep_alive and self._upload is None:
            # The pool has it back before the client reads the end and sends its next request.
            self._rest()
        else:
            self.close()
        receiver.last(payload)

    def _rest(self) -> None:
        """Be idle, and the pool's again."""
        self._move(IDLE)
        self._call = None
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()
        self.stand_by()
        self._pool.release(self)

    def stand_by(self) -> None:
        """Wait for a call, as long as an idle connection may."""
        if self._heeding:
            self._heed(False)
        fresh_until = self._seconds() + self._idle
        self.fresh_until = fresh_until if fresh_until < self._old_at else self._old_at
        self.deadline = self._ticker.base + self._idle

    def take_over(self) -> tuple[Any, bytes]:
        """Let go of the transport once the final head has come, for something else than HTTP to be spoken on it.

        The caller gives the transport its next protocol in the same call (see
        :func:`flowstack.transport.kernel.connect_protocol`). It is paused for reading then and has no producer. The
        pool has forgotten the connection: it counts no longer towards ``max_connections``.

        :return: the transport, and the bytes that came behind the head.
        :raises IllegalMove: the head has not come, or a part of the body was given on.
        """
        self._move(TAKEN_OVER)
        held, self._held = self._held, b""
        self._call = None
        self._stop_upload()
        self._heed(False)
        self._ticker.members.discard(self)
        self.deadline = NEVER
        self._pool.gone(self)
        if self._reading:
            self._reading = False
            self.transport.pauseProducing()
        return self.transport, held

    # Times.

    def _arm(self) -> None:
        """Set the deadline that fits the state. The client's times are its connection's."""
        if self.state >= ANSWERED:
            seconds = self._stream_idle if self._reading else NEVER
        elif self._upload is not None:
            seconds = self._stream_idle if self._upload.full else NEVER
        else:
            seconds = self._answer_seconds()
        self.deadline = self._ticker.base + seconds

    def _answer_seconds(self) -> float:
        call = self._call
        return self._handshake if call is not None and call.upgrades else self._response_head

    def expire(self) -> None:
        """The deadline has passed; which one it was follows from the state."""
        state, upload = self.state, self._upload
        if state is IDLE:
            self.close()
        elif state >= ANSWERED:
            self._lose(StreamIdle())
        elif upload is None:
            self._time_out("begin its answer", self._answer_seconds())
        elif upload.advanced():
            self._arm()
        else:
            self._time_out("take the request", self._stream_idle)

    def _time_out(self, what: str, seconds: float) -> None:
        name = self._pool.origin.name
        self._fail(UpstreamTimeout(f"The upstream {name!r} did not {what} within {seconds:g} seconds."))

    # Ends.

    def _malformed(self, message: str) -> None:
        self._fail(UpstreamMalformed(f"{message} The upstream is {self._pool.origin.name!r}."))

    def _fail(self, fault: BaseException) -> None:
        """No answer comes, or none that can be used."""
        call = self._call
        self.close()
        if call is not None:
            call.connection = None
            call.fail(fault)

    def _lose(self, reason: BaseException) -> None:
        """The rest of the body does not come."""
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.lost(reason)

    def close(self) -> None:
        """Close at once. What it carries is forgotten."""
        if self.state < CLOSED:
            self._move(CLOSED)
            self.deadline = NEVER
            self._call = self._receiver = None
            self._held = b""
            self._stop_upload()
            self._pool.gone(self)
            self.transport.abortConnection()

    def _heed(self, heed: bool) -> None:
        if self._heeding is not heed:
            self._heeding = heed
            heed_remains(self.transport, heed)


classImplements(UpstreamConnection, IProtocol, IPushProducer)
