"""The directives of the ``Stand-In`` header: how an answer goes wrong, or is shaped, when a test asks for it.

They are separated by ``;`` as in ``Stand-In: chunks=50; gap=0.1; cut=900``. The same text is taken from a JSON body's
``metadata`` under ``stand-in``, for SDKs that cannot set a header; ``early``, ``slow-read``, ``sink``, ``100`` and
``times`` act before the body is read, and so work in the header only.

Those that begin with ``ws-`` are for WebSockets. The header is that of the handshake; the ``metadata`` are those of a
``response.create``, from whose answer on they hold. ``ws-after`` counts the events that the stand-in has sent since
then; what is to happen after them happens in the order of the list below.

Under ``slow-read`` it goes unnoticed that the sender has left, until what the operating system holds has been read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import asdict, evolve, field, fields, frozen


class BadDirective(ValueError):
    """A directive that is unknown, or whose value is out of its range; the message names it."""


def _flag(text: str) -> bool:
    if text:
        raise ValueError("takes no value")
    return True


def _number(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(text)

    return convert


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise ValueError("expected seconds from 0 to 3600")
    return value


def _coding(text: str) -> str:
    if text not in ("gzip", "br", "zstd"):
        raise ValueError("expected gzip, br or zstd")
    return text


def _directive(convert: Callable[[str], Any], default: Any, name: str, meaning: str) -> Any:
    return field(default=default, metadata={"convert": convert, "name": name, "meaning": meaning})


def _pair(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not (colon and text.isascii() and text.isprintable() and _TOKEN.fullmatch(name)):
        raise ValueError("expected Name: value")
    return name.encode("ascii"), value.strip().encode("ascii")


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("expected a token")
    return text


def _end(text: str) -> tuple[int, str]:
    code, _, reason = text.partition(" ")
    if len(reason.encode()) > 123:
        raise ValueError("expected a reason of at most 123 bytes")
    return _number(0, 65535)(code), reason


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COUNT = _number(0, 1 << 40)


@frozen
class Directives:
    """What was asked for; the defaults ask for nothing. :data:`HELP` is made from these fields."""

    status: int | None = _directive(_number(200, 599), None, "status", "answer with this status and OpenAI's error")
    delay: float = _directive(_seconds, 0.0, "delay", "seconds before the head")
    first: float = _directive(_seconds, 0.0, "first", "seconds between the head and the first body byte")
    gap: float = _directive(_seconds, 0.0, "gap", "seconds between pieces of the body")
    cut: int | None = _directive(_COUNT, None, "cut", "reset the connection (RST) after n body bytes")
    close: int | None = _directive(_COUNT, None, "close", "close the connection (FIN) after n body bytes")
    drop: bool = _directive(_flag, False, "drop", "close the connection instead of answering")
    garbage: bool = _directive(_flag, False, "garbage", "answer with bytes that are no HTTP, then close")
    hang: bool = _directive(_flag, False, "hang", "send the head, then nothing until the peer leaves")
    drip: int = _directive(_number(1, 65536), 0, "drip", "write n body bytes at a time, `gap` apart (else 0.01 s)")
    chunks: int = _directive(_number(1, 1_000_000), 0, "chunks", "say this many words, one a stream chunk")
    size: int | None = _directive(_COUNT, None, "size", "answer with n bytes of a fixed pattern")
    cached: int = _directive(_number(0, 1_000_000), 0, "cached", "of the prompt tokens, so many were cached")
    reasoning: int = _directive(_number(0, 1_000_000), 0, "reasoning", "add so many reasoning tokens to the usage")
    coding: str | None = _directive(_coding, None, "coding", "use this content coding, asked for or not, streams too")
    chunked: bool = _directive(_flag, False, "chunked", "send no Content-Length, but chunks")
    until_close: bool = _directive(_flag, False, "until-close", "send no Content-Length and no chunks; end by closing")
    no_length: bool = _directive(_flag, False, "no-length", "the same as until-close")
    early: bool = _directive(_flag, False, "early", "answer before the request's body is read, then close")
    slow_read: int = _directive(_number(1, 1 << 30), 0, "slow-read", "read the request's body at n bytes a second")
    sink: bool = _directive(_flag, False, "sink", "keep no request body, answer with its length and SHA-256")
    continue_100: bool = _directive(_flag, False, "100", "send 100 Continue, asked for or not")
    hints_103: bool = _directive(_flag, False, "103", "send 103 Early Hints before the head")
    field: tuple[bytes, bytes] | None = _directive(_pair, None, "field", "add this field, Name: value, to the head")
    fail: bool = _directive(_flag, False, "fail", "let a response fail halfway, with what was used until then")
    ws_accept: bool = _directive(_flag, False, "ws-accept", "open a WebSocket with a wrong Sec-WebSocket-Accept")
    ws_extension: bool = _directive(_flag, False, "ws-extension", "open it with permessage-deflate, asked for or not")
    ws_protocol: str | None = _directive(_token, None, "ws-protocol", "open it with this subprotocol, offered or not")
    ws_fragment: int = _directive(_number(1, 1 << 20), 0, "ws-fragment", "send its messages in frames of n bytes")
    ws_after: int = _directive(_COUNT, 0, "ws-after", "do what follows in this list after n events, else at once")
    ws_masked: bool = _directive(_flag, False, "ws-masked", "mask all further frames, as only a client may")
    ws_deaf: float = _directive(_seconds, 0.0, "ws-deaf", "read nothing for so many seconds, and say nothing")
    ws_ping: bool = _directive(_flag, False, "ws-ping", "send a Ping, and go on only when its Pong has come")
    ws_flood: int = _directive(_number(1, 10_000_000), 0, "ws-flood", "send n deltas as fast as they are taken")
    ws_bytes: int = _directive(_number(100, 1 << 28), 1000, "ws-bytes", "how many bytes each of these has (else 1000)")
    ws_invalid: bool = _directive(_flag, False, "ws-invalid", "send a text message that is not UTF-8")
    ws_close: tuple[int, str] | None = _directive(
        _end, None, "ws-close", "send a Close with this code (0: none) and, after a space, this reason"
    )
    ws_end: bool = _directive(_flag, False, "ws-end", "close the connection (FIN) without a Close frame")
    ws_cut: bool = _directive(_flag, False, "ws-cut", "reset the connection (RST) without a Close frame")
    times: int = _directive(
        _number(1, 1000), 0, "times", "let these directives hold for the first n requests of the same X-Client-Tag"
    )

    @property
    def ends_by_close(self) -> bool:
        """Whether only the end of the connection ends the body (RFC 9112 §6.3, case 8)."""
        return self.until_close or self.no_length

    @property
    def pace(self) -> float:
        """Seconds between two pieces of the body."""
        return self.gap or (0.01 if self.drip else 0.0)


_FIELDS = {item.metadata["name"]: item for item in fields(Directives)}

_HEADER_ONLY = ("early", "slow-read", "sink", "100", "times", "ws-accept", "ws-extension", "ws-protocol")

HELP = {name: str(item.metadata["meaning"]) for name, item in _FIELDS.items()}
"""Each directive's name and what it does."""


def parse(text: str) -> Directives:
    """Read the directives.

    :raises BadDirective: where one is unknown, repeated, or its value is out of range.
    """
    found: dict[str, Any] = {}
    for item in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, value = (piece.strip() for piece in item.partition("="))
        if name not in _FIELDS:
            raise BadDirective(f"Stand-In: unknown directive {name!r}; there are {', '.join(_FIELDS)}")
        attribute = _FIELDS[name].name
        if attribute in found:
            raise BadDirective(f"Stand-In: directive {name!r} is given twice")
        try:
            found[attribute] = _FIELDS[name].metadata["convert"](value)
        except ValueError as fault:
            raise BadDirective(f"Stand-In: directive {name!r} has {value!r}: {fault}") from None
    return Directives(**found)


def merge(header: Directives, body: Any) -> Directives:
    """The header's directives, completed by those in a JSON body's ``metadata``.

    :param body: the parsed body, of any type.
    :raises BadDirective: as :func:`parse`.
    """
    metadata = body.get("metadata") if isinstance(body, dict) else None
    text = metadata.get("stand-in") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        return header
    empty = asdict(Directives(), recurse=False)
    found = {name: value for name, value in asdict(parse(text), recurse=False).items() if value != empty[name]}
    for item in fields(Directives):
        if item.name in found and item.metadata["name"] in _HEADER_ONLY:
            raise BadDirective(
                f"Stand-In: directive {item.metadata['name']!r} works in the header only, not in metadata"
            )
    return evolve(Directives(**found), **{k: v for k, v in asdict(header, recurse=False).items() if v != empty[k]})
