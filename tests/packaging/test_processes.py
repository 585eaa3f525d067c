"""The process as an operator meets it: daemonized, on a read-only disk, with a port that is taken, handed a socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.packaging.installed import ANY_PORT, CLEAN, LISTENING, PATIENCE, Installed, ask, eventually, run
from tests.rights import NOBODY, needs_root


@pytest.fixture
def keys(folder: Path) -> Path:
    return folder / "keys"


@pytest.fixture
def key(installed: Installed, keys: Path) -> str:
    return installed.add_key(keys)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after yet, such as a daemon's, does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def ended(pid: int) -> Iterator[None]:
    """Leave no daemon behind, whatever the test says."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_answers_logs_and_has_a_pidfile_until_sigterm(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str, workers: int
) -> None:
    pidfile, log = folder / "flowstack.pid", folder / "flowstack.log"
    run(
        [
            *(installed.bin / "twistd", "--pidfile", pidfile, "--logfile", log, "--rundir", folder, "flowstack"),
            *("--workers", str(workers), "--listen", ANY_PORT, "--upstream", upstream, "--keys", keys),
        ]
    )
    pid = int(eventually(lambda: pidfile.exists() and pidfile.read_text(), "the pidfile is written"))
    with ended(pid):
        found = eventually(lambda: log.exists() and LISTENING.search(log.read_text()), "it says where it listens")
        assert ask(found[1], key)[0] == 200
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid), "the daemon ends")
    assert not pidfile.exists()
    warned, logged = ("requests are not logged" in log.read_text(), '"request_id"' in log.read_text())
    # Several workers write to pipes of their parent's, which has a log.
    assert (warned, logged) == (workers == 1, workers == 2)


def refused(installed: Installed, folder: Path, *flags: str | Path) -> str:
    """Start it, see it end with status 1, and return what it said."""
    done = subprocess.run(
        [installed.bin / "twistd", "-n", "--pidfile=", "flowstack", *flags],
        cwd=folder, env=CLEAN, timeout=PATIENCE, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stdout + done.stderr


def test_a_failed_bind_ends_with_status_1_and_names_the_port(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        told = refused(installed, folder, "--listen", endpoint, "--upstream", upstream, "--keys", keys)
    assert endpoint in told
    assert "Traceback" not in told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_that_cannot_bind_says_so_to_whoever_started_it(
    installed: Installed, folder: Path, keys: Path, key: str, workers: int
) -> None:
    pidfile, log = folder / "flowstack.pid", folder / "flowstack.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                *(installed.bin / "twistd", "--pidfile", pidfile, "--logfile", log, "--rundir", folder, "flowstack"),
                *("--workers", str(workers), "--listen", f"tcp:{port}:interface=127.0.0.1", "--keys", keys),
            ],
            cwd=folder, env=CLEAN, timeout=PATIENCE, check=False, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot listen on tcp:{port}" in done.stdout + done.stderr
    # Who waited in the foreground is told first; then the process in the background cleans up, and ends.
    eventually(lambda: not pidfile.exists(), "the pidfile is removed")


def test_a_faulty_config_ends_with_status_1_and_one_line_for_each_fault(installed: Installed, folder: Path) -> None:
    config = folder / "flowstack.toml"
    config.write_text('[server]\nworkers = "many"\nlissten = []\n')
    told = refused(installed, folder, "--config", config)
    faults = [line for line in told.splitlines() if str(config) in line]
    assert len(faults) == 2
    assert f"{folder / 'keys'}: does not exist" in told, "what is wrong with the keystore is told too"
    assert "workers" in told
    assert "lissten" in told
    assert "Traceback" not in told


@needs_root
def test_it_starts_in_a_working_directory_that_it_may_not_write_to(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str
) -> None:
    installed.assert_usable_by_anybody()
    os.chown(keys, NOBODY, NOBODY)
    flags = ("--workers", "1", "--listen", ANY_PORT, "--upstream", upstream, "--keys", keys)
    before = set(folder.iterdir())
    # The folder is root's; this process is nobody's.
    with installed.proxy(folder, *flags, user=NOBODY, group=NOBODY, extra_groups=[]) as proxy:
        assert ask(proxy.url, key)[0] == 200
    assert {path.suffix for path in set(folder.iterdir()) - before} == {".log"}


def test_a_socket_that_was_handed_over_is_served(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        # systemd's protocol: descriptors from 3 on, their names, and a LISTEN_PID that only the new process can know.
        hand_over = 'exec 3<&"$0" && export LISTEN_FDS=1 LISTEN_FDNAMES=flowstack.socket LISTEN_PID=$$ && exec "$@"'
        flags = ("--listen", "systemd:domain=INET:index=0", "--upstream", upstream, "--keys", keys)
        before = ("bash", "-c", hand_over, str(listener.fileno()))
        with installed.proxy(folder, *flags, before=before, fds=(listener.fileno(),)) as proxy:
            assert proxy.url == f"http://{host}:{port}"
            assert ask(proxy.url, key)[0] == 200


def test_a_socket_that_was_not_handed_over_ends_with_status_1_and_says_so(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str
) -> None:
    endpoint = "systemd:domain=INET:index=0"
    done = refused(installed, folder, "--listen", endpoint, "--upstream", upstream, "--keys", keys)
    assert endpoint in done
    assert "Traceback" not in done


def test_systemd_socket_activate_starts_it_on_the_first_connection_which_is_answered(
    installed: Installed, folder: Path, keys: Path, key: str, upstream: str
) -> None:
    # Bound, so that nobody else gets the port meanwhile, and never listened on.
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    log = folder / "activated.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                # Twisted wants the name that systemd itself always gives.
                *("systemd-socket-activate", "--fdname=flowstack.socket", "-l", f"127.0.0.1:{port}"),
                *(installed.bin / "twistd", "-n", "--pidfile=", "flowstack"),
                *("--listen", "systemd:domain=INET:index=0", "--upstream", upstream, "--keys", keys, "--workers", "1"),
            ],
            cwd=folder, env=CLEAN, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: re.search(r"Listening on .*:\d+", log.read_text()), "systemd-socket-activate listens")
        # The connection that starts it waits in the backlog and is the first to be served.
        assert ask(f"http://127.0.0.1:{port}", key)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        reserved.close()
