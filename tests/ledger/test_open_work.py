"""Open work is there until somebody settles it, once, whoever that is, and no longer than its time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flowstack.ledger import open_work
from flowstack.ledger.late import WAIT_SECONDS, Begun
from flowstack.ledger.open_work import SHOUT_SECONDS, OpenWork, give_back, prune_open
from tests.ledger.samples import NOON, told
from tests.rights import ROOT, needs_root, public_folder, told_as_nobody

HOUR = 3600


def begun(identity: str = "resp_1", **more: Any) -> Begun:
    values = {
        "upstream": "openai", "kind": "response", "id": identity, "key_id": "k1", "owner": "alice", "group": None,
        "attributes": {"team": "search"}, "request_id": "r1", "method": "POST", "path": "/v1/responses",
        "model_requested": "gpt-5", "service_tier": "default", "begun": NOON, "expires": NOON + WAIT_SECONDS,
        "kept": {"tokens": 1 << 60, "nanos": [1, 2]},
    }  # fmt: skip
    return Begun(**values | more)  # type: ignore[arg-type]


def make(directory: Path | None, worker: int = 0) -> OpenWork:
    return OpenWork(directory, worker, lambda: NOON)


@pytest.fixture(params=["a directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenWork:
    return make(tmp_path / "open" if request.param == "a directory" else None)


def test_what_was_begun_is_claimed_once_and_whole(store: OpenWork) -> None:
    for identity in ("resp_1", "resp_2"):
        store.begin(begun(identity))
    assert store.claim("openai", "response", "resp_1") == begun()
    assert store.claim("openai", "response", "resp_1") is None
    assert store.open() == [begun("resp_2")]
    assert store.done(begun())
    assert store.claim("openai", "response", "resp_2") == begun("resp_2")


@pytest.mark.parametrize(
    ("upstream", "kind", "identity"),
    [("azure", "response", "resp_1"), ("openai", "batch", "resp_1"), ("openai", "response", "resp_10")],
)
def test_work_of_another_upstream_or_kind_or_id_is_another(
    store: OpenWork, upstream: str, kind: Any, identity: str
) -> None:
    store.begin(begun())
    assert store.claim(upstream, kind, identity) is None
    assert store.claim("openai", "response", "resp_1") == begun()


def test_an_id_and_what_a_client_said_may_be_any_text(store: OpenWork) -> None:
    for text in ("../../etc/passwd", "", "a/b", "\x00", "\ud800", "x" * 10_000, 'q"\\'):
        one = begun(text, attributes={"a": text}, owner=text)
        store.begin(one)
        assert store.claim("openai", "response", text) == one
        assert store.done(one)


def test_of_two_beginnings_of_the_same_work_the_first_counts(store: OpenWork) -> None:
    store.begin(begun())
    store.begin(begun(key_id="k2"))
    assert store.claim("openai", "response", "resp_1") == begun()


def test_files_are_private_and_are_gone_once_their_work_is_settled(tmp_path: Path) -> None:
    store = make(tmp_path / "open")
    store.begin(begun())
    (file,) = (tmp_path / "open").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert "resp_1" not in file.name
    assert store.claim("openai", "response", "resp_1") is not None
    assert store.done(begun())
    assert list((tmp_path / "open").iterdir()) == []


def test_of_processes_that_claim_at_once_each_work_has_one(tmp_path: Path) -> None:
    store = make(tmp_path / "open")
    for number in range(300):
        store.begin(begun(str(number)))
    program = (
        "import sys; from pathlib import Path; from flowstack.ledger.open_work import OpenWork\n"
        "store = OpenWork(Path(sys.argv[1]), int(sys.argv[2]), lambda: 0.0)\n"
        "sys.stdin.readline()\n"
        "print(*(n for n in range(300) if store.claim('openai', 'response', str(n))))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "open"), str(worker)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for worker in range(3)
    ]  # fmt: skip
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    claimed = Counter(int(number) for child in children for number in child.communicate(timeout=60)[0].split())
    assert claimed == Counter(range(300))


def test_what_a_killed_worker_claimed_is_given_back_and_what_others_claimed_is_not(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    make(directory).begin(begun("a"))
    make(directory).begin(begun("b"))
    assert make(directory, 1).claim("openai", "response", "a") is not None
    assert make(directory, 11).claim("openai", "response", "b") is not None
    assert make(directory).open() == []
    assert give_back(directory, 1) == 1
    assert make(directory).open() == [begun("a")]
    assert give_back(directory) == 1
    assert {one.id for one in make(directory).open()} == {"a", "b"}
    assert give_back(directory) == 0
    assert give_back(tmp_path / "missing") == 0


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"upstream": "openai"}'])
def test_a_file_that_was_never_written_whole_is_no_work(tmp_path: Path, text: bytes) -> None:
    store = make(tmp_path)
    (tmp_path / begun().name).write_bytes(text)
    assert store.open() == []
    assert store.claim("openai", "response", "resp_1") is None
    assert list(tmp_path.iterdir()) == []


def test_memory_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_work, "KEEP_IN_MEMORY", 3)
    store = make(None)
    for name in "abcd":
        store.begin(begun(name))
    assert [one.id for one in store.open()] == ["b", "c", "d"]


def test_where_it_cannot_be_written_down_that_is_told_once_a_minute(tmp_path: Path) -> None:
    now = NOON
    state = tmp_path / "state"
    store = OpenWork(state / "open", 0, lambda: now)
    with told() as texts:
        for _ in range(3):
            store.begin(begun())
            now += SHOUT_SECONDS / 2
    assert store.failures == 3
    assert len(texts) == 2
    assert "STAYS CHARGED" in texts[0]
    assert str(state) in texts[0]
    state.mkdir()
    store.begin(begun())
    assert store.claim("openai", "response", "resp_1") == begun()


def test_work_is_waited_for_as_long_as_is_said_and_no_longer(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    for age in (0, WAIT_SECONDS - 1, WAIT_SECONDS + 1, 10 * WAIT_SECONDS):
        one = begun(str(age))
        make(directory).begin(one)
        os.utime(directory / one.name, (NOON - age,) * 2)
    assert prune_open(directory, NOON) == 2
    assert {one.id for one in make(directory).open()} == {"0", str(WAIT_SECONDS - 1)}
    assert prune_open(tmp_path / "missing", NOON) == 0


@needs_root
def test_work_that_cannot_be_removed_is_told_of() -> None:
    with public_folder() as folder:
        for name in ("a", "b"):
            (folder / name).touch()
            os.utime(folder / name, (0, 0))
        said = told_as_nobody(
            "from flowstack.ledger.open_work import prune_open\nfrom tests.ledger.samples import told",
            """
            with told() as texts:
                print(prune_open(path, 1e10))
            print(texts)
            """,
            folder,
        )
        assert len(list(folder.iterdir())) == 2
    assert said.startswith("0\n")
    assert said.count("cannot be removed") == 1


def test_of_too_many_works_the_oldest_go_by_whole_hours_and_none_of_this_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_work, "MOST_OPEN", 10)
    store = make(tmp_path)
    for number in range(16):
        one = begun(f"resp_{number}")
        store.begin(one)
        os.utime(tmp_path / one.name, (0, NOON - 20 * 24 * HOUR - number // 4 * HOUR))
    with told() as texts:
        assert prune_open(tmp_path, NOON) == 8
        assert prune_open(tmp_path, NOON) == 0
    assert ["too much open work" in text for text in texts] == [True]
    assert sorted(int(one.id.partition("_")[2]) for one in store.open()) == list(range(8))
    for path in tmp_path.iterdir():
        os.utime(path, (0, NOON + 60))
    assert prune_open(tmp_path, NOON + 120) == 0
