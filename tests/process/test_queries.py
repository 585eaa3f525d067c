"""Questions to the reports' process: in order, bounded, given up after their time, and none lost when it dies."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from flowstack.admin.refusals import BY_CODE
from flowstack.config import Settings
from flowstack.config.settings import Server
from flowstack.interfaces import Answered
from flowstack.process.queries import (
    ERROR,
    GRACE_SECONDS,
    IDLE_SECONDS,
    MOST_WAITING,
    START_SECONDS,
    Frames,
    Queries,
)
from flowstack.process.supervisor import ANSWERS
from tests.process.test_supervisor import KILL, TERM, Process, Reactor


class Scene:
    """Queries, whose process the test plays."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.queries = Queries(self.reactor, Settings(), ["python", "-m", "reports"])
        self.queries.startService()
        self.outcomes: dict[str, Any] = {}

    def ask(self, name: str, seconds: float = 5.0) -> Deferred[Answered]:
        asked = self.queries.ask(name, {}, seconds)
        asked.addBoth(lambda outcome: self.outcomes.__setitem__(name, outcome))
        return asked

    @property
    def process(self) -> Process:
        return self.reactor.spawned[-1]

    @property
    def given(self) -> list[str]:
        """The names of the questions that the process was given."""
        return [name.decode() for name in re.findall(rb'\["(\w+)",\{\},', self.process.given)]

    def say(self, number: int, kind: str = "application/json", body: bytes = b"{}") -> None:
        self.process.protocol.childDataReceived(ANSWERS, b"%d %b %d\n" % (number, kind.encode(), len(body)) + body)

    def code(self, name: str) -> str:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Failure)
        code: str = outcome.value.code  # type: ignore[attr-defined]
        return code


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_process_is_started_when_it_is_first_asked_and_gets_one_question_at_a_time(scene: Scene) -> None:
    assert scene.reactor.spawned == []
    scene.ask("a")
    scene.ask("b")
    assert scene.given == []
    scene.say(0, "ready", b"")
    assert scene.given == ["a"]
    scene.say(1, body=b'{"a":1}')
    assert scene.outcomes["a"] == Answered(b'{"a":1}')
    assert scene.given == ["a", "b"]
    scene.say(2, "text/csv", b"x,y\n1 2 3\n")
    assert scene.outcomes["b"] == Answered(b"x,y\n1 2 3\n", b"text/csv")
    scene.ask("c")
    assert scene.given == ["a", "b", "c"]
    assert len(scene.reactor.spawned) == 1


def test_an_answer_may_come_in_any_pieces() -> None:
    taken: list[tuple[int, str, bytes]] = []
    frames = Frames(lambda *frame: taken.append(frame))
    expected = [(0, "ready", b""), (1, "a/b", b"x\ny 1\n" * 1000), (2, ERROR, b""), (3, "a/b", b"z")]
    stream = b"".join(b"%d %b %d\n" % (n, k.encode(), len(body)) + body for n, k, body in expected)
    for size in (1, 2, 7, 5000, len(stream)):
        taken.clear()
        for start in range(0, len(stream), size):
            frames.feed(stream[start : start + size])
        assert taken == expected


@pytest.mark.parametrize("code", [*BY_CODE, "internal_error"])
def test_an_error_comes_as_itself(scene: Scene, code: str) -> None:
    scene.ask("a")
    scene.say(0, "ready", b"")
    scene.say(1, ERROR, json.dumps([code, "why", "until"]).encode())
    error = scene.outcomes["a"].value
    assert (error.code, error.message, error.param, error.headers) == (code, "why", "until", ())
    assert error.status == (BY_CODE[code].status if code in BY_CODE else 500)


def test_one_question_too_many_is_told_to_come_again(scene: Scene) -> None:
    for number in range(MOST_WAITING):
        scene.ask(str(number))
    scene.ask("more")
    assert scene.code("more") == "busy"
    assert scene.outcomes["more"].value.headers == ((b"Retry-After", b"1"),)
    assert set(scene.outcomes) == {"more"}


def test_what_nobody_waits_for_is_not_asked_and_what_is_asked_already_ends_unheard(scene: Scene) -> None:
    first, second = scene.ask("a"), scene.ask("b")
    scene.ask("c")
    scene.say(0, "ready", b"")
    second.cancel()
    first.cancel()
    assert scene.outcomes["a"].check(CancelledError)
    scene.say(1)
    assert scene.given == ["a", "c"]


def test_a_process_that_does_not_keep_the_time_is_killed_and_the_next_one_goes_on(scene: Scene) -> None:
    scene.ask("a", seconds=3.0)
    scene.ask("b")
    scene.say(0, "ready", b"")
    scene.reactor.advance(3.0 + GRACE_SECONDS - 0.1)
    assert scene.process.take_signals() == []
    scene.reactor.advance(0.2)
    assert scene.process.take_signals() == [KILL]
    scene.process.die()
    assert scene.code("a") == "query_too_long"
    scene.reactor.advance(0.5)
    scene.say(0, "ready", b"")
    assert scene.given == ["b"]
    scene.say(1)
    assert scene.outcomes["b"] == Answered(b"{}")


def test_a_process_that_dies_is_started_again_and_what_it_was_at_is_to_be_asked_again(scene: Scene) -> None:
    scene.ask("a")
    scene.ask("b")
    scene.say(0, "ready", b"")
    scene.process.protocol.childDataReceived(ANSWERS, b"1 application/json 100\n{")
    scene.process.die()
    assert scene.code("a") == "busy"
    scene.reactor.advance(0.5)
    assert len(scene.reactor.spawned) == 2
    scene.say(0, "ready", b"")
    scene.say(1, body=b"[]")
    assert scene.outcomes["b"] == Answered(b"[]")


def test_a_process_that_never_begins_lets_nobody_wait_without_end(scene: Scene) -> None:
    scene.ask("a")
    scene.reactor.advance(START_SECONDS)
    assert scene.process.take_signals() == [KILL]
    scene.process.die()
    assert scene.code("a") == "busy"


def test_without_questions_the_process_is_ended_and_started_at_the_next(scene: Scene) -> None:
    scene.ask("a")
    scene.say(0, "ready", b"")
    scene.say(1)
    scene.reactor.advance(IDLE_SECONDS)
    assert scene.process.take_signals() == [TERM]
    scene.process.die(0)
    scene.reactor.advance(IDLE_SECONDS)
    assert len(scene.reactor.spawned) == 1
    scene.ask("b")
    scene.say(0, "ready", b"")
    assert scene.given == ["b"]


def test_at_the_end_nobody_waits(scene: Scene) -> None:
    scene.ask("a")
    scene.ask("b")
    scene.say(0, "ready", b"")
    scene.queries.stopService()
    scene.process.die(0)
    assert [scene.code(name) for name in "ab"] == ["busy", "busy"]
    scene.ask("c")
    assert scene.code("c") == "busy"


def test_the_real_process_is_niced_answers_in_order_and_ends_with_its_input(tmp_path: Path) -> None:
    settings = Settings(server=Server(state=tmp_path, keys=tmp_path / "keys"))
    (tmp_path / "keys").write_text("")
    (tmp_path / "keys").chmod(0o600)
    reading, writing = os.pipe()
    questions = [("groups", {}, 5.0), ("report", {"by": "nonsense"}, 5.0), ("nothing", {}, 5.0), ("keys", {}, 5.0)]

    text = pickle.dumps(settings) + b"".join(json.dumps(one).encode() + b"\n" for one in questions)
    taken: list[tuple[int, str, bytes]] = []
    frames = Frames(lambda *frame: taken.append(frame))
    program = "import os, sys; os.dup2(int(sys.argv[1]), 4); from flowstack.process.reports import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(writing)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        pass_fds=[writing], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        os.close(writing)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.flush()
        while len(taken) < 5 and (piece := os.read(reading, 65536)):
            frames.feed(piece)
        niceness = os.getpriority(os.PRIO_PROCESS, process.pid)
        process.stdin.close()
        assert process.wait(60) == 0
    os.close(reading)
    assert niceness >= os.getpriority(os.PRIO_PROCESS, 0) + 10 or niceness == 19
    assert [(number, kind) for number, kind, _ in taken] == [
        (0, "ready"), (1, "application/json"), (2, ERROR), (3, ERROR), (4, "application/json"),
    ]  # fmt: skip
    assert json.loads(taken[1][2]) == {"groups": []}
    assert json.loads(taken[2][2])[0] == "bad_parameter"
    assert json.loads(taken[3][2])[0] == "internal_error"
