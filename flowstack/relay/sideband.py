"""Realtime calls: their media pass Flowstack by (WebRTC), so that what they use is heard on a WebSocket beside them.

OpenAI reference, Realtime, server-side controls: ``/v1/realtime?call_id=…`` hears the events of a call, and may send
some. It is a tunnel like any other, but for its client: nobody sits there.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote_to_bytes

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.errors import FlowstackError, UpstreamMalformed
from flowstack.http.frames import CLOSE, PING, PONG, FrameReader, frame
from flowstack.http.handshake import check_answer, request_fields
from flowstack.http.headers import Pair, RawHeaders, replace_credentials
from flowstack.interfaces import UpstreamCall, UpstreamClient, UpstreamResponse
from flowstack.ledger.row import End, SocketFacts, usual_names, usual_texts
from flowstack.relay.row import row_of_head
from flowstack.usage.operations import socket_of

log = Logger()

WAITS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try to hear a call: the provider may know of it a moment later than it said so."""

HANG_UP_SECONDS: Final = 30.0
"""How long the answer is waited for when a call is ended."""

_BEGIN: Final = b"/calls"
_id_in = re.compile(rb".*/calls/([A-Za-z0-9_.-]{1,256})/?(?:\?.*)?", re.DOTALL).fullmatch
_goes_on = re.compile(rb"host|authorization|api-key|x-api-key|user-agent|openai-.*").fullmatch

_, _RESPONSE = socket_of(b"realtime")


class Calls:
    """Hears the calls that are begun at some of the upstreams.

    :param upstreams: the names of these (``meter_calls``).
    :param clients: by the label of a place.
    :param provider_keys: the operator's, by the upstream's name.
    :param key_fields: the header for it, by the same.
    :param random: gives so many random bytes.
    """

    def __init__(
        self,
        upstreams: Set[str],
        clients: Mapping[str, UpstreamClient],
        provider_keys: Mapping[str, bytes],
        key_fields: Mapping[str, bytes],
        random: Callable[[int], bytes],
    ) -> None:
        self._upstreams = upstreams
        self.clients = clients
        self._provider_keys = provider_keys
        self._key_fields = key_fields
        self.random = random

    def hears(self, exchange: Any) -> bool:
        """Whether the call that an exchange began is to be heard."""
        return exchange.attempt.route.origin.name in self._upstreams

    def hear(self, exchange: Any) -> None:
        """A call was begun: hear it to its end. Never raises.

        :param exchange: the :class:`flowstack.relay.exchange.Exchange` that began it, with its answer's fields and its
            row. What it reserved is held until the call ends.
        """
        try:
            call = Call(self, exchange)
        except Exception:
            log.failure("a call could not be heard: what it uses is not counted")
            if exchange.reservation is not None:
                exchange.services.limiter.settle(exchange.reservation, exchange.row)
            return
        call.open()

    def hears_apart(self, exchange: Any) -> bool:
        """Whether a WebSocket is that of a call which is heard anyway, so that it would be counted twice.

        A query that says anything else too may be for something else: then it is counted.
        """
        route = exchange.attempt.route
        if route.origin.name not in self._upstreams:
            return False
        asked = parse_qsl(route.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)
        identities = [value for name, value in asked if name != "api-version"]
        if len(identities) != 1 or "call_id" not in dict(asked):
            return False
        known = exchange.services.secrets.find(_remembered(identities[0]).encode("utf-8", "replace"))
        return known is not None and known.upstream == route.origin.name

    def fields(self, exchange: Any) -> list[Pair]:
        """Who asks about a call: as whoever began it, but with the operator's key where that came with a secret."""
        attempt = exchange.attempt
        name = attempt.route.origin.name
        pairs = [pair for pair in attempt.headers.pairs if _goes_on(pair[0].lower())]
        provider_key = self._provider_keys.get(name)
        if exchange.admission.secret is not None and provider_key is not None:
            pairs = replace_credentials(pairs, provider_key, self._key_fields[name])
        return pairs


def _remembered(identity: str) -> str:
    """As what a call is known among all workers. A client's secret has no space in it."""
    return f"call {identity}"


class Call:
    """One call, from its beginning to the row of what heard it.

    For the tunnel it stands in the place of an exchange, of its request, and of the client's connection.

    :ivar error_code: of the error of Flowstack's own that ended it, or None.
    """

    def __init__(self, calls: Calls, exchange: Any) -> None:
        self._calls = calls
        self.services = exchange.services
        self.admission = exchange.admission
        self.admission.response = _RESPONSE
        self.attempt = exchange.attempt
        self._request = exchange.request
        self.request_id: bytes = exchange.request_id
        self.reservation = exchange.reservation
        self.error_code: str | None = None
        self.closed = False
        self._model = exchange.model
        self._fields = calls.fields(exchange)
        self._client = calls.clients[self.attempt.route.origin.label]
        self._began, self._wall_began = self.services.monotonic(), self.services.wall_clock()
        self._status: int | None = None
        self._tries = 0
        self._key = b""
        self._trying: UpstreamCall | None = None
        self._timer: Any = None
        self._channel = self._request.channel
        target: bytes = self.attempt.route.target
        path, _, query = target.partition(b"?")
        # As an upstream may read it, so that it is heard and ended whatever way its beginning was written.
        self._path = b"".join(b"/" + part for part in unquote_to_bytes(path).split(b"/") if part).removesuffix(_BEGIN)
        self._query = b"?" + query + b"&" if query else b"?"
        found = _id_in(exchange.headers.get(b"location", b""))
        self._id: bytes = b"" if found is None else found[1]

    def open(self) -> None:
        """Ask to hear it."""
        self._channel.accompany(self)
        if not self._id:
            self._give_up(UpstreamMalformed("The upstream's answer to a call has no Location that names it."))
            return
        services = self.services
        services.secrets.remember(
            _remembered(self._id.decode("ascii")), self.admission.key.digest, self.attempt.route.origin.name,
            self._wall_began + services.sockets.timeouts.websocket_session,
        )  # fmt: skip
        self._ask()

    def _ask(self) -> None:
        self._timer = None
        self._tries += 1
        self._key = b64encode(self._calls.random(16))
        pairs = [*self._fields, (b"Sec-WebSocket-Key", self._key), (b"Sec-WebSocket-Version", b"13")]
        url = b"%b%b%bcall_id=%b" % (self.attempt.route.origin.url, self._path, self._query, self._id)
        try:
            self._trying = trying = self._client.request(b"GET", url, headers=request_fields(pairs, ()), data=None)
            trying.addCallbacks(self._answered, self._not_answered)
        except Exception as error:
            self._give_up(error)

    def _answered(self, response: UpstreamResponse) -> None:
        self._trying, connection = None, response.connection
        self._status = response.code
        try:
            if self.closed or response.code != 101:
                if connection is not None:
                    connection.stopProducing()
                if not self.closed:
                    self._again(
                        UpstreamMalformed(f"The upstream answered with status {response.code}."),
                        response.code not in (401, 403),
                    )
                return
            check_answer(response.headers, self._key, ())
            self._channel.give_up(self)
            self.services.sockets.open(self, connection, b"")
        except Exception as error:
            if connection is not None:
                connection.stopProducing()
            self._give_up(error)

    def _not_answered(self, failure: Failure) -> None:
        self._trying = None
        if not self.closed:
            self._again(failure.value, True)

    def _again(self, error: BaseException | None, may_help: bool) -> None:
        """It is not heard: try once more, or see that there is no call."""
        if may_help and self._tries <= len(WAITS):
            self._timer = self.services.later(WAITS[self._tries - 1], self._ask)
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException | None) -> None:
        if self.closed:
            return
        if isinstance(error, FlowstackError):
            known = error
        else:
            log.failure("a call could not be heard", Failure(error))
            known = FlowstackError("Flowstack failed at it.")
        log.error(
            "the call {parent} cannot be heard, so that it is ended: {error}",
            parent=self.request_id.decode("ascii"), error=known.message,
        )  # fmt: skip
        self.error_code = known.code
        self._channel.give_up(self)
        self.close("upstream_lost", 0)

    # For the tunnel.

    @property
    def request(self) -> Call:
        """Itself."""
        return self

    @property
    def channel(self) -> Call:
        """Itself."""
        return self

    @property
    def method(self) -> bytes:
        """Of the request that began it: by that its key may do it, or not."""
        method: bytes = self._request.method
        return method

    def take_over(self, tunnel: Any) -> tuple[Nobody, bytes]:
        """See :meth:`flowstack.server.connection.ServerConnection.take_over`."""
        self._channel.accompany(tunnel)
        return Nobody(self.services.later, self._calls.random), b""

    def give_up(self, tunnel: Any) -> None:
        """See :meth:`flowstack.server.connection.ServerConnection.give_up`."""
        self._channel.give_up(tunnel)

    # Among the site's connections, as long as it is not heard.

    @property
    def busy(self) -> bool:
        """Whether it is to be heard."""
        return not self.closed

    def close_now(self) -> None:
        """The time to drain is over."""
        self.abort()

    def abort(self) -> None:
        """Try no longer."""
        if not self.closed:
            self._channel.give_up(self)
            self.close("drain", 0)

    # Its end.

    def close(self, end: End, sent: int, socket: SocketFacts | None = None, received: int = 0) -> None:
        """Write the row, give back what was reserved, and have the call ended: nobody hears it any more."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._trying is not None:
            self._trying.cancel()
        services, admission = self.services, self.admission
        row = row_of_head(admission, self._request).copy()
        row["request_id"] = services.next_id().decode("ascii")
        row["parent_request_id"] = self.request_id.decode("ascii")
        row["started_at"] = datetime.fromtimestamp(self._wall_began, UTC)
        row["method"] = "GET"
        row["path"] = usual_texts[admission.route.path.rstrip(b"/").removesuffix(_BEGIN)]
        row["upstream"] = self.attempt.route.origin.name
        if self._model is not None:
            row["model_requested"] = usual_names[self._model]
        row["status"], row["error_code"], row["end"] = self._status, self.error_code, end
        row["duration_ms"] = (services.monotonic() - self._began) * 1e6 // 1.0 / 1e3
        row["attempts"], row["bytes_in"], row["bytes_out"] = self._tries, received, sent
        if socket is None:
            cast(dict[str, Any], row)["requests"] = 0
        else:
            cast(dict[str, Any], row).update(socket)
        if self.reservation is not None:
            services.limiter.settle(self.reservation, row)
        for observe in services.observers:
            observe(row, admission.operation.name)
        self._hang_up()

    def _hang_up(self) -> None:
        """End the call, if that is not why it was heard no longer."""
        if not self._id:
            return
        url = b"%b%b%b/%b/hangup" % (self.attempt.route.origin.url, self._path, _BEGIN, self._id)
        headers = RawHeaders([*self._fields, (b"Content-Length", b"0")])
        call = self._client.request(b"POST", url, headers=headers, data=None)
        timer = self.services.later(HANG_UP_SECONDS, call.cancel)
        call.addCallbacks(partial(self._hung_up, timer), partial(self._not_hung_up, timer))

    def _hung_up(self, timer: Any, response: UpstreamResponse) -> None:
        timer.cancel()
        if response.connection is not None:
            response.connection.stopProducing()
        if response.code >= 400 and response.code not in (404, 409, 410):  # which say that there is none any more
            self._tell(f"status {response.code}")

    def _not_hung_up(self, timer: Any, failure: Failure) -> None:
        if timer.active():
            timer.cancel()
        error = failure.value
        self._tell(error.message if isinstance(error, FlowstackError) else "no answer")

    def _tell(self, what: str) -> None:
        log.warn(
            "the call {parent} is heard no longer, and the upstream was asked to end it: {what}",
            parent=self.request_id.decode("ascii"), what=what,
        )  # fmt: skip


class Nobody:
    """In the place of a client's transport: answers pings and the Close, and has nothing else to say."""

    def __init__(self, later: Callable[[float, Callable[[], None]], Any], random: Callable[[int], bytes]) -> None:
        self._later = later
        self._random = random
        self._reader = FrameReader(False, 2**62)
        self._gone = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        """What goes to the client."""
        for part in self._reader.feed(data):
            if part.opcode in (PING, CLOSE):
                answer = frame(PONG if part.opcode == PING else CLOSE, bytes(part.payload), self._random(4))
                self._later(0, partial(self._say, answer))

    def _say(self, data: bytes) -> None:
        if not self._gone:
            self.protocol.dataReceived(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """It is never paused: what comes is taken at once."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def pauseProducing(self) -> None:
        """It says too little to be stopped."""

    def resumeProducing(self) -> None:
        """See :meth:`pauseProducing`."""

    def loseConnection(self) -> None:
        """It is over."""
        if not self._gone:
            self._gone = True
            self._later(0, self._lose)

    abortConnection = loseConnection

    def _lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
