"""Imports point downward, and never in a circle; policy is pure; nobody imports the reactor.

The rules are docs/explanation/architecture.rst's. They are read from the source with ``ast``, so an import counts
wherever it stands: in a function and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parent.parent

LEVELS = (
    ("config", "errors", "files", "memo", "notation", "util"),
    ("policy",),
    ("interfaces",),
    ("keystore", "limits", "ledger", "metrics", "wire"),
    ("testing",),
    ("admin", "cli", "relay"),
    ("process",),
    ("tap",),
)
"""From the bottom up. A room may import from any level below its own."""

LEVEL = {room: number for number, level in enumerate(LEVELS) for room in level}
MEET_FREELY = 0
"""The bottom level's modules may import each other: they are vocabulary, not rooms."""

ONLY_USERS = {
    "testing": {"cli"},
    "cli": set[str](),
    "process": {"tap"},
    "tap": set[str](),
}
"""Who, beside the room itself, may import a room that is not for everybody above it."""

IMPURE = (
    "asyncio", "os", "random", "secrets", "select", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "treq", "twisted.application", "twisted.internet", "uvloop",
)  # fmt: skip
"""What policy may not import: reactor, clock, randomness, files, sockets."""

IMPURE_CALLS = {"open", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}

REACTOR_IN_A_FUNCTION = {"tap", "process", "cli", "testing"}
"""Where a process begins; everybody else is handed the reactor."""


@frozen
class Import:
    """One imported name, and where it stands."""

    name: str
    line: int
    nested: bool


def modules_of(tree: Mapping[str, str]) -> dict[str, ast.Module]:
    """Parse ``{"flowstack/a/b.py": source}`` into ``{"flowstack.a.b": module}``."""
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): ast.parse(source, path)
        for path, source in tree.items()
    }


def imports_of(name: str, is_package: bool, module: ast.Module) -> Iterator[Import]:
    """Yield everything that a module imports, relative imports resolved, ``from a import b`` as ``a.b``."""
    at_top = set(map(id, top_level(module)))
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) not in at_top)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            keep = len(parts) - node.level + is_package
            base = ".".join([*parts[:keep], *filter(None, [node.module])]) if node.level else node.module or ""
            for alias in node.names:
                yield Import(base if alias.name == "*" else f"{base}.{alias.name}", node.lineno, id(node) not in at_top)


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when the module is imported: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from top_level(child)


def within(name: str, package: str) -> bool:
    """Tell whether a dotted name is the package or something in it."""
    return name == package or name.startswith(package + ".")


def room_of(name: str) -> str | None:
    """Return the room of a flowstack module; None for ``flowstack`` itself and for others' modules.

    A ``__main__`` is a command, wherever it lies: nobody imports it.
    """
    parts = name.split(".")
    if parts[0] == "flowstack" and parts[-1] == "__main__":
        return "cli"
    return parts[1] if parts[0] == "flowstack" and len(parts) > 1 else None


def arrow_fault(source: str, target: str) -> str | None:
    """Say what is wrong with one room importing another, or None."""
    for room in (source, target):
        if room not in LEVEL:
            return f"{room} is a room without a level: give it one in LEVELS"
    if source == target:
        return None
    if LEVEL[source] < LEVEL[target]:
        return f"{source} imports {target}, which stands above it"
    if LEVEL[source] == LEVEL[target] != MEET_FREELY:
        return f"{source} imports its sibling {target}: rooms meet at interfaces.py, and process builds"
    if source not in ONLY_USERS.get(target, {source}):
        return f"{source} imports {target}, which is not for it"
    return None


def called(node: ast.AST) -> str:
    """Return what a call names, as far as its last two parts: ``open``, ``datetime.now``; else an empty string."""
    if not isinstance(node, ast.Call):
        return ""
    return ".".join(ast.unparse(node.func).split(".")[-2:])


def faults(tree: Mapping[str, str]) -> list[str]:
    """Check a whole source tree; one line for each fault, with its file and line."""
    modules = modules_of(tree)
    paths = dict(zip(modules, tree, strict=True))
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        path = paths[name]
        room = room_of(name)
        graph[name] = set()
        for imported in imports_of(name, path.endswith("/__init__.py"), module):
            target = imported.name
            while within(target, "flowstack") and target not in modules and "." in target:
                target = target.rpartition(".")[0]
            if target in modules and target != name:
                graph[name].add(target)
            where = f"{path}:{imported.line}"
            target_room = room_of(imported.name)
            if target_room and target == "flowstack":
                target_room = None  # a name of flowstack/__init__.py, such as __version__
            if room and target_room and (fault := arrow_fault(room, target_room)):
                found.append(f"{where}: {fault}")
            if room is None and target_room:
                found.append(f"{where}: flowstack/__init__.py imports {target_room}; it stands below every room")
            if within(imported.name, "twisted.internet.reactor"):
                if room not in REACTOR_IN_A_FUNCTION:
                    found.append(f"{where}: imports the reactor; take it as an argument")
                elif not imported.nested:
                    found.append(f"{where}: imports the reactor at module level, which installs one")
            if room == "policy" and any(within(imported.name, impure) for impure in IMPURE):
                found.append(f"{where}: policy imports {imported.name}; it is pure: hand the value in")
        if room == "policy":
            found += [
                f"{path}:{node.lineno}: policy calls {called(node)}; it is pure: hand the value in"
                for node in ast.walk(module)
                if isinstance(node, ast.Call) and called(node) in IMPURE_CALLS
            ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle of imports: " + " → ".join(reversed(error.args[1])))
    return found


def test_the_package_s_imports_point_downward_and_make_no_circle() -> None:
    tree = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted((ROOT / "flowstack").rglob("*.py"))}
    assert len(tree) > 10
    assert faults(tree) == []


def test_a_sound_tree_has_no_faults() -> None:
    assert (
        faults(
            {
                "flowstack/__init__.py": "import re\n__version__ = '1'",
                "flowstack/config.py": "from flowstack import __version__\nfrom flowstack.errors import Fault",
                "flowstack/errors.py": "",
                "flowstack/interfaces.py": "",
                "flowstack/policy/__init__.py": "from .headers import hop\nfrom datetime import datetime",
                "flowstack/policy/headers.py": "from flowstack.errors import Fault\nimport twisted.web.http_headers",
                "flowstack/wire/pool.py": "from flowstack.policy import headers\nimport twisted.internet.defer",
                "flowstack/relay/resource.py": "from flowstack.policy.headers import hop\nfrom ..interfaces import I",
                "flowstack/testing/standin.py": "from flowstack.wire import pool",
                "flowstack/testing/__main__.py": "from flowstack.cli.standin import run",
                "flowstack/cli/standin.py": "def run():\n    from flowstack.testing import standin\n"
                "    from twisted.internet import reactor",
                "flowstack/tap.py": "from flowstack import relay, wire\nfrom flowstack.relay.resource import Root",
            }
        )
        == []
    )


SOUND: dict[str, str] = {"flowstack/__init__.py": "", "flowstack/errors.py": "", "flowstack/policy/__init__.py": ""}


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("wire/a.py", "from flowstack.relay.exchange import Exchange", "wire imports relay, which stands above it"),
        ("wire/a.py", "import flowstack.relay.exchange", "wire imports relay, which stands above it"),
        ("wire/a.py", "from flowstack import relay", "wire imports relay, which stands above it"),
        ("wire/a.py", "from ..relay import exchange", "wire imports relay, which stands above it"),
        ("wire/__init__.py", "from ..relay import exchange", "wire imports relay, which stands above it"),
        ("wire/a.py", "from .. import relay", "wire imports relay, which stands above it"),
        ("wire/a.py", "def f():\n    from flowstack.tap import x", "wire imports tap, which stands above it"),
        ("wire/a.py", "if TYPE_CHECKING:\n    from flowstack.admin import x", "wire imports admin, which stands above"),
        ("errors.py", "from flowstack.policy import headers", "errors imports policy, which stands above it"),
        ("policy/a.py", "from flowstack.keystore.file import x", "policy imports keystore, which stands above it"),
        ("relay/a.py", "from flowstack.tap import Options", "relay imports tap, which stands above it"),
        ("relay/a.py", "from flowstack.admin.health import x", "relay imports its sibling admin"),
        ("keystore/a.py", "from flowstack.wire.pool import x", "keystore imports its sibling wire"),
        ("relay/a.py", "from flowstack.testing import x", "relay imports testing, which is not for it"),
        ("tap.py", "from flowstack.testing import x", "tap imports testing, which is not for it"),
        ("tap.py", "from flowstack.cli.main import main", "tap imports cli, which is not for it"),
        ("attic/a.py", "from flowstack.errors import x", "attic is a room without a level"),
        ("__init__.py", "from flowstack.errors import x", "flowstack/__init__.py imports errors"),
        ("policy/a.py", "import time", "policy imports time; it is pure"),
        ("policy/a.py", "from os import path", "policy imports os.path; it is pure"),
        ("policy/a.py", "import socket as s", "policy imports socket; it is pure"),
        ("policy/a.py", "def f():\n    import secrets", "policy imports secrets; it is pure"),
        (
            "policy/a.py",
            "from twisted.internet.defer import Deferred",
            "policy imports twisted.internet.defer.Deferred",
        ),
        ("policy/a.py", "from twisted.internet import task", "policy imports twisted.internet.task; it is pure"),
        ("policy/a.py", "import datetime\ndatetime.datetime.now()", "policy calls datetime.now; it is pure"),
        ("policy/a.py", "open('keys')", "policy calls open; it is pure"),
        ("wire/a.py", "from twisted.internet import reactor", "imports the reactor; take it as an argument"),
        ("wire/a.py", "def f():\n    from twisted.internet import reactor", "imports the reactor; take it"),
        ("wire/a.py", "import twisted.internet.reactor", "imports the reactor; take it as an argument"),
        ("tap.py", "from twisted.internet import reactor", "imports the reactor at module level"),
        ("cli/a.py", "class A:\n    from twisted.internet import reactor", "imports the reactor at module level"),
    ],
)
def test_each_forbidden_import_is_found_and_named(path: str, source: str, fault: str) -> None:
    rooms = ("relay", "admin", "tap", "wire", "keystore", "testing", "cli")
    tree = {f"flowstack/{room}/__init__.py": "" for room in rooms if room != "tap"} | {"flowstack/tap.py": ""}
    found = faults(SOUND | tree | {f"flowstack/{path}": source})
    assert len(found) == 1
    assert found[0].startswith(f"flowstack/{path}:{source.count(chr(10)) + 1}: {fault}")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("from flowstack.wire import b", "from flowstack.wire import a"),
        ("import flowstack.wire.b", "def f():\n    import flowstack.wire.a"),
        ("from .b import x", "from .a import y"),
    ],
)
def test_a_circle_inside_a_room_is_found_and_its_way_shown(a: str, b: str) -> None:
    found = faults(SOUND | {"flowstack/wire/__init__.py": "", "flowstack/wire/a.py": a, "flowstack/wire/b.py": b})
    assert len(found) == 1
    assert found[0].startswith("a circle of imports: ")
    assert "flowstack.wire.a" in found[0]
    assert "flowstack.wire.b" in found[0]
