"""The examples of the manual, as its pages have them: blocks of code that a class marks to be run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent.parent

_BLOCKS = re.compile(
    r"(?m)^(?P<indent> *)\.\. code-block:: (?P<language>\w+)\n(?P=indent)   :class: (?P<words>.+)\n\n"
    r"(?P<text>(?:(?P=indent)   .*\n|\n)+)"
)


@frozen
class Example:
    """A block of a page.

    :ivar words: its class: ``run`` and the environment of an SDK; or ``server``, ``step``, ``printed``.
    """

    page: str
    language: str
    words: tuple[str, ...]
    text: str

    def at(self, base_url: str, flowstack_key: str, openai_key: str) -> str:
        """The program with an address and keys of the test's, and nothing else changed."""
        address = base_url.removesuffix("/v1").removeprefix("http")
        text = self.text.replace("http://127.0.0.1:8080", f"http{address}")
        text = text.replace("ws://127.0.0.1:8080", f"ws{address}")
        return text.replace("YOUR_FLOWSTACK_KEY", flowstack_key).replace("YOUR_OPENAI_KEY", openai_key)


def examples(page: Path) -> Iterator[Example]:
    """The marked blocks of a page, in order."""
    for found in _BLOCKS.finditer(page.read_text("utf-8")):
        text = dedent(found["text"]).strip("\n") + "\n"
        yield Example(str(page.relative_to(ROOT)), found["language"], tuple(found["words"].split()), text)


def pages() -> list[Path]:
    """The manual's pages and the README."""
    return [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
