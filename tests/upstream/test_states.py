"""The table of an upstream's connection: each move by a script of events, and no event that makes another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from flowstack.states import IllegalMove
from flowstack.transport.kernel import connect_protocol
from flowstack.upstream.connection import ANSWERED, BODY, CLOSED, HEAD, IDLE, MOVES, TAKEN_OVER, UNTAKEN, WAITING, State
from tests.harness import HIGH_WATER, Asked, Provider, Receiver, Transport
from tests.states import assert_others_raise, legal, moves_of, noted, play_all_pairs

HEAD_OF_4 = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"

ABORT = "abortConnection"


class Upload:
    """A body that the test writes."""

    whole = None
    length = 10

    def __init__(self) -> None:
        self.consumer: Any = None
        self.done: Deferred[None] = Deferred()

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self.consumer = consumer
        return self.done

    def pauseProducing(self) -> None:
        """Nothing."""

    def resumeProducing(self) -> None:
        """Nothing."""

    def stopProducing(self) -> None:
        """Nothing."""


class Play:
    """One connection: what happens to it, and what it has its transport and its caller hear."""

    def __init__(self) -> None:
        self.provider = Provider()
        self.asked: Asked = self.provider.ask()
        self.transport: Transport = self.provider.peers[0]
        self.transport.send(HEAD_OF_4 + b"body")
        self.connection: Any = self.transport.protocol
        self.takes = True
        self.upload = Upload()

    def settle(self) -> None:
        """Let what is due happen."""
        self.provider.turns.settle()

    @property
    def outcome(self) -> tuple[list[str], str]:
        """What the transport was told, and what the caller heard last."""
        heard = self.asked.fault or self.asked.end
        return self.transport.calls, "" if heard is None else type(heard).__name__


Event = Callable[[Play], Any]


def upstream(data: bytes) -> Event:
    return lambda play: play.transport.send(data)


def called(play: Play) -> None:
    play.asked = Asked(play.provider.agent.request(b"GET", b"http://upstream.example/v1/x"))
    play.asked.take_body = play.takes
    play.provider.turns.settle()


def uploads(play: Play) -> None:
    call = play.provider.agent.request(b"PUT", b"http://upstream.example/v1/x", bodyProducer=play.upload)
    play.asked = Asked(call)
    play.asked.take_body = play.takes
    play.provider.turns.settle()


def uploaded(play: Play) -> None:
    if play.upload.consumer is not None and not play.upload.done.called:
        play.upload.consumer.write(b"0123456789")
        play.upload.done.callback(None)


def upload_fails(play: Play) -> None:
    if play.upload.consumer is not None and not play.upload.done.called:
        play.upload.done.errback(ValueError())


def takes_later(play: Play) -> None:
    play.takes = play.asked.take_body = False


def taken(play: Play) -> None:
    response = play.asked.response
    if play.connection.state is TAKEN_OVER or response is None or play.takes:
        return
    if response.connection is play.connection:
        play.takes = True
        play.asked.response.deliver(play.asked)
        play.provider.turns.settle()


def leaves(play: Play) -> None:
    play.transport.hang_up()


def falls_over(play: Play) -> None:
    play.transport.fall_over()


def waits(play: Play) -> None:
    turns = play.provider.turns
    for _ in range(1300):
        turns.clock.advance(turns.ticker.interval)
        turns.settle()


def stops_reading(play: Play) -> None:
    play.transport.peer_reads = False
    if play.upload.consumer is not None:
        play.upload.consumer.write(b"x" * HIGH_WATER)


def cancelled(play: Play) -> None:
    play.asked.job.cancel()
    play.provider.turns.settle()


def dropped(play: Play) -> None:
    play.connection.stopProducing()
    play.provider.turns.settle()


def paused(play: Play) -> None:
    play.connection.pauseProducing()


def resumed(play: Play) -> None:
    play.connection.resumeProducing()
    play.provider.turns.settle()


def pool_closed(play: Play) -> None:
    play.provider.pool.close()
    play.provider.turns.settle()


def taken_over(play: Play) -> None:
    transport, rest = play.connection.take_over()
    connect_protocol(transport, Receiver(rest))


def called_by_one_who(acts: Event) -> Event:
    """A call of one who acts in the very call in which the head is given on."""

    def event(play: Play) -> None:
        call = play.provider.agent.request(b"GET", b"http://upstream.example/v1/x")
        call.addCallbacks(lambda _: acts(play), lambda _: None)
        play.provider.turns.settle()

    return event


REACH: dict[State, tuple[Event, ...]] = {
    IDLE: (),
    WAITING: (called,),
    HEAD: (called, upstream(b"HTTP")),
    UNTAKEN: (takes_later, called, upstream(HEAD_OF_4 + b"bo")),
    BODY: (called, upstream(HEAD_OF_4 + b"bo")),
    CLOSED: (dropped,),
    TAKEN_OVER: (takes_later, called, upstream(CHUNKED), taken_over),
}
"""ANSWERED lasts no longer than a call: it is passed in most of these."""

SCRIPT: list[tuple[State, tuple[Event, ...], list[State], list[str], str]] = [
    # The moves of a connection that takes its place are among them.
    (IDLE, (called,), [WAITING], [], ""),
    (IDLE, (waits,), [CLOSED], [ABORT], "ResponseDone"),
    (IDLE, (upstream(b"x"),), [CLOSED], [ABORT], "ResponseDone"),
    (IDLE, (leaves,), [CLOSED], [], "ResponseDone"),
    (IDLE, (pool_closed,), [CLOSED], [ABORT], "ResponseDone"),
    (IDLE, (called_by_one_who(taken_over), upstream(CHUNKED)), [WAITING, ANSWERED, TAKEN_OVER], [], "ResponseDone"),
    (IDLE, (called_by_one_who(dropped), upstream(CHUNKED)), [WAITING, ANSWERED, CLOSED], [ABORT], "ResponseDone"),
    (WAITING, (upstream(HEAD_OF_4 + b"body"),), [IDLE], [], "ResponseDone"),
    (WAITING, (upstream(INTERIM), upstream(HEAD_OF_4 + b"body")), [HEAD, IDLE], [], "ResponseDone"),
    (WAITING, (upstream(HEAD_OF_4), upstream(b"body")), [ANSWERED, BODY, IDLE], [], "ResponseDone"),
    (WAITING, (upstream(CHUNKED), upstream(b"4\r\nbody\r\n0\r\n\r\n")), [ANSWERED, BODY, IDLE], [], "ResponseDone"),
    (WAITING, (upstream(LAST),), [ANSWERED, BODY, CLOSED], [ABORT], "ResponseDone"),
    (WAITING, (upstream(b"SSH-2.0"),), [CLOSED], [ABORT], "UpstreamMalformed"),
    (WAITING, (waits,), [CLOSED], [ABORT], "UpstreamTimeout"),
    (WAITING, (cancelled,), [CLOSED], [ABORT], "CancelledError"),
    (WAITING, (leaves,), [CLOSED, WAITING], [], ""),  # it is sent again, on another connection
    (HEAD, (upstream(b"/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),), [IDLE], [], "ResponseDone"),
    (HEAD, (upstream(b"/1.1 200 OK\r\n\r\n"), leaves), [ANSWERED, BODY, CLOSED], [], "PotentialDataLoss"),
    (HEAD, (upstream(b"/2 200"),), [CLOSED], [ABORT], "UpstreamMalformed"),
    (HEAD, (waits,), [CLOSED], [ABORT], "UpstreamTimeout"),
    (HEAD, (leaves,), [CLOSED], [], "UpstreamClosed"),
    (IDLE, (uploads, upload_fails), [WAITING, CLOSED], [ABORT], "ValueError"),
    (IDLE, (uploads, stops_reading, waits), [WAITING, CLOSED], [ABORT], "UpstreamTimeout"),
    (IDLE, (uploads, uploaded, upstream(HEAD_OF_4 + b"body")), [WAITING, IDLE], [], "ResponseDone"),
    (IDLE, (uploads, upstream(HEAD_OF_4), upload_fails), [WAITING, ANSWERED, BODY, CLOSED], [ABORT], "UpstreamLost"),
    (UNTAKEN, (taken, upstream(b"dy")), [BODY, IDLE], [], "ResponseDone"),
    (UNTAKEN, (waits,), [], [], ""),
    (UNTAKEN, (dropped, taken), [CLOSED], [ABORT], "UpstreamLost"),
    (UNTAKEN, (taken_over,), [TAKEN_OVER], [], ""),
    (BODY, (upstream(b"dy"),), [IDLE], [], "ResponseDone"),
    (BODY, (upstream(b"dy and more"),), [CLOSED], [ABORT], "ResponseDone"),
    (BODY, (falls_over,), [CLOSED], [], "UpstreamLost"),
    (BODY, (waits,), [CLOSED], [ABORT], "StreamIdle"),
    (BODY, (paused, waits), [], [], ""),
    (BODY, (dropped,), [CLOSED], [ABORT], ""),
    (CLOSED, (leaves, waits, called), [WAITING], [ABORT], ""),  # another one
    (TAKEN_OVER, (upstream(b"x"), waits, leaves), [], [], ""),
]

EVENTS = [upstream(b"H"), upstream(HEAD_OF_4), upstream(HEAD_OF_4 + b"body"), upstream(CHUNKED), upstream(b"\r\n"),
          called, uploads, uploaded, upload_fails, taken, leaves, falls_over, stops_reading, cancelled, dropped,
          paused, resumed, pool_closed]  # fmt: skip


def play_to(state: State) -> Play:
    play = Play()
    for event in REACH[state]:
        event(play)
    assert play.connection.state is state
    return play


@pytest.mark.parametrize(("state", "events", "moves", "calls", "heard"), SCRIPT)
def test_events_move_a_connection_and_its_caller_hears_as_scripted(
    state: State, events: tuple[Event, ...], moves: list[State], calls: list[str], heard: str
) -> None:
    play = play_to(state)
    with noted(MOVES) as made:
        for event in events:
            event(play)
    assert ([after for _, after in made], *play.outcome) == (moves, calls, heard)


def test_the_script_takes_every_legal_move() -> None:
    assert moves_of(play_to, SCRIPT, MOVES) == legal(MOVES)


@pytest.mark.parametrize("before", REACH)
def test_an_illegal_move_raises_and_changes_nothing(before: State) -> None:
    assert_others_raise(play_to, before, MOVES)


@pytest.mark.parametrize("state", REACH)
def test_no_two_events_ask_for_an_illegal_move(state: State) -> None:
    play_all_pairs(play_to, state, EVENTS)


@pytest.mark.parametrize("state", [state for state in REACH if TAKEN_OVER not in MOVES[state]])
def test_a_connection_is_taken_over_behind_the_final_head_only(state: State) -> None:
    with pytest.raises(IllegalMove):
        play_to(state).connection.take_over()


@pytest.mark.parametrize("at_once", [True, False], ids=["in the answer's call", "later"])
def test_of_what_follows_a_head_taken_over_no_byte_is_lost_at_any_split(at_once: bool) -> None:
    wire = CHUNKED + b"not chunked at all\r\n"
    for place in range(1, len(wire)):
        play = Play()
        receiver = Receiver()

        def take(_: object, play: Play = play, receiver: Receiver = receiver) -> None:
            if play.connection.state in (ANSWERED, UNTAKEN):
                transport, rest = play.connection.take_over()
                assert (transport.producer, transport.reading) == (None, False)
                receiver.got += rest
                connect_protocol(transport, receiver)

        call: Any = play.provider.agent.request(b"GET", b"http://upstream.example/v1/x")
        if at_once:
            call.addCallback(take)
        play.transport.send(wire[:place])
        take(None)
        play.transport.send(wire[place:])
        take(None)
        play.provider.turns.settle()
        assert bytes(receiver.got) == b"not chunked at all\r\n", place
        assert (play.provider.pool.size, play.provider.pool.idle) == (0, [])
        assert play.connection not in play.provider.turns.ticker.members
