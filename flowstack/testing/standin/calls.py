"""How a Realtime session begins: the WebSocket, secrets for browsers, and WebRTC calls with their sideband.

There are no media. A call is taken to hear somebody speak for two seconds as soon as a WebSocket listens to it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakSet

import orjson
from attrs import define, evolve, field, frozen

from flowstack.testing.standin import handshake
from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.realtime import Realtime
from flowstack.testing.standin.speech import identifier
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import Refused, Reply, Request, bytes_reply, json_reply

SECRET = "ek_"
"""How a secret begins that was made for a browser."""

_OLD = "realtime=v1"
_ANSWER = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=stand-in\r\nt=0 0\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=rtpmap:111 opus/48000/2\r\na=sendrecv\r\n"
)


@frozen
class _Secret:
    session: dict[str, Any]
    expires_at: float


@define
class _Call:
    session: dict[str, Any]
    directives: Directives
    ended: bool = False
    heard_by: WeakSet[Realtime] = field(factory=WeakSet)


class Sessions:
    """The endpoints below ``/v1/realtime``, and what they keep.

    :param now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._secrets = Store[_Secret]("Client secret", count=1000)
        self._calls = Store[_Call]("Call", count=1000)
        self._numbers = count(1)

    def opens(self, secret: str) -> bool:
        """Whether this secret was made here, and is still good."""
        return secret in self._secrets and self._now() < self._secrets.get(secret).expires_at

    def only_websocket(self, request: Request, directives: Directives) -> Reply:
        """``GET /v1/realtime`` without an upgrade.

        :raises Refused: 426.
        """
        raise handshake.upgrade_required()

    def connect(self, request: Request, directives: Directives) -> Reply:
        """The WebSocket at ``/v1/realtime``; its session is that of ``model``, ``call_id``, ``intent`` or a secret.

        :raises Refused: 400 where none of them says what the session is, 404 where there is no such call.
        """
        query = request.query
        old = _OLD in (request.header("openai-beta") or "") or "openai-beta.realtime-v1" in request.words(
            "sec-websocket-protocol"
        )
        if "call_id" in query:
            call = self._calls.get(query["call_id"])
            talk = Realtime(call.session, query["call_id"], call.directives, old=old)
            call.heard_by.add(talk)
            talk.end() if call.ended else talk.call()
            return handshake.switching(request, directives, talk)
        session: dict[str, Any] = {}
        secret = credential(request)
        if secret is not None and secret.startswith(SECRET):
            session = self._secrets.get(secret).session
        if query.get("intent") == "transcription":
            session = {**session, "type": "transcription"}
        elif query.get("model"):
            session = {**session, "model": query["model"]}
        elif not session:
            message = "You must provide a model parameter."
            raise Refused(400, message, param="model", code="missing_model")
        return handshake.switching(request, directives, Realtime(session, request.target, directives, old=old))

    def client_secret(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/realtime/client_secrets``: good for ten minutes, or as long as ``expires_after`` says."""
        body = request.json if request.body else {}
        session = body.get("session") or {}
        after = body.get("expires_after") or {}
        seconds = after.get("seconds", 600)
        if not isinstance(session, dict) or not isinstance(seconds, int) or not 10 <= seconds <= 7200:
            raise Refused(400, "Invalid 'session' or 'expires_after'.", param="session", code="invalid_value")
        value = f"{identifier(SECRET, request)}{next(self._numbers):06x}"
        expires = int(self._now()) + seconds
        self._secrets.put(value, _Secret(session, expires))
        told = Realtime(session, value, directives).session
        return json_reply({"value": value, "expires_at": expires, "session": told})

    def call(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/realtime/calls``: an SDP offer, alone or in a form with the ``session``; the answer is SDP."""
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        session: dict[str, Any] = {}
        secret = credential(request)
        if secret is not None and secret.startswith(SECRET):
            session = self._secrets.get(secret).session
        if kind == "application/sdp":
            offer = request.body
        else:
            form = request.form
            offer = form["sdp"].data if "sdp" in form else b""
            session = _session_in(form["session"].data) if "session" in form else session
        if not offer.startswith(b"v=0"):
            raise Refused(400, "Invalid 'sdp': expected an offer.", param="sdp", code="invalid_value")
        identity = f"rtc_{request.digest[:20]}{next(self._numbers):06x}"
        self._calls.put(identity, _Call(session, directives))
        place = (b"Location", f"/v1/realtime/calls/{identity}".encode("ascii"))
        made = bytes_reply(_ANSWER.encode("ascii"), "application/sdp", headers=(place,))
        return evolve(made, status=201)

    def hang_up(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/realtime/calls/{id}/hangup``: the WebSockets that listen are closed."""
        call = self._calls.get(identity)
        call.ended = True
        for talk in list(call.heard_by):
            talk.end()
        return Reply(status=200, content_type=None, length=0)


def credential(request: Request) -> str | None:
    """The credential in ``Authorization``, or, of a handshake, among the subprotocols."""
    sent = request.header("authorization")
    return handshake.key_of(request) if sent is None else sent.partition(" ")[2].strip()


def _session_in(data: bytes) -> dict[str, Any]:
    try:
        session = orjson.loads(data)
    except orjson.JSONDecodeError:
        session = None
    if not isinstance(session, dict):
        raise Refused(400, "Invalid 'session': expected a JSON object.", param="session", code="invalid_json")
    return session
