"""What operators see of limits that are counted in Redis, and a reset there."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from attrs import evolve

from flowstack.config.settings import Settings, Shared
from flowstack.limits.books import Books
from flowstack.limits.counters import CountersError
from flowstack.limits.link import library
from flowstack.limits.listing import standings_of
from flowstack.limits.remote_books import books_of
from tests.redis_server import RedisServer

from .lab import group, key, member, usd


def settings_of(server: RedisServer) -> Settings:
    return Settings(shared=Shared(redis=server.url))


def take(client: redis.Redis, name: str, *words: object) -> None:
    try:
        client.execute_command("FUNCTION", "LOAD", library()[1])
    except redis.ResponseError as error:
        assert "already exists" in str(error)
    client.execute_command("FCALL", f"{library()[0]}_alive", 0, "w1", 1, 10**9, 1)
    client.execute_command("FCALL", f"{library()[0]}_take", 1, name, "w1", 1, *words)


def test_standings_are_what_redis_counts_of_a_key_and_its_group(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    settings = settings_of(redis_server)
    limited = member("k", group(rpm=100), rpm=9, tpm=500, max_parallel=4, budget=usd("10", "total"))
    take(redis_client, "flowstack:{k}::r", 0, 0, -1, "r09")
    take(redis_client, "flowstack:{@g}::r", 0, 0, -1, "r0100")
    take(redis_client, "flowstack:{k}::m:30000000000", 0, 25 * 10**8, -1, "m010000000000:0")
    with books_of(settings, None) as books:
        assert isinstance(books, Books)
        found = {(each.name, each.limit): each.used for each in standings_of(books, limited, settings)}
        assert found == {
            ("k", "rpm"): 1, ("k", "tpm"): 0, ("k", "max_parallel"): 0, ("k", "budget"): 25 * 10**8, ("@g", "rpm"): 1,
        }  # fmt: skip
        (budget,) = [each for each in standings_of(books, limited, settings) if each.limit == "budget"]
        assert books.reset_at(budget) == 0
        assert books.reset(budget) == 25 * 10**8
        (budget,) = [each for each in standings_of(books, limited, settings) if each.limit == "budget"]
        assert budget.used == 0
        assert books.reset_at(budget) > 1.7e15


def test_a_redis_that_is_not_there_is_named_with_what_is_the_matter(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    what = f"^Redis at 127.0.0.1:{server.port} cannot be asked for the limits' counters: "
    with pytest.raises(CountersError, match=what), books_of(settings_of(server), None):
        raise AssertionError


@pytest.mark.parametrize("option", ("requirepass other", 'rename-command AUTH ""'))
def test_a_password_that_is_refused_is_not_shown(tmp_path: Path, option: str) -> None:
    server = RedisServer(tmp_path / "server", option)
    server.start(password="other" if "other" in option else None)
    secret = tmp_path / "secret"
    secret.write_text("canary")
    secret.chmod(0o600)
    settings = settings_of(server)
    try:
        with_it = evolve(settings, shared=evolve(settings.shared, redis_password_file=secret))
        with pytest.raises(CountersError) as refused, books_of(with_it, None):
            raise AssertionError
        assert "canary" not in str(refused.value)
        assert str(server.port) in str(refused.value)
    finally:
        server.stop()


def test_what_is_no_counter_in_redis_is_said(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    redis_client.set("flowstack:{k}::r", "7")
    with books_of(settings_of(redis_server), None) as books:
        assert books is not None
        with pytest.raises(CountersError, match="WRONGTYPE"):
            books.standings("k", key(rpm=5), settings_of(redis_server))
