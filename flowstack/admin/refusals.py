"""The errors of the page's API, in the one shape that all of Flowstack's errors have.

The docstrings are the manual's list of them: when, and what to do.
"""

from __future__ import annotations

from flowstack.errors import FlowstackError

_INVALID = "invalid_request_error"


class BadParameter(FlowstackError):
    """A parameter, or a member of the body, is not what it should be. The message names it."""

    status, type, code = 400, _INVALID, "bad_parameter"

    def __init__(self, param: str, fault: str) -> None:
        super().__init__(f"{param}: {fault}")
        self.param = param


class NotSignedIn(FlowstackError):
    """Neither a session nor a token was shown, or the session has ended. Sign in, or send the token."""

    status, type, code = 401, _INVALID, "not_signed_in"


class WrongToken(FlowstackError):
    """The token is neither of the two that the configuration names."""

    status, type, code = 401, _INVALID, "wrong_token"


class NotAllowed(FlowstackError):
    """The caller may look, and not change anything; or may not look, as the listener is no local one and has no token.

    The message says which setting would change that.
    """

    status, type, code = 403, _INVALID, "not_allowed"


class ForeignPage(FlowstackError):
    """A change came without this session's ``X-CSRF-Token``, or from a page of another origin."""

    status, type, code = 403, _INVALID, "foreign_page"


class NotFound(FlowstackError):
    """There is no key, group or request of this id."""

    status, type, code = 404, _INVALID, "not_found"


class Conflict(FlowstackError):
    """The keystore was not changed: it, or what it would have become, has a fault, which the message names."""

    status, type, code = 409, _INVALID, "keystore_not_changed"


class TooManyAttempts(FlowstackError):
    """Too many wrong tokens came, from this address or from all. ``Retry-After`` says when to try again."""

    status, type, code = 429, "rate_limit_error", "too_many_attempts"


class QueryTooLong(FlowstackError):
    """The query took longer than it may, and was given up. Ask for less time, fewer groups, or narrower conditions."""

    status, type, code = 503, "api_error", "query_too_long"


class Busy(FlowstackError):
    """Too many queries wait already, or the process that answers them was just started anew. Try again."""

    status, type, code = 503, "api_error", "busy"


class NoReports(FlowstackError):
    """There is nothing to report from: no state directory, no index, one that cannot be read, or no PostgreSQL that
    answers. The message says."""

    status, type, code = 503, "api_error", "no_reports"


REFUSALS: tuple[type[FlowstackError], ...] = (
    BadParameter, NotSignedIn, WrongToken, NotAllowed, ForeignPage, NotFound, Conflict, TooManyAttempts, QueryTooLong,
    Busy, NoReports,
)  # fmt: skip

BY_CODE = {kind.code: kind for kind in REFUSALS}
"""By their codes, as another process names them."""
