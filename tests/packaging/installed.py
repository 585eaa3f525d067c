"""Flowstack as an operator installs it: in a virtual environment of its own, away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from tests.rights import NOBODY

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0
"""Seconds that a condition may take to come true on a busy machine."""
LISTENING = re.compile(r"flowstack listening on (http://127\.0\.0\.1:\d+)")
ANY_PORT = "tcp:0:interface=127.0.0.1"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
"""The environment without what would lead back to the checkout."""

T = TypeVar("T")


def eventually(probe: Callable[[], T | None], what: str) -> T:
    """Call ``probe`` until it gives something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := probe()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.02)
    return found


def run(command: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, away from the checkout unless told otherwise; fail with its output."""
    words = [str(word) for word in command]
    options: dict[str, Any] = {"cwd": "/", "env": CLEAN, "timeout": 300, "text": True, "check": False, **more}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{' '.join(words)}: status {done.returncode}\n{done.stdout}"
    return done


def copy_source(folder: Path) -> Path:
    """Copy what a distribution is built from, and nothing that lies beside it in a checkout."""
    leave = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")
    for name in ("flowstack", "twisted", "etc"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("setup.py", "MANIFEST.in", "README.rst", "CHANGELOG.rst"):
        shutil.copy(ROOT / name, folder)
    return folder


def usable_by(python: str, user: int | None) -> bool:
    """Tell whether an interpreter, new enough, runs for a user."""
    check = [python, "-c", "import sys, venv; sys.exit(sys.version_info < (3, 11))"]
    rights: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    try:
        return subprocess.run(check, cwd="/", check=False, capture_output=True, **rights).returncode == 0
    except OSError:
        return False


def interpreter() -> str | None:
    """Return an interpreter that an unprivileged user can run too, as a service has to; None if there is none.

    A Python in somebody's home directory, such as pyenv's below /root, is not.
    """
    nobody = NOBODY if os.geteuid() == 0 else None
    candidates = (str(Path(sys.executable).resolve()), "/usr/local/bin/python3", "/usr/bin/python3")
    return next((python for python in candidates if usable_by(python, nobody)), None)


class Installed:
    """A virtual environment that holds Flowstack.

    :param folder: where it is made.
    :param what: the words for pip: a wheel, or ``--editable`` and a folder.
    :param like: another, whose packages are there before pip is asked for what is missing.
    """

    def __init__(self, folder: Path, *what: str | Path, like: Installed | None = None) -> None:
        self.public = interpreter()
        self.folder = folder
        self.bin = folder / "bin"
        # Without pip: Debian's python3 may lack ensurepip, and the tests' own pip can install into any environment.
        run([self.public or sys.executable, "-m", "venv", "--without-pip", folder])
        if like is not None:
            theirs, ours = like.folder / "lib", folder / "lib"
            shutil.copytree(theirs, ours, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
            twistd = self.bin / "twistd"
            twistd.write_text((like.bin / "twistd").read_text().replace(str(like.folder), str(folder)))
            twistd.chmod(0o755)
        constraints = ("--constraint", ROOT / "requirements/constraints.txt")
        run([sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet", *constraints, *what])

    def assert_usable_by_anybody(self) -> None:
        """Fail where only the runner could run it."""
        assert self.public is not None, (
            "no Python from 3.11 on was found that an unprivileged user can run, as a service has to; "
            "install one as /usr/bin/python3 (Debian: apt-get install python3)"
        )

    def add_key(self, keys: Path) -> str:
        """Make a key by command and return it."""
        command = [self.bin / "flowstack", "keys", "add", "--keys", keys]
        return subprocess.run(command, cwd="/", env=CLEAN, check=True, capture_output=True, text=True).stdout.strip()

    @contextmanager
    def proxy(
        self, folder: Path, *flags: str | Path, before: Sequence[str] = (), fds: Sequence[int] = (), **more: Any
    ) -> Iterator[Proxy]:
        """Run ``twistd -n flowstack`` in a folder, wait until it listens, and end it by SIGTERM.

        :param before: words before ``twistd``.
        :param fds: descriptors that it inherits.
        """
        log = folder / f"proxy-{time.monotonic_ns()}.log"
        command = [*before, self.bin / "twistd", "-n", "--pidfile=", "flowstack", *flags]
        options: dict[str, Any] = {"cwd": folder, "env": CLEAN, **more}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=fds, **options,
            )  # fmt: skip
        proxy = Proxy(process, log)
        try:
            proxy.url = eventually(proxy.find_url, "flowstack says where it listens")
            yield proxy
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, proxy.output()
        finally:
            process.kill()
            process.wait()


class Proxy:
    """A running proxy."""

    url: str

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def output(self) -> str:
        """Return all that it wrote."""
        return self.log.read_text("utf-8", "replace")

    def find_url(self) -> str | None:
        """Look for the line that says where it listens."""
        assert self.process.poll() is None, f"ended with {self.process.returncode}\n{self.output()}"
        found = LISTENING.search(self.output())
        return found[1] if found else None


def ask(url: str, key: str) -> tuple[int, dict[str, Any]]:
    """Send a chat completion through the proxy; return the status and the answer."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps({"model": "gpt-4o-mini", "messages": []}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Bearer sk-provider",
            "Flowstack-Auth": f"Bearer {key}",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"object": "chat.completion", "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def small_upstream() -> Iterator[str]:
    """Serve one JSON answer to every POST; yield the base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unit_settings(path: Path) -> Mapping[str, list[str]]:
    """Read a unit file: each setting's values in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found
