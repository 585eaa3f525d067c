"""A process that is too busy to read an answer does not take its Redis for silent."""

from __future__ import annotations

import socket
import time
from typing import Any

from pytest_twisted import ensureDeferred
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import deferLater

from flowstack.config.settings import Shared
from flowstack.limits.link import ANSWER_SECONDS
from tests.limits.test_link import Linked, reactor, until
from tests.redis_server import RedisServer


class Busy(FileDescriptor):  # type: ignore[misc]
    """Takes long for one byte, so that timers are late, and come before anything is read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(reactor)
        self._sock = sock
        self.fileno = sock.fileno

    def doRead(self) -> None:  # noqa: N802
        self._sock.recv(1)
        time.sleep(1.5 * ANSWER_SECONDS)


@ensureDeferred
async def test_an_answer_that_came_while_the_process_was_busy_counts(redis_server: RedisServer) -> None:
    one, other = socket.socketpair()
    busy = Busy(one)
    with one, other:
        reactor.addReader(busy)
        try:
            async with Linked(Shared(redis=redis_server.url)) as link:
                await until(lambda: link.up)
                answers: list[Any] = []
                link.ask("show", [], [], answers.append)
                await deferLater(reactor, 0)  # it is sent
                other.send(b"x")
                await until(lambda: answers)
                assert answers[0] is not None
                assert (link.up, link.failures) == (True, 0)
        finally:
            reactor.removeReader(busy)
