"""A WebSocket: the frames of a client and an upstream, passed on as they came, and read on their way.

Nothing is assembled but what must be judged before it goes on: a client's message waits until it is known that it asks
for nothing that its key might not do. Of what an upstream says only the end of a message that tells of usage waits, for
its row, in the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from flowstack.config import Timeouts
from flowstack.errors import FlowstackError, KeyDisabled, Overloaded
from flowstack.http.frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameReader,
    Part,
    Violation,
    close_code,
    close_payload,
    frame,
)
from flowstack.interfaces import Keystore
from flowstack.keys import Key, check_usable
from flowstack.keys.permits import check_address, check_endpoint, check_upstream
from flowstack.ledger.row import End, SocketFacts
from flowstack.relay.conversation import Conversation
from flowstack.relay.holding import Room
from flowstack.states import IllegalMove
from flowstack.transport.kernel import connect_protocol, unsent_bytes
from flowstack.transport.ticker import NEVER, Ticker
from flowstack.usage.sockets import ClientEvent

log = Logger()

GOING_AWAY, POLICY, INTERNAL_ERROR, SERVICE_RESTART = 1001, 1008, 1011, 1012
"""RFC 6455 §7.4.1, and the registry of close codes for the last."""

HELD: Final = 64 * 1024
"""Bytes of a message that wait to be judged without taking of the room for those that are larger."""

PART: Final = 256
"""Bytes that a part takes which waits, in addition to those that came."""

WITHHELD: Final = 2.0
"""Seconds in which a client's message must end behind which one of Flowstack's own waits: that asks for the end of what
goes beyond a limit."""


class State(Enum):
    """Where a tunnel is."""

    OPEN = "frames pass both ways"
    CLOSING = "one side has closed, and the other's answer to that is waited for"
    ENDED = "has its row; what was written to both sides goes out"
    CLOSED = "both connections are gone"


OPEN, CLOSING, ENDED, CLOSED = State

MOVES: Final[dict[State, tuple[State, ...]]] = {
    OPEN: (CLOSING, ENDED),
    CLOSING: (ENDED,),
    ENDED: (CLOSED,),
    CLOSED: (),
}


class Side:
    """One of the two connections: what comes from it goes to the other.

    :ivar full: whether as much was written to it as should be, since it does not read.
    :ivar owed: whether what Flowstack itself has to say to it waits, so that it is not read: it may ask for more.
    :ivar gone: whether its connection is lost.
    :ivar messages: that came from it; ``payload`` bytes of these.
    :ivar heard: whether anything came from it since that was last looked at.
    :ivar pinged: whether it has a ping of ours to answer.
    :ivar taking: whether its bytes are being taken: what they ask for goes out at the end of that call.
    """

    __slots__ = ("_injected", "_mid_message", "_open_frame", "_parts", "_reading", "full", "gone", "heard",
                 "messages", "other", "owed", "payload", "pinged", "reader", "taking", "transport", "tunnel", "unsent",
                 "waits")  # fmt: skip

    other: Side
    transport: Any

    def __init__(self, tunnel: Tunnel, masked: bool) -> None:
        self.tunnel = tunnel
        self.reader = FrameReader(masked, tunnel.sockets.max_message)
        self.full = self.gone = self.owed = self.pinged = self.waits = False
        self.heard = True
        self.unsent: int | None = None
        self.messages = self.payload = 0
        self._reading = False
        self.taking = False
        self._parts: list[Part] = []  # that came while the limiter was waited for
        # Of what goes on to the other side: where own frames may be put in.
        self._open_frame = self._mid_message = False
        self._injected: list[bytes] = []

    # Twisted's side.

    def makeConnection(self, transport: Any) -> None:
        """Take the transport over."""
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        """See ``IProtocol``."""
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of frames."""
        self.heard = True
        tunnel = self.tunnel
        if tunnel.state is not OPEN and tunnel.state is not CLOSING:
            return
        if self.waits:
            self._parts.extend(self.reader.feed(data))
            return
        payload = self.reader.whole(data) if tunnel.conversation is None or self.at_once else None
        if payload is None:
            self._take(self.reader.feed(data))
            return
        self.messages += 1
        self.payload += len(payload)
        if tunnel.conversation is not None:
            self.taking = True
            try:
                self.read(payload)
            finally:
                self.taking = False
            if self._injected:
                data += b"".join(self._injected)
                self._injected.clear()
        self.other.transport.write(data)
        if tunnel.due is not None:
            tunnel.end_if_due()

    def connectionLost(self, reason: Failure) -> None:
        """The peer, or we, closed the connection."""
        self.gone = True
        self.tunnel.lost(self)

    def pauseProducing(self) -> None:
        """The transport holds as much as it should: the other side is read no more."""
        self.full = True
        self.unsent = None
        self.other.read_or_not()

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self.full = self.owed = False
        self.other.read_or_not()
        self.read_or_not()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    def read_or_not(self) -> None:
        """Read from this side, unless the other takes no more, the limiter is waited for, or it is owed an answer."""
        wanted = not (self.other.full or self.waits or self.owed)
        if wanted is not self._reading and not self.gone:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    @property
    def silent(self) -> bool:
        """Whether nothing came although it was read."""
        return self._reading and not self.heard

    # What passes.

    def _take(self, parts: list[Part]) -> None:
        """Pass parts on, as far as these may now."""
        out: list[bytes] = []
        closes: bytes | None = None
        self.taking = True
        try:
            for number, part in enumerate(parts):
                opcode = part.opcode
                if opcode < CLOSE:
                    if part.begins:
                        self.messages += 1
                    self.payload += len(part.payload)
                    self.message(part, out)
                    if self.waits:
                        self._parts.extend(parts[number + 1 :])
                    if self.waits or self.tunnel.due is not None:
                        break
                elif opcode == PONG and self.pinged and part.payload == self.tunnel.ping:
                    self.pinged = False  # it answers ours
                else:
                    self.control(part, out)
                    if opcode == CLOSE:
                        closes = part.payload
        finally:
            self.taking = False
        if self._injected:
            if self._mid_message:
                self._owe()
            else:
                out += self._injected
                self._injected.clear()
                self.other.owed = self.other.full
                self.other.read_or_not()
        if closes is not None:
            self.tunnel.closes(self, closes)
        if out:
            self.other.transport.write(out[0] if len(out) == 1 else b"".join(out))
        self.tunnel.end_if_due()
        violation = self.reader.violation
        if violation is not None and not self._parts:
            self.tunnel.violated(self, violation)
        elif self.tunnel.state is ENDED:
            self.tunnel.close_both()

    @property
    def at_once(self) -> bool:
        """Whether a whole message goes on whatever it says."""
        return True

    def read(self, payload: bytes) -> None:
        """Look at a whole message that goes on whatever it says."""

    def message(self, part: Part, out: list[bytes]) -> None:
        """Some of a message, or all of it: put into ``out`` what may go on now."""
        self.passes(part, out)

    def control(self, part: Part, out: list[bytes]) -> None:
        """A control frame, which may stand between the frames of a message."""
        out.append(part.raw)

    def passes(self, part: Part, out: list[bytes]) -> None:
        """A part of a message goes on."""
        out.append(part.raw)
        self._open_frame = not part.frame_ends
        self._mid_message = not part.ends

    def go_on(self) -> None:
        """What was waited for is there."""
        self.waits = False
        parts, self._parts = self._parts, []
        if self.tunnel.state is OPEN or self.tunnel.state is CLOSING:
            self._take(parts)
            self.read_or_not()

    def inject(self, message: bytes) -> None:
        """Put a message of Flowstack's own among those that go on to the other side, between two of them.

        :param message: as a frame.
        """
        if self.taking:
            self._injected.append(message)
        elif self._mid_message:
            self._injected.append(message)
            self._owe()
        else:
            self.other.transport.write(message)
            if self.other.full:
                self._owe()

    def _owe(self) -> None:
        """What is put in waits, as the other side's own doing: until it has gone out that side is not read, lest more
        and more of it pile up."""
        self.other.owed = True
        if self.owed and self._mid_message:  # or the message behind which it waits would never end
            self.owed = False
            self.read_or_not()
        self.other.read_or_not()

    @property
    def withholds(self) -> bool:
        """Whether a message of Flowstack's own waits for the end of one that goes on."""
        return bool(self._injected)

    @property
    def between(self) -> bool:
        """Whether a control frame of Flowstack's own may go on to the other side now."""
        return not self._open_frame

    def shut(self) -> None:
        """Close when all that was written has gone out."""
        if not self.gone:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def cut(self) -> None:
        """Close at once."""
        if not self.gone:
            self.transport.abortConnection()


classImplements(Side, IProtocol, IPushProducer)


class ClientSide(Side):
    """The client's: its messages may have to be judged."""

    __slots__ = ("_certain", "_dropped", "_held", "_judges", "_late", "_passed", "_room", "_size", "_weight")

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__(tunnel, True)
        self._held: list[Part] = []
        self._certain = False  # nothing is to be judged of the present message, as it looks
        self._passed = False  # some of it went on
        self._dropped: FlowstackError | None = None  # why the rest of it is not read
        self._late = False  # the present message began after the upstream's Close
        self._judges = False  # whether the present message is to be judged: a reload holds from the next one on
        self._size = 0  # of its payload
        self._weight = 0  # bytes that what waits takes in memory
        self._room = 0  # of these that count

    @property
    def at_once(self) -> bool:
        """See :attr:`Side.at_once`."""
        conversation = self.tunnel.conversation
        return conversation is None or not (conversation.judges or conversation.over)

    def read(self, payload: bytes) -> None:
        """See :meth:`Side.read`."""
        conversation = self.tunnel.conversation
        if conversation is not None:
            conversation.asks.feed(payload)
            conversation.note(conversation.asks.end(), len(payload))

    def message(self, part: Part, out: list[bytes]) -> None:
        """See :meth:`Side.message`."""
        conversation = self.tunnel.conversation
        if conversation is None:
            self.passes(part, out)
            return
        if part.begins:
            self._certain = self._passed = False
            self._dropped, self._size = None, 0
            self._judges = conversation.judges
            self._late = conversation.over
        if self._late:  # who has closed reads no more (RFC 6455 §1.4): nothing is asked, nor refused
            return
        self._size += len(part.payload)
        self._certain = conversation.asks.feed(part.payload) and not conversation.listens
        if not self._judges:
            self.passes(part, out)
            if part.ends:
                conversation.note(conversation.asks.end(), self._size)
            return
        if self._dropped is None:
            self._held.append(part)
        if not part.ends:
            if self._certain and self._dropped is None:
                self._release(out)
            elif self._dropped is None:
                self._weigh(part, out)
            return
        self._judge(conversation, out)

    def control(self, part: Part, out: list[bytes]) -> None:
        """See :meth:`Side.control`. One that comes in the middle of a message that waits, waits with it."""
        if self._held and part.opcode != CLOSE:
            self._held.append(part)
            self._weigh(part, out)
        else:
            self.let_go()  # a message without an end, which nobody waits for
            out.append(part.raw)

    def _weigh(self, part: Part, out: list[bytes]) -> None:
        """One more part waits, be it empty: it takes of the room, or there is none for the message."""
        size = len(part.raw) + PART
        self._weight += size
        if self._weight <= HELD:
            return
        if self.tunnel.sockets.room.take(size):
            self._room += size
        else:
            self._release(out, False)
            self._dropped = Overloaded(
                "Flowstack has no room to hold a message of this size until it is known whether it may pass. Try again "
                "in a moment."
            )

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        self._weight = 0
        if self._room:
            self.tunnel.sockets.room.give_back(self._room)
            self._room = 0

    def _release(self, out: list[bytes], message: bool = True) -> None:
        """Let what waits go on; or only the control frames in it."""
        for part in self._held:
            if part.opcode >= CLOSE:
                out.append(part.raw)
            elif message:
                self.passes(part, out)
        self._passed = message or self._passed
        self.let_go()

    def _judge(self, conversation: Conversation, out: list[bytes]) -> None:
        """All of a message is here."""
        event = ClientEvent()
        try:
            event = conversation.asks.end()
            if conversation.over and not self._passed:
                self._release(out, False)
                return
            if self._dropped is not None:
                raise self._dropped
            judging = conversation.ask(event, self._size)
        except Exception as error:
            self._refuse(conversation, _of_ours(error), event, out)
            return
        if judging is None:
            self._release(out)
            return
        self.waits = True
        judging.addCallbacks(
            lambda _: self._judged(conversation, out),
            lambda failure: self._not_judged(conversation, failure, event, out),
        ).addErrback(lambda failure: self.tunnel.fail(failure.value))
        self.read_or_not()

    def _judged(self, conversation: Conversation, out: list[bytes]) -> None:
        if self.taking:  # the limiter has answered at once
            self._release(out)
            self.waits = False
            return
        late: list[bytes] = []
        self._release(late, not conversation.over)
        self._go_on_with(late)

    def _go_on_with(self, late: list[bytes]) -> None:
        """What was waited for is there; the call in which it was asked for is over."""
        if self.tunnel.state is OPEN or self.tunnel.state is CLOSING:
            if late:
                self.other.transport.write(b"".join(late))
            self.go_on()

    def _not_judged(self, conversation: Conversation, failure: Failure, event: Any, out: list[bytes]) -> None:
        error = _of_ours(failure.value)
        if self.taking:
            self._refuse(conversation, error, event, out)
            self.waits = False
            return
        late: list[bytes] = []
        self._refuse(conversation, error, event, late)
        self._go_on_with(late)

    def _refuse(self, conversation: Conversation, error: FlowstackError, event: Any, out: list[bytes]) -> None:
        """A message does not go on; where a part of it did, it never gets its end."""
        passed = self._passed
        self._release(out, False)
        conversation.refused(event, error, self._size)
        if passed:
            self.tunnel.end(POLICY, "a message asked for more than it seemed to", "refused", error.code)


def _of_ours(error: BaseException | None) -> FlowstackError:
    if isinstance(error, FlowstackError):
        return error
    log.failure("a WebSocket's message or key could not be judged", None if error is None else Failure(error))
    return FlowstackError("Flowstack failed at this message; its log says why.")


class UpstreamSide(Side):
    """The upstream's: what it says of usage has its row before it goes on."""

    __slots__ = ()

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__(tunnel, False)

    def read(self, payload: bytes) -> None:
        """See :meth:`Side.read`."""
        conversation = self.tunnel.conversation
        if conversation is not None:
            conversation.hear(payload, True, self.payload)

    def message(self, part: Part, out: list[bytes]) -> None:
        """See :meth:`Side.message`."""
        conversation = self.tunnel.conversation
        if conversation is not None:
            conversation.hear(part.payload, part.ends, self.payload)
        self.passes(part, out)


class Tunnel:
    """One WebSocket, from its 101 to its row.

    :ivar exchange: of the handshake; its row is the connection's.
    :ivar conversation: what is asked for and answered on it; None where that is not known.
    :ivar ping: the payload of Flowstack's own pings.
    :ivar close_code: of the first Close frame, or None.
    :ivar key: as it is now, of this generation of the keystore.
    :ivar heard: says whether what happens on it is still counted elsewhere; None where it is counted here.
    :ivar due: ends it, once what was taken before has gone on.
    """

    __slots__ = ("_channel", "_client_closed", "_say_by", "_until", "client", "close_code", "conversation", "deadline",
                 "due", "exchange", "generation", "heard", "key", "ping", "sockets", "state", "upstream")  # fmt: skip

    def __init__(self, sockets: Sockets, exchange: Any, heard: Callable[[], bool] | None) -> None:
        self.sockets = sockets
        self.heard = heard
        self.exchange = exchange
        self.key: Key = exchange.admission.key
        self.generation: int = exchange.admission.generation
        self.state = OPEN
        self.ping = sockets.random(8)
        self.close_code: int | None = None
        self.due: Callable[[], None] | None = None
        self._client_closed: bool | None = None
        self._say_by = NEVER
        ticker = sockets.ticker
        self._until = ticker.base + sockets.timeouts.websocket_session
        self.deadline = min(ticker.base + sockets.timeouts.websocket_ping, self._until)
        self.client = ClientSide(self)
        self.upstream = UpstreamSide(self)
        self.client.other, self.upstream.other = self.upstream, self.client
        self.conversation: Conversation | None = None

    def start(self, connection: Any, head: bytes) -> None:
        """Take both connections over, and answer the client.

        :param head: of the 101.
        """
        self._channel = self.exchange.request.channel
        transport, from_client = self._channel.take_over(self)
        behind, from_upstream = connection.take_over()
        self.sockets.ticker.members.add(self)
        transport.write(head)
        connect_protocol(transport, self.client)
        connect_protocol(behind, self.upstream)
        try:
            if self.heard is None and self.exchange.admission.response is not None:
                # It ends it, if its key may not have it after all.
                self.conversation = Conversation(
                    self.exchange, self.sockets.next_id, self.say_to_client, self.say_to_upstream, self.deny
                )
            for side, data in ((self.client, from_client), (self.upstream, from_upstream)):
                if data:
                    side.dataReceived(data)
            for side in (self.client, self.upstream):
                side.read_or_not()
        except Exception as error:
            self.fail(error)

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(self.state, state)
        self.state = state

    # What Flowstack says by itself.

    def say_to_client(self, text: bytes) -> None:
        """Send a message to the client, between two of the upstream's."""
        if self.state is OPEN:
            self.upstream.inject(frame(TEXT, text))

    def say_to_upstream(self, text: bytes) -> None:
        """Send a message to the upstream, between two of the client's."""
        if self.state is OPEN:
            if not self.client.withholds:
                self._say_by = self.sockets.ticker.base + WITHHELD
            self.client.inject(frame(TEXT, text, self.sockets.random(4)))

    @property
    def mute(self) -> bool:
        """Whether it is too long that the client has let nothing of Flowstack's own pass to the upstream."""
        return self.client.withholds and self.sockets.ticker.now >= self._say_by

    def check(self, key: Key) -> None:
        """Hold it to its key's line as it is now.

        :raises FlowstackError: by that it could not be opened.
        """
        exchange = self.exchange
        admission = exchange.admission
        if key.upstreams:
            check_upstream(key, exchange.attempt.route.origin.name)
        if key.endpoints:
            check_endpoint(key, exchange.request.method, admission.route.path)
        if key.allow_ip:
            check_address(key, admission.client_address)

    def deny(self, error: FlowstackError) -> None:
        """End it, since its key may not do what is done on it."""
        self.end(POLICY, error.message, "refused", error.code)

    def fail(self, error: BaseException | None) -> None:
        """End it, since Flowstack itself has failed: nobody waits for what would have come."""
        known = _of_ours(error)
        self.end(INTERNAL_ERROR, known.message, "refused", known.code)

    # Its ends.

    def closes(self, side: Side, payload: bytes) -> None:
        """A side has sent its Close frame, which goes on when this returns."""
        if self.state is OPEN:
            self._move(CLOSING)
            self.close_code = close_code(payload)[0]
            self._client_closed = side is self.client
            if self.conversation is not None:
                self.conversation.over = side is self.upstream
            self.deadline = self.sockets.ticker.base + self.sockets.timeouts.websocket_close
        elif self.state is CLOSING and self._client_closed is not (side is self.client):
            self._finish("complete")

    def violated(self, side: Side, violation: Violation) -> None:
        """A side broke the protocol."""
        if side is self.client:
            self.end(violation.code, violation.message, "refused", "malformed_request", violation.code)
        else:
            self.end(violation.code, violation.message, "upstream_lost", "upstream_malformed", violation.code)

    def lost(self, side: Side) -> None:
        """A connection is gone, its Close frame or not."""
        if self.state is OPEN:
            self._finish("client_gone" if side is self.client else "upstream_lost")
        elif self.state is CLOSING:
            self._finish("complete")
        if self.client.gone and self.upstream.gone:
            if self.state is ENDED:
                self._move(CLOSED)
                self.sockets.ticker.members.discard(self)
                self._channel.give_up(self)
        else:
            self.close_both()

    def end(
        self, code: int, reason: str, end: End, error_code: str | None = None, upstream_code: int = GOING_AWAY
    ) -> None:
        """End it for a reason of Flowstack's own, with a Close frame to both sides where one may be put in. What
        a key may not do is not told to the upstream."""
        if self.state is not OPEN and self.state is not CLOSING:
            return
        if self.client.taking or self.upstream.taking:
            self.due = self.due or partial(self.end, code, reason, end, error_code, upstream_code)
            return
        closing = self.state is CLOSING
        self.exchange.error_code = error_code
        if self.close_code is None:
            self.close_code = code
        self._finish(end)
        for side, with_code in ((self.client, code), (self.upstream, upstream_code)):
            if side.other.between and not (closing and self._client_closed is (side is self.upstream)):
                mask = None if side is self.client else self.sockets.random(4)
                if not side.gone:
                    said = "" if code == POLICY and side is self.upstream else reason
                    side.transport.write(frame(CLOSE, close_payload(with_code, said), mask))
        self.close_both()

    def end_if_due(self) -> None:
        """End it now, if it was to be ended while a side's bytes were taken."""
        due, self.due = self.due, None
        if due is not None:
            due()

    def _finish(self, end: End) -> None:
        """Write the rows."""
        self._move(ENDED)
        self.deadline = self.sockets.ticker.base + self.sockets.timeouts.websocket_close
        if self.conversation is not None:
            self.conversation.end(end)
        self.client.let_go()
        self.sockets.ended(self, end)
        client, upstream = self.client, self.upstream
        facts: SocketFacts = {
            "transport": "websocket", "close_code": self.close_code,
            "messages_in": client.messages, "messages_out": upstream.messages,
        }  # fmt: skip
        self.exchange.close(end, upstream.payload, facts, client.payload)

    def close_both(self) -> None:
        """Close both connections when all that was written has gone out."""
        self.client.shut()
        self.upstream.shut()

    # Of the site's connections.

    @property
    def busy(self) -> bool:
        """Whether it is open, or has something to send."""
        return self.state is not CLOSED

    def close_now(self) -> None:
        """The time to drain is over."""
        self.end(SERVICE_RESTART, "Flowstack is restarting; connect again", "drain")

    def abort(self) -> None:
        """Cut both."""
        if self.state is OPEN or self.state is CLOSING:
            self._finish("drain")
        self.client.cut()
        self.upstream.cut()

    # Times.

    def expire(self) -> None:
        """See which of its times is over."""
        ticker, timeouts = self.sockets.ticker, self.sockets.timeouts
        if self.state is ENDED:
            self.deadline = ticker.base + timeouts.websocket_close
            self.client.cut()
            self.upstream.cut()
            return
        if self.state is CLOSING:
            self._finish("complete")
            self.close_both()
            return
        if ticker.now >= self._until:
            seconds = f"{timeouts.websocket_session:g}"
            self.end(GOING_AWAY, f"a WebSocket may last {seconds} seconds here; connect again", "timeout")
            return
        self.deadline = min(ticker.base + timeouts.websocket_ping, self._until)
        for side in (self.client, self.upstream):
            if self._look(side):
                return

    def _look(self, side: Side) -> bool:
        """Whether a side is dead, and all ended for it."""
        name = "client" if side is self.client else "upstream"
        if side.full:
            unsent = unsent_bytes(side.transport)
            stalled = side.unsent is not None and unsent >= side.unsent
            side.unsent = unsent
            if stalled:
                self.end(INTERNAL_ERROR, f"the {name} takes nothing", "timeout")
                side.cut()
                return True
        if not side.silent:
            side.heard = side.pinged = False
        elif side.pinged or not side.other.between:
            self.end(INTERNAL_ERROR, f"the {name} does not answer a ping", "timeout")
            side.cut()
            return True
        else:
            side.pinged = True
            side.transport.write(frame(PING, self.ping, None if side is self.client else self.sockets.random(4)))
        return False


class Sockets:
    """The WebSockets of a process.

    :param keystore: looked at after each reload: one whose key is gone, disabled or expired is closed.
    :param max_message: bytes of a message.
    :param room: for messages that wait to be judged.
    :param next_id: makes the id of each row but the connections' own.
    :param random: gives so many random bytes.
    :param observe_end: given how each ended.
    :ivar current: those that are open.
    :ivar messages: that passed, from clients and from upstreams; bytes of these in ``payload``.
    """

    def __init__(
        self,
        ticker: Ticker,
        timeouts: Timeouts,
        keystore: Keystore,
        max_message: int,
        room: Room,
        wall_clock: Callable[[], float],
        next_id: Callable[[], bytes],
        random: Callable[[int], bytes],
        observe_end: Callable[[str], None],
    ) -> None:
        self.ticker = ticker
        self.timeouts = timeouts
        self.max_message = max_message
        self.room = room
        self.next_id = next_id
        self.random = random
        self.current: set[Tunnel] = set()
        self._keystore = keystore
        self._wall_clock = wall_clock
        self._observe_end = observe_end
        self._messages = [0, 0]
        self._payload = [0, 0]
        self.deadline = 0.0
        ticker.members.add(self)

    def open(
        self, exchange: Any, connection: Any, head: bytes, heard: Callable[[], bool] | None = None
    ) -> None:
        """Begin one.

        :param exchange: the :class:`flowstack.relay.exchange.Exchange` of its handshake.
        :param connection: the upstream's.
        :param head: of the answer to the client.
        :param heard: says whether what happens on it is counted elsewhere; as soon as it is not, it is closed. None: it
            is judged and counted here.
        """
        tunnel = Tunnel(self, exchange, heard)
        self.current.add(tunnel)
        tunnel.start(connection, head)

    def ended(self, tunnel: Tunnel, end: End) -> None:
        """One has."""
        self.current.discard(tunnel)
        for number, side in enumerate((tunnel.client, tunnel.upstream)):
            self._messages[number] += side.messages
            self._payload[number] += side.payload
        self._observe_end(end)

    def messages(self, from_client: bool) -> int:
        """How many passed so far."""
        return self._messages[not from_client] + sum(
            (one.client if from_client else one.upstream).messages for one in self.current
        )

    def payload(self, from_client: bool) -> int:
        """How many bytes these had."""
        return self._payload[not from_client] + sum(
            (one.client if from_client else one.upstream).payload for one in self.current
        )

    def expire(self) -> None:
        """Each second: see whether the keys of those that are open still may be used, and for that."""
        self.deadline = self.ticker.now + min(1.0, 4 * self.ticker.interval)
        generation, now = self._keystore.generation, self._wall_clock()
        for tunnel in list(self.current):
            try:
                self._expire(tunnel, generation, now)
            except Exception:  # one that fails must not hide the others, now or later
                log.failure("a WebSocket could not be looked after; it is cut")
                tunnel.client.cut()
                tunnel.upstream.cut()

    def _expire(self, tunnel: Tunnel, generation: int, now: float) -> None:
        if tunnel.heard is not None and not tunnel.heard():
            tunnel.end(GOING_AWAY, "the call has ended", "complete")
            return
        if tunnel.mute:
            tunnel.end(POLICY, "a message that does not end keeps back the end of a response", "timeout")
            return
        key = tunnel.key
        reloaded = tunnel.generation != generation  # since it was asked for, which may have been while it opened
        if not reloaded and key.expires_at is None:
            return
        current = self._keystore.lookup(key.digest)
        try:
            if current is None:
                raise KeyDisabled(f"The Flowstack key {key.id} was removed.")
            check_usable(current, now)
            if reloaded:
                tunnel.generation, tunnel.key = generation, current
                tunnel.check(current)
                if tunnel.conversation is not None:
                    tunnel.conversation.take_key(current)
        except Exception as error:
            tunnel.deny(_of_ours(error))
