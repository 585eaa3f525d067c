"""The page's files: small and whole in themselves, nothing inline, nothing from elsewhere, no text read as markup."""

from __future__ import annotations

import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

import flowstack.admin
from flowstack.keys import ATTRIBUTES, GROUP_ATTRIBUTES
from flowstack.ledger.row import FoldedRow, Row
from flowstack.ledger.schema import DIMENSIONS

STATIC = Path(flowstack.admin.__file__).parent / "static"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
PAGES = sorted(STATIC.glob("*.html"))
OURS = [path for path in FILES if path.parent == STATIC]
MODULES = [path for path in OURS if path.suffix == ".js"]

MAX_BYTES = 250_000

ADDRESS = re.compile(r"(?:https?:)?//[\w.\[\]-]+", re.ASCII)
IMPORT = re.compile(r"^import .* from \"([^\"]+)\";$", re.MULTILINE)


class Tags(HTMLParser):
    """All tags of a page with their attributes, and what stands in scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def files(self) -> set[str]:
        """What the page has the browser fetch."""
        named = (attributes.get(name) for _, attributes in self.tags for name in ("src", "href"))
        return {name for name in named if name is not None and not name.startswith(("#", "data:"))}


def by_name(path: Path) -> str:
    return path.name


def reached(page: Path) -> set[Path]:
    """All files that a page fetches, modules and what these import included."""
    found: set[Path] = set()
    open_ = [STATIC / name.removeprefix("static/") for name in Tags(page).files()]
    while open_:
        path = open_.pop()
        if path not in found:
            found.add(path)
            if path in MODULES:
                open_ += [path.parent / name for name in IMPORT.findall(path.read_text())]
    return found


def list_of(name: str, file: str) -> str:
    """The text of a constant that is an array."""
    match = re.search(
        rf"^(?:export )?const {name} = \[(.*?)\];$", (STATIC / file).read_text(), re.DOTALL | re.MULTILINE
    )
    assert match, f"{file} has no {name}"
    return match[1]


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < MAX_BYTES


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_a_page_has_nothing_inline(page: Path) -> None:
    tags = Tags(page)
    assert tags.inline == ""
    assert {tag for tag, _ in tags.tags}.isdisjoint({"style", "iframe", "object", "embed", "base", "form"})
    for _, attributes in tags.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_a_page_fetches_files_of_this_folder_alone(page: Path) -> None:
    assert all(name.startswith("static/") for name in Tags(page).files())
    assert reached(page) <= set(FILES)


def test_each_file_is_of_use_to_a_page() -> None:
    used = set().union(*map(reached, PAGES))
    idle = {path.name for path in FILES if path not in used} - {page.name for page in PAGES}
    assert idle == {"VENDORED", "LICENSE.uplot"}


@pytest.mark.parametrize("path", OURS, ids=by_name)
def test_no_file_names_another_host(path: Path) -> None:
    found = {address for address in ADDRESS.findall(path.read_text()) if not address.endswith("//127.0.0.1")}
    assert not found


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".css"], ids=by_name)
def test_no_style_sheet_fetches_anything(path: Path) -> None:
    assert not re.search(r"url\(|@import|@font-face", path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_no_module_reads_text_as_markup_or_as_a_program(path: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|DOMParser|document\.write|srcdoc"
    forbidden += r"|\beval\(|new Function|import\(|setAttribute\(\"(?:style|on)|javascript:"
    assert not re.findall(forbidden, path.read_text())


def test_the_vendored_library_is_what_was_published() -> None:
    lines = [line for line in (STATIC / "vendor/VENDORED").read_text().splitlines() if not line.startswith("#")]
    told = {name: digest for digest, name in map(str.split, lines)}
    there = {path.name: sha256(path.read_bytes()).hexdigest() for path in FILES if path.parent.name == "vendor"}
    del there["VENDORED"]
    assert told == there


def test_the_page_groups_by_each_field_that_reports_know() -> None:
    assert set(re.findall(r'"(\w+)"', list_of("FIELDS", "state.js"))) == set(DIMENSIONS)


def test_the_page_asks_for_each_attribute_of_a_key() -> None:
    asked = re.findall(r'^  \["(\w+)"', list_of("ATTRIBUTES", "keys.js"), re.MULTILINE)
    assert set(asked) == {name for name, attribute in ATTRIBUTES.items() if not attribute.by_rotation}
    assert set(re.findall(r'"(\w+)"', list_of("OF_GROUP", "keys.js"))) == set(GROUP_ATTRIBUTES)


def test_an_open_row_has_a_place_for_each_of_its_fields() -> None:
    parts = re.findall(r'\["[^"]+", \[(.*?)\]\]', list_of("PARTS", "requests.js"))
    assert set(re.findall(r'"(\w+)"', ", ".join(parts))) == {*Row.__annotations__, *FoldedRow.__annotations__}
