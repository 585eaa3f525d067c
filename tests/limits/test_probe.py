"""What a Redis is found to be: what it says of itself, and its clock. The rest is in tests/cli/test_check_redis.py."""

from __future__ import annotations

import time

import pytest
import redis

from flowstack.config.settings import Shared
from flowstack.limits.counters import CountersError
from flowstack.limits.link import MAX_SKEW
from flowstack.limits.probe import described, misfit, probe
from tests.redis_server import RedisServer


@pytest.mark.parametrize(
    ("about", "fault"),
    [
        ([b"server", b"redis", b"version", b"7.0.15", b"proto", 2, b"mode", b"standalone"], None),
        ([b"server", b"valkey", b"version", b"8.1.0", b"mode", b"standalone"], None),
        ([b"server", b"redis", b"version", b"10.2.0", b"mode", b"standalone"], None),
        (
            [b"server", b"redis", b"version", b"6.2.14", b"mode", b"standalone"],
            "found Redis 6.2.14, expected version 7",
        ),
        ([b"server", b"redis", b"version", b"7.0.15", b"mode", b"cluster"], "found a member of a Redis Cluster"),
        ([], "found a server that tells no version"),
        ([b"version", b"new"], "found a server that tells no version"),
        ([b"version", 7, b"mode"], "found a server that tells no version"),
        (b"7.0.15", "found a server that tells no version"),
        (None, "found a server that tells no version"),
    ],
)
def test_a_server_without_functions_or_of_a_cluster_is_none_for_limits(about: object, fault: str | None) -> None:
    found = misfit(described(about))
    assert found is None if fault is None else (found or "").startswith(fault)


@pytest.mark.parametrize("seconds", [-400, 400])
def test_a_clock_so_far_off_that_it_would_not_be_used_is_a_fault(redis_server: RedisServer, seconds: int) -> None:
    shared = Shared(redis=redis_server.url)
    with pytest.raises(
        CountersError, match=rf"found a clock \{-seconds:+d} s off this machine's, expected 300 s at most"
    ):
        probe(shared, lambda: time.time() + seconds)


def test_a_clock_that_is_a_little_off_is_a_doubt(redis_server: RedisServer) -> None:
    shared = Shared(redis=redis_server.url)
    assert not [doubt for doubt in probe(shared).doubts if "clock" in doubt]
    (doubt,) = [doubt for doubt in probe(shared, lambda: time.time() - 60).doubts if "clock" in doubt]
    assert doubt.startswith(f"its clock is +60 s off this machine's, and is not used where it is over {MAX_SKEW:.0f} s")


def test_what_it_counts_is_nobodys_and_ends_by_itself(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    probe(Shared(redis=redis_server.url))
    for name in redis_client.scan_iter():
        assert name.startswith(b"flowstack:{check/"), name
        assert 0 < redis_client.pttl(name) <= 70_000
