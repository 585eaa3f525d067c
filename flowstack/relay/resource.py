"""The resource to which every request goes: who asks, for what, and whether Flowstack may relay it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from attrs import define
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from flowstack.config import Settings
from flowstack.errors import (
    Draining,
    FlowstackError,
    MalformedRequest,
    MethodNotAllowed,
    MisplacedKey,
    WebSocketUnsupported,
)
from flowstack.interfaces import IKeystore
from flowstack.policy.headers import CREDENTIALS, ReceivedHeaders, append_forwarded, attributes, split_request
from flowstack.policy.keys import Key, check_usable, digest, looks_like_flowstack_key, parse_flowstack_auth, unknown_key
from flowstack.policy.replies import ALLOW, METHODS, Reply, error_reply
from flowstack.policy.routes import Routes
from flowstack.relay.exchange import Exchange, Services
from flowstack.wire.request import Request
from flowstack.wire.request_body import too_large

log = Logger()

_METHODS = frozenset(METHODS)

STRANGERS_LOG_SECONDS = 10.0
"""Requests without a valid key are logged as one line in this many seconds at most: strangers must not fill a disk."""


def _request_ids(random: Callable[[int], bytes]) -> Iterator[bytes]:
    """Ids of 128 random bits, 32 hexadecimal digits each, drawn from the system in blocks."""
    while True:
        block = random(16 * 256).hex().encode("ascii")
        for start in range(0, len(block), 32):
            yield block[start : start + 32]


@define
class Strangers:
    """Counts requests that showed no valid key, and says so in the log now and then."""

    monotonic: Callable[[], float]
    total: Counter[str]
    _unlogged: Counter[str]
    _logged_at: float = float("-inf")

    def note(self, code: str, client: str) -> None:
        """One more."""
        self.total[code] += 1
        self._unlogged[code] += 1
        now = self.monotonic()
        if now - self._logged_at >= STRANGERS_LOG_SECONDS:
            self._logged_at = now
            counts, self._unlogged = self._unlogged, Counter()
            log.info(
                "refused without a valid key: {counts}, the last from {client}",
                counts=", ".join(f"{code} {count}" for code, count in sorted(counts.items())),
                client=client,
            )


class Relay(Resource):
    """Checks a request and begins its exchange.

    :ivar draining: whether new work is refused.
    """

    isLeaf = True

    def __init__(
        self,
        settings: Settings,
        keystore: IKeystore,
        services: Services,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keystore = keystore
        self._services = services
        self._routes = Routes.of(settings.server.prefixes, settings.upstreams)
        self._max_request_bytes = settings.server.max_request_bytes
        self._forwarded = settings.server.forwarded
        self._next_id = _request_ids(random).__next__
        self.strangers = Strangers(services.monotonic, Counter(), Counter())
        self.draining = False

    def render(self, request: Request) -> int:
        """Answer, or begin to."""
        services = self._services
        started = services.monotonic()
        headers: ReceivedHeaders = request.requestHeaders
        if request.method == b"OPTIONS" and services.cors:
            preflight = services.cors.preflight(request.method, headers)
            if preflight is not None:
                request.reply(self._completed(preflight))
                return NOT_DONE_YET
        try:
            key = self._key(headers, request.uri)
        except FlowstackError as error:
            self._refuse_stranger(request, error if request.method in _METHODS else _method_not_allowed())
            return NOT_DONE_YET
        exchange = Exchange(services, request, self._next_id(), key, started)
        try:
            self._begin(exchange, request, headers)
        except FlowstackError as error:
            if exchange.attributes is None:
                with suppress(MalformedRequest):
                    exchange.attributes = attributes(headers.pairs)
            exchange.refuse(error)
        except Exception:
            log.failure("a request could not be begun")
            exchange.refuse(FlowstackError("Flowstack failed at this request; its log says why."))
        return NOT_DONE_YET

    def refusal(self, error: FlowstackError) -> Reply:
        """The answer to what is no request, for the server channel. It showed no valid key."""
        self.strangers.note(error.code, "a malformed request")
        return self._completed(error_reply(error))

    def _begin(self, exchange: Exchange, request: Request, headers: ReceivedHeaders) -> None:
        if request.method not in _METHODS:
            raise _method_not_allowed()
        route = self._routes.resolve(request.uri, headers.by_name.get(b"host"))
        pairs, own = split_request(headers, route.origin.authority, self._forwarded)
        if len(own) > 1:
            exchange.attributes = attributes(own)
        if b"upgrade" in headers.by_name and any(b"websocket" in value.lower() for value in headers.all(b"upgrade")):
            raise WebSocketUnsupported(
                "Flowstack does not relay WebSockets. Use the HTTP endpoints, or connect to the provider directly."
            )
        if self.draining:
            raise Draining(
                "This Flowstack is shutting down and takes no new requests. Try again in a moment.",
                ((b"Retry-After", b"1"),),
            )
        body = request.body
        if body is not None:
            if body.fault is not None:
                raise body.fault
            body.limit = limit = self._max_request_bytes
            if body.received > limit or (isinstance(body.length, int) and body.length > limit):
                raise too_large(limit)
        if self._forwarded == "append":
            client = request.channel.client_address.encode("ascii")
            scheme = b"https" if request.isSecure() else b"http"
            pairs = append_forwarded(pairs, client, scheme, headers.by_name.get(b"host"))
        exchange.start(route, pairs)

    def _key(self, headers: ReceivedHeaders, target: bytes) -> Key:
        """Who asks.

        :raises FlowstackError: a 401 or 400 that says which header, and how it should look.
        """
        by_name, repeated = headers.by_name, headers.repeated
        for name in CREDENTIALS:
            if name in by_name:
                self._check_credential(name, headers.all(name) if repeated else (by_name[name],))
        if b"fsk-" in target and looks_like_flowstack_key(target):
            raise MisplacedKey(
                "The URL holds what looks like a Flowstack key. Send it in the header 'Flowstack-Auth: Bearer fsk-...' "
                "only, and replace this key: URLs end up in logs."
            )
        own = by_name.get(b"flowstack-auth")
        token = parse_flowstack_auth(() if own is None else headers.all(b"flowstack-auth") if repeated else (own,))
        key: Key | None = self._keystore.lookup(digest(token))
        if key is None:
            raise unknown_key(token)
        if key.disabled or key.expires_at is not None:
            check_usable(key, self._services.wall())
        return key

    def _check_credential(self, name: bytes, values: Sequence[bytes]) -> None:
        """A Flowstack key never goes to a provider."""
        if len(values) > 1:
            raise MalformedRequest(
                f"This request has {len(values)} {name.decode('ascii')} headers. Send one, with the provider's key."
            )
        value = values[0]
        bare = value[7:] if value.startswith(b"Bearer ") else value
        if bare.startswith(b"sk-") and b" " not in bare and b"\t" not in bare and b"fsk-" not in bare:
            return  # what begins like a provider's key is never one of ours: parse_flowstack_auth takes none such
        token = value.replace(b"\t", b" ").rpartition(b" ")[2]
        if looks_like_flowstack_key(value) or self._keystore.lookup(digest(token)) is not None:
            raise MisplacedKey(
                f"The header {name.decode('ascii')} holds a Flowstack key. The Flowstack key belongs in "
                f"'Flowstack-Auth: Bearer fsk-...', and the provider's own key in {name.decode('ascii')}."
            )

    def _refuse_stranger(self, request: Request, error: FlowstackError) -> None:
        self.strangers.note(error.code, request.channel.client_address)
        request.reply(self._completed(error_reply(error, self._services.cors.fields(request.requestHeaders))))

    def _completed(self, reply: Reply) -> Reply:
        reply.pairs.append((b"Date", self._services.date()))
        reply.pairs.append((b"Flowstack-Request-Id", self._next_id()))
        return reply


def _method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed(
        f"Flowstack relays {ALLOW.decode('ascii')}; this request uses another method.", ((b"Allow", ALLOW),)
    )
