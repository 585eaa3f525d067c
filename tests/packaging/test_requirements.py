"""What is imported is declared in ``setup.py`` and pinned in the constraints: nothing is there by somebody's grace."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.installed import ROOT

OURS = {"flowstack", "tests", "bench", "scripts"}
SDKS = ROOT / "tests/e2e/sdks"
"""Programs that run in environments of their own, each with its own pins."""

OTHERWISE_NAMED = {"agents": "openai-agents", "pipecat": "pipecat-ai"}
"""The distributions that bring these modules for the SDKs' programs, where the module's name does not tell."""

OPTIONAL = ("postgres", "redis")
"""The extras that some settings of the service need."""

FOR_POSTGRES = frozenset(
    {"ledger.folding", "ledger.migrate", "ledger.postgres", "ledger.shipping", "process.shipper"}
)
"""The modules that are imported where ``[shared] postgres`` is set alone, and import psycopg at once."""

STANDIN = ROOT / "flowstack/testing"
"""What the service does without."""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Requirement]]:
    """The requirements by extra, and by distribution; ``""`` is what an installed Flowstack brings."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return {extra: by_name(lines) for extra, lines in {"": said["install_requires"], **said["extras_require"]}.items()}


def by_name(lines: Iterable[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith(("#", "-"))]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        skipped = {SDKS, STANDIN} - {ROOT / folder}
        yield from (path for path in (ROOT / folder).rglob("*.py") if skipped.isdisjoint(path.parents))


def imported(paths: Iterable[Path], late: bool = True) -> dict[str, str]:
    """The modules of others that are imported in these files, and where each is.

    :param late: also in functions.
    """
    found: dict[str, str] = {}
    for path in paths:
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree) if late else tree.body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                if name.partition(".")[0] not in OURS | sys.stdlib_module_names:
                    found.setdefault(name, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


@pytest.fixture(scope="module")
def owners() -> dict[str, str]:
    """Each module that is installed here, and the distribution that brought it."""
    return {
        ".".join((*file.parts[:-1], file.name.partition(".")[0])).removesuffix(".__init__"): canonicalize_name(
            found.metadata["Name"]
        )
        for found in distributions()
        for file in found.files or ()
        if file.suffix in {".py", ".so"}
    }


def owner(module: str, owners: dict[str, str]) -> str:
    """The distribution of a module; some make modules as they are imported, below those that they bring as files."""
    parts = module.split(".")
    found = (owners.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    name = next(filter(None, found), None)
    assert name, f"{module} is imported but not installed here"
    return name


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("flowstack", "twisted"), ("", *OPTIONAL)),
        (("flowstack/testing",), ("", "standin")),
        (("bench",), ("", "test")),
        (("scripts",), ("", "test")),
        (("tests",), ("", "test")),
        (("docs",), ("", "docs")),
    ],
)
def test_every_module_that_is_imported_comes_with_a_declared_distribution(
    declared: dict[str, dict[str, Requirement]],
    owners: dict[str, str],
    folders: tuple[str, ...],
    extras: tuple[str, ...],
) -> None:
    names = {name for extra in extras for name in declared[extra]}
    found = {module: (owner(module, owners), place) for module, place in imported(sources(*folders)).items()}
    undeclared = {name: f"{place} imports {module}" for module, (name, place) in found.items() if name not in names}
    assert undeclared == {}, "setup.py declares none of these where it is needed"


def test_what_only_some_settings_need_is_imported_where_it_is_used(
    declared: dict[str, dict[str, Requirement]], owners: dict[str, str]
) -> None:
    later = {ROOT / "flowstack" / f"{name.replace('.', '/')}.py" for name in FOR_POSTGRES}
    assert all(path.exists() for path in later)
    at_once = imported((path for path in sources("flowstack", "twisted") if path not in later), late=False)
    assert {name for module in at_once if (name := owner(module, owners)) not in declared[""]} == set()


def test_what_runs_without_a_postgresql_imports_nothing_that_needs_one() -> None:
    names = [".".join(path.relative_to(ROOT / "flowstack").with_suffix("").parts) for path in sources("flowstack")]
    wanted = sorted(f"flowstack.{name.removesuffix('.__init__')}" for name in {*names} - FOR_POSTGRES - {"__init__"})
    program = f"import importlib, sys; sys.modules['psycopg'] = None; [*map(importlib.import_module, {wanted})]"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_declared_distribution_is_pinned_within_its_bounds(declared: dict[str, dict[str, Requirement]]) -> None:
    pins = by_name((ROOT / "requirements/constraints.txt").read_text("utf-8").splitlines())
    for requirements in declared.values():
        for name, requirement in requirements.items():
            assert name in pins, f"run: make constraints; {name} is not in requirements/constraints.txt"
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{requirement} and {pins[name]}"


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in SDKS.glob("python-*/*.py")}))
def test_every_module_that_an_sdks_program_imports_is_pinned_for_its_environment(folder: str) -> None:
    pins = by_name((SDKS / folder / "requirements.txt").read_text("utf-8").splitlines())
    assert [pin for pin in pins.values() if not re.fullmatch(r"==[^*,]+", str(pin.specifier))] == []
    modules = imported((SDKS / folder).glob("*.py"))
    modules.pop("harness", None)
    assert modules
    for module, place in modules.items():
        parts = module.split(".")
        names = {canonicalize_name("-".join(parts[:length])) for length in range(1, len(parts) + 1)}
        names.add(OTHERWISE_NAMED.get(parts[0], parts[0]))
        assert names & pins.keys(), f"{place}: {module} is of none of {', '.join(pins)}"
