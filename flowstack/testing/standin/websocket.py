"""One WebSocket after its handshake (RFC 6455 §5): frames on a connection, and the ways in which they go wrong.

wsproto reads, and is strict. What is written is framed here, as some of it must be wrong.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable

import orjson
from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed

from flowstack.testing.standin.connection import Connection
from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.journal import Journal, Seen
from flowstack.testing.standin.values import Said, Talk, slices

LARGEST = 32 * 1024 * 1024
"""The most bytes of a client's message; a longer one ends the connection with 1009."""

PING = b"stand-in"
"""What a Ping of the stand-in's carries."""

_PATIENCE = 10.0
"""Seconds that a peer may take to answer a Close."""


class Over(Exception):
    """The WebSocket has come to its end."""


def frame(opcode: Opcode, payload: bytes, *, last: bool = True, masked: bool = False) -> bytes:
    """One frame's bytes (RFC 6455 §5.2)."""
    size, bit = len(payload), 128 if masked else 0
    head = bytes([opcode | (128 if last else 0)])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += struct.pack(">BH", bit | 126, size)
    else:
        head += struct.pack(">BQ", bit | 127, size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    long = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload, "big") ^ int.from_bytes(long, "big")).to_bytes(size, "big")


def filler(number: int, size: int) -> bytes:
    """An event that is a message of exactly so many bytes."""
    head = b'{"type":"response.output_text.delta","sequence_number":%d,"delta":"' % number
    return head + b"x" * (size - len(head) - 2) + b'"}'


class Socket:
    """Carries a talk: says its events as text messages, gives it what comes, and answers Pings and Closes.

    One coroutine does all of it, so that what the client sent is heard before the next event is said.

    :param said: called with each event that the operating system has taken.
    """

    def __init__(
        self,
        connection: Connection,
        journal: Journal,
        seen: Seen,
        directives: Directives,
        talk: Talk,
        said: Callable[[Said], None],
    ) -> None:
        self._connection = connection
        self._journal = journal
        self._seen = seen
        self._talk = talk
        self._tell = said
        self._inbox = bytearray()
        self._reader = FrameProtocol(client=False, extensions=[])
        self._digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._size = self._frames = 0
        self._ponged = False
        self._closing = False
        self._next_at = 0.0
        limits = [n for n in (directives.cut, directives.close) if n is not None]
        self._left = min(limits) if limits else None
        self._obey(directives)

    async def run(self) -> None:
        """Talk until one side ends it; the record then says how.

        :raises Gone: where the peer left without a Close.
        """
        connection = self._connection
        self._inbox += connection.take_over(self._inbox.extend)
        self._talk.wake = connection.wake
        try:
            await self._write(b"")
            await connection.pause(self._directives.first)
            if self._directives.hang:
                await connection.forever()
            while True:
                await self._trouble()
                await self._listen()
                wait = self._next_at - connection.now()
                if wait > 0:
                    await connection.more(wait)
                elif (said := self._talk.say()) is not None:
                    await self._say(said)
                elif self._talk.over:
                    await self._close(CloseReason.NORMAL_CLOSURE, "", "closed")
                else:
                    await connection.more()
        except Over:
            return

    def _obey(self, directives: Directives) -> None:
        self._directives = directives
        self._said = 0
        self._troubled = False

    async def _say(self, said: Said) -> None:
        if said.directives is not None:
            self._obey(said.directives)
            await self._trouble()
        await self._message(orjson.dumps(said.event))
        self._said += 1
        self._tell(said)
        self._next_at = self._connection.now() + self._directives.gap

    async def _message(self, payload: bytes) -> None:
        """One text message, in as many frames as the directives want."""
        parts = list(slices(payload, self._directives.ws_fragment or max(1, len(payload)))) or [b""]
        for number, part in enumerate(parts, 1):
            await self._frame(Opcode.TEXT if number == 1 else Opcode.CONTINUATION, part, last=number == len(parts))
        self._seen.events_out += 1

    async def _frame(self, opcode: Opcode, payload: bytes, *, last: bool = True) -> None:
        masked = self._troubled and self._directives.ws_masked
        await self._write(frame(opcode, payload, last=last, masked=masked))

    async def _write(self, data: bytes) -> None:
        """Bytes to the client, up to those after which the connection is to be cut."""
        for piece in slices(data, self._directives.drip or 65536) if self._left != 0 else ():
            part = piece if self._left is None else piece[: self._left]
            await self._connection.send(part)
            self._seen.bytes_out += len(part)
            if self._left is not None:
                self._left -= len(part)
                if not self._left:
                    break
            if self._directives.drip:
                await self._connection.pause(self._directives.pace)
        if self._left == 0:
            cut = self._directives.cut is not None and self._directives.cut <= (self._directives.close or 1 << 62)
            self._end("cut" if cut else "close", self._connection.abort if cut else self._connection.close)

    async def _trouble(self) -> None:
        """What the directives want after so many events, once."""
        wanted = self._directives
        if self._troubled or self._said < wanted.ws_after:
            return
        self._troubled = True
        if wanted.ws_deaf:
            self._connection.read_little(65536)
            self._connection.hold()
            await self._connection.pause(wanted.ws_deaf)
            self._connection.release()
        if wanted.ws_ping:
            await self._ping()
        for number in range(wanted.ws_flood):
            await self._message(filler(number, wanted.ws_bytes))
            await self._listen()
        if wanted.ws_invalid:
            await self._message(b'{"type":"\xff"}')
        if wanted.ws_close is not None:
            await self._close(*wanted.ws_close, "ws-close")
        if wanted.ws_end:
            self._end("ws-end", self._connection.close)
        if wanted.ws_cut:
            self._end("ws-cut", self._connection.abort)

    async def _ping(self) -> None:
        self._ponged = False
        await self._frame(Opcode.PING, PING)
        while True:
            await self._listen()
            if self._ponged:
                return
            await self._connection.more()

    async def _close(self, code: int, reason: str, end: str) -> None:
        """Begin the closing handshake, and wait a while for the peer's part."""
        self._closing = True
        self._seen.end = end
        await self._frame(Opcode.CLOSE, struct.pack(">H", code) + reason.encode() if code else b"")
        until = self._connection.now() + _PATIENCE
        while (left := until - self._connection.now()) > 0:
            await self._listen()
            await self._connection.more(left)
        self._end(end, self._connection.abort)

    def _end(self, end: str, by: Callable[[], None]) -> None:
        self._seen.end = end
        by()
        raise Over

    async def _listen(self) -> None:
        """Take all that has come."""
        while self._inbox:
            data = bytes(self._inbox)
            self._inbox.clear()
            self._connection.taken()
            self._digest.update(data)
            self._seen.body_bytes += len(data)
            self._seen.body_sha256 = self._digest.hexdigest()
            self._reader.receive_bytes(data)
            try:
                for found in self._reader.received_frames():
                    await self._heard(found)
            except ParseFailed as fault:
                await self._fault(fault.code, str(fault))

    async def _fault(self, code: int, fault: str) -> None:
        """Close, as the peer broke the protocol."""
        self._journal.framing_fault(self._seen, f"WebSocket: {fault}")
        if not self._closing:
            await self._frame(Opcode.CLOSE, struct.pack(">H", code))
        await self._connection.linger()
        raise Over

    async def _heard(self, found: Frame) -> None:
        seen = self._seen
        if found.opcode is Opcode.CLOSE:
            assert isinstance(found.payload, tuple)
            code, reason = found.payload
            self._journal.heard(seen, "close", reason.encode(), code=int(code))
            seen.body_complete = True
            if not self._closing:
                seen.end = "closed"
                told = b"" if code == CloseReason.NO_STATUS_RCVD else struct.pack(">H", code)
                await self._frame(Opcode.CLOSE, told)
            raise Over
        assert isinstance(found.payload, str | bytes | bytearray)
        payload = found.payload.encode() if isinstance(found.payload, str) else bytes(found.payload)
        if found.opcode is Opcode.PING:
            self._journal.heard(seen, "ping", payload)
            await self._frame(Opcode.PONG, payload)
        elif found.opcode is Opcode.PONG:
            self._journal.heard(seen, "pong", payload)
            self._ponged = self._ponged or payload == PING
        else:
            await self._data(found, payload)

    async def _data(self, found: Frame, payload: bytes) -> None:
        """A part of a message; the whole goes to the talk."""
        self._parts.append(payload)
        self._frames += found.frame_finished
        self._size += len(payload)
        if self._size > LARGEST:
            await self._fault(CloseReason.MESSAGE_TOO_BIG, f"a message of more than {LARGEST} bytes")
        if found.message_finished:
            message, frames = b"".join(self._parts), self._frames
            self._parts, self._size, self._frames = [], 0, 0
            text = found.opcode is Opcode.TEXT
            self._journal.heard(self._seen, "text" if text else "binary", message, frames=frames)
            if not self._closing:
                self._talk.hear(message.decode() if text else message)
