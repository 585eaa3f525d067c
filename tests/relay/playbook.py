"""Scripts of one exchange: an event, the state that follows it, and what was done by then at the exchange's edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowstack.relay.exchange import STARTED, Exchange, State
from tests.harness import Transport
from tests.relay.lab import Lab

Event = Callable[["Playbook"], Any]
Line = tuple[Event, State, str]
"""An event, the state that follows, and what was done, in the order of :meth:`Playbook.done`."""


class Playbook:
    """A lab that looks at its one exchange after each event. It stands before the relay, which it hands the request.

    :ivar moves: from state to state, each seen after an event.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.listener.site.handler = self
        self.client: Transport = lab.client()
        self.moves: list[tuple[State, State]] = []
        self.state = STARTED
        self.exchange: Exchange | None = None
        self._done = self._counts()

    def render(self, request: Any) -> int:
        gone = request.gone
        result = self.lab.relay.render(request)
        # A request that is over has let go of its exchange.
        self.exchange = gone if request.gone is None else request.gone.__self__
        if self.exchange is None:
            self._move(State.CLOSED)
        return result

    @property
    def upstream(self) -> Transport:
        return self.lab.upstreams[-1]

    def run(self, script: list[Line]) -> None:
        for number, (event, state, done) in enumerate(script):
            event(self)
            self.lab.turns.settle()
            if self.exchange is not None:
                self._move(self.exchange.state)
            assert (self.state.name, self.done()) == (state.name, done), f"line {number}"

    def _move(self, state: State) -> None:
        if state is not self.state:
            self.moves.append((self.state, state))
            self.state = state

    def done(self) -> str:
        """What was done since this was last asked."""
        before, self._done = self._done, self._counts()
        return " ".join(name for name, count in self._done.items() if count != before.get(name, 0))

    def _counts(self) -> dict[str, int]:
        lab, client = self.lab, self.client
        counts = {
            "reserve": lab.limiter.reserved,
            "claim": sum(not one.at_once and bool(one.claimed) for one in lab.limiter.given),
            "upstream": sum(len(one.got) for one in lab.upstreams),
            "settle": len(lab.limiter.settled),
            **{row["end"]: 1 for row in lab.rows},
            "client": len(client.got),
            "cut-upstream": sum(one.peer_saw == "reset" for one in lab.upstreams),
            "cut-client": client.peer_saw == "reset",
        }
        assert len(lab.rows) <= 1
        return counts
