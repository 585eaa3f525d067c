"""The steps of a request from its admission to the upstream, and how they follow each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.http.replies import Reply
from flowstack.limits.money import NANO
from flowstack.relay.attempt import Attempt
from flowstack.relay.exchange import ASKED, CLOSED, GATHERING, RESERVING, UPLOADING, Exchange
from flowstack.relay.failover import Failover
from flowstack.relay.gate import ReadBody, Tap
from flowstack.server.request_body import WINDOW, RequestBody, WholeBody
from flowstack.usage.inject import Gate, with_usage
from flowstack.usage.request_facts import BodyReader, JsonReader, model_of, read_request_facts, reader_for

Step = Callable[[Exchange], "Reply | Deferred[Any] | None"]
"""Returns nothing where the next step follows at once; a Deferred where it follows when that fires; the reply, or a
Deferred that fires with it, where Flowstack itself answers. Raises a FlowstackError where the request is refused."""


def proceed(exchange: Exchange, steps: Iterator[Step]) -> None:
    """Take the steps that are left. Never raises."""
    try:
        for step in steps:
            outcome = step(exchange)
            if outcome is not None:
                break
        else:
            return
        if isinstance(outcome, Deferred):
            outcome.addCallback(_go_on, exchange, steps).addErrback(_failed, exchange)
        else:
            exchange.give(outcome)
    except Exception as error:
        exchange.fail(error)


def _go_on(outcome: object, exchange: Exchange, steps: Iterator[Step]) -> None:
    if exchange.state is CLOSED:
        return
    if isinstance(outcome, Reply):
        exchange.give(outcome)
    else:
        proceed(exchange, steps)


def _failed(failure: Failure, exchange: Exchange) -> None:
    error = failure.value
    exchange.fail(error if isinstance(error, Exception) else RuntimeError(str(error)))


def read(exchange: Exchange) -> Deferred[None] | None:
    """See what the body asks for, as far as it is here; decide how the rest is read."""
    request, admission = exchange.request, exchange.admission
    operation, terms = admission.operation, admission.terms
    if operation.body is None:
        return None
    body = request.body
    whole = b"" if body is None else body.whole
    if whole is not None and (len(whole) < WINDOW or not terms.injects):
        # Pictures that a response's tool makes are priced by their own model, which the answer may not name.
        if terms.watched or (operation.family == "responses" and whole.find(b'"image_generation"') >= 0):
            _read_whole(exchange, whole)
        elif not operation.model_in_path:
            exchange.model = model_of(operation.body, request.requestHeaders.by_name, whole)
        return None
    assert body is not None
    reader = reader_for(operation.body, request.requestHeaders.by_name)
    assert reader is not None
    short = whole is None and (body.length is UNKNOWN_LENGTH or body.length < WINDOW)
    if short and terms.injects and isinstance(reader, JsonReader):
        # The client is told to send its body then, if it waits for that: the limits are asked before.
        reserving = reserve(exchange)
        return _gather(exchange, reader) if reserving is None else reserving.addCallback(_gather_then, exchange, reader)
    return _stream(exchange, reader)


def reserve(exchange: Exchange) -> Deferred[None] | None:
    """Take from the key's limits, unless that was done already."""
    admission = exchange.admission
    plan, operation = admission.terms.plan, admission.operation
    if plan is None or exchange.reservation is not None:
        return None
    limiter, demand = exchange.services.limiter, exchange.demand
    if demand is not None:
        taken = limiter.reserve(plan, demand[0], demand[1], demand[2])
    elif operation.work is None or operation.body is not None:
        taken = limiter.reserve(plan)
    elif operation.begins:
        # Of a batch nothing is known yet. It takes the least that there is, and is refused where nothing is left.
        taken = limiter.reserve(plan, 0, 1 / NANO)
    else:
        taken = limiter.reserve(plan, looks=not operation.hidden)
    if isinstance(taken, Deferred):
        exchange.to(RESERVING)
        return taken.addCallback(exchange.reserved)
    exchange.reservation = taken
    return None


def _gather_then(_: object, exchange: Exchange, reader: JsonReader) -> Deferred[None] | None:
    return None if exchange.state is CLOSED else _gather(exchange, reader)


def _gather(exchange: Exchange, reader: JsonReader) -> Deferred[None]:
    """Wait for a short body that may have to grow: its new length goes before it.

    How long the body is decides what becomes of it, and not in which pieces it came.
    """
    body = exchange.request.body
    assert isinstance(body, RequestBody)
    if exchange.state is not GATHERING:
        exchange.to(GATHERING)
    gathered: Deferred[None] = Deferred()

    def take(piece: bytes, enough: bool) -> None:
        """Take a piece of the body.

        :param enough: whether all of it is here, or as much as is ever held.
        """
        try:
            if not enough:
                if exchange.admission.terms.reads:
                    reader.feed(piece)
                    exchange.check(reader)
                return
            whole = body.whole
            if whole is not None and len(whole) < WINDOW:
                _read_whole(exchange, whole)
                claiming = exchange.claim()
            else:
                claiming = _stream(exchange, JsonReader())
        except Exception:
            failed(Failure())
        else:
            if claiming is None:
                gathered.callback(None)
            else:
                claiming.addCallbacks(gathered.callback, failed)

    def failed(failure: Failure) -> None:
        body.stopProducing()
        gathered.errback(failure)

    body.gather(take)
    return gathered


def hold(exchange: Exchange) -> Deferred[None] | None:
    """Wait for the whole of a body that may have to be sent again; a larger one is sent as it comes."""
    body, services = exchange.request.body, exchange.services
    if exchange.admission.course is None or not isinstance(body, RequestBody) or body.complete:
        return None
    if body.length is not UNKNOWN_LENGTH and not services.room.has(body.length):
        return None
    most = services.room.each
    # The client is told to send its body then, if it waits for that: the limits are asked before.
    reserving = reserve(exchange) if body.expects else None
    if reserving is None:
        return wait_for_body(exchange, most)
    return reserving.addCallback(lambda _: None if exchange.state is CLOSED else wait_for_body(exchange, most))


def wait_for_body(exchange: Exchange, most: int) -> Deferred[None]:
    """Wait until all of a body is here, or so much of it."""
    body = exchange.request.body
    assert isinstance(body, RequestBody)
    if exchange.state is not GATHERING:
        exchange.to(GATHERING)
    done: Deferred[None] = Deferred()
    body.gather(lambda piece, enough: done.callback(None) if enough else None, most)
    return done


def send(exchange: Exchange) -> None:
    """Send the request to its upstream."""
    request, admission, body = exchange.request, exchange.admission, exchange.body
    route, outgoing = admission.route, admission.outgoing
    assert route is not None
    exchange.to(UPLOADING if type(body) is ReadBody and body.due else ASKED)
    if admission.course is not None:
        exchange.failover = Failover(exchange, admission.course)
        exchange.failover.begin()
        return
    if exchange.grows:
        headers = outgoing.grown(None if body.length is UNKNOWN_LENGTH else body.length)
    elif admission.recurs:
        headers = outgoing.with_length(request.requestHeaders.by_name[b"content-length"])
    else:
        headers = outgoing.headers
    services, origin = exchange.services, route.origin
    sent_at = services.monotonic()
    call = services.clients[origin.name].request(request.method, origin.url + route.target, headers=headers, data=body)
    exchange.attempt = attempt = Attempt(route, headers, sent_at, call)
    exchange.attempts.append(attempt)
    call.addCallbacks(exchange.answered, exchange.not_answered)


def _read_whole(exchange: Exchange, whole: bytes) -> None:
    """See what a whole body asks for; put the wish for usage in where it belongs."""
    admission = exchange.admission
    asked = read_request_facts(admission.operation.body, exchange.request.requestHeaders.by_name, whole)
    if asked is not None and exchange.permit(asked):
        changed = with_usage(whole, asked, admission.terms.overrules)
        if changed is not whole:
            grown = WholeBody(changed)
            if exchange.body.length is UNKNOWN_LENGTH:
                grown.length = UNKNOWN_LENGTH
            exchange.body = grown
            exchange.grows = exchange.usage_asked = True


def _stream(exchange: Exchange, reader: BodyReader) -> Deferred[None] | None:
    """Send a body on as it comes; where it matters what it asks for, its end waits until that is known.

    :return: fires when it may be sent, where the limiter takes its time to say so.
    :raises FlowstackError: it may not pass, as far as it has come.
    """
    terms = exchange.admission.terms
    body: Any = exchange.request.body
    grows = terms.injects and isinstance(reader, JsonReader)
    reading = Gate(reader, terms.overrules) if terms.reads or grows else Tap(reader)
    exchange.body = stream = ReadBody(body, reading, exchange.check if terms.reads else None, exchange.judge, grows)
    exchange.grows = grows
    return stream.read_ahead()
