"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from attrs import asdict

from bench.procs import Cores


def describe(cores: Cores) -> dict[str, Any]:
    """The machine and its kernel; nothing that names it.

    :param cores: where the parts of the run are.
    """
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    system = next(
        (line.partition("=")[2].strip('"') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME")),
        platform.system(),
    )
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pinned": asdict(cores),
    }


def others_busy(seconds: float = 0.4) -> float:
    """How many cores others use, the host's own thefts among them, while the bench does nothing for that long."""
    first, began = _busy_ticks(), time.monotonic()
    time.sleep(seconds)
    return (_busy_ticks() - first) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)


def _busy_ticks() -> int:
    # proc(5): user nice system idle iowait irq softirq steal
    fields = [int(word) for word in _lines("/proc/stat")[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


def commit(root: Path) -> str:
    """The working tree's commit, with ``+`` if there are changes; ``none`` if git does not know."""
    try:
        head = _git(root, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
