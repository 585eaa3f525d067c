"""The keystore that serves look-ups, on real files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from flowstack.keys import Key, digest
from flowstack.keys.process import started_at
from flowstack.keys.reading import KeystoreError, read_keys
from flowstack.keys.store import FileKeystore, ReloadResult
from tests.rights import NOBODY, needs_root, public_folder, told_as_nobody

TOKENS = {name: f"token-of-{name}".encode() for name in ("alice", "bob", "carol")}
NOW = 1_800_000_000.25
AT_NOW = "2027-01-15T08:00:00.250000Z"


def line(name: str, attributes: str = "") -> str:
    return f"{name} sha256:{digest(TOKENS[name]).hex()} {attributes}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(line("alice") + line("bob"))
    path.chmod(0o600)
    return path


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(f"{event['log_level'].name} {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def keystore(path: Path, state: Path | None = None) -> FileKeystore:
    return FileKeystore(path, state, lambda: NOW)


def reloaded(store: FileKeystore) -> ReloadResult:
    """What came of a reload that nothing else runs beside."""
    results: list[ReloadResult] = []
    store.reload().addCallback(results.append)
    return results[0]


def ids(store: FileKeystore) -> set[str]:
    found = (store.lookup(digest(token)) for token in TOKENS.values())
    return {key.id for key in found if key}


def report(state: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((state / "reload.json").read_text())
    return value


def test_a_loaded_file_answers_by_digest_and_none_for_strangers(path: Path) -> None:
    store = keystore(path)
    store.load()
    assert store.lookup(digest(TOKENS["alice"])) == Key("alice", digest(TOKENS["alice"]))
    assert store.lookup(digest(b"stranger")) is None
    assert (store.generation, store.count) == (1, 2)


def test_before_the_first_load_nobody_is_known(path: Path) -> None:
    assert ids(keystore(path)) == set()


def test_a_first_load_with_faults_raises_them_all_a_line_each_and_nothing_is_in_force(path: Path) -> None:
    path.write_text(line("alice", "rpm=x") + line("bob", "ownr=y"))
    store = keystore(path)
    with pytest.raises(KeystoreError) as caught:
        store.load()
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1:")
    assert "rpm: found 'x'" in first
    assert second.startswith(f"{path}:2:")
    assert (store.generation, store.count, ids(store)) == (0, 0, set())


def test_a_reload_takes_a_valid_file_over(path: Path, logged: list[str]) -> None:
    store = keystore(path)
    store.load()
    path.write_text(line("bob", "disabled") + line("carol"))
    result = reloaded(store)
    assert result.ok
    assert (result.generation, result.keys, result.faults, result.time) == (2, 2, (), NOW)
    assert ids(store) == {"bob", "carol"}
    assert store.lookup(digest(TOKENS["bob"])) == Key("bob", digest(TOKENS["bob"]), disabled=True)
    assert f"info keystore: {path} is in force: 2 keys, generation 2" in logged


def _remove(path: Path) -> None:
    path.unlink()


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


BREAK: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_text(line("alice") + line("carol", "rpm=fast")), "rpm: found 'fast'"),
    (lambda path: path.write_text(line("alice") * 2), "found the id alice as in line 1"),
    (lambda path: path.write_bytes(b"\xff\xfe"), "UTF-16 byte order mark"),
    (lambda path: path.write_bytes(line("alice").encode()[:30]), "hash: found 17 characters after 'sha256:'"),
    (lambda path: path.chmod(0o602), "found mode 0602, with which everyone on this machine may add a key"),
    (_remove, "does not exist; make it with its first key: `flowstack keys add --keys"),
    (_make_directory, "found a directory, no regular file, expected the keystore file"),
    (_make_fifo, "found a FIFO, no regular file"),
    (_dangle, "found a link to gone, which does not exist"),
]


@pytest.mark.parametrize(("harm", "says"), BREAK)
def test_a_file_that_went_bad_leaves_the_old_set_in_force_and_is_told_in_the_log_and_reload_json(
    harm: Callable[[Path], Any], says: str, path: Path, tmp_path: Path, logged: list[str]
) -> None:
    store = keystore(path, tmp_path)
    store.load()
    harm(path)
    result = reloaded(store)
    assert not result.ok
    assert (result.generation, result.keys) == (1, 2)
    assert ids(store) == {"alice", "bob"}
    errors = [entry for entry in logged if entry.startswith("error")]
    assert says in errors[0]
    assert "the 2 keys of generation 1 stay in force" in errors[-1]
    told = report(tmp_path)
    assert (told["generation"], told["keys"], told["time"]) == (1, 2, AT_NOW)
    assert says in told["fault"][0]


def test_a_repaired_file_is_taken_over_again(path: Path, tmp_path: Path) -> None:
    store = keystore(path, tmp_path)
    store.load()
    path.write_text("nonsense\n")
    reloaded(store)
    path.write_text(line("carol"))
    assert reloaded(store).ok
    assert ids(store) == {"carol"}
    told = report(tmp_path)
    assert (told["generation"], told["time"], told["begun"], told["keys"], told["fault"]) == (
        2,
        AT_NOW,
        AT_NOW,
        1,
        None,
    )
    assert (told["pid"], told["pid_started"]) == (os.getpid(), started_at(os.getpid()))


def test_reload_json_replaces_the_old_one_by_rename_and_leaves_nothing_beside_it(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    store = keystore(path, state)
    store.load()
    with (state / "reload.json").open() as before:
        reloaded(store)
        assert json.load(before)["generation"] == 1
    assert report(state)["generation"] == 2
    assert [entry.name for entry in state.iterdir()] == ["reload.json"]


def test_thousands_of_faults_are_counted_and_twenty_are_named(path: Path, tmp_path: Path, logged: list[str]) -> None:
    store = keystore(path, tmp_path)
    store.load()
    path.write_text("nonsense\n" * 3000)
    assert len(reloaded(store).faults) == 3000
    assert len([entry for entry in logged if entry.startswith("error")]) == 22
    assert len(report(tmp_path)["fault"]) == 21
    assert report(tmp_path)["fault"][-1] == "and 2980 more faults; `flowstack check` names them all"


def test_a_state_directory_that_cannot_be_written_is_logged_and_the_keys_are_in_force_all_the_same(
    path: Path, tmp_path: Path, logged: list[str]
) -> None:
    store = keystore(path, tmp_path / "missing")
    store.load()
    assert ids(store) == {"alice", "bob"}
    assert any("could not write" in entry and "reload.json" in entry for entry in logged if entry.startswith("error"))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o400])
def test_a_file_for_owner_and_group_draws_no_warning(mode: int, path: Path) -> None:
    path.chmod(mode)
    reading = read_keys(path)
    assert (reading.faults, reading.warnings, len(reading.keys)) == ((), (), 2)


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_file_that_others_can_read_is_used_with_a_warning(mode: int, path: Path, logged: list[str]) -> None:
    path.chmod(mode)
    store = keystore(path)
    store.load()
    assert ids(store) == {"alice", "bob"}
    warnings = [entry for entry in logged if entry.startswith("warn")]
    assert len(warnings) == 1
    assert f"found mode {mode:04o}" in warnings[0]
    assert f"run `chmod o-rwx {path}`" in warnings[0]


def test_a_file_without_keys_is_used_with_a_warning(path: Path, logged: list[str]) -> None:
    path.write_text("# none yet\n")
    store = keystore(path)
    store.load()
    assert store.count == 0
    assert any("holds no keys, so that each request is refused" in entry for entry in logged)


@needs_root
def test_a_file_that_the_services_user_may_not_read_says_who_that_is_and_what_to_do() -> None:
    with public_folder() as folder:
        path = folder / "keys"
        path.write_text(line("alice"))
        path.chmod(0o600)
        (told,) = told_as_nobody(
            "from flowstack.keys.reading import read_keys", "print(*read_keys(path).faults, sep='\\n')", path
        ).splitlines()
    assert f"{path}: may not be read by this process (user {NOBODY}, groups {NOBODY})" in told
    assert f"`chgrp flowstack {path} && chmod 0640 {path}`" in told


def test_no_hash_and_no_attribute_value_reaches_the_log(path: Path, tmp_path: Path, logged: list[str]) -> None:
    store = keystore(path, tmp_path)
    store.load()
    path.write_text(line("alice", "owner=x") + line("alice", "note=x"))
    reloaded(store)
    for text in (*logged, (tmp_path / "reload.json").read_text().replace(store.sha256, "")):
        assert not re.search("[0-9a-f]{64}", text)


def test_while_the_file_is_bad_the_first_reading_takes_the_last_good_text_of_another_process(
    path: Path, logged: list[str]
) -> None:
    first = keystore(path)
    first.load()
    path.write_text("nonsense\n")
    reloaded(first)
    logged.clear()
    second = keystore(path)
    second.load(first.text)
    assert ids(second) == ids(first) == {"alice", "bob"}
    assert second.generation == 1
    assert logged[-1] == f"error keystore: {path} was not reloaded; the 2 keys of generation 1 stay in force"
    path.write_text(line("carol"))
    reloaded(second)
    assert (ids(second), second.text) == ({"carol"}, path.read_bytes())


def test_a_good_file_goes_before_the_last_good_text_of_another_process(path: Path) -> None:
    store = keystore(path)
    store.load(line("carol").encode())
    assert ids(store) == {"alice", "bob"}


def test_an_empty_set_is_a_good_one_to_go_on_with(path: Path) -> None:
    path.write_text("nonsense\n")
    store = keystore(path)
    store.load(b"")
    assert (store.count, store.generation) == (0, 1)
