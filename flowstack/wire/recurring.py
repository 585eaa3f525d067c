"""Heads like one that came before, which llhttp need not read again. Pure."""

from __future__ import annotations

import re

from flowstack.policy.headers import response_pairs
from flowstack.wire.heads import Recurrence, RequestHead, ResponseHead, parse_request, parse_response

# RFC 9110 §8.6. The one place of a head that differs where a client asks the same of the same again.
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([1-9][0-9]{0,17})\r\n")

MISSES = 3
"""Heads of a connection that differ from the one before, after which its heads are compared no more."""


class RequestHeads:
    """Reads the heads of one connection's requests, one after the other.

    A client that keeps a connection sends the same fields each time, but for the digits of Content-Length. Such a head
    is not read anew: what lies before and behind the digits is compared with the last head's bytes, and where both are
    equal, so is all that was read from them.
    """

    __slots__ = ("_after", "_before", "_last", "_left", "_place")

    def __init__(self) -> None:
        self._left = MISSES + 1  # the first head has none before it
        self._last: RequestHead | None = None
        self._before = self._after = b""
        self._place = 0

    def read(self, data: bytes) -> RequestHead:
        """Read a whole head. Raises what :func:`parse_request` does."""
        last = self._last
        if last is not None:
            before, after = self._before, self._after
            if data.startswith(before) and data.endswith(after):
                digits = data[len(before) : -len(after)]
                if digits.isdigit() and digits[0] != 0x30 and len(digits) <= 18:
                    self._left = MISSES
                    return last.with_length(digits, self._place)
        head = parse_request(data)
        if self._left > 0:
            self._left -= 1
            self._remember(data, head)
        return head

    def _remember(self, data: bytes, head: RequestHead) -> None:
        found = _LENGTH.search(data)
        if self._left == MISSES or self._left == 0 or found is None:
            self._last = None
            return
        start, end = found.span(1)
        self._before, self._after = data[:start], data[end:]
        self._place = [name.lower() for name, _ in head.pairs].index(b"content-length")
        self._last = head.with_length(found[1], self._place)  # a copy: whoever gets a head may change it
        self._last.recurrence = Recurrence()


SHAPES = 8
"""Shapes of heads that are remembered of one upstream."""

# RFC 9110 §5.5: visible characters and obs-text, white space only between them.
_VALUE = rb"([!-~\x80-\xff][\t -~\x80-\xff]*+)(?<![\t ])"
_DIGITS = rb"(0|[1-9][0-9]{0,17})"
_FRAMING = (b"connection", b"transfer-encoding")


class _Shape:
    """A status line, and names in their order: what heads have in common that differ in their values only."""

    __slots__ = ("_example", "_kept", "_lower", "_names", "_place", "match")

    def __init__(self, data: bytes, example: ResponseHead) -> None:
        self._example = example
        self._names = [name for name, _ in example.pairs]
        self._lower = [name.lower() for name in self._names]
        kept = {id(pair) for pair in response_pairs(example)}  # what it drops follows from names and framing
        self._kept = [id(pair) in kept for pair in example.pairs]
        self._place = self._lower.index(b"content-length") if b"content-length" in self._lower else None
        lines = [re.escape(data[: data.index(b"\r\n")])]
        for lower, (name, value) in zip(self._lower, example.pairs, strict=True):
            if lower in _FRAMING:  # another value may end the body, or the connection, elsewhere
                group = b"(%b)" % re.escape(value)
            else:
                group = _DIGITS if lower == b"content-length" else _VALUE
            lines.append(re.escape(name) + b": " + group)
        self.match = re.compile(b"\r\n".join(lines) + b"\r\n\r\n").fullmatch

    def head(self, values: tuple[bytes, ...]) -> ResponseHead:
        """A head of this shape."""
        example, place = self._example, self._place
        head = ResponseHead(list(zip(self._names, values)), dict(zip(self._lower, values)))  # noqa: B905
        head.status, head.reason, head.minor = example.status, example.reason, example.minor
        head.keep_alive, head.chunked, head.repeated = example.keep_alive, example.chunked, example.repeated
        head.kept = self._kept
        head.length = example.length if place is None else int(values[place])
        return head


class ResponseHeads:
    """Reads the heads of one upstream's responses.

    Those to the same operation have the same fields in the same order, with other values. The third such head and those
    after it are taken apart by one regular expression, made of the first two, that matches nothing but what llhttp
    takes.
    """

    __slots__ = ("_names", "_shapes")

    def __init__(self) -> None:
        self._shapes: list[_Shape] = []
        self._names: list[bytes] = []

    def read(self, data: bytes, method: bytes) -> ResponseHead:
        """Read a whole head. Raises what :func:`parse_response` does."""
        if method == b"HEAD":
            return parse_response(data, method)
        for shape in self._shapes:
            found = shape.match(data)
            if found is not None:
                return shape.head(found.groups())
        head = parse_response(data, method)
        if len(self._shapes) < SHAPES:
            self._remember(data, head)
        return head

    def _remember(self, data: bytes, head: ResponseHead) -> None:
        """Make a shape of the second of two heads in succession with the same names."""
        names = [name for name, _ in head.pairs]
        if names != self._names:
            self._names = names
        elif head.status >= 200 and head.status not in (204, 304):
            self._names = []
            shape = _Shape(data, head)
            if shape.match(data):
                self._shapes.append(shape)
