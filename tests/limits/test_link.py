"""The link over real sockets: who it says it is, and what becomes of it where Redis stalls, ends, moves or lies."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher

from flowstack.config.settings import Shared
from flowstack.errors import ParseError
from flowstack.limits.link import CONNECTING, MOVES, SILENT, STOPPED, UP, Link, State
from flowstack.states import IllegalMove
from tests.redis_server import RedisServer

reactor: Any = _reactor
LIMIT = 30.0


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    def note(event: LogEvent) -> None:
        if event.get("log_format", "").startswith("limits:"):
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "own").start()
    yield server
    server.stop()


async def until(condition: Callable[[], Any], what: str = "") -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"did not come true: {what or condition}"
        await deferLater(reactor, 0.005)


class Linked:
    """A link while a test runs."""

    def __init__(self, shared: Shared, wall: Callable[[], float] = time.time) -> None:
        self.link = Link(shared, reactor, b"w%d" % random.getrandbits(40), wall, time.monotonic, random.uniform)

    async def __aenter__(self) -> Link:
        self.link.start()
        return self.link

    async def __aexit__(self, *_: object) -> None:
        stopped = self.link.stop()
        if stopped is not None:
            await stopped


async def asked(link: Link, key: bytes = b"flowstack:{k}::r", most: bytes = b"5") -> Any:
    """What a take of one request is answered."""
    answers: list[Any] = []
    link.ask("take", [key], [link.worker, b"r", b"0", most, b"0", b"0", b"0"], answers.append)
    await until(lambda: answers)
    return answers[0]


@ensureDeferred
async def test_it_loads_its_functions_says_that_it_lives_and_has_answers(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        assert abs(link.clock() - time.time()) < 5
        for number in (1, 2):
            assert (await asked(link))[1:3] == [0, number]
        with own.client() as client:
            assert client.zscore("flowstack:workers", link.worker) > time.time() * 1e6
    with own.client() as client:
        assert client.zscore("flowstack:workers", link.worker) is None, "who ends says so"


@ensureDeferred
async def test_a_second_of_the_same_text_finds_the_functions_there(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as one, Linked(Shared(redis=own.url)) as other:
        await until(lambda: one.up and other.up)
        assert [(await asked(link))[2] for link in (one, other)] == [1, 2]


@ensureDeferred
async def test_a_user_with_a_password_needs_no_more_than_the_manual_says(tmp_path: Path, secret: Path) -> None:
    server = RedisServer(
        tmp_path / "acl",
        "user default off",
        "user flowstack on >canary ~flowstack:* +@read +@write +fcall +function|load +time +select +role",
        "user admin on >admin ~* +@all",
    )
    server.start(username="admin", password="admin")
    try:
        url = server.url.replace("redis://", "redis://flowstack@")
        async with Linked(Shared(redis=url, redis_password_file=secret)) as link:
            await until(lambda: link.up)
            assert (await asked(link))[1:3] == [0, 1]
    finally:
        server.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "redis.secret"
    path.write_text("canary\n")
    path.chmod(0o600)
    return path


@ensureDeferred
async def test_a_wrong_password_is_told_once_and_never_shown(tmp_path: Path, secret: Path, logged: list[str]) -> None:
    server = RedisServer(tmp_path / "pw", "requirepass other")
    server.start(password="other")
    try:
        async with Linked(Shared(redis=server.url, redis_password_file=secret)) as link:
            await until(lambda: logged)
            await deferLater(reactor, 0.5)
            assert not link.up
            secret.write_text("other")
            link.reload()
            await until(lambda: link.up)
        assert len(logged) == 2
        assert "WRONGPASS" in logged[0] and "canary" not in "".join(logged)
        secret.write_text("two words")
        with pytest.raises(ParseError, match="the password of Redis and nothing else"):
            link.reload()
    finally:
        server.stop()


@ensureDeferred
async def test_a_redis_that_stalls_is_not_waited_for_and_is_used_again_when_it_answers(
    own: RedisServer, logged: list[str]
) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        own.signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            assert await asked(link) is None
            assert 0.05 < time.monotonic() - begun < 2
            assert link.state is SILENT and not link.up
        finally:
            own.signal(signal.SIGCONT)
        await until(lambda: link.up)
        assert (await asked(link))[1:3] == [0, 2], "what was asked before was done, though nobody waited"
    assert logged[0].endswith("it has not answered for 100 ms")


@ensureDeferred
async def test_a_redis_that_ends_is_connected_to_again(own: RedisServer, logged: list[str]) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        own.kill()
        await until(lambda: not link.up)
        assert link.state is CONNECTING
        own.start()
        await until(lambda: link.up)
        assert link.failures == 1
        assert (await asked(link))[1:3] == [0, 1]
    assert any("answers again, after" in line for line in logged)


@ensureDeferred
async def test_the_master_that_a_sentinel_names_is_asked_and_the_next_one_after_a_failover(tmp_path: Path) -> None:
    master = RedisServer(tmp_path / "one").start()
    other = RedisServer(tmp_path / "two").start()
    sentinel = RedisServer(tmp_path / "s", f"sentinel monitor main 127.0.0.1 {master.port} 1", sentinel=True).start()
    dead = f"127.0.0.1:{RedisServer(tmp_path / 'none').port}"
    shared = Shared(redis="redis://main:6379/0", redis_sentinels=(dead, f"127.0.0.1:{sentinel.port}"))
    try:
        async with Linked(shared) as link:
            await until(lambda: link.up)
            await asked(link)
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "REMOVE", "main")
                client.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", other.port, 1)
            master.kill()
            await until(lambda: link.failures == 1 and link.up)
            with other.client() as client:
                assert client.zscore("flowstack:workers", link.worker)
    finally:
        for server in (master, other, sentinel):
            server.stop()


@ensureDeferred
async def test_a_replica_is_not_used(tmp_path: Path, own: RedisServer, logged: list[str]) -> None:
    replica = RedisServer(tmp_path / "replica", f"replicaof 127.0.0.1 {own.port}").start()
    try:
        async with Linked(Shared(redis=replica.url)) as link:
            await until(lambda: logged)
            assert not link.up
            assert logged[0].endswith("it is not the master")
    finally:
        replica.stop()


@ensureDeferred
async def test_a_redis_whose_clock_is_far_off_is_not_used(own: RedisServer, logged: list[str]) -> None:
    async with Linked(Shared(redis=own.url), wall=lambda: time.time() + 400) as link:
        await until(lambda: logged)
        assert not link.up
    assert "its clock is -400 s off this machine's" in logged[0]


LIES = {
    "nothing of Redis'": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "ok to all": b"+OK\r\n",
    "numbers": b":1\r\n",
    "nil": b"$-1\r\n",
    "an error": b"-ERR no\r\n",
    "a master, and then nonsense": b"*1\r\n$6\r\nmaster\r\n",
    "an endless answer": b"$900000000\r\n" + b"x" * 3_000_000,
    "deep": b"*1\r\n" * 5000,
}


@ensureDeferred
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_what_is_no_redis_is_never_up(lie: bytes, logged: list[str]) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        listening.settimeout(0.2)
        while not ended.is_set():
            try:
                sock = listening.accept()[0]
            except TimeoutError:
                continue
            sock.settimeout(0.2)
            try:
                while not ended.is_set() and sock.recv(65536):
                    sock.sendall(lie * 4)
            except OSError:
                pass
            sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        async with Linked(Shared(redis=url)) as link:
            await until(lambda: logged)
            assert not link.up
            assert link.state in (CONNECTING, STOPPED) or not link.up
    finally:
        ended.set()
        thread.join()
        listening.close()


def test_each_move_of_a_link_is_in_its_table() -> None:
    link = Link(Shared(redis="redis://127.0.0.1:1/0"), reactor, b"w", time.time, time.monotonic, random.uniform)
    for before in State:
        for after in State:
            link.state = before
            if after in MOVES[before]:
                link._to(after)
                assert link.state is after
            else:
                with pytest.raises(IllegalMove):
                    link._to(after)
    assert link.failures == sum(after is not STOPPED for after in MOVES[UP])
    assert evolve(Shared(), redis="redis://h:1/0").redis == "redis://h:1/0"
