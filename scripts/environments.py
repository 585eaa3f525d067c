#!/usr/bin/env python3
"""Install the SDKs and parsers that the end-to-end tests run, in environments of their own, every version pinned.

An environment is a folder below ``tests/e2e/sdks`` that holds its pins: ``requirements.txt`` (a venv) or
``package-lock.json`` (``node_modules``). It is installed into ``.envs/<name>-<hash of its pins>``, so that changed
pins make a new one and a second call costs nothing. Two calls may run at once: the second waits for the first.

    python scripts/environments.py                  # all of them
    python scripts/environments.py python-openai    # one; prints where it is

Exit status 1, with what is missing and what to do, when an environment cannot be made.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tests" / "e2e" / "sdks"
CACHE = ROOT / ".envs"
LIMIT = 900
"""Seconds that one installing command may take."""


class CannotInstall(Exception):
    """Says what is missing or went wrong, and what to do."""


def names() -> list[str]:
    """Return the environments that there are, by the pins that define them."""
    return sorted(
        path.parent.name for pattern in ("requirements.txt", "package-lock.json") for path in PINS.glob(f"*/{pattern}")
    )


def ensure(name: str) -> Path:
    """Return the folder of an environment, installed.

    :raises CannotInstall: when there are no such pins, a tool is missing, or the installer fails.
    """
    pins = PINS / name
    if name not in names():
        raise CannotInstall(f"{name}: no such environment; there are {', '.join(names())}")
    python = (pins / "requirements.txt").is_file()
    folder = CACHE / f"{name}-{_fingerprint(pins, python)}"
    done = folder / ".installed"
    with _locked(name):
        if done.is_file():
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (_install_python if python else _install_node)(pins, folder)
        done.touch()
    return folder


def check_tools() -> None:
    """Look for the programs that the end-to-end tests need.

    :raises CannotInstall: naming all that are missing.
    """
    missing = [f"{tool} ({hint})" for tool, hint in _TOOLS.items() if shutil.which(tool) is None]
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("ensurepip, which python -m venv needs (Debian: apt install python3-venv)")
    if missing:
        raise CannotInstall("missing: " + "; ".join(missing))


_TOOLS = {
    "curl": "Debian: apt install curl",
    "node": "20 or newer; Debian: apt install nodejs",
    "npm": "comes with Node; Debian: apt install npm",
}


def _fingerprint(pins: Path, python: bool) -> str:
    digest = hashlib.sha256()
    for file in ("requirements.txt",) if python else ("package.json", "package-lock.json"):
        digest.update((pins / file).read_bytes())
    if python:
        # A venv is tied to the interpreter that made it.
        digest.update(f"{sys.base_prefix} {sys.version}".encode())
    return digest.hexdigest()[:12]


def _install_python(pins: Path, folder: Path) -> None:
    python = str(folder / "bin" / "python")
    _run([sys.executable, "-m", "venv", str(folder)], folder)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    # Without dependencies nothing that is not pinned can come in; the check then says whether a pin is missing.
    _run([*pip, "install", "--no-deps", "--requirement", str(pins / "requirements.txt")], folder)
    _run([*pip, "check"], folder)


def _install_node(pins: Path, folder: Path) -> None:
    for file in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(pins / file, folder)
    _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, timeout=LIMIT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stdout.splitlines()[-15:])
        raise CannotInstall(f"{folder.name}: `{' '.join(command)}` ended with {error.returncode}:\n{tail}") from None
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{folder.name}: `{' '.join(command)}` took more than {LIMIT} seconds") from None


@contextmanager
def _locked(name: str) -> Iterator[None]:
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install what the arguments name, or everything; print ``name folder`` for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names())}; default: all")
    wanted = parser.parse_args().names or names()
    try:
        check_tools()
        # Two at once: one downloads while the other unpacks.
        with ThreadPoolExecutor(max_workers=2) as pool:
            for name, folder in zip(wanted, pool.map(ensure, wanted), strict=True):
                print(name, folder, flush=True)
    except CannotInstall as error:
        print(f"environments: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
