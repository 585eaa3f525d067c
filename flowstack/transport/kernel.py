"""What the kernel is asked about a connection, and told of it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IProtocol
from twisted.protocols.policies import ProtocolWrapper

_BYTES_ACKED = 120
"""Offset of ``tcpi_bytes_acked`` (u64) in Linux's ``struct tcp_info`` (linux/tcp.h, since 4.1)."""

PROBE_SECONDS = 15
PROBES = 4
"""How far apart probes of a silent peer are, and after how many without an answer it is given up."""


def acknowledged_bytes(transport: Any) -> int | None:
    """How many bytes the peer has acknowledged in all; None where that cannot be known (no TCP, another system)."""
    try:
        info = socket_of(transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
        return int(struct.unpack_from("<Q", info, _BYTES_ACKED)[0])
    except (AttributeError, OSError, struct.error):
        return None


def unsent_bytes(transport: Any) -> int:
    """How many bytes that were written to a connection its peer has not acknowledged.

    On a UNIX socket, which has no acknowledgements: those that the peer has not read.
    """
    below = _below(transport)
    if isinstance(below, FileDescriptor):  # Twisted's own
        own = len(below.dataBuffer) - below.offset + cast(Any, below)._tempDataLen
    else:
        own = below.unsent_bytes()
    sock = below.getHandle()
    if sock is not None:
        with suppress(OSError):
            own += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return cast(int, own)


def keep_alive(sock: Any, seconds: int) -> None:
    """Have the kernel probe a peer that was silent for so long, and end the connection if nobody answers.

    :param sock: a socket, or None; of one that listens, connections yet to come inherit it. Nothing happens to one of
        UNIX.
    :param seconds: 0 leaves all as it is.
    """
    if seconds and sock is not None and sock.family != socket.AF_UNIX:
        # What uvloop shows as a socket opens one for each option, with a system call that costs as much as the option.
        own = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
        try:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        finally:
            own.detach()


def remains(fileno: int) -> Iterator[bytes]:
    """What came from a peer and was not read, also after its reset made a write fail: the kernel keeps it."""
    with socket.socket(fileno=os.dup(fileno)) as sock:
        sock.setblocking(False)
        with suppress(OSError):
            while data := sock.recv(65536):
                yield data


def heed_remains(transport: Any, heed: bool) -> None:
    """Have what came before a write failed delivered before the connection is told to be lost, or no longer.

    Transports take a failed write for the end of the connection, and what lies unread for lost. All that the kernel
    holds is then delivered at once, even while reading is paused: at most its receive buffer.
    """
    below = _below(transport)
    if not isinstance(below, FileDescriptor):
        below.heed_remains(heed)
    elif heed:
        below.writeSomeData = partial(_write_and_heed, cast(Any, below))  # type: ignore[method-assign]
    else:
        cast(Any, below).__dict__.pop("writeSomeData", None)


def _write_and_heed(transport: Any, data: bytes) -> Any:
    """In the place of ``writeSomeData`` of one of Twisted's connections."""
    outcome = type(transport).writeSomeData(transport, data)
    if isinstance(outcome, Exception):
        for piece in remains(transport.fileno()):
            transport.protocol.dataReceived(piece)
    return outcome


def handshake_seconds(transport: Any) -> float:
    """How long the TLS handshake took before the protocol was connected; 0 where the protocol is connected first."""
    below = _below(transport)
    return 0.0 if isinstance(below, FileDescriptor) else cast(float, below.waited)


def connect_protocol(transport: Any, protocol: IProtocol) -> None:
    """Connect a protocol to a transport that was taken over from another. It begins to read when the protocol says."""
    if isinstance(transport, ProtocolWrapper):  # Twisted's TLS
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol
    protocol.makeConnection(transport)


def socket_of(transport: Any) -> Any:
    """The socket of a connection, to look at; None once it is closed."""
    return _below(transport).getHandle()


def _below(transport: Any) -> Any:
    """The transport that has a socket: Twisted's TLS stands on another, and its handle is OpenSSL's."""
    return transport.transport if isinstance(transport, ProtocolWrapper) else transport
