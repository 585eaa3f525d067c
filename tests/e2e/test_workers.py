"""Several workers and their parent: they share the load, survive each other, and reload and end as one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest

from tests.e2e.live import PROVIDER_KEY, Body, Cut, Link, Wire, Wires, error_of, live, until, wire
from tests.e2e.processes import (
    BIN,
    PATIENCE,
    ROOT,
    START,
    Keystore,
    Process,
    Proxy,
    StandIn,
    StartProxy,
    children,
    eventually,
    invoke,
    that_run,
    to_toml,
)
from tests.e2e.raw import Client, request
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

TWO = {"server": {"workers": 2, "admin": "tcp:0:interface=127.0.0.1"}}
WORKER = "flowstack.process.worker"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(*pids: int) -> None:
    """End processes that this test started."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(entry)))
    return found


def served_by(port: int, workers: list[int]) -> dict[int, int]:
    """By a client's port, the worker that holds the other end of its connection to the proxy's port."""
    owners = {inode: pid for pid in workers for inode in sockets_of(pid)}
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _state, *_, inode = line.split()[:10]
        if int(local.partition(":")[2], 16) == port and inode in owners:
            found[int(remote.partition(":")[2], 16)] = owners[inode]
    return found


class Stream:
    """A response that the test itself sends, piece by piece, and the worker that relays it."""

    def __init__(self, scene: Wire, client: Link, upstream: Link, body: Body, tag: str) -> None:
        self.client, self.upstream, self.body, self.tag = client, upstream, body, tag
        self.worker = served_by(scene.proxy.port, children(scene.proxy.pid))[client.sock.getsockname()[1]]

    async def flows(self, data: bytes = b"data: x\n") -> None:
        """See that a piece gets through."""
        await self.upstream.send(b"%x\r\n%b\r\n" % (len(data), data))
        assert await self.body.read(len(data)) == data

    async def finish(self) -> None:
        """See that it ends well."""
        await self.flows()
        await self.upstream.send(b"0\r\n\r\n")
        assert await self.body.rest() == b""

    async def is_cut(self) -> None:
        """See that it ends badly."""
        with pytest.raises(Cut):
            await self.body.rest()


async def begin(scene: Wire, tag: str) -> Stream:
    """Begin a stream."""
    client, upstream, _ = await scene.ask(tag)
    await upstream.send(CHUNKED)
    return Stream(scene, client, upstream, client.body(await client.head()), tag)


async def begin_on_each(scene: Wire, least: int = 2) -> list[Stream]:
    """Begin so many streams, and more until each worker has one."""
    workers = set(children(scene.proxy.pid))
    streams: list[Stream] = []
    while len(streams) < least or {stream.worker for stream in streams} != workers:
        assert len(streams) < 64
        streams.append(await begin(scene, f"stream-{len(streams)}"))
    return streams


def admin_port(proxy: Process) -> int:
    """The admin listener's."""
    found = eventually(
        lambda: re.search(r"admin listening on http://127\.0\.0\.1:(\d+)", proxy.log_text()),
        "the admin listener says where it is",
    )
    return int(found[1])


async def readiness(scene: Wire) -> tuple[int, bytes]:
    """What ``/readyz`` says in its first line."""
    client = await scene.dial(port=admin_port(scene.proxy))
    await client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, body = await client.message()
    client.close()
    return head.status, body.partition(b"\n")[0] + b"\n"


async def becomes(scene: Wire, answer: tuple[int, bytes]) -> None:
    """Wait until ``/readyz`` says this."""
    async with asyncio.timeout(PATIENCE):
        while await readiness(scene) != answer:
            await asyncio.sleep(0.02)


def asking(key: str) -> bytes:
    """A request that the stand-in answers."""
    return request(key, b"GET /v1/models HTTP/1.1", b"Authorization: Bearer " + PROVIDER_KEY.encode())


def status_of(port: int, key: str) -> int:
    """The status that a request with this key gets, on a new connection."""
    with Client(port) as client:
        return client.ask(asking(key)).status


@pytest.fixture
def pair(wires: Wires, stand_in: StandIn) -> Wire:
    """Two workers before the stand-in, for tests that kill none of them."""
    return wires(upstream=f"{stand_in.url}/v1", server={"workers": 2})


def test_two_workers_share_the_connections(pair: Wire) -> None:
    proxy = pair.proxy
    workers = children(proxy.pid)
    assert len(workers) == 2
    # The kernel deals them out as a coin would; with 256, a fair coin would leave the range once in 700 runs.
    clients = [Client(proxy.port) for _ in range(512)]
    for client in clients:
        assert client.ask(asking(proxy.key)).status == 200
    served = served_by(proxy.port, workers)
    counts = Counter(served[client.sock.getsockname()[1]] for client in clients)
    assert sum(counts.values()) == 512
    assert all(0.4 * 512 <= counts[worker] <= 0.6 * 512 for worker in workers), counts
    # Of the parent's sockets none is connected; those that listen have no peer.
    assert set(served_by(proxy.port, [proxy.pid])) == {0}
    for client in clients:
        client.close()


async def keep_knocking(scene: Wire, results: list[str]) -> None:
    """Ask again and again, each time on a new connection; write down what became of each."""
    number = 0
    while True:
        number += 1
        results.append("under way")
        try:
            client = await scene.dial()
            await client.send(scene.request(target="/nowhere"))
            head, _ = await client.message(PATIENCE)
            client.close()
            results[-1] = str(head.status)
        except (Cut, ConnectionResetError, BrokenPipeError):
            results[-1] = "cut"
        except ConnectionRefusedError:
            results[-1] = "refused"


@live
async def test_a_killed_worker_takes_its_own_connections_along_and_no_others_and_is_replaced(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **TWO) as scene:
        streams = await begin_on_each(scene, 8)
        doomed, survivor = children(scene.proxy.pid)
        # What a restarted worker serves by is what the others do, also when the file has been edited since.
        scene.proxy.config_path.write_text("no longer TOML")
        scene.proxy.keystore.replace("no keystore\n")
        results: list[list[str]] = [[] for _ in range(4)]
        clients = [asyncio.create_task(keep_knocking(scene, result)) for result in results]
        await until(lambda: all(len(result) > 10 for result in results), "the load runs")
        os.kill(doomed, signal.SIGKILL)
        for stream in streams:
            if stream.worker == survivor:
                await stream.flows()
            else:
                await stream.is_cut()

        def replaced() -> int | None:
            return next((pid for pid in children(scene.proxy.pid) if pid not in (doomed, survivor)), None)

        fresh = await until(replaced, "another worker is started")
        before = [len(result) for result in results]
        probes = []
        async with asyncio.timeout(PATIENCE):
            while True:
                client = await scene.dial()
                probes.append(client)
                await client.send(scene.request(target="/nowhere"))
                await client.message(PATIENCE)
                if served_by(scene.proxy.port, [fresh]).get(client.sock.getsockname()[1]):
                    break
        await until(
            lambda: all(len(result) > count + 10 for result, count in zip(results, before, strict=True)), "the load"
        )
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        found = Counter(result for each in results for result in each)
        # Whoever was connected to the one that died was cut: at most one connection for each client.
        assert set(found) <= {"404", "cut", "under way"}, found
        assert found["cut"] <= len(clients), found
        assert "worker 0 ended and is restarted in 0.1 s" in scene.proxy.log_text()
        assert set(children(scene.proxy.pid)) == {survivor, fresh}
        assert scene.proxy.log_text().count("was not reloaded; the 1 keys of generation 1 stay in force") == 1
        for stream in streams:
            if stream.worker == survivor:
                await stream.finish()
        assert await readiness(scene) == (200, b"ok\n")


@live
async def test_workers_whose_parent_is_killed_finish_their_streams_and_end_and_another_can_take_the_port(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **TWO) as scene:
        streams = await begin_on_each(scene)
        workers, port = children(scene.proxy.pid), scene.proxy.port
        os.kill(scene.proxy.pid, signal.SIGKILL)
        assert await scene.ended() == -signal.SIGKILL
        try:
            await scene.refuses()
            again = start_proxy(server={"workers": 2, "listen": [f"tcp:{port}:interface=127.0.0.1"]})
            assert status_of(port, again.key) == 200
            for stream in streams:
                await stream.flows()
            assert all(map(alive, workers))
            for stream in streams:
                await stream.finish()
            await until(lambda: not any(map(alive, workers)), "the workers end")
            assert status_of(port, again.key) == 200
        finally:
            kill(*workers)
            scene.proxy.kill()
        rows = {row["attributes"]["tag"]: row["end"] for row in scene.rows()}
        assert rows == {stream.tag: "complete" for stream in streams}
        assert scene.proxy.log_text().count("the parent process is gone") == 2


def test_after_a_reload_no_worker_takes_the_removed_key_and_each_takes_the_added_one(pair: Wire) -> None:
    proxy = pair.proxy
    workers, before = children(proxy.pid), proxy.reload()["keys"]
    for turn in range(4):
        removed = proxy.keystore.add()
        generation = proxy.reload()["generation"]
        kept = [Client(proxy.port) for _ in range(24)]
        assert {client.ask(asking(removed)).status for client in kept} == {200}
        served = served_by(proxy.port, workers)
        assert {served[client.sock.getsockname()[1]] for client in kept} == set(workers)
        proxy.keystore.remove(removed)
        added = proxy.keystore.add()
        report = proxy.reload()
        assert (report["generation"], report["keys"], report["fault"]) == (generation + 1, before + 1 + turn, None)
        for client in kept:
            assert client.ask(asking(removed)).status == 401
            client.close()
        assert {status_of(proxy.port, removed) for _ in range(24)} == {401}
        assert {status_of(proxy.port, added) for _ in range(24)} == {200}
    proxy.keystore.replace("nonsense\n")
    assert proxy.reload()["fault"]
    assert {status_of(proxy.port, proxy.key) for _ in range(24)} == {200}
    assert children(proxy.pid) == workers


@live
async def test_no_request_fails_while_workers_reload(pair: Wire) -> None:
    async with pair as scene:
        generation = (await asyncio.to_thread(scene.proxy.reload))["generation"]
        counts = [0] * 6

        async def keep_asking(number: int) -> None:
            while True:
                client = await scene.dial()
                for _ in range(3):
                    await client.send(scene.request(method="GET", target="/v1/models", body=b""))
                    assert (await client.message())[0].status == 200
                    counts[number] += 1
                client.close()

        clients = [asyncio.create_task(keep_asking(number)) for number in range(len(counts))]
        for turn in range(6):
            scene.proxy.keystore.add()
            report = await asyncio.to_thread(scene.proxy.reload)
            assert (report["generation"], report["fault"]) == (generation + 1 + turn, None)
            assert not any(client.done() for client in clients), clients
        await until(lambda: min(counts) > 10, "all ask on")
        for client in clients:
            client.cancel()
        ends = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@live
async def test_sigterm_lets_streams_on_all_workers_finish_and_sends_new_requests_elsewhere(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    async with wire(start_proxy, tmp_path, **TWO) as scene:
        assert await readiness(scene) == (200, b"ok\n")
        streams = await begin_on_each(scene)
        workers = children(scene.proxy.pid)
        idle: dict[int, Link] = {}
        while set(idle) != set(workers):
            client, upstream, _ = await scene.ask("idle")
            # Closed, so that the next one does not come on the same connection.
            await upstream.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert (await client.message())[1] == b"ok"
            idle[served_by(scene.proxy.port, workers)[client.sock.getsockname()[1]]] = client
        scene.proxy.signal(signal.SIGTERM)
        await becomes(scene, (503, b"draining\n"))
        await scene.refuses()
        for client in idle.values():
            await client.send(scene.request("late"))
            head, answer = await client.message()
            assert (head.status, head.get("flowstack-error"), head.get("connection")) == (503, "draining", "close")
            assert int(head.get("retry-after") or 0) >= 1
            assert error_of(answer)["code"] == "draining"
            assert await client.end() == "fin"
        for stream in streams:
            await stream.flows()
        first, *others = streams
        for stream in others:
            await stream.finish()
        await first.flows()
        with pytest.raises(TimeoutExpired):
            scene.proxy.wait(0)  # one stream is still under way
        assert await readiness(scene) == (503, b"draining\n")
        await first.finish()
        assert await scene.ended() == 0
        assert not any(map(alive, workers))
        ends = Counter((row["end"], row["status"]) for row in scene.rows() if row["attributes"]["tag"] != "idle")
        assert ends == {("complete", 200): len(streams), ("refused", 503): 2}


@live
async def test_a_second_sigterm_ends_all_workers_now_with_status_0(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path, **TWO) as scene:
        streams = await begin_on_each(scene)
        workers = children(scene.proxy.pid)
        scene.proxy.signal(signal.SIGTERM)
        await becomes(scene, (503, b"draining\n"))
        scene.proxy.signal(signal.SIGTERM)
        for stream in streams:
            await stream.is_cut()
        assert await scene.ended() == 0
        assert not any(map(alive, workers))
        assert {row["end"] for row in scene.rows()} == {"drain"}
        assert len(scene.rows()) == len(streams)


@live
async def test_streams_that_outlast_the_drain_are_cut_on_all_workers(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with wire(start_proxy, tmp_path, timeouts={"drain": 0.5}, **TWO) as scene:
        streams = await begin_on_each(scene)
        scene.proxy.signal(signal.SIGTERM)
        for stream in streams:
            await stream.is_cut()
        assert await scene.ended() == 0
        assert [row["end"] for row in scene.rows()] == ["drain"] * len(streams)


def fails(folder: Path, **server: Any) -> str:
    """Start what cannot start with two workers, see that it ends with status 1, and give what it says."""
    folder.mkdir(exist_ok=True)
    keystore = Keystore(folder / "keys")
    keystore.add()
    log = server.pop("log", {})
    tables = {"server": {"keys": str(keystore.path), "workers": 2, **server}, "log": log}
    (folder / "flowstack.toml").write_text(to_toml(tables))
    done = invoke("twistd", "-n", "--pidfile=", "flowstack", "--config", folder / "flowstack.toml", cwd=folder)
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "Traceback" not in told
    return told


def test_a_start_whose_workers_cannot_serve_ends_with_status_1_and_says_why(tmp_path: Path) -> None:
    fifo = tmp_path / "requests.log"  # which nobody reads
    os.mkfifo(fifo)
    told = fails(tmp_path, listen=["tcp:0:interface=127.0.0.1"], log={"requests": str(fifo)})
    assert f"[log] requests: [Errno 6] No such device or address: '{fifo}'" in told
    assert "ended before it could serve" in told
    assert "listening on" not in told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_names_every_place_at_once_that_it_could_not_write_to(workers: int, tmp_path: Path) -> None:
    listen, none = ["tcp:0:interface=127.0.0.1", f"unix:{tmp_path}/none/sock"], tmp_path / "none"
    log = {"requests": str(none / "log")}
    told = fails(tmp_path, listen=listen, workers=workers, state=str(none / "state"), log=log)
    checked = invoke("flowstack", "check", "--config", tmp_path / "flowstack.toml")
    for text in (told, checked.stderr):
        for key in ("[server] state", "[server] listen[1]", "[log] requests"):
            assert f"{key}: found '{none}/" in text
        assert text.count(f"whose folder '{none}' does not exist") == 3
    assert checked.returncode == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_socket_that_systemd_did_not_hand_over_ends_the_start_with_one_clear_line(
    workers: int, tmp_path: Path
) -> None:
    endpoint = "systemd:domain=INET:name=flowstack.socket"
    told = fails(tmp_path, listen=[endpoint], workers=workers)
    (line,) = [line for line in told.splitlines() if endpoint in line]
    assert f"cannot listen on {endpoint}: systemd handed over no such socket; " in line


def test_a_port_on_which_another_flowstack_listens_is_not_shared_with_it(pair: Wire, tmp_path: Path) -> None:
    endpoint = f"tcp:{pair.proxy.port}:interface=127.0.0.1"
    told = fails(tmp_path / "other", listen=[endpoint])
    (line,) = [line for line in told.splitlines() if f"cannot listen on {endpoint}: " in line]
    assert "Address already in use" in line


class Manager:
    """Systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000"}
        self.told: list[str] = []

    def heard(self, *words: str) -> bool:
        """Whether these notices have come in this order since :meth:`forget`; those between them do not matter."""
        with suppress(BlockingIOError):
            while True:
                self.told.append(self._socket.recv(4096).decode().split("\n")[0])
        rest = iter(self.told)
        return all(word in rest for word in words)

    def forget(self) -> None:
        """Begin anew."""
        self.heard()
        self.told.clear()

    def close(self) -> None:
        self._socket.close()


@contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    """Stop it at the end; whatever went wrong, leave none of its processes."""
    workers = children(proxy.pid)
    try:
        yield proxy
        proxy.stop()
        assert not any(map(alive, workers))
        assert "Traceback" not in proxy.log_text(), proxy.log_text()
    finally:
        proxy.kill()
        kill(*workers)


def test_systemd_hears_of_the_start_of_all_workers_of_reloads_of_health_and_of_the_end(
    stand_in: StandIn, tmp_path: Path, short_path: Path
) -> None:
    manager = Manager(short_path / "notify")
    with running(Proxy(tmp_path / "proxy", f"{stand_in.url}/v1", settings=TWO, env=manager.environment)) as proxy:
        eventually(lambda: manager.heard("READY=1", "WATCHDOG=1", "WATCHDOG=1"), "READY=1 and the watchdog's answers")
        for worker in children(proxy.pid):
            environment = Path(f"/proc/{worker}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in environment
            assert b"WATCHDOG_USEC" not in environment
        manager.forget()
        proxy.reload()
        eventually(lambda: manager.heard("RELOADING=1", "READY=1"), "RELOADING=1, then READY=1")
        manager.forget()
        proxy.stop()
        assert manager.heard("STOPPING=1")
        assert not manager.heard("STOPPING=1", "READY=1")
    manager.close()


def test_systemd_does_not_hear_of_readiness_before_the_last_worker_serves(
    stand_in: StandIn, tmp_path: Path, short_path: Path
) -> None:
    manager = Manager(short_path / "notify")
    held: list[int] = []

    def hold(pid: int) -> None:
        # The second worker, as soon as it runs its program: stopped before that, it would hold the parent in vfork.
        both = eventually(lambda: found if len(found := that_run(pid, WORKER)) == 2 else None, "two workers start")
        second = both[1]
        os.kill(second, signal.SIGSTOP)
        held.append(second)

    log = tmp_path / "proxy.log"
    keystore = Keystore(tmp_path / "keys")
    tables = {"server": {**TWO["server"], "keys": str(keystore.path), "listen": ["tcp:0:interface=127.0.0.1"]}}
    (tmp_path / "flowstack.toml").write_text(to_toml(tables))
    with log.open("wb") as output:
        started = subprocess.Popen(
            [str(BIN / "twistd"), "-n", "--pidfile=", "flowstack", "--config", str(tmp_path / "flowstack.toml")],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **manager.environment},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        hold(started.pid)
        # The parent's admin listener, and the first worker's public one.
        eventually(lambda: log.read_text().count("Site starting on") == 2, "the first worker serves")
        assert not manager.heard("READY=1")
        with pytest.raises(TimeoutExpired):
            started.wait(0.3)
        assert not manager.heard("READY=1")
        assert "flowstack listening" not in log.read_text()
        os.kill(held[0], signal.SIGCONT)
        eventually(lambda: manager.heard("READY=1"), "READY=1")
        eventually(lambda: "flowstack listening" in log.read_text(), "it says where it listens")
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE) == 0
    finally:
        kill(*held)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        manager.close()


@live
async def test_a_daemon_with_two_workers_serves_logs_for_them_and_ends_with_all_of_them(
    stand_in: StandIn, tmp_path: Path
) -> None:
    keystore = Keystore(tmp_path / "keys")
    key = keystore.add()
    pidfile, log = tmp_path / "flowstack.pid", tmp_path / "twistd.log"
    tables = {
        "server": {"keys": str(keystore.path), "state": str(tmp_path), "listen": ["tcp:0:interface=127.0.0.1"]}
        | {"workers": 2},
        "upstreams": {"openai": {"base_url": f"{stand_in.url}/v1"}},
    }
    (tmp_path / "flowstack.toml").write_text(to_toml(tables))
    before = [str(BIN / "twistd"), "--pidfile", str(pidfile)]
    started = await asyncio.to_thread(
        subprocess.run,
        # The paths in it are the invoker's, wherever the daemon goes.
        [*before, "--rundir", "/", "--logfile", str(log), "flowstack", "--config", "flowstack.toml"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=START, check=False, capture_output=True,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    pid = int(pidfile.read_text())
    workers: list[int] = []
    try:
        found = await until(
            lambda: re.search(r"flowstack listening on http://127\.0\.0\.1:(\d+)", log.read_text()),
            "it serves",
            PATIENCE,
        )
        workers = children(pid)
        assert len(workers) == 2
        assert {await asyncio.to_thread(status_of, int(found[1]), key) for _ in range(8)} == {200}
        keystore.remove(key)
        os.kill(pid, signal.SIGHUP)
        await until(lambda: log.read_text().count("0 keys, generation 2") == 3, "parent and workers log the reload")
        assert {await asyncio.to_thread(status_of, int(found[1]), key) for _ in range(8)} == {401}
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not alive(pid), "the daemon ends", PATIENCE)
        assert not any(map(alive, workers))
        assert not pidfile.exists()
        text = log.read_text()
        assert text.count("draining, 0 requests in flight") == 2
        # Rows go to standard output, which a daemon has not: they go where all else goes.
        assert text.count('"path":"/v1/models"') == 8
        assert "Traceback" not in text, text
        assert key not in text
    finally:
        kill(pid, *workers)


def test_two_workers_serve_a_socket_that_systemd_handed_over(stand_in: StandIn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # systemd's protocol: descriptors from 3 on, their names, and a LISTEN_PID that only the new process can know.
        hand_over = 'exec 3<&"$0" && export LISTEN_FDS=1 LISTEN_FDNAMES=flowstack.socket LISTEN_PID=$$ && exec "$@"'
        settings = {"server": {"workers": 2, "listen": ["systemd:domain=INET:name=flowstack.socket"]}}
        with running(
            Proxy(
                tmp_path / "proxy",
                f"{stand_in.url}/v1",
                settings=settings,
                before=("bash", "-c", hand_over, str(listener.fileno())),
                fds=(listener.fileno(),),
            )
        ) as proxy:
            assert proxy.port == listener.getsockname()[1]
            assert {status_of(proxy.port, proxy.key) for _ in range(16)} == {200}
        # It is systemd's: the next start finds it listening.
        with socket.create_connection(listener.getsockname(), 10):
            pass


class UnixClient(Client):
    """A connection to a UNIX socket."""

    def __init__(self, path: Path) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        super(Client, self).__init__(sock)


def test_two_workers_serve_a_unix_socket_with_the_mode_that_was_asked_for(
    start_proxy: StartProxy, short_path: Path
) -> None:
    path = short_path / "http.sock"
    listen = ["tcp:0:interface=127.0.0.1", f"unix:{path}:mode=660"]
    proxy = start_proxy(server={"workers": 2, "listen": listen})
    eventually(lambda: f"flowstack listening on unix:{path}" in proxy.log_text(), "it says that it listens there, too")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    for _ in range(16):
        with UnixClient(path) as client:
            assert client.ask(asking(proxy.key)).status == 200
    # A worker that ends leaves it to the others.
    first, _ = children(proxy.pid)
    os.kill(first, signal.SIGTERM)
    eventually(lambda: first not in children(proxy.pid), "the worker ends")
    with UnixClient(path) as client:
        assert client.ask(asking(proxy.key)).status == 200
    eventually(lambda: len(children(proxy.pid)) == 2, "another takes its place")
    proxy.stop()
    assert not path.exists()
    assert "Traceback" not in proxy.log_text(), proxy.log_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_on_which_another_flowstack_listens_is_left_to_it(
    start_proxy: StartProxy, tmp_path: Path, short_path: Path, workers: int
) -> None:
    path = short_path / "http.sock"
    listen = ["tcp:0:interface=127.0.0.1", f"unix:{path}:mode=600"]
    proxy = start_proxy(server={"workers": workers, "listen": listen})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for attempt in ("first", "second"):
        told = fails(tmp_path / attempt, listen=[f"unix:{path}"], workers=workers)
        (line,) = [line for line in told.splitlines() if f"cannot listen on unix:{path}: " in line]
        assert f"{path}.lock: its lock is held by process {proxy.pid} (" in line
        with UnixClient(path) as client:
            assert client.ask(asking(proxy.key)).status == 200
    proxy.stop()
    assert not os.listdir(short_path)
    assert "Traceback" not in proxy.log_text(), proxy.log_text()


def certificate_of(port: int, trusted: ssl.SSLContext) -> str:
    """The common name in the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        trusted.wrap_socket(plain, server_hostname="flowstack.example") as secure,
    ):
        found: Any = secure.getpeercert()
    return str(dict(pair for part in found["subject"] for pair in part)["commonName"])


def test_after_a_reload_all_workers_show_the_new_certificate_and_a_bad_one_is_not_taken(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    old, new = (authority.issue(name, "flowstack.example") for name in ("old", "new"))
    served = tmp_path / "served.crt", tmp_path / "served.key"

    def use(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, served, strict=True):
            target.write_bytes(source.read_bytes())

    use(old)
    listen = [f"ssl:0:interface=127.0.0.1:certKey={served[0]}:privateKey={served[1]}"]
    proxy = start_proxy(server={"workers": 2, "listen": listen})
    assert proxy.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(authority.file))
    kept = Client(proxy.port, secure=(trusted, "flowstack.example"))
    assert kept.ask(asking(proxy.key)).status == 200
    assert {certificate_of(proxy.port, trusted) for _ in range(16)} == {"old"}
    use(new)
    proxy.reload()
    assert {certificate_of(proxy.port, trusted) for _ in range(32)} == {"new"}
    assert kept.ask(asking(proxy.key)).status == 200
    served[0].write_text("no certificate")
    proxy.reload()
    assert {certificate_of(proxy.port, trusted) for _ in range(16)} == {"new"}
    assert proxy.log_text().count("a TLS certificate was not reloaded") == 2
    kept.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_there_is_a_worker_for_each_core_or_no_parent_and_the_state_directory_is_theirs_alone(
    start_proxy: StartProxy, tmp_path: Path, workers: int
) -> None:
    state, cores = tmp_path / "state-to-be", len(os.sched_getaffinity(0))
    proxy = start_proxy(server={"workers": workers, "state": str(state)})
    assert len(children(proxy.pid)) == (cores if cores > 1 and workers == 0 else 0)
    assert status_of(proxy.port, proxy.key) == 200
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert f"made the state directory {state}, for this user alone" in proxy.log_text()
    assert json.loads((state / "reload.json").read_text())["pid"] == proxy.pid
