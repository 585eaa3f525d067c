"""One line a request, in the order in which they ended; nobody waits for a reader, and no line is lost uncounted."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from flowstack.config.settings import Log
from flowstack.ledger import access
from flowstack.ledger.access import FLUSH_BYTES, FLUSH_SECONDS, AccessLog, text_line
from tests.files import open_below
from tests.ledger.samples import ids, line, row, told
from tests.rights import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def started(target: Path | str, form: str = "json") -> tuple[AccessLog, Clock]:
    clock = Clock()
    log = AccessLog(Log(str(target), form), clock)
    log.start()
    return log, clock


def record(log: AccessLog, *numbers: int, size: int = 0) -> None:
    for number in numbers:
        log.record(row(number), line(number, size))


@contextmanager
def standard_output(descriptor: int) -> Iterator[None]:
    """Have descriptor 1 lead elsewhere."""
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_lines_are_written_at_most_half_a_second_later_as_they_were_given(path: Path) -> None:
    log, clock = started(path)
    record(log, 1, 2)
    assert path.read_bytes() == b""
    clock.advance(FLUSH_SECONDS)
    assert path.read_bytes() == line(1) + line(2)


def test_many_lines_are_written_without_waiting(path: Path) -> None:
    log, _ = started(path)
    record(log, 1, size=FLUSH_BYTES)
    assert ids(path) == [1]


def test_stopping_writes_what_waits_and_closes_the_file(path: Path) -> None:
    log, clock = started(path)
    record(log, 1)
    assert open_below(path.parent) == [str(path)]
    log.stop()
    assert ids(path) == [1]
    assert open_below(path.parent) == []
    assert log.off
    clock.advance(10)


def test_lines_are_appended_to_what_is_there_in_a_file_that_strangers_cannot_read(path: Path) -> None:
    for number in (1, 2):
        log, _ = started(path)
        record(log, number)
        log.stop()
    assert ids(path) == [1, 2]
    assert path.stat().st_mode & 0o007 == 0


def test_reopening_goes_on_in_a_new_file_after_a_rename(path: Path) -> None:
    log, clock = started(path)
    record(log, 1)
    moved = path.rename(path.with_suffix(".1"))
    record(log, 2)
    log.reopen()
    record(log, 3)
    clock.advance(1)
    assert (ids(moved), ids(path)) == ([1, 2], [3])


def test_a_file_that_cannot_be_reopened_is_used_on(path: Path) -> None:
    log, clock = started(path)
    moved = path.rename(path.with_suffix(".1"))
    path.mkdir()
    with told() as texts:
        log.reopen()
    record(log, 1)
    clock.advance(1)
    assert ids(moved) == [1]
    assert "cannot be reopened" in texts[0]


def test_none_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log, clock = started("none")
    assert log.off
    log.reopen()
    clock.advance(1)
    log.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_opened_ends_the_start(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        started(path)


# A disk that is full. All writes to /dev/full fail with ENOSPC (full(4)).


def test_a_full_disk_keeps_lines_up_to_a_bound_and_counts_the_rest_and_says_so_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "KEEP_BYTES", 5000)
    path.symlink_to("/dev/full")
    log, clock = started(path)
    with told() as texts:
        for number in range(200):
            record(log, number, size=100)
            clock.advance(FLUSH_SECONDS)
    assert log.lost == 150
    assert texts == ["error: the request log cannot be written, lines wait: No space left on device"]
    path.unlink()
    with told() as texts:
        log.reopen()
        record(log, 200)
        clock.advance(FLUSH_SECONDS)
    assert ids(path) == [*range(50), 200]
    assert texts[-1] == "warn: the request log is written again; 150 lines were lost"


def test_what_waits_at_the_end_is_counted_and_told_of(path: Path) -> None:
    path.symlink_to("/dev/full")
    log, _ = started(path)
    record(log, 1, 2)
    with told() as texts:
        log.stop()
    assert log.lost == 2
    assert "2 lines were lost" in texts[-1]


# Standard output.


def test_standard_output_is_written_to_and_left_open(capfd: pytest.CaptureFixture[str]) -> None:
    log, _ = started("-")
    record(log, 1)
    log.stop()
    assert json.loads(capfd.readouterr().out)["request_id"] == "1"
    os.fstat(1)


@contextmanager
def stream(kind: str) -> Iterator[tuple[int, int]]:
    """The reading and the writing end of what standard output may be: a pipe, or a socket as journald's.

    Neither holds more than 64 KiB or so, whatever this machine gives otherwise.
    """
    if kind == "pipe":
        ends = os.pipe()
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 65536)
    else:
        first, second = socket.socketpair()
        second.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        ends = (first.detach(), second.detach())
    try:
        yield ends
    finally:
        for descriptor in ends:
            os.close(descriptor)


def drained(descriptor: int) -> bytes:
    """All that is to be read now."""
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(0) and (piece := os.read(descriptor, 65536)):
        data += piece
    return data


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_stalls_holds_nobody_up_and_gets_all_lines_later(kind: str) -> None:
    with stream(kind) as (reading, writing):
        with standard_output(writing):
            log, clock = started("-")
            for number in range(2000):  # far more than either takes
                record(log, number, size=500)
            clock.advance(1)
            text = drained(reading)
            assert len(text) < 2000 * 500
            assert text.endswith(b"\n"), "no line is torn"
            while len(text) < 2000 * 500:
                clock.advance(FLUSH_SECONDS)
                more = drained(reading)
                assert more
                text += more
            log.stop()
        assert [json.loads(one)["request_id"] for one in text.splitlines()] == [str(number) for number in range(2000)]
        assert log.lost == 0


def test_lines_that_a_stalled_reader_costs_are_counted_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "KEEP_BYTES", 100_000)
    monkeypatch.setattr(access, "STOP_STALLS", 1)
    with stream("pipe") as (reading, writing), standard_output(writing):
        log, clock = started("-")
        with told() as texts:
            for number in range(1000):
                record(log, number, size=500)
            clock.advance(1)
            lost = log.lost
            log.stop()
        shown = len(drained(reading)) // 500
    assert shown + log.lost == 1000
    assert lost > 500
    assert "LINES ARE LOST" in texts[0]
    assert f"{log.lost} lines were lost" in texts[-1]


PATIENT = 6000
"""Stalls of a reader in a minute: where the test is not about how long one is waited for, but reads itself."""


def test_the_end_waits_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "STOP_STALLS", PATIENT)
    read = bytearray()

    def read_all(descriptor: int) -> None:
        while read.count(b"\n") < 500:
            read.extend(os.read(descriptor, 4096))

    with stream("pipe") as (reading, writing), standard_output(writing):
        log, _ = started("-")
        record(log, *range(500), size=1000)
        thread = threading.Thread(target=read_all, args=(reading,), daemon=True)
        thread.start()
        log.stop()
        assert log.lost == 0
        thread.join(30)
    assert [json.loads(one)["request_id"] for one in read.splitlines()] == [str(number) for number in range(500)]


def test_the_end_does_not_wait_for_a_reader_who_never_reads() -> None:
    with stream("pipe") as (_, writing), standard_output(writing):
        log, _ = started("-")
        record(log, *range(500), size=1000)
        log.stop()
        assert 400 < log.lost < 500


def test_the_end_does_not_wait_for_a_reader_who_is_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with standard_output(writing):
        os.close(writing)
        log, _ = started("-")
        record(log, 1)
        log.stop()
        assert log.lost == 1


def test_lines_of_several_workers_on_one_pipe_do_not_run_into_each_other() -> None:
    program = (
        "import sys; from twisted.internet.task import Clock; from flowstack.config.settings import Log\n"
        "from flowstack.ledger import access\n"
        "access.STOP_STALLS = int(sys.argv[2])\n"
        "log = access.AccessLog(Log('-', 'json'), Clock()); log.start()\n"
        "for number in range(2000):\n"
        "    log.record(None, b'%s%d%s\\n' % (sys.argv[1].encode(), number, b'x' * (number % 3000)))\n"
        "log.stop()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    children = [
        subprocess.Popen([sys.executable, "-c", program, name, str(PATIENT)], stdout=writing, env=env) for name in "ab"
    ]
    os.close(writing)
    with open(reading, "rb") as file:
        lines = file.read().splitlines()
    assert [child.wait(60) for child in children] == [0, 0]
    expected = {f"{name}{number}{'x' * (number % 3000)}".encode() for name in "ab" for number in range(2000)}
    assert len(lines) == 4000
    assert set(lines) == expected


# The format text.


def test_a_text_line_is_what_the_manual_shows() -> None:
    assert text_line(row(7)).decode() == (
        "2026-11-23T07:08:09.123Z 192.0.2.7 k7Qm2xW9pLz4 POST /v1/chat/completions 200 complete error_code=- "
        "model=gpt-4o-2024-08-06 prompt_tokens=1234 completion_tokens=56 cost_usd=0.002365 first_byte_ms=312.004 "
        "duration_ms=2504.25 overhead_ms=0.211 request_id=7\n"
    )


def test_what_is_not_known_is_a_dash_and_zero_is_zero() -> None:
    words = text_line(
        row(7, status=None, model=None, model_requested=None, prompt_tokens=None, completion_tokens=0, cost_usd=None)
    ).split()
    assert words[5] == b"-"
    assert {b"model=-", b"prompt_tokens=-", b"completion_tokens=0", b"cost_usd=-"} <= set(words)


def test_the_model_that_was_asked_for_stands_where_no_answer_names_one() -> None:
    assert b" model=gpt-4o " in text_line(row(model=None))


def test_a_clients_words_are_escaped_and_end_where_they_should() -> None:
    told = text_line(row(path='/v1/a b"\\\x1b[31m\n\r\x00ä中😀', method="GET")).decode()
    assert told.split()[4] == r"/v1/a\x20b\x22\x5c\x1b[31m\x0a\x0d\x00\xe4\u4e2d\U0001f600"


@given(st.text(st.characters(), min_size=1), st.text(st.characters(), min_size=1), st.text(st.characters()))
def test_no_text_breaks_a_line_or_a_word(path: str, model: str, method: str) -> None:
    told = text_line(row(7, path=path, model=model, method=method))
    assert told.endswith(b"\n")
    assert all(0x20 < byte < 0x7F for byte in told[:-1].replace(b" ", b""))
    words = told[:-1].split(b" ")
    assert len(words) == 16
    assert words[-1] == b"request_id=7"
    assert words[4].decode("unicode_escape") == path
    assert words[8].decode("unicode_escape") == f"model={model}"


@pytest.mark.parametrize(("requests", "last"), [(7, b"requests=7"), (0, b"requests=0"), (1, b"request_id=7")])
def test_a_line_that_stands_for_other_than_one_request_says_so_last(requests: int, last: bytes) -> None:
    assert text_line(row(7, requests=requests)).split()[-1] == last


def test_the_format_text_writes_text_lines(path: Path) -> None:
    log, _ = started(path, "text")
    record(log, 1, 2)
    log.stop()
    assert path.read_bytes() == text_line(row(1)) + text_line(row(2))
