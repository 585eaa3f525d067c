"""Asking for usage in the client's place, and withholding a body's end until it is known what the body asks for.

OpenAI's chat completions and completions tell a stream's usage only where ``stream_options.include_usage`` is true
(OpenAI reference, chat, ``stream_options``). A client that does not mention it is not against it. One that says false,
or anything else, has decided, and is left alone; unless its key pays by what it uses: then usage is asked for all the
same.
"""

from __future__ import annotations

from flowstack.usage.members import Members, Names, hides_names
from flowstack.usage.request_facts import BodyReader, JsonReader, RequestFacts

OPTIONS = b'"stream_options":{"include_usage":true}'
"""The member that is added; :data:`ADDED` bytes with its comma."""

ADDED = len(OPTIONS) + 1
"""The most by which a body grows: what is added within ``stream_options`` is shorter."""

FILLING = b" " * ADDED
"""White space that takes its place behind an object of which the length was announced before its end was read."""

_NAMES = Names.of(("stream_options",))
_INCLUDE_NAMES = Names.of(("include_usage",))
_INCLUDE = b'"include_usage":true'


def with_usage(body: bytes, asked: RequestFacts, overrule: bool = False) -> bytes:
    """A whole JSON body of a streaming chat or completions request that asks for usage too.

    All else stays byte for byte. The very same body comes back where nothing is to be changed: usage is asked for
    already, the client has decided otherwise, streams nothing, or sent what cannot be relied on.

    :param asked: what :func:`~flowstack.usage.request_facts.read_request_facts` found in this body.
    :param overrule: whether the client's false counts for nothing.
    """
    if not wants_usage(asked, overrule) or asked.fault is not None or asked.vague is not None or asked.repeated:
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
    _, begin, end = span
    options = _asking(body[begin:end], overrule)
    return body if options is None else body[:begin] + options + body[end:]


def wants_usage(asked: RequestFacts, overrule: bool) -> bool:
    """Whether usage is to be asked for in the client's place.

    :param overrule: whether the client's false counts for nothing.
    """
    return asked.stream and (asked.include_usage is None or (overrule and asked.include_usage is False))


def _before(body: bytes, at: int, added: bytes) -> bytes:
    return body[:at] + added + body[at:]


def _asking(options: bytes, overrule: bool) -> bytes | None:
    """A value of ``stream_options`` that asks for usage, made of another; None where that one does, or must stay."""
    if options == b"null":
        return b"{" + _INCLUDE + b"}"
    members = Members(_INCLUDE_NAMES)
    members.feed(options)
    members.finish()
    if members.fault is not None or members.repeated:
        return None
    span = members.spans.get("include_usage")
    if span is None:
        return _before(options, len(options) - 1, b"," + _INCLUDE if options[1:-1].strip() else _INCLUDE)
    include = members.values.get("include_usage")
    if overrule and (include is None or include is False):
        _, begin, end = span
        return options[:begin] + b"true".ljust(end - begin) + options[end:]
    return None


def _streams_before(members: Members, at: int) -> bool:
    """Whether what stands before this offset says that the answer is to be streamed."""
    span = members.spans.get("stream")
    return span is not None and span[0] < at and members.values.get("stream") is True


class Gate:
    """Lets a body through but for its end, which waits until the caller knows whether it may go at all.

    Of JSON the object's closing brace and what follows it are withheld; of a form its last delimiter. An upstream that
    has less than that has no request. It holds a copy of that end and nothing else: at most 64 KiB, as more is a fault.
    After a fault the last byte that came is withheld: whether anything may go at all is then for the caller to say.

    :param reader: of :func:`~flowstack.usage.request_facts.reader_for`.
    :param overrule: whether usage is asked for also where the body has ``stream_options`` and does not ask: they then
        wait until all of them has come, of which 64 KiB are held too. Null becomes true, and so does false, whether
        anything is streamed or not; a member is added only where it was said before that something is.
    :ivar passed: bytes that were let through, of those that came.
    :ivar grown: by how much more went.
    :ivar asks: whether ``stream_options`` went otherwise than it came.
    """

    __slots__ = ("_asked", "_held", "_reader", "_waits", "asks", "grown", "passed")

    def __init__(self, reader: BodyReader, overrule: bool = False) -> None:
        self._reader = reader
        self._held = bytearray()
        self._asked: RequestFacts | None = None
        self._waits = reader.members if overrule and isinstance(reader, JsonReader) else None
        self.passed = 0
        self.grown = 0
        self.asks = False

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what may go on now."""
        reader = self._reader
        reader.feed(piece)
        if self._waits is not None and (span := self._waits.spans.get("stream_options")) is not None:
            return self._options(self._waits, piece, span)
        return self._pass(piece, reader.pending)

    def _pass(self, piece: bytes, until: int) -> bytes:
        held = self._held
        going = max(0, until - self.passed)
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

    def _options(self, members: Members, piece: bytes, span: tuple[int, int, int]) -> bytes:
        """``stream_options`` has begun to come, and nothing of it has gone."""
        _, begin, end = span
        pending = self._reader.pending
        if members.fault is not None or "stream_options" in members.too_large:
            self._waits = None
            return self._pass(piece, pending)
        before = self._pass(piece, min(begin, pending))
        if end < 0 or pending < end:
            return before
        self._waits = None
        held = bytes(self._held)
        came = end - begin
        options = _asking(held[:came], True)
        if options is not None and len(options) > came and not _streams_before(members, begin):
            options = None
        going = self._pass(b"", pending)
        if options is None:
            return before + going
        self.asks = True
        self.grown = len(options) - came
        return before + options + going[came:]

    def so_far(self) -> RequestFacts:
        """What the body asks for, as far as it came."""
        return self._reader.so_far()

    def finish(self) -> RequestFacts:
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
