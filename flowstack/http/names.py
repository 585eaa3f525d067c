"""What the names of header fields and of query parameters mean.

A field's name is looked at *folded*: in lower case, with ``-`` for ``_``, since servers that hand fields on as
variables (CGI, WSGI, PHP) make no difference between the two.
"""

from __future__ import annotations

import re
from itertools import product

HOP_BY_HOP = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"))
"""RFC 9110 §7.6.1: the connection's own fields, which an intermediary removes beside those that Connection names."""

CREDENTIALS = frozenset((
    b"authorization", b"api-key", b"x-api-key",  # OpenAI, Azure, Anthropic
    b"proxy-authorization", b"x-authorization", b"x-goog-api-key", b"ocp-apim-subscription-key", b"apikey",
    b"x-apikey", b"openai-api-key", b"x-openai-api-key", b"anthropic-api-key", b"azure-api-key", b"x-auth-token",
    b"x-auth-key", b"x-access-token", b"x-token", b"x-litellm-api-key", b"x-portkey-api-key", b"helicone-auth",
    b"cf-aig-authorization", b"x-bf-vk",
))  # fmt: skip
"""Where clients put a provider's key, or that of a gateway in front of it."""

CREDENTIAL_SPELLINGS = frozenset(
    b"".join(parts)
    for name in CREDENTIALS
    for parts in product(*[(b"-", b"_") if letter == ord("-") else (bytes((letter,)),) for letter in name])
)
"""The same names in lower case, with each ``-`` or with ``_`` in its place."""

LIMIT_FIGURES = (b"Limit", b"Remaining", b"Reset")
LIMIT_UNITS = REQUESTS, TOKENS = (b"Requests", b"Tokens")
OUR_LIMIT, OPENAI_LIMIT = b"Flowstack-RateLimit-%b-%b", b"x-ratelimit-%b-%b"
"""The fields of limits, given a figure and a unit, which are in lower case in the second."""

RETRY_AFTER, RETRY_AFTER_MS, SHOULD_RETRY = b"retry-after", b"retry-after-ms", b"x-should-retry"

ACTED_UPON = (
    b"Flowstack-Request-Id", b"Flowstack-Error",
    *(OUR_LIMIT % (figure, unit) for figure in LIMIT_FIGURES for unit in LIMIT_UNITS),
    *(OPENAI_LIMIT % (figure.lower(), unit.lower()) for figure in LIMIT_FIGURES for unit in LIMIT_UNITS),
    RETRY_AFTER, RETRY_AFTER_MS, SHOULD_RETRY, b"Server-Timing", b"x-request-id",
    b"Flowstack-Upstream", b"Flowstack-Attempts",
)  # fmt: skip
"""The fields of an answer that clients act upon or tell: what a page's script may read, too."""

# Fields that say who the client is, or by which way it came: those of proxies, of content delivery networks, of
# platforms, and of proxies that sign users in. ``cf-aig-*`` is none: it is how clients speak to a gateway for models.
_CLIENT = re.compile(
    rb"(?:forwarded|via|cdn-loop|(?:wl-)?proxy-client-ip|remote-user|x-remote-user|x-proxyuser-ip|akamai-origin-hop)$"
    rb"|x-(?:original-|vercel-|envoy-)?forwarded(?:-|$)"
    rb"|cf-(?!aig-)|cloudfront-|fly-|fastly-|x-azure-|x-appengine-|x-akamai-|x-vercel-|x-nf-|x-arr-|x-cluster-client-"
    rb"|x-envoy-(?:external|internal|downstream)|x-auth-request-|x-goog-(?:iap|authenticated-user)-|tailscale-user-"
    rb"|x-amzn-oidc-|x-ms-client-principal|(?:x-)?ssl-client-|x-client-cert"
    rb"|(?:x-)?(?:[a-z0-9]+-)?(?:client|real|remote|connecting|source|src|user|peer|viewer|origin(?:al|ating)?)"
    rb"(?:-connection)?-?(?:ips?|ipv[46]|addr|address|host-ip)$"
    rb"|x-(?:real|client)-(?:port|host|hostname|country|city|region)$"
).match

_MODEL = rb"(?:v?models?|deployments?|engines?)(?:id|name|version)?|inference-component"
_names_model = re.compile(rb"(?:^|-)(?:" + _MODEL + rb")(?:-|$)").search

# Fields and parameters by which some server takes another method, path, model or deployment than the request line and
# the body name.
_reroutes = re.compile(
    rb"overrid|rewrite|(?:^|-)(?:" + _MODEL + rb"|[a-z]*(?:url|uri|path)s?|prefix|route|routing|target|destination"
    rb"|fallbacks?|provider|endpoint|operation|script-name)(?:-|$)"
    rb"|^(?:x-)?(?:(?:http|original|forwarded|real|request|envoy-original)-)?method(?:-|$)"
    rb"|^x-(?:backend|upstream|cluster)(?:-|$)|^x-portkey-(?:config|virtual-key)$|^x-litellm-tags$"
).search

_IN_BODY = frozenset((
    b"n", b"best-of", b"max-tokens", b"max-completion-tokens", b"max-output-tokens", b"stream", b"stream-options",
    b"service-tier", b"conversation", b"previous-response-id", b"background",
))  # fmt: skip

# RFC 9110 §7.6.1: a connection option never names a field that is intended for all recipients of the content. The
# first part names those that decide what a request means or who asks; the second knows credentials by their words.
_END_TO_END = re.compile(
    rb"(?:host|user-agent|origin|referer|range|date|from|cache-control|pragma|forwarded|via|prefer|expect|traceparent"
    rb"|tracestate|idempotency-key|x-request-id|x-real-ip)$"
    rb"|content-|flowstack-|accept(?:-|$)|if-|sec-|access-control-|x-forwarded-|openai-|anthropic-|azureml-|x-ms-"
    rb"|x-goog-|x-amz|x-stainless-|x-client-|cf-|helicone-|x-portkey-|x-litellm-"
).match
_credential_words = re.compile(
    rb"(?:^|-)(?:api)?keys?(?:-|$)|auth|token|secret|cookie|credential|password|signature"
).search


def folded(name: bytes) -> bytes:
    """A field's name as the rules here look at it."""
    return name.lower().replace(b"_", b"-")


def tells_client(name: bytes) -> bool:
    """Whether a field (its name folded) says who the client is or by which way it came."""
    return _CLIENT(name) is not None


def reroutes(name: bytes) -> bool:
    """Whether some server takes another method, path or model by this field (its name in lower case).

    ``Content_Type`` and its like are among them: a server that reads them as ``Content-Type`` reads another body.
    """
    plain = name.replace(b"_", b"-")
    return _reroutes(plain) is not None or (plain is not name and plain != name and plain.startswith(b"content-"))


def parameter_reroutes(name: bytes) -> bool:
    """As :func:`reroutes`, of a query parameter (its name decoded), such as ``_method``."""
    return _reroutes(_parameter(name)) is not None


def parameter_names_model(name: bytes) -> bool:
    """Whether a query parameter (its name decoded) names a model or a deployment."""
    return _names_model(_parameter(name)) is not None


def parameter_speaks_for_body(name: bytes) -> bool:
    """Whether a query parameter (its name decoded) is called as a field of the body that limits look at.

    Go's ``Request.FormValue`` takes the query's value before a form's.
    """
    return _parameter(name) in _IN_BODY


def _parameter(name: bytes) -> bytes:
    return folded(name).partition(b"[")[0].strip(b"- ")


def belongs_to_request(name: bytes) -> bool:
    """Whether a field (its name folded) is meant for whoever answers, so that no Connection field may name it."""
    return _END_TO_END(name) is not None or _credential_words(name) is not None


OWN_PREFIX = b"/flowstack/"
"""What is below is never relayed, whatever the configuration serves."""
