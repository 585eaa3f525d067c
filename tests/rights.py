"""Tests that need a second user. As root they run, all of them: another user is a right and no program to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = 65534
"""The user and group that own nothing: ``nobody`` and ``nogroup`` on Debian."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away and become another user")

_PROGRAM = """
import os, sys
from pathlib import Path
{imports}
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
path = Path(sys.argv[1])
{body}
"""


def told_as_nobody(imports: str, body: str, path: Path) -> str:
    """Run Python as a user without rights, with ``path`` given; return what it printed. Root's alone.

    :param imports: done before, as the interpreter may lie where only root can read.
    """
    program = _PROGRAM.format(imports=textwrap.dedent(imports), body=textwrap.dedent(body), nobody=NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own temporary folders are the runner's alone."""
    folder = Path(tempfile.mkdtemp(prefix="flowstack-public-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
