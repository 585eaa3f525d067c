"""Heads that come again on one connection, and need not be read anew."""

from __future__ import annotations

import re

from flowstack.wire.heads import RequestHead, parse_request

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
