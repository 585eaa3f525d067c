"""Programs in Python, each in a process of its own, without the time that it takes to import what they have in common.

A server in the programs' interpreter imports that once and is forked for each of them. A program so started has its own
arguments, environment, working directory and streams, and ends like any other.

The server is this file, run as a script: its interpreter need not have anything of Flowstack.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_REQUEST = 1 << 20
"""Bytes that say what is to be started."""

_NUMBER = struct.Struct("i")


class Forked:
    """A started program, with as much of :class:`subprocess.Popen` as is used.

    :param told: where the server says its process id and, when it has ended, its wait status.
    """

    def __init__(self, program: Sequence[str], told: socket.socket) -> None:
        self._program = program
        self._told = told
        self.returncode: int | None = None
        (self.pid,) = _NUMBER.unpack(told.recv(_NUMBER.size))

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(*_NUMBER.unpack(self._told.recv(_NUMBER.size)))
            self._told.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        :raises subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            select.select([self._told], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._program, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """The server, which ends with this process.

    :param python: the interpreter.
    :param modules: what is imported before any program begins.
    :param process: as for :class:`subprocess.Popen`.
    """

    def __init__(self, python: str, modules: Sequence[str], **process: Any) -> None:
        self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST)
        with theirs:
            command = [python, __file__, str(theirs.fileno()), *modules]
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, **process
            )
        atexit.register(self._end)

    def start(
        self, program: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> Forked:
        """Start a program in a session of its own.

        :param program: a script's path, or ``-m`` and a module, or ``-c`` and a text; behind it its arguments.
        """
        told, theirs = socket.socketpair()
        with theirs:
            request = json.dumps({"program": list(program), "cwd": str(cwd), "env": dict(env)}).encode()
            socket.send_fds(self._asked, [request], [stdin, stdout, stderr, theirs.fileno()])
        return Forked(program, told)

    def run(
        self, program: Sequence[str], *, cwd: Path, env: Mapping[str, str], given: str = "", limit: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        :param given: its standard input.
        :raises subprocess.TimeoutExpired: it ran for ``limit`` seconds and was killed.
        """
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(given.encode())
            stdin.seek(0)
            forked = self.start(program, cwd, env, stdin.fileno(), stdout.fileno(), stderr.fileno())
            try:
                status: int | None = forked.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(forked.pid, signal.SIGKILL)
                status = None
            output, errors = ("" if file.seek(0) else file.read().decode() for file in (stdout, stderr))
        if status is None:
            raise subprocess.TimeoutExpired(program, limit, output, errors)
        return subprocess.CompletedProcess(program, status, output, errors)

    def _end(self) -> None:
        self._asked.close()
        self._server.wait()


def _reaped() -> bool:
    """Whether a process that watched a program was waited for, as it had ended."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _serve(asked: socket.socket) -> dict[str, Any]:
    """Fork for each request; return, in the forked process alone, what it is to run."""
    while True:
        request, streams, _, _ = socket.recv_fds(asked, MAX_REQUEST, 4)
        if not request:
            sys.exit()
        if not os.fork():
            break
        for stream in streams:
            os.close(stream)
        while _reaped():
            pass
    *streams, told = streams
    program = os.fork()
    if program:
        os.write(told, _NUMBER.pack(program))
        os.write(told, _NUMBER.pack(os.waitpid(program, 0)[1]))
        os._exit(0)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(told, *streams, asked.detach()) + 1)
    found: dict[str, Any] = json.loads(request)
    return found


def _become(program: Sequence[str], cwd: str, env: Mapping[str, str]) -> None:
    """Be a program as if the interpreter had been started with it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    first, *rest = program
    if first == "-m":
        sys.argv[:] = rest
        sys.path[0] = cwd
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:] = list(program)
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    _become(**_serve(socket.socket(fileno=int(sys.argv[1]))))
