"""The table of a client's connection: each move by a script of events, and no event that makes another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowstack.server.connection import (
    ANSWERING,
    BODY,
    BREAKING_OFF,
    CLOSED,
    CLOSING,
    HEAD,
    IDLE,
    LINGERING,
    MOVES,
    TAKEN_OVER,
    State,
)
from flowstack.server.request_body import WINDOW
from flowstack.states import IllegalMove
from flowstack.transport.kernel import connect_protocol
from tests.harness import HIGH_WATER, Listener, Receiver, Stage, Transport, reply
from tests.states import assert_others_raise, legal, moves_of, noted, play_all_pairs

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


class Play:
    """One connection: what happens to it, and what it has its transport do."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.listener = Listener(self.stage)
        self.transport: Transport = self.listener.connect()
        self.connection: Any = self.transport.protocol

    def settle(self) -> None:
        """Let what is due happen."""
        self.listener.turns.settle()

    @property
    def commands(self) -> list[str]:
        """What the transport was told, and the status of each answer that it was given."""
        answers = [data[9:12].decode() for data in self.transport.writes if data.startswith(b"HTTP/1.1 ")]
        return answers + self.transport.calls


Event = Callable[[Play], Any]


def client(data: bytes) -> Event:
    return lambda play: play.transport.send(data)


def leaves(play: Play) -> None:
    play.transport.hang_up()


def waits(play: Play) -> None:
    turns = play.listener.turns
    for _ in range(90):
        turns.clock.advance(turns.ticker.interval)
        turns.settle()


def stops_reading(play: Play) -> None:
    play.transport.peer_reads = False


def reads(play: Play) -> None:
    play.transport.read()


def answered(play: Play) -> None:
    for request in play.stage.requests[-1:]:
        reply(request)
    play.listener.turns.settle()


def begun(play: Play) -> None:
    for request in play.stage.requests[-1:]:
        request.write_head(200, b"OK", b"", None)
        request.write(b"x" * 1000)


def flooded(play: Play) -> None:
    for request in play.stage.requests[-1:]:
        if not request.started:
            request.write_head(200, b"OK", b"", None)
        request.write(b"x" * HIGH_WATER)


def ended(play: Play) -> None:
    for request in play.stage.requests[-1:]:
        request.end()
    play.listener.turns.settle()


def broken_off(play: Play) -> None:
    for request in play.stage.requests[-1:]:
        request.break_off()
    play.listener.turns.settle()


def drained(play: Play) -> None:
    play.listener.site.drain()
    play.listener.site.close()
    play.listener.turns.settle()


def cut(play: Play) -> None:
    play.listener.site.cut()
    play.listener.turns.settle()


def taken_over(play: Play) -> None:
    receiver = Receiver()
    transport, rest = play.connection.take_over(receiver)
    receiver.got += rest
    connect_protocol(transport, receiver)


REACH: dict[State, tuple[Event, ...]] = {
    IDLE: (),
    HEAD: (client(b"GET"),),
    BODY: (client(POST + b"x"),),
    ANSWERING: (client(GET),),
    LINGERING: (client(b"BAD\n"),),
    BREAKING_OFF: (stops_reading, client(GET), begun, broken_off),
    CLOSING: (stops_reading, client(LAST_GET), answered),
    CLOSED: (cut,),
    TAKEN_OVER: (client(GET), taken_over),
}

LINGER = "loseWriteConnection"
CLOSE = "loseConnection"
ABORT = "abortConnection"

SCRIPT: list[tuple[State, tuple[Event, ...], list[State], list[str]]] = [
    (IDLE, (client(b"\r\n"),), [], []),
    (IDLE, (client(b"\r"), client(b"\n")), [HEAD, IDLE], []),
    (IDLE, (client(b"GET"),), [HEAD], []),
    (IDLE, (client(POST),), [BODY], []),
    (IDLE, (client(POST + b"four"),), [ANSWERING], []),
    (IDLE, (client(b"BAD\n"),), [LINGERING], ["400", LINGER]),
    (IDLE, (waits,), [CLOSING, CLOSED], [CLOSE]),
    (IDLE, (drained,), [CLOSING, CLOSED], [CLOSE]),
    (IDLE, (leaves,), [CLOSED], []),
    (IDLE, (client(GET * 3), answered, answered, answered), [ANSWERING, IDLE] * 3, ["200"] * 3),
    (
        IDLE,
        (stops_reading, client(GET), flooded, ended, client(GET), reads),
        [ANSWERING, IDLE, HEAD, ANSWERING],
        ["200"],
    ),
    (HEAD, (client(GET[3:]),), [ANSWERING], []),
    (HEAD, (client(b" / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),), [BODY], []),
    (HEAD, (client(b" / HTTP/1.1\r\nX\r\n\r\n"),), [LINGERING], ["400", LINGER]),
    (HEAD, (waits,), [LINGERING, CLOSING, CLOSED], ["400", LINGER, CLOSE]),
    (HEAD, (drained,), [CLOSING, CLOSED], [CLOSE]),
    (HEAD, (leaves,), [CLOSED], []),
    (BODY, (client(b"our"), answered), [ANSWERING, IDLE], ["200"]),
    (BODY, (answered,), [LINGERING], ["200", LINGER]),
    (BODY, (waits,), [LINGERING, CLOSING, CLOSED], ["400", LINGER, CLOSE]),
    (BODY, (begun, broken_off), [CLOSED], ["200", ABORT]),
    (BODY, (stops_reading, begun, broken_off, reads, waits), [BREAKING_OFF, CLOSED], ["200", ABORT]),
    (BODY, (leaves,), [CLOSED], []),
    (ANSWERING, (begun, broken_off), [CLOSED], ["200", ABORT]),
    (ANSWERING, (waits,), [], []),
    (ANSWERING, (drained,), [CLOSED], [ABORT]),
    (ANSWERING, (taken_over,), [TAKEN_OVER], []),
    (ANSWERING, (leaves,), [CLOSED], []),
    (LINGERING, (client(b"x" * 100),), [], ["400", LINGER]),
    (LINGERING, (waits,), [CLOSING, CLOSED], ["400", LINGER, CLOSE]),
    (LINGERING, (leaves,), [CLOSED], ["400", LINGER]),
    (BREAKING_OFF, (drained,), [], ["200"]),
    (BREAKING_OFF, (waits,), [CLOSED], ["200", ABORT]),
    (CLOSING, (reads,), [CLOSED], ["200", CLOSE]),
    (CLOSING, (waits,), [CLOSED], ["200", CLOSE, ABORT]),
    (CLOSED, (leaves, waits, answered), [], [ABORT]),
    (TAKEN_OVER, (client(GET), waits, leaves), [], []),
]

EVENTS = [client(b"G"), client(GET), client(b"\n"), client(b"x" * 3 * WINDOW), leaves, waits, stops_reading, reads,
          answered, begun, flooded, ended, broken_off, drained, cut]  # fmt: skip


def play_to(state: State) -> Play:
    play = Play()
    for event in REACH[state]:
        event(play)
    assert play.connection.state is state
    return play


@pytest.mark.parametrize(("state", "events", "moves", "commands"), SCRIPT)
def test_events_move_a_connection_and_its_transport_as_scripted(
    state: State, events: tuple[Event, ...], moves: list[State], commands: list[str]
) -> None:
    play = play_to(state)
    with noted(MOVES) as made:
        for event in events:
            event(play)
    assert ([after for _, after in made], play.commands) == (moves, commands)


def test_the_script_takes_every_legal_move() -> None:
    assert moves_of(play_to, SCRIPT, MOVES) == legal(MOVES)


@pytest.mark.parametrize("before", State)
def test_an_illegal_move_raises_and_changes_nothing(before: State) -> None:
    assert_others_raise(play_to, before, MOVES)


@pytest.mark.parametrize("state", State)
def test_no_two_events_ask_for_an_illegal_move(state: State) -> None:
    play_all_pairs(play_to, state, EVENTS)


@pytest.mark.parametrize("state", [state for state in State if state is not ANSWERING])
def test_a_connection_is_taken_over_in_the_middle_of_an_answer_only(state: State) -> None:
    with pytest.raises(IllegalMove):
        play_to(state).connection.take_over(Receiver())


@pytest.mark.parametrize("at_once", [True, False], ids=["within render", "later"])
def test_of_what_follows_a_request_taken_over_no_byte_is_lost_at_any_split(at_once: bool) -> None:
    wire = POST + b"bodybehind the request\r\n\r\n"
    for place in range(1, len(wire)):
        play = Play()
        receiver = Receiver()

        def take(_: object, play: Play = play, receiver: Receiver = receiver) -> None:
            if play.connection.state is ANSWERING:
                transport, rest = play.connection.take_over(receiver)
                assert (transport.producer, transport.reading) == (None, False)
                receiver.got += rest
                connect_protocol(transport, receiver)

        if at_once:
            play.stage.answer = take
        play.transport.send(wire[:place])
        take(None)
        play.transport.send(wire[place:])
        take(None)
        play.listener.turns.settle()
        assert bytes(receiver.got) == b"behind the request\r\n\r\n", place
        assert play.connection not in play.listener.turns.ticker.members
        assert (play.listener.site.connections, play.listener.site.busy) == ({receiver}, 1)
