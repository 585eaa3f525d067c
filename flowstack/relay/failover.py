"""A request that may be tried more than once: at another target, after a time, with another key, at another upstream.

What follows a failure is for :func:`flowstack.relay.attempt.next_attempt` to say; here it is carried out. Until an
answer goes on nothing of it reaches the client, and from then on the exchange is what any other is.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH

from flowstack.errors import FlowstackError, UpstreamClosed, UpstreamTimeout, UpstreamUnreachable
from flowstack.http.codings import Decoder, codings_of
from flowstack.http.headers import RawHeaders, with_length
from flowstack.interfaces import UpstreamResponse
from flowstack.keys.permits import check_model, check_upstream
from flowstack.keys.provider import ASIDE
from flowstack.relay.admission import Outgoing
from flowstack.relay.attempt import (
    FALLBACK,
    GIVE_UP,
    KEY,
    UNHEALTHY,
    Attempt,
    Fault,
    Situation,
    fault_of,
    next_attempt,
    retry_after_seconds,
)
from flowstack.relay.holding import HeldAnswer, KeptAnswer
from flowstack.relay.rerouting import check_query
from flowstack.server.request_body import WholeBody
from flowstack.transport.ticker import NEVER
from flowstack.upstream.connection import StreamIdle
from flowstack.upstream.targets import Course, Target
from flowstack.usage.rename import with_model
from flowstack.usage.request_facts import read_request_facts

log = Logger()

_TOO_LONG: Final = "context_length_exceeded"


class Failover:
    """The attempts of one request.

    :param exchange: a :class:`flowstack.relay.exchange.Exchange`; until it is closed.
    :ivar course: of the upstream that is asked now.
    :ivar deadline: on the ticker's clock, until when the first byte of an answer's body must have come.
    :ivar told: the fields that say which target gave the answer, and how many attempts there were; nothing before one.
    :ivar renamed: the model that is asked for in place of the client's, or None.
    """

    exchange: Any
    deadline = NEVER
    told = b""
    renamed: str | None = None
    # As nearly every request has one attempt, what follows a failure is not set before.
    _whole: bytes | None = None  # of the request's body, where it is held
    _room = 0  # bytes of it that count
    _faults: tuple[Fault, ...] = ()  # at the upstream that is asked now
    _tried: tuple[Target, ...] = ()  # of it, those that are not to be asked again while there are others
    _silent: tuple[Target, ...] = ()  # of these, those that gave no answer in time
    _target: Target | None = None  # with an attempt that has not ended
    _key: bytes | None = None
    _wait = 0.0
    _timer: Any = None
    _held: HeldAnswer | None = None
    _kept: KeptAnswer | None = None
    _kept_attempt: Attempt | None = None
    _kept_target: Target | None = None
    _error: Failure | None = None
    _served: Target | None = None  # by which the answer was given
    _asked_at: float

    def __init__(self, exchange: Any, course: Course) -> None:
        self.exchange = exchange
        self.course = self._first = course

    # Attempts.

    def begin(self) -> None:
        """Make the first attempt."""
        exchange, course = self.exchange, self.course
        body = exchange.body
        again = True
        if exchange.request.body is not None:
            whole = body.whole
            again = whole is not None and exchange.services.room.take(len(whole))
            if again:
                self._whole, self._room = whole, len(whole)
        course.requests += 1
        now = self._asked_at = exchange.services.monotonic()
        target = course.only
        if target is None or target.health.down:
            target = course.choose(now, (), again)
        if target is not None:
            self._send(target, body, now)
        else:
            self._ask(None, now)

    def _ask(self, target: Target | None, now: float) -> None:
        """Ask a target, or, where there is none to ask, the other upstream; or give up."""
        if target is not None:
            self._send(target, self._body(), now)
        elif self._may_fall_back():
            self._fall_back()
        else:
            self._give_up(None)

    def _again(self) -> bool:
        """Whether the whole of the request is at hand, and its client there."""
        exchange = self.exchange
        return exchange.left is None and (self._whole is not None or exchange.request.body is None)

    @property
    def waits(self) -> bool:
        """Whether no attempt is being made, since the next one is to come after a time."""
        return self._timer is not None

    def _send(self, target: Target, body: Any, now: float) -> None:
        exchange, course = self.exchange, self.course
        services, request, admission = exchange.services, exchange.request, exchange.admission
        origin, key = target.origin, None
        if target.keys is not None:
            self._key = key = target.keys.take(now)
        crosses = course is not self._first
        outgoing = admission.addressed.get((origin.label, key, crosses))
        if outgoing is None:
            outgoing = admission.address(request, admission, origin, key, crosses)
        route = outgoing.route
        headers = self._headers(outgoing, body)
        self._target = self._served = target
        target.in_flight += 1
        target.health.requests += 1
        first_byte = course.first_byte
        if first_byte is not None and (self._whole is not None or request.body is None):
            self.deadline = services.ticker.base + first_byte
            services.ticker.members.add(self)
        call = target.client.request(request.method, origin.url + route.target, headers=headers, data=body)
        exchange.attempt = attempt = Attempt(route, headers, now, call)
        exchange.attempts.append(attempt)
        call.addCallbacks(self.answered, self.not_answered)

    def _headers(self, outgoing: Outgoing, body: Any) -> RawHeaders:
        exchange = self.exchange
        if exchange.grows or self.renamed is not None:
            length = None if body.length is UNKNOWN_LENGTH else body.length
            return outgoing.grown(length) if exchange.grows else RawHeaders(with_length(outgoing.headers.pairs, length))
        if exchange.admission.recurs:
            return outgoing.with_length(exchange.request.requestHeaders.by_name[b"content-length"])
        return outgoing.headers

    def _body(self) -> Any:
        """The request's body, once more."""
        if self._whole is None:
            return self.exchange.body
        body = WholeBody(self._whole)
        if self.exchange.body.length is UNKNOWN_LENGTH:
            body.length = UNKNOWN_LENGTH
        return body

    # What comes of them.

    def answered(self, response: UpstreamResponse) -> None:
        """A response's head has come."""
        target, watches = self._target, self.deadline != NEVER
        if target is None:
            return
        if response.code < 400 and not (watches and response.connection is not None and response.code != 101):
            if watches:
                self._watch_no_more()
            if not target.health.well:
                self._well(target)
            exchange = self.exchange
            self.told = target.told_once if len(exchange.attempts) == 1 else self._told()
            exchange.answered(response)
            return
        exchange = self.exchange
        try:
            self._answered(response, target)
        except Exception:
            exchange.failed(Failure())

    def _answered(self, response: UpstreamResponse, target: Target) -> None:
        exchange = self.exchange
        attempt, services = exchange.attempt, exchange.services
        attempt.response = response
        status = response.code
        now = services.monotonic()
        if status < 400:
            if exchange.may_wait and exchange.request.method != b"HEAD":
                self._held = held = HeldAnswer(response, self._began, self._broke_off)
                response.deliver(held)
            else:
                self._well(target)
                self._pass_on(response)
            return
        if status in UNHEALTHY:
            self._unwell(target)
        else:
            self._well(target)
        self._watch_no_more()
        if not exchange.may_wait:  # the request's body is on its way still, and its answer ends that
            self._pass_on(response)
            return
        retry_after = retry_after_seconds(response.headers.by_name, services.wall_clock())
        self._look_at_key(target, status, retry_after, now)
        rule = self.course.rule
        if status == 400 and rule is not None and rule.context_length and self._again():
            KeptAnswer(response, self._read_refusal)
        else:
            self._failed(status, retry_after, response)

    def _began(self, held: HeldAnswer) -> None:
        """The first byte of an answer's body has come."""
        self._held = None
        target = self._target
        if self.exchange is not None and target is not None:
            self._well(target)
            self._pass_on(held)

    def _broke_off(self, reason: BaseException) -> None:
        """An answer's body ended before its first byte."""
        self._held = None
        if self.exchange is None:
            return
        name = self.course.name
        what = f"The upstream {name!r} ended its answer before the first byte of the body."
        self._lost("timeout" if isinstance(reason, StreamIdle) else "reset", UpstreamClosed(what))

    def _read_refusal(self, kept: KeptAnswer) -> None:
        """All of a 400 is here."""
        if self.exchange is None:
            return
        if kept.body is None:
            what = f"The upstream {self.course.name!r} broke off its answer (status 400), or it is too long to be read."
            self._lost("reset", UpstreamClosed(what))
        else:
            code = _code_of(kept.body, kept.headers.by_name.get(b"content-encoding"))
            self._failed(400, None, kept, too_long=code == _TOO_LONG)

    def not_answered(self, failure: Failure) -> None:
        """There is no response."""
        exchange = self.exchange
        if exchange is None or self._target is None or failure.check(CancelledError):
            return
        error = failure.value
        fault = None if error is None else fault_of(error)
        try:
            if error is None or fault is None:
                self._end_attempt()
                exchange.not_answered(failure)
            else:
                self._lost(fault, error)
        except Exception:
            exchange.failed(Failure())

    def expire(self) -> None:
        """The first byte did not come in time."""
        self._watch_no_more()
        if self.exchange is None:
            return
        held, self._held = self._held, None
        if held is not None and held.connection is not None:
            held.connection.stopProducing()
        name, seconds = self.course.name, self.course.settings.first_byte
        error = UpstreamTimeout(
            f"The first byte of the answer's body did not come from the upstream {name!r} within {seconds:g} seconds."
        )
        call = self.exchange.attempt.call
        self._lost("timeout", error)
        call.cancel()

    def _lost(self, fault: Fault, error: BaseException) -> None:
        target = self._target
        if target is not None and not (isinstance(error, FlowstackError) and error.code == "overloaded"):
            self._unwell(target)
        self._watch_no_more()
        self._error = Failure(error)
        self._failed(fault, None, None)

    def _failed(
        self, fault: Fault, retry_after: float | None, response: UpstreamResponse | None, too_long: bool = False
    ) -> None:
        """An attempt has failed: see what follows. Never raises: nobody who calls it would answer the client."""
        exchange = self.exchange
        try:
            self._follow(fault, retry_after, response, too_long)
        except Exception as error:
            exchange.fail(error)

    def _follow(
        self, fault: Fault, retry_after: float | None, response: UpstreamResponse | None, too_long: bool
    ) -> None:
        exchange, course = self.exchange, self.course
        target, attempt = self._target, exchange.attempt
        assert target is not None
        now = exchange.services.monotonic()
        self._faults += (fault,)
        untouched = fault == "connect" and self._whole is None and exchange.body is not None
        again = self._again() or (untouched and exchange.left is None and exchange.body.whole is None)
        self._tried += (target,)
        if fault == "timeout":
            self._silent += (target,)
        keys = target.keys
        step = next_attempt(
            course.retry,
            course.rule,
            Situation(
                faults=self._faults,
                retry_after=retry_after,
                elapsed=now - self._asked_at,
                waited=self._wait,
                again=again,
                others=again and course.others(now, self._tried),
                key=keys is not None and 1 < len(keys.keys) > len(self._faults) and not keys.resting(now),
                budget=course.may_repeat(now),
                fallback=again and self._may_fall_back(),
                too_long=too_long,
            ),
            exchange.services.uniform,
        )
        if step.next is GIVE_UP:
            if isinstance(fault, str):
                attempt.fault, attempt.ended_at = fault, now
            self._give_up(response)
            return
        attempt.fault, attempt.ended_at = fault, now
        exchange.services.observe_failed_attempt(attempt.route.origin.label, str(fault))
        self._end_attempt()
        if response is not None:
            self._keep(response, attempt)
        self._wait = step.wait
        if step.next is FALLBACK:
            self._fall_back()
        elif step.next is KEY:
            self._tried = self._tried[:-1]
            self._send(target, self._body(), now)
        else:
            course.repeats()
            if step.wait:
                self._timer = exchange.services.later(step.wait, self._try_again)
            else:
                self._try_again()

    def _try_again(self) -> None:
        self._timer = None
        exchange, course = self.exchange, self.course
        if exchange is None:
            return
        now = exchange.services.monotonic()
        target = course.choose(now, self._tried)
        if target is None:  # all were tried, so each may be asked again, but those that were silent
            self._tried = self._silent
            target = course.choose(now, self._tried)
        self._ask(target, now)

    def _give_up(self, response: UpstreamResponse | None) -> None:
        """The client gets the last answer that there is, or the error in its place."""
        exchange = self.exchange
        self.told = self._told()
        if response is None and self._kept is not None and self._kept.body is not None:
            response, exchange.attempt, self._served = self._kept, self._kept_attempt, self._kept_target
            self._end_attempt()
        if response is not None:
            self._pass_on(response)
        elif self._error is not None:
            exchange.not_answered(self._error)
        else:
            self._refuse_all_down()

    def _pass_on(self, response: UpstreamResponse) -> None:
        """The client gets this answer; the attempt ends when it does."""
        self._watch_no_more()
        self.told = self._told()
        self.exchange.answered(response)

    def _keep(self, response: UpstreamResponse, attempt: Attempt) -> None:
        """Set an answer aside."""
        if self._kept is not None:
            self._kept.drop()
        self._kept_attempt, self._kept_target = attempt, self._served
        self._kept = response if isinstance(response, KeptAnswer) else KeptAnswer(response)

    # Another upstream.

    def _may_fall_back(self) -> bool:
        """Whether the other upstream may take this request: what its key may do there, and what the request refers to.

        The client's credential stays here, so that there it goes out with the operator's.
        """
        exchange, course = self.exchange, self.course
        to, admission = course.fallback, exchange.admission
        if to is None or not admission.operation.inference or not self._again():
            return False
        key, request, operation = admission.key, exchange.request, admission.operation
        route, model = admission.route, course.model_for(self.renamed or exchange.model)
        try:
            check_upstream(key, to.name)
            check_query(key, request.method, route.target.partition(b"?")[2], True)
            if operation.body is None:
                return model is None
            headers, whole = request.requestHeaders, self._whole or b""
            if model is not None:
                if operation.model_in_path:
                    return False
                renamed = with_model(operation.body, headers.by_name, whole, model)
                if renamed is None:
                    return False
                whole = renamed
            asked = read_request_facts(operation.body, headers.by_name, whole)
            if asked is None:
                return False
            asks = asked.model if not operation.model_in_path else exchange.model
            if key.models:
                check_model(key, asks)
            terms = exchange.services.permission.terms(
                key, operation, admission.terms.plan, admission.model, request.method, route.path, True
            )
            demand = terms.judge(asked, len(whole), asks, headers, exchange.wall_started)
        except FlowstackError:
            return False
        plan = admission.terms.plan
        return not (plan is not None and plan.priced and demand[0] and demand[1] is None)

    def _fall_back(self) -> None:
        """Ask the other upstream."""
        exchange, course = self.exchange, self.course
        to = course.fallback
        assert to is not None
        model = course.model_for(self.renamed or exchange.model)
        self.course = to
        self._faults, self._tried, self._silent, self._wait = (), (), (), 0.0
        now = self._asked_at = exchange.services.monotonic()
        whole = self._whole
        if whole is not None and exchange.usage_asked and to.settings.inject_usage is False:
            whole = exchange.request.body.whole  # as the client sent it: there nobody is asked for usage
            exchange.grows = exchange.usage_asked = False
        if whole is not None and model is not None:
            by_name = exchange.request.requestHeaders.by_name
            whole = with_model(exchange.admission.operation.body, by_name, whole, model)
            self.renamed = model
        self._whole = whole
        to.requests += 1
        self._ask(to.choose(now, (), True), now)

    def _refuse_all_down(self) -> None:
        name = self.course.name
        error = UpstreamUnreachable(
            f"All targets of the upstream {name!r} are down, by what became of the requests before this one. Try again "
            "in a moment.",
            ((b"Retry-After", b"1"),),
        )
        self.exchange.refuse(error, "upstream_lost")

    # Health.

    def _well(self, target: Target) -> None:
        if target.health.succeeded(self.exchange.services.monotonic()):
            log.info("the target {target} is back", target=target.origin.label)

    def _unwell(self, target: Target) -> None:
        seconds = target.health.failed(self.exchange.services.monotonic())
        if seconds:
            target.ejections += 1
            log.warn(
                "the target {target} is down: its last requests failed; one of the next tries it again in {seconds} s",
                target=target.origin.label,
                seconds=f"{seconds:g}",
            )

    def _look_at_key(self, target: Target, status: int, retry_after: float | None, now: float) -> None:
        """Leave a provider's key alone that was refused, or has used up its rate."""
        keys, key = target.keys, self._key
        if keys is None or key is None:
            return
        if status in (401, 403) and len(keys.keys) > 1:
            log.error(
                "the provider key {number} of {target} was refused with status {status}: it is not used for {seconds} "
                "s where there is another",
                number=keys.number(key),
                target=target.origin.label,
                status=status,
                seconds=f"{ASIDE:g}",
            )
            keys.rest(key, now + ASIDE)
        elif status == 429 and retry_after:
            keys.rest(key, now + retry_after)

    # Ends.

    def _watch_no_more(self) -> None:
        if self.deadline != NEVER:
            self.deadline = NEVER
            self.exchange.services.ticker.members.discard(self)

    def _end_attempt(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.in_flight -= 1

    def cancel(self) -> None:
        """The client left, or its request is bad: ask nobody any more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        held, self._held = self._held, None
        if held is not None and held.connection is not None:
            held.connection.stopProducing()

    def _told(self) -> bytes:
        served, attempts = self._served, self.exchange.attempts
        return b"" if served is None else served.told + b"%d" % len(attempts)

    @property
    def several(self) -> bool:
        """Whether the row has something to tell: more than one attempt, or one of several places."""
        return len(self.exchange.attempts) > 1 or self._first.only is None or self.course is not self._first

    def closed(self, row: Any) -> None:
        """The exchange has its row."""
        exchange, target = self.exchange, self._target
        if target is not None:
            self._target = None
            target.in_flight -= 1
            if row["end"] == "upstream_lost" or row["end"] == "timeout":
                last = exchange.attempt
                if last.response is not None and last.fault is None:
                    self._unwell(target)
        if self.deadline != NEVER:
            self._watch_no_more()
        if self._room:
            exchange.services.room.held -= self._room
        if len(exchange.attempts) > 1:
            self._count(exchange, row)
        if self._kept is not None:
            self._kept.drop()
        self.exchange = None

    def _count(self, exchange: Any, row: Any) -> None:
        """There were several attempts: the request may be a rescued one; what was given up may be billed."""
        if row["end"] == "complete" and (row["status"] or 500) < 400:
            self._first.rescued += 1
        plan = exchange.admission.terms.plan
        if exchange.reservation is None or exchange.demand is None or plan is None:
            return
        for attempt in exchange.attempts:
            if attempt is not exchange.attempt and attempt.may_be_billed:
                exchange.services.limiter.charge(plan, exchange.demand[0], exchange.demand[1])


def _code_of(body: bytes, coding: bytes | None) -> str | None:
    """The code of an upstream's error; None where there is none, or it cannot be read."""
    codings = codings_of(coding)
    if codings is None:
        return None
    try:
        if codings:
            body = b"".join(Decoder(codings).decoded(body))
        code = orjson.loads(body)["error"]["code"]
    except Exception:  # the libraries' own, too
        return None
    return code if isinstance(code, str) else None
