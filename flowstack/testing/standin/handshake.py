"""What the opening handshake of a WebSocket must have, and the answer to it (RFC 6455 §4.2)."""

from __future__ import annotations

import base64
import binascii
import hashlib

from flowstack.errors import Pairs
from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.values import Refused, Reply, Request, Talk

PROTOCOL = "realtime"
"""The one subprotocol that is spoken."""

_KEY = "openai-insecure-api-key."
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def asked_for(request: Request) -> bool:
    """Whether the request wants to become a WebSocket, in good form or bad; in HTTP/1.0 none can (RFC 9110 §7.8)."""
    wanted = "websocket" in (word.lower() for word in request.words("upgrade"))
    return wanted and request.method == "GET" and request.version != "1.0"


def check(request: Request) -> None:
    """Hold the request to what a handshake must have.

    :raises Refused: 426 for another version of the protocol, 400 for any other fault.
    """
    if "upgrade" not in (word.lower() for word in request.words("connection")):
        raise _bad("Connection does not name Upgrade")
    if request.words("sec-websocket-version") != ["13"]:
        raise _other("Sec-WebSocket-Version is not 13")
    keys = request.values("sec-websocket-key")
    try:
        sizes = [len(base64.b64decode(key, validate=True)) for key in keys]
    except binascii.Error:
        sizes = []
    if sizes != [16]:
        raise _bad("Sec-WebSocket-Key is not one value of 16 bytes in Base64")


def upgrade_required() -> Refused:
    """For a request that should have been a handshake."""
    return _other("This URL speaks WebSocket only")


def key_of(request: Request) -> str | None:
    """The credential that browsers send among the subprotocols, as they can set no header."""
    found = [word.removeprefix(_KEY) for word in request.words("sec-websocket-protocol") if word.startswith(_KEY)]
    return found[0] if found else None


def switching(request: Request, directives: Directives, talk: Talk) -> Reply:
    """The answer with which the connection becomes a WebSocket."""
    [key] = request.values("sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest())
    if directives.ws_accept:
        accept = accept[::-1]
    fields: Pairs = ((b"Upgrade", b"websocket"), (b"Sec-WebSocket-Accept", accept))
    chosen = PROTOCOL if PROTOCOL in request.words("sec-websocket-protocol") else None
    if (protocol := directives.ws_protocol or chosen) is not None:
        fields += ((b"Sec-WebSocket-Protocol", protocol.encode("ascii")),)
    if directives.ws_extension:
        fields += ((b"Sec-WebSocket-Extensions", b"permessage-deflate"),)
    return Reply(status=101, content_type=None, headers=fields, talk=talk)


def _bad(fault: str) -> Refused:
    return Refused(400, f"Bad WebSocket handshake: {fault} (RFC 6455 §4.2.1).", code="bad_handshake")


def _other(fault: str) -> Refused:
    wanted = ((b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13"))
    return Refused(426, f"{fault} (RFC 6455 §4.2.2).", code="upgrade_required", headers=wanted)
