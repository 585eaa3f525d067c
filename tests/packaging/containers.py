"""A container without an engine: the image's files, its user and its entry, in namespaces of their own.

The root is read-only, the entry is the first process of its PID namespace and may gain no right; the network is that
of the tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.packaging.installed import CLEAN, PATIENCE, ROOT, Installed, run

CONTAINER = ROOT / "etc/container"
CONTAINERFILE = (CONTAINER / "Containerfile").read_text("utf-8")
LISTENING = re.compile(r"flowstack listening on http://\S+?:(\d+)")


def instructions(name: str) -> list[str]:
    """What the Containerfile says with this instruction, in order."""
    return re.findall(rf"(?m)^{name} (.+)$", CONTAINERFILE)


def words_of(name: str) -> list[str]:
    """A command of the image, which is written as JSON: no shell reads it."""
    (said,) = instructions(name)
    found = json.loads(said[said.index("[") :])
    assert isinstance(found, list)
    return found


def copied(folder: Path) -> Path:
    """Copy into a folder what the image is built from, and nothing else; return where ``/src`` is there."""
    for said in instructions("COPY"):
        if said.startswith("--from="):
            continue
        *sources, target = shlex.split(said)
        for source in sources:
            goal = folder / target.lstrip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, goal, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
            else:
                goal.mkdir(exist_ok=True, parents=True)
                shutil.copy(ROOT / source, goal)
    return folder / "src"


def with_changes(text: str, changes: Mapping[str, str]) -> str:
    """An offered file with the names of this place; each must be there exactly once."""
    for there, here in changes.items():
        assert text.count(there) == 1, there
        text = text.replace(there, here)
    return text


def secrets_of(text: str) -> list[str]:
    """The files of the secrets' folder that settings name."""
    return re.findall(r'"/run/secrets/flowstack/([\w.]+)"', text)


def with_secrets(text: str, folder: Path) -> str:
    """Settings that name files of this folder in their place, and the files."""
    for name in secrets_of(text):
        (folder / name).write_text("secret")
        (folder / name).chmod(0o440)
    return text.replace("/run/secrets/flowstack/", f"{folder}/")


class Container:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def output(self) -> str:
        """All that it wrote."""
        return self.log.read_text("utf-8", "replace")

    @property
    def first(self) -> int:
        """Its first process, as this machine numbers it."""
        (found,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(found)

    def port(self) -> int | None:
        """Where it listens, once it does."""
        assert self.process.poll() is None, f"ended with {self.process.returncode}\n{self.output()}"
        found = LISTENING.search(self.output())
        return int(found[1]) if found else None

    def signal(self) -> None:
        """Have it end, as an engine does."""
        os.kill(self.first, signal.SIGTERM)


@contextmanager
def contained(
    image: Installed, folder: Path, mounts: Sequence[tuple[Path, str, str]], entry: Sequence[str]
) -> Iterator[Container]:
    """Run a command in the image, and end it by force if it still runs afterwards.

    :param folder: where its root is made, and its log.
    :param mounts: what of this machine is seen where, ``"ro"`` or ``"rw"``.
    :param entry: the command.
    """
    root = folder / "root"
    root.mkdir()
    system = [Path(name) for name in ("/usr", "/bin", "/lib", "/lib64", "/dev") if Path(name).exists()]
    base = Path(run([image.bin / "python", "-c", "import sys; print(sys.base_prefix)"]).stdout.strip())
    if not base.is_relative_to("/usr"):
        system.append(base)
    seen = [(path, str(path), "rw" if str(path) == "/dev" else "ro") for path in (*system, image.folder)]
    (user,) = instructions("USER")
    (working,) = instructions("WORKDIR")
    lines = ["set -eu", f"mount -t tmpfs -o mode=0755 tmpfs {root}", f"mkdir -p {root}/proc {root}{working}"]
    for source, target, mode in (*seen, (image.folder, "/opt/flowstack", "ro"), *mounts):
        goal = f"{root}{target}"
        make = f"mkdir -p {goal}" if source.is_dir() else f"mkdir -p {Path(goal).parent}; : >{goal}"
        lines.append(f"{make}; mount --bind {source} {goal}; mount -o remount,bind,{mode} {goal}")
    variables = [said.replace("$PATH", "/usr/bin:/bin") for said in instructions("ENV")]
    inside = ["env", "-i", f"--chdir={working}", *variables, *entry]
    change = ["setpriv", "--no-new-privs", "chroot", f"--userspec={user}", "--groups=", str(root), *inside]
    lines += [f"mount -t proc proc {root}/proc", f"mount -o remount,ro {root}", f"exec {shlex.join(change)}"]
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    log = folder / "container.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*alone, "sh", "-c", "\n".join(lines)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=CLEAN,
        )  # fmt: skip
    try:
        yield Container(process, log)
    finally:
        process.kill()
        process.wait()


def ask(port: int, request: str, before: bytes = b"") -> tuple[int, str]:
    """Send a request on a connection of its own, perhaps behind a header of a balancer's; its status and answer."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(before + request.encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ", 2)[1]), answer.decode()


def chat(key: str) -> str:
    """A request with a Flowstack key, and that of the provider's that a client has."""
    body = '{"model": "gpt-4o-mini", "messages": []}'
    lines = (
        "POST /v1/chat/completions HTTP/1.1", "Host: llm.example.com", "Connection: close",
        "Content-Type: application/json", f"Content-Length: {len(body)}",
        f"Flowstack-Auth: Bearer {key}", "Authorization: Bearer sk-of-the-client",
    )  # fmt: skip
    return "\r\n".join((*lines, "", body))


def probe(port: int, path: str) -> int:
    """The status of a probe of the kubelet's, which asks by address."""
    return ask(port, f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:9110\r\nConnection: close\r\n\r\n")[0]
