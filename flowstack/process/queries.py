"""Asks the process that answers what takes a disk: reports, budgets, keys.

It is started at the first question, ended when none has come for a while, and killed where it does not keep its time.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
from attrs import define
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, fail

from flowstack.admin.refusals import BY_CODE, Busy, QueryTooLong
from flowstack.config import Settings
from flowstack.errors import FlowstackError
from flowstack.interfaces import Answered
from flowstack.process.spawn import child_environ
from flowstack.process.supervisor import ChildSpec, Supervisor, backoff

COMMAND = (sys.executable, "-m", "flowstack.process.reports")

MOST_WAITING = 64
"""Questions; the page asks a dozen at once."""

IDLE_SECONDS = 600.0
"""Without a question, after which the process is ended."""

GRACE_SECONDS = 5.0
"""Beyond a question's time, after which the process is taken for stuck, and killed."""

START_SECONDS = 60.0
"""For an interpreter to begin on a busy machine."""

KILL_TIME = 5.0

ERROR = "error"
"""The kind of an answer that is an error's code, message and parameter."""


@define(slots=True, eq=False)
class _Question:
    """One that waits, or is being answered.

    :ivar given_up: whether nobody waits any more.
    """

    line: bytes
    seconds: float
    done: Deferred[Answered]
    given_up: bool = False


class Queries(MultiService):
    """Questions that wait for the process, and the one that it is at.

    :param settings: of the service.
    """

    def __init__(self, reactor: Any, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._settings = settings
        self._command = command
        self._supervisor: Supervisor | None = None
        self._waiting: deque[_Question] = deque()
        self._asked: _Question | None = None
        self._ready = False
        self._late = False
        self._timer: Any = None
        self._frames = Frames(self._answered)

    def ask(self, what: str, parameters: Mapping[str, Any], seconds: float) -> Deferred[Answered]:
        """See :class:`flowstack.interfaces.Asks`."""
        if not self.running or len(self._waiting) >= MOST_WAITING:
            return fail(Busy("Too many queries wait already. Try again in a moment.", ((b"Retry-After", b"1"),)))
        line = orjson.dumps((what, parameters, seconds), option=orjson.OPT_APPEND_NEWLINE)
        question = _Question(line, seconds, Deferred(lambda _: self._give_up(question)))
        self._waiting.append(question)
        if self._supervisor is None:
            spec = ChildSpec(
                name="the reports' process",
                command=self._command,
                environ=child_environ(os.environ),
                greeting=self._greeting,
                answers=self._frames.feed,
                backoff=backoff(0.5, 30.0),
                steady=10.0,
            )
            self._supervisor = Supervisor(self._reactor, [spec], KILL_TIME, child_gone=self._gone)
            self._supervisor.setServiceParent(self)  # type: ignore[no-untyped-call]
        elif self._ready and self._asked is None:
            self._next()
        return question.done

    def stopService(self) -> Any:
        """End the process; what waits is told so."""
        waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            _end(question, Busy("Flowstack is ending."))
        self._set_timer(None)
        return super().stopService()  # type: ignore[no-untyped-call]

    def _give_up(self, question: _Question) -> None:
        question.given_up = True
        with suppress(ValueError):
            self._waiting.remove(question)

    def _greeting(self) -> bytes:
        self._ready = self._late = False
        self._frames.clear()
        self._set_timer(START_SECONDS, self._kill)
        return pickle.dumps(self._settings)

    def _answered(self, number: int, kind: str, body: bytes) -> None:
        """A frame came.

        :param number: 0 of the first one, which says that the process is ready.
        """
        if number == 0:
            self._ready = True
        else:
            question, self._asked = self._asked, None
            if question is not None:
                _end(question, _error_of(body) if kind == ERROR else Answered(body, kind.encode("ascii")))
        self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._set_timer(IDLE_SECONDS, self._end_child)
            return
        self._asked = question = self._waiting.popleft()
        self._set_timer(question.seconds + GRACE_SECONDS, self._kill)
        assert self._supervisor is not None
        self._supervisor.children[0].send(question.line)

    def _kill(self) -> None:
        self._late = True
        assert self._supervisor is not None
        self._supervisor.children[0].kill("did not answer in its time")

    def _end_child(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        self._ready = False
        if supervisor is not None:
            supervisor.disownServiceParent()  # type: ignore[no-untyped-call]

    def _gone(self, index: int) -> None:
        """The process ended."""
        self._ready = False
        self._set_timer(None)
        question, self._asked = self._asked, None
        if question is not None:
            _end(
                question,
                QueryTooLong("This took longer than a query may. Ask for a shorter time, or on narrower conditions.")
                if self._late
                else Busy("The process that answers queries has just ended, and is started again. Try again."),
            )
        if self._late and question is None:  # it never began: who waits need not wait for the next
            waiting, self._waiting = self._waiting, deque()
            for other in waiting:
                _end(other, Busy("The process that answers queries does not start. The log says more."))

    def _set_timer(self, seconds: float | None, call: Callable[[], None] = lambda: None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._reactor.callLater(seconds, call)


def _end(question: _Question, outcome: Answered | FlowstackError) -> None:
    if question.given_up:
        return
    if isinstance(outcome, FlowstackError):
        question.done.errback(outcome)
    else:
        question.done.callback(outcome)


def _error_of(body: bytes) -> FlowstackError:
    code, message, param = orjson.loads(body)
    error = FlowstackError(message)
    kind = BY_CODE.get(code)
    if kind is not None:
        error = kind.__new__(kind)
        FlowstackError.__init__(error, message)
    error.param = param
    return error


class Frames:
    """Puts answers together from pieces.

    :param take: is given each: its number, its kind and its bytes.
    """

    def __init__(self, take: Callable[[int, str, bytes], None]) -> None:
        self._take = take
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = 0  # bytes without which there is nothing to look at

    def clear(self) -> None:
        """Forget what came of one that is not whole."""
        self._pieces, self._held, self._needed = [], 0, 0

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        self._pieces.append(data)
        self._held += len(data)
        while self._held and self._held >= self._needed:
            whole = b"".join(self._pieces)
            head, newline, rest = whole.partition(b"\n")
            if not newline:
                self._pieces = [whole]
                return
            number, kind, length = head.decode("ascii").split(" ")
            size = int(length)
            if len(rest) < size:
                self._pieces, self._needed = [whole], len(head) + 1 + size
                return
            after = rest[size:]
            self._pieces, self._held, self._needed = [after] if after else [], len(after), 0
            self._take(int(number), kind, rest[:size])
