"""The table of an exchange's states: each of its moves happens, and no other can."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from flowstack.config import Ledger as LedgerSettings
from flowstack.config import Upstream
from flowstack.config.settings import Retry
from flowstack.errors import RateLimitExceeded
from flowstack.http.frames import accept_of
from flowstack.relay.exchange import (
    ANSWERING,
    ASKED,
    BEHIND,
    CLOSED,
    ENDING,
    GATHERING,
    MOVES,
    RESERVING,
    TUNNELLING,
    UPLOADING,
    State,
)
from flowstack.states import IllegalMove
from tests.relay.lab import KEY, Lab, SlowLimiter, request
from tests.relay.playbook import Event, Line, Playbook
from tests.relay.sockets import OPENING, SOCKET_KEY

CHAT = b"POST /v1/chat/completions HTTP/1.1"
JSON = b"Content-Type: application/json"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model":"gpt-4o","stream":true,"messages":[]}'
PAST_A_WINDOW = BODY[:-1] + b" " * 70_000
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + accept_of(SOCKET_KEY) + b"\r\n\r\n"
)  # fmt: skip
WORK = b'data:{"usage":1}\r\n\r\n' * 3000
"""Some turns' work for a meter."""


# Events.


def asks(line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"") -> Event:
    return lambda play: play.client.send(request(line, *fields, body=body))


def chats(length: int, body: bytes = BODY) -> Event:
    """A chat of which so much has come."""
    return asks(CHAT, JSON, b"Content-Length: %d" % len(body), body=body[:length])


def sends(data: bytes) -> Event:
    return lambda play: play.client.send(data)


def leaves(play: Playbook) -> None:
    play.client.hang_up()


def answers(data: bytes) -> Event:
    """The upstream does."""
    return lambda play: play.upstream.send(data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def breaks_off(play: Playbook) -> None:
    play.upstream.fall_over()


def has_read(data: bytes) -> Event:
    """The upstream's transport gives what it had read before it was paused, as TLS may."""
    return lambda play: play.upstream.protocol.dataReceived(data)


def fails(play: Playbook) -> None:
    """The upstream's transport does, though it is paused."""
    play.upstream.protocol.connectionLost(Failure(ConnectionLost()))


def turns(play: Playbook) -> None:
    """The meter sees all that came."""
    while play.lab.held_turns:
        play.lab.turn()


def reserves(play: Playbook) -> None:
    """The slow limiter answers."""
    assert isinstance(play.lab.limiter, SlowLimiter)
    play.lab.limiter.answer()


def refuses(play: Playbook) -> None:
    """The slow limiter says no."""
    play.lab.limiter.fault = RateLimitExceeded("Wait.")
    reserves(play)


def drains(play: Playbook) -> None:
    """The time to drain runs out."""
    play.lab.listener.site.close()


def waits(play: Playbook) -> None:
    """The client stalls in the middle of its body."""
    play.lab.turns.advance(100)


# Labs.


def plain() -> Lab:
    return Lab()


def limited(limiter: SlowLimiter | None = None) -> Lab:
    """The key's bodies are judged."""
    lab = Lab(limiter=limiter)
    lab.keys.add(KEY, models=("gpt-4o*",))
    return lab


def asking_for_usage(limiter: SlowLimiter | None = None) -> Lab:
    """The same, and usage is asked for in the client's place: short bodies are gathered."""
    lab = Lab(limiter=limiter, ledger=LedgerSettings(inject_usage=True))
    lab.keys.add(KEY, models=("gpt-4o*",))
    return lab


def slow() -> Lab:
    return Lab(limiter=SlowLimiter())


def slow_and_limited() -> Lab:
    return limited(SlowLimiter())


def slow_and_asking_for_usage() -> Lab:
    return asking_for_usage(SlowLimiter())


def slow_and_trying_again() -> Lab:
    return Lab(upstreams=(Upstream(base_url="http://upstream.example/v1", retry=Retry()),), limiter=SlowLimiter())


def metered() -> Lab:
    lab = Lab()
    lab.held_turns = []
    return lab


def refusing() -> Lab:
    lab = Lab()
    lab.limiter.fault = RateLimitExceeded("Wait.")
    return lab


SENT = [(chats(len(BODY)), ASKED, "reserve upstream")]
BEGUN = [*SENT, (answers(STREAM), ANSWERING, "client")]
LATE = [*BEGUN, (answers(chunk(WORK)), BEHIND, "client")]

SCRIPTS: dict[str, tuple[Callable[[], Lab], list[Line]]] = {
    "complete": (plain, [*BEGUN, (answers(chunk(b"data: a\n\n")), ANSWERING, "client"),
                         (answers(b"0\r\n\r\n"), CLOSED, "settle complete client")]),
    "refused at once": (refusing, [(asks(), CLOSED, "refused client")]),
    "gone before the head": (plain, [*SENT, (leaves, CLOSED, "settle client_gone cut-upstream")]),
    "drained before the head": (plain, [*SENT, (drains, CLOSED, "settle drain cut-upstream cut-client")]),
    "cut in the middle": (plain, [*BEGUN, (breaks_off, CLOSED, "settle upstream_lost cut-client")]),
    "a slow limiter": (slow, [(asks(), RESERVING, ""), (reserves, ASKED, "reserve upstream")]),
    "a slow limiter says no": (slow, [(asks(), RESERVING, ""), (refuses, CLOSED, "refused client")]),
    "gone while the limiter is asked": (slow, [(asks(), RESERVING, ""), (leaves, CLOSED, "client_gone"),
                                               (reserves, CLOSED, "reserve settle")]),
    "judged on its way": (limited, [(chats(20), UPLOADING, "reserve upstream"),
                                    (sends(BODY[20:]), ASKED, "upstream")]),
    "refused on its way": (limited, [(chats(20), UPLOADING, "reserve upstream"),
                                     (sends(b'"model":"o1",'), CLOSED, "settle refused client cut-upstream")]),
    "an error before it is judged": (limited, [
        (chats(20), UPLOADING, "reserve upstream"),
        (answers(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nn"), ANSWERING, "client"),
        (answers(b"o"), CLOSED, "settle complete client cut-upstream"),
    ]),
    "a success before it is judged": (limited, [
        (chats(20), UPLOADING, "reserve upstream"),
        (answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nn"), CLOSED, "settle upstream_lost client cut-upstream"),
    ]),
    "a slow limiter before a body that is judged": (slow_and_limited, [
        (chats(20), RESERVING, ""), (reserves, UPLOADING, "reserve upstream"), (sends(BODY[20:]), ASKED, "upstream"),
    ]),
    "gathered": (asking_for_usage, [(chats(20), GATHERING, "reserve"), (sends(BODY[20:]), ASKED, "upstream")]),
    "refused while it is gathered": (asking_for_usage, [
        (chats(20), GATHERING, "reserve"), (sends(b'"model":"o1",'), CLOSED, "settle refused client"),
    ]),
    "stalled while it is gathered": (asking_for_usage, [
        (chats(20), GATHERING, "reserve"), (waits, CLOSED, "settle timeout client"),
    ]),
    "too long to be gathered": (asking_for_usage, [
        (asks(CHAT, JSON, b"Transfer-Encoding: chunked", body=chunk(BODY[:20])), GATHERING, "reserve"),
        (sends(chunk(PAST_A_WINDOW[20:])), UPLOADING, "upstream"),
        (sends(chunk(b"}") + b"0\r\n\r\n"), ASKED, "upstream"),
    ]),
    "a slow limiter before a body that is gathered": (slow_and_asking_for_usage, [
        (chats(20), RESERVING, ""), (reserves, GATHERING, "reserve"), (sends(BODY[20:]), ASKED, "upstream"),
    ]),
    "a slow limiter after a body that is held": (slow_and_trying_again, [
        (chats(20), GATHERING, ""), (sends(BODY[20:]), RESERVING, ""), (reserves, ASKED, "reserve upstream"),
    ]),
    "the meter catches up": (metered, [*LATE, (turns, ANSWERING, "")]),
    "gone while the meter is behind": (metered, [*LATE, (leaves, CLOSED, "settle client_gone cut-upstream")]),
    "ended while the meter is behind": (metered, [
        *LATE, (has_read(b"0\r\n\r\n"), ENDING, ""), (turns, CLOSED, "settle complete client"),
    ]),
    "broken off while the meter is behind": (metered, [
        *LATE, (fails, ENDING, ""), (turns, CLOSED, "settle upstream_lost cut-client"),
    ]),
    "the last piece is too much for the meter": (metered, [
        *BEGUN, (answers(chunk(WORK) + b"0\r\n\r\n"), ENDING, ""), (turns, CLOSED, "settle complete client"),
    ]),
    "a websocket that closes": (plain, [
        (asks(b"GET /v1/live/x HTTP/1.1", *OPENING), ASKED, "reserve upstream"),
        (answers(SWITCH), TUNNELLING, "client"), (breaks_off, CLOSED, "settle upstream_lost"),
    ]),
    "gone before the last piece": (metered, [
        *BEGUN, (answers(chunk(WORK) + b"0\r\n\r\n"), ENDING, ""), (leaves, CLOSED, "settle client_gone"),
        (turns, CLOSED, ""),
    ]),
}  # fmt: skip


def run(name: str) -> list[tuple[State, State]]:
    lab, script = SCRIPTS[name]
    play = Playbook(lab())
    play.run(script)
    return play.moves


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_event_leads_to_its_state_and_does_what_it_should(name: str) -> None:
    run(name)


def test_each_move_of_the_table_happens() -> None:
    happened = {move for name in SCRIPTS for move in run(name)}
    assert happened == {(state, following) for state, every in MOVES.items() for following in every}


@pytest.mark.parametrize(("state", "following"), list(product(State, State)), ids=lambda state: state.name)
def test_a_move_that_is_not_in_the_table_raises_and_changes_nothing(state: State, following: State) -> None:
    play = Playbook(plain())
    play.run([(asks(), ASKED, "reserve upstream")])
    exchange = play.exchange
    assert exchange is not None
    exchange.state = state
    if following in MOVES[state]:
        exchange.to(following)
        assert exchange.state is following
    else:
        with pytest.raises(IllegalMove):
            exchange.to(following)
        assert exchange.state is state


def test_every_state_but_the_last_can_end_and_none_follows_that() -> None:
    assert all(CLOSED in following for state, following in MOVES.items() if state is not CLOSED)
    assert MOVES[CLOSED] == ()
    assert set(MOVES) == set(State)
