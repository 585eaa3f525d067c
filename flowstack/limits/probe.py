"""What a Redis is found to be, before limits are counted in it: for ``flowstack check``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from flowstack.config.settings import Shared
from flowstack.limits.counters import CountersError
from flowstack.limits.link import ANSWER_SECONDS, MAX_SKEW, library
from flowstack.limits.remote_books import SECONDS, client_of, where_of
from flowstack.limits.told import FLIGHT, MONEY, REQUEST, TOKEN, Untold, key_of, plain, time_of

OLDEST: Final = 7
"""The first version that has functions. Valkey's numbers go on from there."""

STRANGE_SKEW: Final = 5.0
"""Seconds between Redis' clock and this machine's that no network explains."""

_NEEDED: Final = "the rights that the manual lists: Hold limits on several machines"

_PERIOD_MS: Final = 1000
_TRIES: Final = 3


@frozen(slots=True)
class Found:
    """What was found.

    :ivar text: which server it is, and where.
    :ivar doubts: what can be used but is hardly meant.
    """

    text: str
    doubts: tuple[str, ...]


def probe(shared: Shared, wall: Callable[[], float] = time.time) -> Found:
    """Connect as the service does, and count what a request does, on keys that nobody has and that end by themselves.

    Each answer is waited for no longer than :data:`flowstack.limits.remote_books.SECONDS`; the first fault ends it.

    :param wall: UTC Unix seconds.
    :raises CountersError: limits cannot be counted there; the text says why.
    """
    where = where_of(shared)
    with client_of(shared) as client:
        ask = _Asked(client.connection_pool.get_connection(), where)
        about = described(ask("HELLO"))
        if fault := misfit(about):
            raise CountersError(f"Redis at {where}: {fault}.")
        ask("SELECT", client.connection_pool.connection_kwargs["db"])
        role, took = _timed(ask)
        if not isinstance(role, list) or not role or role[0] != b"master":
            raise CountersError(f"Redis at {where}: found a replica, expected the master: set that one, or Sentinels.")
        if took > ANSWER_SECONDS:
            found, most = f"an answer after {took * 1000:.0f} ms", f"{ANSWER_SECONDS * 1000:.0f} ms at most"
            raise CountersError(f"Redis at {where}: found {found}, expected {most}: none is waited for longer.")
        ask.load()
        skew = _count(ask) - wall()
        if abs(skew) > MAX_SKEW:
            found = f"a clock {skew:+.0f} s off this machine's"
            most = f"{MAX_SKEW:.0f} s at most: correct the wrong one"
            raise CountersError(f"Redis at {where}: found {found}, expected {most}.")
        server = f"{about.get('server', 'Redis').capitalize()} {about['version']}"
        text = f"{where}: {server}, the master, answers after {took * 1000:.1f} ms"
        return Found(text, tuple(_doubts(ask, skew)))


def described(answer: Any) -> Mapping[str, str]:
    """What ``HELLO`` answers, as far as it is text."""
    words = answer if isinstance(answer, list) else []
    return {
        plain(name.decode("utf-8", "replace")): plain(value.decode("utf-8", "replace"))
        for name, value in zip(words[::2], words[1::2], strict=False)
        if isinstance(name, bytes) and isinstance(value, bytes)
    }


def misfit(about: Mapping[str, str]) -> str | None:
    """Why a server that says this of itself is none for limits."""
    number = about.get("version", "").partition(".")[0]
    if not number.isdecimal():
        return f"found a server that tells no version, expected Redis {OLDEST} or newer, or Valkey"
    if int(number) < OLDEST:
        return f"found Redis {about['version']}, expected version {OLDEST} or newer, or Valkey"
    if about.get("mode") == "cluster":
        return "found a member of a Redis Cluster, expected one server, or a master that Sentinels name"
    return None


class _Asked:
    """Asks on one connection, and says of what is refused why."""

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self._where = where
        self._name, self._text = library()

    def __call__(self, *words: Any) -> Any:
        import redis

        try:
            self._connection.send_command(*words)
            return self._connection.read_response()
        except redis.AuthenticationError:
            raise CountersError(
                f"Redis at {self._where}: found a server that asks for a password, expected one that asks for none: "
                "set redis_password_file."
            ) from None
        except redis.ResponseError as error:
            told = _short(str(error))
            if words == ("HELLO",) and "unknown command" in told:  # before version 6
                return []
            if isinstance(error, redis.exceptions.NoPermissionError) or "user executing the script can't" in told:
                told = f"found a user who may not do what counting takes ({told}), expected {_NEEDED}"
            raise CountersError(f"Redis at {self._where}: {words[0]}: {told}.") from None

    def load(self) -> None:
        """Have it load the functions."""
        try:
            self("FUNCTION", "LOAD", self._text)
        except CountersError as error:
            if "already exists" not in str(error):
                raise

    def call(self, function: str, keys: list[bytes], *arguments: Any) -> list[Any]:
        """Call one of the functions."""
        answer: list[Any] = self("FCALL", f"{self._name}_{function}", len(keys), *keys, *arguments)
        try:
            time_of(answer)
        except Untold as error:
            raise CountersError(f"Redis at {self._where}: {error}.") from None
        return answer

    def info(self) -> dict[str, str] | None:
        """What ``INFO`` says; None where the user may not ask it."""
        try:
            text = self("INFO", "everything")
        except CountersError:
            return None
        lines = text.decode("utf-8", "replace").splitlines() if isinstance(text, bytes) else []
        return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _timed(ask: _Asked) -> tuple[Any, float]:
    """Its role, and in how many seconds it says so: the best of some tries, as this process may be kept waiting."""
    best = SECONDS
    for _ in range(_TRIES):
        begun = time.monotonic()
        role = ask("ROLE")
        best = min(best, time.monotonic() - begun)
        if best <= ANSWER_SECONDS:
            break
    return role, best


def _short(told: str) -> str:
    """An error of Redis', without the words that were sent, and where in the functions it was."""
    for more in (", with args beginning", " script: "):
        told = told.partition(more)[0]
    return plain(told).rstrip(".")


def _count(ask: _Asked) -> float:
    """Take of each kind of limit, and give it back. Returns Redis' time."""
    unique = os.urandom(8).hex()
    who, slot = (f"check/{unique}".encode(), 1), f"check/{unique}\0"
    ask.call("alive", [], *who, 1_000_000, 1)
    now = time_of(ask.call("show", []))
    ends = int(now * 1000) + _PERIOD_MS
    keys = [key_of(kind, slot) for kind in (REQUEST, FLIGHT, TOKEN, MONEY)]
    taken = ask.call("take", keys, *who, 1, 1, -1, b"r09", b"p09", b"t09", b"m09:%d" % ends)
    bucket = taken[7] if len(taken) == 10 else 0
    ask.call("give", keys[1:], *who, b"p", b"t-1 %d" % bucket, b"m0 1 %d %d" % (taken[0], ends))
    ask.call("again", keys[1:2], *who, FLIGHT, 0, 0, 0)
    return time_of(ask.call("alive", [], *who, 0, 0))


def _doubts(ask: _Asked, skew: float) -> Iterator[str]:
    if abs(skew) > STRANGE_SKEW:
        yield (
            f"its clock is {skew:+.0f} s off this machine's, and is not used where it is over {MAX_SKEW:.0f} s off: "
            "correct the wrong one"
        )
    told = ask.info()
    if told is None:
        yield "its user may not ask INFO, so that eviction and persistence are not known: add +info to its rights"
        return
    policy = told.get("maxmemory_policy")
    if policy != "noeviction":
        yield (
            f"its maxmemory-policy is {plain(policy or 'not known')}, and what is evicted is forgotten, a budget with "
            "it: set noeviction"
        )
    if told.get("aof_enabled") != "1":
        yield (
            "its appendonly is no, so that a restart forgets what was spent of budgets since its last snapshot, if it "
            "makes any: set appendonly yes"
        )
    elif told.get("aof_last_write_status", "ok") != "ok":
        yield "it cannot write its append-only file: see its log"
