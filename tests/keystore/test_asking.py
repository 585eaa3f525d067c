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

from flowstack.keystore.asking import AskingError, ask_reload, find_service
from flowstack.keystore.process import started_at
from flowstack.policy.keys import digest
from tests.rights import NOBODY, needs_root

ROOT = Path(__file__).parents[2]

SERVICE = textwrap.dedent("""\
    import os, signal, sys, time
    from pathlib import Path
    from flowstack.keystore.file import FileKeystore
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
    with pytest.raises(AskingError, match=r"did not say within 0\.3 s what came of the reload"):
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
        ("{}", "does not say which process wrote it"),
        ('{"pid": 1, "pid_started": 1}', "does not say which process wrote it"),
        ('{"pid": -5, "pid_started": 1}', "does not say which process wrote it"),
    ],
)
def test_a_report_that_is_none_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "reload.json").write_text(text)
    assert says in refusal(tmp_path)


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
