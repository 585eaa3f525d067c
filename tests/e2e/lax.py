"""An upstream that accepts anything, and answers as soon as any server might.

Real servers are strict in one thing and lax in another. This one is lax in all: it looks at no credential, no method
and no path, takes a body in every coding and type, and knows neither a limit nor a most. What it generates costs a
thousand tokens of input and a hundred thousand of output, whatever was asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import brotli
import orjson
from attrs import Factory, define

from tests.e2e.raw import Closed
from tests.e2e.raw_upstream import Script, Seen

SERVED = b"generated for you"
"""What every answer of its holds, and no answer of Flowstack's own."""

PROMPT_TOKENS, COMPLETION_TOKENS = 1_000, 100_000

_LAST_DELIMITER = re.compile(rb"(?:^|\n)--[^\r\n]+--")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)

Moment = Callable[[Seen, bytes, bool], bool]
"""Tells from the head, the body so far, decoded, and whether that is all, whether to answer now."""


def at_the_head(seen: Seen, body: bytes, ended: bool) -> bool:
    """At once, whatever the body will be."""
    return True


def when_it_could(seen: Seen, body: bytes, ended: bool) -> bool:
    """As soon as the body holds a whole object or a form's last delimiter, whatever else is to come."""
    return ended or _LAST_DELIMITER.search(body) is not None or _closes(body)


def _closes(body: bytes) -> bool:
    depth = 0
    for token in _TOKENS.findall(body):
        depth += {b"{": 1, b"}": -1}.get(token, 0)
        if token == b"}" and depth == 0:
            return True
    return False


@define
class Lax:
    """What such an upstream did.

    :ivar served: the first line of each request that it answered.
    """

    served: list[bytes] = Factory(list)

    def answering(self, moment: Moment) -> Script:
        """The script of an upstream that answers at this moment of each request."""

        def script(seen: Seen) -> None:
            try:
                self._until(moment, seen)
            except Closed:
                return  # the proxy took it back
            self.served.append(seen.line)
            seen.link.offer(answer_to(seen))
            seen.link.close()

        return script

    def _until(self, moment: Moment, seen: Seen) -> None:
        """Read on until it is time to answer.

        :raises Closed: the proxy ends the connection before.
        """
        while True:
            body, ended = body_so_far(seen)
            if moment(seen, body, ended):
                return
            seen.link.more()


def body_so_far(seen: Seen) -> tuple[bytes, bool]:
    """What has come of a request's body, without its codings, and whether it is all."""
    raw, length = seen.link.buffer, seen.all(b"content-length")
    if seen.all(b"transfer-encoding"):
        raw, ended = _chunks(raw)
    else:
        ended = len(raw) >= int(length[0]) if length else True
    return _decoded(raw, b",".join(seen.all(b"content-encoding")).lower()), ended


def _chunks(raw: bytes) -> tuple[bytes, bool]:
    body, at = b"", 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end].split(b";")[0], 16)
        if not size:
            return body, True
        body += raw[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return body, False


def _decoded(raw: bytes, coding: bytes) -> bytes:
    try:
        if b"gzip" in coding:
            return zlib.decompressobj(31).decompress(raw)
        if b"deflate" in coding:
            return zlib.decompressobj().decompress(raw)
        if b"br" in coding:
            return bytes(brotli.Decompressor().process(raw))
    except (zlib.error, brotli.error):
        pass
    return raw.decode("utf-16", "replace").encode() if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else raw


def answer_to(seen: Seen) -> bytes:
    """A whole answer, JSON as chat completions have it."""
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }
    body = orjson.dumps({"object": "chat.completion", "model": "gpt-4o", "says": SERVED.decode(), "usage": usage})
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % len(body) + body
