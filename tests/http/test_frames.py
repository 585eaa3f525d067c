"""Frames of a WebSocket are passed on as they came, and read as RFC 6455 says, however the bytes are cut."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from flowstack.http.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameReader,
    accept_of,
    close_payload,
    frame,
)

MASK = b"\x37\xfa\x21\x3d"
Said = tuple[int, bytes]
"""A message or a control frame: opcode and payload."""


def wire(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = None, rsv: int = 0, form: int = 0
) -> bytes:
    """A frame, also one that breaks the rules; ``form`` is how many bytes its length has, 0 for as few as can be."""
    form = form or (1 if len(payload) < 126 else 2 if len(payload) < 65536 else 8)
    bit = 0 if mask is None else 128
    head = struct.pack(
        {1: ">BB", 2: ">BBH", 8: ">BBQ"}[form],
        fin << 7 | rsv << 4 | opcode,
        *((bit | len(payload),) if form == 1 else (bit | {2: 126, 8: 127}[form], len(payload))),
    )
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Reading:
    """A reader, what came out of it, and what is true of any parts."""

    def __init__(self, masked: bool = False, limit: int = 1 << 20) -> None:
        self.reader = FrameReader(masked, limit)
        self.raw: list[bytes] = []
        self.said: list[Said] = []
        self._message: tuple[int, list[bytes]] | None = None
        self._in_frame = False

    def feed(self, *pieces: bytes) -> Reading:
        for piece in pieces:
            ended = self.reader.closed or self.reader.violation is not None
            parts = self.reader.feed(piece)
            assert not (ended and parts)
            for part in parts:
                self.raw.append(part.raw)
                assert part.raw
                if part.opcode in (CLOSE, PING, PONG):
                    assert not self._in_frame
                    assert (part.begins, part.frame_ends, part.ends) == (True, True, True)
                    self.said.append((part.opcode, part.payload))
                    continue
                assert part.begins is (self._message is None)
                assert part.frame_ends or not part.ends
                if self._message is None:
                    self._message = (part.opcode, [])
                opcode, payloads = self._message
                assert part.opcode == opcode
                payloads.append(part.payload)
                self._in_frame = not part.frame_ends
                if part.ends:
                    self.said.append((opcode, b"".join(payloads)))
                    self._message = None
            assert not (self.reader.between and self._in_frame)
        return self

    @property
    def code(self) -> int | None:
        return None if self.reader.violation is None else self.reader.violation.code

    @property
    def outcome(self) -> tuple[list[Said], int | None, bool]:
        return self.said, self.code, self.reader.closed


def bytewise(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


# What breaks a rule, by the section that has it: frames of a server, or of a client where they are masked.
BROKEN = {
    "5.1 a client's frame is not masked": (True, wire(TEXT, b"a"), 1002),
    "5.1 a server's frame is masked": (False, wire(TEXT, b"a", mask=MASK), 1002),
    "5.1 a client's ping is not masked": (True, wire(PING), 1002),
    "5.2 RSV1 is set": (False, wire(TEXT, b"a", rsv=4), 1002),
    "5.2 RSV2 is set": (False, wire(BINARY, b"a", rsv=2), 1002),
    "5.2 RSV3 is set": (True, wire(PING, b"a", rsv=1, mask=MASK), 1002),
    "5.2 RSV1 is set in a continuation": (False, wire(TEXT, fin=False) + wire(CONTINUATION, rsv=4), 1002),
    **{f"5.2 opcode {opcode}": (False, wire(opcode, b"a"), 1002) for opcode in (*range(3, 8), *range(11, 16))},
    "5.2 a length below 126 in two bytes": (False, wire(TEXT, b"a" * 125, form=2), 1002),
    "5.2 a length below 126 in eight bytes": (False, wire(TEXT, b"a" * 125, form=8), 1002),
    "5.2 a length below 65536 in eight bytes": (True, wire(BINARY, b"a" * 65535, form=8, mask=MASK), 1002),
    "5.2 no length in two bytes": (False, wire(CONTINUATION, form=2), 1002),
    "5.2 a length with its highest bit set": (False, b"\x82\x7f\x80" + bytes(7), 1002),
    "5.2 a length of nothing but ones": (False, b"\x82\x7f" + b"\xff" * 8, 1002),
    "5.4 a continuation of nothing": (False, wire(CONTINUATION, b"a"), 1002),
    "5.4 a first fragment of nothing": (False, wire(CONTINUATION, b"a", fin=False), 1002),
    "5.4 a continuation after a whole message": (False, wire(TEXT, b"a") + wire(CONTINUATION, b"a"), 1002),
    "5.4 a continuation after the last one": (
        True,
        wire(TEXT, b"a", fin=False, mask=MASK) + wire(CONTINUATION, mask=MASK) + wire(CONTINUATION, mask=MASK),
        1002,
    ),
    "5.4 a text inside a text": (False, wire(TEXT, b"a", fin=False) + wire(TEXT, b"b"), 1002),
    "5.4 a binary inside a text": (False, wire(TEXT, b"a", fin=False) + wire(BINARY, b"b", fin=False), 1002),
    "5.5 a ping of 126 bytes": (False, wire(PING, b"a" * 126), 1002),
    "5.5 a pong of 65536 bytes": (False, wire(PONG, b"a" * 65536), 1002),
    "5.5 a close of 126 bytes": (True, wire(CLOSE, b"\x03\xe8" + b"a" * 124, mask=MASK), 1002),
    "5.5 a ping's length in two bytes": (False, wire(PING, b"a", form=2), 1002),
    "5.5 a fragmented ping": (False, wire(PING, b"a", fin=False), 1002),
    "5.5 a fragmented pong": (False, wire(PONG, fin=False), 1002),
    "5.5 a fragmented close": (False, wire(CLOSE, fin=False), 1002),
    "5.5.1 a close of one byte": (False, wire(CLOSE, b"\x03"), 1002),
    "7.1.6 a close reason that is not UTF-8": (False, wire(CLOSE, b"\x03\xe8\xff"), 1007),
    "7.1.6 a close reason that ends within a character": (True, wire(CLOSE, b"\x03\xe8\xc3", mask=MASK), 1007),
    **{
        f"7.4 a close with code {code}": (False, wire(CLOSE, struct.pack(">H", code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 9999, 65535)
    },
    "8.1 a text that is not UTF-8": (False, wire(TEXT, b"a\xff"), 1007),
    "8.1 a text that ends within a character": (False, wire(TEXT, b"a\xc3"), 1007),
    "8.1 a text whose last fragment ends within a character": (
        False, wire(TEXT, b"\xe2\x82", fin=False) + wire(CONTINUATION), 1007,
    ),
    "8.1 a text whose character ends in the next message": (False, wire(TEXT, b"\xc3") + wire(TEXT, b"\xa9"), 1007),
    "10.4 a message above the limit": (False, wire(BINARY, b"a" * (1 << 20) + b"a"), 1009),
    "10.4 a message above the limit, in fragments": (
        False, wire(TEXT, b"a" * (1 << 20), fin=False) + wire(CONTINUATION, b"a"), 1009,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("masked", "bad", "code"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_rfc_ends_the_reading(masked: bool, bad: bytes, code: int) -> None:
    before = wire(PING, b"before", mask=MASK if masked else None)
    reading = Reading(masked).feed(before + bad + before)
    assert reading.code == code
    assert reading.said[0] == (PING, b"before")
    assert (before + bad).startswith(b"".join(reading.raw))
    assert not reading.reader.closed
    violation = reading.reader.violation
    assert violation is not None
    assert str(violation) == violation.message
    assert len(close_payload(code, violation.message)) == 2 + len(violation.message.encode())
    assert Reading(masked).feed(before + bad, b"").feed(before).said == reading.said


@pytest.mark.parametrize("mask", [None, MASK], ids=["server", "client"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_any_size_comes_whole_and_unmasked(opcode: int, size: int, mask: bytes | None) -> None:
    payload = bytes(at % 127 for at in range(size))
    sent = wire(opcode, payload, mask=mask)
    reader = FrameReader(mask is not None, 1 << 20)
    (part,) = reader.feed(sent)
    assert (part.opcode, part.raw, part.payload) == (opcode, sent, payload)
    assert (part.begins, part.frame_ends, part.ends, reader.between) == (True, True, True, True)
    assert frame(opcode, payload, mask) == sent


def test_the_answer_to_a_key_is_that_of_the_rfc() -> None:
    assert accept_of(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3
