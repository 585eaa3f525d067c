"""Which endpoint answers, and whether the credential is good enough for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from attrs import evolve, frozen

from flowstack.testing.standin import anthropic, chat, files, handshake, lanes, media, replies
from flowstack.testing.standin.calls import SECRET, Sessions, credential
from flowstack.testing.standin.faults import BadDirective, Directives, merge
from flowstack.testing.standin.journal import PRIVATE, Journal
from flowstack.testing.standin.organization import Organization
from flowstack.testing.standin.pattern import pattern
from flowstack.testing.standin.responses import Responses
from flowstack.testing.standin.values import JSON, Refused, Reply, Request, json_reply

Endpoint = Callable[..., Reply]

_AZURE = re.compile(r"^/openai/(?:deployments/[^/]+|v1)(?=/)")
_KEY = re.compile(r"sk-\S+")


@frozen
class _Route:
    method: str
    pattern: re.Pattern[str]
    name: str
    endpoint: Endpoint


_UPGRADE = "GET (WebSocket)"
"""In place of a method: for handshakes."""


def _route(method: str, path: str, endpoint: Endpoint) -> _Route:
    """:param path: below ``/v1/``, with ``*`` for one segment."""
    expression = re.escape(path).replace(r"\*", "([^/]+)")
    return _Route(method, re.compile(f"^/v1/{expression}$"), path, endpoint)


class App:
    """All endpoints, and what they keep between requests.

    :param journal: what ``/stand-in/state`` shows.
    :ivar organization: what was used by the day, and what it costs.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.organization = organization = Organization(journal.now)
        self._spent: Counter[tuple[str, str]] = Counter()
        store, responses, batches = files.Files(self._one_of_a_batch), Responses(), anthropic.MessageBatches()
        self._sessions = sessions = Sessions(journal.now)
        self._routes = (
            _route("POST", "chat/completions", chat.chat),
            _route("POST", "completions", chat.completions),
            _route("POST", "responses", responses.create),
            _route(_UPGRADE, "responses", partial(lanes.connect, responses)),
            _route("GET", "responses/*", responses.retrieve),
            _route("DELETE", "responses/*", responses.delete),
            _route("POST", "responses/*/cancel", responses.cancel),
            _route("GET", "responses/*/input_items", responses.inputs),
            _route(_UPGRADE, "realtime", sessions.connect),
            _route("GET", "realtime", sessions.only_websocket),
            _route("POST", "realtime/client_secrets", sessions.client_secret),
            _route("POST", "realtime/calls", sessions.call),
            _route("POST", "realtime/calls/*/hangup", sessions.hang_up),
            _route("POST", "embeddings", media.embeddings),
            _route("POST", "moderations", media.moderations),
            _route("POST", "images/generations", media.images),
            _route("POST", "audio/speech", media.speech),
            _route("POST", "audio/transcriptions", media.transcriptions),
            _route("POST", "audio/translations", media.transcriptions),
            _route("GET", "models", files.models),
            _route("GET", "models/*", files.model),
            _route("GET", "files", store.list_files),
            _route("POST", "files", store.upload),
            _route("GET", "files/*", store.file),
            _route("DELETE", "files/*", store.delete),
            _route("GET", "files/*/content", store.content),
            _route("GET", "batches", store.list_batches),
            _route("POST", "batches", store.create_batch),
            _route("GET", "batches/*", store.batch),
            _route("POST", "batches/*/cancel", store.cancel_batch),
            _route("POST", "messages", anthropic.messages),
            _route("GET", "messages/batches", batches.list),
            _route("POST", "messages/batches", batches.create),
            _route("GET", "messages/batches/*", batches.retrieve),
            _route("POST", "messages/batches/*/cancel", batches.cancel),
            _route("GET", "messages/batches/*/results", batches.results),
            _route("GET", "organization/costs", organization.costs),
            _route("GET", "organization/usage/*", organization.usage),
        )

    def answer(self, request: Request, directives: Directives) -> tuple[Reply, Directives]:
        """The reply, and the directives for its delivery, completed by those in the body."""
        try:
            if request.path.startswith(PRIVATE):
                return self._introspect(request), Directives()
            return self._serve(request, directives)
        except BadDirective as fault:
            return replies.refusal(Refused(400, str(fault), code="unknown_directive")), Directives()
        except Refused as refused:
            reply = replies.refusal(refused)
            if request.path.startswith("/v1/messages"):
                reply = _anthropic(refused)
            return reply, directives

    def due(self, tag: str, text: str, directives: Directives) -> Directives:
        """The directives, or none any more where ``times`` has run out for this tag.

        :param text: the header's text; each text has its own count.
        """
        if not directives.times:
            return directives
        if len(self._spent) > 10_000:
            self._spent.clear()
        self._spent[tag, text] += 1
        return directives if self._spent[tag, text] <= directives.times else Directives()

    def _serve(self, request: Request, directives: Directives) -> tuple[Reply, Directives]:
        path = _AZURE.sub("/v1", request.path)
        here = [(route, match) for route in self._routes if (match := route.pattern.match(path))]
        methods = {route.method for route, _ in here} - {_UPGRADE}
        if request.method == "OPTIONS":
            allowed = ", ".join(sorted({"OPTIONS", *methods}))
            return Reply(204, content_type=None, headers=((b"Allow", allowed.encode()),)), directives
        if not here:
            raise replies.unknown_url(request.method, request.path)
        method = "GET" if request.method == "HEAD" else request.method
        wanted = (_UPGRADE, method) if handshake.asked_for(request) else (method,)
        found = [(route, match) for name in wanted for route, match in here if route.method == name]
        if not found:
            raise replies.wrong_method(request.method, request.path, ", ".join(sorted(methods)))
        route, match = found[0]
        if route.method == _UPGRADE:
            handshake.check(request)
        self._authenticate(request, path)
        if (request.header("content-type") or "").lower().startswith("application/json") and request.body:
            directives = merge(directives, request.json)
        if directives.size is not None:
            reply = Reply(
                content_type="application/octet-stream",
                pieces=pattern(directives.size),
                length=directives.size,
            )
        elif directives.status is not None and directives.status not in range(200, 204):
            reply = replies.asked_for(directives.status)
        else:
            reply = route.endpoint(request, directives, *match.groups())
        fields = reply.headers + ((directives.field,) if directives.field else ())
        return evolve(reply, status=directives.status or reply.status, headers=fields, endpoint=route.name), directives

    def _authenticate(self, request: Request, path: str) -> None:
        """A provider's key in one of the places in which providers want it; for Realtime, also a secret made here.

        :raises Refused: OpenAI's 401.
        """
        sent = request.header("authorization")
        if sent is not None and sent.partition(" ")[0].lower() != "bearer":
            raise replies.missing_key()
        key = credential(request)
        if key is None:  # others know their own form
            key = request.header("api-key") or request.header("x-api-key")
            if not key:
                raise replies.missing_key()
        elif not key:
            raise replies.missing_key()
        elif key.startswith(SECRET) and path.startswith("/v1/realtime"):
            if not self._sessions.opens(key):
                raise replies.wrong_key(key)
        elif not _KEY.fullmatch(key):
            raise replies.wrong_key(key)

    def _one_of_a_batch(self, url: str, body: Any) -> Reply:
        """Answer one request of a batch."""
        head = ((b"Authorization", b"Bearer sk-batch"), (b"Content-Type", JSON.encode("ascii")))
        return self.answer(Request("POST", url, head, orjson.dumps(body)), Directives())[0]

    def _introspect(self, request: Request) -> Reply:
        name = request.path.removeprefix(PRIVATE)
        if name == "state" and request.method == "GET":
            return json_reply(self.journal.state())
        if name == "reset" and request.method == "POST":
            self.journal.reset()
            self.organization.reset()
            return json_reply({"reset": True})
        if name.startswith("seen/") and request.method == "GET":
            return json_reply(self.journal.seen(name.removeprefix("seen/")))
        raise Refused(404, "There are GET /stand-in/state, GET /stand-in/seen/<tag> and POST /stand-in/reset.")


def _anthropic(refused: Refused) -> Reply:
    """The same error in Anthropic's shape."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "not_found_error"}
    error = {"type": kinds.get(refused.status, "api_error"), "message": str(refused)}
    return json_reply({"type": "error", "error": error}, status=refused.status, headers=refused.headers)
