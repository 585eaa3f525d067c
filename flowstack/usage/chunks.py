"""Remove from a stream what is in it only because Flowstack asked for its usage.

Where ``stream_options.include_usage`` is true, OpenAI's chat and completions streams have one chunk more, with no
choice and the usage, and a ``usage`` of null in all others (OpenAI reference, chat, ``stream_options``). A client that
did not ask gets neither.

A chunk with choices *and* usage passes as it came: those are of providers that send it always, so the client would
have had it without Flowstack's asking too. Where the usage chunk says something else too, as some providers' do, its
``usage`` alone is taken out. Whatever is not understood passes as well.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from flowstack.http.sse import LINE_END, after_blank, blank_line
from flowstack.usage.members import Members, Names
from flowstack.usage.streams import brackets_and_quotes

MAX_EVENT: Final = 256 * 1024
"""Bytes of one event; a longer one passes unread."""

MAX_WORK: Final = 4096
"""Steps (:class:`flowstack.usage.turns.Meter`) that are taken over the events of one piece; what comes after
these in it passes as it is. The usual events take none."""

_EVENT_WORK: Final = 8
"""Steps for any event, added to those for its content."""

_NAMES: Final = Names.of(("usage", "choices"))
_OF_USAGE_CHUNK: Final = frozenset((
    "id", "object", "created", "model", "system_fingerprint", "service_tier", "choices", "usage", "obfuscation",
))  # fmt: skip
"""Members of OpenAI's usage chunk (OpenAI reference, chat and completions, streaming)."""

_USAGE: Final = b'"usage"'
_CR: Final = ord("\r")  # "in" with bytes costs ten times as much: it tries them as a number first, which raises

_line_end = re.compile(rb"[\r\n]").search
_data = re.compile(rb"(?:\A|(?<=[\r\n]))data:[ ]?([^\r\n]*)").finditer
# HTML §9.2.6: these lines are of no event, for they act at once (retry), or not at all.
_free_lines = re.compile(rb"(?:(?!(?:data|event|id)[:\r\n]|\xef\xbb\xbf)[^\r\n]*+" + LINE_END + rb")*+").match
_NULL_AT_END: Final = b',"usage":null}\n\n'
_one_line = re.compile(rb"[^\r\n]*+[\r\n]++").fullmatch
# What follows has no other bracket than the one that closes the chunk: so it is the chunk's own member.
_null = re.compile(rb', ?"usage": ?null((?:, ?"[^"\\]*": ?(?:"[^"\\]*"|null|[0-9]+))*+\}[\r\n]++)').fullmatch


class UsageChunkFilter:
    """Filters an answer that is a stream of server-sent events, in identity coding.

    What is of no event (comments, ``retry``, blank lines) passes line by line, and events as soon as they are whole.
    The bytes of others are held until their blank line comes, or until there are more than :data:`MAX_EVENT` of them.

    :ivar removed: whether the usage chunk came, and was taken out.
    """

    __slots__ = ("_after_cr", "_dropped", "_held", "_in_event", "_long", "_looked", "_work", "removed")

    def __init__(self) -> None:
        self._held = bytearray()
        self._in_event = False  # what is held has a line of an event, and else is the beginning of a line
        self._looked = 0  # of what is held of an event, how much is known to have no blank line
        self._long = False  # within an event that is too long
        self._after_cr = False  # what went last was a line end that a LF may yet belong to
        self._dropped = False  # that line end was taken out
        self._work = 0
        self.removed = False

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what the client gets of it now."""
        self._work = 0
        if not self._held and not self._long and piece.endswith(b"\n\n") and _CR not in piece and not self._after_cr:
            if piece.rfind(_USAGE) < 0:
                return piece
            if piece.find(b"\n") == len(piece) - 2:
                return self._event(piece)
        return self._slowly(piece)

    def finish(self) -> bytes:
        """The stream has ended: what is left of it, as it came."""
        left = bytes(self._held)
        self._held.clear()
        return left

    def _slowly(self, piece: bytes) -> bytes:
        out: list[bytes] = []
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == 0x0A:
                piece = piece[1:]
                if not self._dropped:
                    out.append(b"\n")
        if self._held:
            piece = self._go_on(piece, out)
        if piece:
            self._between(piece, out)
        return b"".join(out)

    def _go_on(self, piece: bytes, out: list[bytes]) -> bytes:
        """Add to what is held; return what is to be looked at as if nothing were."""
        held = self._held
        if not self._in_event:
            held += piece
            if _line_end(piece) is not None:
                whole = bytes(held)
                held.clear()
                return whole
        else:
            held += piece
            blank = blank_line(held, self._looked)
            if blank is not None:
                event, rest = bytes(held[: blank.end()]), bytes(held[blank.end() :])
                held.clear()
                self._in_event = False
                self._dropped = False
                out.append(event if self._long else self._event(event))
                self._long = False
                self._after_cr = not rest and event.endswith(b"\r")
                return rest
        self._keep(out)
        return b""

    def _between(self, piece: bytes, out: list[bytes]) -> None:
        """Look at a piece that begins with a line, while no event is in hand."""
        at, size = 0, len(piece)
        self._dropped = False
        while (hit := piece.find(_USAGE, at)) >= 0 and self._work < MAX_WORK:
            begin = after_blank(piece, at, hit)
            blank = blank_line(piece, hit)
            if blank is None:
                break
            out.append(piece[at:begin])
            at = blank.end()
            self._work += 1
            self._dropped = False
            out.append(self._event(piece[begin:at]))
        rest = after_blank(piece, at, size)
        free = _free_lines(piece, rest)
        if free is not None:
            rest = free.end()
        if rest > at:
            out.append(piece[at:rest])
            self._dropped = False
        self._after_cr = rest == size and piece[-1] == 0x0D
        if rest < size:
            self._held += piece[rest:]
            self._in_event = _line_end(piece, rest) is not None
            self._looked = 0
            self._keep(out)

    def _keep(self, out: list[bytes]) -> None:
        """Hold what is held, unless it is too much."""
        held = self._held
        if self._long or len(held) > MAX_EVENT:
            self._long = self._in_event = True
            out.append(bytes(held[:-2]))  # a line end stays, for it may turn out to be the first of two
            del held[:-2]
        self._looked = max(0, len(held) - 2)

    def _event(self, event: bytes) -> bytes:
        """What the client gets of a whole event."""
        at = event.rfind(_USAGE)
        if at < 0 or len(event) > MAX_EVENT:
            return event
        if event.startswith(b"data: {"):
            if event.endswith(_NULL_AT_END) and event.find(b"\n") == len(event) - 2 and _CR not in event:
                return event[: -len(_NULL_AT_END)] + b"}\n\n"
            if _one_line(event) and (found := _null(event, event.rfind(b",", 0, at))):
                return event[: found.start()] + found[1]
        self._work += _EVENT_WORK + brackets_and_quotes(event)
        if self._work > MAX_WORK:
            return event
        data = list(_data(event))
        if len(data) != 1:
            return event
        begin, end = data[0].span(1)
        chunk = Members(_NAMES)
        chunk.feed(event[begin:end])
        chunk.finish()
        if chunk.fault is not None or chunk.repeated or "usage" not in chunk.values:
            return event
        usage = chunk.values["usage"]
        if usage is not None and (type(usage) is not dict or chunk.values.get("choices") != []):
            return event
        if usage is not None:
            self.removed = True
            if not _says_more(event[begin:end]):
                self._dropped = True
                free = _free_lines(event)
                return b"" if free is None else free[0]
        name_at, _, value_end = chunk.spans["usage"]
        return _without(event, begin + name_at, begin + value_end)


def _says_more(data: bytes) -> bool:
    """Whether a usage chunk has another member than those, and one that is not null or empty."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:  # half a surrogate pair
        return True
    return any(name not in _OF_USAGE_CHUNK and (value or value is False) for name, value in chunk.items())


def _without(event: bytes, begin: int, end: int) -> bytes:
    """The event without the member that lies there, and without the comma that was its."""
    before = event[:begin].rstrip()
    if before.endswith(b","):
        return before[:-1] + event[end:]
    after = event[end:].lstrip(b" \t")
    return event[:begin] + (after[1:].lstrip(b" \t") if after.startswith(b",") else event[end:])
