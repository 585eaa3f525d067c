"""A WebSocket, whatever client, upstream, limiter, reload and drain do, in any order: what holds at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher

from flowstack.http.frames import PING, TEXT, frame
from flowstack.keys import Budget
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from tests.relay.lab import KEY, Lab, tell
from tests.relay.sockets import MASK, REALTIME, RESPONSES, Duet

USD = Decimal("0.5")
MODELS = {REALTIME: "gpt-realtime", RESPONSES: "gpt-4o"}


class Waiting:
    """A limiter that counts in earnest, and answers when the walk says so; at once where nobody waits for that."""

    def __init__(self, limiter: SharedLimiter) -> None:
        self._limiter = limiter
        self.slow = False
        self._asked: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._limiter, name)

    def reserve(self, *asked: Any, **options: Any) -> Any:
        if not self.slow:
            return self._limiter.reserve(*asked, **options)
        waiting: Deferred[Any] = Deferred()
        self._asked.append((waiting, lambda: self._limiter.reserve(*asked, **options)))
        return waiting

    def answer(self) -> None:
        if self._asked:
            tell(*self._asked.pop(0))

    def answer_all(self) -> None:
        while self._asked:
            self.answer()


def limits(rpm: int, models: tuple[str, ...]) -> dict[str, Any]:
    return dict(owner="alice@example.com", rpm=rpm, max_parallel=2, budget=Budget(USD, "month"), models=models)


class Walk:
    """One WebSocket, and what its two ends said and have got."""

    def __init__(self, target: bytes, rpm: int) -> None:
        def real(lab: Lab) -> dict[str, Any]:
            wall, monotonic = lab.wall, lab.turns.clock.seconds
            self.limiter = Waiting(
                SharedLimiter(open_counters(None, 1, wall, monotonic), lab.settings, wall, monotonic)
            )
            return {"limiter": self.limiter}

        self.lab = lab = Lab(real=real)
        self.key = lab.keys.add(KEY, **limits(rpm, ()))
        self.duet = Duet(lab, target)
        self.model = MODELS[target]
        self.realtime = target == REALTIME
        self.sent: tuple[list[bytes], list[bytes]] = [], []  # by the client, by the upstream
        self.got: tuple[list[bytes], list[bytes]] = [], []  # by the upstream, by the client
        self.asked: list[dict[str, Any]] = []  # that the upstream has, and has not begun
        self.open: list[tuple[str, dict[str, Any]]] = []
        self.said: dict[str, int] = {}  # the tokens of each response that the upstream has said to be done
        self.by_itself = self.count = 0
        self.closed = False  # by the upstream
        self.half: bytes | None = None  # of a message that the client has begun, which is this:
        self.half_sent = b""

    # What may happen.

    def client_asks(self, stream: str | None, event: bool, pieces: int | None) -> None:
        self.count += 1
        message: dict[str, Any] = {"type": "response.create"}
        if event:
            message["event_id"] = f"event_{self.count}"
        if stream is not None:
            message["stream_id"] = stream
        if self.realtime:
            message["response"] = {"max_output_tokens": 9}
        else:
            message |= {"model": self.model, "input": "x", "max_output_tokens": 9}
        self.client_says(orjson.dumps(message), pieces)

    def turn(self, stream: str | None, event: bool, tells: bool) -> None:
        """As it should be."""
        self.client_asks(stream, event, None)
        self.upstream_begins(tells, False)
        self.upstream_ends(-1)

    def client_says(self, text: bytes, pieces: int | None) -> None:
        if self.half is None:
            self.sent[0].append(text)
            self.duet.client.transport.send(frame(TEXT, text, MASK), pieces)

    def client_begins(self) -> None:
        if self.half is None:
            self.count += 1
            text = orjson.dumps({"type": "session.update", "n": self.count, "session": {"instructions": "x" * 80}})
            self.sent[0].append(text)
            self.half_sent = text
            whole = frame(TEXT, text, MASK)
            self.duet.client.transport.send(whole[:40])
            self.half = whole[40:]

    def client_goes_on(self) -> None:
        if self.half is not None:
            half, self.half = self.half, None
            self.duet.client.transport.send(half)

    def client_pings(self) -> None:
        if self.half is None:
            self.duet.client.transport.send(frame(PING, b"x", MASK))

    def client_closes(self) -> None:
        if self.half is None:
            self.duet.client.close()

    def upstream_says(self, event: dict[str, Any]) -> None:
        text = orjson.dumps(event)
        self.sent[1].append(text)
        self.duet.upstream.transport.send(frame(TEXT, text))

    def upstream_begins(self, tells: bool, unasked: bool) -> None:
        self.listen()
        if not (self.asked or (unasked and self.realtime)):
            return
        by_itself = unasked and self.realtime
        asked = {} if by_itself else self.asked.pop(0)
        self.by_itself += by_itself
        self.count += 1
        identity = f"resp_{self.count}"
        named = {"stream_id": asked["stream_id"]} if tells and "stream_id" in asked else {}
        self.open.append((identity, named))
        self.upstream_says({"type": "response.created", "response": {"id": identity}, **named})

    def upstream_ends(self, which: int) -> None:
        if not self.open:
            return
        identity, named = self.open.pop(which % len(self.open))
        tokens = self.said[identity] = 1000 + len(self.said)
        usage: dict[str, Any] = {"input_tokens": 1000, "output_tokens": tokens - 1000, "total_tokens": tokens}
        if self.realtime:
            usage |= {"input_token_details": {"text_tokens": 1000, "audio_tokens": 0},
                      "output_token_details": {"text_tokens": tokens - 1000, "audio_tokens": 0}}  # fmt: skip
        response = {"id": identity, "status": "completed", "model": self.model, "service_tier": "default",
                    "output": [], "usage": usage}  # fmt: skip
        self.upstream_says({"type": "response.done" if self.realtime else "response.completed",
                            "response": response, **named})  # fmt: skip

    def upstream_refuses(self) -> None:
        self.listen()
        if self.asked:
            asked = self.asked.pop(0)
            named = {name: asked[name] for name in ("stream_id",) if name in asked}
            error = {"code": "x", "message": "no", "event_id": asked.get("event_id")}
            self.upstream_says({"type": "error", "status": 429, "error": error, **named})

    def upstream_chatters(self) -> None:
        self.upstream_says({"type": "response.output_text.delta", "delta": "é" * (self.count % 3)})

    def upstream_closes(self) -> None:
        self.listen()
        self.closed = True
        self.duet.upstream.close(1001)

    def reload(self, rpm: int, which: int) -> None:
        lab = self.lab
        if which == 0:
            lab.keys.keys.clear()
        else:
            self.key = lab.keys.add(KEY, **limits(rpm, ((), (self.model,), ("another",))[which - 1]))
        lab.keys.generation += 1
        lab.turns.advance(2)

    def slow(self, slow: bool) -> None:
        self.limiter.slow = slow

    def answer(self) -> None:
        self.limiter.answer()

    def client_reads(self, reads: bool) -> None:
        transport = self.duet.client.transport
        transport.peer_reads = reads
        if reads:
            transport.read()

    def drain(self) -> None:
        for tunnel in list(self.lab.sockets.current):
            tunnel.close_now()

    def time(self, seconds: int) -> None:
        self.lab.turns.advance(seconds)

    # What is seen.

    def listen(self) -> None:
        """Take what both ends have got."""
        for opcode, text in self.duet.upstream.take():
            if opcode == TEXT:
                assert not self.closed or text == self.half_sent
                self.got[0].append(text)
                event = orjson.loads(text)
                if event["type"] == "response.create":
                    self.asked.append(event)
        self.got[1].extend(text for opcode, text in self.duet.client.take() if opcode == TEXT)

    def end(self, client_first: bool) -> None:
        self.client_reads(True)
        self.limiter.answer_all()
        ends = [self.duet.client.transport, self.duet.upstream.transport]
        for transport in ends if client_first else reversed(ends):
            if not transport.closed:
                transport.hang_up()
        self.limiter.answer_all()
        self.lab.turns.advance(60)
        self.listen()

    def check(self) -> None:
        lab = self.lab
        assert not lab.sockets.current and lab.socket_room.held == 0
        connections = [row for row in lab.rows if row["parent_request_id"] is None]
        assert len(connections) == 1
        responses = [row for row in lab.rows if row["parent_request_id"] is not None]
        assert {row["parent_request_id"] for row in responses} <= {connections[0]["request_id"]}
        assert len({row["request_id"] for row in lab.rows}) == len(lab.rows)
        # What went on is what was said, in its order; what is Flowstack's own stands between.
        cancels = [text for text in self.got[0] if text not in self.sent[0]]
        assert {orjson.loads(text)["type"] for text in cancels} <= {"response.cancel"}
        assert in_order([text for text in self.got[0] if text not in cancels], self.sent[0])
        errors = [text for text in self.got[1] if text not in self.sent[1]]
        assert {orjson.loads(text)["type"] for text in errors} <= {"error"}
        passed = [text for text in self.got[1] if text not in errors]
        assert passed == self.sent[1][: len(passed)]
        # Each response that the client was told of has one row, with its figures.
        counted = [row["total_tokens"] for row in responses if row["total_tokens"] is not None]
        assert len(set(counted)) == len(counted)
        told = [event["response"]["id"] for event in map(orjson.loads, passed)
                if event["type"] in ("response.done", "response.completed")]  # fmt: skip
        assert {self.said[identity] for identity in told} <= set(counted) <= set(self.said.values())
        # What was asked for is answered, refused, or open at the end: as many rows.
        sent = sum(row["attempts"] for row in responses)
        asked = sum(orjson.loads(text)["type"] == "response.create" for text in self.got[0])
        begun = sum(event["type"] == "response.created" for event in map(orjson.loads, passed))
        assert max(asked, begun) <= sent <= asked + self.by_itself
        # No place is taken any more, and the money is that of the rows, besides estimates of what was open.
        standings = {one.limit: one for one in self.limiter.standings(self.key)}
        assert standings["max_parallel"].used == 0
        paid = sum(round((row["cost_usd"] or 0) * 1e9) for row in responses)
        kept = [row for row in responses
                if row["usage_source"] == "none" and row["attempts"] and (row["status"] or 0) != 429]  # fmt: skip
        assert standings["budget"].used >= paid
        if not kept:
            assert standings["budget"].used == paid
        if not self.realtime:  # there responses begin by themselves, and are charged whatever is left
            assert standings["budget"].used <= USD * 10**9


def in_order(some: list[bytes], of: list[bytes]) -> bool:
    rest = iter(of)
    return all(one in rest for one in some)


@contextmanager
def no_fault_logged() -> Iterator[None]:
    faults: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] is LogLevel.critical:
            faults.append(event.get("log_failure") or event)

    globalLogPublisher.addObserver(observe)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observe)
    assert faults == []


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), *arguments)


STREAM = st.sampled_from((None, "a", "b"))
PIECES = st.sampled_from((None, None, 1, 7, 50))
TURN = step("turn", STREAM, st.booleans(), st.booleans())
ASK = step("client_asks", STREAM, st.booleans(), PIECES)
BEGIN = step("upstream_begins", st.booleans(), st.booleans())
END = step("upstream_ends", st.integers(0, 3))
STEPS = st.lists(st.one_of(
    TURN, TURN, TURN, ASK, ASK, BEGIN, BEGIN, END, END,
    step("client_says", st.just(b'{"type":"input_audio_buffer.append","audio":"AAAA"}'), PIECES),
    step("client_says", st.just(b'{"type":"response.cancel"}'), PIECES),
    step("client_says", st.just(b"no JSON"), PIECES),
    step("client_begins"), step("client_goes_on"), step("client_goes_on"), step("client_pings"),
    step("upstream_refuses"), step("upstream_chatters"),
    step("reload", st.sampled_from((1, 3, 100)), st.integers(1, 2)),
    step("slow", st.booleans()), step("answer"), step("answer"), step("client_reads", st.booleans()),
    step("time", st.sampled_from((1, 25))),
), min_size=5, max_size=40)  # fmt: skip
ENDS = st.one_of(
    step("client_closes"), step("upstream_closes"), step("drain"), step("reload", st.just(9), st.sampled_from((0, 3))),
    step("answer"),
)  # fmt: skip


@given(st.sampled_from((REALTIME, RESPONSES)), st.sampled_from((2, 100)), STEPS, ENDS, STEPS, st.booleans())
def test_whatever_happens_each_response_is_counted_once_and_nothing_stays_taken(
    target: bytes, rpm: int, steps: list[Any], end: Any, more: list[Any], client_first: bool
) -> None:
    with no_fault_logged():
        walk = Walk(target, rpm)
        for name, *arguments in (*steps, end, *more[:5]):
            getattr(walk, name)(*arguments)
        walk.end(client_first)
    walk.check()
