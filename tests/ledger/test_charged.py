"""Finished work is charged to whoever sees it first, and to nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flowstack.ledger import charged
from flowstack.ledger.charged import KEEP_DAYS, SHOUT_SECONDS, Charged, prune_charged
from tests.ledger.samples import NOON, told
from tests.rights import ROOT, needs_root, public_folder, told_as_nobody

DAY = 86400


def make(directory: Path | None) -> Charged:
    return Charged(directory, lambda: NOON)


@pytest.fixture(params=["a directory", "memory"])
def claims(request: pytest.FixtureRequest, tmp_path: Path) -> Charged:
    return make(tmp_path / "charged" if request.param == "a directory" else None)


def test_the_first_to_claim_an_id_is_the_only_one(claims: Charged) -> None:
    assert [claims.claim(name) for name in ("batch_1", "resp_1", "batch_1", "resp_2", "batch_1")] == [
        *(True, True, False, True, False)
    ]


def test_an_id_may_be_any_text(claims: Charged) -> None:
    for name in ("../../etc/passwd", "", "a/b", "\x00", "\ud800", "x" * 100_000):
        assert claims.claim(name)
        assert not claims.claim(name)


def test_another_process_knows_what_was_claimed_and_one_that_starts_later_does(tmp_path: Path) -> None:
    assert make(tmp_path / "charged").claim("batch_1")
    assert not make(tmp_path / "charged").claim("batch_1")


def test_of_processes_that_claim_at_once_each_id_has_one(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flowstack.ledger.charged import Charged\n"
        "claims = Charged(Path(sys.argv[1]), lambda: 0.0)\n"
        "sys.stdin.readline()\n"
        "print(*(n for n in range(300) if claims.claim(str(n))))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "charged")], env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    claimed = Counter(int(number) for child in children for number in child.communicate(timeout=60)[0].split())
    assert claimed == Counter(range(300))


def test_memory_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charged, "KEEP_IN_MEMORY", 3)
    claims = make(None)
    for name in "abcd":
        assert claims.claim(name)
    assert [claims.claim(name) for name in "bcda"] == [False, False, False, True]


def test_where_it_cannot_be_written_down_nobody_is_charged_and_it_is_told_once_a_minute(tmp_path: Path) -> None:
    now = NOON
    state = tmp_path / "state"
    claims = Charged(state / "charged", lambda: now)
    with told() as texts:
        for _ in range(3):
            assert not claims.claim("batch_1")
            now += SHOUT_SECONDS / 2
    assert claims.failures == 3
    assert len(texts) == 2
    assert "NOT CHARGED" in texts[0]
    assert str(state) in texts[0]
    state.mkdir()
    assert claims.claim("batch_1"), "it is charged later, once"
    assert not claims.claim("batch_1")


def test_ids_are_forgotten_after_their_time_and_not_before(tmp_path: Path) -> None:
    directory = tmp_path / "charged"
    claims = make(directory)
    for age in (0, 1, KEEP_DAYS - 1, KEEP_DAYS + 1, 400):
        before = set(directory.iterdir()) if directory.exists() else set()
        assert claims.claim(str(age))
        (made,) = set(directory.iterdir()) - before
        os.utime(made, (NOON - age * DAY,) * 2)
    assert prune_charged(directory, NOON) == 2
    assert [claims.claim(str(age)) for age in (0, 1, KEEP_DAYS - 1, KEEP_DAYS + 1, 400)] == [
        *(False, False, False, True, True)
    ]


def test_there_may_be_nothing_to_forget(tmp_path: Path) -> None:
    assert prune_charged(tmp_path / "missing", NOON) == 0


@needs_root
def test_ids_that_cannot_be_forgotten_are_told_of() -> None:
    with public_folder() as folder:
        for name in ("a", "b"):
            (folder / name).touch()
            os.utime(folder / name, (0, 0))
        said = told_as_nobody(
            "from flowstack.ledger.charged import prune_charged\nfrom tests.ledger.samples import told",
            """
            with told() as texts:
                print(prune_charged(path, 1e10))
            print(texts)
            """,
            folder,
        )
        assert len(list(folder.iterdir())) == 2
    assert said.startswith("0\n")
    assert said.count("cannot be removed") == 1


def test_of_too_many_ids_the_oldest_go_by_whole_hours_and_none_of_this_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charged, "MOST_IDS", 10)
    directory = tmp_path / "charged"
    claims = make(directory)
    for number in range(16):
        claims.claim(f"resp_{number}")
        (fresh,) = [path for path in directory.iterdir() if path.stat().st_mtime > NOON - 10 * DAY]
        os.utime(fresh, (0, NOON - 20 * DAY - number // 4 * 3600))
    with told() as texts:
        assert prune_charged(directory, NOON) == 8
        assert prune_charged(directory, NOON) == 0
    assert ["before their time" in text for text in texts] == [True]
    assert [claims.claim(f"resp_{number}") for number in range(16)] == [False] * 8 + [True] * 8
    for path in directory.iterdir():
        os.utime(path, (0, NOON + 60))
    assert prune_charged(directory, NOON + 120) == 0
