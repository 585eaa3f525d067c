"""The manual says what the code knows, and its pictures are those of their texts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

import flowstack.errors as tree
from flowstack.ledger.meanings import members
from flowstack.ledger.row import BLANK, SocketFacts
from flowstack.metrics.families import FAMILIES
from flowstack.relay import exchange, tunnel
from flowstack.server import connection as server_connection
from flowstack.upstream import connection as client
from scripts import diagrams, reference

ROOT = Path(__file__).parent.parent
MANUAL = ROOT / "docs"
PAGES = [*sorted(MANUAL.rglob("*.rst")), *(ROOT / f"{name}.rst" for name in ("README", "SECURITY", "CONTRIBUTING"))]
COMMANDS = dict(reference.every_command(reference.root, "flowstack"))


def test_every_error_code_has_a_section_with_its_status() -> None:
    page = reference.errors()
    kinds = [kind for kind in vars(tree).values() if isinstance(kind, type) and issubclass(kind, tree.FlowstackError)]
    assert len(kinds) > 20
    for kind in kinds:
        section = page.partition(f"\n``{kind.code}``\n~~~")[2] or page.partition(f"``{kind.code}``\n~~~")[2]
        assert f"Status {kind.status}, type ``{kind.type}``" in section.partition("\n~~~")[0], kind


def test_every_member_of_a_row_is_there_once() -> None:
    named = re.findall(r"(?m)^``(\w+)`` \(", reference.rows())
    assert named == [*BLANK, "requests", *SocketFacts.__annotations__]


def test_every_metric_is_there_once_with_its_labels() -> None:
    page = reference.metrics()
    named = re.findall(r"(?m)^``(\w+)`` \(", page)
    assert sorted(named) == sorted({series.name for family in FAMILIES.values() for series in family.series})
    for family in FAMILIES.values():
        for series in family.series:
            entry = page.partition(f"``{series.name}`` (")[2].partition("\n\n")[0]
            labels = [*family.labels, *(name for name, _ in series.fixed)]
            assert all(f"``{label}``" in entry for label in labels if not label.startswith("gen_ai_")), series.name


def test_every_command_is_there_with_its_help() -> None:
    page = reference.commands()
    for path, command in reference.every_command(reference.root, "flowstack"):
        section = page.partition(f"\n``{path}``\n")[2].partition("\n``")[0]
        for parameter in command.params:
            assert all(option in section for option in parameter.opts if option.startswith("--")), (path, parameter)
    assert "--listen" in page.partition("``twistd flowstack``\n")[2].partition("\n``")[0]


def test_every_state_is_there_with_what_it_means_and_what_may_follow() -> None:
    tables = reference.states().split(".. list-table:: ")[1:]
    for table, machine in zip(tables, (exchange, server_connection, client, tunnel), strict=True):
        entries = {entry.partition("``")[0]: entry for entry in table.split("\n   * - ``")[1:]}
        assert entries.keys() == {state.name for state in machine.State}
        for state in machine.State:
            _, meaning, following = entries[state.name].strip().split("\n")
            assert len(meaning) > 10
            assert set(re.findall("``(.*?)``", following)) == {each.name for each in machine.MOVES[state]}


def test_a_member_without_a_text_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"Row\.two"):
        list(members('class Row:\n    one: int\n    """Said."""\n    two: str | None\n', "Row"))


def test_a_page_that_is_as_it_was_is_not_written_again(tmp_path: Path) -> None:
    reference.write(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {file.stem for file in before} == set(reference.PAGES)
    reference.write(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("source", sorted((MANUAL / "diagrams").glob("*.dot")), ids=lambda source: source.stem)
def test_a_picture_was_drawn_from_the_text_beside_it(source: Path) -> None:
    drawn = source.with_suffix(".svg").read_text("utf-8")
    assert drawn.startswith(diagrams.mark(source)), "the text has changed since: make diagrams"


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each ``flowstack`` command that a page shows, in code and in sentences."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    names = "|".join(path for path in COMMANDS if " " in path)
    for found in re.findall(rf"(?<![\w.-])((?:{names})\b[^|)<>`\n]*)", text):
        with suppress(ValueError):  # a quotation mark that a pipe cut off
            yield shlex.split(found, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_knows_its_subcommands_and_options(page: Path) -> None:
    for words in commands_of(page):
        command, path, rest = reference.root, "flowstack", words
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            path, rest = f"{path} {rest[0]}", rest[1:]
            assert path in COMMANDS, (page.name, words)
            command = COMMANDS[path]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert used <= known | {"--help", "--version"}, (page.name, words)


def test_commands_are_found_in_the_pages() -> None:
    assert sum(1 for page in PAGES for _ in commands_of(page)) > 60


def test_every_generated_part_is_included_by_a_page() -> None:
    pages = "".join(page.read_text("utf-8") for page in MANUAL.rglob("*.rst"))
    for name in reference.PAGES:
        assert f"generated/{name}.inc\n" in pages


def test_the_architecture_names_the_rooms_that_there_are_and_no_other() -> None:
    page = (MANUAL / "explanation/architecture.rst").read_text("utf-8")
    listing = page.partition("\n    flowstack/\n")[2].partition("\n    tests/")[0]
    named = set(re.findall(r"(?m)^      (\S.*)$", listing))
    rooms = {room for line in named for room in re.findall(r"\w+(?:/|\.py)", line.partition("  ")[0])}
    there = {f"{path.name}/" for path in (ROOT / "flowstack").iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in (ROOT / "flowstack").glob("*.py") if path.name != "__init__.py"}
    assert rooms == there


def test_every_file_that_the_manual_and_the_readme_name_is_there() -> None:
    for page in PAGES:
        for named in re.findall(r"``((?:docs|etc|scripts|bench|tests)/[\w./-]+\w)``", page.read_text("utf-8")):
            assert (ROOT / named).exists(), (page.name, named)
