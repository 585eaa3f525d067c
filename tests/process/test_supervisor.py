"""Children that are started again when they die, with processes that the test itself plays and time that it moves."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from flowstack.process.supervisor import START, WORDS, Child, ChildSpec, Supervisor, backoff

TERM, HUP, KILL = signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

BACK_OFF, MAX_BACK_OFF, STEADY, SILENT = 0.1, 10.0, 30.0, 30.0

KILL_TIME = 15.0


class Process:
    """A child's process, and the transport to it."""

    pid = 4711

    def __init__(self, protocol: Child, arguments: list[str], descriptors: dict[int, Any]) -> None:
        self.protocol = protocol
        self.arguments = arguments
        self.descriptors = descriptors
        self.signals: list[int] = []
        self.given = b""
        self.alive = True

    def signalProcess(self, number: int) -> None:  # noqa: N802
        if not self.alive:
            raise ProcessExitedAlready
        self.signals.append(number)

    def writeToChild(self, descriptor: int, data: bytes) -> None:  # noqa: N802
        assert descriptor == 0
        self.given += data

    def say(self, *words: str) -> None:
        self.protocol.childDataReceived(WORDS, "".join(f"{word}\n" for word in words).encode())

    def die(self, status: int | None = None, number: int | None = KILL) -> None:
        self.alive = False
        why = ProcessDone(0) if status == 0 else ProcessTerminated(status, None if status else number)
        self.protocol.processEnded(Failure(why))

    def take_signals(self) -> list[int]:
        taken, self.signals = self.signals, []
        return taken


class Reactor(Clock):
    """Time, and processes that do nothing by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[Process] = []
        self.failing = False

    def spawnProcess(  # noqa: N802
        self,
        protocol: Child,
        executable: str,
        args: list[str],
        env: dict[str, str],
        childFDs: dict[int, Any],  # noqa: N803
    ) -> None:
        if self.failing:
            raise OSError("no more processes")
        assert args[0] == executable
        self.spawned.append(Process(protocol, args, childFDs))
        protocol.makeConnection(self.spawned[-1])  # type: ignore[arg-type]


class Scene:
    """Two children, or more."""

    def __init__(self, count: int = 2, heartbeat: float | None = SILENT) -> None:
        self.reactor = Reactor()
        self.ready = 0
        self.gone: list[int] = []
        specs = [
            ChildSpec(
                name=f"worker {index}",
                command=["python", "-m", "worker", str(index)],
                environ={"A": "b"},
                descriptors=lambda index=index: {5: 100 + index},  # type: ignore[misc]
                greeting=lambda: b"hello",
                heartbeat=heartbeat,
                backoff=backoff(BACK_OFF, MAX_BACK_OFF),
                steady=STEADY,
            )
            for index in range(count)
        ]
        self.workers = Supervisor(self.reactor, specs, KILL_TIME, self._ready, self.gone.append)
        self.workers.startService()

    def _ready(self) -> None:
        self.ready += 1

    @property
    def spawned(self) -> list[Process]:
        return self.reactor.spawned

    def serve(self) -> None:
        for process in self.spawned:
            process.say("ready")

    def wait(self, seconds: float) -> None:
        """Let so much time pass, with every living worker that was ready saying so each second."""
        end = self.reactor.seconds() + seconds
        while (left := end - self.reactor.seconds()) > 0.0001:
            self.reactor.advance(min(1.0, left))
            for process in self.spawned:
                if process.alive:
                    process.say("alive")


@pytest.fixture
def scene() -> Scene:
    return Scene()


def fired(deferred: Deferred[Any]) -> bool:
    return deferred.called


def test_each_child_gets_its_command_its_greeting_and_its_descriptors(scene: Scene) -> None:
    assert [process.arguments for process in scene.spawned] == [["python", "-m", "worker", str(i)] for i in (0, 1)]
    for index, process in enumerate(scene.spawned):
        assert process.descriptors == {0: "w", 1: "r", 2: "r", WORDS: "r", 5: 100 + index}
        assert process.given == b"hello"


def test_readiness_is_told_once_when_all_have_said_so(scene: Scene) -> None:
    first, second = scene.spawned
    assert not scene.workers.ready
    first.say("alive", "ready")
    assert (scene.ready, scene.workers.ready) == (0, True)
    second.say("ready")
    assert scene.ready == 1
    first.die()
    scene.wait(1)
    scene.spawned[2].say("ready")
    assert scene.ready == 1


def test_words_are_understood_however_reads_cut_them() -> None:
    stream = b"alive\nready\nalive\nreloaded\n"
    for cut in range(len(stream) + 1):
        for other in range(cut, len(stream) + 1):
            scene = Scene(1)
            (process,) = scene.spawned
            done = scene.workers.reload()
            come = b""
            for piece in (stream[:cut], stream[cut:other], stream[other:]):
                process.protocol.childDataReceived(WORDS, piece)
                come += piece
                assert (scene.ready == 1, fired(done)) == (b"ready\n" in come, b"reloaded\n" in come)


def test_a_worker_s_lines_reach_the_log_whole_also_the_last_one_without_an_end(logged: list[str]) -> None:
    scene = Scene(1)
    (process,) = scene.spawned
    tell = process.protocol.childDataReceived
    tell(1, b"one\ntw")
    tell(2, b"fault: ")
    tell(1, "o ü".encode()[:-1])
    tell(1, "ü".encode()[1:] + b"\n{braces}\n")
    tell(2, b"gone")
    assert logged == ["one", "two ü", "{braces}"]
    process.say("ready")
    process.die()
    assert logged[3] == "fault: gone"
    assert len(logged) == 5


def test_a_worker_that_dies_is_started_again_with_the_same_index_and_socket(scene: Scene, logged: list[str]) -> None:
    scene.serve()
    scene.spawned[1].die()
    assert len(scene.spawned) == 2
    assert logged == [
        "worker 1 ended and is restarted in 0.1 s: "
        "A process has ended with a probable error condition: process ended by signal 9."
    ]
    scene.reactor.advance(BACK_OFF)
    assert len(scene.spawned) == 3
    assert scene.spawned[2].arguments == scene.spawned[1].arguments
    assert scene.spawned[2].descriptors == scene.spawned[1].descriptors
    assert scene.spawned[2].given == scene.spawned[1].given
    assert scene.workers.failed is None


def test_a_death_is_told_before_the_next_process_is_there_and_counted(scene: Scene) -> None:
    scene.spawned[0].say("ready")
    assert [child.state for child in scene.workers.children] == ["ready", "starting"]
    assert [child.pid for child in scene.workers.children] == [4711, 4711]
    scene.spawned[1].say("ready")
    assert (scene.gone, scene.workers.restarts) == ([], 0)
    scene.spawned[1].die()
    assert (scene.gone, scene.workers.restarts) == ([1], 1)
    assert [child.state for child in scene.workers.children] == ["ready", "gone"]
    assert [child.pid for child in scene.workers.children] == [4711, None]
    scene.reactor.advance(BACK_OFF)
    assert [child.state for child in scene.workers.children] == ["ready", "starting"]
    scene.workers.stopService()
    for process in (scene.spawned[0], scene.spawned[2]):
        process.die(status=0)
    assert (scene.gone, scene.workers.restarts) == ([1, 0, 1], 1)  # an end that was asked for is no death


def delay_until_next(scene: Scene) -> float:
    """Seconds until one more process is started."""
    before, start = len(scene.spawned), scene.reactor.seconds()
    while len(scene.spawned) == before:
        assert scene.reactor.seconds() - start < 60
        scene.spawned[0].say("alive")
        scene.reactor.advance(0.05)
    return scene.reactor.seconds() - start


def test_deaths_in_a_row_double_the_wait_up_to_the_most_and_a_long_life_brings_it_back(scene: Scene) -> None:
    scene.serve()
    waits = []
    for _ in range(10):
        scene.spawned[-1].die()
        waits.append(delay_until_next(scene))
    expected = [min(MAX_BACK_OFF, BACK_OFF * 2**n) for n in range(10)]
    assert waits == [pytest.approx(seconds, abs=0.06) for seconds in expected]
    assert expected[-1] == MAX_BACK_OFF

    scene.wait(STEADY - 1)
    scene.spawned[-1].die()
    assert delay_until_next(scene) == pytest.approx(MAX_BACK_OFF, abs=0.06)
    scene.wait(STEADY)
    scene.spawned[-1].die()
    assert delay_until_next(scene) == pytest.approx(BACK_OFF, abs=0.06)


def test_a_worker_that_never_lives_makes_no_storm_in_an_hour(scene: Scene) -> None:
    scene.serve()
    scene.spawned[1].die()
    known = 2
    for _ in range(3600 * 4):
        scene.spawned[0].say("alive")
        scene.reactor.advance(0.25)
        if len(scene.spawned) > known:
            known = len(scene.spawned)
            scene.spawned[-1].die(status=1)
    assert 300 < known < 380


def test_one_worker_s_deaths_do_not_slow_the_other_s_return(scene: Scene) -> None:
    scene.serve()
    for _ in range(5):
        scene.spawned[-1].die()
        delay_until_next(scene)
    scene.spawned[0].die()
    before = len(scene.spawned)
    scene.reactor.advance(BACK_OFF)
    assert len(scene.spawned) == before + 1


def test_a_death_before_any_child_was_ready_fails_and_nothing_is_started_again(scene: Scene, logged: list[str]) -> None:
    scene.spawned[0].die(status=1)
    assert scene.workers.failed == (
        "worker 0 ended before it could serve: "
        "A process has ended with a probable error condition: process ended with exit code 1."
    )
    scene.spawned[1].die(status=1)
    scene.wait(60)
    assert len(scene.spawned) == 2
    assert logged == []
    assert fired(scene.workers.stopService())


def test_a_child_without_a_heartbeat_is_started_again_whenever_it_dies_and_never_killed_for_silence() -> None:
    scene = Scene(1, heartbeat=None)
    assert WORDS not in scene.spawned[0].descriptors
    scene.spawned[0].die()
    scene.reactor.advance(BACK_OFF)
    scene.reactor.pump([1.0] * 1000)
    assert [process.signals for process in scene.spawned] == [[], []]


def test_a_process_that_cannot_be_made_is_tried_again(scene: Scene) -> None:
    scene.serve()
    scene.reactor.failing = True
    scene.spawned[0].die()
    scene.reactor.advance(BACK_OFF)
    scene.reactor.failing = False
    assert len(scene.spawned) == 2
    scene.reactor.advance(2 * BACK_OFF)
    assert len(scene.spawned) == 3


def test_a_silent_worker_is_killed_and_one_that_speaks_is_not(scene: Scene, logged: list[str]) -> None:
    scene.serve()
    first, second = scene.spawned
    for _ in range(int(SILENT) * 2):
        first.say("alive")
        scene.reactor.advance(0.5)
    assert (first.signals, second.signals) == ([], [])
    scene.reactor.advance(0.5)
    first.say("alive")
    assert second.take_signals() == [KILL]
    assert first.signals == []
    assert logged == ["worker 1 has not said a word for 30 s: killed"]
    second.die()
    scene.wait(1)
    assert len(scene.spawned) == 3


def test_a_worker_that_hangs_at_its_start_is_killed_too(scene: Scene) -> None:
    scene.spawned[0].say("ready")
    for _ in range(int(SILENT) * START):
        scene.spawned[0].say("alive")
        scene.reactor.advance(1)
    assert scene.spawned[1].take_signals() == []
    scene.reactor.advance(1)
    assert scene.spawned[1].take_signals() == [KILL]


def test_a_reload_is_over_when_every_worker_has_answered(scene: Scene) -> None:
    scene.serve()
    done = scene.workers.reload()
    assert [process.take_signals() for process in scene.spawned] == [[HUP], [HUP]]
    scene.spawned[0].say("reloaded")
    assert not fired(done)
    scene.spawned[1].say("reloaded")
    assert fired(done)
    scene.spawned[1].say("reloaded")  # to a signal that somebody else sent
    again = scene.workers.reload()
    assert not fired(again)


def test_a_reload_does_not_wait_for_the_dead(scene: Scene) -> None:
    scene.serve()
    done = scene.workers.reload()
    scene.spawned[0].say("reloaded")
    scene.spawned[1].die()
    assert fired(done)
    # The one that takes its place reads everything anew; there is no worker to tell until then.
    again = scene.workers.reload()
    assert not fired(again)
    scene.spawned[0].say("reloaded")
    assert fired(again)


def test_a_worker_that_is_starting_is_told_to_reload_once_it_can_hear_it(scene: Scene) -> None:
    # It may have read the keystore already, and a SIGHUP before its handler is there would end it.
    scene.spawned[0].say("ready")
    done = scene.workers.reload()
    assert [process.take_signals() for process in scene.spawned] == [[HUP], []]
    scene.spawned[0].say("reloaded")
    assert not fired(done)
    scene.spawned[1].say("ready")
    assert scene.spawned[1].take_signals() == [HUP]
    assert not fired(done)
    scene.spawned[1].say("reloaded")
    assert fired(done)


def test_the_end_is_told_to_all_and_is_over_when_all_are_gone(scene: Scene) -> None:
    scene.serve()
    ended = scene.workers.stopService()
    assert [process.take_signals() for process in scene.spawned] == [[TERM], [TERM]]
    scene.spawned[0].die(status=0)
    assert not fired(ended)
    scene.spawned[1].die(status=0)
    assert fired(ended)
    assert scene.reactor.getDelayedCalls() == []
    assert len(scene.spawned) == 2


def test_no_worker_is_started_while_ending(scene: Scene) -> None:
    scene.serve()
    scene.spawned[1].die()
    ended = scene.workers.stopService()
    scene.spawned[0].die(number=TERM)
    assert fired(ended)
    scene.reactor.pump([1] * 20)
    assert len(scene.spawned) == 2


def test_workers_that_outlive_the_drain_are_killed(scene: Scene, logged: list[str]) -> None:
    scene.serve()
    ended = scene.workers.stopService()
    scene.spawned[0].die(status=0)
    scene.wait(KILL_TIME - 1)
    assert scene.spawned[1].take_signals() == [TERM]
    scene.wait(2)
    assert scene.spawned[1].take_signals() == [KILL]
    assert logged == ["worker 1 did not end in time: killed"]
    scene.spawned[1].die()
    assert fired(ended)


def test_a_forced_stop_reaches_a_child_even_if_the_kernel_makes_one_signal_of_two(scene: Scene) -> None:
    scene.serve()
    scene.workers.stopService()
    scene.workers.force_stop()
    for process in scene.spawned:
        assert process.take_signals() == [TERM, TERM]
    scene.reactor.advance(0.25)
    assert scene.spawned[0].take_signals() == [TERM]
    scene.spawned[0].die(status=0)
    scene.reactor.advance(0.25)
    assert scene.spawned[0].signals == []
    scene.spawned[1].die(status=0)
    scene.reactor.pump([0.25] * 4)
    assert scene.reactor.getDelayedCalls() == []
