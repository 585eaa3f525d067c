"""docs/explanation/security.rst names only tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/explanation/security.rst"

_LITERALS = re.compile(r"``(tests/[\w/]+\.py)?(?:::(\w+))?``").finditer


def named(page: str) -> Iterator[tuple[str, str]]:
    """Each file that a page names, alone or with a test in it; ``::test`` belongs to the file that was named last."""
    file = ""
    for found in _LITERALS(page):
        file = found[1] or file
        if found[0] != "````":
            yield file, found[2] or ""


def missing(page: str, root: Path = ROOT) -> list[str]:
    """What a page names that is not there."""

    @cache
    def functions(file: str) -> frozenset[str] | None:
        if not (root / file).is_file():
            return None
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        return frozenset(node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return [
        f"{file}::{test}" if test else file
        for file, test in named(page)
        if (known := functions(file)) is None or (test and test not in known)
    ]


def test_each_test_that_the_page_names_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert missing(page) == []
    assert sum(bool(test) for _, test in named(page)) > 100, "the page names its tests in another way"


@pytest.mark.parametrize(
    ("page", "gone"),
    [
        ("``tests/test_a.py``", []),
        ("``tests/test_a.py::test_one``, ``::test_two``", []),
        ("``tests/test_a.py::test_one`` ``::test_three``", ["tests/test_a.py::test_three"]),
        ("``tests/test_a.py::test_on``", ["tests/test_a.py::test_on"]),
        ("``tests/test_b.py``", ["tests/test_b.py"]),
        ("``tests/test_b.py::test_one``", ["tests/test_b.py::test_one"]),
        ("``::test_one`` before any file", ["::test_one"]),
    ],
)
def test_a_test_that_was_renamed_is_missed(page: str, gone: list[str], tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one(): ...\nasync def test_two(): ...\n")
    assert missing(page, tmp_path) == gone
