"""The resource to which every request goes: who asks, for what, and whether Flowstack may relay it."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.addresses import client_address
from flowstack.config import Settings
from flowstack.errors import (
    Draining,
    EndpointNotAllowed,
    FlowstackError,
    LedgerUnavailable,
    MethodNotAllowed,
    MissingKey,
    RequestTooLarge,
    UnknownPath,
    WebSocketDisabled,
)
from flowstack.http.codings import decodable
from flowstack.http.handshake import PROTOCOL, asks_for_websocket, check_request, request_fields, subprotocols
from flowstack.http.headers import (
    PreparedHeaders,
    RequestFields,
    append_forwarded,
    attributes,
    lines_of,
    replace_credentials,
    with_host,
)
from flowstack.http.heads import RequestHead
from flowstack.http.replies import ALLOW, METHODS, Reply, error_reply, is_preflight
from flowstack.interfaces import Keystore
from flowstack.keys import check_usable
from flowstack.keys.client_secrets import ClientSecret
from flowstack.keys.permits import check_address, check_endpoint, check_upstream, names_endpoint
from flowstack.keys.subprotocols import without_credentials
from flowstack.relay.admission import Admission, Outgoing
from flowstack.relay.authentication import Authenticator
from flowstack.relay.exchange import Exchange
from flowstack.relay.own import KEY_PATH, USAGE_PATH, key_reply, usage_reply
from flowstack.relay.own import METHODS as OWN_METHODS
from flowstack.relay.rerouting import check_fields, check_query, model_of_query
from flowstack.relay.services import Services
from flowstack.relay.steps import Step, hold, proceed, read, reserve, send, wait_for_body
from flowstack.relay.unauthenticated import Unauthenticated
from flowstack.server.request import Request
from flowstack.server.request_body import WINDOW, RequestBody, WholeBody, too_large
from flowstack.upstream.routes import Origin, Route
from flowstack.usage.operations import (
    CALLS,
    Operation,
    model_of_path,
    operation_of,
    read_strictly,
    socket_of,
    with_body,
)
from flowstack.usage.request_facts import model_of, reader_for

log = Logger()

_METHODS = frozenset(METHODS)


class Relay:
    """Finds out who asks, and begins an exchange: a request with a valid key takes the steps in order.

    :ivar draining: whether new work is refused.
    :ivar unauthenticated: counts the others.
    """

    def __init__(
        self,
        settings: Settings,
        keystore: Keystore,
        services: Services,
    ) -> None:
        self._keystore = keystore
        self._services = services
        self._authenticator = Authenticator(keystore, len(settings.upstreams), services.secrets)
        self._max_request_bytes = settings.server.max_request_bytes
        self._websockets = settings.server.websockets
        self._key_fields = {one.name: one.api_key_header.encode("ascii") for one in settings.upstreams}
        # What may hold a client's credential for the upstream that it means, of any upstream's kind.
        self._credential_fields = {b"cookie", *(name.lower() for name in self._key_fields.values())}
        self._appends = settings.server.forwarded == "append"
        self._fields = RequestFields(settings.server.forwarded, settings.server.remove_headers)
        self._next_id = services.next_id
        self.unauthenticated = Unauthenticated(services.monotonic, services.observe_unauthenticated)
        self.draining = False
        # A request like one before of its client was admitted with it.
        self._admitted: tuple[Step, ...] = (self._accept, hold, read, reserve, send)
        admits: tuple[Step, ...] = (self._authorise, self._address, *self._admitted)
        self._steps: tuple[Step, ...] = (self._answer, self._route, *admits)
        if services.routes.by_model:
            self._steps = (self._answer, self._route, self._accept, self._select, *admits)

    @property
    def provider_keys(self) -> Mapping[str, bytes]:
        """By the upstream's name, the operator's key that takes the place of the client's."""
        return self._authenticator.provider_keys

    @provider_keys.setter
    def provider_keys(self, keys: Mapping[str, bytes]) -> None:
        self._authenticator.provider_keys = keys

    def render(self, request: Request, asked: bool = False) -> None:
        """Answer, or begin to.

        :param asked: whether other machines were asked of its client secret.
        """
        services = self._services
        started = services.monotonic()
        headers: RequestHead = request.requestHeaders
        if request.method == b"OPTIONS" and services.cors.origins:
            preflight = services.cors.preflight(request.method, headers)
            if preflight is not None:
                request.reply(self._completed(preflight))
                return
        admission = None if headers.cache is None else self._known(headers.cache.made)
        if admission is None and not asked and b"flowstack-auth" not in headers.by_name:
            learning = self._authenticator.learn_secret(headers)
            if learning is not None:
                learning.addCallback(self._learned, request).addErrback(_broken, request)
                return
        try:
            key = self._authenticator.authenticate(headers, request.uri) if admission is None else admission.key
            if key.disabled or key.expires_at is not None:
                check_usable(key, services.wall_clock())
        except FlowstackError as error:
            self._refuse_unauthenticated(request, error if request.method in _METHODS else _method_not_allowed())
            return
        steps = self._admitted
        if admission is None:
            admission = Admission(key, self._authenticator.generation, self._client_address(request))
            steps = self._steps
        proceed(Exchange(services, request, self._next_id(), admission, started), iter(steps))

    def _learned(self, _: object, request: Request) -> None:
        if not request.finished:
            self.render(request, True)

    def _known(self, admission: Admission | None) -> Admission | None:
        """What was made of a head like this one, if it holds still."""
        if admission is None or admission.generation != self._keystore.generation:
            return None
        keys, key = self._authenticator.provider_keys, admission.outgoing.provider_key
        if (keys or key is not None) and admission.route is not None and keys.get(admission.route.origin.name) != key:
            return None
        return admission

    def _client_address(self, request: Request) -> str:
        address, trusted = request.channel.client_address, self._services.trusted
        return client_address(address, request.requestHeaders.all(b"x-forwarded-for"), trusted) if trusted else address

    # The steps of its admission.

    def _answer(self, exchange: Exchange) -> Reply | Deferred[Reply] | None:
        """Answer a request for one of Flowstack's own paths; the key's limits do not count it.

        :raises FlowstackError: it is refused.
        """
        request, admission, services = exchange.request, exchange.admission, self._services
        headers, key = request.requestHeaders, admission.key
        path = services.routes.own_path(request.uri, headers.by_name.get(b"host"))
        if path is None:
            return None
        admission.attributes = attributes(headers.pairs)
        if key.allow_ip:
            check_address(key, admission.client_address)
        if path != KEY_PATH and path != USAGE_PATH:
            page = self._page(request, path)
            if page is not None:
                return page
            raise UnknownPath(
                f"Below /flowstack/ Flowstack serves {KEY_PATH.decode('ascii')} and {USAGE_PATH.decode('ascii')}, and "
                "relays nothing. This request is for another path."
            )
        if request.method not in OWN_METHODS:
            raise MethodNotAllowed(
                f"{path.decode('ascii')} takes GET and HEAD; this request uses another method.",
                ((b"Allow", b", ".join(OWN_METHODS)),),
            )
        if path == USAGE_PATH:
            if services.holder is None:
                raise UnknownPath("This Flowstack keeps no ledger, and so does not know what was used.")
            return services.holder.usage(key.id, request.uri.partition(b"?")[2]).addCallback(usage_reply)
        standings = services.limiter.standings(key)
        if isinstance(standings, Deferred):
            return standings.addCallback(lambda known: key_reply(key, known, services.wall_clock()))
        return key_reply(key, standings, services.wall_clock())

    def _page(self, request: Request, path: bytes | None) -> Reply | None:
        """The page of a key's holder, or one of its files: these need no key, and show nothing without one."""
        holder = self._services.holder
        if holder is None or path is None or request.method not in OWN_METHODS:
            return None
        found = holder.page(path, request.requestHeaders.all(b"accept-encoding"))
        return None if found is None else Reply(200, *found)

    def _route(self, exchange: Exchange) -> None:
        """See where the request leads, and which call of the API it is.

        :raises FlowstackError: it is refused.
        """
        request, admission = exchange.request, exchange.admission
        headers: RequestHead = request.requestHeaders
        if PROTOCOL in headers.by_name:  # whether it counts or not: a key in it goes no further
            self._authenticator.take_subprotocols(headers)
        opens = b"upgrade" in headers.by_name and asks_for_websocket(headers)
        if opens:
            self._check_handshake(request)
        if request.method not in _METHODS:
            raise _method_not_allowed()
        if admission.key.allow_ip:
            check_address(admission.key, admission.client_address)
        route = self._services.routes.resolve(request.uri, headers.by_name.get(b"host"))
        secret = self._authenticator.client_secret(headers)
        self._check_credentials(headers, route)
        admission.fields = fields = self._fields.split(headers)
        if len(fields.own) > 1 or (fields.own and b"flowstack-auth" not in headers.by_name):
            admission.attributes = attributes(fields.own)
        admission.route = route
        if secret is not None:
            admission.secret = self._secret(secret, request, route, opens)
        if opens:
            self._take_socket(exchange, route)
            return
        operation = operation_of(request.method, route.rest)
        if operation.bodiless and request.body is not None:
            operation = with_body(operation)
        self._take_operation(exchange, operation)

    def _secret(self, secret: bytes, request: Request, route: Route, opens: bool) -> ClientSecret | None:
        """See whether a client secret may do what it is to do.

        :raises EndpointNotAllowed: it opens a WebSocket or a call at the upstream that made it, and nothing else.
        """
        known = self._services.secrets.find(secret)
        calls = operation_of(request.method, route.rest).name == CALLS
        if known is None or known.upstream != route.origin.name or not (opens or calls):
            raise EndpointNotAllowed(
                "A client secret opens WebSockets and POST /v1/realtime/calls, at the upstream that made it, and "
                "nothing else. For all else send a Flowstack key."
            )
        return known

    def _check_handshake(self, request: Request) -> None:
        """See whether this opens a WebSocket, and may.

        :raises FlowstackError: it does not, or may not.
        """
        headers = request.requestHeaders
        if not self._websockets:
            raise WebSocketDisabled(
                "This Flowstack does not relay WebSockets. Send the same request over HTTP.",
                ((b"Upgrade", b"HTTP/1.1"), (b"Connection", b"Upgrade")),
            )
        check_request(headers, request.body is not None)

    def _take_socket(self, exchange: Exchange, route: Route) -> None:
        admission = exchange.admission
        admission.operation, admission.response = socket_of(route.rest)
        admission.model = exchange.model = model_of_query(route.target.partition(b"?")[2])
        admission.offered = subprotocols(exchange.request.requestHeaders)

    def _check_credentials(self, headers: RequestHead, route: Route) -> None:
        provider_keys = self._authenticator.provider_keys
        if provider_keys and (route.origin.name not in provider_keys or self._authenticator.client_secret(headers)):
            # The client's own credential goes out. Where that holds both keys, the provider's part does.
            self._authenticator.check_credentials(headers)

    def _select(self, exchange: Exchange) -> Deferred[None] | None:
        """Find the upstream by the model that the request asks for, where its Host selects none.

        :raises FlowstackError: it is refused.
        """
        request, admission, routes = exchange.request, exchange.admission, self._services.routes
        route = admission.route
        assert route is not None
        if not routes.selects(route, request.requestHeaders.by_name.get(b"host")):
            return None
        body = request.body
        if admission.operation.body is None or body is None or admission.operation.model_in_path:
            self._selected(exchange, admission.model)
            return None
        if isinstance(body, RequestBody) and not body.complete:
            waiting = wait_for_body(exchange, max(WINDOW, self._services.room.each))
            return waiting.addCallback(lambda _: None if exchange.closed else self._select_by(exchange, body))
        self._select_by(exchange, body)
        return None

    def _select_by(self, exchange: Exchange, body: RequestBody | WholeBody) -> None:
        """Find it by the model that the body names, as far as it has come."""
        admission, headers = exchange.admission, exchange.request.requestHeaders
        whole = body.whole
        if whole is not None:
            model = model_of(admission.operation.body, headers.by_name, whole)
        else:
            reader = reader_for(admission.operation.body, headers.by_name)
            assert reader is not None
            reader.feed(body.seen)
            model = reader.so_far().model
            if model is None:
                raise RequestTooLarge(
                    f"The first {len(body.seen)} bytes of the request body do not name the model, which decides where "
                    "the request goes. Send the model first; or the operator can raise retry_body_bytes."
                )
        self._selected(exchange, model)

    def _selected(self, exchange: Exchange, model: str | None) -> None:
        admission, routes = exchange.admission, self._services.routes
        route = admission.route
        assert route is not None
        selected = routes.for_model(route, model)
        if selected is not route:
            admission.route = selected
            self._check_credentials(exchange.request.requestHeaders, selected)
        # The next request with a head like this one may ask for another model.
        admission.selected = admission.operation.body is not None

    def _take_operation(self, exchange: Exchange, operation: Operation) -> None:
        admission = exchange.admission
        assert admission.route is not None
        admission.operation = operation
        admission.model = exchange.model = model_of_path(admission.route.rest) if operation.model_in_path else None

    def _authorise(self, exchange: Exchange) -> None:
        """Check what the key may do, as far as the head tells.

        :raises FlowstackError: it may not do that.
        """
        request, admission, services = exchange.request, exchange.admission, self._services
        key, route, rerouting = admission.key, admission.route, admission.fields.rerouting
        assert route is not None
        upstream, path = route.origin.name, route.path
        if key.upstreams:
            check_upstream(key, upstream)
        if key.endpoints:
            check_endpoint(key, request.method, path)
        operators_key = upstream in self._authenticator.provider_keys
        if operators_key and not admission.operation.inference and not names_endpoint(key, request.method, path):
            raise EndpointNotAllowed(
                "With the operator's provider key only inference and the list of models are open, since other "
                "endpoints would show what others stored. The operator can allow this one by naming it in the "
                f"endpoints of the key {key.id}."
            )
        plan = services.limiter.plan(key, upstream)
        metered = plan is not None and plan.metered
        opens = admission.operation.socket
        if opens and plan is not None:
            plan = services.limiter.parts(plan)[0]
        if admission.operation.hidden and request.body is not None and (key.models or metered):
            self._take_operation(exchange, read_strictly(admission.operation, route.rest))
        limited = key.models or key.endpoints or metered or operators_key
        if limited and (rerouting or route.target.find(b"?") >= 0):
            check_fields(key, rerouting)
            private = operators_key and not names_endpoint(key, request.method, path)
            check_query(key, request.method, route.target.partition(b"?")[2], private, opens)
        admission.terms = services.permission.terms(
            key, admission.operation, plan, admission.model, request.method, path, operators_key,
            route.origin.inject_usage,
        )  # fmt: skip

    def _address(self, exchange: Exchange) -> None:
        """Make the fields for the upstream, and keep the admission for requests like this one.

        :raises MisplacedKey: one of them holds a Flowstack key.
        """
        admission, cache = exchange.admission, exchange.request.requestHeaders.cache
        route = admission.route
        assert route is not None
        admission.address = self._address_to
        provider_key = None
        if admission.secret is None:  # which is good at the place that made it, and goes there as it came
            admission.course = self._services.courses.get(route.origin.name)
            provider_key = self._authenticator.provider_keys.get(route.origin.name)
        admission.outgoing = self._address_to(exchange.request, admission, route.origin, provider_key, False)
        if cache is not None and not (admission.selected or admission.operation.socket or admission.secret):
            admission.recurs = True
            cache.made = admission

    def _address_to(
        self, request: Request, admission: Admission, origin: Origin, provider_key: bytes | None, crosses: bool
    ) -> Outgoing:
        """See :class:`flowstack.relay.admission.Address`.

        :raises MisplacedKey: one of the fields holds a Flowstack key.
        """
        place = origin.label, provider_key, crosses
        outgoing = admission.addressed.get(place)
        if outgoing is None:
            outgoing = self._outgoing(request, admission, origin, provider_key, crosses)
            admission.addressed[place] = outgoing
        return outgoing

    def _outgoing(
        self, request: Request, admission: Admission, origin: Origin, provider_key: bytes | None, crosses: bool
    ) -> Outgoing:
        """Host, credential and forwarded fields are one upstream's; all else is the client's."""
        pairs = with_host(admission.fields.out, origin.authority)
        if crosses:
            assert provider_key is not None
            pairs = [pair for pair in pairs if pair[0].lower() not in self._credential_fields]
        if provider_key is not None:
            pairs = replace_credentials(pairs, provider_key, self._key_fields[origin.name])
        if self._appends:
            client = request.channel.client_address.encode("ascii")
            scheme = b"https" if request.isSecure() else b"http"
            pairs = append_forwarded(pairs, client, scheme, request.requestHeaders.by_name.get(b"host"))
        if admission.terms.narrows:
            pairs = decodable(pairs)
        lines = lines_of(pairs)
        if lines.find(b"fsk-") >= 0 or lines.find(b"%") >= 0:
            self._authenticator.check_outgoing(pairs)
        assert admission.route is not None
        route = self._services.routes.onto(admission.route, origin)
        if admission.operation.socket:
            offered = admission.offered
            if provider_key is not None or crosses:
                offered = without_credentials(offered)
            return Outgoing(request_fields(pairs, offered), provider_key, route)
        return Outgoing(PreparedHeaders(lines), provider_key, route)

    def _accept(self, exchange: Exchange) -> None:
        """Check what changes from request to request.

        :raises FlowstackError: it is refused.
        """
        if self.draining:
            raise Draining(
                "This Flowstack is shutting down and takes no new requests. Try again in a moment.",
                ((b"Retry-After", b"1"),),
            )
        body = exchange.request.body
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
                "Flowstack cannot record usage now, and is configured to refuse requests then. Its log says why.",
                ((b"Retry-After", b"5"),),
            )

    # Answers to requests without a valid key.

    def refusal(self, error: FlowstackError) -> Reply:
        """The answer to what is no request, for the server channel. It showed no valid key."""
        self.unauthenticated.note(error.code, "a malformed request")
        return self._completed(error_reply(error, docs_url=self._services.docs_url))

    def _refuse_unauthenticated(self, request: Request, error: FlowstackError) -> None:
        if isinstance(error, MissingKey) and request.uri.startswith(b"/flowstack/"):
            page = self._page(request, request.uri.partition(b"?")[0])
            if page is not None:
                request.reply(self._completed(page))
                return
        preflight = is_preflight(request.method, request.requestHeaders)
        if preflight and isinstance(error, MissingKey):
            error = MissingKey(
                "This is a browser's preflight (CORS), which shows no key, from a page whose origin may not call this "
                "Flowstack. The operator can name the origin in [server] cors_origins."
            )
        self.unauthenticated.note(error.code, request.channel.client_address, preflight)
        fields = self._services.cors.fields(request.requestHeaders)
        request.reply(self._completed(error_reply(error, fields, self._services.docs_url)))

    def _completed(self, reply: Reply) -> Reply:
        reply.pairs.append((b"Date", self._services.date()))
        reply.pairs.append((b"Flowstack-Request-Id", self._next_id()))
        return reply


def _broken(failure: Failure, request: Request) -> None:
    log.failure("a request with a client secret could not be begun", failure)
    if not request.finished:
        request.break_off()


def _method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed(
        f"Flowstack relays {ALLOW.decode('ascii')}; this request uses another method.", ((b"Allow", ALLOW),)
    )
