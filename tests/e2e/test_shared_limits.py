"""Two machines of two workers, behind HAProxy, count together in one Redis: what the upstream sees of it.

In the middle of load a machine is killed, Redis is killed and comes back, and Redis is cut off. What is counted is
counted at the upstream: no limit is exceeded by more than the manual says (``docs/howto/several-machines.rst``).
"""

from __future__ import annotations

import random
import re
import secrets
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from attrs import Factory, define, field, frozen

from tests.e2e.apart import Apart, apart, needs_network
from tests.e2e.behind import Front, haproxy
from tests.e2e.crowd import STREAM, Gauge, answer_to, chat, chunk, codes, cost, crowd, journal, once
from tests.e2e.processes import PATIENCE, ROOT, Proxy, contents, eventually, stop_all
from tests.e2e.raw import Answer, Client, Closed, assert_own_error, values
from tests.e2e.raw_upstream import Seen, Upstream, upstream
from tests.e2e.test_metrics import get
from tests.redis_server import RedisServer
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

RPM, PARALLEL, USD = 60, 5, 0.02
SHARE, MACHINES, WORKERS = 0.5, 2, 2
EACH = cost(20, 50)
"""What each answer costs, and declares that it may cost, but for its prompt."""

LOADS = {"load": f"rpm={RPM} max_parallel={PARALLEL}", "money": f"budget={USD}usd/total max_parallel={PARALLEL}"}
QUIET = {"hold": f"max_parallel={PARALLEL} budget=5usd/total", "free": "rpm=100000"}
TROUBLES = ("killed", "unplugged", "unheard")

KEYS = {
    "at once": f"rpm={RPM} max_parallel={PARALLEL} budget=1usd/total",
    "at once, money": f"rpm={RPM} max_parallel={PARALLEL} budget={USD}usd/total",
    **{f"{name} {trouble}": limits for trouble in TROUBLES for name, limits in (LOADS | QUIET).items()},
}

PASSWORD = secrets.token_urlsafe(24)
OPENAI_KEY = "sk-proj-" + secrets.token_urlsafe(40)
ADMIN = {"username": "admin", "password": "admin"}
MANUAL = (ROOT / "docs/howto/several-machines.rst").read_text()
USERS = [line.replace("PASSWORD", PASSWORD) for line in re.findall(r"^ +(user .*)$", MANUAL, re.M)]
"""Of Redis, as the manual has them."""


@define
class Held:
    """A stream that goes on as the test says, at its upstream's end and at its client's."""

    seen: Seen
    ended: threading.Event = Factory(threading.Event)
    client: Client | None = None

    def goes_on(self) -> None:
        """See that the next event arrives."""
        assert self.client is not None
        mark = secrets.token_hex(8).encode()
        self.seen.link.offer(chunk(b"data: " + mark + b"\n\n"))
        self.client.until(mark)

    def finish(self) -> None:
        """See that it ends well."""
        assert self.client is not None
        self.ended.set()
        self.client.until(b"data: [DONE]")
        self.client.close()

    def wait(self) -> bool:
        """Until the test ends it, or whoever asked is gone: then it says no."""
        while not self.ended.is_set():
            if select.select([self.seen.link.sock], [], [], 0.02)[0]:
                return False
        return True


@define
class Provider:
    """Answers, and counts what it has of each key: requests have its name in ``user``."""

    gauges: dict[str, Gauge] = Factory(dict)
    held: list[Held] = Factory(list)
    _lock: threading.Lock = Factory(threading.Lock)

    def of(self, name: str) -> Gauge:
        """What came with a key."""
        with self._lock:
            return self.gauges.setdefault(name, Gauge())

    def script(self, seen: Seen) -> None:
        """Of an upstream."""
        assert seen.all(b"authorization") == [b"Bearer " + OPENAI_KEY.encode()]
        document = orjson.loads(seen.read_body())
        answer = answer_to(document, 20, 50)
        with self.of(document["user"]).under_way():
            if not document.get("stream"):
                time.sleep(0.02)
            else:
                seen.link.offer(STREAM + chunk(b"data: {}\n\n"))
                held = Held(seen)
                self.held.append(held)
                if not held.wait():
                    seen.link.close()
                    return
                answer = answer[len(STREAM) :]
        seen.link.offer(answer)


@define
class Load:
    """Clients that ask again and again."""

    answers: list[Answer] = Factory(list)
    _ended: threading.Event = Factory(threading.Event)

    def codes(self, since: int = 0) -> Counter[str]:
        """What they were answered."""
        return Counter(codes(self.answers[since:]))

    @contextmanager
    def of(self, ask: Callable[[], Answer], clients: int) -> Iterator[None]:
        """So many at once, while the block lasts. One whose machine is killed asks again."""

        def client() -> None:
            while not self._ended.wait(random.uniform(0.01, 0.03)):
                with suppress(Closed):
                    self.answers.append(ask())

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()


@frozen
class Place:
    """Two machines, what is before and behind them, and what they count in."""

    on_failure: str
    server: RedisServer
    network: Apart | None
    machines: tuple[Proxy, Proxy]
    front: Front
    behind: Upstream
    provider: Provider
    heard: list[bytes]
    keys: dict[str, str] = field(repr=False)

    def request(self, name: str, **members: Any) -> bytes:
        fields = b"Authorization: Bearer " + OPENAI_KEY.encode()
        return chat(self.keys[name], fields, user=name, max_completion_tokens=50, service_tier="default", **members)

    def ask(self, name: str) -> Answer:
        """Ask on a connection of its own, so that any machine may get it."""
        return once(self.front.port, self.request(name))

    def hold(self, name: str) -> Held | str:
        """Open a stream; or what was answered instead."""
        before = len(self.provider.held)
        client = Client(self.front.port)
        client.send(self.request(name, stream=True))
        head = client.head()
        if not head[1].startswith(b"HTTP/1.1 200 "):
            client.close()
            return (values(head[2], b"flowstack-error") or [head[1]])[0].decode()
        held: Held = eventually(lambda: self.provider.held[before:], "it is asked for at the upstream")[0]
        held.client = client
        return held

    def up(self) -> int:
        """How many processes say that their Redis answers."""
        found = [re.search(rb"^flowstack_redis_up (\d+)", get(one, "/metrics").body, re.M) for one in self.machines]
        return sum(int(one[1]) for one in found if one)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [row for machine in self.machines for row in journal(machine, self.keys[name])]

    def admin(self) -> redis.Redis:
        return self.server.client(**ADMIN)

    def in_redis(self, name: str, kind: str) -> dict[bytes, bytes]:
        """What Redis has of a key's money (m) or of what it has in flight (p)."""
        with self.admin() as client:
            names = list(client.scan_iter(f"flowstack:{{{self.keys[name][4:16]}}}:*:{kind}*"))
            assert len(names) <= 1, names
            value: dict[bytes, bytes] = client.hgetall(names[0]) if names else {}
            return value


@contextmanager
def place(folder: Path, on_failure: str, network: Apart | None, secure: bool) -> Iterator[Place]:
    """The whole of it.

    :param network: where Redis is, if not on this machine.
    :param secure: whether it is spoken TLS with.
    """
    how: dict[str, Any] = {} if network is None else {"host": network.host, "before": network.before}
    shared: dict[str, Any] = {"on_failure": on_failure, "share": SHARE}
    if secure:
        authority = Authority(folder)
        how["tls"] = authority.issue("redis", "127.0.0.1" if network is None else network.host)
        shared["redis_ca_file"] = str(authority.file)
    password = folder / "redis.secret"
    password.touch(0o600)
    password.write_text(PASSWORD)
    # Each write is on disk before its answer: a busy disk may be more than a second behind.
    assert len(USERS) == 2
    options = ["appendonly yes", "appendfsync always", *USERS, "user admin on >admin ~* &* +@all"]
    server = RedisServer(folder / "redis", *options, **how)
    with ExitStack() as stack:
        server.start(**ADMIN)
        stack.callback(server.stop)
        heard = stack.enter_context(monitored(server))
        shared |= {"redis": server.url.replace("://", "://flowstack@"), "redis_password_file": str(password)}
        provider, behind = Provider(), stack.enter_context(upstream())
        behind.script = provider.script
        tables: dict[str, Any] = {"shared": shared}
        tables["server"] = {
            "workers": WORKERS,
            "trusted_proxies": ["127.0.0.1"],
            "proxy_protocol": True,
            "admin": "tcp:0:interface=127.0.0.1",
        }
        base = f"http://127.0.0.1:{behind.port}/v1"
        one = Proxy(folder / "one", base, settings=tables)
        stack.callback(one.kill)
        keys = {name: one.keystore.add(attributes) for name, attributes in KEYS.items()}
        assert one.reload()["fault"] is None
        tables["server"] = tables["server"] | {"keys": str(one.keys_path)}
        two = Proxy(folder / "two", base, settings=tables)
        stack.callback(two.kill)
        front = stack.enter_context(haproxy(folder, one, two))
        found = Place(on_failure, server, network, (one, two), front, behind, provider, heard, keys)
        eventually(lambda: found.up() == MACHINES * WORKERS, "all have connected to Redis")
        eventually(lambda: found.ask("free killed").status == 200, "HAProxy has found them")
        yield found
        assert behind.faults == []


@contextmanager
def monitored(server: RedisServer) -> Iterator[list[bytes]]:
    """What Redis is asked, as ``MONITOR`` tells it, also after a restart."""
    heard: list[bytes] = []
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(0.05):
            with suppress(redis.RedisError, OSError), server.client(**ADMIN) as client, client.monitor() as monitor:
                while not ended.is_set():
                    heard.append(monitor.next_command()["command"].encode())

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        server.kill()
        thread.join(PATIENCE)


@pytest.fixture(scope="module", params=["refuse", "local"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With ``refuse`` by TLS, with ``local`` without."""
    refuses = request.param == "refuse"
    with ExitStack() as stack:
        network = None if needs_network.args[0] else stack.enter_context(apart())
        found = stack.enter_context(place(tmp_path_factory.mktemp(request.param), request.param, network, refuses))
        yield found
        stop_all(found.machines)
        for machine in found.machines:
            log = machine.log_text()
            assert "Traceback" not in log and "Unhandled" not in log, log


@pytest.mark.parametrize("name", ["at once", "at once, money"])
def test_of_300_at_once_none_is_let_through_beyond_a_limit(shared: Place, name: str) -> None:
    refusals: list[Answer] = []

    def client(_: int) -> Answer:
        """Ask again where others are in flight, or the machine is so busy that Redis seems away, as an SDK does."""
        ends = time.monotonic() + PATIENCE
        while True:
            answer = shared.ask(name)
            if answer.status != 200:
                refusals.append(answer)
            passing = (b"flowstack_concurrency_exceeded", b"limits_unavailable")
            if answer.one(b"flowstack-error") not in passing or time.monotonic() > ends:
                return answer
            time.sleep(random.uniform(0.1, 0.4))

    answers = crowd(300, client)
    gauge = shared.provider.of(name)
    passed = Counter(codes(answers))["200"]
    assert gauge.most == PARALLEL
    assert len(gauge.arrived) == passed
    assert all(journal(machine, shared.keys[name]) for machine in shared.machines), "both machines served the key"
    why = "flowstack_rate_limit_exceeded" if name == "at once" else "flowstack_budget_exceeded"
    assert set(codes(answers)) == {"200", why}
    said = Counter(codes(refusals))
    unanswered = said.pop("limits_unavailable", 0)
    assert set(said) == {"flowstack_concurrency_exceeded", why}
    assert_own_error(next(one for one in answers if one.status != 200), 429, why)
    if name == "at once":
        assert RPM - unanswered <= passed <= RPM, "an answer that was lost counts for a minute"
    else:
        assert USD - PARALLEL * cost(40, 50) < passed * EACH <= USD, "all of it can be used, and nothing more"


@contextmanager
def killed(place: Place) -> Iterator[None]:
    """Redis ends by force, and is started again from its file."""
    place.server.kill()
    yield
    place.server.start(**ADMIN)


def unplugged(place: Place) -> AbstractContextManager[None]:
    assert place.network is not None
    return place.network.unplugged()


def unheard(place: Place) -> AbstractContextManager[None]:
    assert place.network is not None
    return place.network.unheard()


@pytest.mark.parametrize(
    "trouble",
    [killed, pytest.param(unplugged, marks=needs_network), pytest.param(unheard, marks=needs_network)],
    ids=TROUBLES,
)
def test_while_redis_is_away_limits_hold_as_the_manual_says_and_streams_go_on(
    shared: Place, trouble: Callable[[Place], AbstractContextManager[None]]
) -> None:
    name = trouble.__name__
    local = shared.on_failure == "local"
    load, money, free, hold = (f"{kind} {name}" for kind in (*LOADS, "free", "hold"))
    streams = [shared.hold(hold) for _ in range(3)]
    assert all(isinstance(one, Held) for one in streams), streams
    loads = Load(), Load()
    with loads[0].of(lambda: shared.ask(load), 6), loads[1].of(lambda: shared.ask(money), 6):
        eventually(lambda: len(shared.provider.of(load).arrived) >= 20, "the load has begun")
        with trouble(shared):
            begun, answered = time.monotonic(), []
            while time.monotonic() < begun + 1.5:
                answered.append(shared.ask(free))
            # One worker after another waits for 100 ms, and then none: with longer waits these would be few.
            assert len(answered) >= 8
            for other in (hold, hold):
                answered.append(shared.ask(other))
            assert set(codes(answered)) == {"200" if local else "limits_unavailable"}
            if not local:
                assert_own_error(answered[0], 503, "limits_unavailable")
            assert shared.up() == 0
            for stream in streams:
                assert isinstance(stream, Held)
                stream.goes_on()
        eventually(lambda: shared.up() == MACHINES * WORKERS, "all use Redis again")
        assert shared.ask(free).status == 200
        since = len(loads[0].answers), len(loads[1].answers)
        eventually(
            lambda: all(len(one.answers) > at + 40 for one, at in zip(loads, since, strict=True)), "load goes on"
        )
    # The upstream had all of it within a minute, the window of rpm.
    more = MACHINES * SHARE if local else 0
    rpm, flights, spent = shared.provider.of(load), shared.provider.of(load).most, shared.provider.of(money)
    assert rpm.arrived[-1] - rpm.arrived[0] < 55, "the machine is too slow for this test"
    assert len(rpm.arrived) <= RPM * (1 + more)
    assert max(flights, spent.most) <= PARALLEL + (MACHINES * int(PARALLEL * SHARE) if local else 0)
    assert len(spent.arrived) * EACH <= USD * (1 + more)
    limited = {"flowstack_rate_limit_exceeded"}, {"flowstack_budget_exceeded"}
    for one, why, at in zip(loads, limited, since, strict=True):
        known = {"200", "flowstack_concurrency_exceeded", *why}
        assert set(one.codes()) <= known | (set() if local else {"limits_unavailable"})
        assert set(one.codes(at)) <= known, "it is over"
    # Of what is in flight nothing was lost, and of what was asked in vain nothing is left.
    assert_left(shared, hold, PARALLEL - len(streams))
    streams += [one for one in shared.provider.held if one.client is not None and one not in streams]
    for stream in streams:
        assert isinstance(stream, Held)
        stream.goes_on()
        stream.finish()
    eventually(lambda: shared.in_redis(hold, "p") == {}, "nothing is in flight")
    for key in (hold, money):
        eventually(lambda key=key: assert_charged(shared, key), "Redis has what the rows say")
    shared.provider.held.clear()


def assert_left(place: Place, name: str, count: int) -> None:
    """See that so many more may be in flight, at once or soon, and no more; they are held then."""
    for _ in range(count):
        held = eventually(lambda: isinstance(one := place.hold(name), Held) and one, "there is one more place")
        assert isinstance(held, Held)
    assert place.hold(name) == "flowstack_concurrency_exceeded"


def assert_charged(place: Place, name: str) -> bool:
    """Whether a budget is charged exactly what its rows cost."""
    rows = place.rows(name)
    nanos = sum(round(row["cost_usd"] * 1e9) for row in rows if row["cost_usd"] is not None)
    return bool(nanos) and int(place.in_redis(name, "m").get(b"t", b"0")) == nanos


def test_no_credential_is_in_redis_or_in_a_log_or_a_metric(shared: Place) -> None:
    hidden = {PASSWORD, OPENAI_KEY[8:], *(token[16:] for token in shared.keys.values())}

    def assert_none(data: bytes, where: object) -> None:
        assert not any(secret.encode() in data for secret in hidden), where

    with shared.admin() as client:
        names = list(client.scan_iter())
        assert len(names) > len(KEYS)
        for name in names:
            kind = client.type(name)
            if kind == b"hash":
                value: Any = client.hgetall(name)
            else:
                assert kind == b"zset", (name, kind)
                value = client.zrange(name, 0, -1, withscores=True)
            assert_none(name + repr(value).encode(), name)
    fcalls = [words for words in shared.heard if words.startswith(b"FCALL")]
    assert len(fcalls) > 1000
    assert any(words.startswith(b"SELECT") for words in shared.heard), "what it is told to begin with is heard, too"
    assert_none(b"\n".join(shared.heard), "MONITOR")
    for path, data in contents(shared.server.directory):
        if path.name != "redis.conf":
            assert_none(data, path)
    for machine in shared.machines:
        for path, data in (*contents(machine.state_path), (machine.log_path, machine.log_path.read_bytes())):
            assert_none(data, path)
        for page in ("/metrics", "/readyz"):
            assert_none(get(machine, page).body, page)


def test_of_a_killed_machine_the_places_are_free_after_twenty_seconds(tmp_path: Path) -> None:
    with place(tmp_path, "refuse", None, secure=False) as found:
        one, two = found.machines
        hold, free = "hold killed", "free killed"
        streams = [found.hold(hold) for _ in range(PARALLEL - 1)]
        load = Load()
        with load.of(lambda: found.ask("load killed"), 6):
            eventually(lambda: len(found.provider.of("load killed").arrived) >= 10, "the load has begun")
            one.kill()
            killed_at = time.monotonic()
            lost = [stream for stream in streams if isinstance(stream, Held) and cut(stream)]
            assert len(lost) == 2, "they were spread evenly"
            left = PARALLEL - len(streams)
            assert_left(found, hold, left)
            assert found.hold(hold) == "flowstack_concurrency_exceeded", "what it had is not free at once"
            assert {found.ask(free).status for _ in range(10)} == {200}
            assert_left(found, hold, len(lost))
            assert 10 < time.monotonic() - killed_at < 25
        assert found.provider.of(hold).most == PARALLEL
        assert found.provider.of("load killed").most <= PARALLEL
        assert len(found.provider.of("load killed").arrived) <= RPM
        for held in found.provider.held:
            if held not in lost:
                held.goes_on()
                held.finish()
        two.stop()


def cut(stream: Held) -> bool:
    """Whether it was cut; if not, it goes on."""
    try:
        stream.goes_on()
    except Closed:
        return True
    return False
