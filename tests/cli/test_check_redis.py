"""What ``flowstack check`` says of the Redis in which several machines count limits. The servers are real."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cable import Cable
from tests.cli.test_check import KEY, run, write_keys
from tests.e2e.processes import ROOT
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.transport.certificates import Authority

SECRET = "canary-7f3a"
(ACL,) = re.findall(
    r"^ +user flowstack on >PASSWORD (.*)$", (ROOT / "docs/howto/several-machines.rst").read_text(), re.M
)
"""What the manual gives Flowstack's user in Redis."""

StartServer = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server with these options, and with persistence, unless one of them says otherwise."""
    started: list[RedisServer] = []

    def start(*options: str, **how: object) -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{len(started)}", "appendonly yes", *options)
        started.append(server.start(**how))
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str], str]]:
    """Check a configuration with this Redis: the status, what is told on standard error, and the line on it."""
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path / "keys", KEY.format(1))
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)

    def check(url: str, *lines: str) -> tuple[int, list[str], str]:
        (tmp_path / "f.toml").write_text("\n".join(["[shared]", f'redis = "{url}"', *lines]))
        result = run("--config", "f.toml")
        assert SECRET not in result.output
        (told,) = [line for line in result.stdout.splitlines() if line.startswith("  redis ")] or [""]
        return result.exit_code, result.stderr.splitlines(), told

    return check


Check = Callable[..., tuple[int, list[str], str]]
NO_INFO = "its user may not ask INFO, so that eviction and persistence are not known: add +info to its rights"
PASSWORD = 'redis_password_file = "secret"'


def test_a_redis_that_serves_is_told_with_its_version(start: StartServer, check: Check) -> None:
    server = start()
    status, warnings, told = check(server.url)
    assert (status, warnings) == (0, [])
    expected = rf"  redis     127\.0\.0\.1:{server.port}: (Redis|Valkey) \d+\.\S+, the master, answers after \d+\.\d ms"
    assert re.fullmatch(expected, told)


def test_a_redis_by_tls_and_the_master_that_a_sentinel_names_are_looked_at(
    start: StartServer, check: Check, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    encrypted = RedisServer(tmp_path / "tls", "appendonly yes", tls=authority.issue("redis", "127.0.0.1")).start()
    try:
        status, warnings, told = check(encrypted.url, f'redis_ca_file = "{authority.file}"')
        assert (status, warnings) == (0, [])
        assert "the master" in told
        status, (fault,), _ = check(encrypted.url)
        assert status == 1
        assert "certificate verify failed" in fault
    finally:
        encrypted.stop()
    master = start()
    watch = f"sentinel monitor main 127.0.0.1 {master.port} 1"
    sentinel = RedisServer(tmp_path / "sentinel", watch, sentinel=True).start()
    try:
        named = f'redis_sentinels = ["127.0.0.1:{free_port()}", "127.0.0.1:{sentinel.port}"]'
        status, warnings, told = check("redis://main", named)
        assert (status, warnings) == (0, [])
        assert told.startswith("  redis     main:6379: ")
        status, (fault,), _ = check("redis://other", named)
        assert status == 1
        assert "No master found for 'other'" in fault
    finally:
        sentinel.stop()


def test_the_manuals_user_needs_each_of_its_rights_and_no_more(start: StartServer, check: Check) -> None:
    admin = {"username": "admin", "password": "admin"}
    server = start("user default off", f"user flowstack on >{SECRET} {ACL}", "user admin on >admin ~* +@all", **admin)
    url = server.url.replace("redis://", "redis://flowstack@")
    assert check(url, PASSWORD)[:2] == (0, [])
    # Of these the first is a part of @write; without @dangerous it may do more than it needs.
    rights = [right for right in ACL.split() if right not in ("+function|load", "-@dangerous")]
    assert len(rights) == 8
    with server.client(**admin) as client:
        for without in rights:
            left = [right for right in ACL.split() if right != without]
            client.execute_command("ACL", "SETUSER", "flowstack", "reset", "on", f">{SECRET}", *left)
            status, (line,), told = check(url, PASSWORD)
            if without == "+info":
                assert (status, line) == (0, f"warning: [shared] redis: {NO_INFO}")
                assert told
                continue
            assert status == 1, without
            assert "found a user who may not do what counting takes (" in line, without
            assert line.endswith("expected the rights that the manual lists: Hold limits on several machines")
        client.execute_command("ACL", "SETUSER", "flowstack", "reset", "on", f">{SECRET}", *ACL.split())
        for dangerous in (("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "requirepass")):
            denied = client.execute_command("ACL", "DRYRUN", "flowstack", *dangerous)
            assert b"no permissions" in denied, dangerous


FAULTS: dict[str, tuple[tuple[str, ...], str]] = {
    "a cluster": (
        ("cluster-enabled yes", "cluster-port {free}"),
        "found a member of a Redis Cluster, expected one server, or a master that",
    ),
    "before version 6": (
        ('rename-command HELLO ""',),
        "found a server that tells no version, expected Redis 7 or newer",
    ),
    "no functions": (('rename-command FUNCTION ""',), "FUNCTION: unknown command 'FUNCTION'"),
    "memory is used up": (("maxmemory 1mb",), "FCALL: command not allowed when used memory > 'maxmemory'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_redis_in_which_limits_cannot_be_counted_is_a_fault(case: str, start: StartServer, check: Check) -> None:
    options, words = FAULTS[case]
    server = start(*(option.format(free=free_port()) for option in options), protocol=2)
    status, faults, told = check(server.url)
    assert (status, told) == (1, "")
    (fault,) = faults
    assert fault.startswith("[shared] redis: Redis at 127.0.0.1:")
    assert words in fault


def test_a_replica_is_a_fault(start: StartServer, check: Check) -> None:
    replica = start(f"replicaof 127.0.0.1 {start().port}")
    status, (fault,), _ = check(replica.url)
    assert status == 1
    assert fault.endswith(": found a replica, expected the master: set that one, or Sentinels")


def test_a_wrong_password_is_a_fault_and_not_shown(start: StartServer, check: Check) -> None:
    server = start("requirepass other", password="other")
    for lines, words in (
        ((PASSWORD,), "invalid username-password pair"),
        ((), "found a server that asks for a password"),
    ):
        status, (fault,), _ = check(server.url, *lines)
        assert status == 1
        assert words in fault


def test_what_redis_may_forget_draws_warnings(start: StartServer, check: Check) -> None:
    server = start("appendonly no", "maxmemory 100mb", "maxmemory-policy volatile-lru")
    status, warnings, told = check(server.url)
    assert status == 0
    assert told
    assert warnings == [
        "warning: [shared] redis: its maxmemory-policy is volatile-lru, and what is evicted is forgotten, a budget "
        "with it: set noeviction",
        "warning: [shared] redis: its appendonly is no, so that a restart forgets what was spent of budgets since "
        "its last snapshot, if it makes any: set appendonly yes",
    ]


def test_what_does_not_answer_is_a_fault_after_seconds(start: StartServer, check: Check) -> None:
    server = start()
    server.signal(signal.SIGSTOP)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            for port in (server.port, silent.getsockname()[1], free_port()):
                begun = time.monotonic()
                status, (fault,), _ = check(f"redis://127.0.0.1:{port}", PASSWORD)
                assert status == 1
                assert f"Redis at 127.0.0.1:{port} cannot be asked for the limits' counters: " in fault
                assert time.monotonic() - begun < 10
    finally:
        server.signal(signal.SIGCONT)


def test_what_answers_later_than_is_waited_for_is_a_fault(start: StartServer, check: Check) -> None:
    with Cable(start().port, late=0.15) as cable:
        status, (fault,), _ = check(f"redis://127.0.0.1:{cable.port}/0")
    assert status == 1
    assert re.search(r": found an answer after 1[5-9]\d ms, expected 100 ms at most: none is waited for longer$", fault)
