"""The opening handshake of a WebSocket (RFC 6455 §4), as the relay between the two sees it. Pure.

The client's key goes to the upstream, and the upstream's answer to it comes back: both are checked on the way. No
extension is offered, since compressed frames could not be read.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Sequence
from typing import ClassVar

from flowstack.errors import MalformedRequest, UpstreamMalformed
from flowstack.http.frames import accept_of
from flowstack.http.headers import Pair, RawHeaders, ReceivedHeaders, connection_names, lines_of, response_pairs
from flowstack.http.heads import RequestHead

PROTOCOL = b"sec-websocket-protocol"
_EXTENSIONS = b"sec-websocket-extensions"

_OF_CONNECTION: tuple[Pair, ...] = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))


class UpgradeHeaders(RawHeaders):
    """A request's fields that ask for a WebSocket."""

    __slots__ = ()

    upgrades: ClassVar[bool] = True


def asks_for_websocket(headers: ReceivedHeaders) -> bool:
    """Whether a request has an Upgrade that names it (RFC 9110 §7.8: a list of protocols, in any case, with or without
    a version)."""
    return any(
        name.partition(b"/")[0].strip(b" \t") == b"websocket"
        for value in headers.all(b"upgrade")
        for name in value.lower().split(b",")
    )


def check_request(head: RequestHead, has_body: bool) -> None:
    """Refuse what is no opening handshake (RFC 6455 §4.2.1).

    :raises MalformedRequest: the message says which part of it is wrong.
    """
    if head.method != b"GET" or not head.minor:
        raise MalformedRequest("A WebSocket is opened by GET, in HTTP/1.1. This request is another.")
    if has_body:
        raise MalformedRequest("A request that opens a WebSocket has no body. This one has.")
    if b"upgrade" not in connection_names(head.all(b"connection")):
        raise MalformedRequest(
            "This request has 'Upgrade: websocket' but no 'Connection: Upgrade'. A proxy in front of Flowstack may "
            "have taken it away: for WebSockets it must pass both on."
        )
    versions = head.all(b"sec-websocket-version")
    if versions != [b"13"]:
        raise MalformedRequest(
            "This request has no 'Sec-WebSocket-Version: 13', which is the one version there is.",
            ((b"Sec-WebSocket-Version", b"13"),),  # RFC 6455 §4.4
        )
    keys = head.all(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise MalformedRequest(
            "A request that opens a WebSocket has one Sec-WebSocket-Key, which is 16 bytes in Base64. This one has not."
        )


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(b64decode(key, validate=True)) == 16
    except Error:
        return False


def subprotocols(headers: RawHeaders) -> list[bytes]:
    """Those that a handshake offers, in order."""
    values = [value for name, value in headers.pairs if name.lower() == PROTOCOL]
    return [name for value in values for part in value.split(b",") if (name := part.strip(b" \t"))]


def request_fields(pairs: Sequence[Pair], offered: Sequence[bytes]) -> UpgradeHeaders:
    """The fields of a handshake to the upstream.

    :param pairs: those of the request that go out.
    :param offered: the subprotocols.
    """
    kept = [pair for pair in pairs if pair[0].lower() not in (PROTOCOL, _EXTENSIONS)]
    if offered:
        kept.append((b"Sec-WebSocket-Protocol", b", ".join(offered)))
    return UpgradeHeaders([*kept, *_OF_CONNECTION])


def check_answer(head: ReceivedHeaders, key: bytes, offered: Sequence[bytes]) -> bytes | None:
    """Refuse an upstream's 101 that is no answer to the handshake (RFC 6455 §4.1).

    :param key: the request's ``Sec-WebSocket-Key``.
    :param offered: the subprotocols that it was offered.
    :return: the one that it chose, or None.
    :raises UpstreamMalformed: the message says which part of it is wrong.
    """
    if not asks_for_websocket(head) or b"upgrade" not in connection_names(head.all(b"connection")):
        raise UpstreamMalformed("The upstream switched to another protocol than WebSocket.")
    if head.all(b"sec-websocket-accept") != [accept_of(key)]:
        raise UpstreamMalformed("The upstream's Sec-WebSocket-Accept does not answer the request's key.")
    if _EXTENSIONS in head.by_name:
        raise UpstreamMalformed("The upstream uses a WebSocket extension that nobody offered.")
    chosen = head.all(PROTOCOL)
    if len(chosen) > 1 or (chosen and chosen[0] not in offered):
        raise UpstreamMalformed("The upstream chose a WebSocket subprotocol that nobody offered.")
    return chosen[0] if chosen else None


def onward_lines(headers: ReceivedHeaders) -> bytes:
    """Of the fields of a 101, the lines of those that go back to the client; its subprotocol is told apart."""
    return lines_of(pair for pair in response_pairs(headers) if pair[0].lower() != PROTOCOL)


def answer_lines(lines: bytes, chosen: bytes | None) -> bytes:
    """The head of the 101 that goes to the client.

    :param lines: the end-to-end fields, see :func:`flowstack.http.headers.lines_of`; a subprotocol is not among them.
    :param chosen: the subprotocol, as the client offered it.
    """
    protocol = b"" if chosen is None else b"\r\nSec-WebSocket-Protocol: " + chosen
    return b"".join((
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade", protocol, lines, b"\r\n\r\n",
    ))  # fmt: skip
