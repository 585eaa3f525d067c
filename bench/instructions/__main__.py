"""``python -m bench.instructions``: count, compare with what was kept, and say whether it is within the budget.

callgrind counts what the processor would execute, so that the figures are the same on a busy machine (to 0.1 %; the
kernel's share is not in them) and on any processor of that kind. Another build of Python takes other counts for the
same code: some plain Python is counted in the same run, and what is kept is held against in proportion to it. That is
right to within 7 % for another build of the same version (3.11), and for no other version. Each build of Flowstack, the
pure and the compiled one, has figures of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench.instructions.drive import FEW, KINDS, MANY, PLAIN
from flowstack.build import BUILD

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "bench" / "results" / "instructions.json"

MORE, MORE_ELSEWHERE = 3.0, 10.0
"""Percent by which each may grow; on another build of Python, where the proportion is right to within 7 %."""

_total = re.compile(r"^totals: (\d+)", re.MULTILINE).search


def count() -> dict[str, int]:
    """Instructions of each kind."""
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out",
                   sys.executable, "-m", "bench.instructions.drive"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        dumps = [Path(folder, f"out.{number}") for number in range(1, 3 * len(KINDS) + 1)]
        if done.returncode or not all(dump.exists() for dump in dumps):
            sys.exit(f"Nothing could be counted, exit status {done.returncode}:\n{done.stderr[-2000:]}")
        totals = [int(found[1]) if (found := _total(dump.read_text())) else 0 for dump in dumps]
    return {kind: (totals[3 * at + 2] - totals[3 * at + 1]) // (MANY - FEW) for at, kind in enumerate(KINDS)}


def python() -> str:
    """The Python that the figures hold for."""
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, " + " ".join(
        platform.python_build()
    )


@click.command()
@click.option("--keep", is_flag=True, help=f"Write the figures to {KEPT.relative_to(ROOT)}, as the new budget.")
def main(keep: bool) -> None:
    """Count the instructions of a request and of an SSE chunk, with all limits and without any.

    Fails where one has grown by more than 3 % of what is kept.
    """
    if shutil.which("valgrind") is None:
        sys.exit("valgrind was not found. Install Debian's package valgrind.")
    found = count()
    builds = json.loads(KEPT.read_text())
    if keep:
        builds[BUILD] = {"python": python(), "instructions": found}
        KEPT.write_text(json.dumps(builds, indent=2) + "\n")
    kept = builds[BUILD]
    budget, same = kept["instructions"], kept["python"] == python()
    if kept["python"].split(".")[:2] != python().split(".")[:2]:
        sys.exit(
            f"FAILED: what is kept is for {kept['python']}, this is {python()}; counts of another version cannot be "
            f"compared. Use that version, or keep this one's: make instructions BUILD={BUILD} ARGS=--keep"
        )
    scale, more = (1.0, MORE) if same else (found[PLAIN] / budget[PLAIN], MORE_ELSEWHERE)
    grown = []
    for kind, now in found.items():
        change = 100 * (now / (budget[kind] * scale) - 1)
        if change > more and kind != PLAIN:
            grown.append(kind)
        click.echo(f"{kind:20}{now:>10,}   kept {budget[kind] * scale:>10,.0f}   {change:+.2f} %")
    if not same:
        click.echo(f"Kept for {kept['python']}; this is {python()}: in proportion to {PLAIN}.")
    if grown:
        sys.exit(
            f"FAILED: over the budget by more than {more:g} %: {', '.join(grown)}. Take back what made it grow, or say "
            f"in the commit why it is worth it, and keep the new figures: make instructions BUILD={BUILD} ARGS=--keep"
        )
    click.echo(f"OK: the {BUILD} build is within {more:g} % of {KEPT.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
