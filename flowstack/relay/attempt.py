"""One try at one target, and what follows from how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Final, NamedTuple

from attrs import frozen

from flowstack.config.settings import Fallback, Retry
from flowstack.errors import (
    ConnectTimeout,
    Overloaded,
    RequestStalled,
    UpstreamClosed,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from flowstack.http.headers import RawHeaders
from flowstack.interfaces import UpstreamCall, UpstreamResponse
from flowstack.upstream.routes import Route

Fault = str | int
"""Why an attempt gave no answer that was passed on: ``connect``, ``reset`` or ``timeout``, or the answer's status."""

UNHEALTHY: Final = frozenset((500, 502, 503, 504, 529))
"""Statuses that tell of a target that is not well; 529 is Anthropic's word for overloaded."""


class Attempt:
    """One try at one target.

    :ivar route: the place, and the target of the request that it gets.
    :ivar headers: the fields that go there, its credential among them.
    :ivar sent_at: when it was given to the upstream's client, on the monotonic clock.
    :ivar response: None as long as there is no response, or where none came.
    :ivar fault: why it was given up, or None.
    :ivar ended_at: when that was.
    """

    __slots__ = ("call", "ended_at", "fault", "headers", "response", "route", "sent_at")

    def __init__(self, route: Route, headers: RawHeaders, sent_at: float, call: UpstreamCall) -> None:
        self.route = route
        self.headers = headers
        self.sent_at = sent_at
        self.call = call
        self.response: UpstreamResponse | None = None
        self.fault: Fault | None = None
        self.ended_at = sent_at

    @property
    def may_be_billed(self) -> bool:
        """Whether it was given up although the upstream may have done, and bill, the work."""
        return self.fault == "reset" or self.fault == "timeout"


def fault_of(error: BaseException) -> Fault | None:
    """What kind of failure it is that no answer came, or None where asking again cannot help."""
    if isinstance(error, (UpstreamUnreachable, ConnectTimeout, Overloaded)):
        return "connect"
    if isinstance(error, (UpstreamClosed, UpstreamMalformed)):
        return "reset"
    return "timeout" if isinstance(error, UpstreamTimeout) and not isinstance(error, RequestStalled) else None


class Next(Enum):
    """What follows."""

    GIVE_UP = "the client gets what there is"
    OTHER = "another target is asked, at once"
    SAME = "the same target is asked again, after a time"
    KEY = "the same target is asked again, at once, with another key"
    FALLBACK = "another upstream is asked"


GIVE_UP, OTHER, SAME, KEY, FALLBACK = Next


class Step(NamedTuple):
    """What follows, and in how many seconds."""

    next: Next
    wait: float = 0.0


_GIVEN_UP: Final = Step(GIVE_UP)


@frozen(slots=True)
class Situation:
    """What is true when an attempt has failed.

    :ivar faults: of all attempts at this upstream, the last one at the end.
    :ivar retry_after: seconds for which the last answer asks to wait, or None.
    :ivar elapsed: seconds since the first attempt at this upstream was sent.
    :ivar waited: seconds waited before the attempt that failed.
    :ivar again: whether the request can be sent again: the client is there, nothing of an answer's body went out, and
        the request's body is at hand.
    :ivar others: whether another target may be asked.
    :ivar key: whether another key of the same target may be used.
    :ivar budget: whether there is any left.
    :ivar fallback: whether another upstream may take this request.
    :ivar too_long: whether the upstream said 400 ``context_length_exceeded``.
    """

    faults: Sequence[Fault]
    retry_after: float | None
    elapsed: float
    waited: float
    again: bool
    others: bool
    key: bool
    budget: bool
    fallback: bool
    too_long: bool


def next_attempt(
    retry: Retry | None, rule: Fallback | None, now: Situation, uniform: Callable[[float, float], float]
) -> Step:
    """Whether and how a request is tried once more.

    :param uniform: draws a number between two others.
    """
    if not now.again or not now.faults:
        return _GIVEN_UP
    fault = now.faults[-1]
    if now.key and fault in (401, 403, 429):
        return Step(KEY)
    if (
        retry is not None
        and fault in retry.on
        and len(now.faults) < retry.attempts
        and now.elapsed <= retry.within
        and now.budget
    ):
        if now.others:
            return Step(OTHER)
        if fault != "timeout":  # what is silent once is not asked a second time
            if now.retry_after is None:
                most = max(retry.backoff, (now.waited or retry.backoff) * retry.backoff_growth)
                wait = min(retry.backoff_max, uniform(retry.backoff, most))  # "decorrelated jitter"
            else:
                wait = now.retry_after
            bound = retry.within - now.elapsed
            if wait <= bound and (now.retry_after is None or wait <= retry.retry_after_max):
                return Step(SAME, wait)
    if now.fallback and rule is not None and (fault in rule.on or (now.too_long and rule.context_length)):
        return Step(FALLBACK)
    return _GIVEN_UP


def retry_after_seconds(headers: Mapping[bytes, bytes], wall: float) -> float | None:
    """How long an answer asks to wait: ``retry-after-ms`` as OpenAI sends it, or ``Retry-After`` (RFC 9110 §10.2.3), in
    seconds or as a date. None where it does not say so, or says what cannot be read.

    :param headers: by lower-case name.
    :param wall: Unix time.
    """
    milliseconds = headers.get(b"retry-after-ms", b"").strip()
    if milliseconds[:12].isdigit() and len(milliseconds) <= 12:
        return int(milliseconds) / 1000
    value = headers.get(b"retry-after", b"").strip()
    if value.isdigit() and len(value) <= 9:
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value.decode("ascii")).timestamp() - wall)
    except (ValueError, TypeError, OverflowError):
        return None


def detail_of(attempts: Sequence[Attempt], ended: float) -> list[dict[str, Any]]:
    """What the row tells of each attempt.

    :param ended: when the last one ended, on the monotonic clock.
    """
    told = []
    for attempt in attempts:
        fault, response = attempt.fault, attempt.response
        until = ended if fault is None else attempt.ended_at
        told.append(
            {
                "target": attempt.route.origin.label,
                "status": None if response is None else response.code,
                "fault": fault if isinstance(fault, str) else None,
                "ms": (until - attempt.sent_at) * 1e6 // 1.0 / 1e3,
                "may_be_billed": attempt.may_be_billed,
            }
        )
    return told

