"""The SDKs' environments are pinned whole, and say what is missing when they cannot be made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT

PINS = Path(__file__).resolve().parent / "sdks"


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "environments.py"), *arguments],
        env=None if path is None else {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("pins", sorted(PINS.glob("*/requirements.txt")), ids=lambda path: path.parent.name)
def test_every_python_package_is_pinned_to_one_version(pins: Path) -> None:
    lines = pins.read_text("utf-8").splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


@pytest.mark.parametrize("lock", sorted(PINS.glob("*/package-lock.json")), ids=lambda path: path.parent.name)
def test_every_node_package_is_pinned_by_its_hash_and_to_no_registry(lock: Path) -> None:
    packages = {name: package for name, package in json.loads(lock.read_text("utf-8"))["packages"].items() if name}
    assert packages
    assert all(package["version"] and package["integrity"] for package in packages.values())
    assert not any("resolved" in package for package in packages.values())


def test_the_tools_that_are_missing_are_named_all_at_once(tmp_path: Path) -> None:
    done = run(path=str(tmp_path))
    assert done.returncode == 1
    assert all(f"{tool} (" in done.stderr for tool in ("curl", "node", "npm"))
    assert "Traceback" not in done.stderr


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    done = run("python-openai-9")
    assert done.returncode == 1
    assert "no such environment; there are langchain, " in done.stderr
