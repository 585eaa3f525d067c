"""Write what the code itself knows as pages of the manual: into ``docs/reference/generated/``, at each build.

A page of the manual is prose, and includes its part from there.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import click
from twisted.python import usage

from flowstack import errors as tree
from flowstack.admin.endpoints import ENDPOINTS, Endpoint
from flowstack.admin.refusals import REFUSALS
from flowstack.cli.main import main as root
from flowstack.ledger.meanings import json_type, row_members
from flowstack.metrics.families import FAMILIES, USAGE
from flowstack.relay import exchange, tunnel
from flowstack.server import connection as server_connection
from flowstack.upstream import connection as client
from scripts.settings import settings_reference

FOLDER = Path(__file__).parent.parent / "docs/reference/generated"


def error_classes() -> list[type[tree.FlowstackError]]:
    """One class for each code, by status; where a class shares its parent's code, the parent."""
    found: dict[str, type[tree.FlowstackError]] = {}
    for value in (*vars(tree).values(), *REFUSALS):
        if inspect.isclass(value) and issubclass(value, tree.FlowstackError) and value is not tree.LimitExceeded:
            found.setdefault(value.code, value)
    return sorted(found.values(), key=lambda kind: kind.status)


def errors() -> str:
    """A section for each code, whose anchor is the code with hyphens."""
    return "\n".join(_error(kind) for kind in error_classes())


def _error(kind: type[tree.FlowstackError]) -> str:
    title = f"``{kind.code}``"
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n:param")[0].strip()
    first, _, rest = text.partition("\n\n")
    retry = "" if kind.should_retry is None else f", ``x-should-retry: {str(kind.should_retry).lower()}``"
    facts = f"Status {kind.status}, type ``{kind.type}``{retry}."
    return f"{title}\n{'~' * len(title)}\n\n**{_unmarked(first)}**\n\n{rest}\n\n{facts}\n"


def _unmarked(text: str) -> str:
    """Text for bold type, which cannot hold literals."""
    return text.replace("``", "")


def rows() -> str:
    """A definition for each member of a row, with its type in JSON."""
    return "\n".join(
        f"``{name}`` ({json_type(kind)})\n    {text}\n" for name, kind, text in row_members()
    )


def metrics() -> str:
    """A definition for each metric, with its type and labels."""
    lines: dict[str, str] = {}
    for family in FAMILIES.values():
        for series in family.series:
            labels = [*family.labels, *(name for name, _ in series.fixed)]
            models = set(USAGE.labels) <= set(labels)
            said = ["the model labels"] if models else []
            said += [f"``{label}``" for label in labels if not (models and label in USAGE.labels)]
            text = f"{series.text} Labels: {', '.join(said)}." if said else series.text
            lines[series.name] = f"``{series.name}`` ({series.kind})\n    {text}\n"
    return "\n".join(lines.values())


def commands() -> str:
    """A section for each command, as its ``--help`` has it, and one for ``twistd flowstack``."""
    sections = [_command(command, path) for path, command in every_command(root, "flowstack")]
    return "\n".join([_service(), *sections])


def every_command(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command with its full name, and all commands below it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from every_command(child, f"{path} {name}")


def _command(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path, terminal_width=96, max_content_width=96)
    return _help(path, command.get_help(context))


def _service() -> str:
    from flowstack.tap import Options  # installs a reactor, which nothing else here needs

    options = Options()
    assert isinstance(options, usage.Options)
    return _help("twistd flowstack", re.sub(r"^Usage: .*\n", "", options.getUsage(96)))


def _help(title: str, text: str) -> str:
    body = "\n".join(f"    {line}".rstrip() for line in text.strip().splitlines())
    return f"``{title}``\n{'~' * (len(title) + 4)}\n\n.. code-block:: text\n\n{body}\n"


def api() -> str:
    """A definition for each call of the page's API, with its parameters."""
    return "\n".join(map(_call, ENDPOINTS))


def _call(endpoint: Endpoint) -> str:
    who = {None: "Anybody who reaches the listener.", "viewer": "Either token.", "manager": "The managing token."}
    body = endpoint.body or {"properties": {}}
    said = [f"{endpoint.summary} {endpoint.text}".strip(), who[endpoint.role]]
    if names := [f"``{name}``" for name in (*endpoint.query, *body["properties"])]:
        said.append(f"Takes {', '.join(names)}.")
    return f"``{endpoint.method} {endpoint.path}``\n    {' '.join(said)}\n"


def states() -> str:
    """For each of the machines a table: its states, what each means, what may follow."""
    machines = (
        ("An exchange", exchange.State, exchange.MOVES),
        ("A connection from a client", server_connection.State, server_connection.MOVES),
        ("A connection to an upstream", client.State, client.MOVES),
        ("A WebSocket", tunnel.State, tunnel.MOVES),
    )
    return "\n".join(_machine(title, kind, moves) for title, kind, moves in machines)


def _machine(title: str, kind: type[Enum], moves: Mapping[Any, Collection[Any]]) -> str:
    rows = [f".. list-table:: {title}", "   :header-rows: 1", "   :widths: 18 46 36", ""]
    said = dict(re.findall(r"^    ([A-Z_]+) = (?:\d+  # |\")(.*?)\"?$", inspect.getsource(kind), re.MULTILINE))
    for cells in (
        ("State", "Meaning", "May be followed by"),
        *((f"``{one.name}``", said[one.name], _names(each for each in kind if each in moves[one])) for one in kind),
    ):
        rows += [f"   {'* -' if not index else '  -'} {cell}" for index, cell in enumerate(cells)]
    return "\n".join(rows) + "\n"


def _names(states: Iterable[Enum]) -> str:
    return ", ".join(f"``{state.name}``" for state in states) or "nothing"


PAGES = {
    "api": api,
    "errors": errors,
    "rows": rows,
    "metrics": metrics,
    "commands": commands,
    "settings": settings_reference,
    "states": states,
}
"""What is generated, by the name of its file."""


def write(folder: Path) -> None:
    """Write each page where it differs from what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        file, text = folder / f"{name}.inc", page()
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
