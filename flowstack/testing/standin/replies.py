"""OpenAI's headers and its error bodies (OpenAI reference: debugging requests, rate limits, error codes)."""

from __future__ import annotations

import hashlib
from email.utils import formatdate

from flowstack.errors import Pairs
from flowstack.testing.standin.values import JSON, Refused, Reply, json_reply

_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", "invalid_value", "Invalid value: the stand-in was asked for this error."),
    401: (
        "invalid_request_error",
        "invalid_api_key",
        "Incorrect API key provided: sk-****. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
    ),
    403: ("request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model `no-such-model` does not exist or you do not have access to it.",
    ),
    409: ("invalid_request_error", "conflict", "The resource was changed by another request; try again."),
    422: ("invalid_request_error", "unprocessable_entity", "The request was well formed, but could not be followed."),
    429: (
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for gpt-4o in organization org-stand-in on requests per min (RPM): Limit 10000,"
        " Used 10000, Requested 1. Please try again in 6ms."
        " Visit https://platform.openai.com/account/rate-limits to learn more.",
    ),
    500: (
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that! You can retry your request.",
    ),
    503: ("service_unavailable_error", None, "The engine is currently overloaded, please try again later"),
}

_EXTRA: dict[int, Pairs] = {
    302: ((b"Location", b"/v1/models"),),
    307: ((b"Location", b"/v1/models"),),
    401: ((b"WWW-Authenticate", b'Bearer realm="OpenAI API"'),),
    429: ((b"retry-after-ms", b"20"), (b"retry-after", b"1")),
    503: ((b"retry-after", b"1"),),
}


def asked_for(status: int) -> Reply:
    """The answer with this status: OpenAI's error from 400 on, and no body below."""
    extra = _EXTRA.get(status, ())
    if status < 400:
        return Reply(status=status, content_type=None, length=None if status in (204, 304) else 0, headers=extra)
    return refusal(error_of(status))


def error_of(status: int) -> Refused:
    """OpenAI's error of this status."""
    fallback = ("server_error" if status >= 500 else "invalid_request_error", None, "The stand-in was asked for this.")
    type_, code, message = _ERRORS.get(status, fallback)
    return Refused(status, message, type=type_, code=code, headers=_EXTRA.get(status, ()))


def refusal(refused: Refused) -> Reply:
    """The answer for an endpoint's own error."""
    return json_reply({"error": refused.error}, status=refused.status, headers=refused.headers)


def missing_key() -> Refused:
    """No credential at all."""
    return Refused(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
        " (i.e. Authorization: Bearer YOUR_KEY).",
        code="invalid_api_key",
        headers=_EXTRA[401],
    )


def wrong_key(key: str) -> Refused:
    """A credential that is none of OpenAI's; as OpenAI does, only its ends are shown, and of a short one nothing."""
    shown = f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 24 else "*" * 8
    return Refused(
        401,
        f"Incorrect API key provided: {shown}. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
        headers=_EXTRA[401],
    )


def unknown_url(method: str, path: str) -> Refused:
    """A path that is not served."""
    return Refused(404, f"Invalid URL ({method} {path})")


def wrong_method(method: str, path: str, allowed: str) -> Refused:
    """A path that is served, but not by this method."""
    return Refused(
        405,
        f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
        headers=((b"Allow", allowed.encode("ascii")),),
    )


def provider_headers(reply: Reply, number: int, now: float, *, close: bool = False) -> list[tuple[bytes, bytes]]:
    """The header fields of an answer in OpenAI's order: its edge's, its own, and two cookies.

    :param number: the request's number; ids and cookies follow from it, so that no two answers share them.
    :param now: seconds since the epoch.
    :param close: whether the connection ends with this answer.
    """
    unique = hashlib.sha256(f"stand-in {number}".encode("ascii")).hexdigest()
    limit = 2_000_000
    left = 0 if reply.status == 429 else 9999
    used = reply.usage.total if reply.usage else 0
    expires = formatdate(now + 1800, usegmt=True)
    fields = [
        ("Date", formatdate(now, usegmt=True)),
        ("Content-Type", reply.content_type or JSON),
        ("Content-Length", str(reply.length)),
        ("Connection", "Upgrade" if reply.status == 101 else "close" if close else "keep-alive"),
        ("access-control-expose-headers", "X-Request-ID"),
        ("openai-organization", "org-stand-in"),
        ("openai-processing-ms", "12"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", str(limit)),
        ("x-ratelimit-remaining-requests", str(left)),
        ("x-ratelimit-remaining-tokens", str(max(0, limit - used))),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "0s"),
        ("x-request-id", f"req_{unique[:32]}"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("CF-Cache-Status", "DYNAMIC"),
        (
            "Set-Cookie",
            f"__cf_bm={unique[32:]}; path=/; expires={expires}; domain=.api.openai.com; HttpOnly; Secure;"
            " SameSite=None",
        ),
        ("X-Content-Type-Options", "nosniff"),
        (
            "Set-Cookie",
            f"_cfuvid={unique[:40]}; path=/; domain=.api.openai.com; HttpOnly; Secure; SameSite=None",
        ),
        ("Server", "cloudflare"),
        ("CF-RAY", f"{unique[:16]}-FRA"),
        ("alt-svc", 'h3=":443"; ma=86400'),
    ]
    left_out = {"Content-Length"} if reply.length is None else set()
    if reply.content_type is None:
        left_out.add("Content-Type")
    head = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields if name not in left_out]
    return head + list(reply.headers)
