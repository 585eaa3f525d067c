"""The frames of a WebSocket (RFC 6455 §5 to §8), read as they pass. Pure: bytes in, parts out.

A part has the bytes as they came, to be sent on, and the same part's payload unmasked, to be read. Nothing of a data
frame is held but its header: a large message passes in pieces, and what breaks the RFC is found before it goes on.
"""

from __future__ import annotations

from base64 import b64encode
from codecs import utf_8_decode
from hashlib import sha1
from typing import Final

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

PROTOCOL_ERROR: Final = 1002
NOT_UTF_8: Final = 1007
TOO_LARGE: Final = 1009

NO_CODE: Final = 1005
"""What a Close frame without a payload means; never sent (RFC 6455 §7.1.5)."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_CONTROL: Final = 125
_MAX_REASON: Final = _MAX_CONTROL - 2

# The flags of a header's two first bytes.
_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80

_LARGE: Final = 8192
_XOR: Final = [bytes([byte ^ key for byte in range(256)]) for key in range(256)]


def _xored(data: bytes, mask: bytes) -> bytes:
    """A payload without its mask, or with it (RFC 6455 §5.3)."""
    size = len(data)
    if size < _LARGE:
        key = mask * (size >> 2) + mask[: size & 3]
        return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
    # Less than half the time of the above for 64 KiB.
    result = bytearray(data)
    for start in range(4):
        result[start::4] = data[start::4].translate(_XOR[mask[start]])
    return bytes(result)


class Violation(Exception):
    """What breaks the RFC.

    :ivar code: the code to close with: 1002, 1007 or 1009.
    :ivar message: a sentence for a log or the reason of a Close frame: at most 123 bytes, none of them the sender's.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Part:
    """A frame, or as much of it as one read brought. Control frames come whole.

    :ivar opcode: the message's, ``TEXT`` or ``BINARY``, also in continuation frames; or the control frame's.
    :ivar raw: the bytes as they came; the first part of a frame has its header.
    :ivar payload: those of them that are payload, unmasked.
    :ivar begins: whether this is the first part of a message, or a control frame.
    :ivar frame_ends: whether this is the last part of a frame; then frames of one's own may follow.
    :ivar ends: whether this is the last part of a message, or a control frame.
    """

    __slots__ = ("begins", "ends", "frame_ends", "opcode", "payload", "raw")

    def __init__(self, opcode: int, raw: bytes, payload: bytes, begins: bool, frame_ends: bool, ends: bool) -> None:
        self.opcode = opcode
        self.raw = raw
        self.payload = payload
        self.begins = begins
        self.frame_ends = frame_ends
        self.ends = ends


class FrameReader:
    """Reads what one side sends.

    :param masked: whether it is the client, whose frames must be masked; a server's must not.
    :param max_message: bytes of payload of a message, all its frames together.
    :ivar violation: what was found to break the RFC; nothing is read after it.
    :ivar closed: whether a Close frame came; what follows it is dropped (RFC 6455 §1.4, §5.5.1).
    """

    __slots__ = (
        "_final", "_held", "_left", "_mask", "_masked", "_max_message", "_opcode", "_rest", "_size", "closed",
        "violation",
    )  # fmt: skip

    def __init__(self, masked: bool, max_message: int) -> None:
        self.violation: Violation | None = None
        self.closed = False
        self._masked = masked
        self._max_message = max_message
        self._held = b""  # a header or a control frame that is not whole
        self._left = 0  # bytes of the data frame's payload still to come
        self._mask = b""  # turned so that it begins at the next byte of payload; empty: none
        self._final = False  # the data frame is its message's last
        self._opcode = CONTINUATION  # the message's; CONTINUATION: between messages
        self._size = 0  # bytes of the message's frames so far, the one that is being read counted whole
        self._rest = b""  # of a text, the bytes of a character that is not whole

    @property
    def between(self) -> bool:
        """Whether no frame is half read, so that one's own may be put in."""
        return not self._left and not self._held

    def whole(self, data: bytes) -> bytes | None:
        """The payload, if the bytes from the connection are one whole message in ASCII, as most are, and no more; it is
        read then, and costs a third of what :meth:`feed` does. Otherwise None, and nothing is.
        """
        length = len(data)
        if length < 8 or data[0] != 0x81 or self._opcode or self._held or self.closed or self.violation is not None:
            return None
        size = data[1]
        if self._masked:
            size -= _MASKED
            start = 6
        else:
            start = 2
        if size == 126:
            size = data[2] << 8 | data[3]
            if size < 126:
                return None
            start += 2
        # A size of 127 or more, or below 0, is that of a longer frame, or has the wrong side's bit.
        elif size >= 127 or size < 0:
            return None
        if start + size != length or size > self._max_message:
            return None
        payload = data[start:]
        if self._masked:
            payload = _xored(payload, data[start - 4 : start])
        return payload if payload.isascii() else None

    def feed(self, data: bytes) -> list[Part]:
        """Take bytes from the connection.

        :return: all that may be sent on. If this finds a violation, the parts before it.
        """
        parts: list[Part] = []
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)
        try:
            while at < end and not self.closed and self.violation is None:
                at = self._go_on(data, at, end, parts) if self._left else self._begin(data, at, end, parts)
        except Violation as violation:
            violation.__context__ = violation.__traceback__ = None  # they keep what was read here
            self.violation = violation
        return parts

    # Each of these takes the data and an offset in it, and returns the offset of what it left.

    def _begin(self, data: bytes, at: int, end: int, parts: list[Part]) -> int:
        """Take a header, and what is there of its payload."""
        payload = at + 2
        if payload > end:
            return self._hold(data, at, end)
        first, second = data[at], data[at + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if first & _RESERVED:
            raise Violation(PROTOCOL_ERROR, "A frame has a reserved bit set, but no extension is in use.")
        if (second >= _MASKED) != self._masked:
            raise Violation(
                PROTOCOL_ERROR, "A client's frame is not masked." if self._masked else "A server's frame is masked."
            )
        if opcode > BINARY:
            if opcode > PONG or opcode < CLOSE:
                raise Violation(PROTOCOL_ERROR, f"A frame has the opcode {opcode}, which is reserved.")
            if first < _FINAL:
                raise Violation(PROTOCOL_ERROR, "A control frame is fragmented.")
            if length > _MAX_CONTROL:
                raise Violation(PROTOCOL_ERROR, "A control frame has more than 125 bytes of payload.")
        elif opcode == CONTINUATION:
            if self._opcode == CONTINUATION:
                raise Violation(PROTOCOL_ERROR, "A continuation frame continues no message.")
        elif self._opcode != CONTINUATION:
            raise Violation(PROTOCOL_ERROR, "A message begins before the last fragment of the one before it.")
        if length > _MAX_CONTROL:
            start = payload
            payload += 2 if length == 126 else 8
            if payload > end:
                return self._hold(data, at, end)
            length = int.from_bytes(data[start:payload], "big")
            if length < (126 if payload == start + 2 else 0x10000):
                raise Violation(PROTOCOL_ERROR, "A frame's length is not written in the shortest form.")
            if length >= 1 << 63:
                raise Violation(PROTOCOL_ERROR, "A frame's length has its highest bit set.")
        if opcode <= BINARY and length > self._max_message - self._size:
            raise Violation(TOO_LARGE, f"A message is larger than {self._max_message} bytes.")
        mask = b""
        if self._masked:
            start, payload = payload, payload + 4
            if payload > end:
                return self._hold(data, at, end)
            mask = data[start:payload]
        if opcode > BINARY:
            stop = payload + length
            if stop > end:
                return self._hold(data, at, end)
            content = data[payload:stop]
            if mask:
                content = _xored(content, mask)
            if opcode == CLOSE:
                close_code(content)
                self.closed = True
            parts.append(Part(opcode, data[at:stop], content, True, True, True))
            return stop
        if opcode != CONTINUATION:
            self._opcode = opcode
        self._size += length
        self._final = first >= _FINAL
        self._mask = mask
        return self._take(data, at, payload, min(payload + length, end), length, opcode != CONTINUATION, parts)

    def _go_on(self, data: bytes, at: int, end: int, parts: list[Part]) -> int:
        """Take more of a data frame's payload."""
        return self._take(data, at, at, min(at + self._left, end), self._left, False, parts)

    def _take(self, data: bytes, at: int, payload: int, stop: int, length: int, begins: bool, parts: list[Part]) -> int:
        """Take a part of a data frame: from the first offset to ``stop``, and of it the payload from the second one on.

        :param length: the bytes of payload from there to the frame's end.
        """
        raw = data[at:stop] if at or stop < len(data) else data
        content = data[payload:stop] if payload > at else raw
        mask = self._mask
        if mask:
            content = _xored(content, mask)
        left = length - (stop - payload)
        frame_ends = not left
        ends = frame_ends and self._final
        if self._opcode == TEXT and (self._rest or not content.isascii()):
            self._check_text(content, ends)
        self._left = left  # not before the check, as what it refuses is not given out
        parts.append(Part(self._opcode, raw, content, begins, frame_ends, ends))
        if ends:
            self._opcode = CONTINUATION
            self._size = 0
        elif mask and not frame_ends:
            turned = (stop - payload) & 3
            self._mask = mask[turned:] + mask[:turned]
        return stop

    def _check_text(self, content: bytes, ends: bool) -> None:
        """Check that a text goes on in UTF-8 (RFC 6455 §8.1), and ends with a whole character."""
        text = self._rest + content
        try:
            rest = text[utf_8_decode(text, "strict", ends)[1] :]
        except UnicodeDecodeError:
            raise Violation(NOT_UTF_8, "A text message is not in UTF-8.") from None
        # Of a surrogate, which UTF-8 has not, the decoder would wait for the third byte.
        if b"\xed\xa0" <= rest < b"\xee":
            raise Violation(NOT_UTF_8, "A text message is not in UTF-8.")
        self._rest = rest

    def _hold(self, data: bytes, at: int, end: int) -> int:
        self._held = data[at:]
        return end


def close_code(payload: bytes) -> tuple[int, str]:
    """The code and the reason that a Close frame's payload says (RFC 6455 §5.5.1 and §7.4); 1005 where it says none.

    :raises Violation: they may not be sent.
    """
    if not payload:
        return NO_CODE, ""
    if len(payload) == 1:
        raise Violation(PROTOCOL_ERROR, "A Close frame has one byte of payload, which is half a code.")
    code = int.from_bytes(payload[:2], "big")
    # 1004 is reserved, 1005, 1006 and 1015 are for what was not sent, and 1007 to 1014 are in IANA's registry.
    if not (3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014):
        raise Violation(PROTOCOL_ERROR, f"A Close frame has the code {code}, which may not be sent.")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(NOT_UTF_8, "The reason in a Close frame is not in UTF-8.") from None


def close_payload(code: int, reason: str = "") -> bytes:
    """The payload of a Close frame: the opposite of :func:`close_code`.

    :param reason: cut after the last character that ends within 123 bytes.
    """
    if code == NO_CODE:
        return b""
    said = reason.encode("utf-8", "replace")[:_MAX_REASON]
    return code.to_bytes(2, "big") + said.decode("utf-8", "ignore").encode()


def frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """A message or a control frame, in one frame.

    :param mask: four random bytes, which a client's frame must have, and a server's must not.
    """
    size = len(payload)
    flag = 0 if mask is None else _MASKED
    if size <= 125:
        head = bytes((_FINAL | opcode, flag | size))
    elif size < 0x10000:
        head = bytes((_FINAL | opcode, flag | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, flag | 127)) + size.to_bytes(8, "big")
    return head + payload if mask is None else b"".join((head, mask, _xored(payload, mask)))


def accept_of(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that answers a ``Sec-WebSocket-Key`` (RFC 6455 §4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
