"""Imports follow ``.importlinter``; rules ask no clock and open no file; only where a process begins is a reactor."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = ROOT / ".importlinter"

PROCESS_BEGINS = ("flowstack/tap.py", "flowstack/process/worker.py", "flowstack/cli/", "flowstack/testing/")
IMPURE_CALLS = {"open", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def contract(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(CONTRACTS)
    return parser[f"importlinter:contract:{name}"]


def pure() -> Iterator[Path]:
    """The files of the modules of which the contract says that they are pure."""
    for module in contract("pure")["source_modules"].split():
        place = ROOT / module.replace(".", "/")
        yield from place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]


def impure_calls(source: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [name for call in calls if (name := ".".join(ast.unparse(call.func).split(".")[-2:])) in IMPURE_CALLS]


def reactors(source: str) -> list[bool]:
    """For each import of the reactor whether it stands in a function, where it installs none at import."""
    tree = ast.parse(source)
    inside = {id(one) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for one in ast.walk(node)}
    return [
        id(node) in inside
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and node.module == "twisted.internet" and "reactor" in
            [alias.name for alias in node.names])
        or (isinstance(node, ast.ImportFrom) and node.module == "twisted.internet.reactor")
        or (isinstance(node, ast.Import) and "twisted.internet.reactor" in [alias.name for alias in node.names])
    ]  # fmt: skip


def kept(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", str(CONTRACTS)]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("http/sse.py", "from flowstack.relay import exchange", "flowstack.http is not allowed to import flows"),
        ("relay/row.py", "def f():\n    import flowstack.admin.health", "flowstack.relay is not allowed to import"),
        ("usage/meters.py", "import time", "flowstack.usage is not allowed to import time"),
        ("keys/permits.py", "from os import path", "flowstack.keys.permits is not allowed to import os"),
        ("limits/windows.py", "from twisted.internet import task", "flowstack.limits.windows is not allowed to import"),
        ("ledger/files.py", "import flowstack.ledger.journal", "No circle inside a room either BROKEN"),
        ("attic/__init__.py", "import re", "flowstack.attic"),
        (None, "", ""),
    ],
)
def test_what_the_contracts_forbid_is_found(file: str | None, line: str, says: str, tmp_path: Path) -> None:
    for path in (ROOT / "flowstack").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    if file is not None:
        changed = tmp_path / "flowstack" / file
        changed.parent.mkdir(exist_ok=True)
        changed.write_text((changed.read_text("utf-8") if changed.exists() else "") + f"\n{line}\n", "utf-8")
    done = kept(tmp_path)
    assert (done.returncode != 0) is (file is not None), done.stdout
    assert says in done.stdout


def test_a_pure_module_asks_no_clock_and_opens_no_file() -> None:
    files = list(pure())
    assert len(files) > 40
    assert {str(path): impure_calls(path.read_text("utf-8")) for path in files} == {str(path): [] for path in files}
    assert impure_calls("import datetime\nopen('a'), datetime.datetime.now()") == ["open", "datetime.now"]


def test_the_reactor_is_imported_in_functions_where_a_process_begins() -> None:
    for path in (ROOT / "flowstack").rglob("*.py"):
        found = reactors(path.read_text("utf-8"))
        assert all(found), path
        assert not found or str(path.relative_to(ROOT)).startswith(PROCESS_BEGINS), path
    two = "from twisted.internet import reactor\ndef f():\n    import twisted.internet.reactor"
    assert reactors(two) == [False, True]
