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
import redis
from attrs import evolve
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols import portforward

from flowstack.config.settings import Shared
from flowstack.errors import ParseError
from flowstack.limits.link import CONNECTING, MOVES, SILENT, SOON_SECONDS, STOPPED, UP, Link, State, library
from flowstack.limits.told import Unfit, unfit_of
from flowstack.states import IllegalMove
from tests.redis_server import RedisServer

reactor: Any = _reactor
LIMIT = 30.0

NO_TOKENS = b"-1", b"-1", b"-1"
"""What a take of requests alone is told first."""


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
    link.ask("take", [key], [*NO_TOKENS, b"r0" + most], answers.append)
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


@ensureDeferred
async def test_a_busy_process_takes_no_answer_for_missing_that_it_has_yet_to_read(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        for _ in range(3):
            answers: list[Any] = []
            link.ask("take", [b"flowstack:{k}::r"], [*NO_TOKENS, b"r09"], answers.append)
            own.signal(signal.SIGSTOP)
            link._flush()
            await deferLater(reactor, 0.02)
            own.signal(signal.SIGCONT)
            time.sleep(0.15)
            link._watch()  # as by a loop that looks at the time before it reads
            await until(lambda: answers)  # noqa: B023
            assert answers[0] is not None
        assert link.failures == 0


class Slow(portforward.ProxyServer):  # type: ignore[misc]
    """Answers of a Redis behind it come later."""

    def write_later(self, data: bytes) -> None:
        reactor.callLater(self.factory.delay, self.transport.write, data)


class SlowClient(portforward.ProxyClient):  # type: ignore[misc]
    def dataReceived(self, data: bytes) -> None:
        self.peer.write_later(data)


class SlowClients(portforward.ProxyClientFactory):  # type: ignore[misc]
    protocol = SlowClient


class SlowFactory(portforward.ProxyFactory):  # type: ignore[misc]
    noisy = False
    delay = 0.0
    protocol = Slow
    connections = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.connections += 1
        return super().buildProtocol(addr)


Slow.clientProtocolFactory = SlowClients


@pytest.fixture
def slow(own: RedisServer) -> Iterator[tuple[SlowFactory, str]]:
    factory = SlowFactory("127.0.0.1", own.port)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield factory, f"redis://127.0.0.1:{port.getHost().port}/0"
    port.stopListening()


@ensureDeferred
async def test_a_redis_that_is_slow_again_and_again_is_left_alone_until_it_is_quick(
    slow: tuple[SlowFactory, str], logged: list[str]
) -> None:
    factory, url = slow
    async with Linked(Shared(redis=url)) as link:
        await until(lambda: link.up)
        factory.delay = 0.15
        assert await asked(link) is None
        was_up = 0
        for _ in range(100):
            await deferLater(reactor, 0.01)
            was_up += link.up
        assert not was_up
        assert link.failures == 1
        factory.delay = 0.0
        await until(lambda: link.up)
        assert (await asked(link))[1] == 0
    assert len(logged) == 2


@ensureDeferred
async def test_a_redis_that_lost_what_it_was_told_counts_nothing_before_it_is_told_again(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        told: list[str] = []
        link.again = lambda: told.append("again") or []  # type: ignore[func-returns-value]
        with own.client() as client:
            client.flushall()
            assert await asked(link) is None
            await until(lambda: link.up)
            assert told == ["again"]
            assert (await asked(link))[1:3] == [0, 1]
            name = library()[0]
            for number, fault in ((1, "not known here"), (2, None)):
                words = (f"{name}_take", 1, "flowstack:{k}::p", link.worker, number, *NO_TOKENS, "p05")
                if fault is None:
                    assert client.execute_command("FCALL", *words)[1:3] == [0, 1]
                else:
                    with pytest.raises(redis.ResponseError, match=fault):
                        client.execute_command("FCALL", *words)


@ensureDeferred
async def test_a_redis_that_fails_at_each_request_is_not_connected_to_without_a_pause(
    slow: tuple[SlowFactory, str],
) -> None:
    factory, url = slow
    async with Linked(Shared(redis=url)) as link:
        await until(lambda: link.up)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            if link.up:
                words = [*NO_TOKENS, b"r"]  # at which the function fails
                link.ask("take", [b"flowstack:{k}::r"], words, lambda answer: None)
            await deferLater(reactor, 0.005)
        assert 2 < factory.connections <= 9
        await until(lambda: link.up)


@ensureDeferred
async def test_one_key_that_is_another_programs_is_refused_and_no_other(own: RedisServer, logged: list[str]) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        with own.client() as client:
            client.set("flowstack:{bad}::r", "7")
            client.hset("flowstack:{worse}::r", mapping={"b": "x", "t": "y", "3": "z"})
        owed = Remembering()
        link.owe(owed)
        await until(lambda: owed.outcome)
        assert owed.outcome == ["lost"]
        for _ in range(2):
            assert await asked(link, b"flowstack:{bad}::r") is None
            assert (await asked(link, b"flowstack:{good}::r"))[1] == 0
        partly = Partly()
        link.owe(partly)
        await until(lambda: partly.outcome)
        assert partly.outcome == ["told", "lost"]
        with own.client() as client:
            assert client.hget("flowstack:{good}::t", "t") == b"7"
            client.hset("flowstack:{bad}::t", mapping={"b": int(time.time()) // 2, "t": "y"})
        assert await asked(link, b"flowstack:{bad}::t") is None
        assert link.failures == 0
        assert (await asked(link, b"flowstack:{worse}::r"))[1] == 0
    assert len(logged) == 1 and "WRONGTYPE" in logged[0]


class Used:
    """Owes tokens that were used, so many when it is told."""

    def __init__(self) -> None:
        self.amount, self.outcome = 7, ""

    def words(self, again: bool) -> tuple[str, list[bytes], list[bytes]]:
        return "give", [b"flowstack:{k}::t"], [b"t%d 0" % self.amount]

    def told(self, answer: list[Any]) -> None:
        self.outcome = "told"

    def kept(self) -> None:
        self.outcome = "kept"

    lost = kept


@ensureDeferred
async def test_what_may_wait_is_told_within_milliseconds_and_before_what_is_asked(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        with own.client() as client:
            for ask in (False, True):
                client.delete("flowstack:{k}::t")
                owed = Used()
                link.owe_soon(owed)
                assert not link._asked, "it may grow yet"
                owed.amount = 9
                if ask:
                    answers: list[Any] = []
                    words = [b"0", b"0", b"-1", b"l09"]
                    link.ask("take", [b"flowstack:{k}::t"], words, answers.append)
                    await until(lambda: answers)  # noqa: B023
                    assert answers[0][2] == 9
                await until(lambda: owed.outcome)  # noqa: B023
                assert owed.outcome == "told"
                assert client.hget("flowstack:{k}::t", "t") == b"9"


@ensureDeferred
async def test_what_waits_when_a_link_ends_is_told_before(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        link.owe_soon(Used())
        assert not link._asked
    with own.client() as client:
        assert client.hget("flowstack:{k}::t", "t") == b"7"


@ensureDeferred
async def test_what_waits_when_redis_ends_is_told_when_it_is_back(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        owed = Used()
        link.owe_soon(owed)
        link._give_up("it ended")
        await deferLater(reactor, 2 * SOON_SECONDS)
        assert not owed.outcome
        await until(lambda: link.up and owed.outcome)
        with own.client() as client:
            assert client.hget("flowstack:{k}::t", "t") == b"7"


@ensureDeferred
async def test_what_waits_while_redis_is_silent_is_told_when_it_answers_again(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        own.signal(signal.SIGSTOP)
        try:
            answers: list[Any] = []
            link.ask("take", [b"flowstack:{k}::r"], [*NO_TOKENS, b"r09"], answers.append)
            link._flush()
            owed = Used()
            link.owe_soon(owed)
            link._to(SILENT)
            await deferLater(reactor, 2 * SOON_SECONDS)
            assert len(link._asked) == 1 and not owed.outcome
        finally:
            own.signal(signal.SIGCONT)
        await until(lambda: owed.outcome)
        assert owed.outcome == "told" and link.state is UP
        with own.client() as client:
            assert client.hget("flowstack:{k}::t", "t") == b"7"


class Remembering:
    """Owes to say that work was charged, whose key is another program's."""

    def __init__(self) -> None:
        self.outcome: list[str] = []

    def words(self, again: bool) -> tuple[str, list[bytes], list[bytes]]:
        return "charged", [b"flowstack:{bad}::r"], [b"1"]

    def told(self, answer: list[Any]) -> None:
        self.outcome.append("told")

    def kept(self) -> None:
        self.outcome.append("kept")

    def lost(self) -> None:
        self.outcome.append("lost")


class Partly(Remembering):
    """Owes tokens of a key that is another program's, and of one that is not."""

    def words(self, again: bool) -> tuple[str, list[bytes], list[bytes]]:
        return "give", [b"flowstack:{bad}::r", b"flowstack:{good}::t"], [b"t7 0", b"t7 0"]

    def told(self, answer: list[Any]) -> None:
        super().told(answer)
        raise Unfit(unfit_of(answer))


@ensureDeferred
async def test_a_text_that_looks_like_a_long_array_is_a_text(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        for text in (b"{*1000000}", b"{" * 65_530 + b"*1000000" * 4096):
            with own.client() as client:
                client.set("flowstack:text", text)
            answers: list[Any] = []
            link.ask("find", [b"flowstack:text"], [], answers.append)
            await until(lambda: answers)  # noqa: B023
            assert answers[0] is not None and answers[0][1] == text
        assert link.failures == 0


@ensureDeferred
async def test_one_look_at_the_time_is_due_and_no_more(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        for _ in range(3):
            await until(lambda: link.up)
            looks = [call for call in reactor.getDelayedCalls() if call.func == link._watch]
            assert len(looks) <= 1
            link._give_up("it is tried again")


@ensureDeferred
async def test_who_cannot_read_an_answer_keeps_no_other_waiting(own: RedisServer, logged: list[str]) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        answers: list[Any] = []

        def fail(answer: Any) -> None:
            answers.append(answer)
            if answer is not None:
                raise KeyError(b"l")

        words = [*NO_TOKENS, b"r09"]
        for done in (fail, answers.append):
            link.ask("take", [b"flowstack:{k}::r"], words, done)
        await until(lambda: len(answers) == 3)
        assert answers[1:] == [None, None]
        await until(lambda: link.up)
    assert "something else than our functions" in logged[0]


@ensureDeferred
async def test_a_password_is_not_logged_that_redis_repeats(tmp_path: Path, secret: Path, logged: list[str]) -> None:
    server = RedisServer(tmp_path / "odd", "rename-command AUTH \"\"").start()
    try:
        async with Linked(Shared(redis=server.url, redis_password_file=secret)) as link:
            await until(lambda: logged)
        assert "canary" not in logged[0]
        link._tell_trouble("ERR what is canary")
        assert logged[-1].endswith("ERR what is ...")
    finally:
        server.stop()


@ensureDeferred
async def test_what_comes_after_the_end_changes_nothing(own: RedisServer, logged: list[str]) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        connection: Any = link._connection
        stopped = link.stop()
        connection.dataReceived(b"*1\r\n:1780000000000000\r\n:7\r\n")
        assert link.state is STOPPED and not logged
        await stopped


@ensureDeferred
async def test_a_redis_that_stalls_holds_up_no_stop_and_is_told_what_was_owed_when_it_goes_on(own: RedisServer) -> None:
    async with Linked(Shared(redis=own.url)) as link:
        await until(lambda: link.up)
        own.signal(signal.SIGSTOP)
        try:
            assert await asked(link) is None
            owed = Remembering()
            owed.words = lambda again: ("give", [b"flowstack:{k}::t"], [b"t7 0"])  # type: ignore
            link.owe(owed)
            begun = time.monotonic()
            stopped = link.stop()
            assert stopped is not None
            await stopped
            assert time.monotonic() - begun < 5
        finally:
            own.signal(signal.SIGCONT)
        with own.client() as client:
            await until(lambda: client.hget("flowstack:{k}::t", "t") == b"7")


LIES = {
    "nothing of Redis'": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "ok to all": b"+OK\r\n",
    "numbers": b":1\r\n",
    "nil": b"$-1\r\n",
    "an error": b"-ERR no\r\n",
    "a master, and then nonsense": b"*1\r\n$6\r\nmaster\r\n",
    "an endless answer": b"$900000000\r\n" + b"x" * 3_000_000,
    "deep": b"*1\r\n" * 5000,
    "an endless array": b"*1000000000\r\n" * 9,
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
