"""Asking for usage in the client's place, and withholding a body's end until it is known what the body asks for.

OpenAI's chat completions and completions tell a stream's usage only where ``stream_options.include_usage`` is true
(OpenAI reference, chat, ``stream_options``). A client that does not mention it is not against it; one that says false,
or anything else that is not an object without it, has decided, and is left alone.
"""

from __future__ import annotations

from flowstack.policy.usage.asked import Asked, BodyReader, JsonReader
from flowstack.policy.usage.members import Members, Names, hides_names

OPTIONS = b'"stream_options":{"include_usage":true}'
"""The member that is added; :data:`ADDED` bytes with its comma."""

ADDED = len(OPTIONS) + 1

FILLING = b" " * ADDED
"""White space that takes its place behind an object of which the length was announced before its end was read."""

_NAMES = Names.of(("stream_options",))
_INCLUDE = b'"include_usage":true'


def with_usage(body: bytes, asked: Asked) -> bytes:
    """A whole JSON body of a streaming chat or completions request that asks for usage too.

    All else stays byte for byte. The very same body comes back where nothing is to be added: the client has spoken of
    usage, streams nothing, or sent what cannot be relied on.

    :param asked: what :func:`~flowstack.policy.usage.asked.asked_of` found in this body.
    """
    if not asked.stream or asked.include_usage is not None or asked.fault is not None or asked.repeated:
        return body
    if b'"stream_options"' not in body and not hides_names(body):
        trimmed = body.rstrip()
        return _before(body, len(trimmed) - 1, b"," + OPTIONS) if trimmed.endswith(b"}") else body
    members = Members(_NAMES)
    members.feed(body)
    members.finish()
    span = members.spans.get("stream_options")
    if members.closed is None or members.fault is not None:
        return body
    if span is None:
        return _before(body, members.closed, b"," + OPTIONS)
    options = members.values.get("stream_options")
    _, begin, end = span
    if options is None and "stream_options" in members.values:
        return body[:begin] + b"{" + _INCLUDE + b"}" + body[end:]
    if type(options) is not dict or "include_usage" in options:
        return body
    return _before(body, end - 1, b"," + _INCLUDE if options else _INCLUDE)


def _before(body: bytes, at: int, added: bytes) -> bytes:
    return body[:at] + added + body[at:]


class Gate:
    """Lets a body through but for its end, which waits until the caller knows whether it may go at all.

    Of JSON the object's closing brace and what follows it are withheld; of a form its last delimiter. An upstream that
    has less than that has no request. It holds a copy of that end and nothing else: at most 64 KiB, as more is a fault.
    After a fault the last byte that came is withheld: whether anything may go at all is then for the caller to say.

    :param reader: of :func:`~flowstack.policy.usage.asked.reader_for`.
    :ivar passed: bytes that were let through.
    """

    __slots__ = ("_asked", "_held", "_reader", "passed")

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._held = bytearray()
        self._asked: Asked | None = None
        self.passed = 0

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what may go on now."""
        reader = self._reader
        reader.feed(piece)
        held = self._held
        going = max(0, reader.pending - self.passed)
        self.passed += going
        more = going - len(held)
        if more >= 0:
            passed = bytes(held) + piece[:more]
            held[:] = piece[more:]
        else:
            passed = bytes(held[:going])
            del held[:going]
            held += piece
        return passed

    def so_far(self) -> Asked:
        """What the body asks for, as far as it came."""
        return self._reader.so_far()

    def finish(self) -> Asked:
        """The body has ended: what it asks for."""
        self._asked = self._reader.finish()
        return self._asked

    @property
    def injectable(self) -> bool:
        """Whether usage can still be asked for, once the body has ended.

        That is so where :func:`with_usage` would, but not where the body has ``stream_options`` already, which may lie
        in what has gone.
        """
        asked, reader = self._asked, self._reader
        return (
            asked is not None
            and isinstance(reader, JsonReader)
            and asked.stream
            and asked.fault is None
            and not asked.repeated
            and "stream_options" not in reader.members.spans
            and reader.members.closed == self.passed
        )

    def tail(self, inject: bool = False) -> bytes:
        """What was withheld.

        :param inject: ask for usage, where that is possible: then it is :data:`ADDED` bytes longer than what came.
        """
        return b"," + OPTIONS + self._held if inject and self.injectable else bytes(self._held)
