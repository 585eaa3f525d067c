"""The resource to which every request goes: who asks, for what, and whether Flowstack may relay it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import Factory, define
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from flowstack.config import Settings
from flowstack.errors import (
    Draining,
    EndpointNotAllowed,
    FlowstackError,
    LedgerUnavailable,
    MalformedRequest,
    MethodNotAllowed,
    MisplacedKey,
    MissingKey,
    UnknownPath,
    WebSocketDisabled,
)
from flowstack.interfaces import Keystore
from flowstack.policy.headers import (
    Pair,
    PreparedHeaders,
    RawHeaders,
    ReceivedHeaders,
    RequestFields,
    append_forwarded,
    attributes,
    lines_of,
    replace_credentials,
)
from flowstack.policy.keys import Key, check_usable, digest, hide_keys, parse_flowstack_auth, unknown_key
from flowstack.policy.keys.addresses import client_address
from flowstack.policy.keys.misplaced import credential_holds_key, holds_whole_key, url_holds_key
from flowstack.policy.keys.one_string import FIELDS, SEPARATOR, two_keys
from flowstack.policy.keys.permits import check_address, check_endpoint, check_upstream, names_endpoint
from flowstack.policy.keys.tokens import HOW_IT_LOOKS, ONE_KEY, ONE_STRING
from flowstack.policy.names import CREDENTIAL_SPELLINGS
from flowstack.policy.operations import Operation, model_of_path, operation_of, read_strictly, with_body
from flowstack.policy.own import KEY_METHODS, KEY_PATH, key_reply
from flowstack.policy.replies import ALLOW, METHODS, Reply, error_reply, is_preflight
from flowstack.policy.rerouting import check_fields, check_query
from flowstack.policy.routes import Route
from flowstack.policy.usage.codings import decodable
from flowstack.relay.admitted import Admitted
from flowstack.relay.exchange import Exchange
from flowstack.relay.services import Services
from flowstack.wire.heads import RequestHead
from flowstack.wire.request import Request
from flowstack.wire.request_body import too_large

log = Logger()

_METHODS = frozenset(METHODS)

_plain = re.compile(rb"(?:Bearer )?sk-[0-9A-Za-z_.-]*").fullmatch
"""A word of characters of which no decoding makes another."""

STRANGERS_LOG_SECONDS = 10.0
"""Requests without a valid key are logged as one line in this many seconds at most: strangers must not fill a disk."""


KNOWN_KEYS = 4096
"""The most credentials that are remembered until the keystore changes, so that these are not hashed each time."""


KNOWN_BYTES = 1024
"""Longer ones are not."""


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
    observe: Callable[[str], None]
    _unlogged: Counter[str] = Factory(Counter)
    _preflights: int = 0
    _logged_at: float = float("-inf")
    _last: str = ""

    def note(self, code: str, client: str, preflight: bool = False) -> None:
        """One more.

        :param preflight: whether a browser asked that, of a page whose origin may not.
        """
        self._preflights += preflight
        self.observe(code)
        self._unlogged[code] += 1
        self._last = client
        self.tell()

    def tell(self, at_once: bool = False) -> None:
        """Log them, if a line is due: called now and then, so that the last ones are told of too.

        :param at_once: whether it is due in any case.
        """
        now = self.monotonic()
        if self._unlogged and (at_once or now - self._logged_at >= STRANGERS_LOG_SECONDS):
            self._logged_at = now
            counts, self._unlogged = self._unlogged, Counter()
            preflights, self._preflights = self._preflights, 0
            log.info(
                "refused without a valid key: {counts}, the last from {client}{preflights}",
                counts=", ".join(f"{code} {count}" for code, count in sorted(counts.items())),
                client=self._last,
                preflights=f"; {preflights} are preflights of pages that are none of [server] cors_origins"
                if preflights
                else "",
            )


class Relay(Resource):
    """Checks a request and begins its exchange.

    :ivar draining: whether new work is refused.
    :ivar provider_keys: by the upstream's name, the operator's key that takes the place of the client's.
    """

    isLeaf = True

    def __init__(
        self,
        settings: Settings,
        keystore: Keystore,
        services: Services,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keystore = keystore
        self._services = services
        self._routes = services.routes
        self._max_request_bytes = settings.server.max_request_bytes
        self._trusted = services.trusted
        self._known: dict[bytes, Key] = {}
        self._generation = 0
        self.provider_keys: dict[str, bytes] = {}
        self._key_fields = {one.name: one.api_key_header.encode("ascii") for one in settings.upstreams}
        self._appends = settings.server.forwarded == "append"
        self._fields = RequestFields(settings.server.forwarded, settings.server.remove_headers)
        self._next_id = _request_ids(random).__next__
        self.strangers = Strangers(services.monotonic, services.observe_stranger)
        self.draining = False

    def render(self, request: Request) -> int:
        """Answer, or begin to."""
        services = self._services
        started = services.monotonic()
        headers: RequestHead = request.requestHeaders
        if request.method == b"OPTIONS" and services.cors:
            preflight = services.cors.preflight(request.method, headers)
            if preflight is not None:
                request.reply(self._completed(preflight))
                return NOT_DONE_YET
        recurrence = headers.recurrence
        before: Admitted | None = None if recurrence is None else recurrence.made
        if before is not None and (
            before.generation != self._keystore.generation
            or before.provider_key != self.provider_keys.get(before.route.origin.name)
        ):
            before = None
        try:
            key = self._key(headers, request.uri) if before is None else before.key
            if key.disabled or key.expires_at is not None:
                check_usable(key, services.wall())
        except FlowstackError as error:
            self._refuse_stranger(request, error if request.method in _METHODS else _method_not_allowed())
            return NOT_DONE_YET
        exchange = Exchange(services, request, self._next_id(), key, started)
        if self._trusted:
            forwarded_for = headers.all(b"x-forwarded-for")
            exchange.client_address = client_address(exchange.client_address, forwarded_for, self._trusted)
        try:
            if before is None:
                own = self._routes.own_path(request.uri, headers.by_name.get(b"host"))
                if own is not None:
                    self._tell_holder(exchange, request, own, key)
                    return NOT_DONE_YET
                admitted = self._admit(exchange, request, headers, key)
                outgoing = admitted.headers
                if recurrence is not None:
                    recurrence.made = admitted
            else:
                admitted = before
                exchange.route, exchange.operation, exchange.model = before.route, before.operation, before.model
                exchange.attributes = before.attributes
                outgoing = admitted.headers_for(headers.by_name[b"content-length"])
            self._begin(exchange, request, admitted, outgoing)
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
        return self._completed(error_reply(error, docs_url=self._services.docs_url))

    def _tell_holder(self, exchange: Exchange, request: Request, path: bytes, key: Key) -> None:
        """Answer a request for one of Flowstack's own paths, of which the key's limits count nothing.

        :raises FlowstackError: it is refused.
        """
        exchange.attributes = attributes(request.requestHeaders.pairs)
        if key.allow_ip:
            check_address(key, exchange.client_address)
        if path != KEY_PATH:
            raise UnknownPath(
                f"Of its own Flowstack serves {KEY_PATH.decode('ascii')} alone, and this request is for another path. "
                "What is below /flowstack/ is never relayed."
            )
        if request.method not in KEY_METHODS:
            raise MethodNotAllowed(
                f"{KEY_PATH.decode('ascii')} takes GET and HEAD; this request uses another method.",
                ((b"Allow", b", ".join(KEY_METHODS)),),
            )
        services = self._services
        exchange.give(key_reply(key, services.limiter.standings(key), services.wall()))

    def _admit(self, exchange: Exchange, request: Request, headers: ReceivedHeaders, key: Key) -> Admitted:
        """Check what a request's head alone can be refused for, and see where it leads.

        :raises FlowstackError: it is refused.
        """
        if b"upgrade" in headers.by_name and _asks_for_websocket(headers):
            raise WebSocketDisabled(
                "Flowstack does not relay WebSockets. Ask for the same over HTTP, as clients do that are told 426.",
                ((b"Upgrade", b"HTTP/1.1"), (b"Connection", b"Upgrade")),
            )
        if request.method not in _METHODS:
            raise _method_not_allowed()
        if key.allow_ip:
            check_address(key, exchange.client_address)
        route = self._routes.resolve(request.uri, headers.by_name.get(b"host"))
        pairs, own, rerouting = self._fields.split(headers, route.origin.authority)
        if len(own) > 1 or (own and b"flowstack-auth" not in headers.by_name):
            exchange.attributes = attributes(own)
        operation = operation_of(request.method, route.rest)
        if operation.bodiless and request.body is not None:
            operation = with_body(operation)
        model = model_of_path(route.rest) if operation.model_in_path else None
        exchange.route, exchange.operation, exchange.model = route, operation, model
        if key.upstreams:
            check_upstream(key, route.origin.name)
        if key.endpoints:
            check_endpoint(key, request.method, route.path)
        provider_key = None
        if self.provider_keys:
            provider_key = self.provider_keys.get(route.origin.name)
            pairs = self._with_provider_key(provider_key, pairs, request, route, operation, key)
        if self._appends:
            client = request.channel.client_address.encode("ascii")
            scheme = b"https" if request.isSecure() else b"http"
            pairs = append_forwarded(pairs, client, scheme, headers.by_name.get(b"host"))
        plan = self._services.limiter.plan(key, route.origin.name)
        operators_key = provider_key is not None
        if operation.hidden and request.body is not None and (key.models or (plan is not None and plan.metered)):
            exchange.operation = operation = read_strictly(operation, route.rest)
            exchange.model = model = model_of_path(route.rest) if operation.model_in_path else None
        if rerouting or route.target.find(b"?") >= 0:
            limited = key.models or key.endpoints or (plan is not None and plan.metered)
            if limited or operators_key:
                check_fields(key, rerouting)
                private = operators_key and not names_endpoint(key, request.method, route.path)
                check_query(key, request.method, route.target.partition(b"?")[2], private)
        terms = self._services.permission.terms(
            key, operation, plan, model, request.method, route.path, operators_key, route.origin.inject_usage
        )
        if terms.narrows:
            pairs = decodable(pairs)
        lines = lines_of(pairs)
        if lines.find(b"fsk-") >= 0 or lines.find(b"%") >= 0:
            self._check_outgoing(pairs)
        fields = PreparedHeaders(pairs, lines)
        return Admitted(
            self._generation, provider_key, key, route, operation, fields, exchange.attributes, model, terms
        )

    def _begin(self, exchange: Exchange, request: Request, admitted: Admitted, outgoing: RawHeaders) -> None:
        """Check what changes from request to request, and begin.

        :raises FlowstackError: it is refused.
        """
        if self.draining:
            raise Draining(
                "This Flowstack is shutting down and takes no new requests. Try again in a moment.",
                ((b"Retry-After", b"1"),),
            )
        body = request.body
        if body is not None:
            if body.fault is not None:
                raise body.fault
            limit = self._max_request_bytes
            if body.received > limit:
                raise too_large(limit)
            if not body.complete:
                body.limit = limit
                if isinstance(body.length, int) and body.length > limit:
                    raise too_large(limit)
        if not self._services.ledger.accepting:
            raise LedgerUnavailable(
                "Flowstack cannot write down what is used, and was told to refuse requests then. Its log says why.",
                ((b"Retry-After", b"5"),),
            )
        exchange.start(admitted, outgoing)

    def _with_provider_key(
        self,
        provider_key: bytes | None,
        pairs: list[Pair],
        request: Request,
        route: Route,
        operation: Operation,
        key: Key,
    ) -> list[Pair]:
        """Put the operator's provider key in the place of the client's, where the upstream has one.

        :raises MisplacedKey: the upstream has none, and the Flowstack key stands where the provider's belongs.
        :raises EndpointNotAllowed: beyond inference, and the key's line does not name the endpoint.
        """
        if provider_key is None:
            headers: RequestHead = request.requestHeaders
            came = headers.pairs
            self._check_credentials(headers)
            # Where one of them held both keys, what goes out is now another.
            return pairs if headers.pairs is came else self._fields.split(headers, route.origin.authority).out
        if not operation.inference and not names_endpoint(key, request.method, route.path):
            raise EndpointNotAllowed(
                "With the operator's provider key only inference and the list of models are open, since other "
                "endpoints would show what others stored. The operator can allow this one by naming it in the "
                f"endpoints of the key {key.id}."
            )
        return replace_credentials(pairs, provider_key, self._key_fields[route.origin.name])

    def _key(self, headers: RequestHead, target: bytes) -> Key:
        """Who asks.

        :raises FlowstackError: a 401 or 400 that says which header, and how it should look.
        """
        by_name = headers.by_name
        if not self.provider_keys:
            self._check_credentials(headers)  # which finds the key where both are in one string
        own = by_name.get(b"flowstack-auth")
        if target.find(b"fsk-") >= 0:
            self._check_target(target)
        keystore = self._keystore
        if self._generation != keystore.generation:
            self._generation = keystore.generation
            self._known.clear()
        key = None if own is None or headers.repeated else self._known.get(own)
        if key is None:
            key = self._look_up(own, headers)
        # What takes more time to look through is looked through where there is something to refuse.
        if target.find(b"%") >= 0 or target.find(b"?") >= 0:
            self._check_target(target)
        return key

    def _look_up(self, own: bytes | None, headers: RequestHead) -> Key:
        """Find the key of a credential that was not seen since the last reload."""
        name = b"flowstack-auth"
        one_key = bool(self.provider_keys)
        if own is None and one_key:
            for field in FIELDS:
                self._take_apart(headers, field)
            own = headers.by_name.get(name)
        if own is None and one_key:
            authorization = headers.by_name.get(b"authorization")
            if authorization is not None and b" sk-" not in authorization:
                name = b"authorization"  # an SDK that is given the Flowstack key as its api_key
            else:
                self._check_credentials(headers)
        token = parse_flowstack_auth(headers.all(name), one_key)
        key: Key | None = self._keystore.lookup(digest(token))
        if key is None:
            raise unknown_key(token)
        if own is not None and not headers.repeated and len(self._known) < KNOWN_KEYS and len(own) <= KNOWN_BYTES:
            self._known[own] = key
        return key

    def _take_apart(self, headers: RequestHead, name: bytes) -> bool:
        """Of a field that holds both keys make the two fields for which it stands.

        :param name: in lower case.
        :return: whether it was one.
        :raises FlowstackError: the request shows another Flowstack key too.
        """
        value = headers.by_name.get(name, b"")
        if value.find(SEPARATOR) < 0 or (headers.repeated and len(headers.all(name)) > 1):
            return False
        found = two_keys(name, value, self._keystore.lookup)
        if found is None:
            return False
        token, rest = found
        shown = headers.all(b"flowstack-auth")
        if not shown:
            headers.put(b"flowstack-auth", b"Bearer " + token)
        elif parse_flowstack_auth(shown, bool(self.provider_keys)) != token:
            raise MalformedRequest(
                "This request shows two Flowstack keys that are not the same: one before the '~' in "
                f"{name.decode('ascii')}, and one elsewhere. Send your key once."
            )
        headers.put(name, rest)
        return True

    def _check_credentials(self, headers: RequestHead) -> None:
        """A Flowstack key never goes to a provider: one that stands before the provider's is cut off.

        :raises MalformedRequest: there are two of a field, or two Flowstack keys.
        :raises MisplacedKey: one of them holds a Flowstack key.
        """
        by_name, repeated = headers.by_name, headers.repeated
        for name in CREDENTIAL_SPELLINGS.intersection(by_name):
            if repeated and len(headers.all(name)) > 1:
                raise MalformedRequest(
                    f"This request has {len(headers.all(name))} {name.decode('ascii')} headers. Send one, with the "
                    "provider's key."
                )
            value = by_name[name]
            if _is_providers(value):
                continue
            if value.find(SEPARATOR) >= 0 and self._take_apart(headers, name):
                value = by_name.get(name, b"")
            if not _is_providers(value) and credential_holds_key(value, self._keystore.lookup):
                quotes = " Send it without quotes." if b'"' in value or b"'" in value else ""
                raise MisplacedKey(self._advice(name.decode("ascii")) + quotes)

    def _check_target(self, target: bytes) -> None:
        """Nor does one in the URL.

        :raises MisplacedKey: it holds one.
        """
        if url_holds_key(target, self._keystore.lookup):
            raise MisplacedKey(
                "The URL holds what looks like a Flowstack key. Send it in the header 'Flowstack-Auth: Bearer fsk-...' "
                "only, and replace this key: URLs end up in logs."
            )

    def _check_outgoing(self, pairs: list[Pair]) -> None:
        """Nor does a whole one in any other field.

        :raises MisplacedKey: one of them holds it.
        """
        for name, value in pairs:
            if holds_whole_key(value):
                raise MisplacedKey(self._advice(hide_keys(name.decode("latin-1"))))

    def _advice(self, name: str) -> str:
        found = f"The header {name} holds a Flowstack key. The Flowstack key belongs in '{HOW_IT_LOOKS}'"
        if not self.provider_keys:
            return (
                f"{found}, and the provider's own key in Authorization, or where the provider looks for it; or both "
                f"in one string, {ONE_STRING}."
            )
        if len(self.provider_keys) == len(self._key_fields):
            return f"{found}, or in {ONE_KEY}: this one key is enough."
        return (
            f"{found}. Where the operator holds the provider's key it may stand in Authorization too, and is enough; "
            "for the other upstreams send the provider's own key beside it."
        )

    def _refuse_stranger(self, request: Request, error: FlowstackError) -> None:
        preflight = is_preflight(request.method, request.requestHeaders)
        if preflight and isinstance(error, MissingKey):
            error = MissingKey(
                "This is a browser's preflight (CORS), which shows no key, from a page whose origin may not call this "
                "Flowstack. The operator can name the origin in [server] cors_origins."
            )
        self.strangers.note(error.code, request.channel.client_address, preflight)
        fields = self._services.cors.fields(request.requestHeaders)
        request.reply(self._completed(error_reply(error, fields, self._services.docs_url)))

    def _completed(self, reply: Reply) -> Reply:
        reply.pairs.append((b"Date", self._services.date()))
        reply.pairs.append((b"Flowstack-Request-Id", self._next_id()))
        return reply


def _is_providers(credential: bytes) -> bool:
    """Whether this is a provider's key at first sight: none of ours begins so, see ``parse_flowstack_auth``."""
    return _plain(credential) is not None and credential.find(b"fsk-") < 0


def _asks_for_websocket(headers: ReceivedHeaders) -> bool:
    """RFC 9110 §7.8: Upgrade is a list of protocols, each a name in any case, perhaps with a version."""
    names = [name for value in headers.all(b"upgrade") for name in value.lower().split(b",")]
    return any(name.partition(b"/")[0].strip(b" \t") == b"websocket" for name in names)


def _method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed(
        f"Flowstack relays {ALLOW.decode('ascii')}; this request uses another method.", ((b"Allow", ALLOW),)
    )
