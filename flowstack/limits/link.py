"""The connection to the Redis in which machines count together, as one worker has it.

Commands of one turn of the loop go out together, and are answered in their order. What is not answered in time is given
up: the link is then down until Redis answers in time again, and who asks meanwhile is told so at once.

Each connection has a number, which the functions are told with each call: what was sent on an earlier one and arrives
late changes nothing, and a Redis that does not know the number has lost data. Either way the next connection tells anew
what this worker has.

``hiredis`` packs commands and reads answers: the parser of the Redis project itself. The connection is one of our own
transports, with their TLS, as those of the known clients for Twisted have none towards a master that Sentinels name.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.config.settings import Shared
from flowstack.config.ways import Way
from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.limits.told import STRANGE, Unfit, Untold, plain, time_of
from flowstack.redact import shown
from flowstack.states import IllegalMove
from flowstack.transport.uv import before_writes, client_endpoint
from flowstack.util import Throttle

log = Logger()

ANSWER_SECONDS: Final = 0.1
"""After which an answer is not waited for any more."""

GRACE_SECONDS: Final = 0.005
"""In which is read what came in time, where this process itself was too busy to see it."""

CONNECT_SECONDS: Final = 2.0
"""For connecting, and all that is said before the first request."""

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between two attempts to connect: each twice as long as the one before, and up to a half shorter at random."""

SILENT_SECONDS: Final = 5.0
"""Without an answer that is due, after which the connection is given up, and not only what was asked on it."""

LIVES_SECONDS: Final = 20.0
"""For which a worker counts as alive without a word of it; then what it had in flight is free."""

BEAT_SECONDS: Final = 5.0

SOON_SECONDS: Final = 0.005
"""For which is kept back what nobody waits for, so that it goes out with what is asked meanwhile: a write, a turn of
the loop and a read less."""

MAX_SKEW: Final = 300.0
"""Seconds between Redis' clock and this machine's beyond which one of them is wrong, and budgets would be another
period's."""

MAX_ANSWER: Final = 1 << 20
"""Bytes of an answer; none of ours is a hundredth of that."""

CONNECTIONS: Final = 1000
"""After which their numbers begin anew."""

_too_many = re.compile(rb"\n[*~%>][0-9]{6}").search
"""An array is said to have a million elements: the reader would make room for all of them at once. That is said where a
line begins; of what we keep, each text is one and begins with a brace."""

_MAX_PASSWORD = 8192

_TELL_SECONDS = 60.0

Answer = Any
"""As hiredis reads it: int, bytes, None, a list of these, or an error."""

Done = Callable[[list[Any] | None], None]
"""Is given the answer; None where there is none. Raises :class:`Untold` where it is no answer of our functions."""


FUNCTIONS: Final = "take", "give", "again", "alive", "show", "keep", "find", "begin", "claim", "charged"


class State(Enum):
    """How a link stands."""

    IDLE = "was not started"
    CONNECTING = "connects, or waits to"
    GREETING = "says who it is"
    UP = "answers"
    SILENT = "has left something unanswered"
    STOPPED = "is not wanted any more"


IDLE, CONNECTING, GREETING, UP, SILENT, STOPPED = State

MOVES: Final = {
    IDLE: {CONNECTING, STOPPED},
    CONNECTING: {CONNECTING, GREETING, STOPPED},
    GREETING: {UP, CONNECTING, STOPPED},
    UP: {SILENT, CONNECTING, STOPPED},
    SILENT: {UP, CONNECTING, STOPPED},
    STOPPED: {STOPPED},
}
"""The legal moves."""


class Owed(Protocol):
    """What Redis must be told, though it may take a while."""

    def words(self, again: bool) -> tuple[str, Sequence[bytes], Sequence[bytes]]:
        """The function, its keys and its arguments.

        :param again: whether it may have been told before.
        """

    def told(self, answer: list[Any]) -> None:
        """It was taken."""

    def kept(self) -> None:
        """It may not have been taken, and is told again."""

    def lost(self) -> None:
        """It cannot be taken, as Redis has something else there, and is not told again."""


class _Asked:
    """A command that is not answered yet."""

    __slots__ = ("done", "greets", "owed", "sent_at")

    def __init__(self, sent_at: float, done: Done | None, owed: Owed | None, greets: bool = False) -> None:
        self.sent_at = sent_at
        self.done = done
        self.owed = owed
        self.greets = greets  # whether any answer is taken

    def unanswered(self) -> None:
        """Say that nobody need wait for it."""
        try:
            if self.done is not None:
                self.done(None)
        except Exception:
            log.failure("limits: what Redis did not answer could not be ended")


def library() -> tuple[str, bytes]:
    """The functions' names begin with the first; the second is what Redis loads."""
    text = resources.files("flowstack.limits").joinpath("functions.lua").read_text("utf-8")
    name = f"flowstack_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name, f"#!lua name={name}\n{text.replace('LIBRARY', name)}".encode()


def read_password(path: Path) -> bytes:
    """The password of Redis.

    :raises ParseError: the file cannot be used.
    """
    word = read_secret(path, _MAX_PASSWORD).strip()
    if not word or any(byte < 33 or byte > 126 for byte in word):
        raise ParseError.found(f"something else in {shown(str(path))}", "the password of Redis and nothing else")
    return word


class Link:
    """One worker's connection, made anew whenever it is lost.

    :ivar state: of :class:`State`.
    :ivar failures: how often it went down.
    :param worker: a name that no other worker has, or had.
    :param wall: UTC Unix seconds.
    :param monotonic: seconds.
    :param uniform: draws a number between two others.
    :param again: what is told first on each new connection; without what is in flight there, whatever became of it.
    :raises ParseError: the password cannot be read.
    """

    def __init__(
        self,
        shared: Shared,
        reactor: Any,
        worker: bytes,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        import hiredis

        assert shared.redis is not None
        self._pack: Callable[[tuple[bytes, ...]], bytes] = cast(Any, hiredis.pack_command)
        self._reader = hiredis.Reader
        self._url = urlsplit(shared.redis)
        self._shared = shared
        self._reactor = reactor
        self._wall = wall
        self._monotonic = monotonic
        self._uniform = uniform
        self._before_writes = before_writes(reactor)
        self.worker = worker
        self.again: Callable[[], list[Owed]] = lambda: []
        self.state = IDLE
        self.failures = 0
        self._name, self._library = library()
        self._names = {name: f"{self._name}_{name}".encode() for name in FUNCTIONS}
        self._way = Way(ca_file=shared.redis_ca_file)
        self._sentinels = deque(shared.redis_sentinels)
        self.reload()
        self._asked: deque[_Asked] = deque()
        self._owed: deque[Owed] = deque()
        self._out: list[bytes] = []
        self._connection: _Connection | None = None
        self._connecting: Deferred[Any] | None = None
        self._timer: Any = None
        self._beat: Any = None
        self._soon: Any = None
        self._wait = FIRST_WAIT
        self._offset = wall() - monotonic()
        self._since = 0.0
        self._connections = 0
        self._who: tuple[bytes, bytes] = worker, b"0"
        self._graced = False
        self._told = ""
        self._throttle = Throttle(monotonic, _TELL_SECONDS)

    def __repr__(self) -> str:
        return f"<Link to {self.where}, {self.state.name}>"

    @property
    def where(self) -> str:
        """The address, for the log: never a credential."""
        return f"{self._url.hostname}:{self._url.port}"

    @property
    def up(self) -> bool:
        """Whether what is asked now is likely to be answered."""
        return self.state is UP

    def clock(self) -> float:
        """Redis' time as far as it is known: UTC Unix seconds. No earlier than the last that it told."""
        return self._monotonic() + self._offset

    def reload(self) -> None:
        """Read the password anew, for the next connection.

        :raises ParseError: it cannot be read.
        """
        path = self._shared.redis_password_file
        self._password = None if path is None else read_password(path)

    # Its life.

    def start(self) -> None:
        """Connect, and stay connected."""
        self._since = self._monotonic()
        self._to(CONNECTING)
        self._connect()

    def stop(self) -> Deferred[None] | None:
        """Say what is owed, and good-bye."""
        if self.state in (UP, SILENT):
            self._tell_owed(again=False)
            self._say_alive(0.0)
            self._flush()
        self._to(STOPPED)
        self._cancel_timers()
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_all()
        if self._owed:
            count = len(self._owed)
            log.error("limits: Redis at {where} was not told of {count} charges", where=self.where, count=count)
        connection = self._connection
        if connection is None:
            return None
        connection.take = _nothing
        cut = self._reactor.callLater(CONNECT_SECONDS, connection.abort)
        return connection.close().addCallback(lambda _: cut.active() and cut.cancel())

    def _to(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(self.state, state)
        was, self.state = self.state, state
        if was is UP and state is not STOPPED:
            self.failures += 1
            self._since = self._monotonic()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._beat, self._soon):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._beat = self._soon = None

    def _connect(self) -> None:
        self._timer = None
        connecting = maybeDeferred(self._dial)  # its files are read each time, and may not be there
        self._connecting = connecting.addTimeout(CONNECT_SECONDS, self._reactor)
        connecting.addCallbacks(self._connected, self._not_connected)

    def _dial(self) -> Deferred[Any]:
        """Connect to Redis; where Sentinels are configured, to the master that one of them names."""
        url = self._url
        assert url.hostname is not None and url.port is not None
        if not self._sentinels:
            return self._to_host(url.hostname, url.port, url.scheme == "rediss")
        sentinel = self._sentinels[0]
        self._sentinels.rotate(-1)
        host, _, port = sentinel.rpartition(":")
        asking = self._to_host(host.strip("[]"), int(port), False)

        def ask(connection: _Connection) -> Deferred[Any]:
            answered: Deferred[Answer] = Deferred()
            connection.take = answered.callback
            connection.lost = partial(_fail, answered)
            words = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", str(url.hostname).encode())
            connection.write(self._pack(words))
            return answered.addBoth(_and_close, connection).addCallback(found)

        def found(answer: Answer) -> Deferred[Any]:
            if not (isinstance(answer, list) and len(answer) == 2 and all(isinstance(one, bytes) for one in answer)):
                raise ConnectionError(f"the Sentinel {sentinel} names no master {url.hostname}")
            return self._to_host(answer[0].decode("ascii"), int(answer[1]), url.scheme == "rediss")

        return asking.addCallback(ask)

    def _to_host(self, host: str, port: int, tls: bool) -> Deferred[Any]:
        endpoint = client_endpoint(self._reactor, host, port, tls, self._way if tls else Way(), CONNECT_SECONDS)
        return endpoint.connect(_Connections(self._reader))

    def _connected(self, connection: _Connection) -> None:
        self._connecting = None
        self._connection = connection
        self._connections = (self._connections + 1) % CONNECTIONS
        self._who = self.worker, b"%d" % self._connections
        connection.take, connection.lost = self._answered, self._lost
        self._to(GREETING)
        user = None if self._url.username is None else self._url.username.encode("ascii")
        words: list[tuple[bytes, ...]] = []
        if self._password is not None:
            words.append((b"AUTH", *([user] if user else []), self._password))
        words += [
            (b"SELECT", self._url.path.strip("/").encode("ascii")),
            (b"ROLE",),
            (b"FUNCTION", b"LOAD", self._library),
        ]
        for command in words:
            self._asked.append(_Asked(self._monotonic(), self._greeted_by(command[0]), None, greets=True))
            connection.write(self._pack(command))
        self._timer = self._reactor.callLater(CONNECT_SECONDS, self._give_up, "it does not answer")

    def _greeted_by(self, command: bytes) -> Callable[[Answer], None]:
        def take(answer: Answer) -> None:
            if self.state is not GREETING:
                return
            if isinstance(answer, Exception):
                text = str(answer)
                if command == b"FUNCTION" and "already exists" in text:
                    self._greeted()
                    return
                self._give_up(text)
            elif command == b"ROLE" and not (isinstance(answer, list) and answer and answer[0] == b"master"):
                self._give_up("it is not the master")
            elif command == b"FUNCTION":
                self._greeted()

        return take

    def _greeted(self) -> None:
        """Say first that this worker lives, and what it has: then all that is asked is answered rightly."""
        self._cancel_timers()
        self._say_alive(LIVES_SECONDS, self._begin)
        self._flush()

    def _say_alive(self, seconds: float, done: Done | None = None) -> None:
        self._send("alive", (), (b"%d" % (seconds * 1e6), b"%d" % (self.state is GREETING)), done)

    def _begin(self, answer: list[Any] | None) -> None:
        if answer is None or self.state is not GREETING:  # it is over already
            return
        for one in self.again():
            self._tell(one, again=True)
        self._to(UP)
        if self._told:
            seconds = self._monotonic() - self._since
            log.warn("limits: Redis at {where} answers again, after {seconds:.1f} s", where=self.where, seconds=seconds)
            self._told = ""
        self._tell_owed(again=True)
        self._beat = self._reactor.callLater(BEAT_SECONDS, self._live)

    def _tell_owed(self, again: bool) -> None:
        owed, self._owed = self._owed, deque()
        for one in owed:
            self._tell(one, again)

    def _live(self) -> None:
        """Now and then say that this worker is there. A connection that has lasted so long is a good one."""
        self._wait = FIRST_WAIT
        self._beat = self._reactor.callLater(BEAT_SECONDS, self._live)
        if self.up:
            self._say_alive(LIVES_SECONDS)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if self.state is not STOPPED:
            self._tell_trouble(self._unconnected(failure))
            self._retry()

    def _unconnected(self, failure: Failure) -> str:
        """Why no connection came about. A Redis without TLS is silent to who begins it."""
        if failure.check(TimeoutError):
            plain_one = "; perhaps it speaks no TLS: then write redis://" if self._url.scheme == "rediss" else ""
            return f"no connection within {CONNECT_SECONDS:.0f} s{plain_one}"
        return str(failure.value) or type(failure.value).__name__

    def _retry(self) -> None:
        self._to(CONNECTING)
        self._cancel_timers()
        self._timer = self._reactor.callLater(self._uniform(self._wait / 2, self._wait), self._connect)
        self._wait = min(self._wait * 2, LONGEST_WAIT)

    def _give_up(self, why: str) -> None:
        """The connection is of no use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.take, connection.lost = _nothing, _nothing
            connection.abort()
        self._tell_trouble(why)
        self._retry()
        self._fail_all()

    def _lost(self) -> None:
        self._connection = None
        if self.state is not STOPPED:
            wants_tls = self.state is GREETING and self._url.scheme == "redis"
            hint = " before it answered; perhaps it speaks TLS alone: then write rediss://" if wants_tls else ""
            self._tell_trouble(f"it closed the connection{hint}")
            self._retry()
        self._fail_all()

    def _tell_trouble(self, why: str) -> None:
        """Log it, once for as long as it lasts, and again where the reason is another."""
        why = plain(why, self._password)
        if why != self._told:
            self._told = why
            log.error("limits: Redis at {where} cannot be used: {why}", where=self.where, why=why)

    # What is asked.

    def ask(self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Done) -> None:
        """Ask, while the link is up.

        :param done: called once, within :data:`ANSWER_SECONDS`; or later once more, where an answer comes that was not
            waited for any more.
        """
        if self._owed:
            self._tell_owed(again=False)
        self._send(function, keys, arguments, done)

    def owe(self, owed: Owed) -> None:
        """Tell Redis something, now or as soon as it answers again."""
        if self.state is not STOPPED:
            self._owed.append(owed)
            if self.state is UP:
                self._tell_owed(again=False)

    def owe_soon(self, owed: Owed) -> None:
        """The same within :data:`SOON_SECONDS`: before what is asked or told next. Until then it may grow."""
        if self.state is not STOPPED:
            self._owed.append(owed)
            if self._soon is None and self.state is UP:
                self._soon = self._reactor.callLater(SOON_SECONDS, self._tell_now)

    def _tell_now(self) -> None:
        self._soon = None
        if self.state is UP:
            self._tell_owed(again=False)

    def _tell(self, owed: Owed, again: bool) -> None:
        self._send(*owed.words(again), None, owed)

    def _send(
        self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Done | None,
        owed: Owed | None = None,
    ) -> None:  # fmt: skip
        if not self._out:
            if self._before_writes is None:
                self._reactor.callLater(0, self._flush)
            else:
                self._before_writes(self._flush)
        who = () if function == "show" else self._who
        self._out.append(self._pack((b"FCALL", self._names[function], b"%d" % len(keys), *keys, *who, *arguments)))
        self._asked.append(_Asked(self._monotonic(), done, owed))
        if self._timer is None:
            self._watch()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._connection is not None:
            self._connection.write(b"".join(out))

    def _watch(self) -> None:
        """See to it that what is asked is answered in time."""
        self._timer = None
        if not self._asked or self.state in (CONNECTING, STOPPED):
            self._graced = False
            return
        now = self._monotonic()
        waited = now - self._asked[0].sent_at
        if waited >= SILENT_SECONDS:
            self._give_up(f"it has not answered for {SILENT_SECONDS:.0f} s")
            return
        late, graced = waited >= ANSWER_SECONDS and self.state is UP, self._graced
        self._graced = late and not graced
        if self._graced:  # timers come first in a turn of the loop: the answer may lie in the socket
            self._timer = self._reactor.callLater(GRACE_SECONDS, self._watch)
            return
        if late:
            self._to(SILENT)
            self._tell_trouble(f"it has not answered for {ANSWER_SECONDS * 1000:.0f} ms")
            self._leave_unanswered()
        wait = ANSWER_SECONDS - waited if self.state is UP else ANSWER_SECONDS
        self._timer = self._reactor.callLater(max(wait, 0.001), self._watch)

    def _leave_unanswered(self) -> None:
        for asked in tuple(self._asked):
            asked.unanswered()

    def _answered(self, answer: Answer) -> None:
        if not self._asked:
            self._give_up("it answered what was not asked")
            return
        asked = self._asked.popleft()
        if asked.greets:
            assert asked.done is not None
            asked.done(answer)
            return
        moment = self._monotonic()
        waited = moment - asked.sent_at
        try:
            now = time_of(answer)
            skew = now - self._wall()
            if not -MAX_SKEW <= skew <= MAX_SKEW:
                raise Untold(f"its clock is {skew:+.0f} s off this machine's: correct the wrong one")
            self._offset = now - moment
            if asked.owed is not None:
                asked.owed.told(answer)
            elif asked.done is not None:
                asked.done(answer)
        except Exception as error:
            if isinstance(error, Unfit) and self.state in (UP, SILENT):
                self._unfit(asked, error)
            else:
                self._asked.appendleft(asked)  # it was not done
                self._give_up(str(error) if isinstance(error, Untold) else STRANGE)
                return
        if self.state is not SILENT or self._asked:
            return
        if waited >= ANSWER_SECONDS:  # is it quicker now?
            self._say_alive(LIVES_SECONDS)
            return
        self._to(UP)
        log.warn("limits: Redis at {where} answers again", where=self.where)
        self._told = ""
        self._tell_owed(again=False)

    def _unfit(self, asked: _Asked, error: Unfit) -> None:
        """Some keys are another program's: of all limits those alone cannot be looked at."""
        if self._throttle.ready():
            why = plain(str(error), self._password)
            log.error("limits: in Redis at {where} something else has the key of a limit, which nothing passes: {why}",
                      where=self.where, why=why)  # fmt: skip
        if asked.owed is None:
            asked.unanswered()
        else:
            asked.owed.lost()

    def _fail_all(self) -> None:
        """No answer comes any more. What was owed is owed still."""
        asked, self._asked = self._asked, deque()
        self._out = []
        for one in reversed(asked):
            if one.owed is not None and self.state is not STOPPED:
                one.owed.kept()
                self._owed.appendleft(one.owed)
        for one in asked:
            one.unanswered()


def _fail(waiting: Deferred[Any]) -> None:
    if not waiting.called:
        waiting.errback(ConnectionError("it closed the connection"))


def _nothing(*_: Any) -> None:
    """Nobody waits for it any more."""


def _and_close(outcome: Any, connection: _Connection) -> Any:
    connection.take, connection.lost = _nothing, _nothing
    connection.abort()
    return outcome


class _Connection(TwistedProtocol):
    """Reads answers."""

    take: Callable[[Answer], Any]
    lost: Callable[[], Any]

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._held = 0
        self._end = b"\n"
        self._closed: Deferred[None] | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)

    def write(self, data: bytes) -> None:
        """Send."""
        transport: Any = self.transport
        transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Read what is whole."""
        self._held += len(data)
        seen, self._end = self._end + data, data[-8:]
        if self._held > MAX_ANSWER or _too_many(seen):
            self.take(ValueError("its answer is too long"))
            return
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
            while answer is not False:
                self._held = 0
                self.take(answer)
                answer = self._reader.gets()
        except Exception as error:
            self.take(error)

    def close(self) -> Deferred[None]:
        """Close after what was written."""
        self._closed = Deferred()
        transport: Any = self.transport
        transport.loseConnection()
        return self._closed

    def abort(self) -> None:
        """Close now."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.lost()
        if self._closed is not None:
            self._closed.callback(None)


class _Connections(Factory):
    noisy = False

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def buildProtocol(self, addr: object) -> _Connection:
        """One with a reader of its own."""
        return _Connection(self._reader())
