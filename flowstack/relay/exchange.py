"""One request's life, from its valid key to its row.

Every way out goes through :meth:`Exchange.close`, once.

====================  =======================================================  ==================
state                 what ends it                                             ``end`` of the row
====================  =======================================================  ==================
waiting for the head  a refusal before or by the connection pool               refused
..                    no connection, no head, a malformed head                 upstream_lost
..                    a success before the request was judged                  upstream_lost
..                    connect or response-head time ran out                    timeout
answering             the last piece                                           complete
..                    the upstream broke off                                   upstream_lost
..                    no byte for ``stream_idle``; client took none            timeout
either                the client left                                          client_gone
..                    Flowstack's own time to drain ran out                    drain
====================  =======================================================  ==================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from math import floor
from typing import Any, cast

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.errors import (
    FlowstackError,
    LimitExceeded,
    RequestStalled,
    UpstreamClosed,
    UpstreamMalformed,
    UpstreamTimeout,
)
from flowstack.interfaces import UpstreamResponse
from flowstack.policy.headers import Pair, ReceivedHeaders, lines_of, pairs_of, response_pairs, with_length
from flowstack.policy.keys import Key
from flowstack.policy.late import Begun
from flowstack.policy.operations import work_of_path
from flowstack.policy.replies import Reply, error_reply
from flowstack.policy.rows import BLANK, End, Row, put_free, put_usage, text, usual_names, usual_texts
from flowstack.policy.usage.meters import meter_for
from flowstack.policy.usage.model import Late, Outcome
from flowstack.policy.usage.turns import InTurns
from flowstack.relay.asking import Asking
from flowstack.relay.behind import Behind
from flowstack.relay.services import Services
from flowstack.wire.client import StreamIdle
from flowstack.wire.request import Request

log = Logger()

_NO_HEADERS: Mapping[bytes, bytes] = {}
_NOTHING_SEEN = Outcome()


class Exchange(Asking):
    """One request with a valid key. It is the receiver of the response's body."""

    __slots__ = ("_behind", "_closed", "_error", "_first_byte", "_headers", "_meter")

    def __init__(self, services: Services, request: Request, request_id: bytes, key: Key, started: float) -> None:
        Asking.__init__(self, services, request, request_id, key, started)
        self._headers = _NO_HEADERS  # the response's, by lower-case name
        self._meter: InTurns | None = None
        self._behind: Behind | None = None
        self._error: FlowstackError | None = None
        self._first_byte: float | None = None
        self._closed = False

    def refuse(self, error: FlowstackError, end: End = "refused") -> None:
        """Answer with an error of Flowstack's own."""
        if self._closed:
            return
        request = self._request
        reply = error_reply(error, self._own_fields(error), self._services.docs_url)
        self._error = error
        self._first_byte = self._services.monotonic()
        self._close(end, 0 if request.method == b"HEAD" else len(reply.body))
        request.reply(reply)

    def give(self, reply: Reply) -> None:
        """Answer in Flowstack's own name with what is no error; nothing was asked of an upstream."""
        request = self._request
        reply.pairs.extend(self._own_fields(None))
        self._response = reply
        self._first_byte = self._services.monotonic()
        self._close("complete", 0 if request.method == b"HEAD" else len(reply.body))
        request.reply(reply)

    def _answer(self, response: UpstreamResponse) -> None:
        request, services = self._request, self._services
        self._response = response
        connection = response.connection
        if self._due is not None and not self._may_answer_early(response.code, connection):
            return
        self._first_byte = now = services.monotonic()
        headers = response.headers
        if headers.located:
            headers = self._relocated(headers)
        self._headers = by_name = headers.by_name
        operation = self.operation
        if operation.generates or operation.work:
            self._meter = meter_for(operation, response.code, by_name)
        length = response.length
        if self._filter is None:
            lines = headers.onward()
        elif _is_event_stream(by_name) and b"content-encoding" not in by_name:
            lines, length = lines_of(with_length(response_pairs(headers), None)), UNKNOWN_LENGTH
        else:
            lines, self._filter = headers.onward(), None
        if b"date" not in by_name:
            lines += b"\r\nDate: " + services.date()
        lines += b"\r\nFlowstack-Request-Id: " + self.request_id
        if services.cors:
            lines += lines_of(services.cors.fields(request.requestHeaders, b"access-control-allow-origin" in by_name))
        if services.server_timing:
            lines += b"\r\nServer-Timing: " + self._timing(now)
        if self._reservation is not None:
            lines += self._reservation.lines
        request.write_head(response.code, response.phrase, lines, None if length is UNKNOWN_LENGTH else length)
        if connection is not None:
            request.registerProducer(connection, True)
        response.deliver(self)

    def _may_answer_early(self, status: int, connection: Any) -> bool:
        """Whether an answer may pass that came before its request was judged.

        An error may, and ends the upload: nothing that is not judged follows it. What looks like work done may not.
        """
        due, route = self._due, self.route
        assert due is not None and route is not None
        if status >= 400:
            due.stopProducing()
            return True
        if connection is not None:
            connection.stopProducing()
        error = UpstreamMalformed(
            f"The upstream {route.origin.name!r} answered with status {status} before it had the whole request. That "
            "answer was dropped, as the request could not be held to what its key may do. It may have been carried "
            "out; sending it again can bill twice.",
            ((b"x-should-retry", b"false"),),
        )
        self.refuse(error, "upstream_lost")
        return False

    def _no_answer(self, failure: Failure) -> None:
        if self._closed or failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, FlowstackError):
            log.failure("the upstream's client failed in a way of which nobody thought", failure)
            error = UpstreamClosed("The upstream did not answer.")
        end: End = "refused"
        if isinstance(error, (UpstreamTimeout, RequestStalled)):
            end = "timeout"
        elif error.status == 502:
            end = "upstream_lost"
        self.refuse(error, end)

    def data(self, data: bytes) -> None:
        """A piece that is not the last: on its way first, whatever else is done with it."""
        self._request.write(data if self._filter is None else self._filter.feed(data))
        if self._meter is not None and self._meter.feed(data):
            self._fall_behind(self._meter)

    def last(self, data: bytes) -> None:
        """The last piece: first the row, then the bytes, so that an end which a client saw has its row."""
        if self._meter is not None and self._meter.feed(data):
            self._request.producer = None  # the pool has it back
            self._fall_behind(self._meter)
        if self._filter is not None:
            data = self._filter.feed(data) + self._filter.finish()
        if self._behind is None:
            self._close("complete", self._request.sent + len(data))
            self._request.end(data)
        else:
            self._behind.end(partial(self._complete, data))

    def lost(self, reason: BaseException) -> None:
        """The body broke off."""
        if self._closed:
            return
        if isinstance(reason, PotentialDataLoss):
            self.last(b"")
            return
        if self._filter is not None:
            self._request.write(self._filter.finish())
        end: End = "timeout" if isinstance(reason, StreamIdle) else "upstream_lost"
        if self._behind is None:
            self._cut(end)
        else:
            self._behind.end(partial(self._cut, end))

    def _fall_behind(self, meter: InTurns) -> None:
        """The meter has more to do than this turn of the reactor allows: what comes next waits for it."""
        if self._behind is None:
            self._behind = Behind(self._request, meter, self._caught_up)
            self._services.backlog.add(self._behind, "" if self.route is None else self.route.origin.name)

    def _caught_up(self) -> None:
        self._behind = None

    def _complete(self, data: bytes) -> None:
        self._behind = None
        if not self._closed:
            self._close("complete", self._request.sent + len(data))
            self._request.end(data)

    def _cut(self, end: End) -> None:
        self._behind = None
        if not self._closed:
            self._close(end, self._request.sent)
            self._request.break_off()

    def _client_gone(self, end: str) -> None:
        """The client left, took nothing for too long, or Flowstack ends: close the upstream connection now."""
        producer = self._request.producer  # the close lets go of it
        self._close(cast(End, end), self._request.sent)
        if producer is not None:
            producer.stopProducing()
        elif self._upstream is not None:
            self._upstream.cancel()

    def _body_broken(self, error: FlowstackError) -> None:
        """The request's body is bad, and no upstream has begun to take it."""
        self.refuse(error, "timeout" if isinstance(error, RequestStalled) else "refused")
        if self._upstream is not None:
            self._upstream.cancel()

    def _relocated(self, headers: ReceivedHeaders) -> ReceivedHeaders:
        """The upstream's own address becomes Flowstack's, or clients would go there past it, their keys with them."""
        request, services, route = self._request, self._services, self.route
        assert route is not None
        sent: ReceivedHeaders = request.requestHeaders
        scheme, host = b"https" if request.isSecure() else b"http", sent.by_name.get(b"host")
        if services.trusted.hold(request.channel.client_address):
            proto = sent.by_name.get(b"x-forwarded-proto", b"").partition(b",")[0].strip(b" \t").lower()
            scheme = proto if proto in (b"http", b"https") else scheme
        return headers.relocated(lambda value: services.routes.location(route, value, scheme, host))

    def _timing(self, now: float) -> bytes:
        """``Server-Timing`` (W3C Server Timing): Flowstack's own share, and the wait for the upstream's head."""
        asked = now if self._sent_at is None else self._sent_at
        return b"flowstack;dur=%.3f, upstream;dur=%.3f" % ((asked - self._started) * 1000, (now - asked) * 1000)

    def _own_fields(self, error: FlowstackError | None) -> tuple[Pair, ...]:
        services, reservation, route = self._services, self._reservation, self.route
        limits: tuple[Pair, ...] = ()
        if reservation is not None:
            limits = pairs_of(reservation.lines)
        elif not isinstance(error, LimitExceeded):  # which has them
            with suppress(FlowstackError):  # where there is no room to count in, there are no figures
                limits = services.limiter.fields(self._key, services.upstream if route is None else route.origin.name)
        cors = services.cors.fields(self._request.requestHeaders)
        return ((b"Date", services.date()), (b"Flowstack-Request-Id", self.request_id), *cors, *limits)

    def _close(self, end: End, sent: int) -> None:
        """Settle, and write the row. Once."""
        if self._closed:
            return
        self._closed = True
        services, request, key, route = self._services, self._request, self._key, self.route
        request.gone = request.broken = request.producer = None  # no call comes any more, and no cycle is left
        started, first, asked, headers = self._started, self._first_byte, self._sent_at, self._headers
        response, error, operation = self._response, self._error, self.operation
        now = services.monotonic()
        outcome = _NOTHING_SEEN if self._meter is None else self._meter.finish(end == "complete")
        usage = outcome.usage
        row = BLANK.copy()
        row["request_id"] = self.request_id.decode()
        row["started_at"] = datetime.fromtimestamp(self.wall_started, UTC)
        row["key_id"] = key.id
        row["owner"] = key.owner
        row["group"] = key.group
        row["attributes"] = self.attributes
        row["client_addr"] = self.client_address
        if (user_agent := request.requestHeaders.by_name.get(b"user-agent")) is not None:
            row["user_agent"] = usual_texts[user_agent]
        row["method"] = request.method.decode()
        row["path"] = usual_texts[request.uri.partition(b"?")[0] if route is None else route.path]
        if self.model is not None:
            row["model_requested"] = usual_names[self.model]
        row["model"] = outcome.model
        row["service_tier"] = outcome.service_tier
        if error is not None:
            row["status"] = error.status
            row["error_code"] = error.code
        elif response is not None:
            row["status"] = response.code
        row["end"] = end
        if headers:
            row["stream"] = _is_event_stream(headers)
            if (request_id := headers.get(b"x-request-id")) is not None:
                row["upstream_request_id"] = text(request_id)
        if usage is not None:
            batch, drawn_by = operation.family == "batch", self._asked.inner.drawn_by
            put_usage(row, usage, services.prices, batch, self.wall_started, outcome.partial, drawn_by)
        elif operation.family == "moderations":
            put_free(row, services.prices, self.wall_started)
        # In milliseconds, to the microsecond below.
        if first is not None:
            row["first_byte_ms"] = floor((first - started) * 1e6) / 1e3
        row["duration_ms"] = floor((now - started) * 1e6) / 1e3
        row["overhead_ms"] = floor(((now if asked is None else asked) - started) * 1e6) / 1e3
        if request.body is not None:
            row["bytes_in"] = request.body.received
        row["bytes_out"] = sent
        if route is not None:
            row["upstream"] = route.origin.name
        if self._usage_asked:
            row["usage_asked_by"] = "flowstack"
        if self._upstream is not None:
            row["attempts"] = self._upstream.attempts
        if outcome.late:
            self._show(outcome.late, row)
        if self._reservation is not None:
            charged = row
            if usage is not None and (row["cost_usd"] is None or row["service_tier"] is None):
                charged = self._terms.assumed(row, self._asked, self.wall_started)
            if self._due is None:
                services.limiter.settle(self._reservation, charged)
            else:
                services.limiter.settle(self._reservation, charged, *self._owed(self._due))
        self._due = None  # which knows this exchange, too
        services.ledger.record(row)
        try:
            services.observe(row, operation.name)
        except Exception:
            log.failure("a request could not be counted")

    def _show(self, shown: Sequence[Late], row: Row) -> None:
        """The answer shows work whose usage is known late: wait for what this call began, settle what is finished."""
        services, route, response = self._services, self.route, self._response
        assert route is not None
        upstream = route.origin.name
        # Of a body that broke off nobody knows what else it would have said; an event is whole.
        whole = row["end"] == "complete" or row["stream"]
        for late in shown:
            identity = late.id or work_of_path(route.rest)
            if identity is None:
                continue
            if self.operation.begins:
                kept = None if self._reservation is None else self._reservation.kept()
                services.late.begin(Begun.of(row, upstream, late.kind, identity, self.wall_started, kept))
            if whole:
                services.late.seen(upstream, late, identity, response.code)


def _is_event_stream(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-type", b"")[:17].lower() == b"text/event-stream"
