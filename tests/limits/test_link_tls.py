"""TLS to a Redis: what is taken for it, and in which words the rest is refused; by the link, and by the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from flowstack.config.settings import Settings, Shared
from flowstack.limits.counters import CountersError
from flowstack.limits.remote_books import books_of
from tests.limits import test_link
from tests.limits.test_link import Linked, asked, until
from tests.redis_server import RedisServer
from tests.transport.certificates import Authority

from .lab import key

logged = test_link.logged


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def encrypted(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("tls"), tls=authority.issue("redis", "127.0.0.1")).start()
    yield server
    server.stop()


def standing(shared: Shared) -> int:
    """What a command reads there of a key's requests."""
    settings = Settings(shared=shared)
    with books_of(settings, None) as books:
        assert books is not None
        (rpm,) = books.standings("k", key(rpm=5), settings)
        return rpm.used


@ensureDeferred
async def test_a_redis_with_a_certificate_of_the_authority_is_used(
    encrypted: RedisServer, authority: Authority
) -> None:
    shared = Shared(redis=encrypted.url, redis_ca_file=authority.file)
    assert encrypted.url.startswith("rediss://")
    async with Linked(shared) as link:
        await until(lambda: link.up)
        assert (await asked(link))[1:3] == [0, 1]
    assert standing(shared) == 1


@ensureDeferred
async def test_the_master_that_a_sentinel_names_is_spoken_tls_with(
    encrypted: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    watch = f"sentinel monitor main 127.0.0.1 {encrypted.port} 1"
    # It speaks TLS with the master, and takes plain questions itself.
    certificate, private = authority.issue("sentinel", "127.0.0.1")
    files = (f"tls-cert-file {certificate}", f"tls-key-file {private}", f"tls-ca-cert-file {authority.file}")
    sentinel = RedisServer(tmp_path / "s", *files, "tls-replication yes", watch, sentinel=True).start()
    shared = Shared(
        redis="rediss://main:6379/0", redis_ca_file=authority.file, redis_sentinels=(f"127.0.0.1:{sentinel.port}",)
    )
    try:
        async with Linked(shared) as link:
            await until(lambda: link.up)
            count = (await asked(link))[2]
        assert standing(shared) == count
    finally:
        sentinel.stop()


@ensureDeferred
async def test_an_authority_s_file_that_cannot_be_read_for_a_while_ends_nothing(
    encrypted: RedisServer, authority: Authority, tmp_path: Path, logged: list[str]
) -> None:
    file = tmp_path / "authority.pem"
    async with Linked(Shared(redis=encrypted.url, redis_ca_file=file)) as link:
        await until(lambda: logged)
        assert not link.up and str(file) in logged[0]
        file.write_bytes(Path(authority.file).read_bytes())
        await until(lambda: link.up)


async def assert_refused(shared: Shared, logged: list[str], link_says: str, command_says: str) -> None:
    """By both, in one line that says why."""
    async with Linked(shared) as link:
        await until(lambda: logged)
        assert not link.up
    assert re.fullmatch(rf"limits: Redis at 127\.0\.0\.1:\d+ cannot be used: {link_says}", logged[0]), logged
    with pytest.raises(CountersError) as refused:
        standing(shared)
    what = rf"Redis at 127\.0\.0\.1:\d+ cannot be asked for the limits' counters: .*({command_says}).*"
    assert re.fullmatch(what, str(refused.value)), refused.value


@ensureDeferred
async def test_a_certificate_of_another_authority_is_refused(
    encrypted: RedisServer, other: Authority, logged: list[str]
) -> None:
    for ca_file in (other.file, None):  # and that of none of the system's
        logged.clear()
        shared = Shared(redis=encrypted.url, redis_ca_file=ca_file)
        why = "unable to get local issuer certificate"
        await assert_refused(shared, logged, f"TLS with 127.0.0.1 failed: {why}", why)


@ensureDeferred
async def test_a_certificate_for_another_name_is_refused(
    authority: Authority, tmp_path: Path, logged: list[str]
) -> None:
    server = RedisServer(tmp_path / "named", tls=authority.issue("named", "redis.internal", "127.0.0.2")).start()
    try:
        shared = Shared(redis=server.url, redis_ca_file=authority.file)
        why = "IP address mismatch, certificate is not valid for '127.0.0.1'"
        await assert_refused(shared, logged, f"TLS with 127.0.0.1 failed: {why}", why)
    finally:
        server.stop()


@ensureDeferred
async def test_a_server_without_tls_is_refused_where_tls_is_wanted(
    redis_server: RedisServer, authority: Authority, logged: list[str]
) -> None:
    url = redis_server.url.replace("redis://", "rediss://")
    why = "no connection within 2 s; perhaps it speaks no TLS: then write redis://"
    await assert_refused(Shared(redis=url, redis_ca_file=authority.file), logged, why, "Timeout")


@ensureDeferred
async def test_a_server_with_tls_is_refused_where_none_is_wanted(encrypted: RedisServer, logged: list[str]) -> None:
    url = encrypted.url.replace("rediss://", "redis://")
    why = "it closed the connection before it answered; perhaps it speaks TLS alone: then write rediss://"
    await assert_refused(Shared(redis=url), logged, why, "reset by peer|closed")
