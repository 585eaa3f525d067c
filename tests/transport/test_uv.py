"""The transports, on both reactors: the same cases, so that their behaviour is the same."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMIT = 900.0
CASES = ("uv_cases.py", "uv_tls_cases.py", "take_over_cases.py")


# systemd's protocol: the socket is descriptor 3, LISTEN_PID is the pid of who listens. sd_listen_fds(3).
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("transports", ["EPollReactor", "uvloop"])
def test_the_transports_keep_their_promises_on(transports: str) -> None:
    on_uvloop = ["-p", "tests.transport.uv_session", "--reactor=asyncio"]
    options = on_uvloop if transports == "uvloop" else ["-m", "not uvloop"]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *options, *(str(HERE / cases) for cases in CASES)]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)
        run = subprocess.run(
            [sys.executable, "-c", ACTIVATE, str(sock.fileno()), *command],
            cwd=HERE.parent.parent,
            env={**os.environ, "TRANSPORTS": transports},
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-4000:]
    assert "skipped" not in run.stdout, run.stdout[-8000:]
