"""What machines ask of each other through Redis."""

from __future__ import annotations

import signal
from pathlib import Path

from pytest_twisted import ensureDeferred
from twisted.internet.defer import gatherResults

from flowstack.config.settings import Shared
from flowstack.limits.remote_memory import MOST_ASKED, RemoteMemory
from tests.limits.test_link import Linked, until
from tests.redis_server import RedisServer


def calls(server: RedisServer) -> int:
    """How many functions were called there."""
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_fcall", {}).get("calls", 0))


@ensureDeferred
async def test_questions_for_unknown_secrets_are_bounded_so_that_a_flood_of_them_does_not_pile_up(
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path / "redis").start()
    try:
        async with Linked(Shared(redis=server.url)) as link:
            await until(lambda: link.up)
            memory = RemoteMemory(link)
            memory.keep_secret(b"known", b"text", 60.0)
            assert await memory.find_secret(b"known") == b"text"  # type: ignore[misc]
            before = calls(server)
            for _ in range(2):  # where one was answered another may be asked
                asked = [memory.find_secret(b"%d" % number) for number in range(10 * MOST_ASKED)]
                waiting = [one for one in asked if one is not None]
                assert len(waiting) == MOST_ASKED
                assert await gatherResults(waiting) == [b""] * MOST_ASKED
            assert calls(server) - before == 2 * MOST_ASKED
            server.signal(signal.SIGSTOP)
            try:
                lost = [memory.find_secret(b"known") for _ in range(10 * MOST_ASKED)]
                assert await gatherResults([one for one in lost if one is not None]) == [b""] * MOST_ASKED
                assert memory.find_secret(b"known") is None
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: link.up)
            assert await memory.find_secret(b"known") == b"text"  # type: ignore[misc]
    finally:
        server.stop()
