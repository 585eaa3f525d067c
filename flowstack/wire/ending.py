"""When a client's connection has waited long enough, and how it ends.

There are four ends: in order, when all that was written has gone out; lingering, after an answer that came before the
request's end; broken off, so that what the client has does not look finished; and by the client.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from flowstack.errors import FlowstackError, MalformedRequest, RequestStalled
from flowstack.policy.replies import REASONS
from flowstack.wire.kernel import acknowledged_bytes, unsent_bytes
from flowstack.wire.request import Request
from flowstack.wire.request_body import RequestBody
from flowstack.wire.site import Site
from flowstack.wire.ticker import NEVER

LINGER_SECONDS = 30.0
LINGER_IDLE = 5.0
"""How long is read on and dropped after an answer that came before the request's end, in all and from one piece to the
next, so that the client reads the answer and not a reset (RFC 9112 §9.6)."""

LINGER_BYTES = 64 * 1024 * 1024
"""How much of it at most, if the request showed no valid key; SDKs send what they have to say before they read."""


class Ending(Protocol):
    """A client's connection as far as its times and its ends go; :class:`flowstack.wire.channel.Channel` is the rest.

    It has one deadline. What that means follows from where the connection is.

    :ivar output_full: whether the transport holds as much as it should, since the client does not read.
    """

    transport: Any

    def __init__(self, site: Site) -> None:
        self._site = site
        self._current: Request | None = None
        self._queue: deque[Request | FlowstackError] = deque()
        self._body: RequestBody | None = None  # of the newest request, while it is incomplete
        self._held = b""  # an incomplete head
        self._deaf = False  # what comes is dropped
        self._dropped = 0
        self._most_dropped: float = LINGER_BYTES
        self._closing = False
        self._lingering = False
        self._linger_until = NEVER
        self._breaking = False
        self._unsent = 0  # when it was last looked at
        self._break_at = NEVER
        self._reading = True
        self._acknowledged: int | None = None
        self.output_full = False
        self.secure = False
        self.deadline = NEVER

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:  # noqa: B008
        """The client, or we, closed the connection."""
        self._site.channels.discard(self)
        self._site.ticker.members.discard(self)
        self._deaf = True
        self._queue.clear()
        current, self._current = self._current, None
        if current is not None:
            current.lost("client_gone")
        self._note_idle()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._current is not None

    def _note_idle(self) -> None:
        if self._site.draining and self._site.when_idle is not None:
            self._site.when_idle()

    # Times.

    def _arm(self) -> None:
        """Set the deadline that fits where the connection is; a full output keeps its own."""
        if self.output_full or self._closing or self._lingering or self._breaking:
            return
        site = self._site
        if self._current is None:
            seconds = site.timeouts.request_head if self._held or self._body is not None else site.timeouts.keepalive
        elif self._body is not None and self._reading and not self._body.expects:
            seconds = site.timeouts.request_idle
        else:
            self.deadline = NEVER
            return
        self.deadline = site.ticker.base + seconds

    def _await_client(self) -> None:
        """Give the client ``client_idle`` seconds in which to take something of what was written."""
        self._acknowledged = acknowledged_bytes(self.transport)
        self.deadline = self._site.ticker.base + self._site.timeouts.client_idle

    def expire(self) -> None:
        """The deadline has passed; which one it was follows from where the connection is."""
        if self._breaking:
            self._go_on_breaking()
        elif self._lingering and not self._closing:
            self._close()
        elif self._closing or self.output_full:
            before = self._acknowledged
            self._await_client()
            if self._acknowledged is None or self._acknowledged == before:
                self._time_out()
        elif self._current is not None:
            self._body_stalled(self._current)
        elif self._held:
            self._refuse(
                MalformedRequest(f"The request head did not come within {self._site.timeouts.request_head:g} seconds.")
            )
        else:
            self._close()

    def _body_stalled(self, current: Request) -> None:
        body = self._body
        if body is None or body is not current.body or current.started:
            self._current = None
            current.lost("timeout")
            self.break_off()
            return
        self.deadline = NEVER
        body.fail(
            RequestStalled(
                f"No byte of the request body came for {self._site.timeouts.request_idle:g} seconds. Send it again."
            )
        )

    def _time_out(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.lost("timeout")
        self.abort()

    # Reading.

    def pause_reading(self) -> None:
        """A window is full: leave the rest in the socket."""
        if self._reading:
            self._reading = False
            self._arm()
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """The window has room again."""
        if not self._reading:
            self._reading = True
            self._arm()
            self.transport.resumeProducing()

    def stop_listening(self) -> None:
        """Nothing more that comes on this connection can be understood."""
        self._deaf = True

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._lingering and not self._closing:
            self.deadline = min(self._site.ticker.base + LINGER_IDLE, self._linger_until)
        if self._dropped > self._most_dropped and self._current is None:
            self.abort()

    # Ends.

    def _refuse(self, error: FlowstackError) -> None:
        """Answer what is no request, after the answers that are due before it, and close."""
        self._deaf = True
        if self._current is None:
            self._answer_fault(error)
        else:
            self._queue.append(error)

    def _answer_fault(self, error: FlowstackError) -> None:
        reply = self._site.refuse(error)
        head = b"\r\n".join([b"%b: %b" % pair for pair in reply.pairs])
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%b\r\nConnection: close\r\n\r\n%b"
            % (reply.status, REASONS[reply.status], head, reply.body)
        )
        self._linger(False)

    def _linger(self, known: bool) -> None:
        """Close, but first let the client read the answer while what it still sends is dropped.

        :param known: whether the request showed a valid key: then time alone is the limit.
        """
        self._deaf = True
        self._lingering = True
        self._queue.clear()
        if known:
            self._most_dropped = float("inf")
        self._linger_until = self._site.ticker.base + LINGER_SECONDS
        self.deadline = self._site.ticker.base + LINGER_IDLE
        self.resume_reading()
        if not self.secure:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()

    def _close(self) -> None:
        """Close when all that was written has gone out."""
        self._closing = True
        self._deaf = True
        self._await_client()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def break_off(self) -> None:
        """Close so that what the client has does not look finished, once it has all that was written.

        For that it gets ``client_idle`` seconds, and as many again for each piece that it takes.
        """
        self._current = None
        self._deaf = True
        self._queue.clear()
        self._unsent = unsent_bytes(self.transport)
        if not self._unsent:
            self.abort()
            return
        self._breaking = True
        self._wait_for_client()
        self.transport.unregisterProducer()
        self.resume_reading()  # or its leaving would not be seen

    def _go_on_breaking(self) -> None:
        before, self._unsent = self._unsent, unsent_bytes(self.transport)
        if self._unsent and self._unsent < before:
            self._wait_for_client()
        elif self._unsent and self._site.ticker.now < self._break_at:
            self.deadline = self._site.ticker.now
        else:
            self.abort()

    def _wait_for_client(self) -> None:
        ticker = self._site.ticker
        self._break_at = ticker.base + self._site.timeouts.client_idle
        self.deadline = ticker.now  # at each tick it is seen whether all of it went out

    def abort(self) -> None:
        """Close at once; what the client has must not look finished."""
        self._breaking = False
        self._closing = True
        self._deaf = True
        self.transport.abortConnection()

    def close_now(self) -> None:
        """Close in order where nothing is under way; otherwise break off, and say so to the exchange."""
        current, self._current = self._current, None
        if current is not None:
            current.lost("drain")
            self.break_off()
        elif not self._breaking:
            self._close()
