"""The errors that Flowstack answers with, one class for each code; and the one for what cannot be parsed.

A FlowstackError has the HTTP status, OpenAI's ``type``, Flowstack's ``code`` and whether an SDK may retry. The message
is for the person who reads the SDK's exception: what was found, what was expected, what to do. It never holds a
credential. The docstrings are the manual's page of errors (``scripts/reference.py``): when, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

Pairs = tuple[tuple[bytes, bytes], ...]
"""Header fields in wire order: ``((name, value), …)``, names in the case in which they are sent."""


class FlowstackError(Exception):
    """A fault in Flowstack itself; its log has the reason.

    :param message: what a person needs to know and do; plain text, no credential.
    :param headers: further response fields, such as ``Retry-After``.
    :ivar param: which parameter of the request is at fault, where that is told.
    """

    status: int = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    param: str | None = None
    should_retry: ClassVar[bool | None] = None
    """None leaves the decision to the SDK; otherwise it is sent as ``x-should-retry``."""

    def __init__(self, message: str, headers: Pairs = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers


class MalformedRequest(FlowstackError):
    """Bad or ambiguous HTTP.

    A head that two servers could read differently, a repeated key header, attributes that are too many or too long, an
    upload that stalled, a head that did not come in time. The message names the fault; correct the client, or the proxy
    in front that rewrote the request.
    """

    status, type, code = 400, "invalid_request_error", "malformed_request"


class RequestStalled(MalformedRequest):
    """The request's body stopped coming; to the client a malformed request, to the ledger a timeout."""


class MissingKey(FlowstackError):
    """The request has no Flowstack key.

    There is no ``Flowstack-Auth``, and no Flowstack key before the provider's in one string. Send
    ``Flowstack-Auth: Bearer <key>``.
    """

    status, type, code = 401, "invalid_request_error", "missing_flowstack_key"


class InvalidKey(FlowstackError):
    """The key is not in the keystore, or the header is not ``Bearer`` and a key.

    The message says so if the key was mistyped or cut, was quoted, or is a variable's name. Otherwise ask the operator:
    the key may have been removed, or the keystore not been reloaded since it was added.
    """

    status, type, code = 401, "invalid_request_error", "invalid_flowstack_key"


class KeyExpired(FlowstackError):
    """The key is past its ``expires``, or is the old secret of a rotation whose grace is over.

    Ask the operator for a new secret (``flowstack keys rotate``) or a later date (``flowstack keys set --expires``).
    """

    status, type, code = 401, "invalid_request_error", "flowstack_key_expired"


class KeyDisabled(FlowstackError):
    """The operator switched the key off: its line says ``disabled``.

    ``flowstack keys enable ID --reload`` switches it on.
    """

    status, type, code = 401, "invalid_request_error", "flowstack_key_disabled"


class MisplacedKey(FlowstackError):
    """A Flowstack key stands where it would reach the provider, or a provider's key in ``Flowstack-Auth``.

    Nothing was sent upstream. Move the Flowstack key into ``Flowstack-Auth``, or before the provider's key and a ``~``.
    Replace a key that was sent in a URL: logs on the way may have it.
    """

    status, type, code = 401, "invalid_request_error", "misplaced_key"


class ModelNotAllowed(FlowstackError):
    """The key may not use the model, or it cannot be told which model the body asks for.

    The model is not among the key's ``models``; or the key has a budget and the model has no price; or the body is one
    that two parsers could read differently. The message says which. The operator can change ``models``, or give the
    model a price under ``[prices]``.
    """

    status, type, code = 403, "invalid_request_error", "model_not_allowed"


class EndpointNotAllowed(FlowstackError):
    """The key may not make this call.

    Its ``endpoints`` does not name the method and path; or the call may start work whose model or cost cannot be seen,
    and the key is limited in these; or the operator's provider key goes out, and the call is not inference or refers to
    what is stored. The operator can name the endpoint in the key's ``endpoints``.
    """

    status, type, code = 403, "invalid_request_error", "endpoint_not_allowed"


class AddressNotAllowed(FlowstackError):
    """The client's address is outside the key's ``allow_ip``.

    Behind a proxy this is the proxy's address, until ``trusted_proxies`` in ``[server]`` names the proxy.
    """

    status, type, code = 403, "invalid_request_error", "address_not_allowed"


class UpstreamNotAllowed(FlowstackError):
    """The key's ``upstreams`` does not name the upstream that the host selects.

    Use the host name of an upstream that the key may reach, or have the operator add this one.
    """

    status, type, code = 403, "invalid_request_error", "upstream_not_allowed"


class UnknownPath(FlowstackError):
    """The path is outside the served prefixes, or below ``/flowstack/`` and not one of Flowstack's own.

    A base URL that lacks ``/v1``, or has it twice, is the usual reason.
    """

    status, type, code = 404, "invalid_request_error", "unknown_path"


class MethodNotAllowed(FlowstackError):
    """The method is not relayed. ``Allow`` lists those that are (RFC 9110 §15.5.6)."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTooLarge(FlowstackError):
    """The body is larger than ``max_request_bytes``, by its ``Content-Length`` or by what came."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class LimitExceeded(FlowstackError):
    """A limit of the key does not allow it; it carries the figures of the key's limits."""


class RateLimitExceeded(LimitExceeded):
    """``rpm`` or ``tpm`` is used up, of the key or of its group.

    ``retry-after`` and ``retry-after-ms`` say when enough is free again. A request that alone is larger than ``tpm``
    has ``x-should-retry: false`` in their place: make it smaller, or declare less output.
    """

    status, type, code = 429, "rate_limit_error", "flowstack_rate_limit_exceeded"


class ConcurrencyExceeded(LimitExceeded):
    """``max_parallel`` requests of the key, or of its group, are in flight already.

    With ``retry-after: 1``, as it is not known when one of them ends.
    """

    status, type, code = 429, "rate_limit_error", "flowstack_concurrency_exceeded"


class BudgetExceeded(LimitExceeded):
    """What is left of the budget does not cover what the request may cost.

    Waiting a moment does not help. Declare less output (``max_completion_tokens``, ``max_tokens``,
    ``max_output_tokens``), or have the operator raise the budget or begin it again
    (``flowstack budgets --reset ID``). ``budget_status`` in ``[limits]`` chooses another status, for clients that retry
    any 429.

    :param status: 429, as OpenAI's own, or the operator's ``budget_status``.
    """

    status, type, code = 429, "insufficient_quota", "flowstack_budget_exceeded"
    should_retry = False

    def __init__(self, message: str, headers: Pairs = (), status: int = 429) -> None:
        super().__init__(message, headers)
        self.status = status


class WebSocketDisabled(FlowstackError):
    """An upgrade to WebSocket, where the operator has switched these off.

    With ``Upgrade: HTTP/1.1`` (RFC 9110 §15.5.22). Clients that can do without use HTTP from then on. The operator can
    set ``websockets = true`` in ``[server]``.
    """

    status, type, code = 426, "invalid_request_error", "websocket_disabled"


class UpstreamUnreachable(FlowstackError):
    """No connection to the upstream could be made. The message says why.

    Look at the upstream's ``base_url``, its name's look-up, its certificate (``ca_file``), and the way out.
    """

    status, type, code = 502, "api_error", "upstream_unreachable"


class UpstreamClosed(FlowstackError):
    """The upstream closed the connection before its answer began.

    It may have done the work, and bill it.
    """

    status, type, code = 502, "api_error", "upstream_closed"


class UpstreamMalformed(FlowstackError):
    """The upstream's answer is not strict HTTP/1.1, or came too early.

    Its head could be read in two ways, or more than 32 interim answers came before it. Or it answered with success
    before it had the whole of a request that must be read; then with ``x-should-retry: false``, as it may have worked.
    """

    status, type, code = 502, "api_error", "upstream_malformed"


class Draining(FlowstackError):
    """Flowstack is shutting down and takes no new requests.

    With ``Retry-After: 1`` and ``Connection: close``: the next connection reaches another process.
    """

    status, type, code = 503, "api_error", "draining"


class Overloaded(FlowstackError):
    """All ``max_connections`` to the upstream were in use for ``queue`` seconds.

    With ``Retry-After: 1``. Without it there is no space to count the key's requests against its limits: look at the
    disk of the state directory.
    """

    status, type, code = 503, "api_error", "overloaded"


class LimitsUnavailable(FlowstackError):
    """The key's limits are counted for all machines together, and the Redis that does so does not answer.

    With ``Retry-After: 1``. ``on_failure = "local"`` in ``[shared]`` holds each key to a share of its limits meanwhile.
    """

    status, type, code = 503, "api_error", "limits_unavailable"


class LedgerUnavailable(FlowstackError):
    """Rows cannot be written, and ``on_ledger_failure`` is ``"refuse"``.

    With ``Retry-After: 5``. Look at the disk of the state directory.
    """

    status, type, code = 503, "api_error", "ledger_unavailable"


class UpstreamTimeout(FlowstackError):
    """``connect`` or ``response_head`` ran out, or the upstream read nothing of an upload for ``stream_idle``.

    The message says which. The upstream may have done the work, and bill it.
    """

    status, type, code = 504, "api_error", "upstream_timeout"


class ConnectTimeout(UpstreamTimeout):
    """No connection in time, so that no byte of the request was sent."""


class ParseError(Exception):
    """A file, flag or value is not what it should be: ``found …, expected …; do …``. It never holds a credential.

    Raised for one value, it knows the place within that value; whoever reads the whole file adds the rest.

    :ivar message: what was found, what was expected, what to do.
    :ivar file: as it was given; empty for a flag.
    :ivar line: from 1; None for the file as a whole.
    :ivar column: in characters (in bytes where the line is not UTF-8), from 1; None for the whole line.
    :ivar table: of TOML, such as ``upstreams.openai``.
    :ivar key: in it, such as ``connect`` or ``listen[1]``; or a flag.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str = "",
        line: int | None = None,
        column: int | None = None,
        table: str = "",
        key: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.table = table
        self.key = key
        self._all: tuple[ParseError, ...] = (self,)

    @classmethod
    def found(cls, found: str, expected: str, do: str = "") -> ParseError:
        """Make the message of its parts."""
        return cls(f"found {found}, expected {expected}" + (f"; {do}" if do else ""))

    @classmethod
    def several(cls, errors: Sequence[ParseError]) -> ParseError:
        """Make one of them all, so that they can be raised together: iterating gives each."""
        error = cls("\n".join(map(str, errors)))
        error._all = tuple(errors)
        return error

    def __iter__(self) -> Iterator[ParseError]:
        return iter(self._all)

    def within(self, key: str) -> list[ParseError]:
        """Return each of the errors, its place prefixed with where the value stands."""
        return [ParseError(one.message, key=key + one.key) for one in self]

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part not in (None, ""))
        setting = " ".join(filter(None, (self.table and f"[{self.table}]", self.key)))
        return ": ".join(filter(None, (place, setting, self.message)))
