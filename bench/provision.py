"""Fetches what the bench needs and the machine lacks: Debian packages, a Python environment, an npm package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from bench.procs import BenchError

INSTALL = Path(__file__).resolve().parent.parent / "scripts/system-packages.sh"


def say(text: str) -> None:
    """Tell a person what takes time, on standard error."""
    print(text, file=sys.stderr, flush=True)


def debian(program: str, package: str) -> str:
    """The path of ``program``, from its Debian package if it is missing."""
    path = "/usr/sbin:" + os.environ.get("PATH", "/usr/bin")
    if found := shutil.which(program, path=path):
        return found
    say(f"bench: installing the Debian package {package}")
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    _run(
        [*as_root, str(INSTALL), f"{program}={package}"],
        f"install the Debian package {package} by hand: apt-get install {package}",
    )
    if found := shutil.which(program, path=path):
        return found
    raise BenchError(f"{program} is still missing after installing {package}")


def python(directory: Path, requirement: str, program: str) -> Path:
    """The path of ``program`` in an environment of its own that holds ``requirement``."""
    path = directory / "bin" / program
    if not path.exists():
        say(f"bench: installing {requirement} into {directory}")
        venv.create(directory, with_pip=True)
        hint = f"install {requirement} into {directory} by hand with pip"
        _run([str(directory / "bin" / "pip"), "install", "-q", requirement], hint)
    return path


def build(directory: Path, source: Path, environment: dict[str, str]) -> None:
    """Install a source tree into an environment of its own, with the versions that its constraints name.

    :param environment: variables that its build reads.
    """
    venv.create(directory, with_pip=True)
    hint = f"see what pip install {source} says with {' '.join(map('='.join, environment.items()))}"
    with tempfile.TemporaryDirectory() as copy:  # what a build leaves behind may get into the next one
        listed = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, text=True).split("\0")[:-1]:
            if (source / name).is_file():
                Path(copy, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, Path(copy, name))
        pip = [str(directory / "bin" / "pip"), "install", "-q", "-c", str(source / "requirements/constraints.txt")]
        _run([*pip, copy], hint, environment)


def npm(directory: Path, package: str, script: str) -> Path:
    """The path of ``script`` of an npm package in a directory of its own."""
    path = directory / "node_modules" / package / script
    if not path.exists():
        node = debian("npm", "npm")
        say(f"bench: installing {package} into {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        hint = f"install {package} into {directory} by hand with npm"
        _run([node, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(directory), package], hint)
    return path


def first_line(argv: Sequence[str | Path]) -> str:
    """The first line that a command prints, on either output; for versions."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def _run(argv: list[str], hint: str, environment: dict[str, str] | None = None) -> None:
    variables = os.environ | (environment or {})
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=900, check=False, env=variables)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise BenchError(f"{' '.join(argv)}: {fault}; {hint}") from None
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()[-300:]}; {hint}")
