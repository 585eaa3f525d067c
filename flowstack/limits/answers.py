"""What a client is told of its limits: the fields of an answer, and the three errors.

The fields follow OpenAI's (API reference, "Rate limits in headers"): the limit, what remains, and the time until all
of it is free again, such as ``20ms``, ``1s`` or ``6m0s``; for requests and for tokens. An answer that Flowstack lets
pass carries them as ``Flowstack-RateLimit-*``, beside the upstream's own ``x-ratelimit-*``; a limit's refusal carries
them under both names.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from flowstack.errors import BudgetExceeded, ConcurrencyExceeded, ModelNotAllowed, Pairs, RateLimitExceeded
from flowstack.http.names import (
    LIMIT_FIGURES,
    OPENAI_LIMIT,
    OUR_LIMIT,
    REQUESTS,
    RETRY_AFTER,
    RETRY_AFTER_MS,
    SHOULD_RETRY,
    TOKENS,
)
from flowstack.keys import Budget
from flowstack.limits.money import Period, budget_nano, dollars
from flowstack.limits.windows import GRAIN, SPAN

PARALLEL_SECONDS = 1.0
"""When to come back where too much is in flight: nobody knows when something of it ends."""


def duration(milliseconds: int) -> bytes:
    """A time as OpenAI writes it; whole seconds, rounded up, from one second on."""
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds


DURATIONS = tuple(duration(seconds * 1000) for seconds in range(SPAN + GRAIN + 2))
"""By the whole seconds, rounded up."""


FIGURES = {
    unit: b"\r\n%b: %%d\r\n%b: %%d\r\n%b: %%b" % tuple(OUR_LIMIT % (figure, unit) for figure in LIMIT_FIGURES)
    for unit in (REQUESTS, TOKENS)
}
"""The ``Flowstack-RateLimit-*`` lines of one limit, given it, what remains, and of :data:`DURATIONS` the time of the
reset. Each begins with CRLF."""


def figures_of(limits: Iterable[tuple[bytes, int]]) -> bytes:
    """The lines of some limits, to be given what is left to say: so that all are written in one step."""
    return b"".join(FIGURES[unit].replace(b"%d", b"%d" % limit, 1) for unit, limit in limits)


def the_key(key_id: str) -> str:
    """Whose limit it is, for a message that goes on with what that may do: a key's own."""
    return f"The Flowstack key {key_id}"


def the_group(name: str) -> str:
    """As :func:`the_key`: a limit that the key shares."""
    return f"The group {name}, to which this Flowstack key belongs,"


def refusal_fields(unit: bytes, limit: int, used: int, reset: int, ours: bool) -> Pairs:
    """The figures of one limit for a limit's refusal.

    :param reset: whole seconds until all of it is free.
    :param ours: under Flowstack's names too.
    """
    values = (b"%d" % limit, b"%d" % max(limit - used, 0), duration(reset * 1000))
    fields = tuple(zip(LIMIT_FIGURES, values, strict=True))
    return (
        *((OPENAI_LIMIT % (figure.lower(), unit.lower()), value) for figure, value in fields),
        *((OUR_LIMIT % (figure, unit), value) for figure, value in fields if ours),
    )


def retry_fields(seconds: float) -> Pairs:
    """``retry-after`` in whole seconds, rounded up (RFC 9110 §10.2.3), and ``retry-after-ms``, which SDKs prefer."""
    milliseconds = max(int(seconds * 1000 + 0.999), 1)
    return (RETRY_AFTER, b"%d" % -(-milliseconds // 1000)), (RETRY_AFTER_MS, b"%d" % milliseconds)


def _about(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _to(scope: str) -> str:
    return f" to {scope}" if scope else ""


def too_many_requests(who: str, limit: int, scope: str, used: int, wait: float, fields: Pairs) -> RateLimitExceeded:
    """The error for ``rpm``.

    :param who: of :func:`the_key` or :func:`the_group`; likewise below.
    :param wait: seconds until one more may begin.
    """
    return RateLimitExceeded(
        f"{who} may begin {limit} requests{_to(scope)} in any 60 seconds (rpm), and began {used}. "
        f"Try again in {_about(wait)}.",
        (*retry_fields(wait), *fields),
    )


def too_many_tokens(
    who: str, limit: int, scope: str, used: int, asked: int, wait: float | None, fields: Pairs
) -> RateLimitExceeded:
    """The error for ``tpm``.

    :param asked: what the request may use, by estimate; 0 where that is not known yet.
    :param wait: seconds until it fits; None if it never does.
    """
    may = f"{who} may use {limit} tokens{_to(scope)} in any 60 seconds (tpm)"
    if wait is None:
        return RateLimitExceeded(
            f"{may}, and this request alone may use {asked}. Declare a smaller max_completion_tokens (or max_tokens, "
            "max_output_tokens), send less, or ask for a higher limit: waiting does not help.",
            ((SHOULD_RETRY, b"false"), *fields),
        )
    wish = f" This request may use {asked} more." if asked else ""
    return RateLimitExceeded(
        f"{may}, and {used} are used or reserved.{wish} Try again in {_about(wait)}.", (*retry_fields(wait), *fields)
    )


def too_much_at_once(who: str, limit: int, scope: str, fields: Pairs) -> ConcurrencyExceeded:
    """The error for ``max_parallel``."""
    return ConcurrencyExceeded(
        f"{who} already has {limit} requests{_to(scope)} in flight, its limit (max_parallel). "
        "Try again when one of them has ended.",
        (*retry_fields(PARALLEL_SECONDS), *fields),
    )


def too_expensive(
    who: str,
    budget: Budget,
    scope: str,
    used: int,
    asked: int,
    period: Period,
    fields: Pairs,
    status: int = BudgetExceeded.status,
) -> BudgetExceeded:
    """The error for ``budget``.

    :param used: billionths of a dollar, used or reserved in this period.
    :param asked: what the request may cost, by estimate; 0 where that is not known yet.
    :param status: of the answer.
    """
    span = "in all" if budget.period == "total" else f"a {budget.period}"
    wish = f" This request may cost up to {dollars(asked)} USD." if asked else ""
    if budget.period == "total":
        when = "It is not renewed: ask for more."
    else:
        when = f"It is renewed at {datetime.fromtimestamp(period.ends, UTC):%Y-%m-%dT%H:%M:%SZ}."
    return BudgetExceeded(
        f"{who} may spend {dollars(budget_nano(budget))} USD{_to(scope)} {span} (budget), of "
        f"which {dollars(used)} USD are used or reserved.{wish} {when}",
        fields,
        status,
    )


def no_price(who: str) -> ModelNotAllowed:
    """The error for a request of a key with a budget whose cost cannot be estimated."""
    return ModelNotAllowed(
        f"{who} has a budget, and this model has no price, so that its cost could not be held to "
        "it. Use a model that has one; the operator can add its price, or a default price."
    )
