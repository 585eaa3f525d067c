"""Heads like one that came before, which llhttp need not read again. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, KeysView, MutableMapping
from typing import Any, Final, cast
from weakref import WeakValueDictionary

from attrs import define

from flowstack.http.headers import Pair, response_pairs
from flowstack.http.heads import HeadCache, RequestHead, ResponseHead, parse_request, parse_response

# RFC 9110 §8.6. The one place of a head that differs where a client asks the same of the same again.
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([1-9][0-9]{0,17})\r\n")

MAX_BYTES: Final = 8 * 1024
"""Bytes of a head above which it is not remembered: that would be too much for each connection that is idle."""

MISSES: Final = 3
"""Heads of a connection that differ from the one before, after which its heads are compared no more."""


@define(slots=False, init=False, eq=False)  # a plain class, once it is compiled, takes no weak references
class KnownHead:
    """A request's head but for the digits of its Content-Length.

    :raises FlowstackError: what :func:`parse_request` does.
    """

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before, self.after = before, after
        self.head = parse_request(before + b"1" + after)
        self.head.cache = HeadCache()
        self.place = [name.lower() for name, _ in self.head.pairs].index(b"content-length")


KnownHeads = WeakValueDictionary[tuple[str, bool, bytes, bytes], KnownHead]
"""By the client, and by what stands before and behind the digits. What follows from a head may follow from where it
comes from, too: clients share none. One is kept for as long as a connection is open that had it last."""


class RequestHeads:
    """Reads the heads of one connection's requests, one after the other.

    A client sends the same fields each time, on each of its connections, but for the digits of Content-Length. Such a
    head is not read anew: what lies before and behind the digits is compared with the last head's bytes, or looked up
    among those of the client's other connections; where both are equal, so is all that was read from them.
    """

    __slots__ = ("_after", "_before", "_known", "_last", "_left", "_others", "_place")

    def __init__(self, others: KnownHeads) -> None:
        self._others = others
        self._left = MISSES + 1  # the first head has none before it
        self._known: KnownHead | None = None
        self._last: RequestHead | None = None
        self._before = self._after = b""
        self._place = 0

    def read(self, data: bytes, client: str, secure: bool) -> RequestHead:
        """Read a whole head. Raises what :func:`parse_request` does.

        :param client: the address that it comes from.
        :param secure: whether it came by TLS.
        """
        last = self._last
        if last is not None:
            before, after = self._before, self._after
            if data.startswith(before) and data.endswith(after):
                digits = data[len(before) : -len(after)]
                if digits.isdigit() and digits[0] != 0x30 and len(digits) <= 18:
                    self._left = MISSES
                    return last.with_length(digits, self._place)
            self._last = self._known = None
        found = _LENGTH.search(data) if self._left > 0 and len(data) <= MAX_BYTES else None
        self._left -= 1
        if found is None:
            return parse_request(data)
        start, end = found.span(1)
        self._before, self._after = before, after = data[:start], data[end:]
        key = client, secure, before, after
        known = self._others.get(key)
        if known is None:
            known = self._others[key] = KnownHead(before, after)
        self._known, self._last, self._place = known, known.head, known.place
        return known.head.with_length(found[1], known.place)


MAX_SHAPES: Final = 8
"""Shapes of heads that are remembered of one upstream: those that came last."""

PAUSE: Final = 1000
"""Heads for which nothing is learnt after an expression was made in vain, or in place of another: it costs as much as
some hundred heads."""

# RFC 9110 §5.5: visible characters and obs-text, white space only between them.
_VALUE = rb"([!-~\x80-\xff][\t -~\x80-\xff]*+)(?<![\t ])"
_DIGITS = rb"(0|[1-9][0-9]{0,17})"
_FRAMING = (b"connection", b"transfer-encoding")


class _Values:
    """The values of a head that was taken apart, by lower-case name; of a repeated field the last. A ``Mapping``."""

    __slots__ = ("_found", "_groups")

    def __init__(self, found: re.Match[bytes], groups: dict[bytes, int]) -> None:
        self._found = found
        self._groups = groups

    def __getitem__(self, name: bytes) -> bytes:
        return self._found[self._groups[name]]

    def get(self, name: bytes, default: Any = None) -> Any:
        """See ``Mapping``."""
        group = self._groups.get(name)
        return default if group is None else self._found[group]

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def keys(self) -> KeysView[bytes]:
        """See ``Mapping``."""
        return self._groups.keys()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


class _ShapedHead(ResponseHead):
    """A head of a known shape. Its fields are cut out when somebody asks for them."""

    __slots__ = ("_found", "_shape")

    def __init__(self, shape: _Shape, found: re.Match[bytes]) -> None:
        self._shape = shape
        self._found = found
        self._pairs = []
        self.located = False  # no shape is made of such heads
        self.by_name = cast("MutableMapping[bytes, bytes]", _Values(found, shape.groups))

    @property
    def pairs(self) -> list[Pair]:
        """The fields in order."""
        if not self._pairs:
            shape, found = self._shape, self._found
            self._pairs = [(name, found[group]) for name, group in zip(shape.names, shape.places, strict=True)]
        return self._pairs

    def onward(self) -> bytes:
        """See :meth:`flowstack.http.headers.ReceivedHeaders.onward`."""
        runs = self._shape.runs
        if self._pairs:  # perhaps they were changed
            return super().onward()
        return self._found[runs[0]] if len(runs) == 1 else b"".join([self._found[run] for run in runs])


class _Shape:
    """A status line, and names in their order: what heads have in common that differ in their values only.

    :ivar match: matches a whole head of this shape.
    :ivar names: of the fields, in order.
    :ivar places: their values' groups in a match.
    :ivar groups: the same by lower-case name.
    :ivar runs: groups of lines that follow each other and go back to the client.
    """

    __slots__ = ("_chunked", "_keep_alive", "_length", "_minor", "_place", "_reason", "_repeated", "_status", "groups",
                 "match", "names", "places", "runs")  # fmt: skip

    def __init__(self, data: bytes, example: ResponseHead) -> None:
        self._status, self._reason, self._minor = example.status, example.reason, example.minor
        self._keep_alive, self._repeated = example.keep_alive, example.repeated
        self._chunked, self._length = example.chunked, example.length
        self.names = [name for name, _ in example.pairs]
        self.places: list[int] = []
        self.groups: dict[bytes, int] = {}
        self.runs: list[int] = []
        kept = {name for name, _ in response_pairs(example)}
        pattern, number, running = [re.escape(data[: data.index(b"\r\n")])], 0, False
        for pair in example.pairs:
            name, lower = pair[0], pair[0].lower()
            if running != (name in kept):
                running = not running
                pattern.append(b"(" if running else b")")
                if running:
                    number += 1
                    self.runs.append(number)
            number += 1
            self.places.append(number)
            self.groups[lower] = number
            if lower in _FRAMING:  # another value may end the body, or the connection, elsewhere
                value = b"(%b)" % re.escape(pair[1])
            else:
                value = _DIGITS if lower == b"content-length" else _VALUE
            pattern.append(b"\r\n%b: %b" % (re.escape(name), value))
        pattern.append(b")\r\n\r\n" if running else b"\r\n\r\n")
        self.match = re.compile(b"".join(pattern)).fullmatch
        self._place = self.groups.get(b"content-length")

    def head(self, found: re.Match[bytes]) -> ResponseHead:
        """The head that was matched."""
        head = _ShapedHead(self, found)
        head.status, head.reason, head.minor = self._status, self._reason, self._minor
        head.keep_alive, head.repeated = self._keep_alive, self._repeated
        head.chunked = self._chunked
        head.length = self._length if self._place is None else int(found[self._place])
        return head


class ResponseHeads:
    """Reads the heads of one upstream's responses.

    Those to the same operation have the same fields in the same order, with other values. The third such head and those
    after it are taken apart by one regular expression, made of the second, that matches nothing but what llhttp takes.
    """

    __slots__ = ("_pause", "_seen", "_shapes")

    def __init__(self) -> None:
        self._shapes: list[_Shape] = []  # the one that was met last comes first
        self._seen: deque[tuple[bytes, ...]] = deque(maxlen=MAX_SHAPES)  # names that came once
        self._pause = 0

    def read(self, data: bytes, method: bytes) -> ResponseHead:
        """Read a whole head. Raises what :func:`parse_response` does."""
        if method == b"HEAD":
            return parse_response(data, method)
        shapes = self._shapes
        for shape in shapes:
            found = shape.match(data)
            if found is not None:
                if shape is not shapes[0]:
                    shapes.remove(shape)
                    shapes.insert(0, shape)
                return shape.head(found)
        head = parse_response(data, method)
        if self._pause:
            self._pause -= 1
        elif len(data) <= MAX_BYTES and head.status >= 200 and head.status not in (204, 304) and not head.located:
            self._learn(data, head)
        return head

    def _learn(self, data: bytes, head: ResponseHead) -> None:
        """Make a shape of a head whose names came before."""
        names = tuple([name for name, _ in head.pairs])
        if names not in self._seen:
            self._seen.append(names)
            return
        self._seen.remove(names)
        shape = _Shape(data, head)
        sound = shape.match(data) is not None  # else it is written in another way than "Name: value"
        full = len(self._shapes) >= MAX_SHAPES
        if sound:
            del self._shapes[MAX_SHAPES - 1 :]
            self._shapes.insert(0, shape)
        if full or not sound:
            self._pause = PAUSE
