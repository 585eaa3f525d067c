"""A command asks a service to reload: a real process, real signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flowstack.keys import digest
from flowstack.keys.asking import AskingError, ask_reload, find_service
from flowstack.keys.process import started_at
from flowstack.keys.store import FileKeystore, KeystoreError
from tests.rights import NOBODY, needs_root, public_folder

ROOT = Path(__file__).parents[2]

SERVICE = textwrap.dedent("""\
    import os, signal, sys, time
    from pathlib import Path
    from flowstack.keys.store import FileKeystore
    store = FileKeystore(Path("keys"), Path("."), time.time)
    def reload(*_):
        if sys.argv[1] == "silent": return
        if sys.argv[1] == "dies": os._exit(3)
        store.reload()
    signal.signal(signal.SIGHUP, reload)
    store.load()
    while True: signal.pause()
""")

Start = Callable[..., "subprocess.Popen[bytes]"]


def line(name: str, attributes: str = "") -> str:
    return f"{name} sha256:{digest(name.encode()).hex()} {attributes}\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "keys").write_text(line("alice"))
    (tmp_path / "keys").chmod(0o600)
    started = []

    def service(behaviour: str = "serves") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, behaviour],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "reload.json").exists() or report(tmp_path)["pid"] != process.pid:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        return process

    yield service
    for process in started:
        process.kill()
        process.wait()


def report(state: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((state / "reload.json").read_text())
    return value


def refusal(state: Path) -> str:
    with pytest.raises(AskingError) as caught:
        find_service(state)
    return str(caught.value)


def test_a_service_that_took_the_file_over_says_so(tmp_path: Path, start: Start) -> None:
    process = start()
    (tmp_path / "keys").write_text(line("alice") + line("bob"))
    answer = ask_reload(find_service(tmp_path), 30)
    assert (answer.pid, answer.keys, answer.generation, answer.faults) == (process.pid, 2, 2, ())
    assert ask_reload(find_service(tmp_path), 30).generation == 3


def test_a_service_that_did_not_says_why(tmp_path: Path, start: Start) -> None:
    start()
    (tmp_path / "keys").write_text(line("alice", "rpm=x"))
    answer = ask_reload(find_service(tmp_path), 30)
    assert (answer.keys, answer.generation) == (1, 1)
    assert "rpm: found 'x'" in answer.faults[0]


def test_a_report_of_a_reload_that_was_begun_before_is_no_answer(tmp_path: Path, start: Start) -> None:
    start("silent")
    old = report(tmp_path)
    later = old | {"time": "2127-01-01T00:00:00.000000Z", "generation": 9}
    (tmp_path / "reload.json").write_text(json.dumps(later))
    with pytest.raises(AskingError, match=r"did not report on the reload within 0\.3 s"):
        ask_reload(find_service(tmp_path), 0.3)


def test_a_service_that_ends_meanwhile_is_told_at_once(tmp_path: Path, start: Start) -> None:
    process = start("dies")
    service = find_service(tmp_path)
    reaped = []
    with pytest.raises(AskingError, match="ended before it had reloaded"):
        waiter = threading.Thread(target=lambda: reaped.append(process.wait(60)))
        waiter.start()
        ask_reload(service, 60)
    waiter.join()
    assert reaped == [3]


def test_a_service_that_is_gone_is_not_mistaken_for_the_process_that_got_its_number(
    tmp_path: Path, start: Start
) -> None:
    process = start()
    process.kill()
    process.wait()
    assert "is gone" in refusal(tmp_path)
    told = report(tmp_path) | {"pid": os.getpid()}  # as if this process had got the number
    (tmp_path / "reload.json").write_text(json.dumps(told))
    assert "no service runs with the state directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist, so no service runs with this state directory"),
        ("{", "holds no JSON"),
        ("[]", "holds no JSON object"),
        ("\udcff", "holds no JSON"),
        ("[" * 100_000, "holds no JSON"),
        ("{}", "does not say which process wrote it: found pid nothing and pid_started nothing"),
        *(
            (json.dumps({"pid": pid, "pid_started": 1, "generation": 1, "keys": 1}), "does not say which process wrote")
            for pid in (0, -1, -5, 2**22 + 1, 10**18, 10**40, 1.5, True, "17", None, [], {}, "x" * 1000)
        ),
        *(
            (json.dumps({"pid": 2, "pid_started": started, "generation": 1, "keys": 1}), "does not say which process")
            for started in (-1, 10**40, 1.5, True, "17", None, [])
        ),
        ('{"pid": 2, "pid_started": 1}', "does not say what came of a reload: found generation nothing"),
        ('{"pid": 2, "pid_started": 1, "generation": "x", "keys": 1}', "found generation 'x'"),
        ('{"pid": 2, "pid_started": 1, "generation": 1, "keys": null}', "and fault an array, expected two numbers"),
        ('{"pid": 2, "pid_started": 1, "generation": 1, "keys": 1, "fault": 5}', "and fault 5, expected two numbers"),
        ('{"pid": 4194304, "pid_started": 1, "generation": 1, "keys": 1, "begun": 1e300}', "process 4194304, which"),
    ],
)
def test_a_report_that_is_none_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "reload.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    told = refusal(tmp_path)
    assert says in told
    assert len(told) < 500


def _make_huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 << 30)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a directory, no regular file, so that no service wrote it"),
        (os.mkfifo, "is a FIFO, no regular file"),
        (lambda path: path.symlink_to("/proc/self/environ"), "is a symbolic link, no regular file"),
        (lambda path: path.symlink_to("gone"), "is a symbolic link, no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link, no regular file"),
        (_make_huge, "found more than 1048576 bytes"),
    ],
    ids=["directory", "FIFO", "link", "dangling", "device", "huge"],
)
def test_what_is_no_report_at_all_is_told_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    make(tmp_path / "reload.json")
    assert says in refusal(tmp_path)


def test_a_report_with_a_second_name_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "reload.json").write_text("{}")
    os.link(tmp_path / "reload.json", tmp_path / "other")
    assert "found a file with other names (hard links)" in refusal(tmp_path)


def test_the_command_s_own_process_is_no_service(tmp_path: Path) -> None:
    told = {"pid": os.getpid(), "pid_started": started_at(os.getpid()), "generation": 1, "keys": 1}
    (tmp_path / "reload.json").write_text(json.dumps(told))
    assert "names the process of this very command" in refusal(tmp_path)


@needs_root
def test_a_service_may_be_the_first_process_of_its_container(tmp_path: Path) -> None:
    told = {"pid": 1, "pid_started": started_at(1), "generation": 1, "keys": 1}
    (tmp_path / "reload.json").write_text(json.dumps(told))
    assert find_service(tmp_path).pid == 1
    os.chown(tmp_path / "reload.json", NOBODY, NOBODY)
    assert "names process 1, which is of user 0: it was not signalled" in refusal(tmp_path)


@needs_root
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_process_of_another_user_than_the_report_s_is_not_signalled(tmp_path: Path, when: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:  # root's
        path = tmp_path / "reload.json"
        told = {"pid": victim.pid, "pid_started": started_at(victim.pid), "generation": 1, "keys": 1}
        path.write_text(json.dumps(told))
        if when == "before":
            os.chown(path, NOBODY, NOBODY)
            says = refusal(tmp_path)
        else:
            service = evolve(find_service(tmp_path), owner=NOBODY)
            with pytest.raises(AskingError) as caught:
                ask_reload(service, 0.1)
            says = str(caught.value)
        assert f"belongs to user {NOBODY}, and names process {victim.pid}, which is of user 0" in says
        victim.communicate(b"\n")
    assert victim.returncode == 0


@needs_root
def test_root_reads_the_report_of_another_s_folder_as_that_user() -> None:
    with public_folder() as folder:
        state, secret = folder / "state", folder / "secret"
        state.mkdir()
        os.chown(state, NOBODY, NOBODY)
        secret.mkdir(mode=0o700)
        (secret / "reload.json").write_text("{}")
        (state / "way").symlink_to(secret)
        assert "could not be read: Permission denied" in refusal(state / "way")


def test_the_report_is_for_owner_and_group_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("alice"))
    (tmp_path / "keys").chmod(0o600)
    for mask, mode in ((0, 0o640), (0o022, 0o640), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            FileKeystore(tmp_path / "keys", tmp_path, time.time).load()
        finally:
            os.umask(before)
        assert (tmp_path / "reload.json").stat().st_mode & 0o777 == mode


def test_a_keystore_s_name_need_not_be_text(tmp_path: Path) -> None:
    path = tmp_path / "k\udcffeys"
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(KeystoreError):
        FileKeystore(path, tmp_path, time.time).load()
    assert r"k\udcffeys:1" in report(tmp_path)["fault"][0]


@needs_root
def test_who_may_not_signal_the_service_is_told_as_whom_to_run(tmp_path: Path, start: Start) -> None:
    start()
    service = find_service(tmp_path)
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        try:
            ask_reload(service, 5)
        except AskingError as error:
            os._exit(7 if "may not signal the service" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_time_of_a_start_tells_processes_of_one_number_apart() -> None:
    own = started_at(os.getpid())
    assert own is not None
    assert started_at(os.getppid()) is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert (started_at(other.pid) or 0) >= own
        other.communicate(b"\n")
    assert started_at(other.pid) is None
