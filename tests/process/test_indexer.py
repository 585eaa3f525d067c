"""The indexer as a process: killed, started twice, on a damaged database; nothing is lost, and nothing counts twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowstack.ledger.files import lag_path
from tests.ledger.journals import rows, write
from tests.ledger.test_index import ONE, THREE, TWO, Place

pytestmark = pytest.mark.e2e

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

# It gives way to all else, and beside a test run would stand still: it is to be killed while it works.
MAIN = "import sys; from flowstack.process import indexer; indexer.NICE = 0; indexer.main(sys.argv[1:])"


@contextmanager
def indexer(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(place.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd="/",
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()


def until(condition: Callable[[], Any], limit: float = 300) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lag(place: Place) -> dict[str, Any]:
    try:
        return dict(json.loads(lag_path(place.folder).read_text()))
    except FileNotFoundError:
        return {}


def count(place: Place) -> int:
    """Rows in the index, by a reader."""
    try:
        connection = sqlite3.connect(f"file:{place.path}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.DatabaseError:  # there is none, or none that can be read
        return 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_takes_over_what_comes_and_says_how_far_it_is(place: Place) -> None:
    some = rows(60)
    with indexer(place) as process:
        until(lambda: lag(place).get("lag_bytes") == 0)
        assert lag(place)["last_row_at"] is None
        for start in (0, 20, 40):
            place.write((ONE, TWO, THREE)[start // 20], some[start : start + 20])
            until(lambda have=start + 20: count(place) == have)
        until(lambda: lag(place)["last_row_at"] == max(one["started_at"] for one in some).isoformat()[:26] + "Z")
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(30) == 0
    assert place.has(some)


def test_sigterm_ends_it_and_sigint_and_sighup_do_not(place: Place) -> None:
    with indexer(place) as process:
        until(lambda: lag(place))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        place.write(TWO, rows(5))
        until(lambda: count(place) == 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == b""  # type: ignore[union-attr]


def test_killed_in_the_middle_again_and_again_it_loses_nothing_and_counts_nothing_twice(place: Place) -> None:
    some = rows(30_000)
    for number, name in enumerate((ONE, TWO, THREE)):
        place.write(name, some[number * 10_000 : (number + 1) * 10_000])
    chance = random.Random(5)
    for _ in range(4):
        with indexer(place) as process:
            until(place.path.exists)
            time.sleep(chance.uniform(0.0, 0.7))  # anywhere: the outcome is the same
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    with indexer(place):
        until(lambda: count(place) == len(some))
    assert place.has(some)


def test_two_at_once_take_turns(place: Place) -> None:
    some = rows(3000)
    with indexer(place), indexer(place):
        for start in range(0, 3000, 300):
            place.write(TWO if start % 600 else THREE, some[start : start + 300])
        until(lambda: count(place) == len(some))
    assert place.has(some)


def test_a_database_deleted_or_damaged_under_it_is_built_anew(place: Place) -> None:
    some = rows(500)
    place.write(ONE, some[:200])
    with indexer(place) as process:
        until(lambda: count(place) == 200)
        place.path.unlink()
        place.write(TWO, some[200:400])
        until(lambda: count(place) == 400)
        os.truncate(place.path, 100)
        place.write(THREE, some[400:])
        until(lambda: count(place) == 500)
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stdout.read()  # type: ignore[union-attr]
    assert place.has(some)


def test_trouble_is_one_line_and_no_traceback_and_is_got_over(place: Place) -> None:
    place.path.mkdir()  # in the database's place
    place.write(TWO, rows(5))
    with indexer(place) as process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert b"the index is not kept up to date, Flowstack tries again" in line
        place.path.rmdir()
        until(lambda: count(place) == 5)
        process.stdin.close()  # type: ignore[union-attr]
        assert process.stdout.read() == b""  # type: ignore[union-attr]


def test_a_row_appended_in_pieces_is_taken_when_it_is_whole(place: Place) -> None:
    some = rows(2)
    write(place.folder / "scratch" / "line", some[1:])
    whole = (place.folder / "scratch" / "line").read_bytes()
    place.write(TWO, some[:1])
    with indexer(place):
        until(lambda: count(place) == 1)
        with open(place.journal / TWO, "ab", buffering=0) as file:
            file.write(whole[:100])
            until(lambda: lag(place).get("torn_files") == 1)
            assert (count(place), lag(place)["lag_bytes"]) == (1, 0)
            file.write(whole[100:])
        until(lambda: count(place) == 2)
    assert place.has(some)
