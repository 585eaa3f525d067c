"""HTTP/1.1 on bare sockets: a client that shows the bytes, and the strict reading that its upstream shares.

Nothing here is lenient and nothing is shared with the program under test: what is read is refused unless it is exactly
framed, so that a byte too many on either side of the proxy fails the test that caused it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import orjson
from attrs import define

LIMIT = 25.0
"""Seconds that anything here waits: an answer that has not come by then does not come."""

Pairs = list[tuple[bytes, bytes]]
Connected = socket.socket | ssl.SSLSocket

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?|)")


class Unframed(AssertionError):
    """What came is no HTTP/1.1 message."""


class Closed(Exception):
    """The other side closed; ``reset`` says whether by force."""

    def __init__(self, reset: bool, rest: bytes) -> None:
        super().__init__(f"closed {'by force' if reset else 'in order'} after {len(rest)} unread bytes: {rest[:200]!r}")
        self.reset = reset
        self.rest = rest


class Link:
    """One connection, and what was read from it ahead of its time."""

    def __init__(self, sock: Connected, limit: float = LIMIT) -> None:
        self.sock = sock
        self._limit = limit
        self.sock.settimeout(limit)
        self.buffer = b""
        self.received = bytearray()
        """Every byte that ever came."""
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *pieces: bytes) -> None:
        """Send each piece by a write of its own.

        :raises OSError: the other side is gone.
        """
        for piece in pieces:
            self.sock.sendall(piece)

    def offer(self, data: bytes) -> None:
        """Send as much as the other side takes; that it closes meanwhile is no failure."""
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def more(self) -> None:
        """Read once.

        :raises Closed: there is no more.
        :raises AssertionError: nothing came for as long as it waits.
        """
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing more came, after {bytes(self.received[-300:])!r}") from None
        except OSError:
            raise Closed(True, self.buffer) from None
        if not data:
            raise Closed(False, self.buffer)
        self.buffer += data
        self.received += data

    def until(self, mark: bytes) -> bytes:
        """Read up to and with this mark."""
        while mark not in self.buffer:
            self.more()
        cut = self.buffer.index(mark) + len(mark)
        found, self.buffer = self.buffer[:cut], self.buffer[cut:]
        return found

    def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        if len(self.buffer) < size:
            pieces, have = [self.buffer], len(self.buffer)
            while have < size:
                self.buffer = b""
                self.more()
                pieces.append(self.buffer)
                have += len(self.buffer)
            self.buffer = b"".join(pieces)
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def to_the_end(self) -> tuple[bytes, bool]:
        """Read until the other side closes; the rest, and whether it closed by force."""
        while True:
            try:
                self.more()
            except Closed as end:
                self.buffer = b""
                return end.rest, end.reset

    def quiet(self, seconds: float = 0.2) -> bool:
        """Whether the other side neither sends nor closes for so long."""
        if self.buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        except OSError:
            return False
        finally:
            self.sock.settimeout(self._limit)
        return False

    def head(self) -> tuple[bytes, bytes, Pairs]:
        """Read a message's head; all of it, its first line, its fields.

        :raises Unframed: it is not strict.
        """
        raw = self.until(b"\r\n\r\n")
        line, *lines = raw[:-4].split(b"\r\n")
        pairs: Pairs = []
        for text in lines:
            match = _FIELD.fullmatch(text)
            if match is None:
                raise Unframed(f"no header field: {text[:200]!r}")
            pairs.append((match[1], match[2]))
        return raw, line, pairs

    def chunked(self) -> tuple[bytes, list[bytes]]:
        """Read a chunked body, which must have neither extensions nor trailers; its bytes on the wire, its chunks."""
        wire = b""
        chunks: list[bytes] = []
        while True:
            line = self.until(b"\r\n")
            if not re.fullmatch(rb"[0-9A-Fa-f]+\r\n", line):
                raise Unframed(f"no chunk size: {line[:100]!r}")
            size = int(line, 16)
            data = self.exactly(size + 2)
            if data[-2:] != b"\r\n":
                raise Unframed("no CR LF after a chunk, or a trailer")
            wire += line + data
            if not size:
                return wire, chunks
            chunks.append(data[:-2])

    def abort(self) -> None:
        """Close by force: the other side gets RST."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close in order."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def values(pairs: Pairs, name: bytes) -> list[bytes]:
    """The values of a field, in order."""
    return [value for other, value in pairs if other.lower() == name.lower()]


def without(pairs: Pairs, *names: bytes) -> Pairs:
    """All other fields, in order."""
    return [pair for pair in pairs if pair[0].lower() not in names]


def framing(pairs: Pairs) -> int | None:
    """The body's length, None where it is chunked, -1 where nothing is said."""
    lengths, codings = values(pairs, b"content-length"), values(pairs, b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Unframed(f"framed twice: {lengths} {codings}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise Unframed(f"an unknown transfer coding: {codings[0]!r}")
        return None
    if not lengths:
        return -1
    if not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise Unframed(f"no length: {lengths[0]!r}")
    return int(lengths[0])


@define
class Answer:
    """A response as a client reads it.

    :ivar interim: the status of each 1xx before it.
    :ivar framed: the body as it was on the wire.
    """

    status: int
    reason: bytes
    pairs: Pairs
    body: bytes
    framed: bytes
    raw_head: bytes
    interim: list[int]

    def all(self, name: bytes) -> list[bytes]:
        """The values of a field, in order."""
        return values(self.pairs, name)

    def one(self, name: bytes) -> bytes | None:
        """The value of a field that comes once or not at all."""
        found = self.all(name)
        assert len(found) < 2, f"{name!r} came {len(found)} times"
        return found[0] if found else None

    @property
    def request_id(self) -> str:
        """Flowstack's own id of the request."""
        found = self.one(b"flowstack-request-id")
        assert found is not None and re.fullmatch(rb"[0-9a-f]{32}", found), self.pairs
        return found.decode()

    @property
    def error(self) -> dict[str, Any]:
        """The error in a body of OpenAI's shape."""
        found: dict[str, Any] = orjson.loads(self.body)["error"]
        return found


class Client(Link):
    """A connection to the proxy.

    :param secure: for TLS: the context, and the name that is asked for.
    """

    def __init__(self, port: int, *, secure: tuple[ssl.SSLContext, str] | None = None, limit: float = LIMIT) -> None:
        sock: Connected = socket.create_connection(("127.0.0.1", port), limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure is not None:
            sock = secure[0].wrap_socket(sock, server_hostname=secure[1])
        super().__init__(sock, limit)

    def answer(self, method: str = "GET") -> Answer:
        """Read one response.

        :param method: the request's, as HEAD decides about the body.
        :raises Closed: the connection ended before it did.
        :raises Unframed: it is no HTTP/1.1.
        """
        interim: list[int] = []
        while True:
            raw, line, pairs = self.head()
            match = _STATUS_LINE.fullmatch(line)
            if match is None:
                raise Unframed(f"no status line: {line[:200]!r}")
            status = int(match[1])
            if status >= 200:
                break
            interim.append(status)
        length = framing(pairs)
        framed = body = b""
        if method == "HEAD" or status in (204, 304):
            pass
        elif length is None:
            framed, chunks = self.chunked()
            body = b"".join(chunks)
        elif length >= 0:
            framed = body = self.exactly(length)
        else:
            body, reset = self.to_the_end()
            if reset:
                raise Closed(True, body)
            framed = body
        return Answer(status, match[2], pairs, body, framed, raw, interim)

    def ask(self, *pieces: bytes, method: str = "GET") -> Answer:
        """Send, and read one response."""
        self.send(*pieces)
        return self.answer(method)


def lines(first: bytes, fields: Iterable[tuple[bytes, bytes]] | Pairs) -> bytes:
    """A message's head."""
    return b"\r\n".join([first, *(name + b": " + value for name, value in fields), b"", b""])


def request(key: str, line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"") -> bytes:
    """A request with a Host and a Flowstack key, then these whole field lines, then a body as it is."""
    auth = b"Flowstack-Auth: Bearer " + key.encode()
    return b"\r\n".join([line, b"Host: flowstack.example", auth, *fields, b"", b""]) + body


def assert_own_error(answer: Answer, status: int, code: str, *, head: bool = False) -> None:
    """The answer is an error of Flowstack's own, in every detail that the contract names.

    :param head: whether it answers HEAD, and so has no body.
    """
    assert (answer.status, answer.one(b"flowstack-error")) == (status, code.encode()), (answer.raw_head, answer.body)
    assert answer.one(b"content-type") == b"application/json"
    assert answer.all(b"transfer-encoding") == []
    assert answer.request_id
    length = answer.one(b"content-length")
    assert length is not None and int(length) > 0
    if not head:
        assert int(length) == len(answer.body)
        assert list(orjson.loads(answer.body)) == ["error"]
        error = answer.error
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["param"], error["code"]) == (None, code)
        assert re.fullmatch(r"[a-z_]+", error["type"])
        assert isinstance(error["message"], str) and len(error["message"]) > 20
    expected = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS" if status == 405 else None
    assert answer.one(b"allow") == expected
