"""Limiters of several machines on one Redis, in one process, and with a clock that is set by hand.

The functions run in a real server; of their text only the clock is another. What is sent is answered before the call
returns: the connection has tests of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import redis
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from flowstack.config.settings import Settings
from flowstack.limits.link import Owed, library
from flowstack.limits.remote import RemoteLimiter, RemoteReservation
from flowstack.limits.restore import open_counters
from flowstack.limits.share import settings_shared_out
from flowstack.limits.shared import SharedLimiter
from flowstack.limits.told import Untold, time_of
from tests.limits.lab import NOON, Clock

CLOCK = """local function now()
  return tonumber(redis.call('GET', 'clock'))
end
"""


EXPIRES = "  if ends > 0 then redis.call('PEXPIREAT', key, ends + LATE) end\n"
"""By the server's own clock, by which the periods of these tests have ended long ago."""


def with_clock(expires: str = "") -> tuple[str, str]:
    """The library's name and text, with a clock that is set.

    :param expires: in place of the line by which a budget's key expires.
    """
    _, text = library()
    body = text.decode().partition("\n")[2].replace(library()[0], "LIBRARY")
    begin = body.index("local function now()")
    end = body.index("end\n", begin) + 4
    body = body[:begin] + CLOCK + body[end:]
    assert body.count(EXPIRES) == 1
    body = body.replace(EXPIRES, expires)
    name = f"test_{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    return name, f"#!lua name={name}\n{body.replace('LIBRARY', name)}"


class AtOnce:
    """Stands for the link: asks, and has the answer.

    :ivar waits: whether what may be told some milliseconds later waits for what is asked next, or for time to pass;
        else these milliseconds are over when a call of the limiter returns.
    """

    up = True
    waits = False

    def __init__(self, client: redis.Redis, worker: bytes, clock: Clock) -> None:
        self.worker = worker
        self.clock = clock
        self.again: Callable[[], list[Owed]] = list
        self.waiting: list[Owed] = []
        self.soon: list[Owed] = []
        self.failures = 0
        self.connection = 0
        self._client = client
        self._name, text = with_clock()
        try:
            client.execute_command("FUNCTION", "LOAD", text)
        except redis.ResponseError as error:
            assert "already exists" in str(error)

    def call(self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        self._client.set("clock", int(self.clock() * 1e6))
        if function != "alive":
            self.live(new=True)  # a test's clock leaps, and this worker has been there all the while
        who = () if function in ("show", "reset") else (self.worker, self.connection)
        answer: list[Any] = self._client.execute_command(
            "FCALL", f"{self._name}_{function}", len(keys), *keys, *who, *arguments
        )
        time_of(answer)
        return answer

    def ask(
        self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Callable[[Any], None]
    ) -> None:
        if not self.up:
            done(None)
            return
        self.tell_now()
        done(self.call(function, keys, arguments))

    def owe(self, owed: Owed, again: bool = False) -> None:
        if self.up:
            self.tell_now()
            owed.told(self.call(*owed.words(again)))
        else:
            self.waiting.append(owed)

    def owe_soon(self, owed: Owed) -> None:
        self.soon.append(owed)

    def tell_now(self) -> None:
        """Those milliseconds are over."""
        if self.up:
            soon, self.soon = self.soon, []
            for owed in soon:
                self.owe(owed)

    def live(self, new: bool = False) -> None:
        self.call("alive", (), (b"20000000", b"%d" % new))

    def connect(self) -> None:
        self.connection += 1
        self.live(new=True)

    def come_back(self) -> None:
        """As after a new connection."""
        self.up = True
        self.failures += 1
        self.connect()
        owing, self.soon, self.waiting = [*self.again(), *self.soon, *self.waiting], [], []
        for owed in owing:
            self.owe(owed, again=True)


class Waited:
    """A limiter, or a reservation, of which each answer is waited for."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.one, name)
        return found if not callable(found) else lambda *args, **options: self._called(found, *args, **options)

    def _called(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return _waited(call, *args, **options)
        finally:
            link = getattr(self.one, "link", None)
            if link is not None and not link.waits:
                link.tell_now()


def _waited(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    got = call(*(arg.one if isinstance(arg, Waited) else arg for arg in args), **options)
    if isinstance(got, Deferred):
        outcome: list[Any] = []
        got.addBoth(outcome.append)
        (got,) = outcome
        if isinstance(got, Failure):
            got.raiseException()
    return Waited(got) if isinstance(got, RemoteReservation) else got


class RemoteLab:
    """As :class:`tests.limits.lab.Lab`: machines of one worker each."""

    def __init__(
        self, client: redis.Redis, workers: int = 2, settings: Settings | None = None, share: float | None = None
    ) -> None:
        self.wall = self.monotonic = Clock(NOON)
        self.links: list[AtOnce] = []
        self.limiters: list[Any] = []
        self.client = client
        self._settings = settings or Settings()
        self._share = share
        for _ in range(workers):
            self.add()

    def add(self) -> Any:
        """One more."""
        link = AtOnce(self.client, b"worker-%d" % len(self.links), self.wall)
        link.connect()
        mirror = SharedLimiter(open_counters(None, 1), self._settings, self.wall, self.wall)
        local = None
        if self._share is not None:
            less = settings_shared_out(self._settings, self._share)
            local = SharedLimiter(open_counters(None, 1), less, self.wall, self.wall)
        limiter = RemoteLimiter(link, mirror, local, self._share or 1.0, self._settings)  # type: ignore[arg-type]
        self.links.append(link)
        self.limiters.append(Waited(limiter))
        return self.limiters[-1]

    def go_on(self, seconds: float) -> None:
        """Let time pass. Workers that live say so."""
        self.wall.now += seconds
        for link in self.links:
            if link.up:
                link.tell_now()
                link.live(new=True)


__all__ = ["AtOnce", "RemoteLab", "Untold"]
