"""``python -m tests.differential PURE COMPILED``: drive the same odd exchanges through two builds, and compare.

PURE and COMPILED are folders with ``flowstack`` and ``tests`` in them; see ``make test BUILD=compiled``.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.differential.exchanges import TOGETHER

EXCHANGES = 20_000
COMMAND = (sys.executable, "-m", "tests.differential.exchanges")


def _start(folder: str, first: int, count: int, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": folder, "PYTHONHASHSEED": "0"}
    words = [*COMMAND, str(first), str(count), *more]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _build(folder: str) -> str:
    words = [sys.executable, "-c", "from flowstack.build import BUILD; print(BUILD)"]
    return subprocess.run(words, cwd=folder, env=os.environ | {"PYTHONPATH": folder}, stdout=subprocess.PIPE, text=True,
                          check=True).stdout.strip()  # fmt: skip


def _seen(folders: list[str], first: int, count: int, *more: str) -> list[list[str]]:
    """What each of them did, an exchange a line."""
    running = [_start(folder, first, count, *more) for folder in folders]
    lines = [process.communicate()[0].splitlines() for process in running]
    if any(process.returncode for process in running) or {len(found) for found in lines} != {count}:
        sys.exit(f"{folders} gave {[len(found) for found in lines]} of {count} exchanges.")
    return lines


def main() -> None:
    """See the module."""
    folders = sys.argv[1:3]
    if [_build(folder) for folder in folders] != ["pure", "compiled"]:
        sys.exit(f"{folders} are the builds {[_build(folder) for folder in folders]}, expected pure and compiled.")
    pure, compiled = _seen(folders, 0, EXCHANGES)
    differing = [number for number, pair in enumerate(zip(pure, compiled, strict=True)) if pair[0] != pair[1]]
    if not differing:
        print(f"{EXCHANGES} exchanges were the same in both builds, to the byte.")
        return
    start = differing[0] - differing[0] % TOGETHER
    shown = [lines[differing[0] - start] for lines in _seen(folders, start, TOGETHER, "--show")]
    sys.exit(f"{len(differing)} of {EXCHANGES} exchanges differ. Of number {differing[0]}:\n\n" + "\n\n".join(shown))


if __name__ == "__main__":
    main()
