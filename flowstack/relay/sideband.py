"""Realtime calls: their media pass Flowstack by (WebRTC), so that what they use is heard on a WebSocket beside them.

OpenAI reference, Realtime, server-side controls: ``/v1/realtime?call_id=…`` hears the events of a call, and may send
some. It is a tunnel like any other, but for its client: nobody sits there.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Final, cast
from urllib.parse import quote, unquote_to_bytes

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.errors import FlowstackError, UpstreamMalformed, UpstreamTimeout
from flowstack.http.frames import CLOSE, PING, PONG, FrameReader, frame
from flowstack.http.handshake import check_answer, request_fields
from flowstack.http.headers import Pair, RawHeaders, replace_credentials
from flowstack.interfaces import UpstreamCall, UpstreamClient, UpstreamResponse
from flowstack.ledger.row import End, SocketFacts, usual_names, usual_texts
from flowstack.relay.heard import Heard
from flowstack.relay.row import row_of_head
from flowstack.states import IllegalMove
from flowstack.usage.operations import CALLS, socket_of

log = Logger()

HEARD_WITHIN: Final = 8.0
"""Seconds from the answer to a call's beginning until it must be heard."""

WAITS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, to hear a call or to end it: the provider may know of it a moment later than it said
so, and a network may be down for a moment."""

HANG_UP_SECONDS: Final = 5.0
"""How long each answer is waited for when a call is to be ended."""

_BEGIN: Final = b"/calls"
_place_of = re.compile(
    rb"(?:https?://[^/?#]*)?([A-Za-z0-9/_.~%:-]*)/calls/([A-Za-z0-9_-][A-Za-z0-9_.-]{0,255})/?(?:[?#].*)?", re.DOTALL
).fullmatch
_goes_on = re.compile(rb"host|authorization|api-key|x-api-key|user-agent|openai-.*").fullmatch
_version = re.compile(rb"api-version=[A-Za-z0-9.-]{1,64}").fullmatch
_of_call = re.compile(
    rb"(?:api-version=[A-Za-z0-9.-]{1,64}&)?call_id=([A-Za-z0-9_.-]{1,256})(?:&api-version=[A-Za-z0-9.-]{1,64})?"
).fullmatch

_, _RESPONSE = socket_of(b"realtime")


class State(Enum):
    """Where a call is."""

    TRYING = "is to be heard"
    HEARD = "is heard"
    ENDING = "has its row; the provider is asked to end it"
    DONE = "that was answered, or nobody waits for it any more"


TRYING, HEARD, ENDING, DONE = State

MOVES: Final[dict[State, tuple[State, ...]]] = {
    TRYING: (HEARD, ENDING),
    HEARD: (ENDING,),
    ENDING: (DONE,),
    DONE: (),
}


class Calls:
    """Hears the calls that are begun at some of the upstreams.

    :param upstreams: the names of these (``meter_calls``).
    :param clients: by the label of a place.
    :param provider_keys: the operator's, by the upstream's name.
    :param key_fields: the header for it, by the same.
    :param heard: which are heard now.
    :param random: gives so many random bytes.
    """

    def __init__(
        self,
        upstreams: Set[str],
        clients: Mapping[str, UpstreamClient],
        provider_keys: Mapping[str, bytes],
        key_fields: Mapping[str, bytes],
        heard: Heard,
        random: Callable[[int], bytes],
    ) -> None:
        self._upstreams = upstreams
        self.clients = clients
        self._provider_keys = provider_keys
        self._key_fields = key_fields
        self.heard = heard
        self.random = random

    def begins(self, exchange: Any) -> bool:
        """Whether a call was begun by an exchange that is over: by the endpoint for it, or any that says where the call
        is that it made."""
        attempt, status = exchange.attempt, exchange.status
        if attempt is None or attempt.response is None or status is None or not 200 <= status < 300:
            return False
        if exchange.admission.operation.name == CALLS:
            return True
        place = _place_of(attempt.response.headers.by_name.get(b"location", b""))
        return exchange.request.method == b"POST" and place is not None and place[1].endswith(b"/realtime")

    def hears(self, exchange: Any) -> bool:
        """Whether the call that an exchange began is to be heard."""
        return exchange.attempt.route.origin.name in self._upstreams

    def hear(self, exchange: Any) -> None:
        """A call was begun: hear it to its end. Never raises.

        :param exchange: the :class:`flowstack.relay.exchange.Exchange` that began it, with its row. What it reserved is
            held until the call ends.
        """
        try:
            call = Call(self, exchange)
        except Exception:
            log.failure("a call could not be heard: what it uses is not counted")
            if exchange.reservation is not None:
                exchange.services.limiter.settle(exchange.reservation, exchange.row)
            return
        call.open()

    def heard_apart(self, exchange: Any) -> Callable[[], bool] | None:
        """Of a WebSocket of a call that is heard anyway, so that it would be counted twice: says whether it still is
        heard. None for any other.

        It must be Realtime's, of the key that began the call, and its query must say nothing else: what may be for
        something else is counted here.
        """
        route, key = exchange.attempt.route, exchange.admission.key.digest
        if route.origin.name not in self._upstreams or exchange.admission.response is not _RESPONSE:
            return None
        found = _of_call(route.target.partition(b"?")[2])
        if found is None:
            return None
        is_heard = partial(self.heard.is_heard, route.origin.name, found[1], key)
        return is_heard if is_heard() else None

    def fields(self, exchange: Any) -> list[Pair]:
        """Who asks about a call: as whoever began it, but with the operator's key where that came with a secret."""
        attempt = exchange.attempt
        name = attempt.route.origin.name
        field = self._key_fields[name]
        pairs = [pair for pair in attempt.headers.pairs if (low := pair[0].lower()) == field.lower() or _goes_on(low)]
        provider_key = self._provider_keys.get(name)
        if exchange.admission.secret is not None and provider_key is not None:
            pairs = replace_credentials(pairs, provider_key, field)
        return pairs


class Call:
    """One call, from its beginning to its end: it is not longer than it is heard.

    For the tunnel it stands in the place of an exchange, of its request, and of the client's connection. Among the
    site's connections it stands from its beginning until the provider has answered to its end.

    :ivar error_code: of the error of Flowstack's own that ended it, or None.
    :ivar method: of the request that began it: by that its key may do it, or not.
    """

    transport: ClassVar[str] = "webrtc"

    def __init__(self, calls: Calls, exchange: Any) -> None:
        self._calls = calls
        self.services = exchange.services
        self.admission = exchange.admission
        self.admission.response = _RESPONSE
        self.attempt = exchange.attempt
        self.method: bytes = exchange.request.method
        self.request_id: bytes = exchange.request_id
        self.reservation = exchange.reservation
        self.error_code: str | None = None
        self.state = TRYING
        if self.admission.row is None:  # what the request is not asked for later
            row_of_head(self.admission, exchange.request)
        self._site = exchange.request.channel.site
        self._upstream: str = self.attempt.route.origin.name
        self._model = exchange.model
        self._fields = calls.fields(exchange)
        self._client = calls.clients[self.attempt.route.origin.label]
        self._began, self._wall_began = self.services.monotonic(), self.services.wall_clock()
        self._status: int | None = None
        self._tries = 0
        self._key = b""
        self._trying: UpstreamCall | None = None  # to hear it, or to end it
        self._timer: Any = None  # until the next try, or for the answer to the last one
        self._deadline: Any = None
        self._holds = self._cut = False
        target: bytes = self.attempt.route.target
        path, _, query = target.partition(b"?")
        place = _place_of(self.attempt.response.headers.by_name.get(b"location", b""))
        # As an upstream may read it, so that it is heard and ended whatever way its beginning was written; and written
        # anew, lest what stands encoded in it end the path, or the line.
        plain = quote(unquote_to_bytes(path), safe="/:").encode("ascii")
        self._path = b"".join(b"/" + part for part in plain.split(b"/") if part)
        if self._path.endswith(_BEGIN):
            self._path = self._path.removesuffix(_BEGIN)
        elif place is not None:
            self._path = place[1]
        versions = [part for part in query.split(b"&") if part.startswith(b"api-version=")]
        self._version = versions[0] if len(versions) == 1 and _version(versions[0]) else b""
        self._id: bytes = b"" if place is None else place[2]

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(self.state, state)
        self.state = state

    @property
    def closed(self) -> bool:
        """Whether it has its row."""
        return self.state is ENDING or self.state is DONE

    def open(self) -> None:
        """Ask to hear it. Never raises."""
        self._site.join(self)
        if not self._id:
            self._give_up(UpstreamMalformed("The upstream's answer to a call has no Location that names it."))
            return
        until = self._wall_began + self.services.sockets.timeouts.websocket_session
        self._holds = self._calls.heard.hold(self._upstream, self._id, self.admission.key.digest, until)
        self._deadline = self.services.later(HEARD_WITHIN, self._late)
        self._ask()

    def _ask(self) -> None:
        self._timer = None
        self._tries += 1
        self._key = b64encode(self._calls.random(16))
        pairs = [*self._fields, (b"Sec-WebSocket-Key", self._key), (b"Sec-WebSocket-Version", b"13")]
        query = b"?call_id=" + self._id + (b"&" + self._version if self._version else b"")
        try:
            self._send(b"GET", self._path + query, request_fields(pairs, ()), self._answered, self._not_answered)
        except Exception as error:
            self._give_up(error)

    def _send(self, method: bytes, target: bytes, headers: RawHeaders, answered: Any, failed: Any) -> None:
        self._trying = trying = self._client.request(
            method, self.attempt.route.origin.url + target, headers=headers, data=None
        )
        trying.addCallbacks(answered, failed).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        """By a fault of Flowstack's own."""
        log.failure("a call's answer could not be taken", failure)
        if not self.closed:
            self.close("upstream_lost", 0)
        elif self.state is ENDING:
            self._done()

    def _answered(self, response: UpstreamResponse) -> None:
        self._trying, connection = None, response.connection
        if self.state is not TRYING:
            _drop(response)
            return
        self._status = response.code
        try:
            if response.code != 101:
                raise UpstreamMalformed(f"The upstream answered with status {response.code}.")
            check_answer(response.headers, self._key, ())
        except UpstreamMalformed as error:
            _drop(response)
            self._again(error, response.code not in (101, 401, 403))
            return
        self.services.sockets.open(self, connection, b"")

    def _not_answered(self, failure: Failure) -> None:
        self._trying = None
        if self.state is TRYING:
            self._again(failure.value, True)

    def _again(self, error: BaseException | None, may_help: bool) -> None:
        """It is not heard: try once more, or see that there is no call."""
        if may_help and self._tries <= len(WAITS):
            self._timer = self.services.later(WAITS[self._tries - 1], self._ask)
        else:
            self._give_up(error)

    def _late(self) -> None:
        if self.state is TRYING:
            self._give_up(UpstreamTimeout(f"The upstream did not let it be heard within {HEARD_WITHIN:g} seconds."))

    def _give_up(self, error: BaseException | None) -> None:
        if isinstance(error, FlowstackError):
            known = error
        else:
            log.failure("a call could not be heard", Failure(error))
            known = FlowstackError("Flowstack failed at it.")
        log.error(
            "the call {parent} cannot be heard, {so}: {error}",
            parent=self.request_id.decode("ascii"), error=known.message,
            so="so that it is ended" if self._id else "and not be ended, so that what it uses is not counted",
        )  # fmt: skip
        self.error_code = known.code
        self.close("timeout" if isinstance(known, UpstreamTimeout) else "upstream_lost", 0)

    # For the tunnel.

    @property
    def request(self) -> Call:
        """Itself."""
        return self

    @property
    def channel(self) -> Call:
        """Itself."""
        return self

    def take_over(self, tunnel: Any) -> tuple[Nobody, bytes]:
        """See :meth:`flowstack.server.connection.ServerConnection.take_over`."""
        self._site.join(tunnel)
        self._move(HEARD)
        self._deadline.cancel()
        return Nobody(self.services.later, self._calls.random), b""

    def give_up(self, tunnel: Any) -> None:
        """See :meth:`flowstack.server.connection.ServerConnection.give_up`."""
        self._site.leave(tunnel)

    # Among the site's connections.

    @property
    def busy(self) -> bool:
        """Whether it is to be heard, or to be ended; as long as it is heard the tunnel says so."""
        return self.state is TRYING or self.state is ENDING

    def close_now(self) -> None:
        """The time to drain is over."""
        if self.state is TRYING:
            self.close("drain", 0)

    def abort(self) -> None:
        """Wait for nothing any more."""
        self._cut = True
        if self.state is TRYING:
            self.close("drain", 0)
        if self.state is ENDING:
            self._unended("Flowstack ends")

    # Its end.

    def close(self, end: End, sent: int, socket: SocketFacts | None = None, received: int = 0) -> None:
        """Write the row, give back what was reserved, and have the call ended: nobody hears it any more. Never raises
        but where it was closed before."""
        self._move(ENDING)
        self._stop()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        try:
            self._write_down(end, sent, socket, received)
        except Exception:
            log.failure("what heard a call could not be counted")
        if self._holds:
            self._calls.heard.let_go(self._upstream, self._id)
        self._tries = 0
        if self._id:
            self._hang_up()
        else:
            self._done()

    def _stop(self) -> None:
        """Wait neither for a time nor for an answer."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        trying, self._trying = self._trying, None
        if trying is not None:
            trying.cancel()

    def _write_down(self, end: End, sent: int, socket: SocketFacts | None, received: int) -> None:
        services, admission = self.services, self.admission
        row = admission.row.copy()
        row["request_id"] = services.next_id().decode("ascii")
        row["parent_request_id"] = self.request_id.decode("ascii")
        row["started_at"] = datetime.fromtimestamp(self._wall_began, UTC)
        row["method"] = "GET"
        row["path"] = usual_texts[self._path]
        row["upstream"] = self._upstream
        if self._model is not None:
            row["model_requested"] = usual_names[self._model]
        row["status"], row["error_code"], row["end"] = self._status, self.error_code, end
        row["duration_ms"] = (services.monotonic() - self._began) * 1e6 // 1.0 / 1e3
        row["attempts"], row["bytes_in"], row["bytes_out"] = self._tries, received, sent
        more: Mapping[str, Any] = {"requests": 0} if socket is None else cast(Mapping[str, Any], socket)
        cast(dict[str, Any], row).update(more)
        if self.reservation is not None:
            services.limiter.settle(self.reservation, row)
        for observe in services.observers:
            observe(row, admission.operation.name)

    def _hang_up(self) -> None:
        """End the call, if that is not why it is heard no longer."""
        self._tries += 1
        target = self._path + _BEGIN + b"/" + self._id + b"/hangup" + (b"?" + self._version if self._version else b"")
        headers = RawHeaders([*self._fields, (b"Content-Length", b"0")])
        try:
            self._send(b"POST", target, headers, self._hung_up, self._not_hung_up)
        except Exception:
            log.failure("a call could not be ended")
            self._done()
            return
        if self._trying is not None:  # it was not answered in that call
            self._timer = self.services.later(HANG_UP_SECONDS, self._trying.cancel)
        if self._cut and self.state is ENDING:
            self._unended("Flowstack ends")

    def _hung_up(self, response: UpstreamResponse) -> None:
        self._trying = None
        _drop(response)
        code = response.code
        if self.state is DONE:
            return
        if code in (408, 425, 429) or code >= 500:
            self._hang_up_again(f"status {code}")
        elif code >= 400 and code not in (404, 409, 410):  # which say that there is none any more
            self._unended(f"status {code}")
        else:
            self._done()

    def _not_hung_up(self, failure: Failure) -> None:
        self._trying = None
        if self.state is ENDING:
            error = failure.value
            self._hang_up_again(error.message if isinstance(error, FlowstackError) else "no answer")

    def _hang_up_again(self, what: str) -> None:
        if self._tries > len(WAITS):
            self._unended(what)
            return
        self._stop()
        self._timer = self.services.later(WAITS[self._tries - 1], self._hang_up)

    def _unended(self, what: str) -> None:
        """It is not known to have ended."""
        log.error(
            "the call {parent} is heard no longer, and may go on, as the upstream did not end it: {what}",
            parent=self.request_id.decode("ascii"), what=what,
        )  # fmt: skip
        self._done()

    def _done(self) -> None:
        self._move(DONE)
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._site.leave(self)


def _drop(response: UpstreamResponse) -> None:
    if response.connection is not None:
        response.connection.stopProducing()


class Nobody:
    """In the place of a client's transport: answers the last ping and the Close, and has nothing else to say."""

    def __init__(self, later: Callable[[float, Callable[[], None]], Any], random: Callable[[int], bytes]) -> None:
        self._later = later
        self._random = random
        self._reader = FrameReader(False, 2**62)
        self._answer = b""  # the last one that is owed: RFC 6455 §5.5.3
        self._closes = self._due = self._paused = self._gone = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        """What goes to the client."""
        for part in self._reader.feed(data):
            if part.opcode in (PING, CLOSE) and not self._closes:
                self._closes = part.opcode == CLOSE
                self._answer = frame(CLOSE if self._closes else PONG, bytes(part.payload), self._random(4))
        self._say_soon()

    def _say_soon(self) -> None:
        if self._answer and not (self._due or self._paused):
            self._due = True
            self._later(0, self._say)

    def _say(self) -> None:
        self._due = False
        if self._gone or self._paused:
            return
        answer, self._answer = self._answer, b""
        try:
            self.protocol.dataReceived(answer)
        except Exception:
            log.failure("what hears a call could not be answered")
            self.loseConnection()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """It is never paused: what comes is taken at once."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def pauseProducing(self) -> None:
        """Say nothing: the upstream takes no more."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Say what is owed."""
        self._paused = False
        self._say_soon()

    def loseConnection(self) -> None:
        """It is over."""
        if not self._gone:
            self._gone = True
            self._later(0, self._lose)

    abortConnection = loseConnection

    def _lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
