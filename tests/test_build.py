"""Which build runs is known, and one of which only a part is compiled is told apart from both."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from flowstack import build

ROOT = Path(__file__).parent.parent


def build_with(folder: Path, compiled: int) -> str:
    """The build of an installation that has so many compiled modules."""
    shutil.copy(build.__file__, folder)
    for module in build.COMPILED[:compiled]:
        path = folder / (module + EXTENSION_SUFFIXES[0])
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return str(runpy.run_path(str(folder / "build.py"))["BUILD"])


ALL = len(build.COMPILED)


@pytest.mark.parametrize(("compiled", "expected"), [(0, "pure"), (1, "broken"), (ALL - 1, "broken"), (ALL, "compiled")])
def test_a_build_is_pure_or_compiled_as_a_whole_or_broken(tmp_path: Path, compiled: int, expected: str) -> None:
    assert build_with(tmp_path, compiled) == expected


def test_a_compiled_module_that_belongs_to_another_build_is_found(tmp_path: Path) -> None:
    (tmp_path / f"more{EXTENSION_SUFFIXES[0]}").touch()
    assert build_with(tmp_path, ALL) == "broken"


def test_these_tests_run_on_the_build_that_was_asked_for() -> None:
    assert os.environ.get("FLOWSTACK_BUILD", build.BUILD) == build.BUILD


def test_every_module_that_is_to_be_compiled_is_there() -> None:
    assert [name for name in build.COMPILED if not (ROOT / "flowstack" / f"{name}.py").is_file()] == []


def test_a_broken_build_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    package = tmp_path / "flowstack"
    package.mkdir()
    for name in ("__init__.py", "tap.py"):
        shutil.copy(Path(build.__file__).with_name(name), package)
    build_with(package, 1)
    done = subprocess.run(
        [sys.executable, "-c", "import flowstack.tap"], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, build.BROKEN + "\n")
