"""Small Go programs for tests: what a server or a parser in Go makes of the bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "go"
LIMIT = 300
"""Seconds that compiling may take; the first program compiles the standard library too."""


@cache
def built(source: Path) -> Path:
    """The program of one source file, compiled where it has changed since, without a module and without a network."""
    version = subprocess.run(["go", "version"], check=True, capture_output=True).stdout
    program = CACHE / f"{source.stem}-{hashlib.sha256(version + source.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _compile(source, program)
    return program


def _compile(source: Path, program: Path) -> None:
    fresh = program.with_suffix(".new")
    environment = {
        "PATH": os.environ["PATH"],
        "GOPATH": str(CACHE / "path"),
        "GOCACHE": str(CACHE / "build"),
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    command = ["go", "build", "-o", str(fresh), str(source.resolve())]
    done = subprocess.run(command, env=environment, cwd=CACHE, timeout=LIMIT, text=True, capture_output=True)
    assert done.returncode == 0, f"{source.name} does not compile:\n{done.stderr}"
    fresh.rename(program)
