"""Message heads: one whole head in, values out, or a refusal. Pure.

llhttp (``httptools``) is the tokenizer. What it accepts although two parsers could read it differently is refused
here, with the sentence of the RFC above each rule. A head is cut from the stream at its first empty line before
llhttp sees it, so that llhttp never decides where a message ends.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, ClassVar

import httptools

from flowstack.errors import MalformedRequest, MethodNotAllowed, UpstreamMalformed
from flowstack.http.headers import Pair, ReceivedHeaders, connection_names
from flowstack.http.replies import ALLOW

MAX_FIELDS = 256

# RFC 9112 §3: one SP between the parts, no white space elsewhere. RFC 3986 §2: the characters of a URI, the fragment
# left out, since it is never sent (RFC 9110 §7.1). Brackets in a query are what SDKs send (``include[]=…``).
# RFC 9112 §3.2: asterisk-form is for OPTIONS only, authority-form for CONNECT only.
_PCHAR = rb"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) "
    rb"((?:[A-Za-z][A-Za-z0-9+.\-]*://(?:[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]]|%[0-9A-Fa-f]{2})*)?"
    rb"/(?:" + _PCHAR + rb")*(?:\?(?:[\[\]?]|" + _PCHAR + rb")*)?|(?<=OPTIONS )\*|(?<=CONNECT )[A-Za-z0-9\-._~:\[\]]+) "
    rb"HTTP/1\.([01])\r\n"
)
_SIMPLE_LINE = re.compile(rb"([A-Z]+) (/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*) HTTP/1\.([01])\r\n")
"""The same for the usual case, without the alternatives that cost time."""

# RFC 9110 §7.2 and RFC 3986 §3.2.2: a registered name or an IP literal, and a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+(?::[0-9]*)?|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?")
_SIMPLE_HOST = re.compile(rb"[A-Za-z0-9.\-]+(?::[0-9]+)?")
"""The same for the usual case."""

_BARE_LF = re.compile(rb"(?<!\r)\n")

# RFC 9112 §4: HTTP-version SP status-code SP [reason]; a missing SP before an empty reason is common and harmless.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")


class _Head(ReceivedHeaders):
    """The fields of a head that came; llhttp calls :meth:`on_header` for each.

    :ivar minor: 0 or 1, of HTTP/1.x.
    :ivar length: bytes of the body, or None.
    :ivar keep_alive: whether the peer lets the connection live on.
    """

    __slots__ = ("keep_alive", "length", "minor")

    # httptools looks for these too, and a miss costs.
    on_message_begin: ClassVar[None] = None
    on_url: ClassVar[None] = None
    on_status: ClassVar[None] = None
    on_headers_complete: ClassVar[None] = None
    on_body: ClassVar[None] = None
    on_message_complete: ClassVar[None] = None
    on_chunk_header: ClassVar[None] = None
    on_chunk_complete: ClassVar[None] = None

    minor: int
    length: int | None
    keep_alive: bool

    def __init__(self, pairs: list[Pair], by_name: MutableMapping[bytes, bytes]) -> None:
        self._pairs = pairs
        self.by_name = by_name

    def on_header(self, name: bytes, value: bytes) -> None:
        """One more field."""
        # RFC 9112 §5.1: white space after the value is no part of it; llhttp strips only what is before it, and takes
        # no control character but the tab.
        value = value.rstrip()
        self._pairs.append((name, value))
        self.by_name[name.lower()] = value


class HeadCache:
    """What the heads of one connection share that differ in their Content-Length only.

    :ivar made: for whoever reads such heads: what was made of one of them, and holds for the others.
    """

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: Any = None


class RequestHead(_Head):
    """A request's head, with its fields. The body is chunked where it has no length.

    :ivar target: byte for byte as it came.
    :ivar expects: whether the client waits for a 100.
    :ivar cache: shared with the heads like it before and after, or None.
    """

    __slots__ = ("cache", "expects", "method", "target")

    method: bytes
    target: bytes
    expects: bool
    cache: HeadCache | None

    def put(self, name: bytes, value: bytes) -> None:
        """Give a field that came once another value, in its place; an empty one takes it out. A new one comes last.

        :param name: as it is to be written where it is new.
        """
        lower, pairs = name.lower(), self.pairs.copy()
        if lower in self.by_name:
            place = [other.lower() for other, _ in pairs].index(lower)
            pairs[place : place + 1] = [(pairs[place][0], value)] if value else []
            del self.by_name[lower]
        else:
            pairs.append((name, value))
        if value:
            self.by_name[lower] = value
        self._pairs = pairs

    def with_length(self, digits: bytes, place: int) -> RequestHead:
        """The same head with another Content-Length.

        :param place: of Content-Length among the fields.
        """
        pairs, by_name = self._pairs.copy(), dict(self.by_name)
        pairs[place] = (pairs[place][0], digits)
        by_name[b"content-length"] = digits
        head = RequestHead(pairs, by_name)
        head.method, head.target, head.minor = self.method, self.target, self.minor
        head.keep_alive, head.expects, head.repeated = self.keep_alive, self.expects, self.repeated
        head.cache = self.cache
        head.length = int(digits)
        return head


class ResponseHead(_Head):
    """A response's head, with its fields.

    :ivar chunked: whether the body is chunked; with no length and not chunked it ends with the connection.
    """

    __slots__ = ("chunked", "reason", "status")

    status: int
    reason: bytes
    chunked: bool


_Parser = type[httptools.HttpRequestParser] | type[httptools.HttpResponseParser]


def _tokenize(parser_class: _Parser, data: bytes, head: _Head) -> str | None:
    """Read the fields of a whole head; say what llhttp found wrong."""
    try:
        parser_class(head).feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the head is complete; whether anything is upgraded is not llhttp's to say
    except httptools.HttpParserError as error:
        return str(error) or type(error).__name__
    head._sum_up()
    return None


def parse_request(data: bytes) -> RequestHead:
    """Read a request's head, which ends with its empty line.

    :raises MalformedRequest: whatever two parsers could read differently.
    :raises MethodNotAllowed: a method that llhttp does not know.
    """
    line = _SIMPLE_LINE.match(data) or _REQUEST_LINE.match(data)
    if line is None:
        raise MalformedRequest(
            "The request line is not 'METHOD /path HTTP/1.1' with single spaces and URI characters only. "
            "Percent-encode other characters, and speak HTTP/1.1 or HTTP/1.0."
        )
    head = RequestHead([], {})
    head.method, head.target, minor = line.groups()
    fault = _tokenize(httptools.HttpRequestParser, data, head)
    if fault is not None:
        # A bare LF may have been refused already, had the head come in two pieces; it is the same fault then and now.
        if "method" in fault.lower() and not _BARE_LF.search(data):
            raise MethodNotAllowed("This method is not relayed.", ((b"Allow", ALLOW),))
        raise MalformedRequest(f"The request head is not strict HTTP/1.1: {fault}.")
    by_name = head.by_name
    is_1_1 = minor == b"1"
    head.minor = 1 if is_1_1 else 0
    host = by_name.get(b"host")
    if host is None:
        # RFC 9112 §3.2: 400 to any HTTP/1.1 request that lacks a Host field, or has more than one, or an invalid one.
        if is_1_1:
            raise MalformedRequest("The Host header is missing. HTTP/1.1 needs exactly one.")
    elif not (_SIMPLE_HOST.fullmatch(host) or _HOST.fullmatch(host)) or (head.repeated and len(head.all(b"host")) > 1):
        raise MalformedRequest("The Host header is repeated or is no host name. Send exactly one.")
    if not _frame(head, is_1_1, MalformedRequest) and head.length is None:
        head.length = 0
    head.keep_alive = is_1_1 if b"connection" not in by_name else _keep_alive(head, is_1_1, MalformedRequest)
    # RFC 9110 §10.1.1: 100-continue is the only expectation; a server may ignore others.
    head.expects = b"expect" in by_name and is_1_1 and by_name[b"expect"].lower() == b"100-continue"
    head.cache = None
    return head


_TOKEN_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")


def malformed_request(data: bytes, limit: int, known: int = 0) -> MalformedRequest | None:
    """Say why no good head can come of this beginning, or None: waiting for more would only end in a timeout.

    :param limit: the longest head that is taken, in bytes.
    :param known: bytes in which no bare LF was found before.
    """
    if len(data) > limit:
        return MalformedRequest(f"The request head is longer than {limit} bytes. Send fewer or shorter headers.")
    if not _TOKEN_START.match(data) and data != b"\r":
        return MalformedRequest("This is not HTTP/1.1. If it is TLS, the listener speaks plain HTTP.")
    if _BARE_LF.search(data, known):
        return MalformedRequest("A line of the request head ends with a bare LF. Lines end with CR LF.")
    return None


def malformed_response(data: bytes, limit: int, known: int = 0) -> str | None:
    """Say why no good head can come of this beginning, or None.

    :param limit: the longest head that is taken, in bytes.
    :param known: bytes in which no bare LF was found before.
    """
    if len(data) > limit:
        return f"The upstream's response head is longer than {limit} bytes."
    if not b"HTTP/1.".startswith(data[:7]):
        return "The upstream's answer does not begin with 'HTTP/1.'."
    if _BARE_LF.search(data, known):
        return "A line of the upstream's response head ends with a bare LF."
    if b"\r\n" in data and not _STATUS_LINE.match(data):
        return "The upstream's status line is not that of HTTP/1.1."
    return None


def parse_response(data: bytes, method: bytes) -> ResponseHead:
    """Read a response's head, which ends with its empty line.

    :param method: the request's, since HEAD has no body whatever the fields say (RFC 9112 §6.3).
    :raises UpstreamMalformed: it is not HTTP/1.1 that can be framed without doubt.
    """
    line = _STATUS_LINE.match(data)
    if line is None:
        raise UpstreamMalformed("The upstream's status line is not that of HTTP/1.1.")
    minor, status_text, reason = line.groups()
    head = ResponseHead([], {})
    head.status = status = int(status_text)
    head.reason = reason or b""
    fault = _tokenize(httptools.HttpResponseParser, data, head)
    if fault is not None:
        raise UpstreamMalformed(f"The upstream's response head is not strict HTTP/1.1: {fault}.")
    is_1_1 = minor == b"1"
    head.minor = 1 if is_1_1 else 0
    head.chunked = _frame(head, is_1_1, UpstreamMalformed)
    if status < 200 or status == 204 or status == 304 or method == b"HEAD":
        if status == 204 and (head.chunked or head.length):
            raise UpstreamMalformed("The upstream sent a 204 that announces a body.")
        head.length, head.chunked = 0, False
    head.keep_alive = is_1_1 if b"connection" not in head.by_name else _keep_alive(head, is_1_1, UpstreamMalformed)
    return head


Refusal = type[MalformedRequest] | type[UpstreamMalformed]


def _frame(head: _Head, is_1_1: bool, refusal: Refusal) -> bool:
    """Set the body's length as Content-Length says, or None; tell whether it is chunked.

    llhttp has refused Content-Length beside Transfer-Encoding, and a repeated one.
    """
    if len(head.pairs) > MAX_FIELDS:
        raise refusal(f"The head has {len(head.pairs)} fields; at most {MAX_FIELDS} are taken.")
    by_name = head.by_name
    length = by_name.get(b"content-length")
    if b"transfer-encoding" in by_name:
        # RFC 9112 §6.1: a server that cannot frame the body must refuse; a Transfer-Encoding in HTTP/1.0 is faulty.
        codings = head.all(b"transfer-encoding")
        if len(codings) != 1 or codings[0].lower() != b"chunked" or not is_1_1 or length is not None:
            raise refusal("Transfer-Encoding must be 'chunked', once, in HTTP/1.1, and without Content-Length.")
        head.length = None
        return True
    if length is None:
        head.length = None
        return False
    # RFC 9110 §8.6: digits. A leading zero is read as octal somewhere; more than 18 digits overflow somewhere.
    if (
        not length.isdigit()
        or (length < b"1" and length != b"0")
        or len(length) > 18
        or (head.repeated and len(head.all(b"content-length")) > 1)
    ):
        raise refusal("Content-Length must be one decimal number without leading zeros.")
    head.length = int(length)
    return False


def _keep_alive(head: _Head, is_1_1: bool, refusal: Refusal) -> bool:
    """Whether the connection may live on (RFC 9112 §9.3)."""
    names = connection_names(head.all(b"connection"))
    if b"close" in names:
        if b"keep-alive" in names:
            raise refusal("The Connection header says both 'close' and 'keep-alive'. Send one of them.")
        return False
    return is_1_1 or b"keep-alive" in names
