"""``/api/v1/``: requests are checked by the table of endpoints, and answered here or by the reports' process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from flowstack import __version__
from flowstack.admin.access import LINK_LIFETIME, MANAGER, Access, Caller
from flowstack.admin.assets import Assets
from flowstack.admin.endpoints import ENDPOINTS, Endpoint, openapi
from flowstack.admin.page import Files, Page
from flowstack.admin.refusals import BadParameter
from flowstack.admin.schemas import check, from_query
from flowstack.admin.site import AdminRequest
from flowstack.errors import FlowstackError, MethodNotAllowed, UnknownPath
from flowstack.interfaces import Answered, Asks
from flowstack.util import instant

log = Logger()

_SIGNING_IN = ("session.begin", "link.follow")
"""Who asks for these is nobody yet, whatever else it shows."""

_NOTHING_ELSE = b"default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy: an answer is no page."""


@frozen(slots=True)
class House:
    """What the API is told by the service.

    :ivar ask: asks another process.
    :ivar live: says what happens now.
    :ivar reload: reloads the keystore; fires with what came of it, as JSON.
    """

    ask: Asks
    live: Callable[[], dict[str, Any]]
    reload: Callable[[], Deferred[dict[str, Any]]]


def page_of(access: Access, house: House) -> dict[bytes, Resource]:
    """The page, its files and its API, by the first segments of their paths."""
    assets = Assets()
    return {b"": Page(assets), b"static": Files(assets), b"api": Api(access, house)}


class Api(Resource):
    """The resource."""

    isLeaf = True

    def __init__(self, access: Access, house: House) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._access = access
        self._house = house
        self._here: dict[str, Callable[[AdminRequest, Caller, dict[str, Any]], Answered]] = {
            "session": self._session,
            "session.begin": self._begin,
            "session.end": self._end,
            "link": lambda request, caller, asked: _json({"code": access.link(caller), "seconds": int(LINK_LIFETIME)}),
            "link.follow": self._follow,
            "live": lambda request, caller, asked: _json(house.live()),
            "openapi": lambda request, caller, asked: Answered(self._openapi),
        }
        self._openapi = orjson.dumps(openapi(__version__), option=orjson.OPT_APPEND_NEWLINE)

    def render(self, request: AdminRequest) -> int:
        """Answer, or have it answered."""
        request.setHeader(b"content-security-policy", _NOTHING_ELSE)
        try:
            endpoint, asked = _found(request)
            caller = Caller(None, "") if endpoint.name in _SIGNING_IN else self._access.caller(request)
            if endpoint.role is not None:
                self._access.check(caller, endpoint.role)
            asked |= _query_of(request, endpoint) | _body_of(request, endpoint)
            here = self._here.get(endpoint.name)
            if here is not None:
                _send(request, endpoint, here(request, caller, asked))
                return NOT_DONE_YET
        except FlowstackError as error:
            request.refuse(error)
            return NOT_DONE_YET
        if endpoint.role == MANAGER:
            actor = {"role": caller.role, "address": caller.address}
            outcome = self._changed(endpoint, {**asked, "actor": actor})
        else:
            outcome = self._house.ask(endpoint.name, asked, endpoint.seconds)
            request.notifyFinish().addErrback(lambda _: outcome.cancel())
        outcome.addCallbacks(
            lambda answered: _send(request, endpoint, answered), lambda failure: _failed(request, failure)
        )
        return NOT_DONE_YET

    def _changed(self, endpoint: Endpoint, asked: dict[str, Any]) -> Deferred[Answered]:
        """Have the keystore changed, then loaded: whoever asked may be gone meanwhile, both are done all the same."""

        def reload(answered: Answered) -> Deferred[Answered]:
            changed: dict[str, Any] = orjson.loads(answered.body)
            reloaded = maybeDeferred(self._house.reload)
            return reloaded.addCallback(lambda outcome: _json({**changed, "reload": outcome}))

        return self._house.ask(endpoint.name, asked, endpoint.seconds).addCallback(reload)

    def _session(self, request: AdminRequest, caller: Caller, asked: dict[str, Any]) -> Answered:
        return _json({
            "signed_in": caller.role is not None,
            "role": caller.role,
            "csrf_token": None if caller.session is None else caller.session.csrf,
            "token": self._access.asks,
            "manage_keys": self._access.manages and caller.role == MANAGER,
            "version": None if caller.role is None else __version__,
            "time": instant(time.time()),
        })  # fmt: skip

    def _begin(self, request: AdminRequest, caller: Caller, asked: dict[str, Any]) -> Answered:
        return Answered(b"", fields=((b"set-cookie", self._access.sign_in(request, asked["token"])),))

    def _follow(self, request: AdminRequest, caller: Caller, asked: dict[str, Any]) -> Answered:
        return Answered(b"", fields=((b"set-cookie", self._access.follow(request, asked["code"])),))

    def _end(self, request: AdminRequest, caller: Caller, asked: dict[str, Any]) -> Answered:
        return Answered(b"", fields=((b"set-cookie", self._access.sign_out(request)),))


_BY_PATH: dict[tuple[str, ...], dict[str, Endpoint]] = {}
for _endpoint in ENDPOINTS:
    _BY_PATH.setdefault(tuple(_endpoint.path[1:].split("/")), {})[_endpoint.method] = _endpoint


def _found(request: AdminRequest) -> tuple[Endpoint, dict[str, Any]]:
    """The endpoint that a request is for, and what its path says.

    :raises UnknownPath: there is none.
    :raises MethodNotAllowed: it takes another method.
    """
    try:
        version, *words = [segment.decode("utf-8") for segment in request.postpath or ()]
    except ValueError:
        words, version = [], ""
    places: dict[str, Any] = {}
    methods: dict[str, Endpoint] | None = None
    for pattern, found in _BY_PATH.items() if version == "v1" else ():
        if len(pattern) != len(words) or any(a != b and a[0] != "{" for a, b in zip(pattern, words, strict=True)):
            continue
        methods = found
        places = {a[1:-1]: b for a, b in zip(pattern, words, strict=True) if a[0] == "{"}
        if not places:
            break  # a word that stands there goes before one that varies
    if methods is None:
        raise UnknownPath("There is nothing at this path. GET /api/v1/openapi.json lists what there is.")
    method = request.method.decode("ascii", "replace")
    endpoint = methods.get("GET" if method == "HEAD" else method)
    if endpoint is None:
        allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
        raise MethodNotAllowed(f"This path takes {allow}.", ((b"Allow", allow.encode("ascii")),))
    for name, schema in endpoint.places.items():
        check(name, places[name], schema)
    return endpoint, places


def _query_of(request: AdminRequest, endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for raw, values in (request.args or {}).items():
        name = raw.decode("utf-8", "replace")
        parameter = endpoint.query.get(name)
        if parameter is None:
            raise BadParameter(name[:64], f"there is no such parameter, but {', '.join(endpoint.query) or 'none'}.")
        try:
            texts = [value.decode("utf-8") for value in values]
        except UnicodeDecodeError:
            raise BadParameter(name, "found bytes that are no UTF-8, expected UTF-8.") from None
        read = [from_query(name, text, parameter.schema) for text in texts]
        if parameter.repeats:
            found[name] = read
        elif len(read) == 1:
            found[name] = read[0]
        else:
            raise BadParameter(name, f"found it {len(read)} times, expected it once.")
    return found


def _body_of(request: AdminRequest, endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.body is None:
        return {}
    kind = (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":  # which no form of another page can send
        raise BadParameter("body", "expected JSON, with Content-Type: application/json.")
    try:
        body = orjson.loads(request.content.read())
    except orjson.JSONDecodeError:
        raise BadParameter("body", "found no JSON, expected an object.") from None
    check("body", body, endpoint.body)
    found: dict[str, Any] = body
    return found


def _json(document: dict[str, Any]) -> Answered:
    return Answered(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))


def _send(request: AdminRequest, endpoint: Endpoint, answered: Answered) -> None:
    if request.finished or request.gone:
        return
    request.setResponseCode(endpoint.status)
    if endpoint.status != 204:
        request.setHeader(b"content-type", answered.kind)
        request.setHeader(b"content-length", b"%d" % len(answered.body))
    for name, value in answered.fields:
        request.setHeader(name, value)
    request.write(answered.body)  # type: ignore[no-untyped-call]
    request.finish()  # type: ignore[no-untyped-call]


def _failed(request: AdminRequest, failure: Failure) -> None:
    if failure.check(CancelledError) or request.finished or request.gone:
        return  # who asked is gone
    if isinstance(failure.value, FlowstackError):
        request.refuse(failure.value)
    else:
        request.processingFailed(failure)
