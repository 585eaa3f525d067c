"""The real processes that end-to-end tests run: the stand-in upstream and ``twistd flowstack``.

Each is started on a port of its own choosing on 127.0.0.1, watched through the file that takes its standard output
and error, and ended by its own process id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import urlopen

from flowstack.keys import make_token
from tests.e2e.forks import Forked, Forks

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
PATIENCE = 30.0
"""Seconds that a condition may take to come true on a busy machine; none takes that long on an idle one.

No longer than the shortest timeout that could bring it about too: that of an upstream's unused connection, 30 s.
"""
START = 120.0
"""Seconds in which a process may start on a busy machine."""

T = TypeVar("T")


def environment() -> dict[str, str]:
    """The environment that Flowstack's programs get here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@cache
def forks() -> Forks:
    """What starts Flowstack's programs: all that they import is there already, but for the reactor."""
    commands = ("main", "keys", "groups", "usage", "budgets", "check")
    modules = ["flowstack.process.parent", "flowstack.process.proxy", "twisted.scripts.twistd"]
    modules += [f"flowstack.cli.{name}" for name in commands]
    return Forks(sys.executable, modules, env=environment(), cwd=ROOT)


def invoke(*command: str | Path, cwd: Path = ROOT, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``flowstack`` or ``twistd``, by that name and with these arguments, to its end.

    :param given: its standard input.
    """
    program = [str(BIN / command[0]), *map(str, command[1:])]
    return forks().run(program, cwd=cwd, env=environment() | env, given=given, limit=START)


def eventually(probe: Callable[[], T | None], what: str, limit: float = PATIENCE) -> T:
    """Call ``probe`` until it gives something true, and return that.

    :param what: the condition in words, for the failure.
    :raises AssertionError: after ``limit`` seconds.
    """
    deadline = time.monotonic() + limit
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The process ids of a parent's workers, in the order in which they were started.

    Neither the indexer is one, nor what has not begun its program yet and so still has its parent's command line.
    """
    return that_run(pid, "flowstack.process.worker")


def that_run(pid: int, module: str) -> list[int]:
    """The process ids of a parent's children that run this module by now, oldest first."""
    return [child for child, command in _children(pid) if module.encode() in command]


def _children(pid: int) -> list[tuple[int, bytes]]:
    """The children and their command lines; one that ended in the meantime has none."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append((child, Path(f"/proc/{child}/cmdline").read_bytes()))
    return found


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file below a folder and what is in it, but for those that went while others were looked at."""
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()


class Process:
    """A child process whose output goes to a file.

    :param command: where this interpreter is the first word, what is behind it is forked from one that has begun.
    :param log: the file for standard output and error.
    :param fds: further descriptors that it inherits.
    :param ready: what the line looks like by which it says that it is up; its group 1 is the URL.
    :raises AssertionError: with the log, when it ends or stays silent instead.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self._log = log
        self._ended = False
        env = environment() | dict(env or {})
        self._popen: subprocess.Popen[bytes] | Forked
        with open(log, "ab") as output, open(os.devnull, "rb") as nothing:
            # In a group of its own, so that whatever it started can be ended with it.
            if command[0] == sys.executable and not fds:
                streams = (nothing.fileno(), output.fileno(), output.fileno())
                self._popen = forks().start(command[1:], cwd, env, *streams)
            else:
                self._popen = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env,
                    stdin=nothing,
                    stdout=output,
                    stderr=output,
                    pass_fds=fds,
                    start_new_session=True,
                )
        try:
            self.url = eventually(lambda: self._find_url(ready), f"a line like {ready!r} from {command[0]}", START)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log_text()}") from None

    def _find_url(self, ready: str) -> str | None:
        assert self._popen.poll() is None, f"the process ended with {self._popen.returncode}"
        found = re.search(ready, self.log_text())
        return found[1] if found else None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def log_path(self) -> Path:
        """The file that takes standard output and error."""
        return self._log

    def log_text(self) -> str:
        """Everything that it has written so far."""
        return self._log.read_text("utf-8", "replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._popen.send_signal(number)

    def wait(self, limit: float = PATIENCE) -> int:
        """Wait for its end and return the exit status, negative for a signal."""
        return self._popen.wait(limit)

    def stop(self, limit: float = PATIENCE) -> None:
        """End it as an operator does, by SIGTERM; does nothing the second time.

        :raises AssertionError: with the log, unless it ends by itself with status 0. It is gone in any case.
        """
        if self._ended:
            return
        self._ended = True
        if self._popen.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            status = self.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {limit:g} s after SIGTERM\n{self.log_text()}") from None
        assert status == 0, f"exit status {status}\n{self.log_text()}"

    def kill(self) -> None:
        """End it, and whatever it started, without asking."""
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


class StandIn(Process):
    """The stand-in upstream as a process; ``url`` is without ``/v1``."""

    def __init__(self, folder: Path, name: str = "stand-in") -> None:
        super().__init__(
            [sys.executable, "-m", "flowstack.testing", "--listen", "tcp:0:interface=127.0.0.1"],
            log=folder / f"{name}.log",
            ready=r"stand-in listening on (http://127\.0\.0\.1:\d+)",
            cwd=folder,
        )

    def state(self) -> dict[str, Any]:
        """What it has seen so far: connections, requests, faults of framing."""
        state: dict[str, Any] = self._ask("state")
        return state

    def seen(self, tag: str) -> list[dict[str, Any]]:
        """The requests that carried this ``X-Client-Tag``, oldest first, with their headers as they came."""
        records: list[dict[str, Any]] = self._ask(f"seen/{tag}")
        return records

    def _ask(self, question: str) -> Any:
        with urlopen(f"{self.url}/stand-in/{question}", timeout=PATIENCE) as answer:
            return json.load(answer)


class Keystore:
    """A keystore file that a test writes directly, line by line.

    :param path: the file; each change rewrites it whole by rename.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens: set[str] = set()
        """Every token that was ever put in; all are secrets, also those that were removed."""
        self._lines: dict[str, str] = {}
        self._write()

    def add(self, attributes: str = "") -> str:
        """Add a key, and return its token.

        :param attributes: as they stand in the file, such as ``"expires=2020-01-01 disabled"``.
        """
        identity, token = make_token(os.urandom)
        self.put(identity, token, attributes)
        return token

    def put(self, identity: str, token: str, attributes: str = "") -> None:
        """Add or replace the line of a key whose token is given."""
        self.tokens.add(token)
        digest = hashlib.sha256(token.encode()).hexdigest()
        self._lines[identity] = f"{identity}  sha256:{digest}  {attributes}".rstrip() + "\n"
        self._write()

    def group(self, name: str, attributes: str = "") -> None:
        """Add or replace the line of a group."""
        self._lines[f"@{name}"] = f"@{name}  {attributes}\n"
        self._write()

    def remove(self, token: str) -> None:
        """Take out the line of a token that :meth:`add` made."""
        del self._lines[token[4:16]]
        self._write()

    def _write(self) -> None:
        self.replace("# made by the tests\n" + "".join(self._lines.values()))

    def replace(self, text: str) -> None:
        """Put any text in the file's place, be it valid or not."""
        fresh = self.path.with_suffix(".new")
        fresh.touch(0o600)
        fresh.write_text(text, "utf-8")
        fresh.replace(self.path)


class Proxy(Process):
    """``twistd -n flowstack`` with a configuration, a keystore and a state folder of its own.

    :param folder: where those are written, and what it is started in; made if missing.
    :param upstream: the base URL of the default upstream, with its path.
    :param reactor: None for the one that Flowstack chooses, or a name for ``twistd --reactor``.
    :param settings: tables of the configuration file, laid over the ones that every test needs. One worker serves
        unless they say otherwise.
    :param before: words before ``twistd``.
    :param flags: more of twistd's own.
    :param process: see :class:`Process`.
    """

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *,
        reactor: str | None = None,
        settings: Mapping[str, Any] | None = None,
        before: Sequence[str] = (),
        flags: Sequence[str] = (),
        **process: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_path = folder / "state"
        self.state_path.mkdir(mode=0o700, exist_ok=True)
        self.keystore = Keystore(folder / "keys")
        self.keys_path = self.keystore.path
        self.key = self.keystore.add("owner=alice@example.com")
        self.config_path = folder / "flowstack.toml"
        tables = {
            "server": {
                "listen": ["tcp:0:interface=127.0.0.1"],
                "keys": str(self.keys_path),
                "state": str(self.state_path),
                "workers": 1,
            },
            "upstreams": {"openai": {"base_url": upstream}},
            # Tests look for the row of each request. That refused ones may share one is tested by itself.
            "ledger": {"refusals_per_minute": 1_000_000},
        }
        self.config_path.write_text(to_toml(_overlaid(tables, settings or {})), "utf-8")
        super().__init__(
            [
                *before,
                sys.executable,
                str(BIN / "twistd"),
                *([f"--reactor={reactor}"] if reactor else []),
                *("-n", "--pidfile=", *flags, "flowstack", "--config", str(self.config_path)),
            ],
            log=folder / "proxy.log",
            ready=r"flowstack listening on (https?://127\.0\.0\.1:\d+)",
            cwd=folder,
            **process,
        )

    @property
    def base_url(self) -> str:
        """What a client sets as its base URL."""
        return f"{self.url}/v1"

    @property
    def headers(self) -> dict[str, str]:
        """What a client adds to its requests."""
        return {"Flowstack-Auth": f"Bearer {self.key}"}

    def stop(self, limit: float = PATIENCE) -> None:
        """End it, and look into everything it wrote for a key that should not be there."""
        super().stop(limit)
        self.assert_no_secrets()

    def assert_no_secrets(self, more: Iterable[str] = ()) -> None:
        """Look into the log and all files of the state folder for a key that this proxy knows, or one of ``more``."""
        # The id in a Flowstack key is no secret; what follows it is.
        secrets = [token[16:] if token.startswith("fsk-") else token for token in {*self.keystore.tokens, *more}]
        for path, data in (*contents(self.state_path), (self.log_path, self.log_path.read_bytes())):
            assert not any(secret.encode() in data for secret in secrets), f"{path} holds a key"

    def reload(self) -> dict[str, Any]:
        """Send SIGHUP, wait for the reload's end, and return its ``reload.json``."""
        report = self.state_path / "reload.json"
        before = _stamp(report)
        self.signal(signal.SIGHUP)
        eventually(lambda: _stamp(report) != before, "reload.json is written anew after SIGHUP")
        outcome: dict[str, Any] = json.loads(report.read_bytes())
        return outcome


StartProxy = Callable[..., Proxy]


def stop_all(processes: Iterable[Process]) -> None:
    """Stop each of them, also when one of them fails to end well.

    :raises AssertionError: the first such failure.
    """
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.stop)


def to_toml(tables: Mapping[str, Any], above: str = "") -> str:
    """Write nested tables of strings, numbers, booleans and lists as TOML; a table in a list is written inline."""
    text = "".join(f"{key} = {_literal(value)}\n" for key, value in tables.items() if not isinstance(value, Mapping))
    for key, value in tables.items():
        if isinstance(value, Mapping):
            text += f"\n[{above}{key}]\n" + to_toml(value, f"{above}{key}.")
    return text


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    # JSON's literals for the rest are TOML's as well.
    return json.dumps(value)


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _overlaid(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    # A rename brings another inode, even within one tick of the clock.
    return found.st_ino, found.st_mtime_ns
