"""Two machines of two workers behind HAProxy, with one Redis and one PostgreSQL, and what an upstream sees of them."""

from __future__ import annotations

import json
import random
import re
import secrets
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import redis
from attrs import Factory, define, field

from flowstack.config.settings import Shared
from tests.cable import Cable
from tests.e2e.behind import Front, haproxy
from tests.e2e.crowd import STREAM, Gauge, answer_to, chat, chunk, codes, journal, once
from tests.e2e.processes import PATIENCE, ROOT, Proxy, eventually, invoke
from tests.e2e.raw import Answer, Client, Closed, values
from tests.e2e.raw_upstream import Seen, upstream
from tests.e2e.test_metrics import get
from tests.e2e.test_workers import admin_port
from tests.ledger.servers import Server, rows_in
from tests.redis_server import RedisServer
from tests.transport.certificates import Authority

SHARE, MACHINES, WORKERS = 0.5, 2, 2
PROMPT, COMPLETION = 20, 50
"""Tokens of each answer."""

UNAVAILABLE = "limits_unavailable"
PASSWORD = secrets.token_urlsafe(24)
"""Of Redis. PostgreSQL's is :data:`tests.ledger.servers.PASSWORD`."""
OPENAI_KEY = "sk-proj-" + secrets.token_urlsafe(40)
AGENT = f"canary/1 {OPENAI_KEY}"
"""Of each client, as of one that puts a credential where none belongs."""
ADMIN = {"username": "admin", "password": "admin"}
MANUAL = (ROOT / "docs/howto/several-machines.rst").read_text()
USERS = [line.replace("PASSWORD", PASSWORD) for line in re.findall(r"^ +(user .*)$", MANUAL, re.M)]
"""Of Redis, as the manual has them."""


@define
class Held:
    """A stream that goes on as the test says, at its upstream's end and at its client's."""

    seen: Seen
    name: str
    ended: threading.Event = Factory(threading.Event)
    client: Client | None = None
    request_id: str = ""

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

    def is_cut(self) -> bool:
        """Whether it was cut; if not, it goes on."""
        try:
            self.goes_on()
        except Closed:
            self.ended.set()
            return True
        return False

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

    def end(self) -> None:
        """End all that is held."""
        for held in self.held:
            held.ended.set()

    def script(self, seen: Seen) -> None:
        """Of an upstream."""
        assert seen.all(b"authorization") == [b"Bearer " + OPENAI_KEY.encode()]
        document = orjson.loads(seen.read_body())
        answer = answer_to(document, PROMPT, COMPLETION)
        with self.of(document["user"]).under_way():
            if not document.get("stream"):
                time.sleep(0.02)
            else:
                seen.link.offer(STREAM + chunk(b"data: {}\n\n"))
                held = Held(seen, document["user"])
                self.held.append(held)
                if not held.wait():
                    held.ended.set()
                    seen.link.close()
                    return
                answer = answer[len(STREAM) :]
        seen.link.offer(answer)


@define
class Load:
    """Clients that ask again and again.

    :ivar cut: how often one was given no answer.
    """

    answers: list[Answer] = Factory(list)
    cut: int = 0
    _ended: threading.Event = Factory(threading.Event)

    def codes(self, since: int = 0) -> Counter[str]:
        """What they were answered."""
        return Counter(codes(self.answers[since:]))

    @contextmanager
    def of(self, ask: Callable[[], Answer], clients: int) -> Iterator[None]:
        """So many at once, while the block lasts. One whose machine is killed asks again."""

        def client() -> None:
            while not self._ended.wait(random.uniform(0.01, 0.03)):
                try:
                    self.answers.append(ask())
                except Closed:
                    self.cut += 1

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


def _metric(machine: Proxy, name: str) -> int:
    found = re.search(rf"^{name} (\d+)", get(machine, "/metrics").body.decode(), re.M)
    return int(found[1]) if found else 0


@define
class Place:
    """Two machines, what is before and behind them, and what they count in.

    :ivar lines: the cables, to Redis and to PostgreSQL.
    :ivar ids: of all requests that were answered by the machines.
    :ivar beyond: by the key's name, the ids of streams beyond its limit, see :meth:`holds_no_more`.
    """

    on_failure: str
    machines: list[Proxy]
    front: Front
    provider: Provider
    server: RedisServer
    postgres: Server
    lines: tuple[Cable, Cable]
    heard: list[bytes]
    shared: Shared
    keys: dict[str, str] = field(repr=False)
    _start: Callable[..., Proxy]
    ids: set[str] = Factory(set)
    beyond: dict[str, list[str]] = Factory(dict)

    def request(self, name: str, **members: Any) -> bytes:
        fields = (b"Authorization: Bearer " + OPENAI_KEY.encode(), b"User-Agent: " + AGENT.encode(),
                  b"Flowstack-Attribute-Team: " + OPENAI_KEY.encode())  # fmt: skip
        members |= {"user": name, "max_completion_tokens": COMPLETION, "service_tier": "default"}
        return chat(self.keys[name], *fields, **members)

    def ask(self, name: str) -> Answer:
        """Ask on a connection of its own, so that any machine may get it."""
        answer = once(self.front.port, self.request(name))
        if (request_id := answer.one(b"flowstack-request-id")) is not None:
            self.ids.add(request_id.decode())
        return answer

    def hold(self, name: str) -> Held | str:
        """Open a stream; or what was answered instead."""
        before = len(self.provider.held)
        client = Client(self.front.port)
        client.send(self.request(name, stream=True))
        head = client.head()
        ids = values(head[2], b"flowstack-request-id")  # HAProxy's own answers have none
        if not head[1].startswith(b"HTTP/1.1 200 "):
            self.ids.update(request_id.decode() for request_id in ids)
            client.close()
            return (values(head[2], b"flowstack-error") or [head[1]])[0].decode()
        held: Held = eventually(lambda: self.provider.held[before:], "it is asked for at the upstream")[0]
        held.client, held.request_id = client, ids[0].decode()
        return held

    def holds_no_more(self, name: str, late: list[int]) -> bool:
        """Whether a further stream is refused for those that are open, once who is to say so is there and in time.

        With ``on_failure = "local"`` Redis does not count a stream about which it was asked and answered too late. So
        then, and only then, one more may pass: it is ended.

        :param late: what :meth:`late` was before those were opened.
        """

        def answered() -> Held | str | None:
            got = self.hold(name)
            return None if got == UNAVAILABLE or (isinstance(got, str) and got.startswith("HTTP/")) else got

        got = eventually(answered, "Redis answers")
        if isinstance(got, Held) and self.on_failure == "local":
            if name not in self.beyond:
                eventually(
                    lambda: any(now > was for now, was in zip(self.late(), late, strict=True)),
                    "Redis was late: else none may pass",
                )
            assert got.client is not None
            got.client.close()
            eventually(got.ended.is_set, "its upstream is told")
            self.beyond.setdefault(name, []).append(got.request_id)
            self.ids.add(got.request_id)
            return True
        return got == "flowstack_concurrency_exceeded"

    def hold_some(self, name: str, count: int) -> list[Held]:
        """Open so many, each at once or soon."""

        def one() -> Held | None:
            return found if isinstance(found := self.hold(name), Held) else None

        return [eventually(one, "there is one more place") for _ in range(count)]

    def open(self) -> list[Held]:
        """What is held."""
        return [held for held in self.provider.held if not held.ended.is_set()]

    def finish(self, name: str) -> None:
        """End all that is held of a key, well."""
        for held in self.open():
            if held.name == name:
                held.goes_on()
                held.finish()
                self.ids.add(held.request_id)

    def serves(self, name: str) -> bool:
        """Whether a request passes."""
        return self.ask(name).status == 200

    def metric(self, name: str) -> int:
        """What both machines say of it together."""
        return sum(_metric(one, name) for one in self.machines)

    def up(self) -> int:
        """How many processes say that their Redis answers."""
        return self.metric("flowstack_redis_up")

    def alone(self) -> int:
        """How many requests Redis did not answer in time."""
        return sum(self.late())

    def late(self) -> list[int]:
        """The same by machine; 0 of one that is not there."""
        found = [0] * len(self.machines)
        for at, machine in enumerate(self.machines):
            with suppress(ConnectionRefusedError):
                found[at] = _metric(machine, "flowstack_limits_without_redis_total")
        return found

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """Those of these keys in the journals of both machines, or all."""
        found = [row for machine in self.machines for row in journal(machine)]
        ids = {self.keys[name][4:16] for name in names}
        return [row for row in found if not names or row["key_id"] in ids]

    def admin(self) -> redis.Redis:
        return self.server.client(**ADMIN)

    def in_redis(self, name: str, kind: str) -> dict[bytes, bytes]:
        """What Redis has of a key's money (m) or of what it has in flight (p)."""
        with self.admin() as client:
            names = list(client.scan_iter(f"flowstack:{{{self.keys[name][4:16]}}}:*:{kind}*"))
            assert len(names) <= 1, names
            value: dict[bytes, bytes] = client.hgetall(names[0]) if names else {}
            return value

    def everything_in_redis(self) -> bytes:
        """All names and values."""
        found = []
        with self.admin() as client:
            for name in client.scan_iter():
                kind = client.type(name)
                if kind == b"hash":
                    value: Any = client.hgetall(name)
                else:
                    assert kind == b"zset", (name, kind)  # no text is kept of these requests
                    value = client.zrange(name, 0, -1, withscores=True)
                found.append(name + repr(value).encode())
        return b"\n".join(found)

    def in_postgresql(self) -> list[dict[str, Any]]:
        """The rows there."""
        return rows_in(self.postgres, self.shared)

    def sent(self) -> int:
        """How many there are."""
        with self.postgres.superuser(self._database) as connection:
            (count,) = connection.execute("SELECT count(*) FROM flowstack.ledger").fetchone() or (0,)
            return int(count)

    def everything_in_postgresql(self) -> bytes:
        """All that is in its tables, as text."""
        found = []
        with self.postgres.superuser(self._database) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'flowstack'").fetchall()
            for (name,) in tables:
                with connection.cursor().copy(f"COPY (SELECT * FROM flowstack.{name}) TO STDOUT") as copy:
                    found += [bytes(piece) for piece in copy]
        return b"".join(found)

    def asked_postgresql_at(self, name: str) -> float:
        """When a machine's shipper last began to ask it anything, in Unix seconds."""
        with self.postgres.superuser(self._database) as connection:
            (at,) = connection.execute(
                "SELECT extract(epoch FROM max(query_start)) FROM pg_stat_activity WHERE application_name = %s",
                (f"flowstack shipper {name}",),
            ).fetchone() or (None,)
            return float(at or 0)

    @property
    def _database(self) -> str:
        return (self.shared.postgres or "").rpartition("/")[2]

    def start_again(self, number: int) -> None:
        """Start a machine again that has ended, at the same ports and with all that it left."""
        ended = self.machines[number]
        at = "tcp:{}:interface=127.0.0.1"
        ports = {"listen": [at.format(ended.port)], "admin": at.format(admin_port(ended))}
        ended.log_path.rename(ended.log_path.with_name(f"before-{time.monotonic_ns()}.log"))
        self.machines[number] = self._start(number, **ports)


def told(proxy: Proxy, *words: str) -> dict[str, Any]:
    """What ``flowstack usage`` says."""
    done = invoke("flowstack", "usage", "--config", proxy.config_path, "--format", "json", *words, cwd=proxy.folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def place(folder: Path, on_failure: str, postgres: Server, keys: dict[str, str], secure: bool) -> Iterator[Place]:
    """The whole of it.

    :param keys: attributes of each, by a name.
    :param secure: whether Redis is spoken TLS with.
    """
    how: dict[str, Any] = {}
    shared: dict[str, Any] = {"on_failure": on_failure, "share": SHARE}
    if secure:
        authority = Authority(folder)
        how["tls"] = authority.issue("redis", "127.0.0.1")
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
        database = postgres.database(folder)
        lines = stack.enter_context(Cable(server.port)), stack.enter_context(Cable(postgres.port))
        scheme = "rediss" if secure else "redis"
        shared |= {
            "redis": f"{scheme}://flowstack@127.0.0.1:{lines[0].port}/0",
            "redis_password_file": str(password),
            "postgres": (database.postgres or "").replace(f":{postgres.port}/", f":{lines[1].port}/"),
            "postgres_password_file": str(database.postgres_password_file),
            "postgres_tls": False,
        }
        provider, behind = Provider(), stack.enter_context(upstream())
        behind.script = provider.script
        base = f"http://127.0.0.1:{behind.port}/v1"
        file = folder / "one" / "keys"

        def start(number: int, **more: Any) -> Proxy:
            name = ("one", "two")[number]
            common = {"workers": WORKERS, "trusted_proxies": ["127.0.0.1"], "proxy_protocol": True, "node": name,
                      "admin": "tcp:0:interface=127.0.0.1", "keys": str(file)}  # fmt: skip
            proxy = Proxy(folder / name, base, settings={"shared": shared, "server": common | more})
            stack.callback(proxy.kill)
            return proxy

        one = start(0)
        tokens = {name: one.keystore.add(attributes) for name, attributes in keys.items()}
        assert one.reload()["fault"] is None
        machines = [one, start(1)]
        front = stack.enter_context(haproxy(folder, *machines))
        found = Place(on_failure, machines, front, provider, server, postgres, lines, heard, database, tokens, start)
        eventually(lambda: found.up() == MACHINES * WORKERS, "all have connected to Redis")
        eventually(lambda: found.ask(next(iter(keys))).status == 200, "HAProxy has found them")
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
