"""``python -m bench.instructions``: count, print, and compare with what was kept.

callgrind counts what the processor would execute, so that the figures are the same on a busy machine (to 0.1 %; the
kernel's share is not in them). They hold for one build of Python: what is kept says for which.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click

from bench.instructions.drive import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "bench" / "results" / "instructions.json"

FEW, MANY = 20, 220
"""The difference of two runs: what stands around the work is the same in both."""

_collected = re.compile(r"Collected : (\d+)").search


def _run(kind: str, count: int) -> int:
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null", sys.executable,
               "-m", "bench.instructions.drive", kind, str(count)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = _collected(done.stderr)
    if done.returncode or found is None:
        sys.exit(f"{kind!r} could not be counted, exit status {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[1])


def count(kind: str) -> int:
    """Instructions of one of them."""
    return (_run(kind, MANY) - _run(kind, FEW)) // (MANY - FEW)


def build() -> str:
    """The Python that the figures hold for."""
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, " + " ".join(
        platform.python_build()
    )


@click.command()
@click.option("--keep", is_flag=True, help=f"Write the figures to {KEPT.relative_to(ROOT)}.")
@click.option("--most", type=float, metavar="PERCENT", help="Fail where one grew by more than that.")
def main(keep: bool, most: float | None) -> None:
    """Count the instructions of a request and of an SSE chunk, with all limits and without any."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind was not found. Install Debian's package valgrind.")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    before = kept.get("instructions", {}) if kept.get("python") == build() else {}
    found, grown = {}, False
    for kind in KINDS:
        found[kind] = count(kind)
        line = f"{kind:20}{found[kind]:>10,}"
        if kind in before:
            change = 100 * (found[kind] / before[kind] - 1)
            grown |= most is not None and change > most
            line += f"   kept {before[kind]:>10,}   {change:+.2f} %"
        click.echo(line)
    if not before:
        click.echo(f"Nothing was kept for this Python ({build()}).")
    if keep:
        KEPT.write_text(json.dumps({"python": build(), "instructions": found}, indent=2) + "\n")
    if grown:
        sys.exit(f"More than {most:g} % more instructions than what is kept in {KEPT.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
