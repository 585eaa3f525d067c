"""``python -m flowstack.process.reports``: answers what takes a disk. Whoever asks starts it.

It is niced, answers one question at a time, and gives each up after its time. On its standard input come the settings,
then questions, a line of JSON each. An answer is a line of number, kind and length, and then so many bytes.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import orjson
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver

from flowstack.admin.reports import Reports
from flowstack.config import Settings
from flowstack.errors import FlowstackError
from flowstack.files import write
from flowstack.process.queries import ERROR
from flowstack.process.supervisor import ANSWERS

log = Logger()

MEMORY = 1 << 30
"""Bytes of data that the process may hold."""

NICE = 10


def serve(settings: Settings, read: Callable[[], bytes], give: Callable[[bytes], None]) -> None:
    """Answer until there are no more questions.

    :param read: gives bytes of the questions; none at the end.
    :param give: takes an answer's bytes.
    """
    reports = Reports(settings)
    give(b"0 ready 0\n")
    number, rest = 0, b""
    while piece := read():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            number += 1
            kind, body = _answer_to(reports, line)
            give(b"%d %b %d\n" % (number, kind.encode("ascii"), len(body)) + body)


def _answer_to(reports: Reports, line: bytes) -> tuple[str, bytes]:
    what, asked, seconds = orjson.loads(line)
    try:
        answer = reports.answer(what, asked, seconds)
    except FlowstackError as error:
        return ERROR, orjson.dumps((error.code, error.message, error.param))
    except Exception:
        log.failure("a query failed, for a fault of Flowstack's own")
        return ERROR, orjson.dumps((FlowstackError.code, "Flowstack failed at this query; its log says why.", None))
    return answer.kind, answer.body


def main() -> None:
    """Be the process."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # from a terminal they go to the parent too, which says what to do
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    with suppress(OSError):
        os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        settings = pickle.load(pipe)
    with suppress(BrokenPipeError):
        serve(settings, lambda: os.read(0, 65536), lambda data: write(ANSWERS, data))


if __name__ == "__main__":
    main()
