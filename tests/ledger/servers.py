"""A PostgreSQL of the tests' own, on 127.0.0.1 and a free port, in a folder that goes with it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg
from attrs import evolve

from flowstack.config.settings import Shared
from tests.cable import Cable
from tests.ports import free_port
from tests.rights import NOBODY

PASSWORD = "canary-db-p4ssw0rd"
"""Of the role that Flowstack has. It must be seen nowhere."""

_NUMBERS = itertools.count(1)


def program(name: str) -> str:
    """One of the server's programs, which Debian keeps off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name) or name


class Server:
    """The server.

    :param of: the one whose standby it is to be.
    :ivar port: on which it listens, also after it was started again.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None, of: Server | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL does not run as root.
        self._as: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        secret = folder / "superuser"
        secret.write_text("postgres")
        if tls is not None:
            for name, path in zip(("cert", "key"), tls, strict=True):
                shutil.copy(path, folder / f"{name}.pem")
                (folder / f"{name}.pem").chmod(0o600)
        if self._as:
            for path in (folder, *folder.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        words = [program("initdb"), "-D", folder / "data", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N",
                 "-A", "scram-sha-256", f"--pwfile={secret}"]  # fmt: skip
        if of is not None:
            words = [program("pg_basebackup"), "-D", folder / "data", "-h", "127.0.0.1", "-p", str(of.port),
                     "-U", "postgres", "-R", "-N", "-c", "fast"]  # fmt: skip
        # To be a standby it keeps the password, as the superuser of the other one.
        env = {**os.environ, "PGPASSWORD": "postgres"}
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/", env=env, **self._as)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off",
            "max_connections": 40, "log_min_messages": "fatal",
        }  # fmt: skip
        if self._tls is not None:
            settings["ssl"] = "on"
            settings |= {f"ssl_{name}_file": self.folder / f"{name}.pem" for name in ("cert", "key")}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        self._process = subprocess.Popen(
            [program("postgres"), "-D", self.folder / "data", *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **self._as,
        )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                self.superuser("postgres").close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end and self._process.poll() is None
                time.sleep(0.05)

    def kill(self) -> None:
        """End it as a failing machine would, all its processes at once."""
        assert self._process is not None
        for pid in (self._process.pid, *_children(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        self._process = None
        end = time.monotonic() + 30
        while _in_use(self.port):
            assert time.monotonic() < end
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def promote(self) -> None:
        """Have a standby be a server of its own."""
        with self.superuser("postgres") as connection:
            connection.execute("SELECT pg_promote()")

    def superuser(self, database: str) -> psycopg.Connection[Any]:
        """A connection of who may do all."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password="postgres", dbname=database, autocommit=True,
            sslmode="disable" if self._tls is None else "require", connect_timeout=10,
        )  # fmt: skip

    def database(self, folder: Path, **more: Any) -> Shared:
        """Make a database with a role that has it, as the manual says, and say where it is."""
        number = next(_NUMBERS)
        name = f"ledger_{os.getpid()}_{number}"
        with self.superuser("postgres") as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
            connection.execute(f"CREATE DATABASE {name}")
        with self.superuser(name) as connection:
            connection.execute(f"CREATE SCHEMA flowstack AUTHORIZATION {name}")
        secret = folder / f"{name}.secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o600)
        url = f"postgresql://{name}@127.0.0.1:{self.port}/{name}"
        return Shared(**{"postgres": url, "postgres_password_file": secret, "postgres_tls": False, **more})


def rows_in(one: Server, shared: Shared) -> list[dict[str, Any]]:
    """The rows in a ledger there, as they were written."""
    with one.superuser((shared.postgres or "").rpartition("/")[2]) as connection:
        found = connection.execute('SELECT "row"::text FROM flowstack.ledger').fetchall()
    return [orjson.loads(text) for (text,) in found]


@contextmanager
def cable_to(shared: Shared) -> Iterator[tuple[Cable, Shared]]:
    """A cable to a PostgreSQL, and where that is behind it."""
    assert shared.postgres is not None
    port = int(shared.postgres.rpartition("/")[0].rpartition(":")[2])
    with Cable(port) as cable:
        yield cable, evolve(shared, postgres=shared.postgres.replace(f":{port}/", f":{cable.port}/"))


@contextmanager
def server(tls: tuple[Path, Path] | None = None, of: Server | None = None) -> Iterator[Server]:
    """Have one for a while.

    :param tls: its certificate and key.
    :param of: the one whose standby it is to be.
    """
    folder = Path(tempfile.mkdtemp(prefix="flowstack-postgres-"))
    folder.chmod(0o755)
    try:
        one = Server(folder, tls, of)
        one.start()
        try:
            yield one
        finally:
            one.stop()
    finally:
        shutil.rmtree(folder)


def _children(pid: int) -> list[int]:
    """The processes that one has started: each is in a session of its own."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
