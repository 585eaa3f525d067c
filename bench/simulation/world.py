"""Time, a network, and a Redis that can be stopped, cut off, and set back to what it knew earlier."""

from __future__ import annotations

import heapq
import itertools
import random
import socket
from collections.abc import Callable
from typing import Any

import hiredis
import redis
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from flowstack.limits.link import library
from tests.limits.lab import NOON
from tests.limits.remote_lab import with_clock

SERVICE = 20e-6
"""Seconds that Redis works on a command; nobody else's is worked on meanwhile."""

EXPIRY = "  if ends > 0 then redis.call('ZADD', 'expiry', ends + LATE, key) end\n"
"""In place of the server's own, whose clock is another."""

TICK = """#!lua name=simulated
redis.register_function('simulated_tick', function(keys, args)
  redis.call('SET', 'clock', args[1])
  local ms = math.floor(tonumber(args[1]) / 1000)
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', 'expiry', '-inf', ms)) do redis.call('DEL', key) end
  redis.call('ZREMRANGEBYSCORE', 'expiry', '-inf', ms)
  return 0
end)
"""
"""Sets the clock of a database, and forgets what has expired."""


class Reactor:
    """Time that goes from one event to the next; two at the same time in the order in which they were asked for."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._calls: list[tuple[float, int, DelayedCall]] = []
        self._numbers = itertools.count()
        self.network: Network

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **options: Any) -> DelayedCall:
        later = DelayedCall(self.now + delay, call, args, options, lambda _: None, lambda _: None, self.seconds)
        heapq.heappush(self._calls, (later.getTime(), next(self._numbers), later))
        return later

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._calls and self._calls[0][0] <= until:
            self.now, _, later = heapq.heappop(self._calls)
            if not later.cancelled:
                later.called = 1
                later.func(*later.args, **later.kw)
        self.now = until

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None  # noqa: N803
    ) -> Wire:
        """The host is a machine's number, from which it connects to the one Redis that there is for it."""
        return Wire(self, self.network.paths[port], factory)


class Path:
    """A machine's way to its Redis.

    :ivar cut: nothing passes.
    :ivar deaf: nothing comes back.
    :ivar server: which Redis it leads to.
    """

    def __init__(self, server: Server) -> None:
        self.cut = self.deaf = False
        self.server = server
        self.waiting: list[Callable[[], None]] = []

    def heal(self) -> None:
        """What was sent meanwhile is sent again, as TCP does."""
        self.cut = self.deaf = False
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            one()


class Network:
    """The ways of all machines.

    :param median: seconds one way, by the median; the times are lognormal.
    :param spikes: which share of messages takes 20 to 200 ms more.
    """

    def __init__(self, chance: random.Random, median: float = 0.00025, spikes: float = 0.0) -> None:
        self._chance = chance
        self._median = median
        self.spikes = spikes
        self.paths: dict[int, Path] = {}

    def delay(self) -> float:
        """Of one message."""
        late = self._chance.uniform(0.02, 0.2) if self._chance.random() < self.spikes else 0.0
        return self._median * self._chance.lognormvariate(0, 0.5) + late


class Wire:
    """A connection, to its protocol the transport; and the connector from which it came."""

    def __init__(self, reactor: Reactor, path: Path, factory: Any) -> None:
        self._reactor, self.path, self._factory = reactor, path, factory
        self.protocol: Any = None
        self.up = self.down = 0.0  # when the last message arrives, each way
        self.open = True  # here
        self.server: Server | None = None
        self._held = [0, 0]
        self.reader = hiredis.Reader()
        factory.doStart()
        factory.startedConnecting(self)
        self._dial()

    # The connector.

    def _dial(self) -> None:
        self._reactor.callLater(2 * self._reactor.network.delay(), self._dialled)

    def _dialled(self) -> None:
        if not self.open:
            return
        if self.path.cut or self.path.deaf:
            self._reactor.callLater(1.0, self._dialled)
        elif not self.path.server.runs:
            self.open = False
            self._factory.clientConnectionFailed(self, Failure(error.ConnectionRefusedError()))
        else:
            self.server = self.path.server
            self.server.wires.append(self)
            self.protocol = self._factory.buildProtocol(self.getPeer())
            self.protocol.makeConnection(self)

    def stopConnecting(self) -> None:  # noqa: N802
        self.open = False

    disconnect = stopConnecting

    def getDestination(self) -> IPv4Address:  # noqa: N802
        return IPv4Address("TCP", "192.0.2.1", 6379)

    getPeer = getDestination

    # The transport.

    def setTcpNoDelay(self, enabled: bool) -> None:
        """It is not needed here."""

    def write(self, data: bytes) -> None:
        if self.open:
            self.up = max(self.up, self._reactor.now + self._reactor.network.delay())
            self._reactor.callLater(self.up - self._reactor.now, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        server = self.server
        if self.path.cut or self._held[0]:
            if self.open:  # else nobody sends it again
                self._hold(0, self._arrive, data)
        elif server is not None and self in server.wires:
            server.feed(self, data)

    def answer(self, data: bytes) -> None:
        """From the server."""
        self.down = max(self.down, self._reactor.now + self._reactor.network.delay())
        self._reactor.callLater(self.down - self._reactor.now, self._answered, data)

    def _answered(self, data: bytes) -> None:
        if self.path.cut or self.path.deaf or self._held[1]:
            self._hold(1, self._answered, data)
        elif self.open:
            self.protocol.dataReceived(data)

    def _hold(self, way: int, again: Callable[[bytes], None], data: bytes) -> None:
        self._held[way] += 1

        def release() -> None:
            self._held[way] -= 1
            held, self._held[way] = self._held[way], 0
            again(data)
            self._held[way] += held

        self.path.waiting.append(release)

    def reset(self) -> None:
        """The server is gone."""
        if self.path.cut or self.path.deaf:
            self.path.waiting.append(self.reset)
        else:
            self._reactor.callLater(self._reactor.network.delay(), self._lose)

    def _lose(self) -> None:
        if self.open:
            self.open = False
            self.protocol.connectionLost(connectionDone)

    def abortConnection(self) -> None:
        if self.open:
            self.open = False
            if self.server is not None and self in self.server.wires and not self.path.cut:
                self.server.wires.remove(self)
            self._reactor.callLater(0, self.protocol.connectionLost, connectionDone)

    def loseConnection(self) -> None:
        self.abortConnection()


class Server:
    """A database of a real Redis, for as long as it runs.

    :ivar calls: commands that it did.
    :ivar on_call: is told of each function that was called.
    :param connect: gives a client of a database.
    :param number: of this one.
    """

    def __init__(self, reactor: Reactor, connect: Callable[[int], redis.Redis], number: int) -> None:
        self._reactor = reactor
        self._number = number
        self._connect = connect
        self._sent = connect(number)
        self._sent.flushdb()
        # What is called a hundred thousand times has a socket of its own: a client costs more than Redis does.
        reach = self._sent.connection_pool.connection_kwargs
        self._sock = socket.create_connection((reach["host"], reach["port"]), reach["socket_timeout"])
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = hiredis.Reader()
        (selected,) = self._answers(hiredis.pack_command(("SELECT", number)), 1)
        assert selected == b"OK"
        self._real, text = with_clock(EXPIRY)
        self._name = library()[0]
        assert text.count("WINDOW_SECONDS, FLIGHT_SECONDS = 70,") == 1
        text = text.replace("= 70,", "= 70000,", 1)  # by the server's clock, which a slow run must not wait for
        for one in (text, TICK):
            self._sent.execute_command("FUNCTION", "LOAD", "REPLACE", one)
        self.runs = True
        self.stalled_until = 0.0
        self._free = 0.0
        self.calls = 0
        self.wires: list[Wire] = []
        self.on_call: Callable[[str, list[bytes]], None] = lambda function, words: None

    def feed(self, wire: Wire, data: bytes) -> None:
        """Do commands, when all before are done."""
        wire.reader.feed(data)
        while (command := wire.reader.gets()) is not False:
            self._free = max(self._free, self._reactor.now, self.stalled_until) + SERVICE
            self._reactor.callLater(self._free - self._reactor.now, self._do, wire, command)

    def _do(self, wire: Wire, command: list[bytes]) -> None:
        if not self.runs or wire not in self.wires:
            return
        if self.stalled_until > self._reactor.now:
            self._reactor.callLater(self.stalled_until - self._reactor.now, self._do, wire, command)
            return
        word = command[0]
        if word == b"FCALL":
            wire.answer(_reply(self.call(command[1].decode().removeprefix(f"{self._name}_"), command[2:])))
        elif word == b"ROLE":
            wire.answer(_reply([b"master", 0, []]))
        else:
            wire.answer(b"+OK\r\n")

    def call(self, function: str, words: list[bytes]) -> Any:
        """Call one of the functions now."""
        self.calls += 1
        micros = int((NOON + self._reactor.now) * 1e6)
        commands = ("FCALL", "simulated_tick", 0, micros), ("FCALL", f"{self._real}_{function}", *words)
        answer = self._answers(b"".join(map(hiredis.pack_command, commands)), 2)[1]
        self.on_call(function, words)
        return answer

    def _answers(self, commands: bytes, count: int) -> list[Any]:
        """What so many commands are answered; an error is an answer."""
        self._sock.sendall(commands)
        found: list[Any] = []
        while len(found) < count:
            while (answer := self._read.gets()) is not False:
                found.append(answer)
            if len(found) < count:
                data = self._sock.recv(65536)
                assert data, "Redis ended the connection"
                self._read.feed(data)
        return found

    # What may happen to it.

    def stop(self) -> None:
        """It is killed."""
        self.runs = False
        wires, self.wires = self.wires, []
        for wire in wires:
            wire.reset()

    def remember(self, number: int) -> None:
        """Copy all that it has into another database."""
        with self._connect(number) as other:
            other.flushdb()
        for name in sorted(self._sent.keys()):
            self._sent.copy(name, name, number, replace=True)

    def recall(self, number: int | None) -> None:
        """Have nothing but what another database has; None: nothing."""
        self._sent.flushdb()
        if number is not None:
            with self._connect(number) as other:
                for name in sorted(other.keys()):
                    other.copy(name, name, self._number, replace=True)

    def value(self, *command: Any) -> Any:
        """Of any command."""
        return self._sent.execute_command(*command)

    def close(self) -> None:
        """No more of it."""
        self._sock.close()
        self._sent.close()


def _reply(answer: Any) -> bytes:
    """As Redis writes it."""
    if isinstance(answer, Exception):
        return b"-%b\r\n" % str(answer).encode()
    if isinstance(answer, list):
        return b"*%d\r\n" % len(answer) + b"".join(_reply(one) for one in answer)
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, bytes):
        return b"$%d\r\n%b\r\n" % (len(answer), answer)
    return b":%d\r\n" % answer
