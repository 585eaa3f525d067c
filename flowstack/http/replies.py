"""Responses that Flowstack itself gives: its errors and browsers' preflights."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from attrs import frozen

from flowstack.errors import FlowstackError
from flowstack.http.headers import Pair, ReceivedHeaders
from flowstack.http.names import ACTED_UPON, SHOULD_RETRY
from flowstack.tokens import hide_keys

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
"""What is relayed; anything else is a 405."""

ALLOW = b", ".join(METHODS)

REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


@frozen(slots=True)
class Reply:
    """A response that is wholly at hand."""

    status: int
    pairs: list[Pair]
    body: bytes

    @property
    def code(self) -> int:
        """The status, as an upstream's response calls it."""
        return self.status


def error_object(error: FlowstackError, docs_url: str | None = None) -> dict[str, str | None]:
    """What OpenAI calls an error: ``message``, ``type``, ``param``, ``code``.

    :param docs_url: where the manual is published; the message then ends with a link to the code's section.
    """
    message = hide_keys(error.message)
    if docs_url is not None:
        message += f" See {docs_url}/reference/errors.html#{error.code.replace('_', '-')}"
    return {"message": message, "type": error.type, "param": error.param, "code": error.code}


def error_reply(error: FlowstackError, extra: tuple[Pair, ...] = (), docs_url: str | None = None) -> Reply:
    """An error in OpenAI's shape, told from the upstream's by ``Flowstack-Error``.

    The shape is that of the OpenAI reference ("Error codes"), so that every SDK raises its own typed exception.

    :param extra: further fields, such as the CORS ones.
    :param docs_url: see :func:`error_object`.
    """
    body = orjson.dumps({"error": error_object(error, docs_url)}, option=orjson.OPT_APPEND_NEWLINE)
    pairs: list[Pair] = [
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"Flowstack-Error", error.code.encode("ascii")),
        *error.headers,
        *extra,
    ]
    if error.should_retry is not None:
        pairs.append((SHOULD_RETRY, b"true" if error.should_retry else b"false"))
    return Reply(error.status, pairs, body)


_EXPOSED = b", ".join(ACTED_UPON)


def is_preflight(method: bytes, headers: ReceivedHeaders) -> bool:
    """Whether a browser asks whether it may ask (Fetch standard, CORS-preflight request). It sends no key with it."""
    return method == b"OPTIONS" and b"access-control-request-method" in headers.by_name


@frozen(slots=True)
class Cors:
    """Cross-origin rules of the Fetch standard for the configured origins; none configured means no rule at all."""

    origins: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, origins: tuple[str, ...]) -> Cors:
        """From the config's ``cors_origins``."""
        return cls(frozenset(origin.encode("ascii") for origin in origins))

    def __bool__(self) -> bool:
        return bool(self.origins)

    def _allows(self, headers: ReceivedHeaders) -> bytes | None:
        origin = headers.by_name.get(b"origin")
        if origin is None:
            return None
        if b"*" in self.origins:
            return b"*"
        return origin if origin in self.origins else None

    def fields(self, headers: ReceivedHeaders, has_origin: bool = False) -> tuple[Pair, ...]:
        """What a response to this request carries, so that the page's script may read it.

        :param has_origin: whether the upstream allows an origin itself: a browser takes no second one.
        """
        allowed = self._allows(headers)
        if allowed is None:
            return ()
        exposed = (b"Access-Control-Expose-Headers", _EXPOSED)
        if has_origin:
            return (exposed,)
        origin = (b"Access-Control-Allow-Origin", allowed)
        return (origin, exposed) if allowed == b"*" else (origin, exposed, (b"Vary", b"Origin"))

    def preflight(self, method: bytes, headers: ReceivedHeaders) -> Reply | None:
        """The answer to a preflight of an allowed origin, which needs no key; None where this is no such request."""
        if not is_preflight(method, headers):
            return None
        allowed = self._allows(headers)
        if allowed is None:
            return None
        asked = headers.by_name.get(b"access-control-request-headers")
        pairs: list[Pair] = [
            (b"Access-Control-Allow-Origin", allowed),
            (b"Access-Control-Allow-Methods", ALLOW),
            *([(b"Access-Control-Allow-Headers", asked)] if asked is not None else []),
            (b"Access-Control-Max-Age", b"7200"),
            (b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        return Reply(204, pairs, b"")
