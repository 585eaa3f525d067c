"""The pool: bounded, fair, and clean of whoever left it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.web.http_headers import Headers

from flowstack.config import Timeouts
from flowstack.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable
from flowstack.http.headers import RawHeaders
from flowstack.transport.ticker import Ticker
from tests.harness import Asked, Endpoint, Provider, Transport, Turns
from tests.upstream.test_uploads import Body, Whole

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def provider(**options: Any) -> Provider:
    made = Provider(**options)
    made.turns.advance(0.6 * made.turns.ticker.interval)
    return made


def asked_for(peer: Transport) -> bytes:
    return peer.take().partition(b" HTTP/1.1")[0]


def test_connections_are_reused_the_freshest_first() -> None:
    pool = provider()
    for _ in range(3):
        pool.ask()
    for number in (1, 0, 2):
        pool.peers[number].send(OK)
    for peer in pool.peers:
        peer.take()
    pool.ask(target=b"/v1/again")
    assert [asked_for(peer) for peer in pool.peers] == [b"", b"", b"GET /v1/again"]


def test_no_more_connections_are_made_than_the_bound() -> None:
    pool = provider(max_connections=2)
    for _ in range(5):
        pool.ask()
    assert (len(pool.peers), pool.pool.size, len(pool.pool.waiting)) == (2, 2, 3)


def test_who_waits_is_served_in_the_order_of_coming() -> None:
    pool = provider(max_connections=1)
    answers = [pool.ask(target=b"/v1/%d" % number) for number in range(4)]
    (upstream,) = pool.peers
    for number in range(4):
        assert asked_for(upstream) == b"GET /v1/%d" % number
        upstream.send(OK)
        assert answers[number].body == b"ok"
    assert (len(pool.peers), len(pool.pool.idle)) == (1, 1)


def test_a_connection_that_closes_leaves_its_place_to_the_next_who_waits() -> None:
    pool = provider(max_connections=1)
    pool.ask()
    pool.ask(target=b"/v1/next")
    pool.peers[0].send(OK.replace(b"OK", b"OK\r\nConnection: close"))
    assert asked_for(pool.peers[1]) == b"GET /v1/next"
    assert pool.pool.size == 1


def test_who_waits_too_long_is_told_503_and_when_to_come_back() -> None:
    pool = provider(max_connections=1)
    first, second = pool.ask(), pool.ask()
    pool.turns.fires(5, lambda: second.fault)
    assert isinstance(second.fault, Overloaded)
    assert (b"Retry-After", b"1") in second.fault.headers
    assert "1 connections" in second.fault.message
    assert second.job.attempts == 0
    pool.peers[0].send(OK)
    assert (first.body, len(pool.pool.waiting), len(pool.pool.idle)) == (b"ok", 0, 1)


def test_the_time_in_the_queue_ends_with_it() -> None:
    pool = provider(max_connections=1)
    pool.ask()
    second = pool.ask()
    pool.turns.advance(4)
    pool.peers[0].send(OK)
    pool.turns.advance(100)
    assert second.fault is None
    pool.peers[0].send(OK)
    assert second.body == b"ok"


# Connecting.


def test_a_refused_connection_is_unreachable_with_the_reason_and_the_address() -> None:
    pool = provider(base_url="http://upstream.example/v1")
    pool.endpoint.at_once = False
    asked = pool.ask()
    pool.endpoint.attempts[0].refuse(ConnectionRefusedError())
    assert isinstance(asked.fault, UpstreamUnreachable)
    assert "'openai' (upstream.example)" in asked.fault.message
    assert "refused" in asked.fault.message
    assert pool.pool.size == 0


def test_the_next_who_waits_tries_where_one_failed_to_connect() -> None:
    pool = provider(max_connections=1)
    pool.endpoint.at_once = False
    pool.ask()
    second = pool.ask()
    pool.endpoint.attempts[0].refuse(ConnectError(string="no route"))
    pool.endpoint.attempts[1].accept()
    pool.peers[0].send(OK)
    assert second.body == b"ok"


def test_connecting_takes_no_longer_than_connect() -> None:
    pool = provider()
    pool.endpoint.at_once = False
    asked = pool.ask()
    pool.turns.fires(5, lambda: asked.fault)
    assert isinstance(asked.fault, UpstreamTimeout)
    assert "No connection" in asked.fault.message and "5 seconds" in asked.fault.message
    assert pool.endpoint.attempts[0].cancelled
    assert pool.pool.size == 0


def test_connections_that_fail_to_be_made_leave_nothing_on_the_clock() -> None:
    pool = provider()
    pool.endpoint.at_once = False
    pool.ask()
    pool.endpoint.attempts[0].refuse(ConnectionRefusedError())
    assert pool.turns.ticker.members == set()


# Leaving, in each state: the place is free and the connection closed.


def begun(state: str) -> tuple[Provider, Asked]:
    pool = provider(max_connections=1)
    if state == "queued":
        pool.ask()
        return pool, pool.ask()
    if state == "connecting":
        pool.endpoint.at_once = False
        return pool, pool.ask()
    asked = pool.ask(b"POST", body=Body(10) if state == "sending" else Whole(b"x", 1))
    if state == "mid-body":
        pool.peers[0].send(OK[:-1])
    return pool, asked


@pytest.mark.parametrize("state", ["sending", "awaiting the head", "mid-body"])
def test_who_leaves_closes_the_upstreams_connection_and_frees_its_place(state: str) -> None:
    pool, asked = begun(state)
    if state == "mid-body":
        asked.response.connection.stopProducing()
    else:
        asked.job.cancel()
        assert isinstance(asked.fault, CancelledError)
    assert (pool.peers[0].peer_saw, pool.pool.size, pool.pool.idle) == ("reset", 0, [])
    again = pool.ask()
    pool.peers[1].send(OK)
    assert again.body == b"ok"
    pool.turns.advance(5000)
    assert asked.end is None


class Queue(OrderedDict[Any, None]):
    """A queue that is never gone through."""

    def __iter__(self) -> Any:
        raise AssertionError("all who wait are looked at")

    keys = items = values = __iter__


def test_who_leaves_a_long_queue_is_not_looked_for_among_the_others() -> None:
    pool = provider(max_connections=1)
    pool.pool.waiting = Queue()
    pool.ask()
    waiting = [pool.ask() for _ in range(1000)]
    for asked in waiting[::-1]:
        asked.job.cancel()
    assert (len(pool.pool.waiting), pool.pool.size) == (0, 1)


def test_who_leaves_the_queue_leaves_no_trace() -> None:
    pool, asked = begun("queued")
    asked.job.cancel()
    assert isinstance(asked.fault, CancelledError)
    assert (len(pool.pool.waiting), pool.pool.size) == (0, 1)
    pool.peers[0].send(OK)
    assert len(pool.pool.idle) == 1
    assert len(pool.turns.ticker.members) == 1  # the idle connection


def test_who_leaves_while_connecting_gives_the_attempt_up() -> None:
    pool, asked = begun("connecting")
    asked.job.cancel()
    assert pool.endpoint.attempts[0].cancelled
    assert (pool.pool.size, pool.turns.ticker.members) == (0, set())
    assert isinstance(asked.fault, CancelledError)


def test_who_leaves_while_connecting_leaves_the_connection_to_who_waits() -> None:
    pool, asked = begun("connecting")
    second = pool.ask()
    asked.job.cancel()
    assert not pool.endpoint.attempts[0].cancelled
    pool.endpoint.attempts[0].accept()
    pool.peers[0].send(OK)
    assert second.body == b"ok"


# Idle connections.


def test_an_idle_connection_is_closed_after_idle() -> None:
    pool = provider()
    pool.ask()
    pool.peers[0].send(OK)
    pool.turns.fires(30, lambda: pool.peers[0].closed)
    assert (pool.pool.size, pool.pool.idle, pool.turns.ticker.members) == (0, [], set())


@pytest.mark.parametrize("idle", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("between_ticks", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("late", "peers"), [(-0.01, 1), (0.001, 2), (1.5, 2)])
def test_no_job_gets_a_connection_older_than_idle(idle: float, between_ticks: float, late: float, peers: int) -> None:
    pool = Provider(idle=idle)
    pool.turns.advance(between_ticks * pool.turns.ticker.interval)
    pool.ask()
    pool.peers[0].send(OK)
    pool.turns.clock.rightNow += idle + late  # no tick between: the loop was busy, or the next one is due later
    asked = pool.ask()
    assert len(pool.peers) == peers
    pool.peers[-1].send(OK)
    assert (asked.body, pool.pool.size, len(pool.pool.idle)) == (b"ok", 1, 1)


def test_old_connections_do_not_fill_the_pool() -> None:
    pool = Provider(idle=4.0, max_connections=3)
    asked = [pool.ask() for _ in range(3)]
    for peer in pool.peers:
        peer.send(OK)
    pool.turns.clock.rightNow += 4.0
    asked += [pool.ask() for _ in range(3)]
    for peer in pool.peers[3:]:
        peer.send(OK)
    assert [one.body for one in asked] == [b"ok"] * 6
    assert [peer.peer_saw for peer in pool.peers] == ["reset"] * 3 + [None] * 3


def test_an_idle_connection_that_the_upstream_closes_is_forgotten() -> None:
    pool = provider()
    pool.ask()
    pool.peers[0].send(OK)
    pool.peers[0].hang_up()
    assert (pool.pool.size, pool.pool.idle) == (0, [])


def test_closing_the_pool_closes_what_is_idle() -> None:
    pool = provider()
    pool.ask()
    pool.ask()
    pool.peers[0].send(OK)
    pool.pool.close()
    assert [peer.closed for peer in pool.peers] == [True, False]


# The agent.


def test_an_agent_speaks_to_its_own_origin_only() -> None:
    pool = provider()
    for uri in (b"http://other.example/", b"http://upstream.example.evil/", b"http://upstream.example:81/",
                b"https://upstream.example/", b"http://upstream.example"):  # fmt: skip
        with pytest.raises(ValueError, match="'openai' only"):
            pool.agent.request(b"GET", uri)


@pytest.mark.parametrize("target", [b"/v1/x?", b"/v1/%2e/", b"//x", b"/v1/x?a=b&c=http://y/"])
def test_the_target_goes_out_byte_for_byte(target: bytes) -> None:
    pool = provider()
    pool.ask(target=target)
    assert asked_for(pool.peers[0]) == b"GET " + target


def test_raw_headers_go_out_as_they_stand_and_others_get_what_they_lack() -> None:
    pool = provider()
    pool.ask(headers=RawHeaders([(b"x-B", b"1"), (b"Host", b"h"), (b"X-b", b"2")]))
    pool.ask(b"POST", headers=Headers({b"x-c": [b"3"]}), body=Whole(b"hello", 5))
    assert pool.peers[0].take() == b"GET /v1/x HTTP/1.1\r\nx-B: 1\r\nHost: h\r\nX-b: 2\r\n\r\n"
    assert pool.peers[1].take() == (
        b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nX-C: 3\r\nContent-Length: 5\r\n\r\nhello"
    )


def test_no_connection_is_shared_by_two_upstreams() -> None:
    turns = Turns(Provider().turns.timeouts)
    one, other = Provider(turns=turns), Provider(turns=turns, base_url="http://upstream.example:81/v1", name="other")
    one.ask()
    one.peers[0].send(OK)
    other.agent.request(b"GET", b"http://upstream.example:81/v1/x")
    turns.settle()
    assert (len(one.peers), len(other.peers)) == (1, 1)
    assert isinstance(other.endpoint, Endpoint)


# The ticker.


def test_a_member_that_fails_does_not_stop_the_others() -> None:
    turns = Turns(Provider().turns.timeouts)

    class Member:
        def __init__(self, fault: Exception | None) -> None:
            self.fault = fault
            self.deadline = turns.ticker.base + 1
            self.calls = 0

        def expire(self) -> None:
            self.calls += 1
            self.deadline = turns.ticker.base + 1
            if self.fault is not None:
                raise self.fault

    good, bad = Member(None), Member(RuntimeError())
    turns.ticker.members |= {good, bad}
    turns.advance(30)
    assert good.calls > 5
    assert bad.calls == 1
    turns.ticker.stop()
    turns.advance(30)
    assert good.calls < 40


@pytest.mark.parametrize(("shortest", "interval"), [(5.0, 1.0), (1.0, 0.25), (0.01, 0.02), (0.2, 0.05)])
def test_a_tick_is_a_quarter_of_the_shortest_timeout_within_bounds(shortest: float, interval: float) -> None:
    assert Ticker.interval_for(Timeouts(connect=shortest)) == interval
