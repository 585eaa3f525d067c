"""What the cases of ``uv_cases`` and ``uv_tls_cases`` are made of."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from flowstack.config.ways import Way
from flowstack.transport.uv import client_endpoint, server_endpoint, uv_loop

reactor: Any = _reactor
ON_UVLOOP = uv_loop(reactor) is not None
LIMIT = 60.0


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Poll; a condition that does not come true in LIMIT seconds fails the test."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"did not come true: {what or condition}"
        await deferLater(reactor, 0.002)


def in_thread(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Run what blocks."""
    return deferToThread(function, *args)


class Recorder(Protocol):
    """Writes down what befalls it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: Any = None
        self.events: list[str] = []
        self.on_made: Callable[[Recorder], None] = lambda _: None
        self.on_data: Callable[[Recorder, bytes], None] = lambda _, __: None
        self.on_lost: Callable[[Recorder], None] = lambda _: None

    def connectionMade(self) -> None:
        self.events.append("made")
        self.on_made(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.on_data(self, data)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason
        self.events.append(f"lost {reason.type.__name__}")
        self.on_lost(self)


@implementer(IHalfCloseableProtocol)
class HalfRecorder(Recorder):
    """One that can be half closed."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


class Recorders(Factory):
    """Builds one recorder for each connection, and keeps them."""

    def __init__(self, kind: type[Recorder] = Recorder, **hooks: Any) -> None:
        self.kind, self.hooks = kind, hooks
        self.built: list[Any] = []
        self.addresses: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        protocol = self.kind()
        for name, hook in self.hooks.items():
            setattr(protocol, name, hook)
        self.built.append(protocol)
        self.addresses.append(addr)
        return protocol


class Served:
    """A listening endpoint, stopped at the end."""

    def __init__(self, description: str = "tcp:0:interface=127.0.0.1", **factory: Any) -> None:
        self.description, self.factory = description, Recorders(**factory)

    async def __aenter__(self) -> Served:
        self.port = await server_endpoint(reactor, self.description).listen(self.factory)
        return self

    async def __aexit__(self, *_: object) -> None:
        for protocol in self.factory.built:
            if protocol.lost is None and protocol.transport is not None:
                protocol.transport.abortConnection()
        await self.port.stopListening()
        await until(lambda: all(p.lost is not None for p in self.factory.built), "the served connections' ends")

    async def one(self) -> Any:
        await until(lambda: self.factory.built and self.factory.built[0].events, "a connection")
        return self.factory.built[0]

    def peer(self, receive_buffer: int | None = None) -> socket.socket:
        """Connect with a blocking socket."""
        address = self.port.getHost()
        if hasattr(address, "name"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address.name)
        else:
            sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect((address.host, address.port))
        sock.settimeout(LIMIT)
        return sock


class Listening:
    """A blocking listening socket that a test answers from a thread."""

    def __init__(self, backlog: int = 5) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(backlog)
        self.socket.settimeout(LIMIT)
        self.port: int = self.socket.getsockname()[1]

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def accept(self) -> socket.socket:
        sock, _ = self.socket.accept()
        sock.settimeout(LIMIT)
        return sock


async def connected(port: int, host: str = "127.0.0.1", tls: bool = False, ca: Any = None, **hooks: Any) -> Any:
    """Connect a recorder through the client endpoint."""
    return await client_endpoint(reactor, host, port, tls, Way(ca_file=ca)).connect(Recorders(**hooks))


def reset(sock: socket.socket) -> None:
    """Close by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: Any, pause: float = 0.0, size: int = 1 << 16) -> int:
    """Read to the end; return how many bytes came."""
    count = 0
    while data := sock.recv(size):
        count += len(data)
        if pause:
            time.sleep(pause)
    return count


def end_of(sock: socket.socket) -> str:
    """Say how the other side ended."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return "RST"
    return "FIN"


def descriptors() -> set[str]:
    """What this process has open: each socket by a number that no other has had since the machine was started.

    A count would be another as soon as an earlier case's last socket is closed, by the garbage collector or in a later
    turn of the reactor.
    """
    found = set()
    for fileno in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{fileno}"))
    return found


def backlog_of(port: int) -> int:
    """Return the backlog of this process's listener on a port: Linux tells it in ``tcp_info``'s ``tcpi_sacked``."""
    for fileno in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            sock = socket.socket(fileno=fileno)
            try:
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and sock.family == socket.AF_INET and sock.getsockname()[1] == port:
                    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
                    return int.from_bytes(info[28:32], sys.byteorder)
            finally:
                sock.detach()
    raise AssertionError(f"nothing listens on port {port} in this process")


def resident() -> int:
    """Return this process's resident bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Pushing:
    """A push producer of ``total`` bytes that counts how often it is paused and resumed."""

    def __init__(self, transport: Any, total: int, piece: int = 1 << 15) -> None:
        self.transport, self.left, self.piece = transport, total, bytes(piece)
        self.pauses = self.resumes = 0
        self.paused = self.stopped = self.done = False

    def begin(self) -> None:
        self.transport.registerProducer(self, True)
        self.produce()

    def produce(self) -> None:
        while self.left and not self.paused and not self.stopped:
            self.left -= len(self.piece)
            self.transport.write(self.piece)
        if not self.left and not self.done:
            self.done = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def pauseProducing(self) -> None:
        self.pauses += not self.paused
        self.paused = True

    def resumeProducing(self) -> None:
        self.resumes += self.paused
        self.paused = False
        self.produce()

    def stopProducing(self) -> None:
        self.stopped = True


class Pulling:
    """A pull producer of ``total`` bytes."""

    def __init__(self, transport: Any, total: int, piece: int = 1 << 15) -> None:
        self.transport, self.left, self.piece = transport, total, bytes(piece)
        self.asked = 0
        self.stopped = False

    def resumeProducing(self) -> None:
        self.asked += 1
        if self.left:
            self.left -= len(self.piece)
            self.transport.write(self.piece)
        else:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        self.stopped = True
