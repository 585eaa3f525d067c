"""One connection to an upstream, and the exchange on it.

A connection carries one exchange at a time. What comes back is framed here; it is given on in the same call in which
it came, one piece a read. A connection is reused only after a clean end on both sides. A body that streams to the
upstream is :mod:`flowstack.wire.upload`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import Protocol as Structural

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface import implementer

from flowstack.config import Timeouts, Upstream
from flowstack.errors import UpstreamClosed, UpstreamMalformed, UpstreamTimeout
from flowstack.interfaces import BodyReceiver
from flowstack.policy.routes import Origin
from flowstack.wire.framing import BadFraming, Body, ChunkedBody, LengthBody, UntilClose
from flowstack.wire.heads import ResponseHead, malformed_response
from flowstack.wire.job import Job, Response, give_end
from flowstack.wire.kernel import heed_remains, keep_alive, socket_of
from flowstack.wire.recurring import ResponseHeads
from flowstack.wire.ticker import NEVER, Ticker
from flowstack.wire.upload import Upload


class Keeper(Structural):
    """What a connection asks of its pool."""

    seconds: Callable[[], float]
    ticker: Ticker
    timeouts: Timeouts
    upstream: Upstream
    origin: Origin
    heads: ResponseHeads

    def submit(self, job: Job) -> None:
        """Try this job on another connection."""

    def release(self, connection: Connection) -> None:
        """This connection is idle."""

    def gone(self, connection: Connection) -> None:
        """This connection is closed, or about to be."""


MAX_HEAD_BYTES = 64 * 1024

SHORT = 16 * 1024
"""Bytes of a request that are written at once, so that no write of them can meet an upstream that has answered."""

MAX_INTERIM = 32
"""Interim (1xx) responses that are dropped before the final one."""


class StreamIdle(Exception):
    """No byte of the answer's body came for ``stream_idle`` seconds."""


class UpstreamLost(Exception):
    """The upstream closed, or broke its framing, in the middle of the answer's body."""


@implementer(IPushProducer)
class Connection(Protocol):
    """A connection of a pool; of the response's body it is the push producer."""

    transport: Any

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._ticker = pool.ticker
        self._stream_idle = pool.timeouts.stream_idle
        self._job: Job | None = None
        self._head = b""  # an incomplete response head
        self._body: Body | None = None
        self._head_done: ResponseHead | None = None
        self._receiver: BodyReceiver | None = None
        self._upload: Upload | None = None  # while the request's body is on its way
        self._reading = True
        self._early: list[bytes] = []  # pieces that came before anybody asked for the body
        self._ended: BaseException | None = None
        self._interim = 0  # 1xx responses to the request under way
        self._answered = False
        self._heeding = False  # whether an answer is looked for that came before the request could be written
        self.used = 0
        self.idle_since = 0.0  # on the pool's clock
        self.lost = False
        self.deadline = NEVER

    # Twisted's side.

    def connectionMade(self) -> None:
        """Join the pool's clock."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            keep_alive(socket_of(self.transport), self._pool.timeouts.tcp_keepalive)
        self._ticker.members.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the upstream."""
        body, receiver = self._body, self._receiver
        if body is None or receiver is None or self._job is None:
            self._take_other(data)
            return
        try:
            payload, rest = body.feed(data)
        except BadFraming:
            self._break_off()
            return
        if rest is not None:
            self._take_end(payload, rest)
            return
        if self._reading:
            self.deadline = self._ticker.base + self._stream_idle
        if payload:
            receiver.data(payload)

    def _take_other(self, data: bytes) -> None:
        """Take what is no piece of a body that somebody asked for."""
        job, body = self._job, self._body
        if job is None:
            self.abandon()  # bytes after an answer's end, or before any request
        elif body is None:
            self._answered = True
            self._take_head(job, data)
        else:
            self._take_body(data, body)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """The upstream, or we, closed the connection."""
        self.lost = True
        self._ticker.members.discard(self)
        job, self._job = self._job, None
        self._pool.gone(self)
        if self._heeding:
            heed_remains(self.transport, False)  # transport and connection are not to hold each other
        if job is None or job.cancelled:
            return
        if self._head_done is None:
            job.connection = None
            self._stop_upload()
            if not self._answered and self.used > 1 and job.may_repeat(self._pool.upstream.retry_post):
                self._pool.submit(job)
            else:
                job.fail(UpstreamClosed(f"The upstream {self._pool.origin.name!r} closed the connection before it "
                                        "answered. The request may have been carried out; sending it again can bill "
                                        "twice."))  # fmt: skip
            return
        self._stop_upload()
        clean = isinstance(self._body, UntilClose) and reason.check(ConnectionDone) is not None
        self._finish(PotentialDataLoss() if clean else UpstreamLost(), b"")

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
        """Nobody wants the rest."""
        self.abandon()

    # The request.

    def send(self, job: Job) -> None:
        """Carry this job; the connection must be idle."""
        self._job = job
        job.connection = self
        job.attempts += 1
        self.used += 1
        self._answered = False
        self._interim = 0
        body = job.body
        if body is not None or len(job.head) > SHORT:
            self._heeding = True
            heed_remains(self.transport, True)
        self.transport.write(job.head)
        if body is None:
            self.deadline = self._ticker.base + self._pool.timeouts.response_head
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
        job = self._job
        if job is not None and self._head_done is None:
            self._job = job.connection = None
            self._drop()
            job.fail(fault or UpstreamClosed("The request's body could not be read."))
        else:
            self._finish(UpstreamLost(), b"")
            self._drop()

    def _stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.stop()

    # The response.

    def _take_head(self, job: Job, data: bytes) -> None:
        known = 0  # bytes that were searched before: a head may come byte by byte
        if self._head:
            known = max(0, len(self._head) - 3)
            data = self._head + data
        while True:
            cut = data.find(b"\r\n\r\n", known)
            if cut < 0 or cut > MAX_HEAD_BYTES:
                fault = malformed_response(data, MAX_HEAD_BYTES, known)
                if fault is None:
                    self._head = data
                else:
                    self._malformed(job, fault)
                return
            cut += 4
            try:
                head = self._pool.heads.read(data[:cut], job.method)
            except UpstreamMalformed as bad:
                self._malformed(job, bad.message)
                return
            data, known = data[cut:], 0
            self._head = b""
            if head.status >= 200:
                break
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._malformed(job, f"The upstream sent more than {MAX_INTERIM} interim (1xx) responses.")
                return
            if head.status == 101:
                self._malformed(job, "The upstream switched protocols although nobody asked for it.")
                return
            # RFC 9110 §15.2: interim responses may precede the final one; without end they would be a way to hold on.
        job.head = b""  # a response has begun, so nothing is sent again
        length: Any = head.length
        if length is not None and len(data) == length and head.keep_alive and self._upload is None:
            # The usual short answer: the pool has the connection back before the client reads the end and asks again.
            self._job = job.connection = None
            self.stand_by()
            self._pool.release(self)
            job.callback(Response(head, None, length, job.attempts, data))
            return
        self._head_done = head
        if head.chunked:
            self._body, length = ChunkedBody(), UNKNOWN_LENGTH
        elif length is None:
            self._body, length = UntilClose(), UNKNOWN_LENGTH
        else:
            self._body = LengthBody(length)
        self._arm()
        job.callback(Response(head, self, length, job.attempts))
        if self._job is job:
            self._take_body(data, self._body, first=True)

    def _take_body(self, data: bytes, body: Body, first: bool = False) -> None:
        """Take the piece that came with the head, or one for which nobody asked yet."""
        receiver = self._receiver
        if first and not data and not (isinstance(body, LengthBody) and body.left == 0):
            if receiver is not None:
                receiver.data(b"")
            return
        try:
            payload, rest = body.feed(data)
        except BadFraming:
            self._break_off()
            return
        if rest is not None:
            self._take_end(payload, rest)
            return
        if self._reading:
            self.deadline = self._ticker.base + self._stream_idle
        if receiver is None:
            self._hold(payload)
        else:
            receiver.data(payload)

    def _take_end(self, payload: bytes, rest: bytes) -> None:
        """Take the body's last piece."""
        job, head = self._job, self._head_done
        assert job is not None and head is not None
        clean = not rest and head.keep_alive and self._upload is None
        self._stop_upload()
        if clean and self._receiver is not None:
            # The pool has it back before the client reads the end and sends its next request.
            receiver = self._receiver
            self._reset()
            self._pool.release(self)
            receiver.last(payload)
            return
        self._finish(ResponseDone(), payload)
        self._drop()

    def _break_off(self) -> None:
        """The body's framing is broken."""
        self._stop_upload()
        self._finish(UpstreamLost(), b"")
        self._drop()

    def _hold(self, payload: bytes) -> None:
        """Keep what comes before anybody takes the body, which is at most one read: then read no more."""
        if payload:
            self._early.append(payload)
            self.pauseProducing()

    def deliver(self, receiver: BodyReceiver) -> None:
        """See :meth:`Response.deliver`."""
        self._receiver = receiver
        if self._early or self._ended is not None:
            early, self._early = b"".join(self._early), []
            if self._ended is not None:
                ended, self._ended = self._ended, None
                self._receiver = None
                give_end(receiver, early, ended)
            else:
                receiver.data(early)
                self.resumeProducing()

    def _finish(self, reason: BaseException, payload: bytes) -> None:
        """Tell the receiver of the end, or keep it for whoever becomes the receiver."""
        job, self._job = self._job, None
        if job is not None and job.cancelled:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            if payload:
                self._early.append(payload)
            self._ended = reason
        else:
            give_end(receiver, payload, reason)

    def _malformed(self, job: Job, message: str) -> None:
        self._job = None
        job.connection = None
        self._stop_upload()
        self._drop()
        job.fail(UpstreamMalformed(f"{message} The upstream is {self._pool.origin.name!r}."))

    def _reset(self) -> None:
        """Be idle."""
        self._job = None
        self._body = None
        self._head_done = None
        self._receiver = None
        self.stand_by()
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()

    def stand_by(self) -> None:
        """Wait for a job, as long as an idle connection may."""
        if self._heeding:
            self._heeding = False
            heed_remains(self.transport, False)
        pool = self._pool
        self.idle_since = pool.seconds()
        self.deadline = self._ticker.base + pool.upstream.idle

    # Ends.

    def _arm(self) -> None:
        """Set the deadline that fits where the exchange is. The client's times are its channel's."""
        timeouts = self._pool.timeouts
        if self._head_done is not None:
            seconds = timeouts.stream_idle if self._reading else NEVER
        elif self._upload is not None:
            seconds = timeouts.stream_idle if self._upload.full else NEVER
        else:
            seconds = timeouts.response_head
        self.deadline = self._ticker.base + seconds

    def expire(self) -> None:
        """The deadline has passed: idle, no head, or no byte of the body."""
        job = self._job
        if job is None:
            self._drop()
        elif self._head_done is None:
            timeouts, upload = self._pool.timeouts, self._upload
            if upload is None:
                what, seconds = "begin its answer", timeouts.response_head
            elif upload.advanced():
                self._arm()
                return
            else:
                what, seconds = "take the request", timeouts.stream_idle
            self._job = None
            job.connection = None
            self._stop_upload()
            self._drop()
            job.fail(UpstreamTimeout(f"The upstream {self._pool.origin.name!r} did not {what} within {seconds:g} "
                                     "seconds."))  # fmt: skip
        else:
            self._stop_upload()
            self._finish(StreamIdle(), b"")
            self._drop()

    def abandon(self) -> None:
        """The client left, or the answer cannot be used: close at once."""
        job = self._job
        if job is not None:
            job.cancelled = True
            self._stop_upload()
            self._job = None
        self._receiver = None
        self._drop()

    def _drop(self) -> None:
        self.deadline = NEVER
        self._pool.gone(self)
        self.transport.abortConnection()
