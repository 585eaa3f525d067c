"""The errors that Flowstack itself gives, one class for each code of the contract.

Each class knows its HTTP status, OpenAI's ``type``, Flowstack's ``code`` and whether an SDK may retry. The
message is for the person who reads the SDK's exception: what was found, what was expected, what to do. It never
holds a credential. :mod:`flowstack.policy.replies` turns an error into a response.
"""

from __future__ import annotations

from typing import ClassVar

Pairs = tuple[tuple[bytes, bytes], ...]
"""Header fields in wire order: ``((name, value), …)``, names in the case in which they are sent."""


class FlowstackError(Exception):
    """Base of the tree.

    :param message: what a person needs to know and do; plain text, no credential.
    :param headers: further response fields, such as ``Retry-After``.
    """

    status: int = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    should_retry: ClassVar[bool | None] = None
    """None leaves the decision to the SDK; otherwise it is sent as ``x-should-retry``."""

    def __init__(self, message: str, headers: Pairs = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers


class MalformedRequest(FlowstackError):
    """Bad or ambiguous HTTP, a repeated auth header, oversized attributes."""

    status, type, code = 400, "invalid_request_error", "malformed_request"


class RequestStalled(MalformedRequest):
    """The request's body stopped coming; to the client a malformed request, to the ledger a timeout."""


class MissingKey(FlowstackError):
    """No ``Flowstack-Auth`` header."""

    status, type, code = 401, "invalid_request_error", "missing_flowstack_key"


class InvalidKey(FlowstackError):
    """The token is not in the keystore, or is not of its scheme."""

    status, type, code = 401, "invalid_request_error", "invalid_flowstack_key"


class KeyExpired(FlowstackError):
    """The key's ``expires`` has passed."""

    status, type, code = 401, "invalid_request_error", "flowstack_key_expired"


class KeyDisabled(FlowstackError):
    """The key's line says ``disabled``."""

    status, type, code = 401, "invalid_request_error", "flowstack_key_disabled"


class MisplacedKey(FlowstackError):
    """A Flowstack key in a provider's header, or a provider's key in ``Flowstack-Auth``."""

    status, type, code = 401, "invalid_request_error", "misplaced_key"


class ModelNotAllowed(FlowstackError):
    """The key's ``models`` does not hold the model asked for."""

    status, type, code = 403, "invalid_request_error", "model_not_allowed"


class EndpointNotAllowed(FlowstackError):
    """The key's ``endpoints`` does not hold the method and path."""

    status, type, code = 403, "invalid_request_error", "endpoint_not_allowed"


class AddressNotAllowed(FlowstackError):
    """The client's address is outside the key's ``allow_ip``."""

    status, type, code = 403, "invalid_request_error", "address_not_allowed"


class UpstreamNotAllowed(FlowstackError):
    """The key's ``upstreams`` does not hold the upstream that the host selects."""

    status, type, code = 403, "invalid_request_error", "upstream_not_allowed"


class UnknownPath(FlowstackError):
    """Outside the served prefixes."""

    status, type, code = 404, "invalid_request_error", "unknown_path"


class MethodNotAllowed(FlowstackError):
    """A method that is not relayed; RFC 9110 §15.5.6 wants an ``Allow`` header with it."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTooLarge(FlowstackError):
    """Over ``max_request_bytes``."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class LimitExceeded(FlowstackError):
    """A limit of the key does not allow it; it carries the figures of the key's limits."""


class RateLimitExceeded(LimitExceeded):
    """A limit of requests or tokens by the minute is used up."""

    status, type, code = 429, "rate_limit_error", "flowstack_rate_limit_exceeded"


class ConcurrencyExceeded(LimitExceeded):
    """As many requests of this key are under way as it may have."""

    status, type, code = 429, "rate_limit_error", "flowstack_concurrency_exceeded"


class BudgetExceeded(LimitExceeded):
    """The key's money is used up; waiting a moment does not help.

    :param status: 429, as OpenAI's own, or what the operator wants in its place, since some clients retry any 429.
    """

    status, type, code = 429, "insufficient_quota", "flowstack_budget_exceeded"
    should_retry = False

    def __init__(self, message: str, headers: Pairs = (), status: int = 429) -> None:
        super().__init__(message, headers)
        self.status = status


class WebSocketDisabled(FlowstackError):
    """An upgrade to WebSocket, which is not relayed; RFC 9110 §15.5.22 wants an ``Upgrade`` header with it."""

    status, type, code = 426, "invalid_request_error", "websocket_disabled"


class UpstreamUnreachable(FlowstackError):
    """No connection to the upstream could be made."""

    status, type, code = 502, "api_error", "upstream_unreachable"


class UpstreamClosed(FlowstackError):
    """The upstream closed the connection before a response head came."""

    status, type, code = 502, "api_error", "upstream_closed"


class UpstreamMalformed(FlowstackError):
    """The upstream's answer was not HTTP/1.1."""

    status, type, code = 502, "api_error", "upstream_malformed"


class Draining(FlowstackError):
    """Flowstack is shutting down and takes no new work."""

    status, type, code = 503, "api_error", "draining"


class Overloaded(FlowstackError):
    """No pooled connection came free in time."""

    status, type, code = 503, "api_error", "overloaded"


class LedgerUnavailable(FlowstackError):
    """Rows cannot be written, and the operator wants no request without one."""

    status, type, code = 503, "api_error", "ledger_unavailable"


class UpstreamTimeout(FlowstackError):
    """The time for connecting or for the response head ran out; the message says which."""

    status, type, code = 504, "api_error", "upstream_timeout"
