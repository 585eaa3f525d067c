"""Look-ups of names: who waits for whom. The threads are real; when each look-up ends, the test says."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock

from flowstack.transport.resolver import MAX_LOOKUPS, Resolver

LIMIT = 30.0
FOUND = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
]


class Look:
    """A look-up that has begun."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer: queue.Queue[Any] = queue.Queue()


class Asker:
    """Who asks for a name."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.done = 0

    def resolutionBegan(self, resolution: Any) -> None:  # noqa: N802
        self.resolution = resolution

    def addressResolved(self, address: Any) -> None:  # noqa: N802
        self.addresses.append(address)

    def resolutionComplete(self) -> None:  # noqa: N802
        self.done += 1


class Names(Clock):
    """A clock, and the reactor of a resolver with it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: queue.Queue[Look] = queue.Queue()
        self.from_threads: queue.Queue[Any] = queue.Queue()
        self.resolver = Resolver(self, 5.0, self.look_up)

    def look_up(self, name: str, *_: Any) -> Any:
        look = Look(name)
        self.begun.put(look)
        answer = look.answer.get(timeout=LIMIT)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def callFromThread(self, *call: Any) -> None:  # noqa: N802
        self.from_threads.put(call)

    def ask(self, name: str = "api.example", **more: Any) -> Asker:
        asker = Asker()
        self.resolver.resolveHostName(asker, name, 443, **more)
        return asker

    def next(self) -> Look:
        return self.begun.get(timeout=LIMIT)

    def end(self, look: Look, answer: Any) -> None:
        look.answer.put(answer)
        function, *args = self.from_threads.get(timeout=LIMIT)
        function(*args)


@pytest.fixture
def names() -> Any:
    made = Names()
    yield made
    while not made.begun.empty():
        made.begun.get().answer.put([])


def test_who_asks_gets_the_addresses_in_the_systems_order_with_the_port(names: Names) -> None:
    asker = names.ask()
    assert asker.done == 0
    names.end(names.next(), FOUND)
    assert asker.done == 1
    assert asker.addresses == [IPv6Address("TCP", "2001:db8::1", 443, 0, 0), IPv4Address("TCP", "192.0.2.1", 443)]


def test_addresses_of_other_kinds_are_left_out(names: Names) -> None:
    asker = names.ask(addressTypes=[IPv4Address])
    names.end(names.next(), [*FOUND, (socket.AF_UNIX, 0, 0, "", ("x", 0))])
    assert asker.addresses == [IPv4Address("TCP", "192.0.2.1", 443)]


@pytest.mark.parametrize("fault", [socket.gaierror(-2, "Name or service not known"), UnicodeError(), ValueError()])
def test_a_name_that_is_not_found_has_no_address(fault: Exception, names: Names) -> None:
    asker = names.ask()
    names.end(names.next(), fault)
    assert (asker.done, asker.addresses) == (1, [])


def test_one_look_up_serves_all_who_ask_meanwhile(names: Names) -> None:
    askers = [names.ask() for _ in range(25)]
    look = names.next()
    names.end(look, FOUND)
    assert [asker.done for asker in askers] == [1] * 25
    assert names.begun.empty()


def test_slow_look_ups_of_one_name_hold_up_no_other(names: Names) -> None:
    slow = [names.ask("slow.example") for _ in range(25)]
    waits = names.next()
    quick = names.ask("quick.example")
    look = names.next()
    assert (waits.name, look.name) == ("slow.example", "quick.example")
    names.end(look, FOUND)
    assert quick.done == 1
    assert not any(asker.done for asker in slow)
    names.end(waits, FOUND)


def test_after_its_patience_another_look_up_is_begun_and_its_answer_serves_all(names: Names) -> None:
    early, first = names.ask(), names.next()
    names.advance(4.9)
    joined = names.ask()
    assert names.begun.empty()
    names.advance(0.1)
    late, second = names.ask(), names.next()
    names.end(second, FOUND)
    assert [asker.done for asker in (early, joined, late)] == [1, 1, 1]
    names.end(first, FOUND)
    assert [asker.done for asker in (early, joined, late)] == [1, 1, 1]


def test_a_failed_look_up_does_not_fail_those_who_wait_for_another(names: Names) -> None:
    early, first = names.ask(), names.next()
    names.advance(5)
    late, second = names.ask(), names.next()
    names.end(second, socket.gaierror())
    assert (early.done, late.done, late.addresses) == (0, 1, [])
    names.end(first, FOUND)
    assert len(early.addresses) == 2


def test_a_name_has_few_threads_however_long_they_take(names: Names) -> None:
    before = threading.active_count()
    askers = []
    for _ in range(10 * MAX_LOOKUPS):
        askers.append(names.ask())
        names.advance(5)
    looks = [names.next() for _ in range(MAX_LOOKUPS)]
    assert names.begun.empty()
    assert threading.active_count() - before == MAX_LOOKUPS
    for look in looks:
        names.end(look, [])
    assert all(asker.done == 1 for asker in askers)
    fresh = names.ask()
    names.end(names.next(), FOUND)
    assert fresh.done == 1


def test_who_wants_it_no_more_is_not_told(names: Names) -> None:
    gone, stays = names.ask(), names.ask()
    gone.resolution.cancel()
    names.end(names.next(), FOUND)
    assert (gone.done, stays.done) == (0, 1)
