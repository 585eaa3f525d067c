"""Taking out of a stream what is in it only because Flowstack asked for its usage.

Where ``stream_options.include_usage`` is true, OpenAI's chat and completions streams have one chunk more, with no
choice and the usage, and a ``usage`` of null in all others (OpenAI reference, chat, ``stream_options``). A client that
did not ask gets neither.

A chunk with choices *and* usage passes as it came: those are of providers that send it always, so the client would
have had it without Flowstack's asking too. So does whatever is not understood.
"""

from __future__ import annotations

import re
from typing import Final

from flowstack.policy.usage.members import Members, Names

MOST_EVENT: Final = 1024 * 1024
"""Bytes of one event; a longer one passes unread."""

_NAMES = Names.of(("usage", "choices"))
_CR = ord("\r")  # "in" with bytes costs ten times as much: it tries them as a number first, which raises
_LINE_END = rb"(?>\r\n|[\r\n])"

# Of CRLF the LF is enough to go by; a CR before a line end that is no LF is one itself.
_blank_line = re.compile(rb"\n(?:\r\n?|\n)|\r\r\n?").search
_data = re.compile(rb"(?:\A|(?<=[\r\n]))data:[ ]?([^\r\n]*)").finditer
_comments = re.compile(rb"(?:(?::[^\r\n]*)?" + _LINE_END + rb")*").fullmatch
_NULL_AT_END = b',"usage":null}\n\n'
# What follows has no other bracket than the one that closes the chunk: so it is the chunk's own member.
_null = re.compile(rb', ?"usage": ?null((?:, ?"[^"\\]*": ?(?:"[^"\\]*"|null|[0-9]+))*\}\n\n)').fullmatch


class UsageChunkFilter:
    """Filters an answer that is a stream of server-sent events, in identity coding.

    Bytes of events that are whole pass at once; those of others are held until their blank line comes, or until there
    are more than :data:`MOST_EVENT` of them.

    :ivar removed: whether the usage chunk came, and was taken out.
    """

    __slots__ = ("_after_cr", "_dropped", "_held", "_long", "_looked", "removed")

    def __init__(self) -> None:
        self._held = bytearray()
        self._looked = 0  # of what is held, how much is known to have no blank line
        self._long = False  # within an event that is too long
        self._after_cr = False  # what went last was an event whose blank line a LF may yet belong to
        self._dropped = False  # that event was taken out
        self.removed = False

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; return what the client gets of it now."""
        if not self._held and not self._long and piece.endswith(b"\n\n") and _CR not in piece and not self._after_cr:
            if piece.rfind(b'"usage"') < 0:
                return piece
            if piece.find(b"\n") == len(piece) - 2:
                return self._event(piece)
            events = piece.split(b"\n\n")
            if not events.pop():
                return b"".join([self._event(event + b"\n\n") for event in events])
        return self._slowly(piece)

    def finish(self) -> bytes:
        """The stream has ended: what is left of it, as it came."""
        left = bytes(self._held)
        self._held.clear()
        return left

    def _slowly(self, piece: bytes) -> bytes:
        out: list[bytes] = []
        held = self._held
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == 0x0A:
                piece = piece[1:]
                if not self._dropped:
                    out.append(b"\n")
        held += piece
        while (end := self._event_end()) >= 0:
            event = bytes(held[:end])
            del held[:end]
            self._looked = 0
            self._dropped = False
            out.append(event if self._long else self._event(event))
            self._long = False
            self._after_cr = not held and event.endswith(b"\r")
        if self._long or len(held) > MOST_EVENT:
            self._long = True
            out.append(bytes(held[:-2]))  # a line end stays, for it may turn out to be the first of two
            del held[:-2]
        self._looked = max(0, len(held) - 2)
        return b"".join(out)

    def _event_end(self) -> int:
        """The offset after the first blank line of what is held, or -1."""
        if b"\r" in self._held:
            found = _blank_line(self._held, self._looked)
            return -1 if found is None else found.end()
        at = self._held.find(b"\n\n", self._looked)
        return at if at < 0 else at + 2

    def _event(self, event: bytes) -> bytes:
        """What the client gets of a whole event."""
        at = event.rfind(b'"usage"')
        if at < 0 or len(event) > MOST_EVENT:
            return event
        if event.startswith(b"data: {") and event.find(b"\n") == len(event) - 2 and _CR not in event:
            if event.endswith(_NULL_AT_END):
                return event[: -len(_NULL_AT_END)] + b"}\n\n"
            if found := _null(event, event.rfind(b",", 0, at)):
                return event[: found.start()] + found[1]
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
        if usage is None:
            name_at, _, value_end = chunk.spans["usage"]
            return _without(event, begin + name_at, begin + value_end)
        if type(usage) is dict and chunk.values.get("choices") == []:
            self.removed = self._dropped = True
            before = event[: data[0].start()]
            return before if _comments(before) else b""
        return event


def _without(event: bytes, begin: int, end: int) -> bytes:
    """The event without the member that lies there, and without the comma that was its."""
    before = event[:begin].rstrip()
    if before.endswith(b","):
        return before[:-1] + event[end:]
    after = event[end:].lstrip(b" \t")
    return event[:begin] + (after[1:].lstrip(b" \t") if after.startswith(b",") else event[end:])
