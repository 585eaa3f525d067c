"""What each field of a row means: the words below :class:`flowstack.ledger.row.Row`, which are the manual's too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROLE = re.compile(r":doc:`[^`]*`")


def row_members() -> Iterator[tuple[str, str, str]]:
    """Name, type and documentation of each field of a row, in the manual's markup."""
    source = Path(__file__).with_name("row.py").read_text("utf-8")  # a compiled module does not show its own
    for name in ("Row", "FoldedRow", "SocketFacts"):
        yield from members(source, name)


def members(source: str, name: str) -> Iterator[tuple[str, str, str]]:
    """The same of each member that a class in a module declares.

    :raises ValueError: one has no documentation.
    """
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    for index, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            after = body[index + 1] if index + 1 < len(body) else None
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                raise ValueError(f"{name}.{node.target.id} has no text below it that says what it is")
            yield node.target.id, ast.unparse(node.annotation), " ".join(str(after.value.value).split())


def json_type(annotation: str) -> str:
    """An annotation as JSON calls it."""
    kind, *others = annotation.split(" | ")
    words = {"int": "number", "float": "number", "bool": "true or false"}
    return words.get(kind, "object" if kind.startswith("dict") else "text") + (", or null" if others else "")


@cache
def row_fields() -> list[tuple[str, str, str]]:
    """Name, JSON's type and meaning of each field of a row, in plain text."""
    return [(name, json_type(kind), _plain(text)) for name, kind, text in row_members()]


def _plain(text: str) -> str:
    """Without markup, and without references to the manual's pages."""
    text = re.sub(r"\s*\([^()]*:doc:`[^`]*`[^()]*\)", "", text)
    return _ROLE.sub("the manual", text).replace("``", "")
